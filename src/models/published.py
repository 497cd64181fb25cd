"""The published weights: their names and addresses, and what is known of them."""
import re
from dataclasses import dataclass
from pathlib import Path

import timm

from .ast_models import DEIT
from .backbones import strip_tag
from .descriptions import Description
from .errors import WeightsError
from .published_data import AUDIOSET_INPUT, SPEECHCOMMANDS_INPUT

DROPBOX = 'https://www.dropbox.com'


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights, and where it comes from."""
    name: str  # its path below the folder for weights
    url: str | None  # None if it is only on Hugging Face
    hub_id: str | None  # None if it was never put on Hugging Face
    other_names: tuple[str, ...] = ()  # under which people may have put it there

    @property
    def hub_file_name(self) -> str:
        """The name of the same weights from Hugging Face, which have another file format."""
        return str(Path(self.name).with_suffix('.safetensors'))


def _published(name, dropbox_id, hub_suffix=None):
    return WeightsFile(name, f'{DROPBOX}/s/{dropbox_id}/{Path(name).name}?dl=1',
                       hub_suffix and f'MIT/ast-finetuned-{hub_suffix}')


# Every checkpoint that the authors published. A name holds both strides and the mAP, for Speech
# Commands the accuracy.
PUBLISHED = (
    _published('audioset_10_10_0.4593.pth', 'ca0b1v2nlxzyeb4', 'audioset-10-10-0.4593'),
    _published('ensemble/audioset_10_10_0.4495.pth', '1tv0hovue1bxupk', 'audioset-10-10-0.450'),
    _published('ensemble/audioset_10_10_0.4483.pth', '6u5sikl4b9wo4u5', 'audioset-10-10-0.448'),
    _published('ensemble/audioset_10_10_0.4475.pth', 'kt6i0v9fvfm1mbq', 'audioset-10-10-0.448-v2'),
    _published('ensemble/audioset_12_12_0.4467.pth', 'snfhx3tizr4nuc8', 'audioset-12-12-0.447'),
    _published('ensemble/audioset_14_14_0.4431.pth', 'z18s6pemtnxm4k7', 'audioset-14-14-0.443'),
    _published('ensemble/audioset_16_16_0.4422.pth', 'mdsa4t1xmcimia6', 'audioset-16-16-0.442'),
    _published('speechcommands_10_10_0.9812.pth', 'q0tbqpwv44pquwy', 'speech-commands-v2'),
    _published('audioset_bal_10_10_0.3499.pth', 'u5i5v0bej24l47p'),
)
AUDIOSET = PUBLISHED[0]  # audioset_pretrain starts from it: full AudioSet, averaged over epochs
# The models of SSAST, which are starts for training. A name holds the size, the kind of patches and
# how many of them were masked.
SSAST = (
    _published('SSAST-Base-Patch-400.pth', 'ewrzpco95n9jdz6'),
    _published('SSAST-Base-Frame-400.pth', 'nx6nl4d4bl71sm8'),
    _published('SSAST-Base-Patch-250.pth', 'mxrm9qog6aj8hif'),
    _published('SSAST-Base-Frame-250.pth', '4e6l7ulhwrfoana'),
    _published('SSAST-Small-Patch-400.pth', 'i24w446rl9pkf05'),
    _published('SSAST-Tiny-Patch-400.pth', 'fkbtf78y94113wz'),
    _published('SSAST-Tiny-Frame-400.pth', 'rx7g60ruzawffzv'),
)
# How the name of a checkpoint begins: dataset, frequency stride, time stride.
NAME = re.compile(r'(audioset|speechcommands)(?:_bal)?_([1-9]\d*)_([1-9]\d*)_')


def timm_file(name: str) -> WeightsFile:
    """Return the pretrained weights of a model of timm.

    Args:
        name: timm's name of the model. It may end in a tag (vit_base_patch16_224.mae), which says
            how the weights were trained; without one, they are timm's default.

    Raises:
        WeightsError: if timm knows no weights of that name.
    """
    architecture = strip_tag(name)
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # there is no such tag
        config = None
    if config is None or config.hf_hub_id is None:
        tags = timm.list_pretrained(f'{architecture}.*')
        known = f'it knows {", ".join(tags)}' if tags else 'it knows none of this model'
        raise WeightsError(f'timm has no pretrained weights {name} that work here; {known}')
    url = config.url if isinstance(config.url, str) else ''
    by_hand = f'{architecture}.{config.tag}.safetensors'
    if name in DEIT.values():  # under the names of their authors, as in the published code
        return WeightsFile(url.rsplit('/', 1)[1], url, config.hf_hub_id, (by_hand,))
    return WeightsFile(by_hand, None, config.hf_hub_id)


def published_file(name: str | Path) -> WeightsFile | None:
    """Return the published checkpoint of a name, which may lack the folder and the suffix."""
    stem = Path(name).name.removesuffix('.pth').removesuffix('.safetensors')
    return next((file for file in PUBLISHED if Path(file.name).stem == stem), None)


def ssast_file(name: str | Path) -> WeightsFile | None:
    """Return the published model of SSAST with this name, with or without the suffix."""
    return next((file for file in SSAST if Path(name).stem == Path(file.name).stem), None)


def published_on_hub(folder: Path) -> WeightsFile | None:
    """Return the published checkpoint in a folder of transformers, by the folder's name.

    It knows the names that the folder gets from this code (MIT--NAME), from git and
    huggingface-cli (NAME), and in the cache of huggingface_hub (models--MIT--NAME/snapshots/...).
    """
    parts = folder.absolute().parts
    names = {parts[-1].removeprefix('MIT--')}
    names |= {part.removeprefix('models--MIT--') for part in parts if part.startswith('models--')}
    for file in PUBLISHED:
        if file.hub_id and file.hub_id.removeprefix('MIT/') in names:
            return file
    return None


def describe_name(name: str) -> Description:
    """Return the dataset and the strides that the name of a checkpoint says, or {}."""
    match = NAME.match(name)
    if not match:
        return {}
    return {'dataset': match[1], 'fstride': int(match[2]), 'tstride': int(match[3])}


def describe_dataset(dataset: str | None) -> Description:
    """Return the input size and the statistics of a dataset's published models.

    Any dataset but Speech Commands has those of AudioSet.
    """
    return dict(SPEECHCOMMANDS_INPUT if dataset == 'speechcommands' else AUDIOSET_INPUT)


def describe_published(file: WeightsFile) -> Description:
    """Describe a published checkpoint. All of them were trained with BCE."""
    named = describe_name(Path(file.name).name)
    return {**describe_dataset(named['dataset']), **named, 'loss': 'BCE'}
