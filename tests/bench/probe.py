"""Measure a linear probe on ESC-10: a frozen tiny model that was trained on other classes.

python tests/bench/probe.py --prep_dir PREP --out DIR

PREP is the --prep_dir of egs/esc50/run_esc50.sh with ESC-10's recordings. For each of the five
folds, a tiny model is trained from scratch on five of the ten classes. From it, the other five are
learnt: with all weights, with half of the blocks frozen, and as a linear probe from kept embeddings.
scikit-learn's logistic regression gets the same embeddings. A few epochs of a probe that computes
them again and again show what keeping them saves. A training that is in DIR already is not run
again. Prints a table of accuracies and of the time per epoch.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'src'))
SOURCE_EPOCHS = 20
C = 1.0  # of the logistic regression, whose inputs are standardised
SETTINGS = ('--fstride 16 --tstride 16 --audio_length 512 --dataset_mean -6.6268077 --dataset_std '
            '5.358466 --batch_size 16 --loss CE --metrics acc --seed 1 --n_class 5 --dataset esc10')
FULL = '--optim adamw --weight_decay 0.05 --lr 3e-4 --schedule cosine'
SOURCE = (f'--model_size tiny224 --imagenet_pretrain False {FULL} --n_epochs {SOURCE_EPOCHS} '
          f'--save_model True')
PROBE = '--freeze backbone --lr 1e-2 --schedule cosine'
WAYS = {
    'all weights': f'{FULL} --n_epochs 10',
    'six blocks frozen': f'{FULL} --n_epochs 10 --freeze 6',
    'linear probe, kept embeddings': f'{PROBE} --n_epochs 100 --cache_embeddings True',
}
ANEW = f'{PROBE} --n_epochs 5'  # computes the embeddings again in every epoch
FOLDS = range(1, 6)


def write_data(prep_dir, out):
    """Write datafiles and label files of both halves of the classes; return nothing."""
    classes = sorted({entry['labels'] for entry in read_data(prep_dir, 'train', 1)})
    for half, chosen in (('source', classes[::2]), ('target', classes[1::2])):
        rows = ''.join(f'{i},{mid},{mid}\n' for i, mid in enumerate(chosen))
        (out / f'{half}.csv').write_text(f'index,mid,display_name\n{rows}')
        for fold in FOLDS:
            for part in ('train', 'eval'):
                data = [entry for entry in read_data(prep_dir, part, fold)
                        if entry['labels'] in chosen]
                (out / f'{half}_{part}_{fold}.json').write_text(json.dumps({'data': data}))


def read_data(prep_dir, part, fold):
    """Return the entries of a datafile of the recipe."""
    path = prep_dir / 'datafiles' / f'esc_{part}_data_{fold}.json'
    return json.loads(path.read_text())['data']


def train(out, half, fold, name, options):
    """Train an experiment, unless it is finished; return its folder."""
    exp_dir = out / name / f'fold{fold}'
    if not (exp_dir / 'finished').exists():
        exp_dir.mkdir(parents=True, exist_ok=True)
        with open(exp_dir / 'log.txt', 'a') as log:
            subprocess.run([sys.executable, ROOT / 'src' / 'run.py', '--exp_dir', exp_dir,
                            '--data_train', out / f'{half}_train_{fold}.json',
                            '--data_val', out / f'{half}_eval_{fold}.json',
                            '--label_csv', out / f'{half}.csv', *SETTINGS.split(),
                            *options.split()], stdout=log, stderr=subprocess.STDOUT, check=True)
    return exp_dir


def time_epochs(exp_dir):
    """Return the seconds of each epoch but the first, which imports what evaluation needs.

    Each epoch leaves a file of predictions.
    """
    files = exp_dir.glob('predictions/predictions_[0-9]*.npy')
    return np.diff(sorted(path.stat().st_mtime for path in files))


def regress(start, out, fold):
    """Return the accuracy of a logistic regression on the embeddings of a model."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from dataloader import AudiosetDataset
    from models import load_model
    model, description = load_model(start)
    parts = {}
    for part in ('train', 'eval'):
        dataset = AudiosetDataset(out / f'target_{part}_{fold}.json', {
            'num_mel_bins': 128, 'target_length': 512, 'mode': 'evaluation',
            'mean': description['mean'], 'std': description['std']}, out / 'target.csv')
        fbanks = torch.stack([dataset[i][0] for i in range(len(dataset))])
        with torch.inference_mode():
            embeddings = torch.cat([model.forward_features(batch) for batch in fbanks.split(32)])
        parts[part] = embeddings.numpy(), dataset.all_targets().argmax(axis=1)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))
    return probe.fit(*parts['train']).score(*parts['eval'])


def main():
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--prep_dir', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_data(args.prep_dir, out)

    accuracies, seconds = {}, {}
    for fold in FOLDS:
        source = train(out, 'source', fold, 'source', SOURCE)
        start = source / 'models' / f'audio_model.{SOURCE_EPOCHS}.pth'
        accuracies.setdefault('logistic regression', []).append(regress(start, out, fold))
        for way, options in WAYS.items():
            name = way.replace(' ', '_')
            exp_dir = train(out, 'target', fold, name, f'{options} --start {start}')
            rows = np.loadtxt(exp_dir / 'result.csv', delimiter=',')
            accuracies.setdefault(way, []).append(rows[-1, 0])
            seconds.setdefault(way, []).extend(time_epochs(exp_dir))
    anew = time_epochs(train(out, 'target', FOLDS[-1], 'anew', f'{ANEW} --start {start}'))

    print('| way | accuracy, last epoch | seconds an epoch |\n|---|---|---|')
    for way, values in accuracies.items():
        time = f'{np.median(seconds[way]):.3f}' if way in seconds else '–'
        print(f'| {way} | {100 * np.mean(values):.2f} ± {100 * np.std(values):.2f} % | {time} |')
    print(f'\nAn epoch of the linear probe without kept embeddings: {np.median(anew):.3f} s')


if __name__ == '__main__':
    main()
