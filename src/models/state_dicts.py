"""State dicts of an AST: read from every form they are published in, and loaded strictly."""
import contextlib
import os
import re
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file

# Two classifiers of DeiT that AST has no use for; the published checkpoints carry them along.
DEIT_HEADS = ('head.weight', 'head.bias', 'head_dist.weight', 'head_dist.bias')
UNUSED_HEADS = tuple(f'v.{name}' for name in DEIT_HEADS)
AST_HEAD = ('mlp_head.0.weight', 'mlp_head.0.bias', 'mlp_head.1.weight', 'mlp_head.1.bias')
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # what weights may be stored in


class WeightsError(ValueError):
    """Weights that cannot be had, cannot be read, or do not fit the model; the message says what to do."""


def read_state_dict(path):
    """Read a state dict (name -> tensor, on the CPU) in this project's names, from any form it is published in.

    Accepts .pth with and without the prefix `module.`, bare or under the key `model`, and .safetensors in the layout of
    `transformers`. Raises WeightsError naming the file where it is truncated, or something else altogether, and the
    entry where that is no tensor of finite numbers.
    """
    path = Path(path)
    try:
        state = load_file(path) if path.suffix == '.safetensors' else load_tensors(path)
    except FileNotFoundError:
        raise WeightsError(f'{path} does not exist') from None
    except Exception as error:  # torch.load raises nearly anything for a file that is none of its own
        raise WeightsError(f'{path} is not a readable checkpoint (truncated, or another kind of file): '
                           f'{reason_of(error)}; if it was downloaded, get it again') from None
    if isinstance(state, dict) and isinstance(state.get('model'), dict):
        state = state['model']
    if not isinstance(state, dict) or not state or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()):
        raise WeightsError(f'{path} holds no state dict (a mapping from names to tensors)')
    for name, value in state.items():
        if problem := tensor_problem(value):
            raise WeightsError(f'{path} holds no weights to work with: {shown(name)} {problem}')
    with naming(path):
        state = renamed((name.removeprefix('module.'), value) for name, value in state.items())
        return from_transformers(state) if any(name.startswith(TRANSFORMERS_PREFIX) for name in state) else state


def load_tensors(path):
    """What torch.save wrote: tensors on the CPU, numbers, texts, lists and dicts. Code in the file is never run.

    Raises nearly anything where the file holds something else; reason_of says what.
    """
    with open(path, 'rb') as file:
        if file.read(4) == b'PK\3\4':  # by which torch, too, tells its zip archives from its older files
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                # Small files would unpack to any size: torch.save never compresses.
                if (any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
                        or sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size):
                    raise WeightsError('it would unpack to more than it is')
    return torch.load(path, map_location='cpu', weights_only=True)


def reason_of(error):
    """What an error of load_tensors, or of the use of what it returned, says, in one line.

    PyTorch's own words advise to load the file without protection.
    """
    text = str(error)
    if isinstance(error, KeyError):
        return f'{error} is missing'
    if code := re.search(r'GLOBAL (\S+)', text):
        return f'it holds code ({code[1]}), which was not run'
    return text.split('\n')[0].split(' In PyTorch ')[0].strip(' .') or type(error).__name__


def tensor_problem(value):
    """What is wrong with a tensor of a state dict, as text, or None."""
    if value.dtype not in FLOATS or value.layout != torch.strided or value.is_nested or value.device.type != 'cpu':
        return f'is no plain tensor of floating-point numbers ({value.dtype}, {value.layout}, {value.device})'
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f'has shape {tuple(value.shape)}, but fewer numbers are stored'
    if value.numel() and not torch.stack(value.detach().float().aminmax()).isfinite().all():  # NaN where there is one
        return 'has NaN or infinite values'
    return None


def shown(name):
    """The name of an entry of a foreign file, as it may be printed: in one line, without control characters."""
    return name if name.isprintable() and len(name) <= 200 else ascii(name[:200])


def renamed(pairs):
    """A state dict of (name, tensor) pairs; raises ValueError where two have one name."""
    state = {}
    for name, value in pairs:
        if name in state:
            raise ValueError(f'{shown(name)} is there twice, under two names')
        state[name] = value
    return state


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
    pairs = []
    for name, value in state.items():
        if match := TRANSFORMERS_QKV.fullmatch(name):
            if match[2] != 'query':
                continue
            parts = [state[name.replace(f'.{match[2]}.', f'.{part}.')] for part in ('query', 'key', 'value')]
            pairs.append((f'v.blocks.{match[1]}.attn.qkv.{match[3]}', torch.cat(parts)))
        else:
            for pattern, ours in TRANSFORMERS_NAMES:
                name = re.sub(f'^{pattern}', ours, name)
            pairs.append((name, value))
    return renamed(pairs)


def without(state, names):
    """A state dict less the named entries."""
    return {name: value for name, value in state.items() if name not in names}


def transformer_part(state):
    """The DeiT within an AST state dict, under DeiT's own names: both kinds of heads left out, `v.` taken off."""
    return {name.removeprefix('v.'): value for name, value in without(state, UNUSED_HEADS + AST_HEAD).items()}


@contextlib.contextmanager
def naming(path):
    """Turn what the handling of a foreign state dict raises into a WeightsError that names its file."""
    try:
        yield
    except (IndexError, KeyError, RuntimeError, ValueError) as error:  # RuntimeError: torch's, of shapes
        raise WeightsError(f'{path} does not fit this model: {reason_of(error)}') from None


def load_strictly(module, state, path):
    """Load a state dict whose names and shapes must be exactly module's; raise WeightsError naming path otherwise."""
    own = module.state_dict()
    problems = [f'{name} is missing' for name in own if name not in state]
    problems += [f'{shown(name)} is not known' for name in state if name not in own]
    problems += [f'{name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}'
                 for name, value in own.items() if name in state and state[name].shape != value.shape]
    if problems:
        more = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
        raise WeightsError(f'{path} does not fit this model: {"; ".join(problems[:3])}{more}')
    module.load_state_dict(state)
