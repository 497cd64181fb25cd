"""What check_data.py prints about the results of `check`."""
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from checks.problems import PROBLEMS
from utilities.labels import Labels

Report = Mapping[str, Any]  # of one datafile, as check_datafile returns it

WHAT_BECOMES_OF_BAD_AUDIO = ('replaced by others in training, up to --max_bad_audio of an epoch; '
                             'an error in validation and test')


def report_lines(report: Report, labels: Labels, max_listed: int) -> Iterator[str]:
    """Yield the lines about one datafile. max_listed: how many problems of a kind to list."""
    yield (f'{report["path"]}: {report["samples"]} samples, {report["recordings"]} recordings or '
           f'parts of recordings')
    if report['seconds']:
        yield from _recording_lines(report)
    yield from _label_lines(report, labels, max_listed)
    if weights := report['weight_file']:
        problem = weights['problem']
        yield '  weight file: ' + (f'--bal bal would stop: {problem}' if problem else 'fits')
    if report['segments'] is not None:
        yield f'  segment list: {report["segments"]} segments'
    for name, items in report['problems'].items():
        severity, what = PROBLEMS[name]
        yield from _listed(f'{severity}: {what}', items, max_listed)


def _recording_lines(report):
    """Yield the lines about lengths, rates and channels."""
    seconds = report['seconds']
    yield (f'  seconds: shortest {seconds["min"]:.2f}, median {seconds["median"]:.2f}, longest '
           f'{seconds["max"]:.2f}; {report["shorter_than_window"]} shorter than the window '
           f'(padded), {report["longer_than_window"]} longer (cut)')
    of_model = report['sample_rate']
    others = {rate: n for rate, n in report['sample_rates'].items() if rate != of_model}
    if others:
        rates = ', '.join(f'{n} at {rate} Hz' for rate, n in others.items())
        yield (f'  sample rates other than {of_model} Hz: {rates} (resampled whenever they are '
               f'read)')
    else:
        yield f'  sample rates: all {of_model} Hz'
    several = {channels: n for channels, n in report['channels'].items() if channels > 1}
    if several:
        numbers = ', '.join(f'{n} with {channels}' for channels, n in several.items())
        yield f'  more than one channel: {numbers} (averaged)'
    else:
        yield '  channels: all one'


def _label_lines(report, labels, max_listed):
    """Yield the lines about labels and classes."""
    several, negatives = report['entries_with_several_labels'], report['negatives']
    yield (f'  labels: {len(report["labels"])} of {len(labels)} classes; {several} samples have '
           f'several labels, {negatives} have none (negatives). --loss CE needs exactly one label '
           f'per sample' + (': it would stop' if several + negatives else ''))
    if negatives and not report['labels']:
        yield '  warning: only negatives: AP, AUC and accuracy on this datafile would be nan'
    names = dict(zip(labels.mids, labels.names))
    yield from _listed('classes with samples, the most frequent first',
                       [f'{names[mid]} ({mid}): {n}' for mid, n in report['labels'].items()],
                       max_listed)
    yield from _listed('classes without samples',
                       [f'{names[mid]} ({mid})' for mid in report['empty_classes']], max_listed)
    yield from _listed('labels that are not in the label file',
                       [f'{mid}: {n}' for mid, n in report['unknown_mids'].items()], max_listed)


def leak_lines(leak: Mapping[str, Any], max_listed: int) -> Iterator[str]:
    """Yield the lines about what two datafiles share."""
    yield ' and '.join(leak['datafiles'])
    for name, what in (('wavs', 'recordings'), ('video_ids', 'video ids')):
        yield from _listed(f'warning: LEAK, {what} in both', leak[name], max_listed)


def verdict(result: Mapping[str, Any]) -> str:
    """Return what `check` has found, as one sentence."""
    parts = []
    if result['bad_audio']:
        parts.append(f'{"; ".join(result["bad_audio"])} ({WHAT_BECOMES_OF_BAD_AUDIO})')
    if result['stops']:
        parts.append(f'training would not run: {"; ".join(result["stops"])}')
    if result['leaks']:
        parts.append('datafiles share recordings or videos (LEAK, above): scores would be too good')
    return '; '.join(parts) or 'training would run with these datafiles'


def _listed(title: str, items: Sequence[str], max_listed: int) -> Iterator[str]:
    """Yield a title and the first of some items, if there are any."""
    if items:
        yield f'  {title}: {len(items)}'
        yield from (f'    {item}' for item in items[:max_listed])
        if len(items) > max_listed:
            yield f'    ... and {len(items) - max_listed} more (--max_listed, --json)'
