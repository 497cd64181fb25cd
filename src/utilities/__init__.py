"""Small tools that the training and the recipes share, one subject per file.

`from utilities import *` gives the two functions that scripts for the published code use.
"""
from __future__ import annotations  # recipes import this with any Python from 3.8 on

import importlib

__all__ = ['calculate_stats', 'd_prime']


def __getattr__(name: str) -> object:
    # Imported only if somebody asks for them: the metrics load scipy.
    if name in __all__:
        return getattr(importlib.import_module('.stats', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
