"""Folders for Hugging Face: transformers reads them, and so do we, and the card says what is known."""
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import nn

import export
import run
from audio.fbank import fbank, fit_frames, normalise
from audio.reading import load_waveform
from exporting.trained import load_trained
from exporting.transformers_folder import write_transformers
from inference import load_tagger, tag
from models import ASTModel, load_model, save_checkpoint
from utilities.errors import DataError
from utilities.parallel import one_thread

transformers = pytest.importorskip('transformers')

# model size, fstride, tstride, mel bins, frames, loss
CASES = {'tiny': ('tiny224', 10, 16, 64, 64, 'BCE'), 'small': ('small224', 16, 10, 128, 96, 'CE'),
         'wide': ('tiny224', 16, 16, 128, 32, 'CE'), 'base': ('base384', 10, 10, 64, 32, 'BCE')}
# Two classes share a name, and a name has what Markdown, YAML and tables take for their own.
LABELS = {'mids': ['/m/0', '/m/1', '/m/2', '/m/3'],
          'names': ['dog', 'rain, *heavy* | wet: "£"', 'dog', '- sea_waves']}
MEAN, STD = -5.678901234, 3.456789012
RUN = ('--data_train train.json --data_val val.json --data_eval val.json --label_csv labels.csv '
       '--n_class 3 --exp_dir exp --dataset beeps --num_mel_bins 32 --audio_length 32 '
       '--fstride 16 --tstride 16 --model_size tiny224 --imagenet_pretrain False --n_epochs 2 '
       '--batch_size 4 --lr 1e-4 --num_workers 0 --device cpu --metrics acc --loss CE --wa True '
       '--wa_end 2 --save_model True')


@pytest.fixture(autouse=True, scope='module')
def thread():
    """Compute on one thread: quicker for models of this size."""
    with one_thread():
        yield


def save_model(path, size='tiny224', fstride=16, tstride=16, bins=32, frames=32, loss='BCE',
               labels=LABELS, **description):
    """Write a checkpoint of random weights, whose logits differ from class to class."""
    torch.manual_seed(0)
    model = ASTModel(len(labels['names']), fstride, tstride, bins, frames, False, model_size=size,
                     verbose=False)
    for parameter in model.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    save_checkpoint(model, path, **{'labels': labels, 'mean': MEAN, 'std': STD, 'loss': loss,
                                    'dataset': 'some_sounds', 'start': 'random', **description})
    return path


def export_folder(checkpoint, out, *options):
    export.main(['--checkpoint', str(checkpoint), '--format', 'transformers', '--out', str(out),
                 *options])
    return out


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


def read_card(folder):
    return ModelCard.load(folder / 'README.md')


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
    by_pipeline = [(one['label'], one['score']) for one in classify(sound, top_k=4)]
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


def test_the_pipeline_takes_the_folder_by_its_name(checkpoint, sound, tmp_path):
    folder = export_folder(checkpoint, tmp_path / 'hub')
    found = transformers.pipeline('audio-classification', str(folder))(sound)
    assert {one['label'] for one in found} == set(LABELS['names']) and len(found) == 4


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
    words = [*RUN.split(), '--data_train', str(train), f'--data_val={val}']
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
    assert f'validation set, epoch {best + 1} of 2 | evaluation set, epoch' in card.text
    assert 'scores there are optimistic' in card.text and 'Scores are softmax' in card.text
    for row in ('| `--lr` | 0.0001 |', '| `--n_epochs` | 2 |', f'| torch | {torch.__version__} |'):
        assert row in card.text
    # The paths of this machine are no business of the hub's.
    command = re.search(r'```bash\n(.*)\n```', card.text)[1]
    assert command.startswith('python run.py --data_train train.json')
    assert command.endswith('--data_train train.json --data_val=val.json')
    assert 'jane' not in card.text and str(tmp_path) not in card.text


def test_the_cards_of_other_models_of_an_experiment_have_their_own_scores(exp_dir, tmp_path):
    rows = np.loadtxt(exp_dir / 'result.csv', delimiter=',')
    for name, table, value in (
            ('audio_model.2', 'validation set, epoch 2 of 2', rows[1, 0]),
            ('audio_model_wa', 'validation set, mean of the weights of epochs 1 to 2',
             np.loadtxt(exp_dir / 'wa_result.csv')[0])):
        card = read_card(export_folder(exp_dir / 'models' / f'{name}.pth', tmp_path / name))
        assert table in card.text and f'| {value:.4f} |' in card.text
        assert 'optimistic' not in card.text and 'evaluation set' not in card.text

    (exp_dir / 'result.csv').write_text('no numbers')
    (exp_dir / 'environment.json').unlink()
    card = read_card(export_folder(exp_dir / 'models' / 'best_audio_model.pth', tmp_path / 'less'))
    assert '## Scores' not in card.text and card.data.datasets == ['beeps']


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
    (use_tanh, 'its activation is GELU'), (change_one_eps, 'layer_norm_eps'),
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


@pytest.mark.parametrize('options, word', [
    (['--license', 'Apache 2.0'], 'expected an identifier such as apache-2.0'),
    (['--license', 'mit', '--format', 'onnx'], '--license goes into the card')])
def test_a_license_that_does_not_fit_is_refused(options, word, checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export_folder(checkpoint, tmp_path / 'hub.onnx', *options)
    assert word in capsys.readouterr().err
