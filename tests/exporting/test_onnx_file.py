"""ONNX files: ONNX Runtime computes what PyTorch does, and needs the file alone."""
import json
import subprocess
import sys
import wave

import numpy as np
import pytest
import torch

import export
from audio.reading import load_waveform
from exporting import int8
from exports import LENGTHS, compute_logits, make_fbanks, make_waveforms, tag_first_windows
from pages import read_script
from small_tagger import FRAMES, LABELS, MEAN, MEL_BINS, RATE, STD

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

RECORDINGS = 10  # of ESC-10, to try


def run(path, inputs):
    """Return logits and scores of an ONNX file."""
    session = onnxruntime.InferenceSession(path)
    return session.run(['logits', 'scores'], {session.get_inputs()[0].name: np.asarray(inputs)})


@pytest.mark.parametrize('batch', [1, 5])
def test_onnx_runtime_computes_the_logits_and_scores_of_the_model(exported, checkpoints, batch):
    fbanks = make_fbanks(batch)
    logits, scores = run(exported('onnx'), fbanks)
    expected = compute_logits(checkpoints['fbank'], fbanks)
    assert logits.shape == (batch, 3)
    assert np.abs(logits - expected).max() < 1e-4
    assert np.abs(scores - torch.from_numpy(expected).sigmoid().numpy()).max() < 1e-4


def test_the_scores_of_cross_entropy_are_softmax(exported):
    logits, scores = run(exported('onnx', '--waveform'), make_waveforms(5, 5000))
    expected = torch.from_numpy(logits).softmax(dim=1).numpy()
    assert np.abs(scores - expected).max() < 1e-4


@pytest.mark.parametrize('batch', [1, 5])
def test_waveforms_of_any_length_have_the_scores_of_inference(exported, tagger, batch):
    path = exported('onnx', '--waveform')
    for samples in LENGTHS:
        waveforms = make_waveforms(batch, samples)
        _, scores = run(path, waveforms)
        assert np.abs(scores - tag_first_windows(tagger, list(waveforms))).max() < 1e-3, samples


def test_recordings_have_the_scores_of_inference(exported, tagger, root):
    folder = root.parent / 'shared' / 'data' / 'esc10' / 'audio'
    paths = sorted(folder.glob('*.ogg'))[:RECORDINGS]
    if not paths:
        pytest.skip(f'there are no recordings in {folder}')
    waveforms = [load_waveform(path) for path in paths]
    scores = [run(exported('onnx', '--waveform'), waveform[None])[1][0] for waveform in waveforms]
    assert np.abs(np.stack(scores) - tag_first_windows(tagger, paths)).max() < 1e-3


def test_int8_moves_the_scores_by_less_than_its_bound(exported):
    waveforms = make_waveforms(5, 5000)
    _, expected = run(exported('onnx', '--waveform'), waveforms)
    path = exported('onnx', '--waveform', '--int8')
    _, scores = run(path, waveforms)
    assert 0 < np.abs(scores - expected).max() < int8.BOUND
    assert path.stat().st_size < 0.4 * exported('onnx', '--waveform').stat().st_size


@pytest.mark.parametrize('options', [(), ('--waveform', '--int8')])
def test_the_file_says_what_a_program_must_know(exported, options):
    session = onnxruntime.InferenceSession(exported('onnx', *options))
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known['names']) == LABELS['names']
    assert json.loads(known['mids']) == LABELS['mids']
    assert (float(known['mean']), float(known['std']), known['loss']) == (
        MEAN, STD, 'CE' if options else 'BCE')
    assert [int(known[name]) for name in ('sample_rate', 'frames', 'mel_bins')] == [
        RATE, FRAMES, MEL_BINS]
    assert known['input'] == session.get_inputs()[0].name == ('waveform' if options else 'fbank')


@pytest.mark.parametrize('options', [(), ('--int8',)])
def test_the_script_of_the_page_tags_a_recording_without_pytorch(exported, tagger, root, tmp_path,
                                                                 options):
    script = read_script(root / 'src' / 'models' / 'README.md', 'onnxruntime')
    assert len(script.splitlines()) == 10
    (tmp_path / 'model.onnx').write_bytes(exported('onnx', '--waveform', *options).read_bytes())
    samples = (make_waveforms(1, 3000)[0] * 32768).astype('<i2')
    with wave.open(str(tmp_path / 'sound.wav'), 'wb') as file:
        file.setparams((1, 2, RATE, 0, 'NONE', None))
        file.writeframes(samples.tobytes())
    script += "assert not {'torch', 'audio', 'models'} & set(sys.modules)\n"
    (tmp_path / 'tag.py').write_text(script)
    result = subprocess.run([sys.executable, '-I', 'tag.py', 'sound.wav'], cwd=tmp_path,
                            capture_output=True, text=True, check=True)
    scores = tag_first_windows(tagger, [tmp_path / 'sound.wav'])[0]
    lines = [line.split(' ', 1) for line in result.stdout.splitlines()]
    assert sorted(name for _, name in lines) == sorted(LABELS['names'])
    for score, name in lines:
        expected = scores[LABELS['names'].index(name)]
        assert float(score) == pytest.approx(expected, abs=int8.BOUND if options else 1e-3)


@pytest.mark.parametrize('words, message', [
    ('--format torch_export --int8 --out a.pt2', '--int8 goes with --format onnx'),
    ('--format transformers --int8 --out a', '--int8 goes with --format onnx'),
    ('--format transformers --waveform --out a', '--waveform goes with --format onnx or'),
    ('--format onnx --out a.pt2', '--out of --format onnx must end in .onnx, got a.pt2'),
    ('--format torch_export --out a', '--out of --format torch_export must end in .pt2, got a'),
])
def test_options_that_contradict_each_other_are_refused(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        export.main(['--checkpoint', 'gone.pth', *words.split()])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)  # what Python knows as not importable
    with pytest.raises(SystemExit) as stop:
        export.main(['--checkpoint', 'gone.pth', '--format', 'onnx', '--out', 'a.onnx'])
    assert str(stop.value) == (
        'error: --format onnx needs packages that are not installed: onnxscript. Install them '
        'with: pip install onnx onnxscript onnxruntime')


def test_a_file_that_disagrees_with_pytorch_is_not_written(overflowing, tmp_path):
    (tmp_path / 'model.onnx').write_text('what was there before')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit, match='ONNX Runtime computes other logits than PyTorch'):
        export.main(['--checkpoint', str(overflowing), '--format', 'onnx', '--out',
                     str(tmp_path / 'model.onnx')])
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / 'model.onnx').read_text() == 'what was there before'
