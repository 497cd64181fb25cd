"""Audio models that are starts for an AST: recognise their weights and give them our names.

AudioMAE, EAT and SSLAM read spectrograms as images of time x frequency, an ASTModel as images of
frequency x time. So their patches are transposed, and their positions are put into another order.
"""
from collections.abc import Callable
from pathlib import Path

import torch

from .ast_models import PATCH_SIZE, UNUSED_HEADS, Grid, ModelConfig
from .backbones import FRAMES
from .errors import WeightsError
from .layouts import State
from .pretrained import Start
from .published_data import SAMPLE_RATE
from .state_dicts import check_tensors, drop_entries, name_in_errors

MEL_BINS = 128  # that all of them were trained with
BANDS = MEL_BINS // PATCH_SIZE  # patches along frequency, side by side
AUDIOMAE_SIZES = {768: 'audiomae_base'}  # dimensions of the embedding -> model_size
EAT_SIZES = {768: 'eat_base', 1024: 'eat_large'}
SSAST_SIZES = {192: 'ssast_tiny', 384: 'ssast_small', 768: 'ssast_base'}
# AudioMAE has names that begin like this: the mask and the decoder of pretraining, and the
# normalisation of fine-tuning. EAT and ViTs for images may have the last one, too. So `recognise`
# looks for EAT first, and wants patches of one channel.
AUDIOMAE_SIGNS = ('decoder_', 'mask_token', 'fc_norm.')
# Only pretrained SSAST has names that begin like this: the size of its input, the mask, and the
# heads of its two objectives.
SSAST_TRAINING = ('p_input_', 'mask_embed', 'cpredlayer.', 'gpredlayer.')
EAT_ENCODER = 'modality_encoders.IMAGE.'
EAT_NAMES = {  # theirs -> ours, in `v`
    f'{EAT_ENCODER}extra_tokens': 'cls_token',
    f'{EAT_ENCODER}fixed_positional_encoder.positions': 'pos_embed',
    f'{EAT_ENCODER}local_encoder.proj.': 'patch_embed.proj.',
    f'{EAT_ENCODER}context_encoder.norm.': 'norm_pre.',
    'blocks.': 'blocks.',
}
# Names that begin like this belong to the pretraining of EAT alone.
EAT_TRAINING = (f'{EAT_ENCODER}decoder.', 'shared_decoder.', 'recon_proj.', 'cls_proj.', 'center')
# Other audio models: (parts of their weights' names, what the model is, why it is no start).
OTHERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (('time_new_pos_embed', 'freq_new_pos_embed'), 'PaSST',
     'it adds one embedding per row and one per column of the patches, not one per patch'),
    (('grep_linear', 'grep_a'), 'BEATs',
     'its attention adds relative positions with gates, which a plain ViT does not have'),
    (('audio_branch.', 'audio_encoder.base.', 'text_branch.', 'audio_model.audio_encoder.'), 'CLAP',
     'its audio encoder is an HTS-AT or a CNN, not a plain ViT'),
    (('tscam_conv',), 'HTS-AT',
     'it is a Swin transformer: attention in windows, with relative positions'),
    (('relative_position_bias_table',), 'Swin or BEiT', 'its attention has relative positions'),
    (('conv_block1.', 'fc_audioset.'), 'PANNs', 'it is a CNN, not a transformer'),
)


def recognise(state: State, path: Path) -> Start | None:
    """Return the weights of an audio model as a start, or None if they are of no known audio model.

    Args:
        state: as the file holds it, without wrappers such as `module.`.

    Raises:
        WeightsError: if it is a model that is no start, or an unknown size of one that is.
    """
    refuse_others(state, path)
    kernel = state.get('patch_embed.proj.weight')
    has_one_channel = kernel is not None and kernel.dim() == 4 and kernel.shape[1] == 1
    reader: Callable[[State, Path], Start]
    if any(EAT_ENCODER in name for name in state):
        reader = read_eat
    elif any(name.startswith(SSAST_TRAINING) for name in state):
        reader = read_ssast
    elif has_one_channel and any(name.startswith(AUDIOMAE_SIGNS) for name in state):
        reader = read_audiomae
    elif has_one_channel:
        raise WeightsError(f'{path} is a ViT for images of one channel, but none of the audio '
                           f'models that are known here; pretrained_models/README.md lists them')
    else:
        return None
    check_tensors({name: value for name, value in state.items() if value.is_floating_point()}, path)
    with name_in_errors(path):
        return reader({name: value.float() for name, value in state.items()}, path)


def refuse_others(state: State, path: Path) -> None:
    """Raise WeightsError for the weights of an audio model that is no start for an AST."""
    for signs, kind, reason in OTHERS:
        if any(sign in name for name in state for sign in signs):
            raise WeightsError(f'{path} is a model of {kind}, which is no start for an AST: '
                               f'{reason}. pretrained_models/README.md lists the starts')


def read_audiomae(state: State, path: Path) -> Start:
    """Read AudioMAE (models_vit.py of facebookresearch/AudioMAE), pretrained or fine-tuned.

    The decoder of pretraining is left out, and so is the encoder's last normalisation: fine-tuning
    normalises the mean of the patches instead (fc_norm).
    """
    head = classifier_part(state)
    state = {name: value for name, value in state.items()
             if not name.startswith((*AUDIOMAE_SIGNS, 'norm.', 'head.'))}
    grid = grid_of_positions(state['pos_embed'].shape[1] - 1, path)
    model_size = size_of(state, AUDIOMAE_SIZES, path)
    return Start(f'AudioMAE, {"fine-tuned" if head else "pretrained"} ({path.name})', path,
                 model_size, transposed(state, grid, num_prefix_tokens=1), grid, head,
                 side_by_side(model_size, grid), SAMPLE_RATE)


def read_eat(state: State, path: Path) -> Start:
    """Read EAT or SSLAM (fairseq), pretrained or fine-tuned; the decoder is left out."""
    prefix = 'model.' if any(name.startswith(f'model.{EAT_ENCODER}') for name in state) else ''
    head = classifier_part(state)
    renamed: State = {}
    for name, value in state.items():
        own = name.removeprefix(prefix)
        if own.startswith((*EAT_TRAINING, 'fc_norm.', 'head.')):
            continue
        theirs = next((start for start in EAT_NAMES if own.startswith(start)), None)
        # Unknown names are kept, so that loading refuses the file.
        renamed[EAT_NAMES[theirs] + own.removeprefix(theirs) if theirs else own] = value
    grid = grid_of_positions(renamed['pos_embed'].shape[1], path)
    model_size = size_of(renamed, EAT_SIZES, path)
    return Start(f'EAT or SSLAM, {"fine-tuned" if head else "pretrained"} ({path.name})', path,
                 model_size, transposed(renamed, grid, num_prefix_tokens=0), grid, head,
                 side_by_side(model_size, grid), SAMPLE_RATE)


def read_ssast(state: State, path: Path) -> Start:
    """Read SSAST (YuanGongND/ssast), pretrained. Its names and the order of its patches are ours.

    The heads of pretraining and what it masks with are left out.
    """
    bins, frames = (int(state[f'p_input_{axis}dim']) for axis in 'ft')
    state = {name.removeprefix('v.'): value for name, value in drop_entries(
        state, UNUSED_HEADS).items() if not name.startswith(SSAST_TRAINING)}
    height, width = patch_size = tuple(state['patch_embed.proj.weight'].shape[2:])
    if patch_size not in ((PATCH_SIZE, PATCH_SIZE), FRAMES):
        raise WeightsError(f'{path} is SSAST with patches of {height} x {width}; those of '
                           f'{PATCH_SIZE} x {PATCH_SIZE} and {FRAMES[0]} x {FRAMES[1]} are known')
    kind = 'frame' if patch_size == FRAMES else 'patch'
    model_size = size_of(state, SSAST_SIZES, path) + ('_frame' if kind == 'frame' else '')
    # Without a config, positions are fitted as those of a ViT for images, as its authors do it.
    return Start(f'SSAST, pretrained, {kind}-based ({path.name})', path, model_size, state,
                 grid=(bins // height, frames // width), sample_rate=SAMPLE_RATE)


def classifier_part(state: State) -> State:
    """Return the classifier of a fine-tuned AudioMAE or EAT under our names, as far as it is there.

    Those are the names in an ASTModel's `mlp_head`: 0 is a normalisation, 1 a linear layer.
    """
    return {f'{number}.{leaf}': state[f'{name}.{leaf}']
            for number, name in ((0, 'fc_norm'), (1, 'head')) for leaf in ('weight', 'bias')
            if f'{name}.{leaf}' in state}


def size_of(state: State, sizes: dict[int, str], path: Path) -> str:
    """Return the model_size that belongs to the embedding dimension of the weights.

    Args:
        sizes: {dimension: model_size}.
    """
    dim = state['pos_embed'].shape[-1]
    if dim not in sizes:
        known = ', '.join(f'{value} ({size})' for value, size in sizes.items())
        raise WeightsError(f'{path} has embeddings of {dim} dimensions; known are {known}')
    return sizes[dim]


def grid_of_positions(positions: int, path: Path) -> Grid:
    """Return the grid (frequency, time) of positions for patches side by side on 128 mel bins."""
    if positions % BANDS:
        raise WeightsError(f'{path} has {positions} positions, which is no multiple of {BANDS}, '
                           f'the patches of {PATCH_SIZE} mel bins in {MEL_BINS}')
    return BANDS, positions // BANDS


def side_by_side(model_size: str, grid: Grid) -> ModelConfig:
    """Return the settings of a model whose patches of 16 x 16 lie side by side in a grid."""
    f, t = grid
    return ModelConfig(model_size, label_dim=1, fstride=PATCH_SIZE, tstride=PATCH_SIZE,
                       input_fdim=f * PATCH_SIZE, input_tdim=t * PATCH_SIZE)


def transposed(state: State, grid: Grid, num_prefix_tokens: int) -> State:
    """Turn a transformer that reads time x frequency into one that reads frequency x time.

    Args:
        grid: of its positions, along (frequency, time).
    """
    f, t = grid
    prefix = state['pos_embed'][:, :num_prefix_tokens]
    patches = state['pos_embed'][:, num_prefix_tokens:]
    patches = patches.unflatten(1, (t, f)).transpose(1, 2).flatten(1, 2)  # (1, f * t, dim)
    return {**state, 'pos_embed': torch.cat([prefix, patches], dim=1),
            'patch_embed.proj.weight': state['patch_embed.proj.weight'].transpose(2, 3)}
