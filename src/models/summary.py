"""Describe an ASTModel for the log."""
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ast_models import ASTModel, ModelConfig

CLASSIFIED = {0: 'the mean of the patches', 1: '[CLS]', 2: 'the mean of [CLS] and [DIST]'}

logger = logging.getLogger(__name__)


def log_summary(model: 'ASTModel', start_name: str) -> None:
    """Log a line about a model, and a warning if its patches leave gaps.

    Args:
        start_name: of the weights that it starts from.
    """
    logger.info('%s', summarise(model, start_name))
    warn_of_gaps(model.config)


def summarise(model: 'ASTModel', start_name: str) -> str:
    """Describe a model in one line: size, weights, input, patches, parameters."""
    config = model.config
    f, t = model.grid
    height, width = model.patch_size
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    return (f'AST {config.model_size} from {start_name} weights: input {config.input_tdim} frames '
            f'x {config.input_fdim} mel bins, {f} x {t} = {f * t} patches of {height} x {width} '
            f'at strides {config.fstride} x {config.tstride}, head on '
            f'{CLASSIFIED[model.num_class_tokens]} for {config.label_dim} classes, '
            f'{parameters:.1f} M parameters')


def warn_of_gaps(config: 'ModelConfig') -> None:
    """Log a warning if the patches leave gaps, so that the model does not see all of its input."""
    height, width = config.backbone.patch_size
    if ((config.fstride > height and config.input_fdim > height)
            or (config.tstride > width and config.input_tdim > width)):
        logger.warning('strides %d x %d are larger than the patches of %d x %d: the model does not '
                       'see what lies between the patches or after the last one. Strides of at '
                       'most %d x %d leave no gaps', config.fstride, config.tstride, height,
                       width, height, width)
