"""State dicts of an AST: read from every form in which people have them, and loaded strictly."""
import contextlib
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from .ast_models import UNUSED_HEADS
from .descriptions import read_json
from .errors import WeightsError

DEIT_HEADS = tuple(name.removeprefix('v.') for name in UNUSED_HEADS)
AST_HEAD = ('mlp_head.0.weight', 'mlp_head.0.bias', 'mlp_head.1.weight', 'mlp_head.1.bias')
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # stored weights are these

# What DataParallel, torch.compile, FSDP and activation checkpointing put into the names of
# whatever they wrap, a whole model or a part of it.
WRAPPERS = ('module', '_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')
# Under these keys training scripts store the state dict of a model.
STATE_KEYS = ('state_dict', 'model_state_dict', 'model', 'model_state', 'module', 'net', 'network')
MAX_NESTING = 6  # dicts within dicts in which a state dict is looked for
INDEX_SUFFIX = '.index.json'  # of the file that lists the parts of sharded weights
PARTS = 'lists the parts of a checkpoint'

TRANSFORMERS_PREFIX = 'audio_spectrogram_transformer.'
# An AST is known by these names; what stands before them is a prefix.
ANCHORS = ('v.cls_token', 'v.pos_embed', f'{TRANSFORMERS_PREFIX}embeddings.cls_token',
           f'{TRANSFORMERS_PREFIX}embeddings.position_embeddings')

State = dict[str, torch.Tensor]
Keys = tuple[str, ...]


class Weights(NamedTuple):
    """A state dict in this project's names, and whether its file has the layout of transformers."""
    state: State
    is_transformers: bool


def read_state_dict(path: str | Path) -> State:
    """Read a state dict, on the CPU and in this project's names, from any form that people have.

    Reads .pth and the like as torch.save writes them, .safetensors, and the index of sharded
    weights. Names may be this project's or those of transformers, behind any prefix; the state
    dict may lie in other dicts, as that of Lightning does.

    Raises:
        WeightsError: if the file is truncated or something else altogether, if it does not hold
            exactly one model, or if an entry is no tensor of finite numbers. Names the file, and
            the key or prefix that was found.
    """
    return read_weights(path).state


def read_weights(path: str | Path) -> Weights:
    """Read a state dict as read_state_dict does, and tell its layout."""
    path = Path(path)
    read = read_shards if path.name.endswith(INDEX_SUFFIX) else read_file
    state = only_state_dict(read(path), path)
    state.pop('n_averaged', None)  # a counter of torch.optim.swa_utils.AveragedModel
    for name, value in state.items():
        if problem := tensor_problem(value):
            raise WeightsError(f'{path} holds no weights to work with: {shown(name)} {problem}')
    with naming(path):
        state = renamed((without_wrappers(name), value) for name, value in state.items())
    state = without_prefix(state, path)
    is_transformers = any(name.startswith(TRANSFORMERS_PREFIX) for name in state)
    with naming(path):
        return Weights(from_transformers(state) if is_transformers else state, is_transformers)


def read_file(path: Path) -> Any:
    """Read what a file of weights holds, whatever that is. Raises WeightsError if it cannot."""
    try:
        return load_file(path) if path.suffix == '.safetensors' else load_tensors(path)
    except FileNotFoundError:
        raise WeightsError(f'{path} does not exist') from None
    except Exception as error:  # torch.load raises nearly anything for another kind of file
        reason = reason_of(error)
        if 'it holds code' in reason:
            raise WeightsError(f'{path} cannot be read: {reason}; save model.state_dict() alone, '
                               f'without settings and counters beside it') from None
        raise WeightsError(
            f'{path} is not a readable checkpoint (truncated, or another kind of file): {reason}; '
            f'if it was downloaded, get it again') from None


def read_shards(index: Path) -> State:
    """Read sharded weights, given the index that lists their files."""
    files, listed = shard_files(index), read_json(index, PARTS)['weight_map']
    pairs = []
    for file in files:
        part = read_file(index.parent / file)
        if not is_state_dict(part):
            raise WeightsError(f'{index.parent / file} holds no state dict '
                               f'(a mapping from names to tensors)')
        pairs += part.items()
    with naming(index):
        state = renamed(pairs)
        if missing := [name for name in listed if name not in state]:
            raise KeyError(shown(missing[0]))
    return state


def shard_files(index: Path) -> list[str]:
    """Return the names of the files that hold sharded weights; they lie beside the index.

    Raises WeightsError if the index is none, or names a file elsewhere.
    """
    weight_map = read_json(index, PARTS).get('weight_map')
    files = list(weight_map.values()) if isinstance(weight_map, dict) else []
    for file in files:
        # The index may come from anywhere, and must not lead out of its folder.
        if not isinstance(file, str) or not re.fullmatch(r'\w[\w.-]*\.(safetensors|bin)', file):
            raise WeightsError(f'{index} lists {str(file)[:100]!r}, expected the name of a '
                               f'.safetensors or .bin file beside it')
    if not files:
        raise WeightsError(f'{index} lists no parts of a checkpoint under "weight_map"')
    return sorted(set(files))


def load_tensors(path: str | Path) -> Any:
    """Load what torch.save wrote: tensors on the CPU, numbers, texts, lists and dicts.

    Code in the file is never run. Raises nearly anything if the file holds something else;
    reason_of says what.
    """
    with open(path, 'rb') as file:
        if file.read(4) == b'PK\3\4':  # torch tells its zip archives from older files by it, too
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                # Small files would unpack to any size: torch.save never compresses.
                size = sum(entry.file_size for entry in entries)
                if (any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
                        or size > os.fstat(file.fileno()).st_size):
                    raise WeightsError('it would unpack to more than it is')
    return torch.load(path, map_location='cpu', weights_only=True)


def reason_of(error: Exception) -> str:
    """Return in one line what an error of load_tensors, or of the use of its result, says.

    PyTorch's own words advise to load the file without protection.
    """
    text = str(error)
    if isinstance(error, KeyError):
        return f'{error} is missing'
    if code := re.search(r'GLOBAL (\S+)', text):
        return f'it holds code ({code[1]}), which was not run'
    return text.split('\n')[0].split(' In PyTorch ')[0].strip(' .') or type(error).__name__


def is_state_dict(value: Any) -> bool:
    """Tell whether a value is a mapping from names to tensors, and not empty."""
    return isinstance(value, dict) and bool(value) and all(
        isinstance(name, str) and isinstance(entry, torch.Tensor) for name, entry in value.items())


def only_state_dict(value: Any, path: Path) -> State:
    """Return the one state dict of a model in what a file holds.

    It may be that value itself, or lie within dicts that a training script put around it, under
    any key if it is an AST or a DeiT, else under one of STATE_KEYS. What lies beside it (the epoch,
    the state of an optimizer) is left out.

    Raises WeightsError if there is none, or more than one.
    """
    if is_state_dict(value):
        return value
    found = list(find_state_dicts(value))
    chosen = ([one for one in found if any(name.endswith('cls_token') for name in one[1])]
              or [one for one in found if all(key in STATE_KEYS for key in one[0])])
    if not chosen and isinstance(value, dict):
        entries = [entry for entry in value.values() if isinstance(entry, torch.Tensor)]
        others = [key for key, entry in value.items() if not isinstance(entry, torch.Tensor)]
        if entries and others:
            raise WeightsError(f'{path} holds no state dict (a mapping from names to tensors): '
                               f'{shown(str(others[0]))} is no tensor; save model.state_dict() alone')
    if not chosen:
        keys = ', '.join(map(shown, map(str, value))) if isinstance(value, dict) else ''
        raise WeightsError(f'{path} holds no state dict (a mapping from names to tensors)'
                           + (f'; its keys are {keys[:300]}' if keys else ''))
    if len(chosen) > 1:
        first, second = ('/'.join(map(shown, keys)) for keys, _ in chosen[:2])
        raise WeightsError(f'{path} holds more than one model, under {first} and under {second}: '
                           f'save the one that is meant alone')
    keys, state = chosen[0]
    for key in keys:
        beside = [name for name, entry in value.items()
                  if isinstance(entry, torch.Tensor) and '.' in str(name)]
        if beside:  # so this is no wrapper around one model
            raise WeightsError(f'{path} holds a model under {shown(key)}, and '
                               f'{shown(str(beside[0]))} beside it: save the model alone')
        value = value[key]
    return state


def find_state_dicts(value: Any, keys: Keys = (), seen: set[int] | None = None
                     ) -> Iterator[tuple[Keys, State]]:
    """Yield the state dicts within dicts, each once, with the keys that lead to it."""
    seen = set() if seen is None else seen
    if not isinstance(value, dict) or id(value) in seen or len(keys) > MAX_NESTING:
        return
    seen.add(id(value))  # a hostile file may hold a dict that holds itself
    if is_state_dict(value):
        yield keys, value
        return
    for key, entry in value.items():
        if isinstance(key, str):
            yield from find_state_dicts(entry, (*keys, key), seen)


def without_wrappers(name: str) -> str:
    """Take out of a name what wrappers of modules put into it, wherever that stands."""
    return '.'.join(part for part in name.split('.') if part not in WRAPPERS)


def without_prefix(state: State, path: Path) -> State:
    """Take off what stands before the names of an AST, such as the `model.` of Lightning.

    Raises WeightsError if there are two ASTs, if something else lies beside the AST, or if it is an
    encoder of transformers without a classifier.
    """
    prefixes = sorted({name.removesuffix(anchor) for name in state for anchor in ANCHORS
                       if f'.{name}'.endswith(f'.{anchor}')})
    if len(prefixes) > 1:
        first, second = (f'under the prefix {shown(prefix)}' if prefix else 'without a prefix'
                         for prefix in prefixes[:2])
        raise WeightsError(f'{path} holds more than one AST, {first} and {second}: '
                           f'save the one that is meant alone')
    for prefix in filter(None, prefixes):
        if others := [name for name in state if not name.startswith(prefix)]:
            raise WeightsError(f'{path} holds an AST under the prefix {shown(prefix)}, and '
                               f'{shown(others[0])} beside it: save the AST alone')
        return {name.removeprefix(prefix): value for name, value in state.items()}
    encoder = [name for name in state if f'.{name}'.endswith('.embeddings.distillation_token')]
    if encoder and not prefixes:
        raise WeightsError(f"{path} holds an encoder of transformers ({shown(encoder[0])}) without "
                           f"AST's classifier: save an ASTForAudioClassification")
    return state


def tensor_problem(value: torch.Tensor) -> str | None:
    """Return what is wrong with a tensor of a state dict, or None."""
    if (value.dtype not in FLOATS or value.layout != torch.strided or value.is_nested
            or value.device.type != 'cpu'):
        return (f'is no plain tensor of floating-point numbers '
                f'({value.dtype}, {value.layout}, {value.device})')
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f'has shape {tuple(value.shape)}, but fewer numbers are stored'
    # The smallest and the largest value are NaN if one is; float32 is what the model computes in.
    if value.numel() and not torch.stack(value.detach().float().aminmax()).isfinite().all():
        return 'has NaN or infinite values'
    return None


def shown(name: str) -> str:
    """Return the name of an entry as it may be printed: one line, no control characters."""
    return name if name.isprintable() and len(name) <= 200 else ascii(name[:200])


def renamed(pairs: Iterable[tuple[str, torch.Tensor]]) -> State:
    """Make a state dict of (name, tensor) pairs. Raises ValueError if two have one name."""
    state = {}
    for name, value in pairs:
        if name in state:
            raise ValueError(f'{shown(name)} is there twice, under two names')
        state[name] = value
    return state


# transformers 5 has other names in memory than on disk, where it keeps those of transformers 4.
IN_MEMORY_TO_DISK = [
    (r'\.layers\.(\d+)\.', r'.encoder.layer.\1.'),
    (r'\.attention\.q_proj\.', '.attention.attention.query.'),
    (r'\.attention\.k_proj\.', '.attention.attention.key.'),
    (r'\.attention\.v_proj\.', '.attention.attention.value.'),
    (r'\.attention\.o_proj\.', '.attention.output.dense.'),
    (r'\.mlp\.fc1\.', '.intermediate.dense.'),
    (r'\.mlp\.fc2\.', '.output.dense.'),
]
ENCODER = r'audio_spectrogram_transformer\.'
LAYER = ENCODER + r'encoder\.layer\.(\d+)\.'
DISK_TO_OURS = [  # names of transformers' ASTForAudioClassification on disk -> ours
    (ENCODER + r'embeddings\.cls_token', 'v.cls_token'),
    (ENCODER + r'embeddings\.distillation_token', 'v.dist_token'),
    (ENCODER + r'embeddings\.position_embeddings', 'v.pos_embed'),
    (ENCODER + r'embeddings\.patch_embeddings\.projection\.', 'v.patch_embed.proj.'),
    (LAYER + r'attention\.output\.dense\.', r'v.blocks.\1.attn.proj.'),
    (LAYER + r'intermediate\.dense\.', r'v.blocks.\1.mlp.fc1.'),
    (LAYER + r'output\.dense\.', r'v.blocks.\1.mlp.fc2.'),
    (LAYER + r'layernorm_before\.', r'v.blocks.\1.norm1.'),
    (LAYER + r'layernorm_after\.', r'v.blocks.\1.norm2.'),
    (ENCODER + r'layernorm\.', 'v.norm.'),
    (r'classifier\.layernorm\.', 'mlp_head.0.'),
    (r'classifier\.dense\.', 'mlp_head.1.'),
]
QKV = re.compile(LAYER + r'attention\.attention\.(query|key|value)\.(weight|bias)')


def from_transformers(state: State) -> State:
    """Give the entries of transformers' ASTForAudioClassification our names.

    Its query, key and value become one tensor, as timm has them.
    """
    state = renamed((_on_disk(name), value) for name, value in state.items())
    pairs = []
    for name, value in state.items():
        if match := QKV.fullmatch(name):
            if match[2] != 'query':
                continue
            parts = [state[name.replace(f'.{match[2]}.', f'.{part}.')]
                     for part in ('query', 'key', 'value')]
            pairs.append((f'v.blocks.{match[1]}.attn.qkv.{match[3]}', torch.cat(parts)))
        else:
            for pattern, ours in DISK_TO_OURS:
                name = re.sub(f'^{pattern}', ours, name)
            pairs.append((name, value))
    return renamed(pairs)


def _on_disk(name):
    if name.startswith(TRANSFORMERS_PREFIX):
        for pattern, on_disk in IN_MEMORY_TO_DISK:
            name = re.sub(pattern, on_disk, name)
    return name


def without(state: State, names: Iterable[str]) -> State:
    """Return a state dict less the named entries."""
    return {name: value for name, value in state.items() if name not in names}


def transformer_part(state: State) -> State:
    """Return the DeiT within an AST, under its own names (no `v.`) and without any head."""
    return {name.removeprefix('v.'): value
            for name, value in without(state, UNUSED_HEADS + AST_HEAD).items()}


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turn the errors of work on a foreign state dict into a WeightsError that names its file."""
    try:
        yield
    except (IndexError, KeyError, RuntimeError, ValueError) as error:  # RuntimeError: of shapes
        raise WeightsError(f'{path} does not fit this model: {reason_of(error)}') from None


def load_strictly(module: nn.Module, state: State, path: str | Path) -> None:
    """Load a state dict whose names and shapes must be exactly those of module.

    Raises WeightsError that names path and what differs; the module then stays as it was.
    """
    own = module.state_dict()
    problems = [f'{name} is missing' for name in own if name not in state]
    problems += [f'{shown(name)} is not known' for name in state if name not in own]
    problems += [f'{name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}'
                 for name, value in own.items()
                 if name in state and state[name].shape != value.shape]
    if problems:
        more = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
        raise WeightsError(f'{path} does not fit this model: {"; ".join(problems[:3])}{more}')
    module.load_state_dict(state)
