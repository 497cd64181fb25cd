"""Averaging of checkpoints from the command line."""
import json

import pytest
import torch

import average_checkpoints
from models import ASTModel, read_state_dict, save_checkpoint
from utilities.parallel import one_thread


@pytest.fixture(autouse=True)
def thread():
    """Compute on one thread: quicker for models of this size, by far on a busy machine."""
    with one_thread():
        yield


def make_model(label_dim=2):
    return ASTModel(label_dim, input_fdim=16, input_tdim=32, imagenet_pretrain=False,
                    model_size='tiny224')


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Three checkpoints of one tiny model with different weights."""
    folder = tmp_path_factory.mktemp('checkpoints')
    paths = [str(folder / f'audio_model.{i}.pth') for i in range(3)]
    for i, path in enumerate(paths):
        torch.manual_seed(i)
        save_checkpoint(make_model(), path, mean=-1.0, std=2.0, loss='CE')
    return paths


def test_the_mean_is_written_with_the_description_of_the_first(checkpoints, tmp_path):
    out = tmp_path / 'new' / 'mean.pth'
    average_checkpoints.main(['--checkpoints', *checkpoints, '--out', str(out)])
    states = [read_state_dict(path) for path in checkpoints]
    for name, value in read_state_dict(out).items():
        mean = torch.stack([state[name] for state in states]).mean(dim=0)
        assert torch.allclose(value, mean, atol=1e-6)
    description = json.loads(out.with_suffix('.json').read_text())
    assert (description['loss'], description['input_tdim']) == ('CE', 32)


def test_a_mean_of_different_models_is_refused(checkpoints, tmp_path):
    save_checkpoint(make_model(label_dim=3), tmp_path / 'other.pth')
    with pytest.raises(SystemExit, match='checkpoints of different models'):
        average_checkpoints.main(['--checkpoints', *checkpoints, str(tmp_path / 'other.pth'),
                                  '--out', str(tmp_path / 'mean.pth')])
    assert not (tmp_path / 'mean.pth').exists()


def test_the_mean_is_written_as_safetensors_if_its_name_says_so(checkpoints, tmp_path):
    for name in ('mean.pth', 'new/mean.safetensors'):
        average_checkpoints.main(['--checkpoints', *checkpoints, '--out', str(tmp_path / name)])
    states = [read_state_dict(tmp_path / name) for name in ('mean.pth', 'new/mean.safetensors')]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    texts = [(tmp_path / name).read_text() for name in ('mean.json', 'new/mean.json')]
    assert texts[0] == texts[1]


def test_what_is_assumed_of_the_first_is_not_written_as_if_it_were_known(tmp_path):
    model = make_model()
    save_checkpoint(model, tmp_path / 'a.pth', mean=-1.0)
    average_checkpoints.main(['--checkpoints', str(tmp_path / 'a.pth'),
                              '--out', str(tmp_path / 'mean.pth')])
    description = json.loads((tmp_path / 'mean.json').read_text())
    assert description == {**vars(model.config), 'mean': -1.0}


def test_the_options_say_what_checkpoints_of_the_published_code_do_not(tmp_path):
    model = ASTModel(2, 10, 10, 64, 128, imagenet_pretrain=False, model_size='tiny224')
    for i in range(2):
        save_checkpoint(model, tmp_path / f'{i}.pth')
        (tmp_path / f'{i}.json').write_text('{"model": "ast"}')  # of one's own, with a name of ours
    words = ['--checkpoints', str(tmp_path / '0.pth'), str(tmp_path / '1.pth'),
             '--out', str(tmp_path / 'mean.pth')]
    with pytest.raises(SystemExit, match='give --fstride and --tstride'):
        average_checkpoints.main(words)
    average_checkpoints.main([*words, '--fstride', '10', '--tstride', '10', '--num_mel_bins', '64',
                              '--audio_length', '128', '--loss', 'CE'])
    description = json.loads((tmp_path / 'mean.json').read_text())
    assert description['fstride'] == 10 and description['loss'] == 'CE'
    assert 'mean' not in description  # was only assumed


def test_another_format_is_refused(checkpoints, tmp_path, capsys):
    with pytest.raises(SystemExit):
        average_checkpoints.main(['--checkpoints', *checkpoints,
                                  '--out', str(tmp_path / 'mean.bin')])
    assert 'must end in .pth or .safetensors' in capsys.readouterr().err
