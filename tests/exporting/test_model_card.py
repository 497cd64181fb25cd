"""Model cards: they say what is known of a model and invent nothing."""
import json
import re
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

import run
from hub_folders import MEAN, export_folder, save_model
from utilities.parallel import one_thread

RUN = ('--data_train train.json --data_val val.json --data_eval val.json --label_csv labels.csv '
       '--n_class 3 --exp_dir exp --dataset beeps --num_mel_bins 32 --audio_length 32 '
       '--fstride 16 --tstride 16 --model_size tiny224 --imagenet_pretrain False --n_epochs 2 '
       '--batch_size 4 --lr 1e-4 --num_workers 0 --device cpu --metrics acc --loss CE --wa True '
       '--wa_end 2 --save_model True')


@pytest.fixture(autouse=True)
def thread():
    """Compute on one thread: quicker for models of this size."""
    with one_thread():
        yield


@pytest.fixture
def checkpoint(tmp_path):
    return save_model(tmp_path / 'model.pth')


def read_card(folder):
    return ModelCard.load(folder / 'README.md')


def test_a_card_says_what_is_known_and_nothing_else(checkpoint, tmp_path):
    card = read_card(export_folder(checkpoint, tmp_path / 'hub', '--license', 'bsd-3-clause'))
    assert card.data.to_dict() == {
        'license': 'bsd-3-clause', 'library_name': 'transformers', 'datasets': ['some_sounds'],
        'pipeline_tag': 'audio-classification', 'tags': ['audio', 'audio-spectrogram-transformer']}
    assert r'1. rain, \*heavy\* \| wet: "£"' in card.text and '3. - sea_waves' in card.text
    assert 'Scores are sigmoids' in card.text and 'hears the first 0.32 s' in card.text
    assert 'trained on some_sounds, starting from random weights' in card.text
    assert str(MEAN) in card.text and 'assumed' not in card.text
    assert '## Scores' not in card.text and '## Training' not in card.text


@pytest.mark.parametrize('start, size, base', [
    ('ImageNet', 'tiny224', 'timm/deit_tiny_distilled_patch16_224.fb_in1k'),
    ('AudioSet', 'tiny224', 'MIT/ast-finetuned-audioset-10-10-0.4593')])
def test_a_card_names_the_model_that_training_started_from(start, size, base, tmp_path):
    save_model(tmp_path / 'model.pth', size, start=start)
    card = read_card(export_folder(tmp_path / 'model.pth', tmp_path / 'hub'))
    assert card.data.base_model == base and f'starting from {start} weights' in card.text


def test_a_card_says_what_was_assumed(tmp_path):
    save_model(tmp_path / 'model.pth')
    description = json.loads((tmp_path / 'model.json').read_text())
    known = {name: description[name] for name in ('fstride', 'tstride', 'input_fdim', 'input_tdim',
                                                  'labels')}
    (tmp_path / 'model.json').write_text(json.dumps(known))
    card = read_card(export_folder(tmp_path / 'model.pth', tmp_path / 'hub'))
    for value in ('-4.2677393, assumed', '4.5689974, assumed', 'BCE, assumed'):
        assert value in card.text
    assert 'trained on' not in card.text and 'datasets' not in card.data.to_dict()


@pytest.fixture
def exp_dir(tmp_path, monkeypatch, make_tone, make_labels, make_datafile):
    """The folder of an experiment that was run."""
    monkeypatch.chdir(tmp_path)
    make_labels(3)
    clips = [(make_tone(f'{i}.wav', 400 * (1 + i % 3), seconds=0.4, seed=i), f'/m/{i % 3}')
             for i in range(6)]
    hard = [(clip, f'/m/{i // 2}') for i, (clip, _) in enumerate(clips)]
    train, val = make_datafile(clips, 'train.json'), make_datafile(hard, 'val.json')
    (tmp_path / 'noise').mkdir()
    make_tone('noise/a.wav', seed=9)
    words = [*RUN.split(), '--data_train', str(train), f'--data_val={val}',
             '--noise_dir', str(tmp_path / 'noise')]
    monkeypatch.setattr(sys, 'argv', ['/home/jane/src/run.py', *words])
    run.main()
    return tmp_path / 'exp'


def test_the_card_of_an_experiment_has_its_settings_scores_and_command(exp_dir, tmp_path):
    rows = np.loadtxt(exp_dir / 'result.csv', delimiter=',')
    best = int(rows[:, 0].argmax())
    card = read_card(export_folder(exp_dir / 'models' / 'best_audio_model.pth', tmp_path / 'hub'))
    assert card.data.model_name == 'hub' and card.data.datasets == ['beeps']
    assert card.data.metrics == ['accuracy', 'roc_auc', 'f1']
    found = {(one.dataset_split, one.metric_name): one.metric_value
             for one in card.data.eval_results}
    assert found['validation', 'acc'] == rows[best, 0]
    assert found['validation', 'mAUC'] == rows[best, 1]
    assert found['test', 'acc'] == np.loadtxt(exp_dir / 'eval_result.csv')[2]
    assert {one.dataset_name for one in card.data.eval_results} == {'beeps'}

    assert f'| acc | {rows[best, 0]:.4f} | {rows[best, 0]:.4f} |\n' in card.text
    assert f'| d_prime | {rows[best, 4]:.4f} |  |\n' in card.text
    assert f'validation set, epoch {best + 1} of 2 | test set, epoch' in card.text
    assert 'scores there are optimistic' in card.text and 'Scores are softmax' in card.text
    for row in ('| `--lr` | 0.0001 |', '| `--n_epochs` | 2 |', f'| torch | {torch.__version__} |'):
        assert row in card.text
    # The paths of this machine are no business of the hub's.
    command = re.search(r'```bash\n(.*)\n```', card.text)[1]
    assert command.startswith('python run.py --data_train train.json')
    assert command.endswith('--data_train train.json --data_val=val.json --noise_dir noise')
    assert 'jane' not in card.text and str(tmp_path) not in card.text


def test_the_cards_of_other_models_of_an_experiment_have_their_own_scores(exp_dir, tmp_path):
    rows = np.loadtxt(exp_dir / 'result.csv', delimiter=',')
    for name, table, value in (
            ('audio_model.2', 'validation set, epoch 2 of 2', rows[1, 0]),
            ('audio_model_wa', 'validation set, mean of the weights of epochs 1 to 2',
             np.loadtxt(exp_dir / 'wa_result.csv')[0])):
        card = read_card(export_folder(exp_dir / 'models' / f'{name}.pth', tmp_path / name))
        assert table in card.text and f'| {value:.4f} |' in card.text
        assert 'optimistic' not in card.text and 'test set' not in card.text

    (exp_dir / 'result.csv').write_text('no numbers')
    (exp_dir / 'environment.json').unlink()
    card = read_card(export_folder(exp_dir / 'models' / 'best_audio_model.pth', tmp_path / 'less'))
    assert '## Scores' not in card.text and card.data.datasets == ['beeps']


@pytest.mark.parametrize('options, word', [
    (['--license', 'Apache 2.0'], 'expected an identifier such as apache-2.0'),
    (['--license', 'mit', '--format', 'onnx'], '--license goes into the card')])
def test_a_license_that_does_not_fit_is_refused(options, word, checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export_folder(checkpoint, tmp_path / 'hub.onnx', *options)
    assert word in capsys.readouterr().err
