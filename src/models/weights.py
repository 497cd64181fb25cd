"""The published weights: which there are, where they come from, where they are looked for."""
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import timm

from .descriptions import read_json
from .files import DownloadError, HubFile, Url, download
from .state_dicts import WeightsError, read_state_dict

DROPBOX = 'https://www.dropbox.com'
REPOSITORY_FOLDER = Path(__file__).resolve().parents[2] / 'pretrained_models'


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights: its name below the weights' folder, its address, and the same on Hugging Face.

    One that was never put on Hugging Face has no hub_id.
    """
    name: str
    url: str
    hub_id: str | None

    @property
    def hub_name(self):
        """Name of the Hugging Face form: another file format, so another suffix."""
        return str(Path(self.name).with_suffix('.safetensors'))


def _published(name, dropbox_id, hub_name=None):
    return WeightsFile(name, f'{DROPBOX}/s/{dropbox_id}/{Path(name).name}?dl=1', hub_name and f'MIT/{hub_name}')


# Every checkpoint that the authors published. The mAP (of Speech Commands the accuracy) is in the name.
PUBLISHED = (
    _published('audioset_10_10_0.4593.pth', 'ca0b1v2nlxzyeb4', 'ast-finetuned-audioset-10-10-0.4593'),
    _published('ensemble/audioset_10_10_0.4495.pth', '1tv0hovue1bxupk', 'ast-finetuned-audioset-10-10-0.450'),
    _published('ensemble/audioset_10_10_0.4483.pth', '6u5sikl4b9wo4u5', 'ast-finetuned-audioset-10-10-0.448'),
    _published('ensemble/audioset_10_10_0.4475.pth', 'kt6i0v9fvfm1mbq', 'ast-finetuned-audioset-10-10-0.448-v2'),
    _published('ensemble/audioset_12_12_0.4467.pth', 'snfhx3tizr4nuc8', 'ast-finetuned-audioset-12-12-0.447'),
    _published('ensemble/audioset_14_14_0.4431.pth', 'z18s6pemtnxm4k7', 'ast-finetuned-audioset-14-14-0.443'),
    _published('ensemble/audioset_16_16_0.4422.pth', 'mdsa4t1xmcimia6', 'ast-finetuned-audioset-16-16-0.442'),
    _published('speechcommands_10_10_0.9812.pth', 'q0tbqpwv44pquwy', 'ast-finetuned-speech-commands-v2'),
    _published('audioset_bal_10_10_0.3499.pth', 'u5i5v0bej24l47p'),
)
AUDIOSET = PUBLISHED[0]  # what audioset_pretrain starts from: full AudioSet, averaged over epochs
# What the published checkpoints were trained on: size of the input, statistics of the fbank.
AUDIOSET_INPUT = {'input_fdim': 128, 'input_tdim': 1024, 'mean': -4.2677393, 'std': 4.5689974}
SPEECHCOMMANDS_INPUT = {'input_fdim': 128, 'input_tdim': 128, 'mean': -6.845978, 'std': 5.5654526}
TRANSFORMERS_FILES = ('model.safetensors', 'pytorch_model.bin')  # what transformers has named its weights
HUB_FILES = ('config.json', 'preprocessor_config.json', 'model.safetensors')  # the weights last: they make it whole


def deit_file(deit_name):
    """The ImageNet weights of a timm DeiT, under the name that their authors gave them."""
    config = timm.get_pretrained_cfg(deit_name)
    return WeightsFile(config.url.rsplit('/', 1)[1], config.url, config.hf_hub_id)


def weights_folders():
    """Folders searched for weights, the one for downloads first: $TORCH_HOME if set, then pretrained_models/."""
    torch_home = os.environ.get('TORCH_HOME')
    return ([Path(torch_home).expanduser()] if torch_home else []) + [REPOSITORY_FOLDER]


def find_or_download(file, sources=('url', 'hub')):
    """Path of a WeightsFile in one of weights_folders(), downloaded to the first of them where none has it.

    sources: where to download from, the best first: 'url', 'hub' (Hugging Face).
    Raises WeightsError where it is nowhere and cannot be downloaded: which file to get, from where, where to put it.
    """
    folders = weights_folders()
    for folder in folders:
        for name in (file.name, Path(file.name).name, file.hub_name, Path(file.hub_name).name):
            if (folder / name).is_file():
                return folder / name
    here = folders[0]
    places = {'url': Url(file.url, here / file.name)}
    if file.hub_id:
        places['hub'] = HubFile(file.hub_id, here / file.hub_name)
    chosen = [places[source] for source in sources if source in places]
    if not chosen:
        raise WeightsError(f'{file.name} was never put on Hugging Face: get it from {file.url}')
    try:
        return download(chosen, check=check_download)
    except DownloadError as error:
        by_hub = (f', or from https://huggingface.co/{file.hub_id}/resolve/main/model.safetensors '
                  f'and put it at {here / file.hub_name}') if file.hub_id else ''
        raise WeightsError(
            f'{file.name} is not in {" or ".join(map(str, folders))} and could not be downloaded:\n{error}\n'
            f'Get it on a machine with network, either from {file.url} and put it at {here / file.name}'
            f'{by_hub}.') from None


def published_file(name):
    """The WeightsFile of PUBLISHED that a name means, with or without folder and suffix; None where there is none."""
    stem = Path(name).name.removesuffix('.pth').removesuffix('.safetensors')
    return next((file for file in PUBLISHED if Path(file.name).stem == stem), None)


def locate(source):
    """The file of a checkpoint, downloaded where need be.

    source: a path; a folder of `transformers`; the name of a published checkpoint (audioset_10_10_0.4593.pth); the id
    of a model on Hugging Face (MIT/ast-finetuned-audioset-10-10-0.4593). Raises WeightsError where it is none of them.
    """
    path = Path(source)
    if path.is_dir():
        for name in TRANSFORMERS_FILES:
            if (path / name).is_file():
                return path / name
        raise WeightsError(f'the folder {path} holds no model.safetensors')
    if path.is_file():
        return path
    if file := published_file(source):
        return find_or_download(file)
    is_id = re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', str(source)) and path.suffix not in ('.pth', '.safetensors')
    if is_id and not path.parent.is_file():
        return find_or_download_hub(str(source))
    if path.suffix and len(path.parts) > 1:
        raise WeightsError(f'{source} does not exist')
    raise WeightsError(f'{source} does not exist; a checkpoint is a file, a folder of transformers, the id of a model '
                       f'on Hugging Face, or one of {", ".join(Path(file.name).name for file in PUBLISHED)}')


def find_or_download_hub(hub_id):
    """Path of the weights of a model on Hugging Face, its description beside them, in one of weights_folders().

    Raises WeightsError where they are in none and cannot be downloaded.
    """
    folders = [folder / hub_id.replace('/', '--') for folder in weights_folders()]
    for folder in folders:
        if (folder / HUB_FILES[-1]).is_file():
            return folder / HUB_FILES[-1]
    try:
        for name in HUB_FILES:
            check = check_download if name == HUB_FILES[-1] else check_json
            path = download([HubFile(hub_id, folders[0] / name, name)], check)
    except DownloadError as error:
        raise WeightsError(f'{hub_id} could not be downloaded:\n{error}\nGet {", ".join(HUB_FILES)} from '
                           f'https://huggingface.co/{hub_id} and put them into {folders[0]}.') from None
    return path


def check_json(path, _):
    """Raise WeightsError where a fresh download is not a JSON object."""
    read_json(Path(path))


def check_download(path, source):
    """Raise WeightsError where a fresh download is not a readable state dict or not the file that its name promises."""
    digest = re.search(r'-([0-9a-f]{8,})\.pth', str(source))
    if digest and not sha256(path).startswith(digest[1]):
        raise WeightsError(f'the sha256 of the download does not start with {digest[1]}')
    read_state_dict(path)


def sha256(path):
    """Hexadecimal sha256 of a file."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
