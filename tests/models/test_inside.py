"""What a model computes on the way to its logits: embeddings, frames, attention."""
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

import golden

SIZES = ['tiny224', 'small224', 'base224', 'base384']


@pytest.fixture
def case(make_golden):
    """A model with weights of golden.py, and an input."""
    def make(size='tiny224', **settings):
        return make_golden(model_size=size, **settings), golden.spectrogram('inside', 2, 64, 32)
    return make


def explicit_attention(model, x):
    """Return the attention (batch, heads, tokens, tokens) that timm computes without fusing it."""
    seen = []
    for block in model.v.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(
            lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(x)
    return seen


@pytest.mark.parametrize('size', SIZES)
def test_attention_is_the_softmax_that_a_model_without_fused_attention_computes(size, case):
    model, x = case(size)
    rows = model.attention(x)
    explicit = explicit_attention(model, x)
    assert len(rows) == len(explicit) == 12
    for ours, theirs in zip(rows, explicit, strict=True):
        assert torch.allclose(ours, theirs[:, :, :2], rtol=0, atol=1e-5)
        assert torch.allclose(ours.sum(dim=-1), torch.ones(()), atol=1e-5)


def test_attention_maps_are_laid_out_as_the_spectrogram(case):
    model, x = case(fstride=8, tstride=10)
    rows, maps = model.attention(x), model.attention_maps(x)
    f, t = model.grid
    assert (f, t) == (3, 5)
    for block, (cls, dist) in zip(rows, maps, strict=True):
        assert cls.shape == dist.shape == (2, model.v.blocks[0].attn.num_heads, f, t)
        assert torch.equal(cls[1, 2, 1, 3], block[1, 2, 0, 2 + 1 * t + 3])
        assert torch.equal(dist[0, 0, 2, 4], block[0, 0, 1, 2 + 2 * t + 4])


def test_forward_still_calls_the_fused_attention_once_a_block(case):
    model, x = case()
    model.attention(x)
    with mock.patch.object(F, 'scaled_dot_product_attention',
                           wraps=F.scaled_dot_product_attention) as fused:
        model(x)
    assert fused.call_count == 12


def test_the_embedding_is_what_the_head_classifies(case):
    model, x = case()
    with torch.no_grad():
        embedding = model.forward_features(x)
        assert embedding.shape == (2, 192)
        assert torch.equal(model.mlp_head(embedding), model(x))


def test_frame_features_are_the_patches_averaged_over_frequency(case):
    model, x = case(fstride=8)
    with torch.no_grad():
        frames, logits = model.frame_features(x), model(x)
        tokens = model.v.forward_features(x.unsqueeze(1).transpose(2, 3))
        assert torch.allclose(model(x), logits, atol=1e-6)
    assert frames.shape == (2, 5, 192)
    expected = torch.stack([tokens[:, [2 + row * 5 + 4 for row in range(3)]].mean(dim=1)])[0]
    assert torch.allclose(frames[:, 4], expected, atol=1e-6)


def test_in_mixed_precision_they_stay_near_the_exact_ones(case):
    model, x = case()
    exact = model.attention(x)[0]
    model.autocast_dtype = torch.bfloat16
    mixed = model.attention(x)[0]
    assert mixed.dtype == model.forward_features(x).dtype == torch.float32
    assert (mixed - exact).abs().max() < 0.05
    assert torch.allclose(mixed.sum(dim=-1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize('name', ['frame_features', 'attention_maps'])
def test_what_needs_all_patches_says_so_if_some_are_left_out(name, case):
    model, x = case(fstride=8, tstride=10)
    model.keep_patches([0, 2], [1, 3, 4])
    expected = getattr(model, name)(x)  # in eval mode, all are there
    model.train()
    with pytest.raises(ValueError, match='6 of 3 x 5 patches are there, since keep_patches .*'
                                         'call model.eval'):
        getattr(model, name)(x)
    model.eval()
    torch.testing.assert_close(getattr(model, name)(x), expected)


def test_patches_are_all_kept_in_eval_mode_and_until_somebody_asks(case):
    model, x = case(fstride=8)
    assert type(model.v.patch_drop) is torch.nn.Identity
    with torch.no_grad():
        logits = model(x)
        model.keep_patches([0], [1, 2])
        assert torch.equal(model(x), logits)
        assert not torch.equal(model.train()(x), logits)
