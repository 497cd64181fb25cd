"""Structured Patchout: in training, the transformer does not see some of the patches.

Koutini et al.: Efficient Training of Audio Transformers with Patchout, Interspeech 2022.
"""
from collections.abc import Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn


class Patchout(nn.Module):
    """Takes the place of timm's `patch_drop`. `kept` has the numbers of the patches to keep."""

    def __init__(self, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.kept: torch.Tensor | None = None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, prefix + kept, dim) of tokens (B, prefix + f * t, dim)."""
        if self.kept is None or not self.training:
            return tokens
        prefix = tokens[:, :self.num_prefix_tokens]
        patches = tokens[:, self.num_prefix_tokens:]
        return torch.cat([prefix, patches.index_select(1, self.kept.to(tokens.device))], dim=1)


def keep_patches(v: VisionTransformer, grid: tuple[int, int], rows: Sequence[int],
                 columns: Sequence[int]) -> None:
    """Keep only these rows and columns of a ViT's grid (f, t) of patches in training."""
    places = torch.as_tensor(rows)[:, None] * grid[1] + torch.as_tensor(columns)
    if not isinstance(v.patch_drop, Patchout):
        v.add_module('patch_drop', Patchout(v.num_prefix_tokens).train(v.training))
    v.patch_drop.kept = places.flatten()
