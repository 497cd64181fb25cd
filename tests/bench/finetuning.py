"""Measure what each fine-tuning option is worth on ESC-10: a tiny model from scratch, five folds.

python tests/bench/finetuning.py --data_dir ESC10 --out DIR [--only published adamw ...] [--jobs 2]

ESC10 is a folder in ESC-50's layout with the rows of ESC-10 (egs/esc50/README.md makes one). Each
row of the table is one run of egs/esc50/run_esc50.sh. What is in DIR already is not run again, so
the same command goes on where it was stopped. At the end, the tables are printed as Markdown. The
accuracy is that of the last epoch, since the best one would be chosen on the test folds. Twenty
additions take about three hours on two CPU cores, one seed of the proof 35 minutes.

First, each addition to the published settings is measured alone. Then `--modern` names what to add
together, and this is measured with other seeds, on the same folds.
"""
import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / 'egs' / 'esc50' / 'run_esc50.sh'
TINY = ('--model_size tiny224 --imagenet_pretrain False --audioset_pretrain False --fstride 16 '
        '--tstride 16 --batch_size 16 --lr 3e-4')
CHOICE = '--n_epochs 10 --lrscheduler_start 5 --seed 1'  # each addition alone
# Other seeds than that of the choice.
PROOF = {seed: f'--n_epochs 20 --lrscheduler_start 10 --seed {seed}' for seed in (2, 3)}
# Each addition to the published settings, by its name in the table.
ADDITIONS = {
    'published': '',
    'AdamW, weight decay 0.05': '--optim adamw --weight_decay 0.05',
    'a third of the rate': '--lr 1e-4',
    'three times the rate': '--lr 1e-3',
    'half the batch': '--batch_size 8',
    'no SpecAugment': '--freqm 0 --timem 0',
    'layer decay 0.75': '--layer_decay 0.75',
    'head at 10 times the rate': '--head_lr 10',
    'cosine': '--schedule cosine',
    'cosine, 2 epochs of warm-up': '--schedule cosine --warmup_epochs 2',
    'drop path 0.1': '--drop_path 0.1',
    'label smoothing 0.1': '--label_smoothing 0.1',
    'gradients of norm 1 at most': '--clip_grad 1',
    'moving average 0.99': '--ema 0.99',
    'mixup 0.5': '--mixup 0.5',
    'noise and roll': '--noise True',
    'gain of 6 dB': '--gain_db 6',
    'shift of 50 frames': '--shift_frames 50',
    'two masks of each kind': '--freq_masks 2 --time_masks 2',
    'spectrogram mixup 0.5': '--spec_mixup 0.5',
}


def run_recipes(args, settings, runs):
    """Run the recipe for each row of a table that is not in its folder yet.

    Args:
        args: the command line. args.jobs runs share the cores.
        settings: options that all rows have, as one text.
        runs: {name: (options, folder)}.
    """
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(run_recipe, args, folder, f'{settings} {options}')
                for options, folder in runs.values()]
        try:
            for job in as_completed(jobs):
                job.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an error or Ctrl-C, no more runs


def run_recipe(args, exp_dir, options):
    """Run the recipe, or continue it.

    Args:
        args: the command line.
        exp_dir: folder of its results.
        options: options of the recipe, as one text.
    """
    threads = {'OMP_NUM_THREADS': str(max(1, os.cpu_count() // args.jobs))} if args.jobs > 1 else {}
    words, done_file = f'{TINY} {options}', exp_dir / 'done.txt'
    if done_file.exists() and done_file.read_text() == words:
        return
    exp_dir.mkdir(parents=True, exist_ok=True)
    with open(exp_dir / 'log.txt', 'a', encoding='utf-8') as log:
        done = subprocess.run(
            [RECIPE, '--data_dir', args.data_dir, '--prep_dir', args.out / 'data', '--exp_dir',
             exp_dir, *words.split()], stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, **threads, 'AST_PYTHON': sys.executable})
    if done.returncode:
        sys.exit(f'{exp_dir}: the recipe ended with {done.returncode}; see log.txt there')
    done_file.write_text(words)


def read_runs(exp_dir):
    """Return the accuracy of the last epoch and the seconds an epoch of each fold, two arrays."""
    folds = sorted(exp_dir.glob('fold[0-9]'))
    rows = [np.loadtxt(fold / 'result.csv', delimiter=',', ndmin=2) for fold in folds]
    seconds = [json.loads((fold / 'finished').read_text())['seconds'] / len(table)
               for fold, table in zip(folds, rows)]
    return np.array([table[-1, 0] for table in rows]), np.array(seconds)


def print_table(runs, title, timed):
    """Print the finished runs as a Markdown table, each compared with `published`.

    The ± behind an accuracy is the standard deviation of the folds.

    Args:
        runs: {name: (options, folder)}.
        title: the head of the first column.
        timed: whether all ran under the same load, so that the time of an epoch can be compared.
    """
    print(f'| {title} | accuracy, last epoch | against published, ± standard error |'
          f'{" time per epoch |" * timed}\n|---|---|---|{"---|" * timed}')
    done = {name: read_runs(folder) for name, (_, folder) in runs.items()
            if (folder / 'done.txt').exists()}
    for name, (accuracy, seconds) in done.items():
        options = runs[name][0]
        more = time = '–'
        if 'published' in done:
            before, seconds_before = done['published']
            gain = 100 * (accuracy - before)  # fold by fold: both have the same clips
            if name != 'published':
                error = gain.std(ddof=1) / len(gain) ** 0.5
                more = f'{round(gain.mean(), 2) + 0.0:+.2f} ± {error:.2f}'  # + 0.0: never -0.00
            time = f'{np.median(seconds) / np.median(seconds_before):.2f}'
        shown = f'{name}: `{options}`' if options else name
        print(f'| {shown} | {100 * accuracy.mean():.2f} ± {100 * accuracy.std():.2f} % | {more} |'
              f'{f" {time} |" * timed}')


def folder_name(name):
    """Return a name that can be a folder."""
    return ''.join(letter if letter.isalnum() else '_' for letter in name)


def main():
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data_dir', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--only', nargs='+', help='words in the names of the additions to run, '
                                                  'in their order')
    parser.add_argument('--modern', default='', help='options to prove with seeds 2 and 3')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time; they share the cores')
    args = parser.parse_args()
    args.data_dir, args.out = args.data_dir.resolve(), args.out.resolve()

    chosen = {name: (options, args.out / 'choice' / folder_name(name))
              for name, options in ADDITIONS.items()}
    wanted = {}
    for word in args.only or ['']:
        found = {name: run for name, run in chosen.items() if word.lower() in name.lower()}
        if not found:
            parser.error(f'--only {word}: no addition has this word in its name; there are '
                         f'{", ".join(chosen)}')
        wanted.update(found)
    run_recipes(args, CHOICE, wanted)
    print_table(chosen, 'addition', timed=False)

    if args.modern:
        for seed, settings in PROOF.items():
            runs = {name: (options, args.out / f'seed{seed}' / folder_name(f'{name} {options}'))
                    for name, options in (('published', ''), ('modern', args.modern))}
            run_recipes(args, settings, runs)
            print_table(runs, f'seed {seed}', timed=True)


if __name__ == '__main__':
    main()
