"""ASTModel: a timm DeiT that reads spectrograms (Gong, Chung, Glass: AST, Interspeech 2021, arXiv:2104.01778)."""
import contextlib
import logging

import timm
import torch
from torch import nn
from torch.nn import functional as F

try:
    from .fast_blocks import forward_features
except ImportError as missing:  # this file was copied alone: timm's own pass does
    if missing.name not in (None, f'{__package__}.fast_blocks'):
        raise

    def forward_features(v, x, wanted):
        return v.forward_features(x)

PATCH_SIZE = 16  # mel bins and frames, AST paper, section 2.1
DEIT = {
    'tiny224': 'deit_tiny_distilled_patch16_224',
    'small224': 'deit_small_distilled_patch16_224',
    'base224': 'deit_base_distilled_patch16_224',
    'base384': 'deit_base_distilled_patch16_384',
}
INIT_STD = 0.02  # of the truncated normal distribution that embeddings start from
AUDIOSET_STRIDES = (10, 10)  # of the published AudioSet checkpoint
# Two classifiers of DeiT that AST has no use for; the published checkpoints carry them along.
UNUSED_HEADS = ('v.head.weight', 'v.head.bias', 'v.head_dist.weight', 'v.head_dist.bias')

logger = logging.getLogger(__name__)


def patch_grid(fstride, tstride, input_fdim, input_tdim):
    """Number of patches along (frequency, time) that fit input_fdim mel bins x input_tdim frames."""
    return (input_fdim - PATCH_SIZE) // fstride + 1, (input_tdim - PATCH_SIZE) // tstride + 1


def interpolate_grid(grid, size):
    """Bilinear interpolation of a grid of embeddings (1, dim, f, t) to size (f, t)."""
    return F.interpolate(grid, size=size, mode='bilinear', align_corners=False)


def centre(old, new):
    """The slice of an axis of length old that keeps its middle new entries."""
    start = old // 2 - new // 2
    return slice(start, start + new)


def cut_or_interpolate(grid, size):
    """Fit a grid (1, dim, f, t) to size (f, t), time first: cut the centre or interpolate, as each axis needs."""
    f, t = size
    old_f, old_t = grid.shape[2:]
    grid = grid[:, :, :, centre(old_t, t)] if t <= old_t else interpolate_grid(grid, (old_f, t))
    return grid[:, :, centre(old_f, f), :] if f <= old_f else interpolate_grid(grid, (f, t))


def resample_pos_embed(pos_embed, old_grid, new_grid, resize=cut_or_interpolate):
    """Fit a positional embedding to another patch grid: cut the centre of an axis that shrinks, else interpolate.

    pos_embed: (1, 2 + old_f * old_t, dim), the first two rows for [CLS] and [DIST]. Grids are (f, t) in patches.
    resize maps (1, dim, old_f, old_t) to (1, dim, new_f, new_t).
    Returns (1, 2 + new_f * new_t, dim). Raises ValueError if pos_embed does not have old_grid's rows.
    AST paper, section 2.2.
    """
    old_f, old_t = old_grid
    if pos_embed.shape[1] != 2 + old_f * old_t:
        raise ValueError(f'positional embedding has {pos_embed.shape[1]} rows, a grid of {old_f} x {old_t} patches '
                         f'and two tokens need {2 + old_f * old_t}')
    tokens, patches = pos_embed[:, :2], pos_embed[:, 2:]
    grid = patches.transpose(1, 2).reshape(1, -1, old_f, old_t)  # (1, dim, f, t)
    grid = resize(grid, new_grid)
    return torch.cat([tokens, grid.flatten(2).transpose(1, 2)], dim=1)  # (1, 2 + f * t, dim)


class Patchout(nn.Module):
    """Structured Patchout (Koutini et al., PaSST, Interspeech 2022): in training, some of the patches are not seen.

    kept: indices (patches,) of those that are, or None for all of them.
    """

    def __init__(self, prefix_tokens):
        super().__init__()
        self.prefix_tokens, self.kept = prefix_tokens, None

    def forward(self, tokens):
        """tokens: (B, prefix + f * t, dim), the positional embedding added. Returns (B, prefix + kept, dim)."""
        if self.kept is None or not self.training:
            return tokens
        prefix, patches = tokens[:, :self.prefix_tokens], tokens[:, self.prefix_tokens:]
        return torch.cat([prefix, patches.index_select(1, self.kept.to(tokens.device))], dim=1)


class ASTModel(nn.Module):
    """Audio Spectrogram Transformer: spectrogram (batch, frames, mel bins) in, logits (batch, label_dim) out.

    The input is a log mel fbank, normalised to about zero mean and 0.5 standard deviation.

    label_dim: number of classes. fstride, tstride: strides of the 16 x 16 patches, in mel bins and frames.
    input_fdim, input_tdim: size of the input, in mel bins and frames; at least 16 each.
    imagenet_pretrain: start from DeiT's ImageNet weights. audioset_pretrain: start from the 0.4593-mAP AudioSet
    checkpoint, with a new head (base384 only, and imagenet_pretrain must be True, since the checkpoint began there).
    model_size: tiny224, small224, base224 or base384. verbose: log a summary.

    Set `autocast_dtype` (torch.bfloat16, torch.float16) for a forward pass in mixed precision; None leaves it alone.
    Raises ValueError for settings that contradict each other, WeightsError for weights that are missing or do not fit.
    """

    def __init__(self, label_dim=527, fstride=10, tstride=10, input_fdim=128, input_tdim=1024,
                 imagenet_pretrain=True, audioset_pretrain=False, model_size='base384', verbose=True):
        super().__init__()
        check_settings(label_dim, fstride, tstride, input_fdim, input_tdim,
                       imagenet_pretrain, audioset_pretrain, model_size)
        self.config = {'model_size': model_size, 'label_dim': label_dim, 'fstride': fstride, 'tstride': tstride,
                       'input_fdim': input_fdim, 'input_tdim': input_tdim}
        self.autocast_dtype = None
        self.grid = patch_grid(fstride, tstride, input_fdim, input_tdim)
        self.v = build_transformer(model_size, self.grid, (fstride, tstride))
        dim = self.v.embed_dim
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, label_dim))
        self.register_load_state_dict_pre_hook(drop_unused_heads)
        if audioset_pretrain:
            self._start_from_audioset()
        elif imagenet_pretrain:
            self._start_from_imagenet()
        if verbose:
            logger.info('%s', self.summary(imagenet_pretrain, audioset_pretrain))

    def forward(self, x):
        """x: (batch, frames, mel bins), normalised. Returns logits (batch, label_dim)."""
        embedding = self.forward_features(x)
        if self.autocast_dtype is None:
            return self.mlp_head(embedding)
        # The head computes in its own float32: bfloat16 has so few values that scores of clips tie, which costs mAP.
        first = [*self.mlp_head.children(), self.mlp_head][0]
        weight = getattr(first, 'weight', embedding)
        return self.mlp_head(embedding.to(weight.dtype)).float()

    def forward_features(self, x):
        """The embedding that the head classifies, the mean of the two tokens: (batch, dim). x: as forward."""
        prefix = self.v.num_prefix_tokens
        with self._precision(x):
            tokens = forward_features(self.v, self._as_image(x), wanted=prefix)
        return self._out_of_autocast(tokens[:, :prefix]).mean(dim=1)

    def frame_features(self, x):
        """Embeddings over time, the patch tokens averaged over frequency: (batch, t, dim). x: as forward."""
        with self._precision(x):
            tokens = self.v.forward_features(self._as_image(x))
        patches = self._out_of_autocast(tokens[:, self.v.num_prefix_tokens:])
        return patches.unflatten(1, self.grid).mean(dim=1)  # (B, f, t, dim) -> (B, t, dim)

    def keep_patches(self, rows, columns):
        """In training, let the transformer see only these rows and columns of the patch grid, two lists of indices."""
        rows, columns = torch.as_tensor(rows), torch.as_tensor(columns)
        self.v.patch_drop.kept = (rows[:, None] * self.grid[1] + columns).flatten()

    @torch.no_grad()
    def attention(self, x):
        """What [CLS] and [DIST] attend to in every block: softmax(q k^T / sqrt(d)), whose rows sum to 1. x: as forward.

        Returns a list with (batch, heads, 2, 2 + f * t) float32 a block: a row for each of the two tokens, over the
        two tokens themselves and the patches. attention_maps lays the patches out as a picture.
        """
        rows = []
        prefix = self.v.num_prefix_tokens
        hooks = [block.attn.register_forward_pre_hook(
            lambda attn, inputs: rows.append(_token_attention(attn, inputs[0], prefix))) for block in self.v.blocks]
        try:
            with self._precision(x):
                self.v.forward_features(self._as_image(x))
        finally:
            for hook in hooks:
                hook.remove()
        return rows

    def attention_maps(self, x):
        """Where in the spectrogram [CLS] and [DIST] look: for each block a pair of (batch, heads, f, t) float32."""
        prefix = self.v.num_prefix_tokens
        return [tuple(token.unflatten(2, self.grid) for token in rows[..., prefix:].unbind(2))
                for rows in self.attention(x)]

    def _precision(self, x):
        """The context in which a forward pass runs."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        # Entered in here and not around the call: nn.DataParallel's threads do not inherit the caller's dtype.
        return torch.autocast(x.device.type, dtype=self.autocast_dtype)

    def _out_of_autocast(self, result):
        return result if self.autocast_dtype is None else result.float()

    def _as_image(self, x):
        """(B, frames, mel bins) -> (B, 1, mel bins, frames), if it has this model's patch grid."""
        frames, bins = self.config['input_tdim'], self.config['input_fdim']
        strides = self.config['fstride'], self.config['tstride']
        if x.dim() != 3 or x.shape[2] != bins or patch_grid(*strides, bins, x.shape[1]) != self.grid:
            raise ValueError(f'ASTModel expects (batch, {frames} frames, {bins} mel bins), got {tuple(x.shape)}; '
                             f'pad or cut the input, or build the model with that input_tdim and input_fdim')
        return x.unsqueeze(1).transpose(2, 3)

    def _start_from_imagenet(self):
        """Load DeiT: colour channels summed, positional embedding fitted. AST paper, section 2.2."""
        state_dicts, weights = import_weights()
        size = self.config['model_size']
        path = weights.find_or_download(weights.deit_file(DEIT[size]))
        state = state_dicts.without(state_dicts.read_state_dict(path), state_dicts.DEIT_HEADS)
        with state_dicts.naming(path):
            state['patch_embed.proj.weight'] = state['patch_embed.proj.weight'].sum(dim=1, keepdim=True)
            state['pos_embed'] = resample_pos_embed(state['pos_embed'], deit_grid(size), self.grid)
        state_dicts.load_strictly(self.v, state, path)

    def _start_from_audioset(self):
        """Load the 0.4593-mAP checkpoint but for its head, the positional embedding fitted to this model's grid."""
        state_dicts, weights = import_weights()
        path = weights.find_or_download(weights.AUDIOSET)
        state = state_dicts.transformer_part(state_dicts.read_state_dict(path))
        strides = self.config['fstride'], self.config['tstride']
        size = weights.AUDIOSET_INPUT['input_fdim'], weights.AUDIOSET_INPUT['input_tdim']
        with state_dicts.naming(path):
            pos_embed, grid = state['pos_embed'], patch_grid(*AUDIOSET_STRIDES, *size)
            if strides != AUDIOSET_STRIDES:
                strided_grid = patch_grid(*strides, *size)
                pos_embed, grid = resample_pos_embed(pos_embed, grid, strided_grid, interpolate_grid), strided_grid
            state['pos_embed'] = resample_pos_embed(pos_embed, grid, self.grid)
        state_dicts.load_strictly(self.v, state, path)

    def summary(self, imagenet_pretrain, audioset_pretrain):
        """One line: size, weights, input, patches, parameters."""
        start = 'AudioSet' if audioset_pretrain else 'ImageNet' if imagenet_pretrain else 'random'
        f, t = self.grid
        parameters = sum(p.numel() for p in self.parameters()) / 1e6
        return (f'AST {self.config["model_size"]} from {start} weights: input {self.config["input_tdim"]} frames x '
                f'{self.config["input_fdim"]} mel bins, {f} x {t} = {f * t} patches at strides '
                f'{self.config["fstride"]} x {self.config["tstride"]}, {self.config["label_dim"]} classes, '
                f'{parameters:.1f} M parameters')


def import_weights():
    """Return the modules state_dicts and weights, which lie beside this file and are needed for pretrained weights."""
    try:
        from . import state_dicts, weights
    except ImportError as error:
        if error.name not in (None, __package__, f'{__package__}.state_dicts', f'{__package__}.weights'):
            raise
        raise ImportError('pretrained weights need the files beside ast_models.py: take all of src/models along, or '
                          'build with imagenet_pretrain=False and load a state dict') from error
    return state_dicts, weights


def drop_unused_heads(model, state, prefix, *_):
    """Take DeiT's two classifiers out of a state dict that is about to be loaded, as published checkpoints have them.

    A hook of load_state_dict. prefix: of this model's names in the state dict.
    """
    own = model.state_dict()
    for name in UNUSED_HEADS:
        if name not in own:  # somebody may have given v a head of his own
            state.pop(prefix + name, None)


def _token_attention(attn, x, prefix_tokens):
    """Attention of the first tokens in a timm Attention that is about to see x (B, tokens, dim), float32."""
    qkv = attn.qkv(x).float().unflatten(2, (3, attn.num_heads, -1))  # (B, tokens, 3, heads, d)
    query = attn.q_norm(qkv[:, :prefix_tokens, 0].transpose(1, 2))  # (B, heads, prefix tokens, d)
    key = attn.k_norm(qkv[:, :, 1].transpose(1, 2))  # (B, heads, tokens, d)
    with torch.autocast(x.device.type, enabled=False):
        return (attn.scale * query @ key.transpose(2, 3)).softmax(dim=-1)


def check_settings(label_dim, fstride, tstride, input_fdim, input_tdim,
                   imagenet_pretrain, audioset_pretrain, model_size):
    """Raise ValueError if the settings of an ASTModel are out of range or contradict each other."""
    if model_size not in DEIT:
        raise ValueError(f'model_size must be one of {", ".join(DEIT)}, got {model_size!r}')
    for name, value in (('label_dim', label_dim), ('fstride', fstride), ('tstride', tstride)):
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    for name, value in (('input_fdim', input_fdim), ('input_tdim', input_tdim)):
        if value < PATCH_SIZE:
            raise ValueError(f'{name} must be at least {PATCH_SIZE}, the size of a patch, got {value}')
    if audioset_pretrain and not imagenet_pretrain:
        raise ValueError('audioset_pretrain=True needs imagenet_pretrain=True: '
                         'the AudioSet checkpoint was itself trained from ImageNet weights')
    if audioset_pretrain and model_size != 'base384':
        raise ValueError(f'audioset_pretrain=True needs model_size base384, the size of the AudioSet checkpoint, '
                         f'got {model_size}')


def build_transformer(model_size, grid, strides):
    """The timm DeiT of model_size without its heads, for one channel, `grid` patches and overlapping strides.

    grid: (f, t) in patches; strides: (frequency, time) in mel bins and frames. Random weights.
    """
    # timm sizes the positional embedding for patches that do not overlap, so ask for an image of that many patches.
    v = timm.create_model(DEIT[model_size], pretrained=False, num_classes=0, in_chans=1,
                          img_size=(grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE))
    v.patch_embed.proj.stride = strides
    v.patch_embed.img_size = None  # several sizes of input have this grid: ASTModel looks
    # As timm 0.4.5 and with it the published code. timm 1.x starts [CLS] at 1e-6: 12 points of accuracy less after the
    # first epochs of a small model from scratch.
    nn.init.trunc_normal_(v.cls_token, std=INIT_STD)
    v.patch_drop = Patchout(v.num_prefix_tokens)  # where timm drops patches too
    return v


def deit_grid(model_size):
    """(f, t) patches of the DeiT that model_size names, on the images it was trained with."""
    _, height, width = timm.get_pretrained_cfg(DEIT[model_size]).input_size
    return height // PATCH_SIZE, width // PATCH_SIZE
