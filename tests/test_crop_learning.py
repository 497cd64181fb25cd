"""A class that sounds only in the second half of long clips: who hears it, and who does not."""
import json

import numpy as np
import pytest
import soundfile

import run

CLASSES, SECONDS = 4, 1.3  # four times the input
OPTIONS = (f'--data_train train.json --data_val val.json --label_csv labels.csv --n_class {CLASSES} '
           '--num_mel_bins 32 --audio_length 32 --fstride 16 --tstride 16 --model_size tiny224 '
           '--imagenet_pretrain False --dataset_mean -6 --dataset_std 4 --n_epochs 20 --batch_size 8 '
           '--lr 1e-3 --metrics acc --loss CE --num_workers 0 --device cpu').split()


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder of clips: noise, and in their second half a tone whose pitch is the class."""
    folder, rng = tmp_path_factory.mktemp('late'), np.random.default_rng(0)
    t = np.arange(int(SECONDS * 16000)) / 16000
    for name, count in (('train', 32), ('val', 40)):
        entries = []
        for i in range(count):
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
    """Train with further options; return the accuracy of the last epoch on clips not trained on."""
    def train(*options):
        monkeypatch.chdir(data)
        run.main([*OPTIONS, *options, '--exp_dir', 'exp', '--resume', 'none'])
        return np.loadtxt('exp/result.csv', delimiter=',')[-1, 0]
    return train


def test_random_crops_learn_it_and_several_windows_find_it(accuracy):
    assert accuracy('--crop', 'random', '--eval_windows', '4') > 0.9


def test_the_beginning_of_clips_teaches_nothing_of_it(accuracy):
    assert accuracy() < 0.5  # a guess has 0.25
