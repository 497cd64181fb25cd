"""Tag audio files with trained models: what is heard in each recording, and when."""
import hashlib
import logging
import os
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from audio.fbank import FRAME_SHIFT_MS
from audio.formats import AUDIO_SUFFIXES, MAX_RATE, MIN_RATE
from audio.reading import AudioError
from models import WeightsError
from tagging.outputs import Csv, Embeddings, Json, JsonLines, Results
from tagging.sounds import Stream
from tagging.tagger import default_batch_size, load_tagger, tag, tag_stream
from training.devices import choose_device
from training.errors import TrainingError
from training.results import write_figure
from utilities.cli import (
    OptionParser,
    add_checkpoint_options,
    exit_on,
    number,
    setup_logging,
    whole,
)
from utilities.errors import DataError
from utilities.folders import files_below, output_folders
from utilities.parallel import limit_threads
from utilities.plots import clock, plot_tags

SHOWN_NAMES = 3  # of files that are left out
TIMELINE_SCORE = 0.1  # what a class must reach to be in the timeline, but for the first one

logger = logging.getLogger(__name__)


def find_audio(paths):
    """The files among paths, and the audio files in the folders among them, sorted; each once, as Paths.

    Raises DataError if there are none.
    """
    files = [file for path in map(Path, paths) for file in (_audio_below(path) if path.is_dir() else [path])]
    if not files:
        raise DataError(f'there are no audio files in {" ".join(map(str, paths)) or "the command line"}: give files or '
                        f'folders, before the options or after --audio_path')
    return list(dict.fromkeys(files))


def _audio_below(folder):
    """Return the audio files below a folder, without hidden ones; log how many others there are."""
    files = [path for path in sorted(map(Path, files_below(folder))) if path.is_file()]
    others = [path.name for path in files if path.suffix.lower() not in AUDIO_SUFFIXES]
    if others:
        examples = ', '.join(others[:SHOWN_NAMES]) + (', ...' if len(others) > SHOWN_NAMES else '')
        logger.info('%s: left out %d files that are not audio by their suffix: %s', folder,
                    len(others), examples)
    return [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]


def as_text(tagging, top_k):
    """A Tagging for people: the best classes of the whole recording and, where there are several, of every window."""
    several = len(tagging.starts) > 1
    short = tagging.seconds < 10 or (several and tagging.starts[1] < 5)
    times = [(clock(start, short), clock(end, short)) for start, end in zip(tagging.starts, tagging.ends)]
    names, mean, highest = tagging.labels.names, tagging.mean, tagging.max
    heard = '' if several or tagging.ends[0] == tagging.seconds else f', of which {times[0][0]}-{times[0][1]}'
    best = tagging.top(mean, top_k)
    width = max(len(names[i]) for i, _ in best)
    lines = [f'{tagging.path}  {clock(tagging.seconds, short)}{heard}']
    if tagging.incomplete_from is not None:
        lines.append(f'  incomplete: what follows {tagging.incomplete_from:.2f} s is missing or '
                     f'damaged')
    if several:
        lines += [f'  {"":<{width}}  mean  max']
    lines += [f'  {names[i]:<{width}}  {score:.2f}' + (f'  {highest[i]:.2f}' if several else '') for i, score in best]
    if several:
        lines += timeline(tagging, top_k, short)
    return '\n'.join(lines) + '\n'


def timeline(tagging, top_k, tenths):
    """A line for every window of a Tagging: when it is, to tenths of a second or not, and what is heard in it."""
    lines = []
    for start, end, scores in zip(tagging.starts, tagging.ends, tagging.scores):
        best = tagging.top(scores, top_k)
        heard = [pair for pair in best if pair[1] >= TIMELINE_SCORE] or best[:1]
        lines.append(f'  {clock(start, tenths)}-{clock(end, tenths)}  '
                     + ', '.join(f'{tagging.labels.names[i]} {score:.2f}' for i, score in heard))
    return lines


def picture_paths(plot, files):
    """Where the picture of each file goes: `plot` itself, a .png of one file, else <name of the file>.png in it.

    Raises DataError for a .png and several files.
    """
    if plot.suffix.lower() == '.png':
        if len(files) > 1:
            raise DataError(f'--plot {plot} names one picture, but there are {len(files)} files: give a folder')
        return [plot]
    seen, paths = Counter(), []
    for name in (file.name for file in files):
        seen[name] += 1
        paths.append(plot / (f'{name}.png' if seen[name] == 1 else f'{name}-{seen[name]}.png'))
    return paths


def reads_stream(args):
    """Whether the sound is to come in on standard input."""
    return Stream.name in (*args.audio, *args.audio_path)


def make_parser():
    """All options."""
    parser = OptionParser(prog='inference.py', description=__doc__)
    add = parser.add_argument
    add('audio', nargs='*', metavar='AUDIO', help='audio files, and folders of them; - reads standard input')
    add('--audio_path', nargs='+', default=[], metavar='AUDIO', help='the same, after options')
    add('--checkpoint', '--model_path', required=True, nargs='+', metavar='CHECKPOINT',
        help='paths, names of published checkpoints, folders of transformers or ids on Hugging Face; the scores of '
             'several are averaged')
    add('--label_csv', help='label file: index,mid,display_name; without it the names that the checkpoint knows')
    add('--window', choices=['all', 'first'], default='all',
        help='all: the whole recording, window by window; first: the first window alone, as in validation')
    add('--hop_seconds', type=number(FRAME_SHIFT_MS / 1000),
        help='seconds from the beginning of a window to the next; without it a window')
    add('--top_k', type=whole(1), default=5, help='classes to show')
    add('--raw_rate', type=whole(MIN_RATE, MAX_RATE), metavar='HZ',
        help='standard input is no WAV file but samples at this rate: 16 bits, little endian, mono')
    add('--json', type=Path, metavar='FILE',
        help='write the top classes of every recording and window; FILE.jsonl: one object per line')
    add('--csv', type=Path, metavar='FILE', help='write the scores of all classes, one row per window')
    add('--plot', type=Path, metavar='PNG', help='draw spectrogram and tags: a .png, or a folder for several files')
    add('--embeddings', type=Path, metavar='NPZ', help='write the embedding of every window')
    add('-b', '--batch_size', type=whole(1), help='windows in a batch; by default 16, or 4 on a CPU')
    add_checkpoint_options(parser, loss="BCE: scores are sigmoids; CE: softmax; without it what each "
                                        "checkpoint says, else BCE, or CE in transformers' layout")
    return parser


def check_options(parser, args):
    """Stop with a sentence where options contradict each other."""
    if args.window == 'first' and args.hop_seconds:
        parser.error('--window first has one window: --hop_seconds does not go with it')
    if args.raw_rate and not reads_stream(args):
        parser.error('--raw_rate is the sample rate of standard input: give - in the place of files')
    if reads_stream(args):
        if len(args.audio) + len(args.audio_path) > 1:
            parser.error('- is standard input, which is tagged alone: give no files beside it')
        for name in ('plot', 'batch_size'):
            if getattr(args, name):
                parser.error(f'--{name} does not go with standard input, which is tagged window by window')
    for name in ('json', 'csv', 'plot', 'embeddings'):
        if str(getattr(args, name)) == '-':
            parser.error(f'--{name} wants the name of a file: standard output has the text')
    if args.embeddings and len(args.checkpoint) > 1:
        parser.error(f'--embeddings wants one checkpoint, got {len(args.checkpoint)}')
    try:
        choose_device(args.device)
    except ValueError as error:
        parser.error(str(error))


def check_writable(paths):
    """Raise DataError if files cannot be written, before the work."""
    if len(set(paths)) < len(paths):
        raise DataError(f'{" ".join(map(str, paths))}: two outputs have one name')
    for path in paths:
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise DataError(f'{path} cannot be written: it is a folder, or is in one that must not be written to')


def infer(args):
    """Tag what the options name; print, draw and write what they ask for.

    Returns how many files there were and how many of them could not be read.
    """
    if reads_stream(args):
        files, pictures = [], []
    else:
        files = find_audio([*args.audio, *args.audio_path])
        pictures = picture_paths(args.plot, files) if args.plot else [None] * len(files)
    written = [path for path in (args.json, args.csv, args.embeddings, *pictures[:1]) if path]
    with output_folders(*(path.parent for path in written)):
        check_writable(written)
        tagger = load_tagger(args.checkpoint, args.device, args.amp, args.label_csv, args.dataset_mean,
                             args.dataset_std, args.loss, fstride=args.fstride, tstride=args.tstride,
                             input_fdim=args.num_mel_bins, input_tdim=args.audio_length)
        if reads_stream(args):
            return listen(args, tagger)
        return tag_all(args, tagger, files, pictures)


def tag_all(args, tagger, files, pictures):
    """Tag files and write what the options ask for, a picture of each to the path in `pictures`, or None.

    What an earlier start has done is not done again. Returns how many files there were and how
    many of them could not be read.
    """
    outputs = make_outputs(args, tagger, longest_path=max(len(str(file)) for file in files))
    beside = outputs[0].path if outputs else args.plot
    with Results(outputs, beside, describe_job(args, tagger, files), len(files)) as results:
        left = slice(results.done.files, None)
        taggings = tag(tagger, files[left], args.window, args.hop_seconds, batch_size=args.batch_size,
                       num_workers=args.num_workers, embeddings=bool(args.embeddings),
                       spectrograms=bool(args.plot), done=results.done)
        for tagging, picture in zip(taggings, pictures[left]):
            show(tagging, args.top_k, picture)
            results.add(tagging)
        results.finish()
    return results.state.files, results.state.failed


def make_outputs(args, tagger, longest_path, in_place=False):
    """The files that the options ask for, as GrowingFiles."""
    outputs = []
    if args.json:
        lines = args.json.suffix.lower() == '.jsonl'
        outputs.append((JsonLines if lines else Json)(args.json, args.top_k, in_place))
    if args.csv:
        outputs.append(Csv(args.csv, tagger.labels.names, in_place))
    if args.embeddings:
        outputs.append(Embeddings(args.embeddings, tagger.embedding_dim, longest_path))
    return outputs


def describe_job(args, tagger, files):
    """What the results depend on, by names that the user knows: a job with others is another job."""
    names = hashlib.sha256(b'\0'.join(os.fsencode(file) for file in files))
    return {'files': names.hexdigest(), 'checkpoints, statistics or labels': tagger.digest(),
            '--device': tagger.device.type, '--amp': str(tagger.classifiers[0].model.autocast_dtype),
            '--batch_size': args.batch_size or default_batch_size(tagger),
            **{f'--{name}': str(getattr(args, name)) for name in
               ('window', 'hop_seconds', 'top_k', 'json', 'csv', 'embeddings', 'plot')}}


def show(tagging, top_k, picture):
    """Print a Tagging, or its error, and draw it to the path `picture` unless that is None."""
    if tagging.error:
        logger.error('%s', tagging.error)
        return
    tqdm.write(as_text(tagging, top_k))  # which print would do into the middle of a progress bar
    sys.stdout.flush()
    if picture:
        write_figure(picture, plot_tags(tagging.spectrogram, tagging.ends[-1], tagging.starts, tagging.ends,
                                        tagging.scores, tagging.labels.names, Path(tagging.path).name))


def listen(args, tagger):
    """Tag standard input; print and write each window as soon as it is complete.

    Returns how many windows there were and how many of them could not be read.
    """
    outputs = make_outputs(args, tagger, len(Stream.name), in_place=True)
    with Results(outputs) as results:
        try:
            for tagging in tag_stream(tagger, Stream(args.raw_rate), args.window, args.hop_seconds,
                                      bool(args.embeddings)):
                if tagging.error:
                    logger.error('%s', tagging.error)
                results.add(tagging)
                for line in timeline(tagging, args.top_k, tenths=True):
                    print(line, flush=True)
        except KeyboardInterrupt:  # the usual end of a sound that has none
            logger.info('stopped')
        finally:
            results.finish()
    return results.state.files, results.state.failed


def main(argv=None):
    """Entry point."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_options(parser, args)
    setup_logging()
    limit_threads()
    with exit_on(DataError, AudioError, TrainingError, WeightsError, OSError):
        try:
            files, failed = infer(args)
        except KeyboardInterrupt:
            sys.exit('stopped')
    if failed:
        kind = 'windows' if reads_stream(args) else 'files'
        sys.exit(f'error: {failed} of {files} {kind} could not be read; what is wrong with them is said above')


if __name__ == '__main__':
    main()
