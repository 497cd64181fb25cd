"""What people do with a model besides calling it: hooks, adapters, pruning, export, copying.

The model's own pass saves work; nobody else may notice.
"""
import copy
import pickle
import shutil
from unittest import mock

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

import golden
from models import ASTModel, fast_blocks

TOKENS = 2 + 3 * 7  # of `model`
LINEARS = ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')
PARTS = ('', 'norm1', 'attn', *LINEARS, 'norm2', 'mlp', 'ls1', 'drop_path2')


@pytest.fixture
def model(make_golden):
    """A model with weights of golden.py and a grid of 3 x 7 patches."""
    return make_golden(fstride=8, tstride=8)


@pytest.fixture
def x():
    return golden.spectrogram('neighbours', 2, 64, 32)


def image(x):
    """(B, frames, bins) as the input of `model.v`."""
    return x.unsqueeze(1).transpose(2, 3)


def test_the_models_own_pass_computes_what_the_head_looks_at_and_nothing_changes(model, x,
                                                                                 monkeypatch):
    with mock.patch.object(F, 'scaled_dot_product_attention',
                           wraps=F.scaled_dot_product_attention) as attention:
        logits = model(x)
        gradient = torch.autograd.grad(logits.sum(), model.v.pos_embed)[0]
    queries = [call.args[0].shape[2] for call in attention.call_args_list]
    assert queries == [TOKENS] * 11 + [2]
    monkeypatch.setattr(fast_blocks, 'has_tokenwise_end', lambda *_: False)
    whole = model(x)
    torch.testing.assert_close(logits, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole.sum(), model.v.pos_embed)[0],
                               rtol=1e-4, atol=1e-5)


def test_a_loop_over_the_blocks_by_hand_sees_every_token(model, x):
    with torch.no_grad():
        tokens = model.v.norm_pre(model.v._pos_embed(model.v.patch_embed(image(x))))
        for block in model.v.blocks:
            tokens = block(tokens)
            assert tokens.shape == (2, TOKENS, 192)
        tokens = model.v.norm(tokens)
        assert torch.equal(tokens, model.v.forward_features(image(x)))
        patches = tokens[:, 2:].unflatten(1, model.grid).mean(dim=1)
        torch.testing.assert_close(patches, model.frame_features(x))
        logits = model.mlp_head(tokens[:, :2].mean(dim=1))
        torch.testing.assert_close(logits, model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize('part', PARTS)
def test_a_hook_on_any_part_of_any_block_sees_every_token(model, x, part):
    logits, seen = model(x).detach(), []
    for block in model.v.blocks:
        block.get_submodule(part).register_forward_hook(
            lambda module, inputs, output: seen.append(output.shape[1]))
    torch.testing.assert_close(model(x).detach(), logits, rtol=0, atol=1e-6)
    assert seen == [TOKENS] * 12


@pytest.mark.parametrize('part', ['norm', 'blocks', 'patch_drop', 'norm_pre', 'blocks.11.norm2'])
@pytest.mark.parametrize('kind', ['register_forward_hook', 'register_forward_pre_hook'])
def test_a_hook_on_the_transformer_sees_every_token(model, x, part, kind):
    seen = []
    register = getattr(model.v.get_submodule(part), kind)
    register(lambda module, inputs, *_: seen.append(inputs[0].shape[1]))
    model(x)
    assert seen == [TOKENS]


def test_a_hook_for_all_modules_sees_every_token(model, x):
    seen = []

    def look(module, inputs, output):
        if module is model.v.norm:
            seen.append(output.shape[1])
    hook = nn.modules.module.register_module_forward_hook(look)
    try:
        model(x)
    finally:
        hook.remove()
    assert seen == [TOKENS]


@pytest.mark.parametrize('target', ['norm1', 'attn', 'mlp', ''])
def test_grad_cam_on_the_last_block_has_a_gradient_for_every_patch(model, x, target):
    kept = {}
    module = model.v.blocks[-1].get_submodule(target)
    module.register_forward_hook(lambda module, inputs, output: kept.update(activation=output))
    module.register_full_backward_hook(
        lambda module, inputs, outputs: kept.update(gradient=outputs[0]))
    model(x)[:, 1].sum().backward()
    assert kept['activation'].shape == kept['gradient'].shape == (2, TOKENS, 192)
    of_patches = kept['gradient'][:, 2:].abs().sum(dim=(0, 2))
    # After the attention of the last block, only the tokens count that the head looks at.
    assert (of_patches > 0).all() if target == 'norm1' else (of_patches == 0).all()
    weights = (kept['activation'] * kept['gradient']).sum(dim=2)[:, 2:]
    assert weights.unflatten(1, model.grid).shape == (2, 3, 7)


class Lora(nn.Module):
    """A low-rank adapter around a linear layer, as people write it."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        generator = torch.Generator().manual_seed(0)
        self.down = nn.Parameter(torch.randn(4, linear.in_features, generator=generator) / 10)
        self.up = nn.Parameter(torch.randn(linear.out_features, 4, generator=generator) / 10)

    def forward(self, x):
        return self.linear(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize('number', [0, 11])
@pytest.mark.parametrize('name', LINEARS)
@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
def test_an_adapter_in_place_of_any_linear_layer_counts_and_learns(model, x, number, name, dtype):
    model.autocast_dtype = dtype
    before = model(x).detach()
    parent, _, leaf = name.rpartition('.')
    parent = model.v.blocks[number].get_submodule(parent)
    setattr(parent, leaf, Lora(getattr(parent, leaf)))
    after = model(x)
    assert (after - before).abs().max() > 1e-3
    after.sum().backward()
    lora = getattr(parent, leaf)
    assert lora.up.grad.abs().sum() > 0 and lora.down.grad.abs().sum() > 0


def test_the_adapters_of_peft_count_and_learn(model, x):
    before = model(x).detach()
    inject_adapter_in_model(LoraConfig(target_modules=['qkv', 'proj', 'fc1', 'fc2'], r=2,
                                       init_lora_weights=False),
                            model.v)
    assert (model(x) - before).abs().max() > 1e-3
    model(x).sum().backward()
    adapters = {name: parameter for name, parameter in model.named_parameters() if 'lora_' in name}
    assert len(adapters) == 2 * (12 * 4 + 1)  # and the patch embedding's proj
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapters.values())


@pytest.mark.skipif(not (shutil.which('g++') or shutil.which('clang++')),
                    reason='torch.compile needs a compiler')
def test_an_adapter_counts_in_a_compiled_model(model, x):
    del model.v.blocks[1:-1]  # compiling twelve blocks takes long
    model.v.blocks[-1].attn.qkv = Lora(model.v.blocks[-1].attn.qkv)
    expected = model(x).detach()
    compiled = torch.compile(model)
    torch.testing.assert_close(compiled(x).detach(), expected, rtol=0, atol=1e-4)
    compiled(x).sum().backward()
    assert model.v.blocks[-1].attn.qkv.up.grad.abs().sum() > 0


@pytest.mark.parametrize('name', LINEARS)
def test_pruning_a_layer_of_the_last_block_counts(model, x, name):
    before = model(x).detach()
    module = model.v.blocks[-1].get_submodule(name)
    prune.l1_unstructured(module, 'weight', amount=0.5)
    pruned = model(x).detach()
    assert (pruned - before).abs().max() > 1e-4
    prune.remove(module, 'weight')
    torch.testing.assert_close(model(x).detach(), pruned, rtol=0, atol=1e-6)


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize('name', LINEARS)
def test_a_parametrised_layer_of_the_last_block_counts(model, x, name):
    halved = copy.deepcopy(model)
    with torch.no_grad():
        halved.v.blocks[-1].get_submodule(name).weight /= 2
    parametrize.register_parametrization(model.v.blocks[-1].get_submodule(name), 'weight', Half())
    torch.testing.assert_close(model(x), halved(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize('part', ['', 'attn', 'mlp'])
def test_a_forward_that_somebody_set_on_a_module_is_called(model, x, part):
    module, called = model.v.blocks[-1].get_submodule(part), []
    forward = module.forward
    # As accelerate does.
    module.forward = lambda *args, **kwargs: called.append(1) or forward(*args, **kwargs)
    model(x)
    assert called == [1]


def test_a_transformer_whose_pass_somebody_replaced_keeps_it(model, x):
    model.v.forward_features = lambda pixels: torch.zeros(len(pixels), TOKENS, 192)
    assert torch.equal(model.forward_features(x), torch.zeros(2, 192))


def test_linear_layers_quantise_dynamically(model, x):
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantised.v.blocks[-1].attn.qkv, nn.Linear)
    error = (quantised(x) - model(x)).abs().max()
    assert 0 < error < 0.1  # logits are of the order of 1


@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
def test_an_exported_model_takes_batches_of_any_size(make_golden, dtype):
    # Enough tokens for the fast attention.
    model = make_golden(input_tdim=512, fstride=8, tstride=8)
    model.autocast_dtype = dtype
    batches = {'x': {0: torch.export.Dim('batch', min=1, max=64)}}
    with torch.no_grad():
        exported = torch.export.export(model, (torch.rand(2, 512, 32),),
                                       dynamic_shapes=batches).module()
        x = golden.spectrogram('export', 5, 512, 32)
        assert (exported(x) - model(x)).abs().max() < (1e-4 if dtype is None else 0.05)


@pytest.fixture
def fast(make_golden):
    """A model in bfloat16 with enough tokens for the fast attention of a CPU, and an input."""
    model = make_golden(input_tdim=512, fstride=8, tstride=8)
    model.autocast_dtype = torch.bfloat16
    return model, golden.spectrogram('fast', 2, 512, 32)


def test_the_fast_attention_of_a_cpu_leaves_hooked_and_replaced_modules_alone(fast):
    model, x = fast
    called = []
    for block in model.v.blocks:
        block.attn.register_forward_hook(lambda *_: called.append(1))
        block.attn.q_norm = nn.LayerNorm(64)
    with torch.no_grad():
        quick = model(x)
    assert len(called) == 12
    with_graph = model(x).detach()  # by PyTorch's own attention
    assert (quick - with_graph).abs().max() < 0.05


@pytest.mark.parametrize('kind, name', [(fast_blocks.Attention, 'forward'),
                                        (fast_blocks.Block, 'forward'),
                                        (fast_blocks.VisionTransformer, 'forward_features')])
def test_what_somebody_replaced_for_all_modules_of_a_class_is_called(fast, monkeypatch, kind, name):
    model, x = fast
    called, original = [], getattr(kind, name)

    def replacement(self, *args, **kwargs):
        called.append(1)
        return original(self, *args, **kwargs)
    monkeypatch.setattr(kind, name, replacement)
    with torch.no_grad():
        model(x)
    assert len(called) == (1 if name == 'forward_features' else 12)


def test_dropout_of_attention_drops_in_every_block(fast):
    model, x = fast
    model.train()
    for block in model.v.blocks:
        block.attn.attn_drop.p = 0.9
    with torch.no_grad(), mock.patch.object(F, 'scaled_dot_product_attention',
                                            wraps=F.scaled_dot_product_attention) as attention:
        model(x)
    assert [call.kwargs['dropout_p'] for call in attention.call_args_list] == [0.9] * 12


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_model_whose_weights_are_of_a_small_precision_runs_in_autocast(model, x, dtype):
    exact = model(x)
    model.to(dtype).autocast_dtype = dtype
    logits = model(x.to(dtype))
    assert logits.dtype == torch.float32 and (logits - exact).abs().max() < 0.1


@pytest.mark.parametrize('wrap', ['DataParallel', 'compile', 'DataParallel of compile', 'none'])
def test_a_published_file_loads_strictly_as_people_load_it(model, wrap):
    heads = {f'v.{head}.{leaf}': torch.zeros(1)
             for head in ('head', 'head_dist') for leaf in ('weight', 'bias')}
    state = {**model.state_dict(), **heads}
    fresh = ASTModel(5, 8, 8, 32, 64, imagenet_pretrain=False, model_size='tiny224', verbose=False)
    wrapped, prefix = {
        'none': lambda: (fresh, ''), 'DataParallel': lambda: (nn.DataParallel(fresh), 'module.'),
        'compile': lambda: (torch.compile(fresh), '_orig_mod.'),
        'DataParallel of compile': lambda: (nn.DataParallel(torch.compile(fresh)),
                                            'module._orig_mod.')}[wrap]()
    result = wrapped.load_state_dict({prefix + name: value for name, value in state.items()})
    assert not result.missing_keys and not result.unexpected_keys
    assert all(torch.equal(value, model.state_dict()[name])
               for name, value in fresh.state_dict().items())
    with pytest.raises(RuntimeError, match='Unexpected key.*v.head_extra.weight'):
        state['v.head_extra.weight'] = 0
        wrapped.load_state_dict({prefix + name: value for name, value in state.items()})


def test_a_head_that_somebody_gave_the_transformer_is_not_dropped(model):
    model.v.head = nn.Linear(192, 3)
    state = {**model.state_dict(), 'v.head.weight': torch.ones(3, 192)}
    model.load_state_dict(state)
    assert (model.v.head.weight == 1).all()


ALONE = '''
import torch
from ast_models import ASTModel
model = ASTModel(label_dim=5, input_fdim=32, input_tdim=64, fstride=8, tstride=8,
                 imagenet_pretrain=False, model_size='tiny224')
model.load_state_dict(torch.load('weights.pth', weights_only=True))
model.autocast_dtype = torch.bfloat16
model.eval()(torch.rand(1, 64, 32))
model.autocast_dtype = None
x = torch.load('x.pt')
torch.save(model(x), 'logits.pt')
for use in (lambda: ASTModel(imagenet_pretrain=True, model_size='tiny224'),
            lambda: model.attention(x), lambda: model(x, torch.tensor([40, 64])),
            lambda: model.keep_patches([0], [1])):
    try:
        use()
    except ImportError as error:
        print(error)
'''


def test_the_model_file_alone_builds_loads_and_runs(model, x, root, tmp_path, run_python):
    shutil.copy(root / 'src' / 'models' / 'ast_models.py', tmp_path)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    torch.save(x, tmp_path / 'x.pt')
    lines = run_python('-c', ALONE, cwd=tmp_path).splitlines()
    for line, name in zip(lines, ('starts', 'inside', 'padding', 'patchout'), strict=True):
        assert line == (f'{name}.py is not beside ast_models.py: copy the whole folder src/models. '
                        f'Alone, this file builds a DeiT with imagenet_pretrain=False, loads a '
                        f'state dict and runs')
    torch.testing.assert_close(torch.load(tmp_path / 'logits.pt'), model(x), rtol=0, atol=1e-6)


def test_a_pickled_model_computes_the_same(model, x):
    model.keep_patches([0, 2], [1, 3])
    again = pickle.loads(pickle.dumps(model))
    for training in (False, True):
        assert torch.equal(again.train(training)(x), model.train(training)(x))


@pytest.mark.parametrize('frames, fits', [(1015, False), (1016, True), (1020, True), (1025, True),
                                          (1026, False)])
def test_an_input_with_the_same_patch_grid_runs(make_tiny, frames, fits):
    model = make_tiny(input_tdim=1024, fstride=16, tstride=10)
    x = golden.spectrogram('frames', 1, frames, 32)
    if fits:
        start = model(x[:, :1016])
        torch.testing.assert_close(model(x), start, rtol=0, atol=1e-6)  # the rest fills no patch
    else:
        with pytest.raises(ValueError, match=f'1024 frames.*{frames}'):
            model(x)
