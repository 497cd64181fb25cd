"""The checkpoint of a run: code in it is not run, and a file that cannot be used is named."""
import os
import pickle

import numpy as np
import pytest
import torch

from training.checkpoint import Checkpoint, CheckpointError


class Part:
    """Something whose state a checkpoint holds: a tensor of two numbers."""

    def __init__(self):
        self.numbers = torch.zeros(2)

    def state_dict(self):
        return {'numbers': self.numbers}

    def load_state_dict(self, state):
        self.numbers.copy_(state['numbers'])


class Code:
    """Unpickling it runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path, 15, part=Part())


def refused(checkpoint):
    """Return the message with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as error:
        checkpoint.restore()
    return str(error.value)


def test_what_was_saved_is_restored(checkpoint, tmp_path):
    checkpoint.parts['part'].numbers += 3
    checkpoint.save()
    fresh = Checkpoint(tmp_path, 15, part=Part())
    assert fresh.restore() and fresh.parts['part'].numbers.tolist() == [3, 3]


@pytest.mark.filterwarnings('ignore:.*pickle')
@pytest.mark.parametrize('write', [
    torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, 2))],
    ids=['torch', 'pickle'])
def test_code_in_a_checkpoint_to_go_on_from_is_named_and_not_run(write, checkpoint, tmp_path):
    code = Code(f'touch {tmp_path / "trace"}')
    write({'part': {'numbers': [0, 0]}, 'extra': code}, checkpoint.path)
    said = refused(checkpoint)
    reason = f'it holds code ({os.name}.system), which was not run'
    assert f'cannot continue from {checkpoint.path}: {reason}' in said
    assert '--resume none starts again' in said and 'weights_only' not in said
    assert os.listdir(tmp_path) == ['checkpoint.pth']


@pytest.mark.parametrize('state', [
    [], 3, {}, {'part': 3}, {'part': None}, {'part': {'numbers': 'text'}},
    {'part': {'numbers': torch.zeros(3)}}], ids=str)
def test_a_checkpoint_of_something_else_is_refused_by_name(state, checkpoint):
    torch.save(state, checkpoint.path)
    assert f'cannot continue from {checkpoint.path}: ' in refused(checkpoint)


@pytest.mark.filterwarnings('ignore:.*pickle')
@pytest.mark.parametrize('content', [b'', b'\x80\x02', b'PK\3\4', b'text', bytes(100),
                                     np.ones(3).tobytes()])
def test_a_broken_checkpoint_is_refused_by_name(content, checkpoint):
    checkpoint.path.write_bytes(content)
    assert f'cannot continue from {checkpoint.path}: ' in refused(checkpoint)


def test_a_gpu_without_memory_is_no_reason_to_start_again(checkpoint, monkeypatch):
    checkpoint.save()

    def fill(state):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')
    monkeypatch.setattr(checkpoint.parts['part'], 'load_state_dict', fill)
    with pytest.raises(torch.OutOfMemoryError):
        checkpoint.restore()
