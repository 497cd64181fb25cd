"""Inference on a GPU: tags, embeddings, attention and the notebook are those of the CPU."""
import csv

import numpy as np
import pytest
import torch

import inference
from kit import BINS, FRAMES, LOGITS, each_precision, on_a_gpu_only, require_precision
from models import ASTModel, save_checkpoint
from small_model import CLASSES
from tagging import load_tagger, tag

AMP = {None: 'off', torch.bfloat16: 'bf16', torch.float16: 'fp16'}
NAMES = ['dog', 'rain', 'siren']


@pytest.fixture
def checkpoint(make_ast, tmp_path):
    """A checkpoint of make_ast's model with names of its classes."""
    path = tmp_path / 'model.pth'
    save_checkpoint(make_ast(), path, labels={'mids': NAMES, 'names': NAMES}, mean=-6.0, std=3.0)
    return path


@pytest.fixture
def recordings(make_tone):
    """Three recordings, of one and of several windows of 0.64 s."""
    return [make_tone(f'{i}.wav', 300 * (i + 1), seconds=0.5 + i, seed=i) for i in range(3)]


@each_precision
def test_recordings_are_tagged_as_on_the_cpu(checkpoint, recordings, device, dtype):
    require_precision(dtype, device)
    expected = tag(load_tagger(checkpoint, 'cpu', 'off'), recordings, num_workers=0)
    tagger = load_tagger(checkpoint, str(device), AMP[dtype])
    # Several batches, by one worker, and pinned if there is a GPU.
    found = tag(tagger, recordings, num_workers=1, batch_size=2, embeddings=True)
    for one, other in zip(found, expected, strict=True):
        assert one.error is None and one.embeddings.shape == (len(one.scores), 192)
        np.testing.assert_allclose(one.scores, other.scores, atol=LOGITS[dtype])


def test_embeddings_are_those_of_the_cpu(checkpoint, make_inputs, device):
    (_, expected), (_, found) = (
        load_tagger(checkpoint, place, 'off')(make_inputs(3), embeddings=True)
        for place in ('cpu', str(device)))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_several_checkpoints_are_averaged_on_one_device(checkpoint, make_inputs, device, tmp_path):
    other = ASTModel(CLASSES, 8, 8, BINS, FRAMES, imagenet_pretrain=False, model_size='tiny224')
    save_checkpoint(other, tmp_path / 'other.pth', labels={'mids': NAMES, 'names': NAMES},
                    mean=-4.0, std=4.0)
    both = [checkpoint, tmp_path / 'other.pth']
    (expected, _), (found, _) = (load_tagger(both, place, 'off')(make_inputs(3))
                                 for place in ('cpu', str(device)))
    np.testing.assert_allclose(found, expected, atol=LOGITS[None])


@pytest.mark.parametrize('method, tolerance', [('forward_features', 1e-3), ('frame_features', 1e-3),
                                               ('attention', 1e-4)])
def test_what_is_inside_the_model_is_what_the_cpu_finds(make_ast, make_inputs, device, method,
                                                        tolerance):
    with torch.inference_mode():
        expected = getattr(make_ast(), method)(make_inputs(3))
        found = getattr(make_ast().to(device), method)(make_inputs(3).to(device))
    for one, other in zip(found, expected, strict=True):
        assert one.device == device
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=tolerance)


@each_precision
def test_attention_maps_are_those_of_the_cpu(make_ast, make_inputs, device, dtype):
    require_precision(dtype, device)
    model = make_ast().to(device)
    model.autocast_dtype = dtype
    expected, found = make_ast().attention_maps(make_inputs(2)), model.attention_maps(
        make_inputs(2).to(device))
    for pair, their_pair in zip(found, expected, strict=True):
        for one, other in zip(pair, their_pair, strict=True):
            assert one.device == device and one.dtype == torch.float32
            torch.testing.assert_close(one.cpu(), other, rtol=0, atol=LOGITS[dtype])


def test_the_command_line_writes_the_scores_of_the_cpu(checkpoint, recordings, device, tmp_path):
    found = []
    for place in ('cpu', str(device)):
        inference.main([*map(str, recordings), '--checkpoint', str(checkpoint), '--device', place,
                        '--amp', 'off', '--num_workers', '0', '--csv', str(tmp_path / 'out.csv')])
        with open(tmp_path / 'out.csv', newline='') as file:
            _, *rows = csv.reader(file)
        found.append([[float(score) for score in scores] for _, _, _, *scores, _ in rows])
    np.testing.assert_allclose(found[1], found[0], atol=LOGITS[None])


def test_a_gpu_without_room_for_the_model_is_said_in_one_sentence(checkpoint, recordings,
                                                                  monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 MiB.')
    monkeypatch.setattr('models.ast_models.ASTModel.to', run_out)
    with pytest.raises(SystemExit, match='error: the GPU is out of memory.*nvidia-smi'):
        inference.main([str(recordings[0]), '--checkpoint', str(checkpoint), '--device', 'cpu'])


@on_a_gpu_only
def test_the_notebook_runs_on_the_gpu_and_says_so(root, device, checkpoint, recordings, torch_home,
                                                  monkeypatch):
    """On the CPU, test_notebook.py does this."""
    pytest.importorskip('nbformat', reason='the notebook runs only if Jupyter is installed')
    from notebook_runner import run_notebook, texts_of
    said = texts_of(run_notebook(root, monkeypatch, AST_CHECKPOINT=checkpoint,
                                 AST_SOUND=recordings[2]))
    assert 'GPU: True' in said and 'computed on cuda' in said
    assert '| siren |' in said and 'attention (blocks, heads, f, t): (12, 3, 3, 7)' in said
