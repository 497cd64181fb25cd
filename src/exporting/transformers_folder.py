"""Write a model as a folder of transformers, which Hugging Face's hub and programs read.

It holds config.json, preprocessor_config.json, model.safetensors and README.md, the model card.
transformers itself is not needed: models/transformers_format.py knows its names.
"""
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from audio.fbank import SAMPLE_RATE, normalise
from exporting.agreement import make_example
from exporting.graph import FbankToScores
from exporting.model_card import write_card
from exporting.trained import TrainedModel
from models import ASTModel
from models.ast_models import PATCH_SIZE
from models.atomic import atomic_write
from models.descriptions import HEAD_EPS
from models.layouts import State
from models.transformers_format import (
    CONFIG_SIZES,
    KNOWN_CONFIG,
    KNOWN_EXTRACTOR,
    LOSSES,
    NAMES,
    OWN_FIELD,
    to_transformers,
)
from utilities.errors import DataError
from utilities.folders import whole_folder
from utilities.texts import write_json, write_text

TOLERANCE = 1e-4  # if logits of transformers differ from ours by more, a warning says it
# Fields of a description that go into OWN_FIELD, since config.json has none for them.
OWN_NAMES = ('model_size', 'start')

logger = logging.getLogger(__name__)


def write_transformers(trained: TrainedModel, out: Path, license: str | None = None) -> None:
    """Write a model as a folder that transformers reads: whole or not at all.

    Args:
        out: the folder. It is new or empty.
        license: an identifier of the hub, for the card.

    Raises:
        DataError: if transformers' AST would compute something else, or `out` is not empty.
    """
    with whole_folder(out) as folder:
        state = make_state(trained)
        warn_of_eps(trained)
        write_json(folder / 'config.json', make_config(trained))
        write_json(folder / 'preprocessor_config.json', make_extractor(trained))
        write_text(folder / 'README.md', write_card(trained, out.absolute().name, license))
        with atomic_write(folder / 'model.safetensors') as partial:
            partial.write_bytes(save(state, {'format': 'pt'}))


def make_state(trained: TrainedModel) -> State:
    """Return the weights under the names of transformers.

    Raises:
        DataError: if an AST of transformers computes something else with them.
    """
    model = trained.model
    try:
        state = to_transformers(model.state_dict())
        check_computation(model, state)
        if (rate := trained.description['sample_rate']) != SAMPLE_RATE:
            raise ValueError(f'the feature extractor of the format takes {SAMPLE_RATE} Hz, and '
                             f'this model hears {rate}. --format onnx and torch_export take every '
                             f'rate')
        if trained.description['loss'] == 'CE' and len(trained.labels) == 1:
            raise ValueError('the format has no softmax of a single class: --loss BCE writes the '
                             'model with a sigmoid instead')
    except ValueError as error:
        raise DataError(f'{trained.path} cannot become an AST of transformers: {error}') from None
    return {name: value.contiguous() for name, value in state.items()}


def check_computation(model: ASTModel, state: State) -> None:
    """Raise ValueError if an AST of transformers cannot compute what a model computes.

    Args:
        state: the model's weights under the names of transformers.
    """
    if model.num_class_tokens != 2 or model.patch_size != (PATCH_SIZE, PATCH_SIZE):
        raise ValueError(f'the format is for a head on [CLS] and [DIST], and for patches of 16 x '
                         f'16; {model.config.model_size} differs. --format onnx and torch_export '
                         f'take every model')
    blocks: Any = model.v.blocks
    for name in needed_names(len(blocks)):
        if name not in state:
            raise ValueError(f'the format needs {name}, which this model does not have')
    inner = {norm.eps for norm in model.v.modules() if isinstance(norm, nn.LayerNorm)}
    head_eps = model.mlp_head[0].eps
    if len(inner) > 1 or head_eps not in (HEAD_EPS, *inner):
        raise ValueError(f'the format has one layer_norm_eps for all layers; that of the '
                         f'classifier may be {HEAD_EPS}, but this model has others')
    for block in blocks:
        if not isinstance(block.mlp.act, nn.GELU) or block.mlp.act.approximate != 'none':
            raise ValueError(f'the activation of the format is GELU, that of this model is '
                             f'{block.mlp.act}')


def warn_of_eps(trained: TrainedModel) -> None:
    """Log a warning if transformers computes other logits because of an eps.

    The classifier begins with a LayerNorm. Its eps is 1e-5 in an ASTModel, as in the published
    code. In transformers it is that of all layers, 1e-6 in a DeiT. The less the values of an
    embedding vary, the more that matters. So both are compared on artificial sounds.
    """
    model, graph = trained.model, FbankToScores(trained)
    head: Any = model.mlp_head
    norm, linear = head
    their_eps = shared_eps(model)
    if norm.eps == their_eps:
        return
    with torch.inference_mode():
        fbanks = normalise(make_example(graph), graph.mean, graph.std)
        embeddings = model.forward_features(fbanks)
        ours, theirs = (
            linear(F.layer_norm(embeddings, norm.normalized_shape, norm.weight, norm.bias, eps))
            for eps in (norm.eps, their_eps))
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE:
        logger.warning('in transformers, the logits will differ by up to %.2g on artificial '
                       'sounds: the layer_norm_eps of the classifier is %g there, %g in this model',
                       difference, their_eps, norm.eps)


def shared_eps(model: ASTModel) -> float:
    """Return the layer_norm_eps of a model: that of all layers but the classifier."""
    block: Any = model.v.blocks[0]
    return block.norm1.eps


def needed_names(layers: int) -> Sequence[str]:
    """Return the names of all weights of an AST of transformers, given its number of layers."""
    names: list[str] = []
    for _, name, *_ in NAMES:
        entries = [name + end for end in ('weight', 'bias')] if name.endswith('.') else [name]
        numbers = range(layers) if '#' in name else [0]
        names += [entry.replace('#', str(number)) for number in numbers for entry in entries]
    return names


def make_config(trained: TrainedModel) -> dict[str, Any]:
    """Return the config.json: what the model is, and what its outputs mean."""
    model, description, names = trained.model, trained.description, trained.labels.names
    block: Any = model.v.blocks[0]
    problem_types = {ours: theirs for theirs, ours in LOSSES.items()}
    own = {name: description[name] for name in OWN_NAMES if name in description}
    if trained.dataset:
        own['dataset'] = trained.dataset
    own['head_layer_norm_eps'] = model.mlp_head[0].eps
    own['labels'] = {'mids': list(trained.labels.mids), 'names': list(names)}
    return {
        'architectures': ['ASTForAudioClassification'],
        'model_type': 'audio-spectrogram-transformer',
        'hidden_size': model.v.embed_dim,
        'num_hidden_layers': len(model.v.blocks),
        'num_attention_heads': block.attn.num_heads,
        'intermediate_size': block.mlp.fc1.out_features,
        'layer_norm_eps': shared_eps(model),  # transformers' default is 1e-12
        **{name: values[0] for name, values in KNOWN_CONFIG.items()},
        **{theirs: getattr(model.config, ours) for theirs, ours in CONFIG_SIZES.items()},
        # By it, the pipeline chooses sigmoid or softmax.
        'problem_type': problem_types[description['loss']],
        # Two classes may have one name: then label2id has fewer entries, and only id2label counts.
        'id2label': {str(i): name for i, name in enumerate(names)},
        'label2id': {name: i for i, name in enumerate(names)},
        OWN_FIELD: own}


def make_extractor(trained: TrainedModel) -> dict[str, Any]:
    """Return the preprocessor_config.json: how recordings become the model's input."""
    config = trained.model.config
    return {**{name: values[0] for name, values in KNOWN_EXTRACTOR.items()},
            'mean': trained.description['mean'],
            'std': trained.description['std'],
            'max_length': config.input_tdim,
            'num_mel_bins': config.input_fdim,
            'feature_size': 1,
            'padding_side': 'right',
            'padding_value': 0.0,
            'return_attention_mask': False}
