"""State dicts of an AST: read from every form they are published in, and loaded strictly."""
import contextlib
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

# Two classifiers of DeiT that AST has no use for; the published checkpoints carry them along.
DEIT_HEADS = ('head.weight', 'head.bias', 'head_dist.weight', 'head_dist.bias')
UNUSED_HEADS = tuple(f'v.{name}' for name in DEIT_HEADS)
AST_HEAD = ('mlp_head.0.weight', 'mlp_head.0.bias', 'mlp_head.1.weight', 'mlp_head.1.bias')


class WeightsError(ValueError):
    """Weights that cannot be had, cannot be read, or do not fit the model; the message says what to do."""


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
            if match[2] != 'query':
                continue
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
