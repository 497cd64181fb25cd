"""What inference.py does once its options are read: tag files or standard input, write results."""
import hashlib
import itertools
import logging
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from audio.formats import AUDIO_SUFFIXES
from tagging.journal import Job
from tagging.outputs import Csv, Embeddings, GrowingFile, Json, JsonLines
from tagging.recordings import tag, tag_stream
from tagging.result import Tagging
from tagging.streams import Stream
from tagging.tagger import Tagger, load_tagger
from tagging.text import as_text, timeline
from utilities.errors import DataError
from utilities.folders import files_below, output_folders
from utilities.formatting import shortened

SHOWN_NAMES = 3  # of files that are left out
# Options with an output for each file -> what it is, its suffix.
OUTPUTS_OF_EACH = {'plot': ('picture', '.png'), 'html': ('page', '.html')}
# The options that the results depend on, besides the device, precision and size of batches.
JOB_OPTIONS = ('window', 'hop_seconds', 'top_k', 'json', 'csv', 'embeddings', 'plot', 'html')

logger = logging.getLogger(__name__)


def infer(args: Namespace, from_standard_input: bool) -> tuple[int, int]:
    """Tag what the options name. Print, draw and write what they ask for.

    Returns:
        How many files there were, and how many could not be read. For standard input, these are
        numbers of windows.
    """
    files: list[Path] = []
    if not from_standard_input:
        files = find_audio([*args.audio, *args.audio_path])
    pictures = paths_of_each('plot', args.plot, files)
    pages = paths_of_each('html', args.html, files)
    written = [path for path in (args.json, args.csv, args.embeddings, *pictures[:1], *pages[:1])
               if path]
    with output_folders(*(path.parent for path in written)):
        check_writable(written)
        tagger = load_tagger(
            args.checkpoint, args.device, args.amp, args.label_csv, args.dataset_mean,
            args.dataset_std, args.loss, fstride=args.fstride, tstride=args.tstride,
            input_fdim=args.num_mel_bins, input_tdim=args.audio_length)
        if from_standard_input:
            return tag_standard_input(args, tagger)
        return tag_files(args, tagger, files, pictures, pages)


def find_audio(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files among paths, and the audio files in the folders among them, each once.

    Raises:
        DataError: there are none.
    """
    given = [Path(path) for path in paths]
    files: list[Path] = []
    for path in given:
        files += _audio_below(path) if path.is_dir() else [path]
    if not files:
        where = ' '.join(map(str, given)) or 'the command line'
        raise DataError(f'there are no audio files in {where}: give files or folders, before the '
                        f'options or after --audio_path')
    return list(dict.fromkeys(files))


def _audio_below(folder):
    """Return the audio files below a folder, sorted. Log how many other files there are."""
    files = [path for path in sorted(map(Path, files_below(folder))) if path.is_file()]
    others = [path.name for path in files if path.suffix.lower() not in AUDIO_SUFFIXES]
    if others:
        logger.info('%s: left out %d files that are not audio by their suffix: %s', folder,
                    len(others), shortened(others, SHOWN_NAMES))
    return [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]


def paths_of_each(option: str, path: Path | None, files: Sequence[Path]) -> list[Path]:
    """Return where the picture or the page of each file goes.

    Args:
        option: plot or html.
        path: its value: one picture or page if it has the suffix of one, else a folder for
            <name of the file><suffix>; None for no outputs.
        files: the recordings.

    Raises:
        DataError: it is one picture or page, but there are several files.
    """
    if path is None:
        return []
    kind, suffix = OUTPUTS_OF_EACH[option]
    if path.suffix.lower() == suffix:
        if len(files) > 1:
            raise DataError(f'--{option} {path} names one {kind}, but there are {len(files)} '
                            f'files: give a folder')
        return [path]
    seen: Counter[str] = Counter()
    paths = []
    for name in (file.name for file in files):
        seen[name] += 1
        number = f'-{seen[name]}' if seen[name] > 1 else ''
        paths.append(path / f'{name}{number}{suffix}')
    return paths


def check_writable(paths: Sequence[Path]) -> None:
    """Raise DataError if files cannot be written: better now than after the work."""
    if len(set(paths)) < len(paths):
        raise DataError(f'{" ".join(map(str, paths))}: two outputs have the same name')
    for path in paths:
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise DataError(f'{path} cannot be written: it is a folder, or is in one that must not '
                            f'be written to')


def tag_files(args: Namespace, tagger: Tagger, files: Sequence[Path], pictures: Sequence[Path],
              pages: Sequence[Path]) -> tuple[int, int]:
    """Tag the files that no earlier start has done; write and print the results.

    Args:
        args: of the command line.
        tagger: the models.
        files: what to tag.
        pictures, pages: where the picture and the page of each file go; empty for none.

    Returns:
        How many files there were, and how many could not be read.
    """
    outputs = make_outputs(args, tagger, longest_path=max(len(str(file)) for file in files))
    beside = outputs[0].path if outputs else args.plot or args.html
    with Job(outputs, beside, job_settings(args, tagger, files), len(files)) as job:
        start = job.done.files
        taggings = tag(tagger, files[start:], args.window, args.hop_seconds,
                       batch_size=args.batch_size, num_workers=args.num_workers,
                       embeddings=bool(args.embeddings), spectrograms=bool(pictures or pages),
                       done=job.done)
        for i, tagging in enumerate(taggings, start):
            if tagging.error:
                logger.error('%s', tagging.error)
            else:
                tqdm.write(as_text(tagging, args.top_k))  # print would break a progress bar
                sys.stdout.flush()
                if pictures:
                    draw(tagging, pictures[i])
                if pages:
                    write_page(tagging, pages[i], args)
            job.add(tagging)
        job.finish()
    return job.state.files, job.state.failed


def make_outputs(args: Namespace, tagger: Tagger, longest_path: int, in_place: bool = False
                 ) -> list[GrowingFile]:
    """Return the output files that the options ask for, not yet open.

    Args:
        args: of the command line.
        tagger: has the names of the classes and the size of the embeddings.
        longest_path: length of the longest path of a recording.
        in_place: give the files their names at once, for programs that read them while they grow.
    """
    outputs: list[GrowingFile] = []
    if args.json:
        kind = JsonLines if args.json.suffix.lower() == '.jsonl' else Json
        outputs.append(kind(args.json, args.top_k, in_place))
    if args.csv:
        outputs.append(Csv(args.csv, tagger.labels.names, in_place))
    if args.embeddings:
        outputs.append(Embeddings(args.embeddings, tagger.embedding_dim, longest_path))
    return outputs


def job_settings(args: Namespace, tagger: Tagger, files: Sequence[Path]) -> dict:
    """Return what the results depend on, by names that the user knows."""
    names = hashlib.sha256(b'\0'.join(os.fsencode(file) for file in files))
    return {'files': names.hexdigest(), 'checkpoints, statistics or labels': tagger.digest(),
            '--device': tagger.device.type,
            '--amp': str(tagger.classifiers[0].model.autocast_dtype),
            '--batch_size': args.batch_size or tagger.default_batch_size,
            **{f'--{name}': str(getattr(args, name)) for name in JOB_OPTIONS}}


def draw(tagging: Tagging, path: Path) -> None:
    """Draw the spectrogram and the tags of a recording."""
    # Here, since matplotlib takes half a second to import.
    from utilities.plots import plot_tags, write_figure
    assert tagging.spectrogram is not None  # it was asked for
    figure = plot_tags(tagging.spectrogram, tagging.ends[-1], tagging.starts, tagging.ends,
                       tagging.scores, tagging.labels.names, Path(tagging.path).name,
                       tagging.sample_rate)
    write_figure(path, figure)


def write_page(tagging: Tagging, path: Path, args: Namespace) -> None:
    """Write the page of a recording."""
    from tagging.listening import write_listening_page  # here, since it imports matplotlib
    models = ', '.join(Path(checkpoint).name for checkpoint in args.checkpoint)
    write_listening_page(path, tagging, args.top_k, models)


def tag_standard_input(args: Namespace, tagger: Tagger) -> tuple[int, int]:
    """Tag standard input. Print and write each window as soon as it is complete.

    Returns:
        How many windows there were, and how many could not be read.
    """
    taggings = tag_stream(tagger, Stream(args.raw_rate), args.window, args.hop_seconds,
                          bool(args.embeddings))
    # Before the outputs are opened: if no sound comes in, those of an earlier run stay.
    first = next(taggings)
    outputs = make_outputs(args, tagger, len(Stream.name), in_place=True)
    with Job(outputs) as job:
        try:
            for tagging in itertools.chain([first], taggings):
                if tagging.error:
                    logger.error('%s', tagging.error)
                job.add(tagging)
                for line in timeline(tagging, args.top_k, tenths=True):
                    print(line, flush=True)
        except KeyboardInterrupt:  # Ctrl-C is the usual way to end a live sound
            logger.info('stopped')
        finally:
            job.finish()
    return job.state.files, job.state.failed
