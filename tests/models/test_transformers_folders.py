"""Folders of transformers: their two JSON files are honoured or refused, parts are joined."""
import copy
import functools
import inspect
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load, load_file, save_file

import golden
from models import (
    WeightsError,
    load_checkpoint,
    load_model,
    mean_state_dict,
    read_state_dict,
    save_checkpoint,
)
from models.transformers_format import from_transformers, to_transformers
from models.weights import locate, sha256

transformers = pytest.importorskip('transformers')

CLASSES, FRAMES, BINS = 5, 64, 32
TINY = {'hidden_size': 192, 'num_attention_heads': 3, 'intermediate_size': 768,
        'num_labels': CLASSES, 'max_length': FRAMES, 'num_mel_bins': BINS}
X = golden.spectrogram('folders', 3, FRAMES, BINS)


@functools.cache
def build(config):
    """Build the model of transformers of a config, as a JSON text; tests leave it as it is."""
    config = transformers.ASTConfig(**{**TINY, **json.loads(config)})
    return golden.fill(transformers.ASTForAudioClassification(config).eval())


def save_folder(folder, extractor=None, save=None, **config):
    """Write a model as transformers does.

    extractor: settings of its ASTFeatureExtractor, or None for none.
    """
    model = build(json.dumps(config))
    model.save_pretrained(folder, **(save or {}))
    if extractor is not None:
        sizes = {'num_mel_bins': BINS, 'max_length': FRAMES}
        transformers.ASTFeatureExtractor(**{**sizes, **extractor}).save_pretrained(folder)
    return model


@pytest.fixture
def make_folder(tmp_path):
    """Write a folder as transformers does; returns it and its model."""
    def make(name='hub', **settings):
        return tmp_path / name, save_folder(tmp_path / name, **settings)
    return make


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A folder with weights and both JSON files, for copies."""
    folder = tmp_path_factory.mktemp('saved')
    save_folder(folder, extractor={})
    return folder


@pytest.fixture
def change_folder(saved, tmp_path):
    """Copy a folder, with changes of its config.json and of its preprocessor_config.json.

    None takes a field out, and None for the changes of the latter takes out the file.
    """
    def change(config=None, extractor=(), name='hub'):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file in saved.iterdir():
            (shutil.copy if file.suffix == '.json' else os.link)(file, folder / file.name)
        change_json(folder / 'config.json', config or {})
        if extractor is None:
            (folder / 'preprocessor_config.json').unlink()
        else:
            change_json(folder / 'preprocessor_config.json', dict(extractor))
        return folder
    return change


def change_json(path, changes):
    values = {**json.loads(path.read_text()), **changes}
    kept = {name: value for name, value in values.items() if value is not None}
    path.write_text(json.dumps(kept))


def logits_agree(ours, theirs):
    with torch.no_grad():
        return torch.allclose(ours(X), theirs(X).logits, rtol=0, atol=1e-4)


def refused(folder, read=load_model):
    with pytest.raises(WeightsError) as error:
        read(folder)
    said = str(error.value)
    assert str(folder) in said and '\n' not in said
    return said


@pytest.mark.parametrize('eps', [1e-12, 1e-6, 1e-2, 1.0])
def test_the_eps_of_the_config_is_that_of_the_transformer(eps, make_folder, make_tiny):
    folder, theirs = make_folder(layer_norm_eps=eps)
    ours, description = load_model(folder)
    assert logits_agree(ours, theirs)
    assert description['layer_norm_eps'] == eps
    assert ours.mlp_head[0].eps == ours.v.norm.eps == ours.v.blocks[3].norm2.eps == eps
    own = make_tiny()
    load_checkpoint(own, folder)
    assert logits_agree(own, theirs)


def test_embeddings_that_vary_little_have_the_logits_of_transformers(make_folder, make_tiny):
    folder, theirs = make_folder(extractor={})
    theirs = copy.deepcopy(theirs)
    with torch.no_grad():  # so that the eps of the classifier counts
        for value in theirs.audio_spectrogram_transformer.layernorm.parameters():
            value *= 1e-2
    theirs.save_pretrained(folder)
    assert logits_agree(load_model(folder)[0], theirs)
    torch.save(theirs.state_dict(), folder / 'bare.pth')
    (folder / 'config.json').unlink()
    sizes = {'fstride': 10, 'tstride': 10, 'input_fdim': BINS, 'input_tdim': FRAMES}
    assert logits_agree(load_model(folder / 'bare.pth', **sizes)[0], theirs)
    own = make_tiny()
    load_checkpoint(own, folder / 'bare.pth')
    assert logits_agree(own, theirs)


@pytest.mark.parametrize('read', [load_model, 'load_checkpoint'])
def test_the_published_models_have_the_eps_of_their_authors(read, change_folder, make_tiny):
    folder = change_folder(name='ast-finetuned-audioset-10-10-0.4593')
    assert json.loads((folder / 'config.json').read_text())['layer_norm_eps'] == 1e-12
    if read == 'load_checkpoint':
        model = make_tiny()
        load_checkpoint(model, folder)
    else:
        model, _ = load_model(folder)
    assert (model.v.norm.eps, model.mlp_head[0].eps) == (1e-6, 1e-5)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_checkpoint_made_of_such_a_model_carries_the_eps(suffix, make_folder, make_tiny,
                                                           tmp_path):
    folder, theirs = make_folder(layer_norm_eps=0.5)
    ours, description = load_model(folder)
    for i, said in enumerate((description, {'mean': -1.0})):
        save_checkpoint(ours, tmp_path / f'{i}{suffix}', **said)
        again, described = load_model(tmp_path / f'{i}{suffix}')
        assert described['layer_norm_eps'] == 0.5 and logits_agree(again, theirs)
        own = make_tiny()
        load_checkpoint(own, tmp_path / f'{i}{suffix}')
        assert logits_agree(own, theirs)


def test_a_description_does_not_lend_its_eps_to_another_model(make_folder, make_tiny, tmp_path):
    _, description = load_model(make_folder(layer_norm_eps=0.5)[0])
    save_checkpoint(make_tiny(), tmp_path / 'a.pth', **description)
    loaded, described = load_model(tmp_path / 'a.pth')
    assert loaded.v.norm.eps == 1e-6 and 'layer_norm_eps' not in described


def test_a_config_without_eps_means_what_transformers_makes_of_it(change_folder):
    folder = change_folder({'layer_norm_eps': None})
    theirs = transformers.ASTForAudioClassification.from_pretrained(folder)
    ours, description = load_model(folder)
    assert ours.v.norm.eps == description['layer_norm_eps'] == theirs.config.layer_norm_eps == 1e-12


@pytest.mark.parametrize('change, word', [
    ({'hidden_act': 'gelu_new'}, 'hidden_act gelu_new'),
    ({'hidden_act': 'relu'}, 'hidden_act relu'),
    ({'hidden_act': 'quick_gelu'}, 'hidden_act quick_gelu'),
    ({'num_attention_heads': 6}, 'num_attention_heads 6'),
    ({'num_attention_heads': None}, 'num_attention_heads 12'),  # transformers' default
    ({'num_attention_heads': '3'}, "num_attention_heads '3'"),
    ({'qkv_bias': False}, 'qkv_bias False'), ({'patch_size': 8}, 'patch_size 8'),
    ({'layer_norm_eps': 0}, "layer_norm_eps '0'"), ({'layer_norm_eps': '1e-12'}, 'layer_norm_eps'),
    ({'layer_norm_eps': -1e-12}, 'layer_norm_eps'),
    ({'problem_type': 'regression'}, "problem_type 'regression'"),
    ({'problem_type': 3}, "problem_type '3'"), ({'problem_type': ['a']}, 'problem_type'),
    ({'hidden_act': ['gelu']}, 'hidden_act')])
@pytest.mark.parametrize('read', [load_model, 'load_checkpoint'])
def test_a_config_of_another_computation_is_refused_by_its_field(read, change, word, change_folder,
                                                                make_tiny):
    folder = change_folder(change)
    if read == 'load_checkpoint':
        model = make_tiny()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert word in refused(folder, lambda folder: load_checkpoint(model, folder))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert model.v.norm.eps == 1e-6
    else:
        assert word in refused(folder)


@pytest.mark.parametrize('config', [
    {'num_attention_heads': 6}, {'hidden_act': 'gelu_new'}, {'layer_norm_eps': 1e-2},
    {'frequency_stride': 8, 'time_stride': 12}, {'max_length': 100, 'num_mel_bins': 48},
    {'num_hidden_layers': 3}, {'intermediate_size': 384}, {'qkv_bias': False}, {'patch_size': 8},
    {'hidden_dropout_prob': 0.5, 'attention_probs_dropout_prob': 0.5}, {'initializer_range': 0.5}])
def test_a_folder_gives_the_logits_of_transformers_or_is_refused(config, make_folder):
    folder, theirs = make_folder(**config)
    try:
        ours, description = load_model(folder)
    except WeightsError as error:
        assert str(folder) in str(error)
        return
    x = golden.spectrogram('folders', 3, description['input_tdim'], description['input_fdim'])
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x).logits, rtol=0, atol=1e-4)
    assert config.keys().isdisjoint({'num_attention_heads', 'hidden_act', 'num_hidden_layers'})


@pytest.mark.parametrize('extractor', [{}, {'mean': -1.5, 'std': 2.5},
                                       {'do_normalize': False},
                                       {'do_normalize': False, 'mean': 3.0}])
def test_inputs_are_normalised_as_the_extractor_does_it(extractor, change_folder):
    _, description = load_model(change_folder(extractor=extractor))
    made = transformers.ASTFeatureExtractor(num_mel_bins=BINS, max_length=FRAMES, **extractor)
    x = X[0].numpy()
    expected = made.normalize(x) if made.do_normalize else x
    assert (x - description['mean']) / (2 * description['std']) == pytest.approx(expected, abs=1e-6)
    assert not {'mean', 'std'} & set(description['assumed'])


@pytest.mark.parametrize('extractor, word', [
    ({'sampling_rate': 8000}, 'sampling_rate 8000'),
    ({'sampling_rate': 44100}, 'sampling_rate 44100'),
    ({'num_mel_bins': 64}, 'num_mel_bins 64, but config.json says 32'),
    ({'max_length': 1024}, 'max_length 1024, but config.json says 64')])
def test_an_extractor_of_other_inputs_is_refused_by_its_field(extractor, word, change_folder):
    said = refused(change_folder(extractor=extractor))
    assert word in said and 'preprocessor_config.json' in said


@pytest.mark.parametrize('change, word', [
    ({'do_normalize': 'no'}, 'do_normalize no'),
    ({'sampling_rate': '16000'}, 'sampling_rate 16000'),
    ({'feature_extractor_type': 'Wav2Vec2FeatureExtractor'}, 'feature_extractor_type Wav2Vec2'),
    ({'mean': 'x'}, 'mean'), ({'std': 0}, 'std')])
def test_an_extractor_that_says_what_cannot_be_is_refused_by_its_field(change, word, change_folder):
    assert word in refused(change_folder(extractor=change))


def test_without_an_extractor_the_statistics_are_those_of_transformers_and_a_line_says_so(
        change_folder, caplog):
    folder = change_folder({'problem_type': 'multi_label_classification'}, extractor=None)
    _, description = load_model(folder)
    made = transformers.ASTFeatureExtractor()
    assert (description['mean'], description['std']) == (made.mean, made.std)
    assert list(description['assumed']) == ['mean', 'std']
    [line] = [record.getMessage() for record in caplog.records]
    assert '--dataset_mean' in line and '--dataset_std' in line and '--loss' not in line


def softmax_or_sigmoid(model, x):
    """The scores that transformers' own pipeline makes of the logits of a model."""
    pipeline = transformers.AudioClassificationPipeline(
        model=model, feature_extractor=transformers.ASTFeatureExtractor(), device='cpu')
    if inspect.signature(pipeline.postprocess).parameters['function_to_apply'].default:
        pytest.skip('this version of transformers takes softmax whatever the problem_type')
    with torch.no_grad():
        found = pipeline.postprocess(model(x[:1]), top_k=model.config.num_labels)
    found.sort(key=lambda one: model.config.label2id[one['label']])
    return [one['score'] for one in found]


@pytest.mark.parametrize('problem, loss', [
    (None, 'CE'), ('single_label_classification', 'CE'), ('multi_label_classification', 'BCE')])
def test_scores_are_those_of_the_pipeline_of_transformers(problem, loss, make_folder, caplog):
    folder, theirs = make_folder(extractor={}, **({'problem_type': problem} if problem else {}))
    assert ('problem_type' in json.loads((folder / 'config.json').read_text())) == bool(problem)
    ours, description = load_model(folder)
    assert description['loss'] == loss
    with torch.no_grad():
        logits = ours(X[:1])
    scores = logits.softmax(1) if loss == 'CE' else logits.sigmoid()
    assert scores[0].tolist() == pytest.approx(softmax_or_sigmoid(theirs, X), abs=1e-5)
    assert ['loss CE (softmax scores) (--loss)' in record.getMessage()
            for record in caplog.records] == ([] if problem else [True])


@pytest.mark.parametrize('problem, loss', [
    ('single_label_classification', 'CE'), ('multi_label_classification', 'BCE')])
def test_a_model_that_transformers_trained_is_read_bit_for_bit(problem, loss, make_folder,
                                                               tmp_path):
    folder, _ = make_folder(extractor={'mean': -1.5}, problem_type=problem)
    model = transformers.AutoModelForAudioClassification.from_pretrained(folder).train()
    labels = torch.tensor([0, 1, 4])
    if loss == 'BCE':
        labels = torch.nn.functional.one_hot(labels, CLASSES).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(X, labels=labels).loss.backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path / 'tuned')
    transformers.AutoFeatureExtractor.from_pretrained(folder).save_pretrained(tmp_path / 'tuned')

    ours, description = load_model(tmp_path / 'tuned')
    assert logits_agree(ours, model)
    assert (description['loss'], description['mean']) == (loss, -1.5)
    on_disk = load_file(tmp_path / 'tuned' / 'model.safetensors')
    in_memory = model.state_dict()
    for theirs in (on_disk, in_memory):
        expected = from_transformers(theirs)
        assert expected.keys() == ours.state_dict().keys()
        assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    again = to_transformers(ours.state_dict())
    assert again.keys() == on_disk.keys()
    assert all(torch.equal(value, again[name]) for name, value in on_disk.items())


def test_an_entry_for_which_transformers_has_no_place_is_named(make_tiny):
    state = {**make_tiny().state_dict(), 'v.blocks.0.ls1.gamma': torch.ones(192)}
    with pytest.raises(ValueError, match='v.blocks.0.ls1.gamma'):
        to_transformers(state)


@pytest.mark.parametrize('own', ['text', {}, {'labels': {'mids': ['/m/0'], 'names': ['a']}},
                                 {'dataset': 'another'}])
def test_a_field_of_ours_that_does_not_fit_the_classes_is_left_out(own, change_folder):
    description = load_model(change_folder({'ast_description': own}))[1]
    names = [f'LABEL_{i}' for i in range(CLASSES)]
    assert description['labels'] == {'mids': names, 'names': names}
    assert description['dataset'] == 'hub'


def test_a_field_of_ours_that_says_what_cannot_be_is_refused(change_folder):
    assert 'labels' in refused(change_folder({'ast_description': {'labels': ['a']}}))


def test_of_a_single_class_scores_are_sigmoids(make_folder):
    folder, _ = make_folder(num_labels=1)
    assert load_model(folder)[1]['loss'] == 'BCE'


@pytest.mark.parametrize('name', ['MIT--ast-finetuned-speech-commands-v2',
                                  'ast-finetuned-audioset-10-10-0.4593',
                                  'models--MIT--ast-finetuned-audioset-12-12-0.447/snapshots/0123'])
def test_the_published_models_keep_their_sigmoids_without_a_word(name, change_folder, caplog):
    _, description = load_model(change_folder(name=name))
    assert description['loss'] == 'BCE' and not caplog.records


def test_a_published_model_without_extractor_has_the_statistics_of_its_dataset(change_folder,
                                                                              caplog):
    folder = change_folder(extractor=None, name='ast-finetuned-speech-commands-v2')
    _, description = load_model(folder)
    assert description['mean'] == -6.845978 and not caplog.records
    assert description['dataset'] == 'speechcommands'


def test_the_word_of_the_config_goes_before_a_published_name(change_folder):
    folder = change_folder({'problem_type': 'single_label_classification'},
                           name='ast-finetuned-audioset-10-10-0.4593')
    assert load_model(folder)[1]['loss'] == 'CE'


@pytest.fixture
def sharded(make_folder):
    """A folder whose weights are in many parts, and its model."""
    return make_folder(extractor={}, save={'max_shard_size': '5MB'})


def test_sharded_weights_load(sharded, make_tiny):
    folder, theirs = sharded
    index = folder / 'model.safetensors.index.json'
    assert len(list(folder.glob('model-*-of-*.safetensors'))) > 2 and locate(folder) == index
    own = make_tiny()
    load_checkpoint(own, index)
    for source in (folder, index):
        assert logits_agree(load_model(source)[0], theirs)
    with torch.no_grad():
        assert torch.allclose(own(X), theirs(X).logits, atol=1e-4)
    assert mean_state_dict([index]).keys() == read_state_dict(folder / index.name).keys()


def test_older_weights_load_whole_and_sharded(make_folder):
    for save in ({}, {'max_shard_size': '5MB'}):
        folder, theirs = make_folder(save=save)
        for path in folder.glob('*.safetensors'):
            path = path.rename(path.with_name(path.name.replace('model', 'pytorch_model')))
            torch.save(load_file(path), path.with_suffix('.bin'))
            path.unlink()
        index = folder / 'model.safetensors.index.json'
        if index.exists():
            text = index.read_text().replace('model-', 'pytorch_model-')
            text = text.replace('.safetensors', '.bin')
            index.with_name('pytorch_model.bin.index.json').write_text(text)
            index.unlink()
        assert locate(folder).name.startswith('pytorch_model.bin')
        assert logits_agree(load_model(folder)[0], theirs)
        shutil.rmtree(folder)


def test_a_missing_part_is_refused_by_name(sharded):
    folder, _ = sharded
    part = sorted(folder.glob('model-*.safetensors'))[1]
    part.unlink()
    assert f'{part} does not exist' in refused(folder)


def test_a_truncated_part_is_refused_by_name(sharded):
    folder, _ = sharded
    part = sorted(folder.glob('model-*.safetensors'))[1]
    part.write_bytes(part.read_bytes()[:1000])
    assert f'{part} is not a readable checkpoint' in refused(folder)


def test_an_entry_that_no_part_holds_and_one_that_two_hold_are_refused_by_name(sharded):
    folder, _ = sharded
    first, second = sorted(folder.glob('model-*.safetensors'))[:2]
    whole, other = load(first.read_bytes()), load(second.read_bytes())
    name = list(whole)[-1]
    save_file({one: value for one, value in whole.items() if one != name}, first)
    assert f"'{name}' is missing" in refused(folder)
    save_file(whole, first)
    save_file({**other, name: whole[name]}, second)
    assert f'{name} is there twice' in refused(folder)


@pytest.mark.parametrize('file', ['../a.safetensors', '/etc/passwd', 'b/a.safetensors'])
def test_an_index_that_leads_out_of_its_folder_is_refused(file, sharded):
    folder, _ = sharded
    index = folder / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': {'a': file}}))
    said = refused(folder)
    assert said == f'{index} lists {file}, which is not beside it'


@pytest.mark.parametrize('text, problem', [
    ('', 'is no JSON'), ('[]', 'is no JSON object'), ('{}', 'lists no parts'),
    ('{"weight_map": []}', 'lists no parts'), ('{"weight_map": {}}', 'lists no parts')])
def test_an_index_that_is_none_is_refused_by_name(text, problem, sharded):
    folder, _ = sharded
    (folder / 'model.safetensors.index.json').write_text(text)
    assert problem in refused(folder)


def test_the_digest_of_sharded_weights_is_that_of_their_parts(sharded):
    folder, _ = sharded
    before = sha256(locate(folder))
    part = sorted(folder.glob('model-*.safetensors'))[-1]
    save_file({name: value + 1 for name, value in load(part.read_bytes()).items()}, part)
    assert sha256(locate(folder)) != before
