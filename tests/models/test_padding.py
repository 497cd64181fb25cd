"""Padding that is not heard: a clip in a batch of longer ones has the logits that it has alone."""
import copy

import pytest
import torch
from torch import nn

from models import ASTModel
from models.ast_models import Backbone
from models.backbones import AUDIO_BACKBONES, EAT
from tiny_vits import NAMES

SETTINGS = {'label_dim': 5, 'fstride': 10, 'tstride': 10, 'input_fdim': 48, 'input_tdim': 96,
            'imagenet_pretrain': False, 'verbose': False}  # 4 rows x 9 columns of 16 x 16 patches
LENGTHS = torch.tensor([96, 41, 40, 1])  # frames
COLUMNS = [9, 5, 4, 1]  # of patches that begin in those: 41 frames reach into the fifth


@pytest.fixture(params=[*NAMES, 'tiny224', 'tiny_eat'])
def model(request, monkeypatch):
    """A small model on a ViT of each kind; all its weights are random and not small."""
    monkeypatch.setitem(AUDIO_BACKBONES, 'tiny_eat', Backbone('tiny_vit_one_token', options=EAT))
    return make(model_size=request.param)


def make(**settings):
    torch.manual_seed(1)
    model = ASTModel(**{**SETTINGS, **settings}).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model


@pytest.fixture
def x():
    """A batch of four clips; what is beyond their lengths is padding, and loud."""
    return torch.randn(4, 96, 48, generator=torch.Generator().manual_seed(2))


def run_alone(model, clip, columns):
    """Return logits, embedding and patches of a clip (frames, bins), given its real patches alone.

    timm's blocks get no mask, and no token of another patch.
    """
    v, prefix = model.v, model.v.num_prefix_tokens
    rows, all_columns = model.grid
    tokens = v._pos_embed(v.patch_embed(clip.T[None, None]))
    patches = tokens[:, prefix:].unflatten(1, (rows, all_columns))[:, :, :columns].flatten(1, 2)
    tokens = v.norm_pre(torch.cat([tokens[:, :prefix], patches], dim=1))
    for block in v.blocks:
        tokens = block(tokens)
    tokens = v.norm(tokens)
    count = model.num_class_tokens
    embedding = (tokens[:, :count] if count else tokens[:, prefix:]).mean(dim=1)
    return model.mlp_head(embedding)[0], embedding[0], tokens[0, prefix:].unflatten(
        0, (rows, columns))


def assert_close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@torch.no_grad()
def test_a_clip_in_a_mixed_batch_has_the_logits_that_it_has_alone(model, x):
    logits, embeddings = model(x, LENGTHS), model.forward_features(x, LENGTHS)
    over_time = model.frame_features(x, LENGTHS)
    for i, columns in enumerate(COLUMNS):
        alone, embedding, patches = run_alone(model, x[i], columns)
        assert_close(logits[i], alone)
        assert_close(embeddings[i], embedding)
        assert_close(over_time[i, :columns], patches.mean(dim=0))
        assert not over_time[i, columns:].any()
    assert_close(logits[0], model(x)[0])  # it has no padding
    assert (logits[1:] - model(x)[1:]).abs().max() > 1e-3


@torch.no_grad()
def test_the_input_may_end_with_the_clip(x):
    model = make(model_size='tiny224')
    shorter = make(model_size='tiny224', input_tdim=56)  # 5 columns
    state = copy.deepcopy(model.state_dict())
    patches = state['v.pos_embed'][:, 2:].unflatten(1, model.grid)[:, :, :5].flatten(1, 2)
    state['v.pos_embed'] = torch.cat([state['v.pos_embed'][:, :2], patches], dim=1)
    shorter.load_state_dict(state)
    assert_close(model(x[1:2], LENGTHS[1:2]), shorter(x[1:2, :56]))


@torch.no_grad()
def test_what_is_in_the_padding_does_not_matter(model, x):
    louder = x.clone()
    for clip, columns in zip(louder, COLUMNS):
        clip[(columns - 1) * 10 + 16:] = 100  # what the last real patch does not reach
    assert_close(model(louder, LENGTHS), model(x, LENGTHS), atol=0)


@torch.no_grad()
def test_nobody_attends_to_padding(model, x):
    prefix, (rows, all_columns) = model.v.num_prefix_tokens, model.grid
    attention = model.attention(x, LENGTHS)
    for row in attention:
        assert_close(row.sum(dim=-1), torch.ones(row.shape[:-1]))
        for i, columns in enumerate(COLUMNS):
            padding = row[i, ..., prefix:].unflatten(-1, (rows, all_columns))[..., columns:]
            assert not padding.any()
    maps = model.attention_maps(x, LENGTHS)
    assert not maps[-1][0][1, ..., 5:].any() and maps[-1][0][1, ..., :5].all()
    assert_close(torch.stack([row[0] for row in attention]),
                 torch.stack([row[0] for row in model.attention(x[:1])]))


@torch.no_grad()
def test_all_ways_through_the_blocks_hear_the_same(model, x, monkeypatch):
    expected = model(x, LENGTHS)
    handle = model.v.blocks.register_forward_hook(lambda *_: None)  # then timm's own pass runs
    assert_close(model(x, LENGTHS), expected)
    handle.remove()
    for block in model.v.blocks:
        block.attn.fused_attn = False
    assert_close(model(x, LENGTHS), expected)


def test_gradient_checkpointing_and_compilation_change_nothing(x):
    model = make(model_size='tiny_vit_distilled')
    expected = model(x, LENGTHS)
    gradient = torch.autograd.grad(expected.sum(), model.v.pos_embed)[0]
    assert not gradient[0, 2:].unflatten(0, model.grid)[:, -1].eq(0).all()  # of the whole clip
    model.v.set_grad_checkpointing(True)
    again = model(x, LENGTHS)
    assert_close(again, expected)
    assert_close(torch.autograd.grad(again.sum(), model.v.pos_embed)[0], gradient)
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    assert_close(compiled(x, LENGTHS), expected)


@torch.no_grad()
@pytest.mark.parametrize('tokens', ['few', 'many'])
def test_in_bfloat16_padding_is_not_heard_either(tokens, x):
    frames = 96 if tokens == 'few' else 600  # 240 tokens and more attend head by head
    model = make(model_size='tiny_vit_distilled', input_tdim=frames)
    x = nn.functional.pad(x, (0, 0, 0, frames - 96), value=3)
    expected = model(x, LENGTHS)
    model.autocast_dtype = torch.bfloat16
    logits = model(x, LENGTHS)
    assert logits.isfinite().all()
    assert_close(logits, expected, atol=0.1)
    louder = x.clone()
    louder[:, 96:] *= 30
    if tokens == 'many':
        assert_close(model(louder, LENGTHS), logits, atol=0.05)
    model.autocast_dtype = None
    with torch.autocast('cpu', dtype=torch.bfloat16):  # the caller's own
        assert_close(model(x, LENGTHS).float(), expected, atol=0.1)


@torch.no_grad()
def test_patchout_leaves_out_real_patches_and_padding_alike(model, x):
    rows, columns = [0, 2, 3], [1, 2, 3, 6]
    model.keep_patches(rows, columns)
    model.train()
    logits = model(x, LENGTHS)
    prefix = model.v.num_prefix_tokens
    for i, heard in enumerate([[1, 2, 3, 6], [1, 2, 3], [1, 2, 3], columns]):
        # The last clip has only the column 0, which is left out: it hears all that is left.
        model.keep_patches(rows, heard)
        assert_close(logits[i], model(x[i:i + 1])[0])
    assert model.v.patch_drop(torch.zeros(1, prefix + 36, 1)).shape[1] == prefix + 12


@torch.no_grad()
def test_a_clip_has_at_least_one_column_of_patches(model, x):
    assert_close(model(x, torch.zeros(4, dtype=torch.int64)), model(x, torch.ones(4).long()))
