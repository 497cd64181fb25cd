"""Measure how long programs take to start, in turns with `import torch`.

python tests/bench/startup.py [--rounds 7]: prints, for every program, the median time of --help as
a ratio to that of `import torch`; then that of inference.py on a short clip with a tiny model as a
ratio to `import torch, timm`. Exits with 1 if a ratio is above its limit.
"""
import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'src'))

HELP_LIMIT = 0.37  # of `import torch`
INFERENCE_LIMIT = 1.5  # of `import torch, timm`
NOT_PROGRAMS = ('cli.py', 'config.py', 'recipe_options.py')  # which read options for others
IMPORT_TORCH = ['-c', 'import torch']
IMPORT_TIMM = ['-c', 'import torch, timm']


def find_programs():
    """Return the paths of all programs from the root of the repository: files that read options."""
    scripts = [path for room in ('src', 'egs') for path in (ROOT / room).rglob('*.py')]
    return sorted(str(path.relative_to(ROOT)) for path in scripts
                  if '.parse_args(' in path.read_text() and path.name not in NOT_PROGRAMS)


def make_clip_and_model(folder):
    """Write a clip of one second and a tiny model; return the command line that tags it."""
    import numpy as np
    import soundfile

    from models import ASTModel, save_checkpoint
    rng = np.random.default_rng(0)
    soundfile.write(folder / 'clip.wav', 0.1 * rng.standard_normal(16000), 16000)
    model = ASTModel(2, fstride=16, tstride=16, input_tdim=128, imagenet_pretrain=False,
                     model_size='tiny224', verbose=False)
    save_checkpoint(model, folder / 'model.pth', mean=-4.0, std=4.0, loss='BCE',
                    labels={'mids': ['a', 'b'], 'names': ['a', 'b']})
    return ['src/inference.py', str(folder / 'clip.wav'), '--checkpoint',
            str(folder / 'model.pth'), '--device', 'cpu']


def seconds_of(words):
    """Return how long Python takes to start and run these words of a command line."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f'{" ".join(words)} failed: {done.stderr}')
    return seconds


def measure(commands, rounds):
    """Run commands in turns, A B A B ...; return the median seconds of each, by its name."""
    times = {name: [] for name in commands}
    for _ in range(rounds):
        for name, words in commands.items():
            times[name].append(seconds_of(words))
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    """Measure, print a table, and compare with the limits."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7)
    rounds = parser.parse_args().rounds
    programs = find_programs()
    with tempfile.TemporaryDirectory() as folder:
        tag = make_clip_and_model(Path(folder))
        times = measure({'torch': IMPORT_TORCH, 'timm': IMPORT_TIMM, 'tag': tag,
                         **{program: [program, '--help'] for program in programs}}, rounds)
    print(f'import torch: {times["torch"]:.2f} s; import torch, timm: {times["timm"]:.2f} s')
    rows = [(f'{program} --help', times[program] / times['torch'], HELP_LIMIT)
            for program in programs]
    rows.append(('src/inference.py, a clip of 1 s', times['tag'] / times['timm'], INFERENCE_LIMIT))
    for what, ratio, limit in rows:
        print(f'| {what:<45} | {ratio:5.2f} | {"above" if ratio > limit else "below"} {limit} |')
    sys.exit(any(ratio > limit for _, ratio, limit in rows))


if __name__ == '__main__':
    main()
