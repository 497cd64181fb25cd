"""Where a recording holds a segment: by its name and its length."""
import pytest

from utilities.places import PlaceError, RecordingName, find_place, parse_name
from utilities.segments import Segment

AWKWARD = 'Yid_-30_-ab'  # an id that begins as prefixes do, and contains what separates


@pytest.mark.parametrize('name, start, end', [
    ('{}.wav', None, None), ('Y{}.wav', None, None), ('id_{}.m4a', None, None),
    ('a/b.zip/{}.p0.mp3', None, None), ('{}.f140.m4a', None, None),
    ('{}_30.000.wav.gz', '30.000', None), ('Y{}_30000_40000.flac', '30000', '40000'),
    ('{}-30-40.wav', '30', '40'), ('Title [live] - 2 [{}].m4a', None, None),
    ('T [{}]_30.5.webm', '30.5', None), ('Title-{}.webm', None, None),
    ('A-[b] 1-2-{}_30.webm', '30', None)])
def test_a_name_is_read_as_downloaders_write_it(name, start, end):
    for video_id in (AWKWARD, '--PJHxphWEs', '-----------', '0123456789_'):
        read = parse_name(name.format(video_id), {video_id, 'other______'})
        assert read == RecordingName(video_id, start, end)


@pytest.mark.parametrize('name', ['{}x.wav', 'x{}.wav', 'Title {}.wav', '{}_a.wav',
                                  '[{}] title.wav', '{}.p1.wav'])
def test_a_name_that_means_something_else_is_not_read(name):
    assert parse_name(name.format('--PJHxphWEs'), {'--PJHxphWEs'}) is None
    assert parse_name('--PJHxphWEs.wav', {'other______'}) is None


BARE, AT_30, TO_60 = ((start, end) for start, end in ((None, None), ('30', None), ('30', '60')))


@pytest.mark.parametrize('seconds, name, place', [
    # The segment; the video; the video that ends early; longer and shorter cuts; who knows.
    (10, BARE, (0, 10, True)), (9.1, BARE, (0, 9.1, True)), (10.9, AT_30, (0, 10.9, True)),
    (60, BARE, (30, 10, False)), (40, AT_30, (30, 10, False)), (39.5, AT_30, (30, 9.5, False)),
    (35, BARE, (30, 5, False)), (30, TO_60, (0, 10, False)), (4, AT_30, (0, 4, True)),
    (4, BARE, None), (20, BARE, None), (30.5, BARE, None), (20, AT_30, None), (35, AT_30, None)])
def test_the_length_of_a_recording_tells_where_its_segment_is(seconds, name, place):
    segment, name = Segment('-----------', 30.0, 40.0, ()), RecordingName('-----------', *name)
    if place:
        assert find_place(segment, seconds, name, of_several=False) == place
    else:
        with pytest.raises(PlaceError, match='neither the segment from 30 to 40 s nor a video'):
            find_place(segment, seconds, name, of_several=False)


@pytest.mark.parametrize('seconds', [0.2, 20, 29.9])
def test_a_segment_of_less_than_a_second_is_not_found_in_what_misses_it(seconds):
    segment = Segment('-----------', 30.0, 30.5, ())
    with pytest.raises(PlaceError, match='neither the segment'):
        find_place(segment, seconds, RecordingName('-----------'), of_several=False)


def test_at_the_beginning_of_a_video_no_recording_is_too_short_to_place():
    segment, name = Segment('-----------', 0.0, 10.0, ()), RecordingName('-----------')
    assert find_place(segment, 3, name, of_several=False) == (0, 3, True)
    with pytest.raises(PlaceError, match='several of its clips are listed: name it ID_START'):
        find_place(segment, 3, name, of_several=True)
    assert find_place(segment, 60, name, of_several=True) == (0, 10, False)
