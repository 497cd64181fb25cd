"""Faster passes through the blocks of a timm ViT, for ASTModel's own forward pass.

They return what timm's own pass returns, up to rounding. They call the parts of a block instead of
the block itself. So the block and its attention must be timm's own: not replaced, wrapped or
hooked. To leave out tokens, every part of the last block must be timm's own, too: not quantised or
parametrised, either. Otherwise the block itself is called, and whoever hooks or replaces a module
sees every token.
"""
from functools import partial
from typing import Any, TypeGuard

import torch
from timm.layers import DropPath, LayerNorm, Mlp
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Attention, Block, LayerScale, VisionTransformer
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as module_globals

MIN_TOKENS_BY_HEAD = 200  # with fewer, PyTorch's fused attention is as fast
# Modules that compute every token by itself, so that the last block may leave some out.
TOKENWISE = (nn.Linear, nn.LayerNorm, LayerNorm, nn.GELU, nn.Dropout, nn.Identity, Mlp, DropPath,
             LayerScale)
# The forward method of each class as it was imported, to notice if somebody replaces it.
FORWARDS: dict[type, Any] = {
    kind: kind.forward for kind in (*TOKENWISE, nn.Sequential, Attention, Block)}
FORWARD_FEATURES = VisionTransformer.forward_features
HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def run_transformer(v: VisionTransformer, x: torch.Tensor, wanted: int | None,
                    mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return v.forward_features(x), or only its first tokens if the others are not needed.

    Args:
        v: a timm ViT.
        x: its input, (B, channels, height, width).
        wanted: how many of the first tokens the caller uses; None for all.
        mask: added to the scores of attention, (B, 1, 1, tokens): 0, or -inf for a token that no
            other attends to; None for no mask.

    Returns:
        (B, tokens, dim), with at least the wanted tokens.
    """
    if not can_call_parts(v):
        return v.forward_features(x, **mask_argument(mask))

    x = v.norm_pre(v.patch_drop(v._pos_embed(v.patch_embed(x))))  # (B, tokens, dim)
    blocks = [partial(run_block, block, mask=mask) for block in v.blocks]
    last = v.blocks[-1]
    if wanted is not None and has_tokenwise_end(last, v.norm):
        blocks[-1] = partial(run_block_for_first_tokens, last, wanted, mask=mask)
    if v.grad_checkpointing:
        x = checkpoint_seq(blocks, x)
    else:
        for run in blocks:
            x = run(x)
    return v.norm(x)


def mask_argument(mask: torch.Tensor | None) -> dict[str, Any]:
    """Return the mask as a keyword argument for timm: {} if it is None.

    Not every block takes such an argument, so it is passed only if there is a mask.
    """
    return {} if mask is None else {'attn_mask': mask}


def is_plain(module: nn.Module, *types: type) -> bool:
    """Return whether a module is exactly of one of these types, unhooked, with its own forward."""
    kind = type(module)
    return (kind in types and kind.forward is FORWARDS[kind] and 'forward' not in module.__dict__
            and not any(getattr(module, name) for name in HOOKS))


def can_call_parts(v: VisionTransformer) -> bool:
    """Return whether run_transformer may call the parts of v instead of v.forward_features.

    That method must be timm's own, v.blocks a plain sequence, and no hook set for all modules.
    """
    is_watched = any(getattr(module_globals, f'_global{name}') for name in HOOKS)  # by profilers
    is_timms = type(v).forward_features is FORWARD_FEATURES and 'forward_features' not in v.__dict__
    return is_timms and not is_watched and is_plain(v.blocks, nn.Sequential)


def has_tokenwise_end(block: nn.Module, norm: nn.Module) -> TypeGuard[Block]:
    """Return whether all of the last block, and the norm after it, is timm's own."""
    attn: Any = getattr(block, 'attn', None)
    if not (is_plain(block, Block) and has_plain_attention(attn) and is_plain(norm, *TOKENWISE)):
        return False

    others = [module for child in block.children() if child is not attn
              for module in child.modules()]
    return all(is_plain(module, *TOKENWISE) for module in (*others, *attn.children()))


def has_plain_attention(attn: Any) -> bool:
    """Return whether a module computes just softmax(q k^T / sqrt(d)) v, as timm does."""
    additions = (getattr(attn, name, None) for name in ('q_norm', 'k_norm', 'norm', 'gate'))
    return (is_plain(attn, Attention) and attn.fused_attn
            and all(one is None or is_plain(one, nn.Identity) for one in additions))


def run_block_for_first_tokens(block: Block, wanted: int, x: torch.Tensor,
                               mask: torch.Tensor | None = None) -> torch.Tensor:
    """Compute the first tokens of a block; of the others, only keys and values are needed.

    As the last of twelve blocks, this saves 7 % of all work.

    Args:
        x: (B, tokens, dim).
        mask: as in run_transformer.

    Returns:
        (B, wanted, dim).
    """
    attn: Any = block.attn
    queries, keys, values = split_heads(attn, attn.qkv(block.norm1(x)))  # (B, heads, tokens, d)
    heads = F.scaled_dot_product_attention(queries[:, :, :wanted], keys, values, attn_mask=mask,
                                           dropout_p=attn.attn_drop.p if attn.training else 0.0)
    return add_branches(block, x[:, :wanted], join_heads(attn, heads))


def run_block(block: nn.Module, x: torch.Tensor, mask: torch.Tensor | None = None
              ) -> torch.Tensor:
    """Return block(x) of tokens x (B, tokens, dim).

    On a CPU in bfloat16, attention is computed for one head after the other: the scores of one head
    stay in the processor's cache. At 1214 tokens this is 2.5 times as fast as PyTorch's fused
    kernel. The mask is that of run_transformer.
    """
    if not can_attend_by_head(block, x):
        return block(x, **mask_argument(mask))

    attn: Any = block.attn
    parts = split_heads(attn, attn.qkv(block.norm1(x)))  # (3, B, heads, tokens, d)
    queries, keys, values = parts.flatten(1, 2)  # (B * heads, tokens, d) each
    with torch.autocast('cpu', enabled=False):
        if mask is None:
            heads = [(attn.scale * query @ key.T).softmax(dim=-1) @ value  # (tokens, d)
                     for query, key, value in zip(queries, keys, values, strict=True)]
        else:
            # If the caller has entered autocast, the mask may be float32, unlike the scores.
            mask = mask[:, 0].to(queries.dtype)  # (B, 1, tokens)
            masks = mask.repeat_interleave(attn.num_heads, dim=0)  # (B * heads, 1, tokens)
            heads = [(attn.scale * query @ key.T + its_mask).softmax(dim=-1) @ value
                     for query, key, value, its_mask in zip(queries, keys, values, masks,
                                                            strict=True)]
    joined = torch.stack(heads).unflatten(0, (len(x), attn.num_heads))  # (B, heads, tokens, d)
    return add_branches(block, x, join_heads(attn, joined))


def can_attend_by_head(block: nn.Module, x: torch.Tensor) -> TypeGuard[Block]:
    """Return whether attention for one head after the other is possible and faster, for input x.

    It is only for passes without gradients: a backward pass would need the scores of all heads. It
    loops over the batch, so it is not for passes that somebody exports or compiles.
    """
    in_bf16 = (torch.is_autocast_enabled('cpu')
               and torch.get_autocast_dtype('cpu') == torch.bfloat16)
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if is_traced or not in_bf16 or x.device.type != 'cpu' or torch.is_grad_enabled():
        return False
    if x.shape[1] < MIN_TOKENS_BY_HEAD:
        return False
    if not is_plain(block, Block):
        return False
    attn: Any = block.attn
    return has_plain_attention(attn) and not (attn.training and attn.attn_drop.p)


def split_heads(attn: Attention, qkv: torch.Tensor) -> torch.Tensor:
    """Split (B, tokens, 3 * dim) into queries, keys and values: (3, B, heads, tokens, d)."""
    return qkv.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)


def join_heads(attn: Attention, heads: torch.Tensor) -> torch.Tensor:
    """Join (B, heads, tokens, d) to (B, tokens, dim) and project it."""
    return attn.proj_drop(attn.proj(heads.transpose(1, 2).flatten(2)))


def add_branches(block: Block, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Add a block's attention, already computed, and its MLP to the tokens x (B, tokens, dim)."""
    x = x + block.drop_path1(block.ls1(attended))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
