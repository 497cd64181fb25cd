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
alone, for a DeiT without pretrained weights and speed-ups.
"""
import contextlib
import importlib
import logging
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
    from .fast_blocks import forward_features
except ImportError as error:  # if this file was copied alone
    if error.name not in (None, f'{__package__}.fast_blocks'):
        raise

    def forward_features(v: VisionTransformer, x: torch.Tensor, wanted: int | None,
                         mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tokens that timm's own pass computes."""
        return v.forward_features(x, attn_mask=mask)

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

logger = logging.getLogger(__name__)


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
        has_own_start: whether it is for the weights of an audio model, not for those of images.
        keeps_beginning: whether a shorter input has the positions of the beginning, not those of
            the centre.
    """
    timm_name: str
    patch_size: tuple[int, int] = (PATCH_SIZE, PATCH_SIZE)
    pooling: str = CLASS_TOKENS
    options: Mapping[str, Any] = field(default_factory=dict)
    has_own_start: bool = False
    keeps_beginning: bool = False


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
    v.add_module('patch_drop', Patchout(v.num_prefix_tokens))  # timm drops patches here, too
    return v


def count_class_tokens(v: VisionTransformer, pooling: str) -> int:
    """Return how many class tokens the head classifies; 0 if it classifies the patches.

    Class tokens are the first of the prefix tokens: [CLS], [DIST]. Registers, if there are any,
    come after them, and the head does not see them.
    """
    return v.num_prefix_tokens - v.num_reg_tokens if pooling == CLASS_TOKENS else 0


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


class ASTModel(nn.Module):
    """Audio Spectrogram Transformer: spectrograms (batch, frames, mel bins) to logits.

    The input is a log mel filterbank, normalised to about zero mean and 0.5 standard deviation.
    Set `autocast_dtype` (torch.bfloat16, torch.float16) for forward passes in mixed precision.

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
        if source is None:
            check_pretraining(self.config, imagenet_pretrain, audioset_pretrain)
            if audioset_pretrain or imagenet_pretrain:
                source = import_beside('starts').published_start(model_size, audioset_pretrain)
        self.patch_size, self.grid = self.config.backbone.patch_size, self.config.grid
        self.autocast_dtype: torch.dtype | None = None

        self.v = build_transformer(self.config)
        self.num_class_tokens = count_class_tokens(self.v, self.config.backbone.pooling)
        self.mlp_head = build_head(self.v, label_dim)
        self.register_load_state_dict_pre_hook(drop_unused_heads)

        self.start = 'random'  # the name of the weights that it starts from
        self.start_rate: int | None = None  # in Hz, of the sounds that those weights were made for
        if source is not None:
            import_beside('pretrained').load_start(self, source)
            self.start = source.name
            self.start_rate = source.sample_rate
        if verbose:
            logger.info('%s', self.summary(self.start))
            warn_of_gaps(self.config)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Classify spectrograms.

        Args:
            x: spectrograms (batch, frames, mel bins).
            lengths: how many frames of each are real (batch,). Patches that begin after them hold
                only padding: then they take no part in attention, and not in a mean of patches.
                So the logits of a clip do not depend on how far it is padded. Without lengths, the
                padding is heard, as in the published models.

        Returns:
            Logits (batch, label_dim).
        """
        return self.classify(self.forward_features(x, lengths))

    def classify(self, embedding: torch.Tensor) -> torch.Tensor:
        """Classify embeddings (batch, dim). Return logits (batch, label_dim)."""
        if self.autocast_dtype is None:
            return self.mlp_head(embedding)
        # In mixed precision, too, the head computes in the precision of its weights, float32:
        # bfloat16 has so few values that scores of different clips would tie, which costs mAP.
        return self.mlp_head(embedding.to(self._head_dtype())).float()

    def forward_features(self, x: torch.Tensor, lengths: torch.Tensor | None = None
                         ) -> torch.Tensor:
        """Return the embedding that the head classifies.

        It is the mean of [CLS] and [DIST]. In other ViTs, it is [CLS] or the mean of the patches.

        Args:
            x: spectrograms (batch, frames, mel bins).
            lengths: as in forward.

        Returns:
            (batch, dim).
        """
        count = self.num_class_tokens
        heard = self.find_heard_tokens(lengths, x)
        mask = self.make_mask(heard, x)
        with self.autocast(x):
            tokens = forward_features(self.v, self._as_image(x), wanted=count or None, mask=mask)
        if count:
            return self._leave_autocast(tokens[:, :count]).mean(dim=1)
        prefix = self.v.num_prefix_tokens
        patches = self._leave_autocast(tokens[:, prefix:])
        return patches.mean(dim=1) if heard is None else masked_mean(patches, heard[:, prefix:])

    def frame_features(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings over time: the tokens of patches, averaged over frequency.

        Args:
            x: spectrograms (batch, frames, mel bins).
            lengths: as in forward.

        Returns:
            (batch, t, dim), with one embedding per column of the patch grid. It is 0 if the column
            holds only padding.
        """
        heard = self.find_heard_tokens(lengths, x)
        with self.autocast(x):
            tokens = self.all_tokens(x, heard)
        prefix = self.v.num_prefix_tokens
        patches = self._leave_autocast(tokens[:, prefix:])
        if heard is not None:
            patches = patches * heard[:, prefix:, None]
        return patches.unflatten(1, self.grid).mean(dim=1)  # (B, f, t, dim) -> (B, t, dim)

    def attention(self, x: torch.Tensor, lengths: torch.Tensor | None = None
                  ) -> list[torch.Tensor]:
        """Compute what [CLS] and [DIST] attend to in every block: softmax(q k^T / sqrt(d)).

        Args:
            x: spectrograms (batch, frames, mel bins).
            lengths: as in forward.

        Returns:
            For each block a float32 tensor (batch, heads, class tokens, tokens). Each row sums
            to 1. Tokens are [CLS] and [DIST] and then the patches. If the head classifies the mean
            of the patches, there is one row, the mean of what the patches attend to.
        """
        return import_beside('attention').compute_attention(self, x, lengths)

    def attention_maps(self, x: torch.Tensor, lengths: torch.Tensor | None = None
                       ) -> list[tuple[torch.Tensor, ...]]:
        """Return what [CLS] and [DIST] attend to as maps over the spectrogram.

        Args:
            x: spectrograms (batch, frames, mel bins).
            lengths: as in forward.

        Returns:
            For each block a float32 tensor (batch, heads, f, t) per row of attention(): a pair.
        """
        prefix = self.v.num_prefix_tokens
        return [tuple(token.unflatten(2, self.grid) for token in rows[..., prefix:].unbind(2))
                for rows in self.attention(x, lengths)]

    def keep_patches(self, rows: Sequence[int], columns: Sequence[int]) -> None:
        """In training, give the transformer these rows and columns of the patch grid alone."""
        places = torch.as_tensor(rows)[:, None] * self.grid[1] + torch.as_tensor(columns)
        self.v.patch_drop.kept = places.flatten()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Tell timm.optim.param_groups_layer_decay the layers: those of `v`, then the head."""
        def inside_v(pattern: str) -> str:
            return r'v\.(?:' + pattern.replace('^', '') + ')'

        layers: dict[str, Any] = {}
        for name, patterns in self.v.group_matcher(coarse).items():
            if isinstance(patterns, str):
                layers[name] = inside_v(patterns)
            else:
                layers[name] = [(inside_v(pattern), suffix) for pattern, suffix in patterns]
        return layers

    def no_weight_decay(self) -> set[str]:
        """Return the names of the embeddings, which weight decay leaves alone."""
        return {f'v.{name}' for name in self.v.no_weight_decay()}

    def summary(self, start: str) -> str:
        """Describe the model in one line: size, weights, input, patches, parameters.

        Args:
            start: the name of the weights that it starts from.
        """
        config = self.config
        f, t = self.grid
        height, width = self.patch_size
        classified = {0: 'the mean of the patches', 1: '[CLS]', 2: 'the mean of [CLS] and [DIST]'}
        parameters = sum(p.numel() for p in self.parameters()) / 1e6
        return (f'AST {config.model_size} from {start} weights: input {config.input_tdim} frames '
                f'x {config.input_fdim} mel bins, {f} x {t} = {f * t} patches of {height} x '
                f'{width} at strides {config.fstride} x {config.tstride}, head on '
                f'{classified[self.num_class_tokens]} for {config.label_dim} classes, '
                f'{parameters:.1f} M parameters')

    def _as_image(self, x: torch.Tensor) -> torch.Tensor:
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

    def find_heard_tokens(self, lengths: torch.Tensor | None, x: torch.Tensor
                           ) -> torch.Tensor | None:
        """Return which tokens others attend to, (B, tokens), or None for all.

        Args:
            lengths: real frames (B,), or None. A patch is heard if it begins before they end.
            x: the spectrograms, on the device of the result.
        """
        if lengths is None:
            return None
        f, t = self.grid
        starts = torch.arange(t, device=x.device) * self.config.tstride
        columns = starts < lengths.to(x.device).clamp(min=1)[:, None]  # (B, t)
        patches = columns.repeat(1, f)  # (B, f * t), frequency-major
        prefix = patches.new_ones(len(patches), self.v.num_prefix_tokens)
        heard = self.v.patch_drop(torch.cat([prefix, patches], dim=1).unsqueeze(2)).squeeze(2)
        # Patchout may leave no real patch of a short clip. Then the clip hears what is left.
        heard[:, prefix.shape[1]:] |= ~heard[:, prefix.shape[1]:].any(dim=1, keepdim=True)
        return heard

    def make_mask(self, heard: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
        """Return what timm adds to the scores of attention, (B, 1, 1, tokens): 0 or -inf."""
        if heard is None:
            return None
        # In the precision of the scores, which fused attention wants.
        mask = torch.zeros(heard.shape, dtype=self.autocast_dtype or x.dtype, device=x.device)
        return mask.masked_fill(~heard, -torch.inf)[:, None, None]

    def all_tokens(self, x: torch.Tensor, heard: torch.Tensor | None) -> torch.Tensor:
        """Return all tokens (B, tokens, dim) of timm's own pass, which runs hooks."""
        mask = self.make_mask(heard, x)
        arguments: dict[str, Any] = {} if mask is None else {'attn_mask': mask}
        return self.v.forward_features(self._as_image(x), **arguments)

    def _head_dtype(self) -> torch.dtype:
        """Return the precision of the head's weights, float32 if it has none.

        Not by parameters(), of which the replicas of nn.DataParallel have none.
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

    def _leave_autocast(self, result: torch.Tensor) -> torch.Tensor:
        """Return what was computed in mixed precision as float32."""
        return result if self.autocast_dtype is None else result.float()


class Patchout(nn.Module):
    """Structured Patchout: in training, the transformer does not see some of the patches.

    Koutini et al.: Efficient Training of Audio Transformers with Patchout, Interspeech 2022.
    `kept` has the numbers of the patches that it sees, or is None for all.
    """

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


def masked_mean(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the mean over the last axis but one of values (..., n, dim), if chosen (..., n)."""
    weights = chosen.unsqueeze(-1).to(values.dtype)
    return (values * weights).sum(dim=-2) / weights.sum(dim=-2)


def check_pretraining(config: ModelConfig, imagenet_pretrain: bool,
                      audioset_pretrain: bool) -> None:
    """Raise ValueError if there are no such pretrained weights for a model."""
    if config.backbone.has_own_start and imagenet_pretrain:
        raise ValueError(f'there are no ImageNet weights for {config.model_size}: give the weights '
                         f'of the audio model as start, or take imagenet_pretrain=False')
    if audioset_pretrain and not imagenet_pretrain:
        raise ValueError('audioset_pretrain=True needs imagenet_pretrain=True: '
                         'the AudioSet checkpoint was itself trained from ImageNet weights')
    if audioset_pretrain and config.model_size != 'base384':
        raise ValueError(f'audioset_pretrain=True needs model_size base384, the size of the '
                         f'AudioSet checkpoint, got {config.model_size}')


def warn_of_gaps(config: ModelConfig) -> None:
    """Log a warning if the patches leave gaps, so that the model does not see all of its input."""
    height, width = config.backbone.patch_size
    f, t = config.grid
    if (config.fstride > height and f > 1) or (config.tstride > width and t > 1):
        logger.warning('strides %d x %d are larger than the patches of %d x %d: the model does not '
                       'see what lies between the patches. Strides of at most %d x %d see all of '
                       'the input', config.fstride, config.tstride, height, width, height, width)


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
        raise ImportError('pretrained weights need the files beside ast_models.py, and so do other '
                          'models than DeiT: take all of src/models along, or build a DeiT with '
                          'imagenet_pretrain=False and load a state dict') from error
