"""Padding that an ASTModel does not hear, if it is told how long each clip is."""
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .ast_models import ASTModel


def find_heard_tokens(model: 'ASTModel', x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return which tokens others attend to, (B, tokens).

    A patch is heard if it begins before the real frames end. Class tokens and registers always are.

    Args:
        x: spectrograms (B, frames, mel bins), on the device of the result.
        lengths: real frames (B,).
    """
    f, t = model.grid
    starts = torch.arange(t, device=x.device) * model.config.tstride
    columns = starts < lengths.to(x.device).clamp(min=1)[:, None]  # (B, t)
    patches = columns.repeat(1, f)  # (B, f * t), frequency-major
    prefix = patches.new_ones(len(patches), model.v.num_prefix_tokens)
    tokens = torch.cat([prefix, patches], dim=1)
    # In training, Patchout leaves out some patches: patch_drop takes the same ones out here.
    heard = model.v.patch_drop(tokens.unsqueeze(2)).squeeze(2)  # (B, tokens)
    # Patchout may leave no real patch of a short clip. Then the clip hears what is left.
    heard[:, prefix.shape[1]:] |= ~heard[:, prefix.shape[1]:].any(dim=1, keepdim=True)
    return heard


def make_mask(heard: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what timm adds to the scores of attention, (B, 1, 1, tokens): 0 or -inf.

    Args:
        heard: see find_heard_tokens.
        dtype: of the scores. Fused attention wants a mask of the same.
    """
    mask = torch.zeros(heard.shape, dtype=dtype, device=heard.device)
    return mask.masked_fill(~heard, -torch.inf)[:, None, None]


def masked_mean(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the mean (..., dim) of those values (..., n, dim) that are chosen (..., n)."""
    weights = chosen.unsqueeze(-1).to(values.dtype)
    return (values * weights).sum(dim=-2) / weights.sum(dim=-2)
