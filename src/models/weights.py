"""Where weights come from and go to: found, downloaded, read from either published layout, loaded strictly, saved."""
import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

from .files import DownloadError, HubFile, Url, atomic_write, download

DROPBOX = 'https://www.dropbox.com'
REPOSITORY_FOLDER = Path(__file__).resolve().parents[2] / 'pretrained_models'

# Two classifiers of DeiT that AST has no use for; the published checkpoints carry them along.
DEIT_HEADS = ('head.weight', 'head.bias', 'head_dist.weight', 'head_dist.bias')
UNUSED_HEADS = tuple(f'v.{name}' for name in DEIT_HEADS)
AST_HEAD = ('mlp_head.0.weight', 'mlp_head.0.bias', 'mlp_head.1.weight', 'mlp_head.1.bias')


class WeightsError(ValueError):
    """Weights that cannot be had, cannot be read, or do not fit the model; the message says what to do."""


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights: its name below the weights' folder, its address, and the same on Hugging Face."""
    name: str
    url: str
    hub_id: str

    @property
    def hub_name(self):
        """Name of the Hugging Face form: another file format, so another suffix."""
        return str(Path(self.name).with_suffix('.safetensors'))


# What audioset_pretrain starts from: full AudioSet, averaged over epochs, 0.459 mAP.
AUDIOSET = WeightsFile('audioset_10_10_0.4593.pth',
                       f'{DROPBOX}/s/ca0b1v2nlxzyeb4/audioset_10_10_0.4593.pth?dl=1',
                       'MIT/ast-finetuned-audioset-10-10-0.4593')


def deit_file(deit_name):
    """The ImageNet weights of a timm DeiT, under the name that their authors gave them."""
    config = timm.get_pretrained_cfg(deit_name)
    return WeightsFile(config.url.rsplit('/', 1)[1], config.url, config.hf_hub_id)


def weights_folders():
    """Folders searched for weights, the one for downloads first: $TORCH_HOME if set, then pretrained_models/."""
    torch_home = os.environ.get('TORCH_HOME')
    return ([Path(torch_home).expanduser()] if torch_home else []) + [REPOSITORY_FOLDER]


def find_or_download(file):
    """Path of a WeightsFile in one of weights_folders(), downloaded to the first of them where none has it.

    Raises WeightsError where it is nowhere and cannot be downloaded: which file to get, from where, where to put it.
    """
    folders = weights_folders()
    for folder in folders:
        for name in (file.name, file.hub_name):
            if (folder / name).is_file():
                return folder / name
    here = folders[0]
    sources = [Url(file.url, here / file.name), HubFile(file.hub_id, here / file.hub_name)]
    try:
        return download(sources, check=check_download)
    except DownloadError as error:
        raise WeightsError(
            f'{file.name} is not in {" or ".join(map(str, folders))} and could not be downloaded:\n{error}\n'
            f'Get it on a machine with network, either from {file.url} and put it at {here / file.name}, '
            f'or from https://huggingface.co/{file.hub_id}/resolve/main/model.safetensors '
            f'and put it at {here / file.hub_name}.') from None


def check_download(path, source):
    """Raise WeightsError where a fresh download is not a readable state dict or not the file that its name promises."""
    digest = re.search(r'-([0-9a-f]{8,})\.pth', str(source))
    if digest and not sha256(path).startswith(digest[1]):
        raise WeightsError(f'the sha256 of the download does not start with {digest[1]}')
    read_state_dict(path)


def sha256(path):
    """Hexadecimal sha256 of a file."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def read_state_dict(path):
    """Read a state dict (name -> tensor, on the CPU) in this project's names, from any form it is published in.

    Accepts .pth with and without the prefix `module.`, bare or under the key `model`, and .safetensors in the layout of
    `transformers`. Raises WeightsError naming the file where it is truncated, or something else altogether.
    """
    path = Path(path)
    try:
        if path.suffix == '.safetensors':
            state = load_file(path)
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f'{path} does not exist') from None
    except Exception as error:  # torch.load raises nearly anything for a file that is none of its own
        reason = str(error).split('\n')[0]
        raise WeightsError(f'{path} is not a readable checkpoint (truncated, or another kind of file): {reason}; '
                           f'remove it and get it again') from None
    if isinstance(state, dict) and isinstance(state.get('model'), dict):
        state = state['model']
    if not isinstance(state, dict) or not state or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()):
        raise WeightsError(f'{path} holds no state dict (a mapping from names to tensors)')
    state = {name.removeprefix('module.'): value for name, value in state.items()}
    if not any(name.startswith(TRANSFORMERS_PREFIX) for name in state):
        return state
    with naming(path):
        return from_transformers(state)


TRANSFORMERS_PREFIX = 'audio_spectrogram_transformer.'
TRANSFORMERS_NAMES = [  # the layout that `transformers` writes to disk for ASTForAudioClassification -> ours
    (r'audio_spectrogram_transformer\.embeddings\.cls_token', 'v.cls_token'),
    (r'audio_spectrogram_transformer\.embeddings\.distillation_token', 'v.dist_token'),
    (r'audio_spectrogram_transformer\.embeddings\.position_embeddings', 'v.pos_embed'),
    (r'audio_spectrogram_transformer\.embeddings\.patch_embeddings\.projection\.', 'v.patch_embed.proj.'),
    (r'audio_spectrogram_transformer\.encoder\.layer\.(\d+)\.attention\.output\.dense\.', r'v.blocks.\1.attn.proj.'),
    (r'audio_spectrogram_transformer\.encoder\.layer\.(\d+)\.intermediate\.dense\.', r'v.blocks.\1.mlp.fc1.'),
    (r'audio_spectrogram_transformer\.encoder\.layer\.(\d+)\.output\.dense\.', r'v.blocks.\1.mlp.fc2.'),
    (r'audio_spectrogram_transformer\.encoder\.layer\.(\d+)\.layernorm_before\.', r'v.blocks.\1.norm1.'),
    (r'audio_spectrogram_transformer\.encoder\.layer\.(\d+)\.layernorm_after\.', r'v.blocks.\1.norm2.'),
    (r'audio_spectrogram_transformer\.layernorm\.', 'v.norm.'),
    (r'classifier\.layernorm\.', 'mlp_head.0.'),
    (r'classifier\.dense\.', 'mlp_head.1.'),
]
TRANSFORMERS_QKV = re.compile(r'audio_spectrogram_transformer\.encoder\.layer\.(\d+)\.attention\.attention\.'
                              r'(query|key|value)\.(weight|bias)')


def from_transformers(state):
    """Rename a state dict of transformers' ASTForAudioClassification to ours, its query, key and value joined."""
    renamed = {}
    for name, value in state.items():
        if match := TRANSFORMERS_QKV.fullmatch(name):
            parts = [state[name.replace(f'.{match[2]}.', f'.{part}.')] for part in ('query', 'key', 'value')]
            renamed[f'v.blocks.{match[1]}.attn.qkv.{match[3]}'] = torch.cat(parts)
        else:
            for pattern, ours in TRANSFORMERS_NAMES:
                name = re.sub(f'^{pattern}', ours, name)
            renamed[name] = value
    return renamed


def without(state, names):
    """A state dict less the named entries."""
    return {name: value for name, value in state.items() if name not in names}


def transformer_part(state):
    """The DeiT within an AST state dict, under DeiT's own names: both kinds of heads left out, `v.` taken off."""
    return {name.removeprefix('v.'): value for name, value in without(state, UNUSED_HEADS + AST_HEAD).items()}


@contextlib.contextmanager
def naming(path):
    """Turn the KeyError or ValueError of handling a foreign state dict into a WeightsError that names its file."""
    try:
        yield
    except (KeyError, ValueError) as error:
        reason = f'{error} is missing' if isinstance(error, KeyError) else error
        raise WeightsError(f'{path} does not fit this model: {reason}') from None


def load_strictly(module, state, path):
    """Load a state dict whose names and shapes must be exactly module's; raise WeightsError naming path otherwise."""
    own = module.state_dict()
    problems = [f'{name} is missing' for name in own if name not in state]
    problems += [f'{name} is not known' for name in state if name not in own]
    problems += [f'{name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}'
                 for name, value in own.items() if name in state and state[name].shape != value.shape]
    if problems:
        more = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
        raise WeightsError(f'{path} does not fit this model: {"; ".join(problems[:3])}{more}')
    module.load_state_dict(state)


def load_checkpoint(model, path):
    """Load a trained AST (this project's, the published .pth, or transformers' .safetensors) into an ASTModel.

    Strict but for the two DeiT heads of the published files. Raises WeightsError where it does not fit.
    """
    load_strictly(model, without(read_state_dict(path), UNUSED_HEADS), path)


def save_checkpoint(model, path, **description):
    """Write an ASTModel's weights in the published layout (prefix `module.`), and a .json that describes them.

    The description holds the model's own settings and what the caller adds (labels, mean, std, loss).
    """
    path = Path(path)
    with atomic_write(path) as partial:
        torch.save({f'module.{name}': value for name, value in model.state_dict().items()}, partial)
    with atomic_write(path.with_suffix('.json')) as partial:
        partial.write_text(json.dumps({**model.config, **description}, indent=1) + '\n')
