"""How much of the segment lists was found, for the terminal, and what is left out, as CSV."""
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from clips import Found, Matches, Problem
from utilities.formatting import quoted
from utilities.places import TOLERANCE, is_short
from utilities.segments import Segment
from utilities.texts import write_text

# What is left out before it is read, with examples.
OTHER_START = ('files of listed videos are left out, since their names have another start than '
               'the list')
UNLISTED = 'files match no clip of the list'
NO_AUDIO = 'files are not audio by their suffix'
EXAMPLES = 3

Results = Mapping[int, Found | Problem]  # the number of a clip in the list -> what became of it


def found_clips(results: Results) -> dict[int, Found]:
    """Return the clips that can be used."""
    return {number: one for number, one in results.items() if isinstance(one, Found)}


def report_left_out(segments: Sequence[Segment], results: Results, matches: Matches,
                    others: Sequence[str], out: Path) -> None:
    """Write the tables beside the datafile. Print what was found and what is left out.

    Args:
        segments: of the list.
        results: what became of each clip.
        matches: has the recordings that match no clip.
        others: files that are no recordings.
        out: the datafile.
    """
    stem = str(out).removesuffix('.json')
    write_text(Path(f'{stem}_missing.csv'), missing_table(segments, results))
    write_text(Path(f'{stem}_short.csv'), short_table(segments, found_clips(results)))
    print_report(segments, results, stem)
    print_examples(matches.other_start, OTHER_START)
    print_examples(matches.unlisted, UNLISTED)
    print_examples(others, NO_AUDIO)


def missing_table(segments: Sequence[Segment], results: Results) -> str:
    """Return the clips that no datafile will have, and why, as CSV."""
    rows = []
    for number, segment in enumerate(segments):
        result = results.get(number)
        if not isinstance(result, Found):
            rows.append((segment, result.text if result else 'missing'))
    return _table('problem', rows)


def short_table(segments: Sequence[Segment], found: Mapping[int, Found]) -> str:
    """Return the clips of which more than a second is missing, and how much there is, as CSV."""
    return _table('seconds', ((segments[number], f'{one.place.seconds:.3f}')
                              for number, one in found.items()
                              if is_short(segments[number], one.place.seconds)))


def _table(column: str, rows: Iterable[tuple[Segment, str]]) -> str:
    """Return segments and what the last column says about them as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['video_id', 'start_seconds', column])
    for segment, said in rows:
        writer.writerow([segment.video_id, f'{segment.start_seconds:.3f}', said])
    return text.getvalue()


def print_report(segments: Sequence[Segment], results: Results, stem: str) -> None:
    """Print how many of the listed clips can be used.

    Args:
        segments: of the list.
        results: what became of each clip.
        stem: path of the datafile without .json, beside which the tables are.
    """
    found = found_clips(results)
    problems = [one for one in results.values() if isinstance(one, Problem)]
    position_unknown = [one.text for one in problems if one.is_place_unknown]
    unreadable = [one.text for one in problems if not one.is_place_unknown]
    print(f'listed {len(segments)}, found {len(found)} ({len(found) / len(segments):.1%}), '
          f'missing {len(segments) - len(results)}, unreadable {len(unreadable)}, '
          f'position unknown {len(position_unknown)}')
    if cuts := sum(one.is_cut for one in found.values()):
        print(f'{cuts} clips are cut out of longer recordings')
    if short := sum(is_short(segments[number], one.place.seconds)
                    for number, one in found.items()):
        print(f'{short} clips are more than {TOLERANCE:g} s shorter than their segments; they are '
              f'listed in {stem}_short.csv')
    for title, texts in (('unreadable', unreadable), ('position unknown', position_unknown)):
        if texts:
            print(f'the first {title}: {texts[0]}')
    if len(found) < len(segments):
        print(f'the clips that are left out are listed in {stem}_missing.csv')


def print_examples(paths: Sequence[str], what: str) -> None:
    """Print how many files were left out before they were read, with examples."""
    if paths:
        print(f'{len(paths)} {what}, such as {", ".join(map(quoted, paths[:EXAMPLES]))}')


def nothing_found(audio_dir: Path, segments: Sequence[Segment], results: Results) -> str:
    """Return what to say if no clip can be used."""
    problems = [one.text for one in results.values() if isinstance(one, Problem)]
    if problems:
        return (f'none of the {len(problems)} clips in {audio_dir} can be used; the first: '
                f'{problems[0]}')
    segment = segments[0]
    name, start, end = segment.video_id, segment.start_seconds, segment.end_seconds
    return (f'{audio_dir} holds no file of a listed clip: a file belongs to a clip by its name, '
            'which has the 11 characters of the video id, and perhaps the start (and end) in '
            f'seconds or milliseconds; for the first clip: {name}.wav, Y{name}.flac, Title '
            f'[{name}].m4a, Title-{name}.webm, {name}_{start:g}.mp3, '
            f'{name}_{start:.3f}_{end:.3f}.wav or {name}_{start * 1000:.0f}_{end * 1000:.0f}.flac')
