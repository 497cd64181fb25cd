"""The Audio Spectrogram Transformer and its weights. Needs torch and timm, none of our packages."""
from .ast_models import ASTModel, patch_grid, resample_pos_embed
from .checkpoints import load_checkpoint, load_model, mean_state_dict, save_checkpoint
from .errors import WeightsError
from .state_dicts import read_state_dict

__all__ = ['ASTModel', 'WeightsError', 'load_checkpoint', 'load_model', 'mean_state_dict',
           'patch_grid', 'read_state_dict', 'resample_pos_embed', 'save_checkpoint']
