"""What can be wrong with a datafile, and how bad it is."""
from audio.reading import TOO_LOUD
from utilities.places import TOLERANCE

SILENCE = 1e-4  # of full scale; a recording whose peak is lower is called silent

STOPS, BAD_AUDIO, WARNING = 'STOPS TRAINING', 'BAD AUDIO', 'warning'
# Key of the JSON output -> (how bad it is, what it is). check_data.py prints both, then the cases.
PROBLEMS = {
    'malformed': (STOPS, 'malformed entries'),
    'unknown_labels': (STOPS, 'entries with labels that are not in the label file'),
    'shards': (BAD_AUDIO, 'shards that are missing or cannot be read'),
    'missing': (BAD_AUDIO, 'missing recordings'),
    'unreadable': (BAD_AUDIO, 'recordings that cannot be decoded'),
    'empty': (BAD_AUDIO, 'recordings without samples'),
    'non_finite': (BAD_AUDIO, 'recordings with NaN or infinite samples'),
    'past_end': (BAD_AUDIO, 'entries that begin after the end of their recordings'),
    'shortened': (WARNING, 'entries that are longer than their recordings: training would use what '
                           'is there'),
    'incomplete': (WARNING, 'recordings that are damaged, or shorter than their header says: '
                            'training would use the part before the damage'),
    'too_loud': (WARNING, f'recordings past full scale (peak above {TOO_LOUD:g} times it), as if '
                          f'16-bit numbers were stored as floats'),
    'cancelling': (WARNING, 'recordings whose channels cancel each other out (opposite phase): the '
                            'model hears their mean, which is silent'),
    'silent': (WARNING, f'silent recordings (peak below {SILENCE:g})'),
    'too_short': (WARNING, 'recordings shorter than one frame of 25 ms'),
    'repeated_wavs': (WARNING, 'recordings listed more than once'),
    'repeated_video_ids': (WARNING, 'video ids listed more than once'),
    'segments_missing': (WARNING, 'segments of the list that the datafile lacks'),
    'segments_not_listed': (WARNING, 'entries that are not in the segment list, by video_id'),
    'segments_other_labels': (WARNING, 'entries with other labels than in the segment list'),
    'segments_elsewhere': (WARNING, 'entries that do not start where their segment starts, or '
                                    'whose start is unknown'),
    'segments_short': (WARNING, f'entries more than {TOLERANCE:g} s shorter than their segment'),
}


def no_problems(*names: str) -> dict[str, list[str]]:
    """Return an empty list for each of these keys of PROBLEMS."""
    return {name: [] for name in names}
