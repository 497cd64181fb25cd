"""Read the state dict of an AST from every form in which people have it, and load it strictly."""
import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from .ast_models import UNUSED_HEADS
from .descriptions import read_json
from .errors import WeightsError
from .layouts import (
    TRANSFORMERS_PREFIX,
    State,
    collect_entries,
    find_state_dict,
    is_state_dict,
    strip_prefix,
    strip_wrappers,
)
from .transformers_format import from_transformers

DEIT_HEADS = tuple(name.removeprefix('v.') for name in UNUSED_HEADS)
AST_HEAD = ('mlp_head.0.weight', 'mlp_head.0.bias', 'mlp_head.1.weight', 'mlp_head.1.bias')
INDEX_SUFFIX = '.index.json'  # of the file that lists the parts of sharded weights
MAX_PROBLEMS = 3  # how many a message lists


class Weights(NamedTuple):
    """A state dict in this project's names, and whether its file has those of transformers."""
    state: State
    is_transformers: bool


def read_state_dict(path: str | Path) -> State:
    """Read a state dict, on the CPU and in this project's names, from any form that people have.

    Reads .pth and the like as torch.save writes them, .safetensors, and the index of sharded
    weights. Names may be this project's or those of transformers, behind any prefix. The state
    dict may lie within other dicts, as in a checkpoint of Lightning.

    Raises:
        WeightsError: if the file is truncated or something else, if it does not hold exactly one
            model, or if an entry is no tensor of finite numbers. Names the file.
    """
    return read_weights(path).state


def read_weights(path: str | Path) -> Weights:
    """Read a state dict as read_state_dict does, and tell whose names it had."""
    path = Path(path)
    content = read_shards(path) if path.name.endswith(INDEX_SUFFIX) else read_file(path)
    state = find_state_dict(content, path)
    state.pop('n_averaged', None)  # a counter of torch.optim.swa_utils.AveragedModel
    check_tensors(state, path)

    with name_in_errors(path):
        state = collect_entries((strip_wrappers(name), value) for name, value in state.items())
    state = strip_prefix(state, path)
    is_transformers = any(name.startswith(TRANSFORMERS_PREFIX) for name in state)
    if is_transformers:
        with name_in_errors(path):
            state = from_transformers(state)
    return Weights(state, is_transformers)


def read_file(path: Path) -> Any:
    """Read what a file of weights holds. Raises WeightsError if it is no such file."""
    try:
        return load_file(path) if path.suffix == '.safetensors' else load_tensors(path)
    except FileNotFoundError:
        raise WeightsError(f'{path} does not exist') from None
    except Exception as error:  # torch.load raises nearly anything for another kind of file
        if 'it holds code' in reason_of(error):
            raise WeightsError(f'{path} cannot be read: {reason_of(error)}; save '
                               f'model.state_dict() alone, without settings and counters beside '
                               f'it') from None
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> WeightsError:
    """Return the error of a file that is no checkpoint, given that of the attempt to read it."""
    # A file of text gives a KeyError: the unpickler takes its first character for a command.
    reason = '' if isinstance(error, KeyError) else f': {reason_of(error)}'
    return WeightsError(f'{path} is not a readable checkpoint (truncated, or another kind of '
                        f'file){reason}; if it was downloaded, get it again')


def load_tensors(path: str | Path) -> Any:
    """Load what torch.save wrote: tensors on the CPU, numbers, texts, lists and dicts.

    Code in the file is never run. Raises nearly anything if the file holds something else;
    reason_of says what.
    """
    return torch.load(path, map_location='cpu', weights_only=True)


def reason_of(error: Exception) -> str:
    """Return in one line what an error of load_tensors, or of the use of its result, says.

    PyTorch's message advises weights_only=False, which would run code; this one does not.
    """
    text = str(error)
    if isinstance(error, KeyError):
        return f'{error} is missing'
    if code := re.search(r'GLOBAL (\S+)', text):
        return f'it holds code ({code[1]}), which was not run'
    return text.split('\n')[0].split(' In PyTorch ')[0].strip(' .') or type(error).__name__


def shard_files(index: Path) -> list[str]:
    """Return the names of the files that hold sharded weights; they lie beside the index.

    Raises WeightsError if the index lists none, or a file elsewhere.
    """
    weight_map = read_json(index).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f'{index} lists no parts of a checkpoint under "weight_map"')
    files = sorted(set(map(str, weight_map.values())))
    for file in files:
        if Path(file).name != file:
            raise WeightsError(f'{index} lists {file}, which is not beside it')
    return files


def read_shards(index: Path) -> State:
    """Read sharded weights, given the index that lists their files."""
    pairs: list[tuple[str, torch.Tensor]] = []
    for file in shard_files(index):
        part = read_file(index.parent / file)
        if not is_state_dict(part):
            raise WeightsError(f'{index.parent / file} holds no state dict '
                               f'(a mapping from names to tensors)')
        pairs += part.items()

    with name_in_errors(index):
        state = collect_entries(pairs)
        for name in read_json(index)['weight_map']:
            if name not in state:
                raise KeyError(name)
    return state


def check_tensors(state: State, path: Path) -> None:
    """Raise WeightsError if an entry is no tensor of finite floating-point numbers."""
    for name, value in state.items():
        if not value.is_floating_point():
            problem = f'is no tensor of floating-point numbers ({value.dtype})'
        # The smallest and the largest value are NaN if one is; the model computes in float32.
        elif value.numel() and not torch.stack(value.float().aminmax()).isfinite().all():
            problem = 'has NaN or infinite values'
        else:
            continue
        raise WeightsError(f'{path} holds no weights to work with: {name} {problem}')


def drop_entries(state: State, names: Iterable[str]) -> State:
    """Return a state dict without the named entries."""
    return {name: value for name, value in state.items() if name not in names}


def transformer_part(state: State) -> State:
    """Return the DeiT within an AST, under its own names (no `v.`) and without any head."""
    return {name.removeprefix('v.'): value
            for name, value in drop_entries(state, UNUSED_HEADS + AST_HEAD).items()}


@contextlib.contextmanager
def name_in_errors(path: str | Path) -> Iterator[None]:
    """Turn errors about a state dict into a WeightsError that names its file."""
    try:
        yield
    except WeightsError:  # it names the file already
        raise
    except (IndexError, KeyError, RuntimeError, ValueError) as error:  # RuntimeError: of shapes
        raise WeightsError(f'{path} does not fit this model: {reason_of(error)}') from None


def load_strictly(module: nn.Module, state: State, path: str | Path) -> None:
    """Load a state dict whose names and shapes must be exactly those of the module.

    Raises WeightsError that names path and what differs; the module then stays as it was.
    """
    own = module.state_dict()
    problems = [f'{name} is missing' for name in own if name not in state]
    problems += [f'{name} is not known' for name in state if name not in own]
    problems += [f'{name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}'
                 for name, value in own.items()
                 if name in state and state[name].shape != value.shape]
    if problems:
        more = len(problems) - MAX_PROBLEMS
        listed = '; '.join(problems[:MAX_PROBLEMS]) + (f' and {more} more' if more > 0 else '')
        raise WeightsError(f'{path} does not fit this model: {listed}')
    module.load_state_dict(state)
