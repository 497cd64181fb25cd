"""ASTModel: the Audio Spectrogram Transformer, a vision transformer that reads spectrograms.

Yuan Gong, Yu-An Chung, James Glass: AST: Audio Spectrogram Transformer, Interspeech 2021,
arXiv:2104.01778. This file is section 2.1, the architecture; pretrained.py is section 2.2.

    spectrogram (batch, frames, mel bins)
     -> overlapping patches of 16 x 16, each projected to a vector    v.patch_embed
     -> [CLS] and [DIST] in front, positional embedding added         v.cls_token, v.dist_token,
                                                                      v.pos_embed
     -> transformer                                                   v.blocks, v.norm
     -> mean of [CLS] and [DIST]                                      forward_features
     -> layer norm and linear layer: logits (batch, classes)          mlp_head

`v` is a DeiT of timm, or another ViT that backbones.py finds by its name. This file also works
alone: it then builds a DeiT with random weights, loads a state dict and runs.
"""
import contextlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

try:
    from .fast_blocks import run_transformer
    from .padding import find_heard_tokens, make_mask, masked_mean
    from .summary import log_summary
except ImportError as error:  # if this file was copied alone
    beside = (f'{__package__}.{name}' for name in ('fast_blocks', 'padding', 'summary'))
    if error.name not in (None, *beside):
        raise

    def run_transformer(v: VisionTransformer, x: torch.Tensor, wanted: int | None,
                        mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tokens that timm's own pass computes."""
        return v.forward_features(x)

    def find_heard_tokens(model: 'ASTModel', x: torch.Tensor, lengths: torch.Tensor
                          ) -> torch.Tensor:
        """Raise ImportError: padding.py is not there."""
        return import_beside('padding').find_heard_tokens(model, x, lengths)

    def log_summary(model: 'ASTModel', start_name: str) -> None:
        """Log nothing."""

PATCH_SIZE = 16  # of a DeiT: mel bins and frames
DEIT = {  # model_size -> timm's name
    'tiny224': 'deit_tiny_distilled_patch16_224',
    'small224': 'deit_small_distilled_patch16_224',
    'base224': 'deit_base_distilled_patch16_224',
    'base384': 'deit_base_distilled_patch16_384',
}
# What the head classifies: the mean of the class tokens, or the mean of the patches.
CLASS_TOKENS, PATCHES = 'class tokens', 'patches'
POOLINGS = (CLASS_TOKENS, PATCHES)
MINIMUMS = {'label_dim': 1, 'fstride': 1, 'tstride': 1, 'input_fdim': 1, 'input_tdim': 1}
INIT_STD = 0.02  # of the truncated normal distribution that [CLS] starts from
# Two classifiers of DeiT that AST does not use. The published checkpoints still hold them.
UNUSED_HEADS = ('v.head.weight', 'v.head.bias', 'v.head_dist.weight', 'v.head_dist.bias')

Grid = tuple[int, int]  # patches along (frequency, time)


def patch_grid(fstride: int, tstride: int, input_fdim: int, input_tdim: int,
               patch_size: tuple[int, int] = (PATCH_SIZE, PATCH_SIZE)) -> Grid:
    """Return how many patches fit along (frequency, time), given mel bins and frames."""
    height, width = patch_size
    return (input_fdim - height) // fstride + 1, (input_tdim - width) // tstride + 1


@dataclass(frozen=True)
class Backbone:
    """A ViT of timm, and how an ASTModel uses it.

    Args:
        timm_name: its name in timm.
        patch_size: mel bins and frames of a patch.
        pooling: what the head classifies, one of POOLINGS.
        options: further arguments of timm.create_model.
        is_audio_model: whether it is for the weights of an audio model, not for those of images.
        crops_to_beginning: whether a shorter input has the positions of the beginning, not those of
            the centre.
    """
    timm_name: str
    patch_size: tuple[int, int] = (PATCH_SIZE, PATCH_SIZE)
    pooling: str = CLASS_TOKENS
    options: Mapping[str, Any] = field(default_factory=dict)
    is_audio_model: bool = False
    crops_to_beginning: bool = False


def find_backbone(model_size: str) -> Backbone:
    """Return the backbone of a model size.

    Raises:
        ValueError: if there is no such size, or a model of that name cannot read spectrograms.
    """
    if model_size in DEIT:
        return Backbone(DEIT[model_size])
    return import_beside('backbones').find_backbone(model_size)


@dataclass(frozen=True)
class ModelConfig:
    """The settings of an ASTModel.

    Args:
        model_size: a key of DEIT or of backbones.AUDIO_BACKBONES, or the name of a ViT of timm.
        label_dim: number of classes.
        fstride, tstride: distance between neighbouring patches, in mel bins and in frames.
        input_fdim, input_tdim: size of the input, in mel bins and in frames.

    Raises:
        ValueError: if a setting is out of range.
    """
    model_size: str
    label_dim: int
    fstride: int
    tstride: int
    input_fdim: int
    input_tdim: int

    def __post_init__(self) -> None:
        height, width = self.backbone.patch_size
        for name, minimum in {**MINIMUMS, 'input_fdim': height, 'input_tdim': width}.items():
            value = getattr(self, name)
            if value < minimum:
                reason = ', the size of a patch' if name.startswith('input') else ''
                raise ValueError(f'{name} must be at least {minimum}{reason}, got {value}')

    @property
    def backbone(self) -> Backbone:
        """The ViT that model_size names."""
        return find_backbone(self.model_size)

    @property
    def grid(self) -> Grid:
        """Number of patches along (frequency, time)."""
        return patch_grid(self.fstride, self.tstride, self.input_fdim, self.input_tdim,
                          self.backbone.patch_size)


def build_transformer(config: ModelConfig) -> VisionTransformer:
    """Build a ViT of timm for spectrograms: one channel, overlapping patches, no classifier.

    Its weights are random.
    """
    backbone = config.backbone
    f, t = config.grid
    height, width = backbone.patch_size
    # timm sizes the positional embedding for patches side by side: ask for an image with room for
    # as many of those, then let them overlap.
    v = timm.create_model(backbone.timm_name, pretrained=False, num_classes=0, in_chans=1,
                          img_size=(f * height, t * width), **backbone.options)
    assert isinstance(v, VisionTransformer)
    v.patch_embed.proj.stride = (config.fstride, config.tstride)
    v.patch_embed.img_size = None  # ASTModel checks the size of the input

    if v.cls_token is not None:
        # timm 0.4.5, and so the published code, starts [CLS] like this. timm 1.x starts it at 1e-6,
        # which costs a small model from scratch 12 points of accuracy in its first epochs.
        nn.init.trunc_normal_(v.cls_token, std=INIT_STD)
    return v


def build_head(v: VisionTransformer, label_dim: int) -> nn.Sequential:
    """Build the classifier of embeddings (batch, dim): a normalisation and a linear layer.

    Some ViTs normalise after the pooling instead of before it. Their last normalisation becomes
    that of the classifier.
    """
    norm: nn.Module = v.fc_norm
    if isinstance(norm, nn.Identity):
        norm = nn.LayerNorm(v.embed_dim)
    v.fc_norm = nn.Identity()
    return nn.Sequential(norm, nn.Linear(v.embed_dim, label_dim))


def count_class_tokens(v: VisionTransformer, pooling: str) -> int:
    """Return how many class tokens the head classifies; 0 if it classifies the patches.

    Class tokens are the first of the prefix tokens: [CLS], [DIST]. Registers, if there are any,
    come after them, and the head does not see them.
    """
    return v.num_prefix_tokens - v.num_reg_tokens if pooling == CLASS_TOKENS else 0


class ASTModel(nn.Module):
    """Audio Spectrogram Transformer: spectrograms (batch, frames, mel bins) to logits.

    The input is a log mel filterbank, normalised to about zero mean and 0.5 standard deviation.
    Methods that take x and lengths take them as forward does. Set `autocast_dtype` (torch.bfloat16,
    torch.float16) for forward passes in mixed precision.

    Args:
        label_dim: number of classes.
        fstride, tstride: distance between neighbouring patches, in mel bins and in frames.
        input_fdim, input_tdim: size of the input, in mel bins and in frames; at least one patch.
        imagenet_pretrain: start from the ImageNet weights of the ViT.
        audioset_pretrain: start from the AudioSet checkpoint of 0.4593 mAP, with a new head.
            Needs base384, and imagenet_pretrain=True: that checkpoint began there.
        model_size: a key of DEIT or of backbones.AUDIO_BACKBONES, or the name of a ViT of timm.
        verbose: log a summary.
        start: a file or the name of weights to start from, instead of imagenet_pretrain and
            audioset_pretrain. It decides the model_size, too; see starts.find_start.

    Raises:
        ValueError: if settings are out of range or contradict each other.
        WeightsError: if pretrained weights are missing or do not fit.
    """

    def __init__(self, label_dim: int = 527, fstride: int = 10, tstride: int = 10,
                 input_fdim: int = 128, input_tdim: int = 1024, imagenet_pretrain: bool = True,
                 audioset_pretrain: bool = False, model_size: str = 'base384',
                 verbose: bool = True, start: str | Path | None = None) -> None:
        super().__init__()
        source = None
        if start is not None:
            settings = {'fstride': fstride, 'tstride': tstride, 'input_fdim': input_fdim,
                        'input_tdim': input_tdim}
            source = import_beside('starts').find_start(start, model_size, settings)
            model_size = source.model_size
        self.config = ModelConfig(model_size, label_dim, fstride, tstride, input_fdim, input_tdim)
        if source is None and (imagenet_pretrain or audioset_pretrain):
            source = import_beside('starts').make_published_start(
                self.config, imagenet_pretrain, audioset_pretrain)
        self.patch_size, self.grid = self.config.backbone.patch_size, self.config.grid
        self.autocast_dtype: torch.dtype | None = None

        self.v = build_transformer(self.config)
        self.num_class_tokens = count_class_tokens(self.v, self.config.backbone.pooling)
        self.mlp_head = build_head(self.v, label_dim)
        self.register_load_state_dict_pre_hook(drop_unused_heads)

        self.start_name = 'random'  # of the weights that it starts from
        self.start_rate: int | None = None  # in Hz, of the sounds that those weights were made for
        if source is not None:
            import_beside('pretrained').load_start(self, source)
            self.start_name, self.start_rate = source.name, source.sample_rate
        if verbose:
            log_summary(self, self.start_name)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Classify spectrograms.

        Args:
            x: spectrograms (batch, frames, mel bins).
            lengths: how many frames of each are real (batch,). Patches that begin after the last
                real frame are masked: no token attends to them, and a mean of patches leaves them
                out. So the logits of a clip do not depend on how far it is padded. Without
                lengths, the padding is heard, as in the published models.

        Returns:
            Logits (batch, label_dim).
        """
        return self.classify(self.forward_features(x, lengths))

    def forward_features(self, x: torch.Tensor, lengths: torch.Tensor | None = None
                         ) -> torch.Tensor:
        """Return the embedding that the head classifies, (batch, dim).

        It is the mean of [CLS] and [DIST]. In other ViTs, it is [CLS] or the mean of the patches.
        """
        heard = mask = None
        if lengths is not None:
            heard = find_heard_tokens(self, x, lengths)  # (B, tokens)
            mask = make_mask(heard, self.autocast_dtype or x.dtype)
        count, prefix = self.num_class_tokens, self.v.num_prefix_tokens
        with self.autocast(x):
            tokens = run_transformer(self.v, self.as_image(x), wanted=count or None, mask=mask)
        if count:
            return self.leave_autocast(tokens[:, :count]).mean(dim=1)
        patches = self.leave_autocast(tokens[:, prefix:])
        return patches.mean(dim=1) if heard is None else masked_mean(patches, heard[:, prefix:])

    def as_image(self, x: torch.Tensor) -> torch.Tensor:
        """Turn spectrograms (B, frames, mel bins) into images (B, 1, mel bins, frames).

        Raises ValueError if their patches are not a grid of the model's size.
        """
        config = self.config
        bins, frames = config.input_fdim, config.input_tdim
        if (x.dim() != 3 or x.shape[2] != bins or
                patch_grid(config.fstride, config.tstride, bins, x.shape[1],
                           self.patch_size) != self.grid):
            raise ValueError(f'ASTModel expects (batch, {frames} frames, {bins} mel bins), got '
                             f'{tuple(x.shape)}; pad or cut the input, or build the model with '
                             f'that input_tdim and input_fdim')
        return x.unsqueeze(1).transpose(2, 3)

    def classify(self, embedding: torch.Tensor) -> torch.Tensor:
        """Classify embeddings (batch, dim). Return logits (batch, label_dim)."""
        if self.autocast_dtype is None:
            return self.mlp_head(embedding)
        # In mixed precision, too, the head computes in the precision of its weights, float32:
        # bfloat16 has so few values that scores of different clips would tie, which costs mAP.
        return self.mlp_head(embedding.to(self._head_dtype())).float()

    def _head_dtype(self) -> torch.dtype:
        """Return the precision of the head's weights, float32 if it has none.

        It looks at the weight itself: in replicas of nn.DataParallel, parameters() yields nothing.
        """
        parts = [*self.mlp_head.children(), self.mlp_head]
        return getattr(getattr(parts[0], 'weight', None), 'dtype', torch.float32)

    def autocast(self, x: torch.Tensor) -> contextlib.AbstractContextManager:
        """Return the context for a forward pass: mixed precision, if it is wanted.

        The model enters it itself, as the threads of nn.DataParallel do not inherit the dtype.
        """
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(x.device.type, dtype=self.autocast_dtype)

    def leave_autocast(self, result: torch.Tensor) -> torch.Tensor:
        """Return what was computed in mixed precision as float32."""
        return result if self.autocast_dtype is None else result.float()

    # What happens inside: inside.py says more.

    def frame_features(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings over time (batch, t, dim): patches, averaged over frequency."""
        return import_beside('inside').frame_features(self, x, lengths)

    def attention(self, x: torch.Tensor, lengths: torch.Tensor | None = None
                  ) -> list[torch.Tensor]:
        """Return the attention of the class tokens to all tokens, for each block.

        Each tensor is (batch, heads, class tokens, tokens).
        """
        return import_beside('inside').attention(self, x, lengths)

    def attention_maps(self, x: torch.Tensor, lengths: torch.Tensor | None = None
                       ) -> list[tuple[torch.Tensor, ...]]:
        """Return the attention of the class tokens to the patches, for each block.

        For every class token, there is one map (batch, heads, f, t).
        """
        return import_beside('inside').attention_maps(self, x, lengths)

    def keep_patches(self, rows: Sequence[int], columns: Sequence[int]) -> None:
        """Keep only these rows and columns of patches in training (Patchout)."""
        import_beside('patchout').keep_patches(self.v, self.grid, rows, columns)

    # timm.optim asks a model for these two.

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Tell timm.optim.param_groups_layer_decay the layers: those of `v`, then the head."""
        def inside_v(pattern: str) -> str:
            return r'v\.(?:' + pattern.replace('^', '') + ')'

        layers: dict[str, Any] = {}
        for name, patterns in self.v.group_matcher(coarse).items():
            if isinstance(patterns, str):
                # What comes before the blocks; timm 1.0.22 forgets two of its parts.
                layers[name] = inside_v(f'{patterns}|norm_pre|reg_token')
            else:
                layers[name] = [(inside_v(pattern), suffix) for pattern, suffix in patterns]
        return layers

    def no_weight_decay(self) -> set[str]:
        """Return the names of position embeddings and tokens, which weight decay leaves out."""
        return {f'v.{name}' for name in (*self.v.no_weight_decay(), 'reg_token')}


def drop_unused_heads(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take DeiT's two classifiers out of a state dict that is about to be loaded.

    This is a hook of load_state_dict: published checkpoints load strictly. The prefix stands before
    the model's names in the state dict.
    """
    own = model.state_dict()
    for name in UNUSED_HEADS:
        if name not in own:  # somebody may have given v a head
            state.pop(prefix + name, None)


def import_beside(name: str) -> ModuleType:
    """Import a file of this folder that a DeiT with random weights does not need."""
    try:
        return importlib.import_module(f'.{name}', __package__)
    except (ImportError, TypeError) as error:  # TypeError: this file is in no package
        if getattr(error, 'name', None) not in (None, __package__, f'{__package__}.{name}'):
            raise
        raise ImportError(f'{name}.py is not beside ast_models.py: copy the whole folder '
                          f'src/models. Alone, this file builds a DeiT with '
                          f'imagenet_pretrain=False, loads a state dict and runs') from error
