"""Write folders as finished experiments leave them, for the tests of reports."""
import json

import numpy as np

from training.options import make_parser
from training.result_files import write_rows

EPOCHS = 3
TRAINING = ('--data_train data.json --data_val data.json --label_csv labels.csv --n_class 2 '
            '--exp_dir exp --dataset demo --num_mel_bins 16 --audio_length 32 --fstride 16 '
            '--tstride 16 --model_size tiny224 --imagenet_pretrain False --n_epochs 1 '
            '--batch_size 4 --num_workers 0 --device cpu').split()


def one_label(classes):
    """Return the labels (clips, 4) of clips that have one class each."""
    return np.eye(4, dtype=np.float32)[classes]


def write_experiment(exp_dir, targets, predictions, names=('dog', 'cat', 'hen', 'cow'),
                     wav='clip{}.wav', entries=None, **settings):
    """Write the folder of a finished experiment.

    Args:
        exp_dir: the folder, which is made.
        targets: (clips, classes).
        predictions: (clips, classes) of the second epoch, the best one. Those of the others are 0.
        names: of the classes.
        wav: the path of a clip, with {} for its number.
        entries: entries of the datafile without labels, if they have more than a path.
        settings: options of run.py that replace those of TRAINING.
    """
    mids = [f'/m/{k}' for k in range(len(names))]
    for name in ('models', 'predictions'):
        (exp_dir / name).mkdir(parents=True)
    entries = entries or [{'wav': wav.format(i)} for i in range(len(targets))]
    data = [{**entry, 'labels': ','.join(mids[k] for k in np.flatnonzero(row))}
            for entry, row in zip(entries, targets, strict=True)]
    (exp_dir / 'val.json').write_text(json.dumps({'data': data}))
    rows = 0.01 * np.arange(10 * EPOCHS).reshape(EPOCHS, 10) + 0.0012
    rows[:, 0] = 0.5, 0.9, 0.7  # the best epoch is the second
    write_rows(exp_dir / 'result.csv', rows)
    np.save(exp_dir / 'predictions' / 'target.npy', targets)
    for epoch in range(1, EPOCHS + 1):
        np.save(exp_dir / 'predictions' / f'predictions_{epoch}.npy', predictions * (epoch == 2))
    (exp_dir / 'curves.png').write_bytes(b'\x89PNG of the curves')
    (exp_dir / 'finished').write_text('{"seconds": 7200}')
    (exp_dir / 'models' / 'best_audio_model.json').write_text(
        json.dumps({'labels': {'mids': mids, 'names': list(names)}}))
    args = vars(make_parser().parse_args(TRAINING)) | {
        'data_val': str(exp_dir / 'val.json'), 'metrics': 'acc', 'n_epochs': EPOCHS, **settings}
    (exp_dir / 'args.json').write_text(json.dumps(args))
