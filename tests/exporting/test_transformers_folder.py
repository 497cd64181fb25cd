"""Folders for Hugging Face: transformers reads them, and so do we."""
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from audio.fbank import fbank, fit_frames, normalise
from audio.reading import load_waveform
from exporting.trained import load_trained
from exporting.transformers_folder import write_transformers
from hub_folders import LABELS, MEAN, STD, export_folder, save_model
from inference import load_tagger, tag
from models import load_model
from utilities.errors import DataError
from utilities.parallel import one_thread

transformers = pytest.importorskip('transformers')

# model size, fstride, tstride, mel bins, frames, loss
CASES = {'tiny': ('tiny224', 10, 16, 64, 64, 'BCE'), 'small': ('small224', 16, 10, 128, 96, 'CE'),
         'wide': ('tiny224', 16, 16, 128, 32, 'CE'), 'base': ('base384', 10, 10, 64, 32, 'BCE')}


@pytest.fixture(autouse=True, scope='module')
def thread():
    """Compute on one thread: quicker for models of this size."""
    with one_thread():
        yield


@pytest.fixture(scope='module', params=CASES)
def exported(request, tmp_path_factory):
    """A checkpoint and the folder that export.py makes of it."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = save_model(folder / 'model.pth', *CASES[request.param])
    yield checkpoint, export_folder(checkpoint, folder / 'hub')
    for path in folder.rglob('model.*'):  # those of base384 are large
        path.unlink()


@pytest.fixture
def checkpoint(tmp_path):
    return save_model(tmp_path / 'model.pth')


@pytest.fixture
def trained(checkpoint):
    return load_trained(str(checkpoint))


@pytest.fixture
def sound(tmp_path, make_tone):
    """A recording shorter than every model's window, so that its end is padding."""
    return str(make_tone('sound.wav', seconds=0.3, seed=3))


def test_transformers_gives_our_logits_names_and_tags(exported, sound):
    checkpoint, folder = exported
    ours, description = load_model(checkpoint)
    theirs, info = transformers.AutoModelForAudioClassification.from_pretrained(
        folder, output_loading_info=True)
    assert not any(info.values())
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)

    inputs = extractor(load_waveform(sound).numpy(), sampling_rate=16000, return_tensors='pt')
    x = fit_frames(fbank(load_waveform(sound), ours.config.input_fdim), ours.config.input_tdim)
    x = normalise(x, MEAN, STD)[None]
    assert torch.allclose(inputs['input_values'], x, rtol=0, atol=5e-4)
    with torch.inference_mode():
        logits = ours(x)
        assert logits.std() > 0.05
        assert torch.allclose(theirs.eval()(x).logits, logits, rtol=0, atol=1e-4)

    classify = transformers.AudioClassificationPipeline(model=theirs, feature_extractor=extractor)
    # Of the name of a file, the pipeline would need the program ffmpeg.
    heard = {'raw': load_waveform(sound).numpy(), 'sampling_rate': 16000}
    by_pipeline = [(one['label'], one['score']) for one in classify(heard, top_k=4)]
    tagging, = tag(load_tagger(checkpoint, device='cpu', amp='off'), [sound], num_workers=0)
    by_us = [(LABELS['names'][i], score) for i, score in tagging.top(tagging.mean, 4)]
    assert [name for name, _ in by_pipeline] == [name for name, _ in by_us]
    assert [score for _, score in by_pipeline] == pytest.approx(
        [score for _, score in by_us], abs=2e-3)


def test_a_folder_is_read_back_bit_for_bit(exported):
    checkpoint, folder = exported
    (before, said), (after, again) = load_model(checkpoint), load_model(folder)
    own = before.state_dict()
    assert own.keys() == after.state_dict().keys()
    assert all(torch.equal(value, own[name]) for name, value in after.state_dict().items())
    assert after.v.norm.eps == before.v.norm.eps == 1e-6
    assert said.items() <= again.items() and again['labels'] == LABELS
    assert (again['mean'], again['std'], again['start']) == (MEAN, STD, 'random')


def test_what_transformers_writes_of_it_is_read_as_it_was(exported, tmp_path):
    checkpoint, folder = exported
    transformers.AutoModelForAudioClassification.from_pretrained(folder).save_pretrained(tmp_path)
    transformers.AutoFeatureExtractor.from_pretrained(folder).save_pretrained(tmp_path)
    (before, said), (after, again) = load_model(checkpoint), load_model(tmp_path)
    own = before.state_dict()
    assert own.keys() == after.state_dict().keys()
    assert all(torch.equal(value, own[name]) for name, value in after.state_dict().items())
    assert said.items() <= again.items()  # sizes, strides, loss, mean, std, labels


def test_if_an_eps_moves_the_logits_a_line_says_by_how_much(trained, tmp_path, caplog):
    write_transformers(trained, tmp_path / 'near')
    assert not caplog.records
    model = trained.model
    with torch.no_grad():  # embeddings whose values vary little
        model.v.norm.weight *= 1e-2
        model.v.norm.bias *= 1e-2
    write_transformers(trained, tmp_path / 'hub')
    [line] = [record.getMessage() for record in caplog.records]
    said = float(re.search(r'differ by up to (\S+) on', line)[1])
    theirs = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path / 'hub')
    x = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = float((theirs(x).logits - model(x)).abs().max())
        assert torch.equal(load_model(tmp_path / 'hub')[0](x), model(x))
    assert said > 1e-3 and said / 5 < found < said * 5
    assert '1e-06 there, 1e-05 in this model' in line


def test_a_model_that_transformers_made_is_exported_with_its_own_eps(tmp_path, caplog):
    theirs = transformers.ASTForAudioClassification(transformers.ASTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=4, max_length=32,
        num_mel_bins=32)).eval()
    with torch.no_grad():
        theirs.audio_spectrogram_transformer.layernorm.weight *= 1e-2
    theirs.save_pretrained(tmp_path / 'theirs')
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=32).save_pretrained(
        tmp_path / 'theirs')
    folder = export_folder(tmp_path / 'theirs', tmp_path / 'hub')
    again, (ours, _) = (transformers.AutoModelForAudioClassification.from_pretrained(folder).eval(),
                        load_model(folder))
    x = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(again(x).logits, theirs(x).logits, rtol=0, atol=1e-5)
        assert torch.allclose(ours(x), theirs(x).logits, rtol=0, atol=1e-4)
    assert ours.mlp_head[0].eps == ours.v.norm.eps == 1e-12
    assert 'differ by' not in caplog.text


@pytest.mark.skipif(not shutil.which('ffmpeg'), reason='pipelines read files with ffmpeg')
@pytest.mark.parametrize('loss', ['BCE', 'CE'])
def test_the_code_on_the_card_classifies_a_recording(loss, make_tone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint, sound = save_model('model.pth', loss=loss), make_tone('recording.wav', seconds=0.3)
    card = (export_folder(checkpoint, tmp_path / 'hub') / 'README.md').read_text()
    code = re.search(r'```python\n(.*?)```', card, re.DOTALL)[1]
    printed = []
    exec(code, {'print': printed.append})
    found, = printed
    tagging, = tag(load_tagger(checkpoint, device='cpu', amp='off'), [sound], num_workers=0)
    assert sorted(one['label'] for one in found) == sorted(LABELS['names'])
    assert [one['score'] for one in found] == pytest.approx(
        sorted(tagging.mean.tolist(), reverse=True), abs=2e-3)


def test_inference_prints_the_same_of_the_checkpoint_and_of_the_folder(checkpoint, sound, tmp_path):
    folder = export_folder(checkpoint, tmp_path / 'hub')
    taggers = [load_tagger(one, device='cpu', amp='off') for one in (checkpoint, folder)]
    (first,), (second,) = (tag(tagger, [sound], num_workers=0) for tagger in taggers)
    assert np.array_equal(first.scores, second.scores) and first.labels == second.labels


def test_transformers_writes_a_folder_that_it_read_back_as_it_was(checkpoint, tmp_path):
    folder = export_folder(checkpoint, tmp_path / 'hub')
    transformers.AutoModelForAudioClassification.from_pretrained(folder).save_pretrained(
        tmp_path / 'again')
    transformers.AutoFeatureExtractor.from_pretrained(folder).save_pretrained(tmp_path / 'again')
    weights, again = (load_file(one / 'model.safetensors') for one in (folder, tmp_path / 'again'))
    assert weights.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert load_model(tmp_path / 'again')[1] == load_model(folder)[1]


def test_mids_do_not_stay_with_a_model_that_transformers_trained_for_other_classes(
        checkpoint, tmp_path):
    folder = export_folder(checkpoint, tmp_path / 'hub')
    names = ['a', 'b', 'c', 'd', 'e']
    model = transformers.AutoModelForAudioClassification.from_pretrained(
        folder, id2label=dict(enumerate(names)), label2id={}, ignore_mismatched_sizes=True)
    model.save_pretrained(tmp_path / 'other')
    description = load_model(tmp_path / 'other')[1]
    assert description['labels'] == {'mids': names, 'names': names}
    assert description['dataset'] == 'other' and 'start' not in description


def test_a_folder_is_exported_again_as_it_is(checkpoint, tmp_path):
    first = export_folder(checkpoint, tmp_path / 'hub')
    second = export_folder(first, tmp_path / 'again')
    for name in ('config.json', 'preprocessor_config.json', 'model.safetensors'):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_transformers_is_not_needed_to_write(checkpoint, root, tmp_path):
    code = ('import sys; sys.modules["transformers"] = None; import export; '
            f'export.main(["--checkpoint", {str(checkpoint)!r}, "--format", "transformers", '
            f'"--out", {str(tmp_path / "hub")!r}])')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=root / 'src')
    assert {path.name for path in (tmp_path / 'hub').iterdir()} == {
        'README.md', 'config.json', 'model.safetensors', 'preprocessor_config.json'}


def test_an_empty_folder_is_filled_and_another_is_refused(checkpoint, tmp_path):
    out = tmp_path / 'hub'
    out.mkdir()
    export_folder(checkpoint, out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(SystemExit, match=f'the folder {out} is not empty: name another one'):
        export_folder(checkpoint, out)
    with pytest.raises(SystemExit, match='model.pth is no folder'):
        export_folder(checkpoint, checkpoint)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {'model.pth', 'model.json', 'hub'}


def test_a_folder_that_cannot_be_written_leaves_nothing(trained, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('exporting.transformers_folder.save', fail)
    with pytest.raises(OSError, match='model.safetensors: .* is the disk full'):
        write_transformers(trained, tmp_path / 'deep' / 'hub')
    assert {path.name for path in tmp_path.iterdir()} == {'model.pth', 'model.json'}


def use_tanh(model):
    model.v.blocks[3].mlp.act = nn.GELU('tanh')


def change_one_eps(model):
    model.v.blocks[3].norm2.eps = 1e-3


def change_eps_of_the_head(model):
    model.mlp_head[0].eps = 1e-3


def add_a_norm(model):
    model.v.blocks[0].attn.q_norm = nn.LayerNorm(64, eps=1e-6)


def drop_a_token(model):
    del model.v.dist_token


def drop_a_bias(model):
    model.v.blocks[0].attn.qkv.bias = None


@pytest.mark.parametrize('change, word', [
    (use_tanh, 'the activation of the format is GELU'), (change_one_eps, 'layer_norm_eps'),
    (change_eps_of_the_head, 'layer_norm_eps'), (add_a_norm, 'v.blocks.0.attn.q_norm.weight'),
    (drop_a_token, 'needs audio_spectrogram_transformer.embeddings.distillation_token'),
    (drop_a_bias, 'query.bias')])
def test_a_model_that_transformers_cannot_express_is_refused_with_the_reason(
        change, word, trained, tmp_path):
    change(trained.model)
    with pytest.raises(DataError, match='cannot become an AST of transformers') as error:
        write_transformers(trained, tmp_path / 'hub')
    assert word in str(error.value) and not (tmp_path / 'hub').exists()


def test_softmax_of_one_class_is_refused(tmp_path):
    one = {'mids': ['/m/0'], 'names': ['dog']}
    save_model(tmp_path / 'model.pth', loss='CE', labels=one)
    with pytest.raises(SystemExit, match='no softmax of a single class: --loss BCE'):
        export_folder(tmp_path / 'model.pth', tmp_path / 'hub')
    folder = export_folder(tmp_path / 'model.pth', tmp_path / 'hub', '--loss', 'BCE')
    assert transformers.AutoConfig.from_pretrained(folder).id2label == {0: 'dog'}
