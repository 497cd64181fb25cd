"""Describe a checkpoint: what is known of it, and what is assumed of the rest."""
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .descriptions import (
    FIELDS,
    HEAD_EPS,
    LAYER_NORM_EPS,
    Description,
    check_description,
    read_json,
)
from .errors import WeightsError
from .published import (
    describe_dataset,
    describe_name,
    describe_published,
    published_file,
    published_on_hub,
)
from .published_data import SAMPLE_RATE
from .transformers_format import CONFIG_DEFAULTS, describe_transformers
from .weights import TRANSFORMERS_FILES

MODEL_SETTINGS = ('fstride', 'tstride', 'input_fdim', 'input_tdim')
# What a checkpoint of this embedding dimension is, if it does not say its model_size. base224 and
# base384 differ only in the images that DeiT saw.
SIZES = {192: 'tiny224', 384: 'small224', 768: 'base384'}
# Fields that a checkpoint may lack, in the order of messages -> what sets them: an option of the
# programs that load a checkpoint, or the .json beside it.
OPTIONS = {'loss': '--loss', 'mean': '--dataset_mean', 'std': '--dataset_std',
           'fstride': '--fstride', 'tstride': '--tstride', 'input_fdim': '--num_mel_bins',
           'input_tdim': '--audio_length', 'layer_norm_eps': 'layer_norm_eps in a .json beside it',
           'model_size': 'model_size in a .json beside it'}
SCORES = {'BCE': 'BCE (sigmoid scores)', 'CE': 'CE (softmax scores)'}

logger = logging.getLogger(__name__)


def describe(path: str | Path, is_transformers: bool = False,
             fields: Iterable[str] = tuple(FIELDS)) -> Description:
    """Return what is known of a checkpoint besides its weights.

    It is known from the .json beside it that save_checkpoint writes, from its name if that is a
    published one, or from the config.json that transformers puts beside its weights.

    Args:
        is_transformers: whether the weights have the names of transformers.
        fields: those that the caller uses; the others of the .json are not checked.

    Raises:
        WeightsError: if the .json is not valid JSON, has an impossible value, or asks for
            something that AST does not have.
    """
    path = Path(path)
    beside = path.with_suffix('.json')
    if beside != path and beside.is_file():
        return check_description(read_json(beside), beside, fields)
    if file := published_file(path):
        return describe_published(file)
    is_transformers = is_transformers or path.name in TRANSFORMERS_FILES
    if is_transformers and (path.parent / 'config.json').is_file():
        theirs = describe_transformers(path.parent)
        if file := published_on_hub(path.parent):
            # Their configs have no problem_type; they were trained with BCE. Their configs say
            # another eps, 1e-12, than their authors computed with.
            return {**describe_published(file), **theirs, 'layer_norm_eps': LAYER_NORM_EPS,
                    'head_layer_norm_eps': HEAD_EPS}
        return {'dataset': path.parent.name, **theirs}
    return {}


def find_eps(description: Description, path: Path, is_transformers: bool) -> tuple[float, float]:
    """Return the eps of LayerNorms in the transformer and in the classifier of a checkpoint.

    transformers has one eps for all of them. A checkpoint of this repository that does not say them
    has those of ASTModel, and so have the published ones in both formats.
    """
    is_theirs = is_transformers and not published_file(path)
    default: float = CONFIG_DEFAULTS['layer_norm_eps'] if is_theirs else LAYER_NORM_EPS
    eps: float = description.get('layer_norm_eps', default)
    return eps, description.get('head_layer_norm_eps', eps if is_theirs else HEAD_EPS)


def complete_description(path: Path, is_transformers: bool, label_dim: int, dim: int,
                         settings: dict[str, Any], given: dict[str, Any]) -> Description:
    """Describe a checkpoint in full. Log in one line what was assumed.

    Args:
        label_dim: number of its classes.
        dim: of its embeddings.
        settings: model_size and MODEL_SETTINGS. A value counts only if the checkpoint gives none.
            None: not given.
        given: mean, std and loss. They count instead of the checkpoint's own. None: not given.

    Raises:
        WeightsError: if strides are not known.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    given = {name: value for name, value in given.items() if value is not None}
    said = describe(path, is_transformers)
    named = {} if said else describe_name(path.name)

    # Without a problem_type, transformers takes softmax. But the softmax of a single class is
    # always 1: one class means sigmoid.
    loss = 'CE' if is_transformers and label_dim > 1 else 'BCE'
    defaults = {**describe_dataset(named.get('dataset')), 'loss': loss, 'sample_rate': SAMPLE_RATE}
    eps, _ = find_eps({}, path, is_transformers)
    if eps != LAYER_NORM_EPS:
        defaults['layer_norm_eps'] = eps
    size = {'model_size': SIZES[dim]} if dim in SIZES else {}
    if is_transformers or published_file(path):
        said = {**size, **said}  # such an AST is a DeiT
    else:
        # It may also be built on another ViT, such as SSAST's. Its weights have the same names and
        # shapes, but its head classifies something else.
        defaults |= size

    # Later ones win: defaults < settings < the file's name < what it says < what the caller gives.
    description = {**defaults, **settings, **named, **said, **given}
    if missing := [name for name in MODEL_SETTINGS if name not in description]:
        options = ' and '.join(OPTIONS[name] for name in missing)
        raise WeightsError(f'{path} does not say its {" and ".join(missing)}, and no .json beside '
                           f'it does: give {options}')
    known = {**settings, **said, **given}
    assumed = {name: description[name] for name in OPTIONS
               if name in defaults and name not in known}
    if assumed:
        logger.warning('%s', _assumption(path, assumed, named))
    return {**description, 'assumed': assumed}


def _assumption(path: Path, assumed: Description, named: Description) -> str:
    """Return the sentence that says what was assumed of a checkpoint, and how to set it."""
    by_name = (f'; its name says {named["dataset"]}, strides {named["fstride"]} x '
               f'{named["tstride"]}' if named else '')
    values = dict(assumed)
    if 'loss' in values:
        values['loss'] = SCORES[values['loss']]
    if 'model_size' in values:
        values['model_size'] += ', whose head classifies [CLS] and [DIST]'
    what = ', '.join(f'{name} {value} ({OPTIONS[name]})' for name, value in values.items())
    return f'{path} does not describe itself in full{by_name}; assumed: {what}'
