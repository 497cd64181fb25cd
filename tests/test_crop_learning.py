"""A class that sounds only in the second half of long clips: who hears it, and who does not."""
import json

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from experiment_data import make_loaders
from small_model import CPU
from training.options import make_parser
from training.trainer import Trainer
from traintest import validate

CLASSES, FRAMES, BINS, EPOCHS = 4, 32, 32, 12
SECONDS = 1.3  # four times the input
OPTIONS = (f'--data_train train.json --data_val val.json --label_csv labels.csv --exp_dir exp '
           f'--n_class {CLASSES} --num_mel_bins {BINS} --audio_length {FRAMES} --dataset_mean -6 '
           '--dataset_std 4 --batch_size 8 --lr 0.01 --lrscheduler_start 99 --metrics acc --loss CE '
           '--num_workers 0').split()


class LinearModel(nn.Module):
    """A linear classifier that can stand in for an ASTModel."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.autocast_dtype, self.layer = None, nn.Linear(FRAMES * BINS, CLASSES)

    def forward(self, fbanks):
        return self.layer(fbanks.flatten(1))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder of clips: noise, and in their second half a tone whose pitch is the class."""
    folder, rng = tmp_path_factory.mktemp('late'), np.random.default_rng(0)
    t = np.arange(int(SECONDS * 16000)) / 16000
    for name in ('train', 'val'):
        entries = []
        for i in range(40):
            tone = np.sin(2 * np.pi * 400 * 2 ** (i % CLASSES) * t) * (t > SECONDS / 2)
            path = folder / f'{name}{i}.wav'
            soundfile.write(path, 0.2 * tone + 0.02 * rng.standard_normal(len(t)), 16000)
            entries.append({'wav': str(path), 'labels': f'/m/{i % CLASSES}'})
        (folder / f'{name}.json').write_text(json.dumps({'data': entries}))
    rows = ''.join(f'{i},/m/{i},class {i}\n' for i in range(CLASSES))
    (folder / 'labels.csv').write_text(f'index,mid,display_name\n{rows}')
    return folder


@pytest.fixture
def accuracy(data, monkeypatch):
    """Train with further options; return the accuracy on clips that were not trained on."""
    def train(*options):
        monkeypatch.chdir(data)
        args = make_parser().parse_args([*OPTIONS, *options])
        loaders, model = make_loaders(args, CPU), LinearModel()
        trainer = Trainer(model, CPU, args, len(loaders.train))
        for epoch in range(1, EPOCHS + 1):
            loaders.train.batch_sampler.sampler.set_epoch(epoch)
            trainer.train_epoch(loaders.train, 'training')
            trainer.end_epoch(0.0)
        evaluation = validate(model, loaders.val, CPU, 'CE')
        right = evaluation.predictions.argmax(axis=1) == evaluation.targets.argmax(axis=1)
        return right.mean()
    return train


def test_random_crops_learn_it_and_several_windows_find_it(accuracy):
    assert accuracy('--crop', 'random', '--eval_windows', '4') > 0.9


def test_the_beginning_of_clips_teaches_nothing_of_it(accuracy):
    assert accuracy() < 0.5  # a guess has 0.25


def test_who_learned_it_does_not_find_it_in_the_beginning(accuracy):
    assert accuracy('--crop', 'random') < 0.5
