"""The ViTs besides DeiT that an ASTModel can wrap: those of timm, and those of audio models."""
import difflib
import functools
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention, Block, VisionTransformer

from .ast_models import CLASS_TOKENS, DEIT, PATCHES, Backbone

# The files of timm that define plain ViTs.
TIMM_FILES = ('vision_transformer', 'deit')


class PostNormBlock(Block):
    """A block that normalises after each sum, as in EAT and data2vec 2.0: x = norm(x + f(x))."""

    def forward(self, x: torch.Tensor, *mask: Any, **named_mask: Any) -> torch.Tensor:
        """Return (B, tokens, dim) of tokens x (B, tokens, dim)."""
        x = self.norm1(x + self.drop_path1(self.ls1(self.attn(x, *mask, **named_mask))))
        return self.norm2(x + self.drop_path2(self.ls2(self.mlp(x))))


def embed_patches_with_bias(**arguments: Any) -> PatchEmbed:
    """Build timm's PatchEmbed with a bias, which timm leaves out if a normalisation follows."""
    return PatchEmbed(**{**arguments, 'bias': True})


# EAT (Chen et al., IJCAI 2024, arXiv:2401.03497) normalises before the blocks. After them, only the
# classifier does. The class token has no position.
EAT = {'block_fn': PostNormBlock, 'embed_layer': embed_patches_with_bias, 'pre_norm': True,
       'no_embed_class': True, 'fc_norm': True}
FRAMES = (128, 2)  # patches of SSAST's frame models: all mel bins of two frames
AUDIO_BACKBONES = {
    # AudioMAE (Huang et al., NeurIPS 2022, arXiv:2207.06405).
    'audiomae_base': Backbone('vit_base_patch16_224', pooling=PATCHES,
                              options={'global_pool': 'avg'}, is_audio_model=True,
                              crops_to_beginning=True),
    # EAT, and SSLAM (Alex et al., ICLR 2025), which has the same architecture.
    'eat_base': Backbone('vit_base_patch16_224', options=EAT, is_audio_model=True,
                         crops_to_beginning=True),
    'eat_large': Backbone('vit_large_patch16_224', options=EAT, is_audio_model=True,
                          crops_to_beginning=True),
}
for size, deit in (('tiny', 'tiny224'), ('small', 'small224'), ('base', 'base384')):
    # SSAST (Gong et al., AAAI 2022, arXiv:2110.09784), with its two kinds of patches.
    AUDIO_BACKBONES[f'ssast_{size}'] = Backbone(
        DEIT[deit], pooling=PATCHES, is_audio_model=True)
    AUDIO_BACKBONES[f'ssast_{size}_frame'] = Backbone(
        DEIT[deit], FRAMES, PATCHES, {'patch_size': FRAMES}, is_audio_model=True)


def strip_tag(name: str) -> str:
    """Return timm's name of a model without a tag, which says how weights were trained."""
    return name.partition('.')[0]


@functools.cache
def find_backbone(model_size: str) -> Backbone:
    """Return the backbone of a model size: a key of AUDIO_BACKBONES, or the name of a ViT of timm.

    A tag after timm's name (vit_base_patch16_224.mae) does not change the backbone.

    Raises:
        ValueError: if there is no such model, or if it cannot read spectrograms.
    """
    if model_size in AUDIO_BACKBONES:
        return AUDIO_BACKBONES[model_size]
    name = strip_tag(model_size)
    if not timm.is_model(name):
        known = [*DEIT, *AUDIO_BACKBONES]
        raise ValueError(f'model_size must be one of {", ".join(known)} or the name of a ViT of '
                         f'timm, such as {nearest_vit(name)}, got {model_size!r}')

    with torch.device('meta'):  # no memory, no random numbers
        model: Any = timm.create_model(name, num_classes=0)
    if problem := why_not(model):
        raise ValueError(f'{name} cannot read spectrograms here: {problem}; a ViT that can is '
                         f'{nearest_vit(name)}')

    options: dict[str, Any] = {'dynamic_img_size': False}
    if model.attn_pool is not None:  # the mean of the patches replaces pooling by attention
        options |= {'global_pool': 'avg', 'fc_norm': False}
    has_class_token = model.global_pool == 'token' and model.cls_token is not None
    height, width = model.patch_embed.patch_size
    return Backbone(name, (height, width), CLASS_TOKENS if has_class_token else PATCHES, options)


def why_not(model: torch.nn.Module) -> str | None:
    """Return why an ASTModel cannot wrap a model of timm, or None if it can."""
    if not isinstance(model, VisionTransformer):
        return (f'its class in timm is {type(model).__name__}, but only a VisionTransformer has '
                f'one learned position for each patch, which can be fitted to another grid '
                f'(others have rotary or relative positions, windows or stages)')
    if model.pos_embed is None:
        return 'it has no learned positions'
    if type(model.patch_embed) is not PatchEmbed:
        return f'its patches come from other layers ({type(model.patch_embed).__name__})'
    for block in model.blocks:
        attn = getattr(block, 'attn', None)
        if type(attn) is not Attention:
            found = type(block if attn is None else attn).__name__
            return f'its blocks compute attention in another way ({found})'
    return None


def nearest_vit(name: str) -> str:
    """Return the name of a ViT that find_backbone takes: the one that is most like this name."""
    names = [vit for file in TIMM_FILES for vit in timm.list_models('*_patch*', module=file)]
    for vit in difflib.get_close_matches(name, names, n=len(names), cutoff=0):
        with torch.device('meta'):
            model = timm.create_model(vit, num_classes=0)
        if vit != name and why_not(model) is None:
            return vit
    raise AssertionError('timm has no plain ViT')
