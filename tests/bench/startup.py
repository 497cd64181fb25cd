"""Measure how long programs take to start, in turns with `import torch`.

python tests/bench/startup.py [--rounds 7]

Prints the median time of each program's --help, divided by that of `import torch`. Then it prints
the time of inference.py on a short clip with a tiny model, divided by that of `import torch, timm`.
Exits with 1 if a ratio is above its limit.
"""
import argparse
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'src'))
from measure import alternate

ROOT = Path(__file__).resolve().parents[2]
HELP_LIMIT = 0.37  # of `import torch`
INFERENCE_LIMIT = 1.5  # of `import torch, timm`
NOT_PROGRAMS = ('cli.py', 'config.py', 'recipe_options.py')  # they read options for others
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


def run_python(words):
    """Run Python with these words of a command line, to its end. Stop if it fails."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{" ".join(words)} failed: {done.stderr}')


def measure(programs, rounds):
    """Return (what, ratio, limit) of each program's --help and of inference.py.

    Prints the times that the ratios refer to.
    """
    with tempfile.TemporaryDirectory() as folder:
        commands = {'torch': IMPORT_TORCH, 'timm': IMPORT_TIMM,
                    'tag': make_clip_and_model(Path(folder)),
                    **{program: [program, '--help'] for program in programs}}
        times = alternate({name: partial(run_python, words) for name, words in commands.items()},
                          rounds, settle=False)
    print(f'import torch: {times["torch"]:.2f} s; import torch, timm: {times["timm"]:.2f} s')
    rows = [(f'{program} --help', times[program] / times['torch'], HELP_LIMIT)
            for program in programs]
    tagging = times['tag'] / times['timm']
    return [*rows, ('src/inference.py, a clip of 1 s', tagging, INFERENCE_LIMIT)]


def main():
    """Read the options, measure, print a table, and compare with the limits."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7, help='how often each program is started')
    rows = measure(find_programs(), parser.parse_args().rounds)
    for what, ratio, limit in rows:
        print(f'| {what:<45} | {ratio:5.2f} | {"above" if ratio > limit else "below"} {limit} |')
    sys.exit(any(ratio > limit for _, ratio, limit in rows))


if __name__ == '__main__':
    main()
