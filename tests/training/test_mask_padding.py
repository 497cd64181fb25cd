"""--mask_padding: samples say how many of their frames are real, and the model is told."""
import json
import signal

import numpy as np
import pytest
import torch

import export
import run
from audio.augmentation import Augmentation
from audio.fbank import fbank, fit_frames, normalise
from audio.reading import load_waveform
from dataloader import AudiosetDataset
from inference import load_tagger
from models import ASTModel, load_model, save_checkpoint
from ranks import finish_ranks, log_of, start_ranks
from small_model import settings
from small_tagger import tag_here
from training.gpu_fbanks import WaveformDataset
from training.loaders import make_loader
from training.trainer import Trainer
from utilities.parallel import one_thread

CPU = torch.device('cpu')
SECONDS = (0.1, 0.15, 0.25, 0.6)  # 8, 13, 23 and 58 frames
FRAMES = [8, 13, 23, 40]  # of them in an input of 40
BASE = ('--data_train data.json --data_val data.json --label_csv labels.csv --n_class 2 '
        '--num_mel_bins 32 --audio_length 40 --fstride 16 --tstride 8 --model_size tiny224 '
        '--imagenet_pretrain False --batch_size 4 --lr 1e-3 --num_workers 0 --device cpu '
        '--amp off --mask_padding True').split()


@pytest.fixture
def clips(make_tone):
    """Recordings of SECONDS, as (wav, labels) pairs."""
    return [(make_tone(f'{i}.wav', 400 * (1 + i % 2), seconds, seed=i), f'/m/{i % 2}')
            for i, seconds in enumerate(SECONDS)]


@pytest.fixture(params=[AudiosetDataset, WaveformDataset])
def dataset(request, make_dataset, clips):
    return make_dataset(clips, kind=request.param, mask_padding=True)


def test_a_sample_says_how_many_frames_are_real(dataset):
    assert [dataset[i][2] for i in range(4)] == FRAMES
    [(inputs, labels, lengths)] = make_loader(dataset, 4, 0, pin_memory=False)
    assert lengths.tolist() == FRAMES and labels.shape == (4, 4)


def test_a_mix_is_as_long_as_the_first_of_its_recordings(dataset):
    # Its partner is cut or padded to the first's length, so nothing sounds after that.
    mixes = [dataset.make_sample(i, Augmentation(partner=3 - i, lam=0.5)) for i in (1, 2)]
    assert [frames for _, _, frames in mixes] == FRAMES[1:3]


def test_a_mix_of_fbanks_is_as_long_as_the_longer_one(dataset):
    mixes = [dataset.make_sample(i, Augmentation(partner=3 - i, lam=0.5, mixes_fbanks=True))
             for i in (1, 2)]
    assert [frames for _, _, frames in mixes] == [FRAMES[2], FRAMES[2]]


def test_without_the_option_a_sample_is_what_it_was(make_dataset, clips):
    for kind in (AudiosetDataset, WaveformDataset):
        assert len(make_dataset(clips, kind=kind)[0]) == 2


def test_of_a_recording_shorter_than_a_frame_one_frame_is_real(make_dataset, make_tone):
    short = make_tone('short.wav', seconds=0.01)
    assert make_dataset([(short, '/m/0')], mask_padding=True)[0][2] == 1


def make_model(**changes):
    torch.manual_seed(3)
    return ASTModel(**{'label_dim': 3, 'fstride': 16, 'tstride': 8, 'input_fdim': 32,
                       'input_tdim': 40, 'imagenet_pretrain': False, 'model_size': 'tiny224',
                       'verbose': False, **changes})


def make_batch(padding=0.0):
    """Return fbanks (4, 40, 32), in which what follows FRAMES is padding, and labels."""
    fbanks = torch.randn(4, 40, 32, generator=torch.Generator().manual_seed(0))
    for one, frames in zip(fbanks, FRAMES):
        one[frames:] = 0
        one[-(-frames // 8) * 8 + 8:] = padding  # what no patch with sound reaches
    return fbanks, torch.eye(3)[[0, 1, 2, 0]]


@pytest.mark.parametrize('options', [{}, {'grad_accum': 3}, {'time_patchout': 1}, {'ema': 0.9}])
def test_one_step_does_not_depend_on_what_is_in_the_padding(options):
    weights = []
    for padding in (0.0, 5.0):
        trainer = Trainer(make_model(), CPU, settings(optim='sgd', lr=0.1, **options), 10)
        fbanks, labels = make_batch(padding)
        trainer.training_model.train()
        trainer.step(fbanks, labels, 1.0, torch.tensor(FRAMES))
        weights.append(trainer.model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=1e-6, msg=name)


def test_a_step_in_pieces_is_a_step_of_the_whole_batch():
    weights = []
    for pieces in (1, 3):
        trainer = Trainer(make_model(), CPU, settings(optim='sgd', lr=0.1, grad_accum=pieces), 10)
        trainer.step(*make_batch(), 1.0, torch.tensor(FRAMES))
        weights.append(trainer.model.mlp_head[1].weight.detach())
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


@pytest.fixture
def folder(tmp_path, monkeypatch, clips, make_labels, make_datafile):
    """Work on one thread in a folder of the four recordings, twice."""
    monkeypatch.chdir(tmp_path)
    make_labels(2)
    make_datafile([*clips, *clips])
    with one_thread():
        yield tmp_path
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def scores_by_hand(folder, checkpoint):
    """Return sigmoids (4, 2) of the recordings, each alone and told its length."""
    model, description = load_model(checkpoint)
    assert description['mask_padding'] is True
    logits = []
    for i, frames in enumerate(FRAMES):
        features = fit_frames(fbank(load_waveform(folder / f'{i}.wav'), 32), 40)
        features = normalise(features, description['mean'], description['std'])
        with torch.inference_mode():
            logits.append(model(features[None], torch.tensor([frames]))[0])
    return torch.stack(logits).sigmoid().numpy()


@pytest.mark.parametrize('features', ['cpu', 'gpu'])
def test_training_evaluation_and_tagging_are_told_the_lengths(folder, features):
    run.main([*BASE, '--exp_dir', 'exp', '--n_epochs', '1', '--features', features,
              '--mixup', '0.5', '--freqm', '4'])
    best = folder / 'exp' / 'models' / 'best_audio_model.pth'
    expected = scores_by_hand(folder, best)
    predictions = np.load(folder / 'exp' / 'predictions' / 'predictions_1.npy')
    np.testing.assert_allclose(predictions[:4], expected, atol=1e-4)

    tagger = load_tagger(best, device='cpu', amp='off')
    taggings = tag_here(tagger, [f'{i}.wav' for i in range(4)], window='first', embeddings=True)
    tagged = np.stack([tagging.scores[0] for tagging in taggings])
    np.testing.assert_allclose(tagged, expected, atol=1e-4)


def test_each_of_several_windows_has_a_length_of_its_own(folder):
    run.main([*BASE, '--exp_dir', 'exp', '--n_epochs', '1', '--eval_windows', '2'])
    best = folder / 'exp' / 'models' / 'best_audio_model.pth'
    expected = scores_by_hand(folder, best)
    predictions = np.load(folder / 'exp' / 'predictions' / 'predictions_1.npy')
    np.testing.assert_allclose(predictions[:3], expected[:3], atol=1e-4)  # of one window each
    assert np.abs(predictions[3] - expected[3]).max() > 1e-5


def test_a_run_that_was_stopped_goes_on_bit_for_bit(folder):
    options = [*BASE, '--n_epochs', '2', '--batch_size', '3', '--save_model', 'True']
    run.main([*options, '--exp_dir', 'straight'])
    run.main([*options, '--exp_dir', 'stopped', '--n_epochs', '1'])
    run.main([*options, '--exp_dir', 'stopped'])
    one, other = (torch.load(f'{name}/models/audio_model.2.pth') for name in ('straight', 'stopped'))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_several_processes_train_to_the_numbers_of_one(folder):
    options = [*BASE, '--n_epochs', '2']
    for size in (1, 2):
        ranks = start_ranks(size, [*options, '--exp_dir', f'exp{size}'], folder)
        assert finish_ranks(ranks) == [0] * size, log_of(folder, 'log.txt')
    np.testing.assert_allclose(np.loadtxt('exp2/result.csv', delimiter=','),
                               np.loadtxt('exp1/result.csv', delimiter=','), atol=1e-4)


def test_a_linear_probe_keeps_embeddings_without_padding(folder):
    run.main([*BASE, '--exp_dir', 'probe', '--n_epochs', '1', '--freeze', 'backbone',
              '--cache_embeddings', 'True'])
    expected = scores_by_hand(folder, folder / 'probe' / 'models' / 'best_audio_model.pth')
    predictions = np.load(folder / 'probe' / 'predictions' / 'predictions_1.npy')
    np.testing.assert_allclose(predictions[:4], expected, atol=1e-4)


def test_what_moves_the_padding_is_refused(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main([*BASE, '--exp_dir', 'exp', '--noise', 'True'])
    assert stop.value.code == 2
    assert '--mask_padding True needs the padding at the end, but --noise True moves it' in (
        capsys.readouterr().err)
    assert not (folder / 'exp').exists()


@pytest.mark.parametrize('form, out', [('onnx', 'model.onnx'), ('torch_export', 'model.pt2'),
                                       ('transformers', 'model')])
def test_such_a_model_is_not_exported(folder, form, out):
    save_checkpoint(make_model(), 'model.pth', mean=-4.0, std=4.0, loss='BCE', mask_padding=True,
                    labels={'mids': ['a', 'b', 'c'], 'names': ['a', 'b', 'c']})
    with pytest.raises(SystemExit, match='trained with --mask_padding True: .*inference.py') as stop:
        export.main(['--checkpoint', 'model.pth', '--format', form, '--out', out])
    assert not (folder / out).exists() and isinstance(stop.value.code, str)


def test_an_experiment_of_before_goes_on(folder):
    options = [word for word in BASE if word not in ('--mask_padding', 'True')]
    run.main([*options, '--exp_dir', 'exp', '--n_epochs', '1', '--save_model', 'True'])
    path = folder / 'exp' / 'args.json'
    before = json.loads(path.read_text())
    del before['sample_rate'], before['mask_padding']
    path.write_text(json.dumps(before))
    run.main([*options, '--exp_dir', 'exp', '--n_epochs', '2', '--save_model', 'True'])
    assert len(np.loadtxt(folder / 'exp' / 'result.csv', delimiter=',')) == 2
    description = json.loads((folder / 'exp' / 'models' / 'best_audio_model.json').read_text())
    assert not {'sample_rate', 'mask_padding'} & set(description)
