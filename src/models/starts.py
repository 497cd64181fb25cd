"""Find the weights that a model starts from: of timm, of an AST, or of another audio model."""
import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from .ast_models import DEIT, ModelConfig, find_backbone
from .audio_layouts import recognise
from .backbones import AUDIO_BACKBONES, nearest_vit, strip_tag
from .checkpoints import load_model
from .errors import WeightsError
from .foreign_files import largest_state_dict, read_foreign_file
from .layouts import State, find_ast_prefixes
from .pretrained import Start
from .published import AUDIOSET, PUBLISHED, SSAST, published_file, ssast_file, timm_file
from .published_data import SAMPLE_RATE
from .state_dicts import (
    DEIT_HEADS,
    INDEX_SUFFIX,
    check_tensors,
    drop_entries,
    load_tensors,
    name_in_errors,
    read_state_dict,
    transformer_part,
)
from .weights import find_or_download, locate

PATCHES_NAME = 'patch_embed.proj.weight'  # in every ViT of timm

# Of the AudioSet checkpoint.
AUDIOSET_CONFIG = ModelConfig('base384', label_dim=527, fstride=10, tstride=10,
                              input_fdim=128, input_tdim=1024)

logger = logging.getLogger(__name__)


def find_start(source: str | Path, model_size: str, settings: Mapping[str, Any]) -> Start:
    """Find the weights that a user names, and recognise what they are.

    Args:
        source: the name of a model of timm, with or without a tag (vit_base_patch16_224.mae); or a
            file of another audio model, of an AST, or of a ViT of timm; or the name of a
            published file, SSAST's included; see weights.locate.
        model_size: the ViT that the weights belong to, if the file's name is not a name of timm.
        settings: fstride, tstride, input_fdim and input_tdim, used if an AST's file does not tell
            them.

    Raises:
        ValueError: if it is a model that cannot read spectrograms.
        WeightsError: if it cannot be found, or if it is no start.
    """
    if vit := find_vit_name(source):
        find_backbone(vit)  # refuses before anything is downloaded
        path = find_or_download(timm_file(vit))
        start = make_timm_start(vit, path, read_state_dict(path))
    else:
        start = read_start(locate_start(source), model_size, settings)
    logger.info('%s: %s, model_size %s, %d x %d positions', source, start.name, start.model_size,
                *start.grid)
    return start


def find_model_size(source: str | Path, model_size: str, settings: Mapping[str, Any]) -> str:
    """Return the model_size of the start that find_start finds.

    If source is the name of a ViT of timm, its weights are not downloaded.
    """
    if vit := find_vit_name(source):
        timm_file(vit)  # refuses a tag that timm does not know
        return strip_tag(vit)
    return find_start(source, model_size, settings).model_size


def find_vit_name(source: str | Path) -> str | None:
    """Return the name of a ViT of timm, with its tag, if source is one and no file.

    The name may be that of the weights on Hugging Face: timm/NAME.TAG.
    """
    name = str(source).removeprefix('timm/').removesuffix('.safetensors')
    if timm.is_model(strip_tag(name)) and not Path(source).exists():
        return name
    return None


def locate_start(source: str | Path) -> Path:
    """Return the path of a file of weights that a user names. Download it if necessary.

    Raises:
        WeightsError: if it cannot be found.
    """
    name = str(source)
    if not Path(source).exists():
        # SSAST's files also hold whole numbers, which the default check refuses.
        if file := ssast_file(source):
            return find_or_download(file, check=load_tensors)
        if '/' not in name and not published_file(source):
            nearest = find_nearest_name(name)
            hint = f' (do you mean {nearest}?)' if nearest else ''
            raise WeightsError(f'{name} does not exist: it is neither a file nor a known name'
                               f'{hint}. pretrained_models/README.md lists the starts')
    return locate(source)


def find_nearest_name(name: str) -> str | None:
    """Return the known name of a start that is most like this one, or None if none is."""
    vit = nearest_vit(strip_tag(name))
    names = [vit, *(Path(file.name).stem for file in (*SSAST, *PUBLISHED))]
    return next(iter(difflib.get_close_matches(name, names)), None)


def make_published_start(config: ModelConfig, imagenet_pretrain: bool, audioset_pretrain: bool
                         ) -> Start:
    """Return what imagenet_pretrain and audioset_pretrain start from (AST paper, section 2.2).

    Raises:
        ValueError: if there are no such weights for the model.
        WeightsError: if they cannot be found.
    """
    check_pretraining(config, imagenet_pretrain, audioset_pretrain)
    model_size = config.model_size
    if audioset_pretrain:
        path = find_or_download(AUDIOSET)
        return Start('AudioSet', path, model_size, transformer_part(read_state_dict(path)),
                     AUDIOSET_CONFIG.grid, config=AUDIOSET_CONFIG, sample_rate=SAMPLE_RATE)
    name = DEIT.get(model_size, model_size)
    path = find_or_download(timm_file(name))
    return make_timm_start(name, path, read_state_dict(path), model_size)


def check_pretraining(config: ModelConfig, imagenet_pretrain: bool,
                      audioset_pretrain: bool) -> None:
    """Raise ValueError if there are no such pretrained weights for a model."""
    if config.backbone.is_audio_model and imagenet_pretrain:
        raise ValueError(f'there are no ImageNet weights for {config.model_size}: give the weights '
                         f'of the audio model as start, or take imagenet_pretrain=False')
    if audioset_pretrain and not imagenet_pretrain:
        raise ValueError('audioset_pretrain=True needs imagenet_pretrain=True: '
                         'the AudioSet checkpoint was itself trained from ImageNet weights')
    if audioset_pretrain and config.model_size != 'base384':
        raise ValueError(f'audioset_pretrain=True needs model_size base384, the size of the '
                         f'AudioSet checkpoint, got {config.model_size}: take '
                         f'audioset_pretrain=False')


def read_start(path: Path, model_size: str, settings: Mapping[str, Any]) -> Start:
    """Recognise a file of weights; see find_start."""
    # Of all starts, only ASTs of transformers may come in parts, with an index that lists them.
    if not path.name.endswith(INDEX_SUFFIX):
        state = largest_state_dict(read_foreign_file(path), path)
        if start := recognise(state, path):
            return start
        if not find_ast_prefixes(state):
            return make_vit_start(path, state, model_size)
    return make_ast_start(path, settings)


def make_vit_start(path: Path, state: State, model_size: str) -> Start:
    """Make a Start of a file that holds the weights of a ViT of timm.

    If the file has the name of a ViT of timm (NAME.TAG.safetensors), that says which ViT it is.
    Otherwise it is read as one of model_size.

    Raises:
        WeightsError: if the weights are not those of this ViT.
    """
    if PATCHES_NAME not in state:
        raise WeightsError(f'{path} holds no start that is known here: its first entry is '
                           f'{next(iter(state))}, and it has no {PATCHES_NAME}. '
                           f'pretrained_models/README.md lists the starts. If it is one of '
                           f'these, but its names have a prefix, remove the prefix')
    check_tensors(state, path)
    name = path.name.removesuffix('.safetensors')
    if timm.is_model(strip_tag(name)):
        return make_timm_start(name, path, state)
    try:
        return make_timm_start(DEIT.get(model_size, model_size), path, state, model_size)
    except WeightsError as error:
        raise WeightsError(f'{error}. This file does not say which ViT of timm it is, so it was '
                           f'read as {model_size}: give its model_size (the name that timm has for '
                           f'it), or rename the file to NAME{path.suffix}') from None


def make_ast_start(path: Path, settings: Mapping[str, Any]) -> Start:
    """Make a Start of a trained AST, without its classifier."""
    model, description = load_model(path, **settings)
    return Start(f'AST ({path.name})', path, model.config.model_size, model.v.state_dict(),
                 model.grid, config=model.config, sample_rate=description['sample_rate'])


def make_timm_start(name: str, path: Path, state: State, model_size: str | None = None) -> Start:
    """Make a Start of the weights of a ViT of timm, adapted from images to spectrograms.

    Args:
        name: timm's name of the model; it may end in a tag.
        path: the file of its weights.
        state: what the file holds.
        model_size: `name` without its tag by default.

    Raises:
        WeightsError: if they are of another ViT.
    """
    if name in AUDIO_BACKBONES:
        raise WeightsError(f'{path} holds a ViT under the names of timm, not {name}')
    options = find_backbone(model_size or name).options
    with torch.device('meta'):
        on_images = timm.create_model(strip_tag(name), num_classes=0, **options)
    assert isinstance(on_images, VisionTransformer)
    state = drop_entries(state, DEIT_HEADS)
    check_image_size(state, on_images, strip_tag(name), path)
    with name_in_errors(path):
        state = checkpoint_filter_fn(state, on_images, adapt_layer_scale=True)
        if options.get('global_pool') == 'avg':  # the mean of the patches replaces this pooling
            state = {key: value for key, value in state.items() if not key.startswith('attn_pool.')}
        # A spectrogram has one channel: the projection's weights are summed over the colours.
        colours = state['patch_embed.proj.weight']  # (dim, 3, height, width)
        state['patch_embed.proj.weight'] = colours.sum(dim=1, keepdim=True)
    head = {f'0.{leaf}': state.pop(f'fc_norm.{leaf}') for leaf in ('weight', 'bias')
            if f'fc_norm.{leaf}' in state}
    f, t = on_images.patch_embed.grid_size
    return Start(name_timm_start(name), path, model_size or strip_tag(name), state, (f, t), head)


def name_timm_start(model_size: str) -> str:
    """Return the name, for messages and descriptions, of the weights that timm has for a ViT."""
    name = DEIT.get(model_size, model_size)
    return 'ImageNet' if name in DEIT.values() else f'timm {name}'


def check_image_size(state: State, vit: VisionTransformer, name: str, path: Path) -> None:
    """Raise WeightsError if weights are of a ViT with other patches, or for other images.

    timm's checkpoint_filter_fn would resample them without a word.
    """
    kernel, positions = state.get(PATCHES_NAME), state.get('pos_embed')
    size = tuple(vit.patch_embed.patch_size)
    if kernel is not None and kernel.dim() == 4 and kernel.shape[2:] != size:
        raise WeightsError(f'{path} does not fit this model: its patches have '
                           f'{" x ".join(map(str, kernel.shape[2:]))} pixels, those of {name} have '
                           f'{" x ".join(map(str, size))}')
    # The class tokens may have positions, too.
    patches, most = vit.patch_embed.num_patches, vit.num_prefix_tokens
    if positions is not None and not 0 <= positions.shape[1] - patches <= most:
        f, t = vit.patch_embed.grid_size
        raise WeightsError(f'{path} does not fit this model: it has {positions.shape[1]} '
                           f'positions, {name} has {f} x {t} = {patches}, and up to {most} more '
                           f'for class tokens')
