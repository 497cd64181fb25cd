"""Read weights that other projects saved together with objects of their own, and run nothing."""
import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .errors import WeightsError
from .layouts import State, strip_wrappers
from .state_dicts import unreadable


class Inert:
    """Takes the place of an object of another package. It takes everything and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> 'Inert':
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def empty_dict(*args: Any) -> dict:
    """Return a dict in place of a collections.defaultdict, which could name a function."""
    return {}


def empty_list(*args: Any) -> list:
    """Return a list in place of a collections.deque."""
    return []


# An unpickler makes these containers first and fills them afterwards. PyTorch's fills only plain
# dicts and lists.
STAND_INS = {'collections.defaultdict': empty_dict, 'collections.deque': empty_list}


def read_foreign_file(path: Path) -> Any:
    """Read what a file of weights holds, with an Inert in place of objects of other packages.

    AudioMAE's files hold an argparse.Namespace beside the weights. Files of fairseq, such as those
    of EAT, may hold settings of omegaconf. torch.load reads them with weights_only=True. So it only
    calls what PyTorch allows for weights, and argparse.Namespace. Every other name in the file gets
    one of STAND_INS or an Inert in its place.

    Raises:
        WeightsError: if the file is no checkpoint, or holds something that even so cannot be read.
    """
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # if a file holds a part of a storage
            with torch.serialization.safe_globals(inert_globals(path)):
                return torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f'{path} does not exist') from None
    except Exception as error:  # torch.load raises nearly anything for another kind of file
        raise unreadable(path, error) from None


def inert_globals(path: Path) -> list[Any]:
    """Return what torch.load may use for each name of code in a file: (a class, the name)."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # the format of PyTorch before 1.6, whose names cannot be listed
        names = []
    allowed: list[Any] = [argparse.Namespace]
    for name in names:
        if name != 'argparse.Namespace':
            inert = type(name.rpartition('.')[2], (Inert,), {})
            allowed.append((STAND_INS.get(name, inert), name))
    return allowed


def largest_state_dict(content: Any, path: Path) -> State:
    """Search what a file holds for the dict with most tensors, and return these tensors.

    Raises:
        WeightsError: if there are no tensors.
    """
    found: State = {}
    dicts, seen = [content], set()
    for value in dicts:  # the list grows: outer dicts first
        if isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))  # a dict may be in several places, even in itself
            dicts += value.values()
            tensors = {strip_wrappers(name): entry for name, entry in value.items()
                       if isinstance(name, str) and isinstance(entry, torch.Tensor)}
            if len(tensors) > len(found):
                found = tensors
    if not found:
        raise WeightsError(f'{path} holds no weights (a mapping from names to tensors): save '
                           f'model.state_dict() alone')
    return found
