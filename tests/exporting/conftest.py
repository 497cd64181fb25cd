"""Fixtures of the tests of exports: a small model, exported once for each set of options."""
import pytest
import torch

import export
from inference import load_tagger
from models import load_model, save_checkpoint
from small_tagger import save_model
from utilities.parallel import one_thread


@pytest.fixture(autouse=True)
def thread():
    """Compute on one thread. This is faster for such small models if the machine is busy."""
    with one_thread():
        yield


@pytest.fixture(scope='session')
def checkpoints(tmp_path_factory):
    """Write the small checkpoints that are exported; return their paths by the kind of input.

    The loss of the one for fbanks is BCE, that of the one for waveforms CE. Not all four
    combinations are exported, since each takes seconds.
    """
    folder = tmp_path_factory.mktemp('checkpoints')
    for name, loss in (('fbank', 'BCE'), ('waveform', 'CE')):
        save_model(folder / f'{name}.pth', loss=loss)
    return {name: folder / f'{name}.pth' for name in ('fbank', 'waveform')}


@pytest.fixture(scope='session')
def exported(tmp_path_factory, checkpoints):
    """Export a small checkpoint, once per set of options; return the path of the file."""
    folder = tmp_path_factory.mktemp('exported')
    made = {}

    def make(form, *options):
        if (form, *options) not in made:
            path = folder / f'{len(made)}{export.SUFFIXES[form]}'
            checkpoint = checkpoints['waveform' if '--waveform' in options else 'fbank']
            try:
                export.main(['--checkpoint', str(checkpoint), '--format', form, '--out', str(path),
                             *options])
            except SystemExit as error:
                if 'cannot export the FFT' in str(error):  # torch 2.6
                    pytest.skip(str(error))
                raise
            made[form, *options] = path
        return made[form, *options]
    return make


@pytest.fixture(scope='session')
def tagger(checkpoints):
    """Load the tagger of the checkpoint whose exported files take waveforms."""
    return load_tagger(checkpoints['waveform'], device='cpu', amp='off')


@pytest.fixture
def overflowing(checkpoints, tmp_path):
    """Write a checkpoint whose logits are too large for a float32; return its path."""
    model, description = load_model(checkpoints['fbank'])
    torch.nn.init.constant_(model.mlp_head[1].weight, 3e38)
    save_checkpoint(model, tmp_path / 'model.pth', **description)
    return tmp_path / 'model.pth'
