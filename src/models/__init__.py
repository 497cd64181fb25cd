"""The Audio Spectrogram Transformer and its weights. Needs torch and timm, nothing else of this repository."""
from .ast_models import ASTModel, patch_grid, resample_pos_embed
from .weights import WeightsError, load_checkpoint, read_state_dict, save_checkpoint

__all__ = ['ASTModel', 'WeightsError', 'load_checkpoint', 'patch_grid', 'read_state_dict', 'resample_pos_embed',
           'save_checkpoint']
