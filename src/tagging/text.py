"""What inference prints about a recording."""
import numpy as np

from tagging.result import Tagging
from utilities.formatting import clock

TIMELINE_SCORE = 0.1  # the least score of a class in the timeline; the best class is always there


def as_text(tagging: Tagging, top_k: int) -> str:
    """Return a Tagging for people: the best classes of the recording, then of every window."""
    several = len(tagging.starts) > 1
    tenths = needs_tenths(tagging)
    lines = [f'{tagging.path}  {duration(tagging)}']
    if tagging.incomplete_from is not None:
        lines.append(f'  incomplete: what follows {tagging.incomplete_from:.2f} s is missing or '
                     f'damaged')
    names, highest = tagging.labels.names, tagging.max
    best = tagging.top(tagging.mean, top_k)
    width = max(len(names[i]) for i, _ in best)
    if not several:
        lines += [f'  {names[i]:<{width}}  {score:.2f}' for i, score in best]
        return '\n'.join(lines) + '\n'
    lines.append(f'  {"":<{width}}  mean  max')
    lines += [f'  {names[i]:<{width}}  {mean:.2f}  {highest[i]:.2f}' for i, mean in best]
    lines += timeline(tagging, top_k, tenths)
    return '\n'.join(lines) + '\n'


def needs_tenths(tagging: Tagging) -> bool:
    """Return whether whole seconds are too coarse for the times of a recording."""
    return tagging.seconds < 10 or bool(len(tagging.starts) > 1 and tagging.starts[1] < 5)


def duration(tagging: Tagging) -> str:
    """Return the duration as text; if the only window is a part of it, say which part."""
    tenths = needs_tenths(tagging)
    length = clock(tagging.seconds, tenths)
    start, end = clock(tagging.starts[0], tenths), clock(tagging.ends[0], tenths)
    if len(tagging.starts) > 1 or end == length:
        return length
    return f'{length}, of which {start}-{end}'


def timeline(tagging: Tagging, top_k: int, tenths: bool) -> list[str]:
    """Return a line for every window: when it is and what is heard in it.

    Args:
        tagging: of a recording.
        top_k: how many classes to show at most.
        tenths: show times in tenths of a second.
    """
    return [f'  {clock(start, tenths)}-{clock(end, tenths)}  {heard(tagging, scores, top_k)}'
            for start, end, scores in zip(tagging.starts, tagging.ends, tagging.scores)]


def heard(tagging: Tagging, scores: np.ndarray, top_k: int) -> str:
    """Return the best of some scores (classes,) with the names of their classes.

    Args:
        tagging: has the classes.
        scores: of a window.
        top_k: how many classes to return at most.
    """
    best = tagging.top(scores, top_k)
    shown = [(i, score) for i, score in best if score >= TIMELINE_SCORE] or best[:1]
    return ', '.join(f'{tagging.labels.names[i]} {score:.2f}' for i, score in shown)
