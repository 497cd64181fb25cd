"""Files of torch.export: PyTorch computes what the model does, without this repository."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import export
from exports import LENGTHS, compute_logits, make_fbanks, make_waveforms, tag_first_windows
from pages import read_script
from small_tagger import FRAMES, LABELS, MEAN, MEL_BINS, RATE, STD


@pytest.mark.parametrize('batch', [1, 5])
def test_a_loaded_file_computes_the_logits_and_scores_of_the_model(exported, checkpoints, batch):
    fbanks = make_fbanks(batch)
    with torch.inference_mode():
        logits, scores = torch.export.load(exported('torch_export')).module()(fbanks)
    expected = compute_logits(checkpoints['fbank'], fbanks)
    assert logits.shape == (batch, 3)
    assert np.abs(logits.numpy() - expected).max() < 1e-4
    assert torch.equal(scores, logits.sigmoid())


@pytest.mark.parametrize('batch', [1, 5])
def test_waveforms_of_any_length_have_the_scores_of_inference(exported, tagger, batch):
    model = torch.export.load(exported('torch_export', '--waveform')).module()
    for samples in LENGTHS:
        waveforms = make_waveforms(batch, samples)
        with torch.inference_mode():
            _, scores = model(torch.from_numpy(waveforms))
        expected = tag_first_windows(tagger, list(waveforms))
        assert np.abs(scores.numpy() - expected).max() < 1e-3, samples


def test_the_file_says_what_a_program_must_know(exported):
    extra = {'metadata.json': ''}
    torch.export.load(exported('torch_export', '--waveform'), extra_files=extra)
    assert json.loads(extra['metadata.json']) == {
        **LABELS, 'mean': MEAN, 'std': STD, 'loss': 'CE', 'sample_rate': RATE, 'frames': FRAMES,
        'mel_bins': MEL_BINS, 'input': 'waveform'}


def test_the_script_of_the_page_needs_nothing_of_this_repository(exported, root, tmp_path):
    script = read_script(root / 'src' / 'models' / 'README.md', 'torch.export.load')
    (tmp_path / 'model.pt2').write_bytes(exported('torch_export', '--waveform').read_bytes())
    script += ("import sys\nassert not {'audio', 'models', 'timm'} & set(sys.modules)\n"
               'print(json.dumps([names, scores.tolist()]))\n')
    (tmp_path / 'tag.py').write_text(script)
    result = subprocess.run([sys.executable, '-I', 'tag.py'], cwd=tmp_path, capture_output=True,
                            text=True, check=True)
    names, scores = json.loads(result.stdout)
    assert names == LABELS['names'] and np.shape(scores) == (1, len(names))


def test_a_file_can_be_moved_to_another_device(exported):
    passes = pytest.importorskip('torch.export.passes')
    program = torch.export.load(exported('torch_export', '--waveform'))
    model = passes.move_to_device_pass(program, 'meta').module()
    _, scores = model(torch.zeros(2, 5000, device='meta'))
    assert scores.is_meta and scores.shape == (2, 3)


def test_a_file_that_disagrees_with_the_model_is_not_written(overflowing, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit, match='the .pt2 file computes other logits than PyTorch'):
        export.main(['--checkpoint', str(overflowing), '--format', 'torch_export', '--out',
                     str(tmp_path / 'model.pt2')])
    assert sorted(tmp_path.iterdir()) == before
