"""Find the state dict of a model in what people's scripts save: dicts around it, prefixes."""
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import WeightsError

State = dict[str, torch.Tensor]
Keys = tuple[str, ...]

# What DataParallel, torch.compile, FSDP and activation checkpointing put into the names of
# whatever they wrap, a whole model or a part of it.
WRAPPERS = ('module', '_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')
TRANSFORMERS_PREFIX = 'audio_spectrogram_transformer.'
# Names that every AST has. Text before them is a prefix, which is taken off.
ANCHORS = ('v.cls_token', 'v.pos_embed', f'{TRANSFORMERS_PREFIX}embeddings.cls_token',
           f'{TRANSFORMERS_PREFIX}embeddings.position_embeddings')
# Every AST and every DeiT has an entry whose name ends so.
TRANSFORMER_ENDINGS = ('cls_token', 'pos_embed', 'position_embeddings')
MAX_LISTED = 300  # characters of a list of names in a message


def is_state_dict(value: Any) -> bool:
    """Return whether a value is a mapping from names to tensors, and not empty."""
    return isinstance(value, dict) and bool(value) and all(
        isinstance(name, str) and isinstance(entry, torch.Tensor) for name, entry in value.items())


def find_state_dict(value: Any, path: Path) -> State:
    """Return the one state dict in what a file holds.

    It may be the value itself. Or it may be that of an AST or a DeiT within dicts that a training
    script put around it; what lies beside it there (the epoch, an optimizer) is left out.

    Raises:
        WeightsError: if there is none, or more than one.
    """
    if is_state_dict(value):
        return value

    found = [(keys, state) for keys, state in iterate_state_dicts(value)
             if any(name.endswith(TRANSFORMER_ENDINGS) for name in state)]
    if not found:
        raise WeightsError(f'{path} holds no state dict (a mapping from names to tensors)'
                           f'{_other_entries(value)}; save model.state_dict() alone')
    if len(found) > 1:
        first, second = ('/'.join(keys) for keys, _ in found[:2])
        raise WeightsError(f'{path} holds more than one model, under {first} and under {second}: '
                           f'save the one that is meant alone')
    keys, state = found[0]
    for key in keys:
        beside = [str(name) for name, entry in value.items()
                  if isinstance(entry, torch.Tensor) and '.' in str(name)]
        if beside:  # so this is no wrapper around one model
            raise WeightsError(f'{path} holds a model under {key}, and {beside[0]} beside it: '
                               f'save the model alone')
        value = value[key]
    return state


def iterate_state_dicts(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, State]]:
    """Yield the state dicts within dicts, with the keys that lead to them."""
    if is_state_dict(value):
        yield keys, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            if isinstance(key, str):
                yield from iterate_state_dicts(entry, (*keys, key))


def _other_entries(value: Any) -> str:
    """Say which entries of a dict are no tensors, if there are some."""
    if not isinstance(value, dict):
        return ''
    names = [str(key) for key, entry in value.items() if not isinstance(entry, torch.Tensor)]
    verb = 'is no tensor' if len(names) == 1 else 'are no tensors'
    return f': {", ".join(names)[:MAX_LISTED]} {verb}' if names else ''


def collect_entries(pairs: Iterable[tuple[str, torch.Tensor]]) -> State:
    """Make a state dict of (name, tensor) pairs. Raises ValueError if two have one name."""
    state: State = {}
    for name, value in pairs:
        if name in state:
            raise ValueError(f'{name} is there twice, under two names')
        state[name] = value
    return state


def strip_wrappers(name: str) -> str:
    """Take out of a name what wrappers of modules put into it, at any place."""
    return '.'.join(part for part in name.split('.') if part not in WRAPPERS)


def find_ast_prefixes(state: State) -> list[str]:
    """Return the prefix of each AST in a state dict: '' for one without a prefix.

    The list is empty if there is no AST.
    """
    return sorted({name.removesuffix(anchor) for name in state for anchor in ANCHORS
                   if f'.{name}'.endswith(f'.{anchor}')})


def strip_prefix(state: State, path: Path) -> State:
    """Take off what stands before the names of an AST, such as the `model.` of Lightning.

    Raises:
        WeightsError: if there are two ASTs, if something else lies beside the AST, or if it is an
            encoder of transformers without a classifier.
    """
    prefixes = find_ast_prefixes(state)
    if len(prefixes) > 1:
        first, second = (f'under the prefix {prefix}' if prefix else 'without a prefix'
                         for prefix in prefixes[:2])
        raise WeightsError(f'{path} holds more than one AST, {first} and {second}: '
                           f'save the one that is meant alone')
    if not prefixes:
        _refuse_encoder(state, path)
        return state

    prefix = prefixes[0]
    if others := [name for name in state if not name.startswith(prefix)]:
        raise WeightsError(f'{path} holds an AST under the prefix {prefix}, and {others[0]} '
                           f'beside it: save the AST alone')
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _refuse_encoder(state: State, path: Path) -> None:
    """Raise WeightsError for the encoder of a model of transformers."""
    for name in state:
        if f'.{name}'.endswith('.embeddings.distillation_token'):
            raise WeightsError(f"{path} holds an encoder of transformers ({name}) without AST's "
                               f"classifier: save an ASTForAudioClassification")
