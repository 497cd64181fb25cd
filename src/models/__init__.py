"""The Audio Spectrogram Transformer and its weights. Needs nothing of our other folders.

Needs torch and timm; loading weights also needs safetensors, huggingface_hub and wget.

A name is imported when somebody asks for it (PEP 562). So programs that only need atomic.py or
errors.py do not wait seconds for torch.
"""
from __future__ import annotations  # recipes import this with any Python from 3.8 on

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ast_models import ASTModel, ModelConfig, patch_grid
    from .checkpoints import load_checkpoint, load_model, mean_state_dict, save_checkpoint
    from .errors import WeightsError
    from .pretrained import resample_pos_embed
    from .state_dicts import read_state_dict

__all__ = ['ASTModel', 'ModelConfig', 'WeightsError', 'load_checkpoint', 'load_model',
           'mean_state_dict', 'patch_grid', 'read_state_dict', 'resample_pos_embed',
           'save_checkpoint']
FILES = ('errors', 'ast_models', 'state_dicts', 'pretrained', 'checkpoints')  # these define them


def __getattr__(name: str) -> Any:
    if name in __all__:
        for file in FILES:
            module = importlib.import_module(f'.{file}', __name__)
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
