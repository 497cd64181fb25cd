"""The Audio Spectrogram Transformer and its weights. Needs torch and timm, none of our packages."""
from .ast_models import ASTModel, ModelConfig, patch_grid
from .checkpoints import load_checkpoint, load_model, mean_state_dict, save_checkpoint
from .errors import WeightsError
from .pretrained import resample_pos_embed
from .state_dicts import read_state_dict

__all__ = ['ASTModel', 'ModelConfig', 'WeightsError', 'load_checkpoint', 'load_model',
           'mean_state_dict', 'patch_grid', 'read_state_dict', 'resample_pos_embed',
           'save_checkpoint']
