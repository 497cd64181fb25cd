"""ASTModel: the published implementation's numbers; its settings, names and shapes."""
import json
import logging
import os
import tempfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.optim import param_groups_layer_decay
from torch import nn

import golden
from models import ASTModel, WeightsError, load_checkpoint, resample_pos_embed, save_checkpoint

CASES = json.loads((Path(golden.__file__).parent / 'model.json').read_text())
SETTINGS = ('model_size', 'fstride', 'tstride', 'input_fdim', 'input_tdim', 'label_dim')
DEIT = {  # size: (timm's name, file name of the original weights)
    'tiny224': ('deit_tiny_distilled_patch16_224', 'deit_tiny_distilled_patch16_224-b40b3cf7.pth'),
    'base384': ('deit_base_distilled_patch16_384', 'deit_base_distilled_patch16_384-d0272ac0.pth'),
}
UNUSED_HEADS = {f'module.v.{head}.{leaf}'
                for head in ('head', 'head_dist') for leaf in ('weight', 'bias')}


def cases(kind):
    """Parametrise over the golden cases of one kind, each with a name that tells them apart."""
    name = '{model_size}-{fstride}x{tstride}-{input_tdim}frames'
    return pytest.mark.parametrize('case', [
        pytest.param(case, id=name.format(**case)) for case in CASES[kind]])


def build(case, **pretraining):
    return ASTModel(**{name: case[name] for name in SETTINGS}, **pretraining).eval()


def logits(model, case):
    """Digest of the logits for the golden input of a case."""
    with torch.no_grad():
        return golden.digest(model(golden.spectrogram(
            case['input'], case['batch'], case['input_tdim'], case['input_fdim'])))


def close(digest, tolerance=1e-4):
    """Return what equals a golden digest: values within the tolerance, sums as of random errors."""
    of_sum = tolerance * digest['n'] ** 0.5
    return {**digest, 'val': pytest.approx(digest['val'], rel=0, abs=tolerance),
            **{name: pytest.approx(digest[name], rel=0, abs=of_sum) for name in ('sum', 'abs_sum')}}


def deit_state(size):
    """The golden DeiT of a size, with the names and shapes of timm's."""
    with torch.device('meta'):
        deit = timm.create_model(DEIT[size][0])
    return {name: golden.parameter(f'deit.{name}', tuple(value.shape))
            for name, value in deit.state_dict().items()}


@pytest.fixture(scope='module')
def deit_folder():
    """Golden DeiT weights as their authors saved them: file names, and the key `model`."""
    with tempfile.TemporaryDirectory() as folder:
        for size, (_, file_name) in DEIT.items():
            torch.save({'model': deit_state(size)}, Path(folder) / file_name)
        yield folder


@pytest.fixture(scope='module')
def audioset_folder(golden_json):
    """The golden AudioSet checkpoint in the published layout, unused heads and prefix included."""
    state = {name: golden.parameter('audioset.' + name.removeprefix('module.'), tuple(shape))
             for name, shape in golden_json('published_keys.json')}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / 'audioset_10_10_0.4593.pth')
        yield folder


@cases('forward')
def test_logits_are_those_of_the_published_model(case):
    model = golden.fill(build(case, imagenet_pretrain=False))
    assert model.v.pos_embed.shape[1] == 2 + case['n_patches']
    assert logits(model, case) == close(case['logits'])


@cases('imagenet')
def test_imagenet_weights_are_adapted_as_published(case, deit_folder, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', deit_folder)
    model = build(case)
    golden.fill(model.mlp_head, 'mlp_head.')
    assert golden.digest(model.v.pos_embed) == close(case['pos_embed'])
    assert golden.digest(model.v.patch_embed.proj.weight) == close(case['proj'])
    assert logits(model, case) == close(case['logits'])


@pytest.mark.parametrize('case', [
    pytest.param(case, id='{fstride}x{tstride}-{input_tdim}frames'.format(**case))
    for case in CASES['audioset'] + CASES['audioset_strides']])
def test_audioset_weights_are_adapted_as_published_and_to_other_strides(case, audioset_folder,
                                                                        monkeypatch):
    monkeypatch.setenv('TORCH_HOME', audioset_folder)
    model = build(case, audioset_pretrain=True)
    golden.fill(model.mlp_head, 'mlp_head.')
    assert golden.digest(model.v.pos_embed) == close(case['pos_embed'])
    assert logits(model, case) == close(case['logits'])


def test_state_dict_has_the_published_names_and_shapes_less_the_two_unused_heads(golden_json):
    published = {name: tuple(shape) for name, shape in golden_json('published_keys.json')
                 if name not in UNUSED_HEADS}
    with torch.device('meta'):
        model = ASTModel(imagenet_pretrain=False)
    assert published == {f'module.{name}': tuple(value.shape)
                         for name, value in model.state_dict().items()}


def test_every_parameter_is_used(make_tiny):
    model = make_tiny().train()
    model(torch.rand(2, 64, 32)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters()
            if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize('size, dim', [('tiny224', 192), ('small224', 384), ('base224', 768),
                                       ('base384', 768)])
def test_every_size_builds(size, dim):
    with torch.device('meta'):
        model = ASTModel(model_size=size, imagenet_pretrain=False)
        assert model(torch.rand(2, 1024, 128)).shape == (2, 527)
    assert model.v.cls_token.shape == (1, 1, dim)


@pytest.mark.parametrize('stride, frames, rows',
                         [(10, 1024, 1214), (12, 1024, 852), (14, 1024, 659), (16, 1024, 514),
                                                  (10, 128, 146)])
def test_positional_embedding_has_the_rows_of_the_published_checkpoint(stride, frames, rows):
    with torch.device('meta'):
        model = ASTModel(35, stride, stride, input_tdim=frames, imagenet_pretrain=False,
                         model_size='tiny224')
    assert model.v.pos_embed.shape[1] == rows


@pytest.mark.parametrize('fstride, tstride, bins, frames, grid', [
    (7, 13, 128, 100, (17, 7)), (1, 3, 20, 33, (5, 6)), (300, 200, 128, 100, (1, 1)),
    (10, 10, 16, 16, (1, 1)),
    (16, 16, 31, 47, (1, 2))])
def test_odd_strides_and_small_inputs_work(fstride, tstride, bins, frames, grid, make_tiny):
    model = make_tiny(fstride=fstride, tstride=tstride, input_fdim=bins, input_tdim=frames)
    assert model.v.pos_embed.shape[1] == 2 + grid[0] * grid[1]
    assert model(torch.rand(3, frames, bins)).shape == (3, 5)


def published_start(name):
    """Return mean and standard deviation that a parameter has at first in the published code.

    That code runs with timm 0.4.5.
    """
    norms = ('norm.weight', 'norm1.weight', 'norm2.weight', 'mlp_head.0.weight')
    if name.endswith(norms):
        return 1, 0
    if name in ('v.cls_token', 'v.dist_token', 'v.pos_embed'):
        return 0, 0.02
    if name.startswith(('v.patch_embed.proj', 'mlp_head.1')):
        # PyTorch's default: uniform within 1 / sqrt(fan in)
        fan_in = 16 * 16 if 'proj' in name else 192
        return 0, (3 * fan_in) ** -0.5
    return 0, 0.02 if name.endswith('.weight') else 0  # linear layers, and what adds


def test_from_scratch_every_parameter_starts_as_published(make_tiny):
    torch.manual_seed(0)
    model = make_tiny(label_dim=50)
    for name, value in model.state_dict().items():
        mean, std = published_start(name)
        of_mean = 5 * std / value.numel() ** 0.5  # five standard errors
        assert float(value.mean()) == pytest.approx(mean, abs=of_mean + 1e-9), name
        assert float(value.std()) == pytest.approx(std, abs=of_mean), name


@pytest.mark.parametrize('shape', [(2, 32, 64), (2, 66, 32), (2, 55, 32), (2, 64, 31), (64, 32),
                                   (2, 1, 64, 32)])
def test_a_wrong_input_shape_is_refused_with_the_expected_one(shape, make_tiny):
    with pytest.raises(ValueError, match=r'64 frames.*32 mel bins') as error:
        make_tiny()(torch.rand(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize('settings, expected', [
    ({'model_size': 'huge'}, 'tiny224, small224, base224, base384.*huge'),
    ({'input_fdim': 15}, 'input_fdim must be at least 16.*15'),
    ({'input_tdim': 8}, 'input_tdim must be at least 16.*8'),
    ({'fstride': 0}, 'fstride must be at least 1.*0'),
    ({'tstride': -1}, 'tstride must be at least 1.*-1'),
    ({'label_dim': 0}, 'label_dim must be at least 1.*0'),
    ({'audioset_pretrain': True, 'imagenet_pretrain': False}, 'needs imagenet_pretrain=True'),
    ({'audioset_pretrain': True, 'model_size': 'tiny224'}, 'needs model_size base384.*tiny224'),
])
def test_impossible_settings_are_refused_before_any_weights_are_looked_for(settings, expected,
                                                                           torch_home):
    with pytest.raises(ValueError, match=expected) as error:
        ASTModel(**settings)
    assert not isinstance(error.value, WeightsError)


def test_deit_weights_in_safetensors_give_the_same_model(deit_folder, torch_home, monkeypatch):
    save_file(deit_state('tiny224'), (torch_home / DEIT['tiny224'][1]).with_suffix('.safetensors'))
    from_safetensors = build(CASES['imagenet'][0]).v.state_dict()
    monkeypatch.setenv('TORCH_HOME', deit_folder)
    from_pth = build(CASES['imagenet'][0]).v.state_dict()
    assert all(torch.equal(value, from_pth[name]) for name, value in from_safetensors.items())


@pytest.mark.parametrize('entry', ['pos_embed', 'patch_embed.proj.weight',
                                   'blocks.11.mlp.fc2.bias'])
def test_deit_weights_that_lack_an_entry_are_refused_by_file_and_entry(entry, torch_home):
    path = torch_home / DEIT['tiny224'][1]
    torch.save({name: value for name, value in deit_state('tiny224').items() if name != entry},
               path)
    with pytest.raises(WeightsError, match=entry.replace('.', r'\.') + '.* is missing') as error:
        ASTModel(model_size='tiny224')
    assert str(path) in str(error.value)


def test_the_deit_of_another_size_is_refused_by_file_and_shapes(deit_folder, torch_home):
    path = torch_home / 'deit_small_distilled_patch16_224-649709d9.pth'
    os.symlink(Path(deit_folder) / DEIT['tiny224'][1], path)
    with pytest.raises(WeightsError, match=r'shape \(1, 1, 192\), expected \(1, 1, 384\)') as error:
        ASTModel(model_size='small224')
    assert str(path) in str(error.value)


@pytest.mark.parametrize('verbose, lines', [(True, 1), (False, 0)])
def test_verbose_logs_one_line_about_the_model(verbose, lines, make_tiny, caplog):
    with caplog.at_level(logging.INFO):
        make_tiny(verbose=verbose)
    assert len([record for record in caplog.records if 'tiny224' in record.getMessage()]) == lines


def test_attention_head_by_head_is_near_to_the_exact_one_as_the_fused_kernel_is(make_golden):
    model = make_golden(input_tdim=1024, fstride=10, tstride=10)  # 202 tokens
    x = golden.spectrogram('heads', 2, 1024, 32)
    with torch.inference_mode():
        exact = model(x)
        model.autocast_dtype = torch.bfloat16
        by_head = model(x)
    with torch.enable_grad():
        fused = model(x).detach()
    errors = [float((logits - exact).abs().max()) for logits in (by_head, fused)]
    assert not torch.equal(by_head, fused)
    assert max(errors) < 0.02  # logits are of the order of 1; bfloat16 keeps 8 bits


def test_bfloat16_autocast_returns_float32_logits_near_the_exact_ones(make_golden):
    model = make_golden()
    x = golden.spectrogram('bfloat16', 2, 64, 32)
    with torch.no_grad():
        exact = model(x)
        model.autocast_dtype = torch.bfloat16
        mixed = model(x)
    assert mixed.dtype == torch.float32
    # Logits are of the order of 1; bfloat16 keeps 8 bits.
    assert 0 < (mixed - exact).abs().max() < 0.1


@pytest.mark.parametrize('sizes, sees_all', [
    ({}, True), ({'fstride': 17}, False), ({'tstride': 17}, False),
    # One row of patches hears the lowest 16 mel bins.
    ({'fstride': 64}, False), ({'fstride': 64, 'input_fdim': 16}, True)])
def test_a_model_that_does_not_see_all_of_its_input_says_so(make_tiny, caplog, sizes, sees_all):
    make_tiny(**sizes, verbose=True)
    assert ('does not see' not in caplog.text) == sees_all


def test_weights_saved_from_data_parallel_load_into_a_plain_model(make_tiny, tmp_path):
    trained, fresh, x = make_tiny(), make_tiny(), torch.rand(2, 64, 32)
    torch.save(nn.DataParallel(trained).state_dict(), tmp_path / 'model.pth')
    load_checkpoint(fresh, tmp_path / 'model.pth')
    assert torch.equal(fresh(x), trained(x))


def test_a_saved_checkpoint_loads_into_data_parallel_as_peoples_scripts_do_it(make_tiny, tmp_path):
    trained, x = make_tiny(), torch.rand(2, 64, 32)
    save_checkpoint(trained, tmp_path / 'model.pth')
    wrapped = nn.DataParallel(make_tiny())
    wrapped.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
    assert torch.equal(wrapped(x), trained(x))


IMPORTING = """
import json, os, sys
import timm, torch
before = dict(os.environ)
connections = []
def hook(event, arguments):
    if event == 'socket.connect':
        connections.append(str(arguments))
sys.addaudithook(hook)
modules = [timm.layers, timm.models.vision_transformer, timm.models.deit]
def classes():
    return [value for module in modules for _, value in sorted(vars(module).items())
            if isinstance(value, type)]
timm_classes = classes()
from PACKAGE import ASTModel
print(json.dumps({'same_classes': classes() == timm_classes, 'connections': connections,
                  'environment': sorted(dict(os.environ).items() ^ before.items())}))
model = ASTModel(label_dim=527, input_tdim=100, imagenet_pretrain=FalseMORE)
print(model(torch.rand(10, 100, 128)).shape)
"""


@pytest.fixture(scope='module', params=['models', 'src.models'])
def imported(request, root, run_python):
    """Import `models` from src, `src.models` from the root, each in a new process.

    Returns (what the import did, what the model printed).
    """
    if request.param == 'models':
        cwd, more = root / 'src', ''
    else:
        cwd, more = root, ', model_size="tiny224"'  # built in less time
    code = IMPORTING.replace('PACKAGE', request.param).replace('MORE', more)
    did, printed = run_python('-c', code, cwd=cwd).strip().split('\n')
    return json.loads(did), printed


def test_the_model_works_from_src_and_from_the_root(imported):
    assert imported[1] == 'torch.Size([10, 527])'


def test_importing_changes_nothing_and_downloads_nothing(imported):
    assert imported[0] == {'same_classes': True, 'connections': [], 'environment': []}


def test_what_programs_need_before_torch_does_not_import_it(root, run_python):
    code = ('import sys, models.atomic, models.downloads, models.locks; '
            'from models import WeightsError; print("torch" in sys.modules)')
    assert run_python('-c', code, cwd=root / 'src').strip() == 'False'


def test_a_notebook_completes_the_names_of_the_package(root, run_python):
    code = 'import models; print(set(models.__all__) <= set(dir(models)))'
    assert run_python('-c', code, cwd=root / 'src').strip() == 'True'


def embedding(grid):
    """A positional embedding (1, 2 + f * t, 1) of a grid (f, t), its two token rows -1 and -2."""
    patches = torch.as_tensor(grid, dtype=torch.float32).flatten()
    return torch.cat([torch.tensor([-1.0, -2.0]), patches]).view(1, -1, 1)


@pytest.mark.parametrize('old, new, expected', [
    ((2, 5), (2, 3), [[1, 2, 3], [6, 7, 8]]),
    ((2, 4), (2, 3), [[1, 2, 3], [5, 6, 7]]),
    ((2, 5), (2, 2), [[1, 2], [6, 7]]),
    ((4, 2), (1, 2), [[4, 5]]),
    ((4, 4), (2, 2), [[5, 6], [9, 10]]),
    ((2, 3), (2, 3), [[0, 1, 2], [3, 4, 5]]),
])
def test_an_axis_that_shrinks_keeps_its_centre(old, new, expected):
    grid = torch.arange(old[0] * old[1]).view(old)
    assert torch.equal(resample_pos_embed(embedding(grid), old, new), embedding(expected))


@pytest.mark.parametrize('old, new, expected', [
    ([[0, 4]], (1, 4), [[0, 1, 3, 4]]),
    ([[0], [4]], (4, 1), [[0], [1], [3], [4]]),
    ([[0, 4], [8, 12]], (2, 4), [[0, 1, 3, 4], [8, 9, 11, 12]]),
    ([[0, 9, 4, 9], [8, 9, 12, 9]], (4, 2), [[9, 4], [9, 6], [9, 10], [9, 12]]),
])
def test_an_axis_that_grows_is_interpolated(old, new, expected):
    size = len(old), len(old[0])
    assert torch.allclose(resample_pos_embed(embedding(old), size, new), embedding(expected))


def test_a_positional_embedding_of_another_grid_is_refused():
    with pytest.raises(ValueError, match='has 12 rows.*4 x 4 patches.*need 18'):
        resample_pos_embed(embedding(torch.rand(2, 5)), (4, 4), (2, 2))


def test_another_number_of_prefix_tokens_can_be_told():
    grid = torch.arange(6.0).view(2, 3)
    with_one_token = embedding(grid)[:, 1:]
    resampled = resample_pos_embed(with_one_token, (2, 3), (2, 1), num_prefix_tokens=1)
    assert torch.equal(resampled, embedding([[1], [4]])[:, 1:])


def test_timm_groups_the_parameters_by_layer_for_layer_decay(make_tiny):
    model = make_tiny()
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5,
                                      no_weight_decay_list=model.no_weight_decay())
    found = {id(parameter): group for group in groups for parameter in group['params']}
    groups = {name: found[id(parameter)] for name, parameter in model.named_parameters()}
    scales = {name: groups[name]['lr_scale'] for name in groups}
    assert scales['mlp_head.1.weight'] == 1
    assert scales['v.norm.weight'] == scales['v.blocks.11.mlp.fc1.weight'] == 0.5
    assert scales['v.blocks.0.attn.qkv.weight'] == 0.5 ** 12
    stem = ('v.cls_token', 'v.dist_token', 'v.pos_embed', 'v.patch_embed.proj.weight')
    assert {scales[name] for name in stem} == {0.5 ** 13}
    decayed = {name for name, group in groups.items() if group['weight_decay']}
    assert decayed == {name for name, value in model.named_parameters()
                       if value.dim() > 1 and name not in stem[:3]}
