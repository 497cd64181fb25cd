"""The published weights: which there are, where they come from, where they are looked for."""
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from .descriptions import AUDIOSET_INPUT, SPEECHCOMMANDS_INPUT, Description, read_json
from .errors import WeightsError
from .files import DownloadError, HubFile, MissingDownloadError, Url, download
from .state_dicts import INDEX_SUFFIX, read_file, read_state_dict, shard_files

DROPBOX = 'https://www.dropbox.com'
REPOSITORY_FOLDER = Path(__file__).resolve().parents[2] / 'pretrained_models'


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights: its name below the weights' folder, and where it comes from.

    One that was never put on Hugging Face has no hub_id.
    """
    name: str
    url: str
    hub_id: str | None

    @property
    def hub_name(self) -> str:
        """Name of the Hugging Face form: another file format, so another suffix."""
        return str(Path(self.name).with_suffix('.safetensors'))


def _published(name, dropbox_id, hub_name=None):
    return WeightsFile(name, f'{DROPBOX}/s/{dropbox_id}/{Path(name).name}?dl=1',
                       hub_name and f'MIT/ast-finetuned-{hub_name}')


# Every checkpoint that the authors published. The mAP (of Speech Commands the accuracy) is in the
# name.
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
AUDIOSET = PUBLISHED[0]  # what audioset_pretrain starts from: full AudioSet, averaged over epochs
# The beginning of the name of a checkpoint says the dataset and both strides.
NAME = re.compile(r'(audioset|speechcommands)(?:_bal)?_([1-9]\d*)_([1-9]\d*)_')

# The names that transformers gives its weights, the best first.
TRANSFORMERS_FILES = ('model.safetensors', f'model.safetensors{INDEX_SUFFIX}', 'pytorch_model.bin',
                      f'pytorch_model.bin{INDEX_SUFFIX}')
SUFFIXES = ('.pth', '.pt', '.ckpt', '.bin', '.safetensors', '.json')  # of no model's id


def deit_file(deit_name: str) -> WeightsFile:
    """Return the ImageNet weights of a timm DeiT, under the name that their authors gave them."""
    config = timm.get_pretrained_cfg(deit_name)
    return WeightsFile(config.url.rsplit('/', 1)[1], config.url, config.hf_hub_id)


def weights_folders() -> list[Path]:
    """Return the folders that are for weights: $TORCH_HOME if it is set, pretrained_models/.

    Downloads go to the first.
    """
    torch_home = os.environ.get('TORCH_HOME')
    return ([Path(torch_home).expanduser()] if torch_home else []) + [REPOSITORY_FOLDER]


def searched_folders() -> list[Path]:
    """Return the folders in which weights are looked for: those for weights and torch.hub's.

    The published code had timm download DeiT by torch.hub, which stores below $TORCH_HOME.
    """
    folders = [where for folder in weights_folders()
               for where in (folder, folder / 'hub' / 'checkpoints')]
    return list(dict.fromkeys([*folders, Path(torch.hub.get_dir()) / 'checkpoints']))


def find_or_download(file: WeightsFile, sources: Iterable[str] = ('url', 'hub')) -> Path:
    """Return the path of a file of weights; download it if it is in none of searched_folders().

    Args:
        sources: where to download from, the best first: 'url', 'hub' (Hugging Face).

    Raises:
        WeightsError: if the file is nowhere and cannot be downloaded. Says which file to get, from
            where, and where to put it.
    """
    names = (file.name, Path(file.name).name, file.hub_name, Path(file.hub_name).name)
    for folder in searched_folders():
        for name in names:
            if (folder / name).is_file():
                return folder / name
    here = weights_folders()[0]
    places = {'url': Url(file.url, here / file.name)}
    if file.hub_id:
        places['hub'] = HubFile(file.hub_id, here / file.hub_name)
    chosen = [places[source] for source in sources if source in places]
    if not chosen:
        raise WeightsError(f'{file.name} was never put on Hugging Face: get it from {file.url}')
    try:
        return download(chosen, check=check_download)
    except DownloadError as error:
        hub = f'https://huggingface.co/{file.hub_id}/resolve/main/model.safetensors'
        by_hub = f', or from {hub} and put it at {here / file.hub_name}' if file.hub_id else ''
        raise WeightsError(
            f'{file.name} is not in {" or ".join(map(str, weights_folders()))} and could not be '
            f'downloaded:\n{error}\nGet it on a machine with network, either from {file.url} and '
            f'put it at {here / file.name}{by_hub}.') from None


def published_file(name: str | Path) -> WeightsFile | None:
    """Return the published checkpoint that a name means, with or without folder and suffix."""
    stem = Path(name).name.removesuffix('.pth').removesuffix('.safetensors')
    return next((file for file in PUBLISHED if Path(file.name).stem == stem), None)


def published_on_hub(folder: Path) -> WeightsFile | None:
    """Return the published checkpoint that a folder of transformers holds, by the folder's name.

    Knows the names that it gets here, from git and huggingface-cli, and in the hub's cache.
    """
    parts = folder.absolute().parts
    names = {parts[-1].removeprefix('MIT--')}
    names |= {part.removeprefix('models--MIT--') for part in parts if part.startswith('models--')}
    return next((file for file in PUBLISHED
                 if file.hub_id and file.hub_id.removeprefix('MIT/') in names), None)


def describe_name(name: str) -> Description:
    """Return what the name of a checkpoint says: dataset and strides; {} if it says nothing."""
    match = NAME.match(name)
    if not match:
        return {}
    return {'dataset': match[1], 'fstride': int(match[2]), 'tstride': int(match[3])}


def describe_dataset(dataset: str | None) -> Description:
    """Return the input that the published models of a dataset take; AudioSet's by default."""
    return dict(SPEECHCOMMANDS_INPUT if dataset == 'speechcommands' else AUDIOSET_INPUT)


def describe_published(file: WeightsFile) -> Description:
    """Return all that is known of a published checkpoint; each was trained with BCE."""
    named = describe_name(Path(file.name).name)
    return {**describe_dataset(named['dataset']), **named, 'loss': 'BCE'}


def locate(source: str | Path) -> Path:
    """Return the file of a checkpoint; download it if need be.

    Args:
        source: a path; a folder of `transformers`; the name of a published checkpoint
            (audioset_10_10_0.4593.pth); or the id of a model on Hugging Face
            (MIT/ast-finetuned-audioset-10-10-0.4593).

    Raises:
        WeightsError: if it is none of them, or cannot be downloaded.
    """
    path = Path(source)
    if path.is_dir():
        if found := find_transformers(path):
            return found
        raise WeightsError(f'the folder {path} holds no model.safetensors, whole or in parts, and '
                           f'no pytorch_model.bin; the model of a run is '
                           f'EXP_DIR/models/best_audio_model.pth')
    if path.is_file():
        return path
    if file := published_file(source):
        return find_or_download(file)
    is_id = re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', str(source)) and path.suffix not in SUFFIXES
    if is_id and not path.parent.is_file():
        return find_or_download_hub(str(source))
    if path.suffix and len(path.parts) > 1:
        raise WeightsError(f'{source} does not exist')
    names = ', '.join(Path(file.name).name for file in PUBLISHED)
    raise WeightsError(f'{source} does not exist; a checkpoint is a file, a folder of '
                       f'transformers, the id of a model on Hugging Face, or one of {names}')


def find_transformers(folder: Path) -> Path | None:
    """Return the weights in a folder of transformers, or the index of their parts."""
    return next((folder / name for name in TRANSFORMERS_FILES if (folder / name).is_file()), None)


def find_or_download_hub(hub_id: str) -> Path:
    """Return the path of the weights of a model on Hugging Face, its description beside them.

    They are looked for in weights_folders(), and downloaded to the first.

    Raises:
        WeightsError: if they are in none and cannot be downloaded.
    """
    folders = [folder / hub_id.replace('/', '--') for folder in weights_folders()]
    for folder in folders:
        if (found := find_transformers(folder)) and _is_whole(found):
            return found
    folder = folders[0]
    try:
        return _download_hub(hub_id, folder)
    except DownloadError as error:
        raise WeightsError(f'{hub_id} could not be downloaded:\n{error}\nGet config.json, '
                           f'preprocessor_config.json and model.safetensors from '
                           f'https://huggingface.co/{hub_id} and put them into {folder}.') from None


def _is_whole(path):
    """Tell whether weights are there with all their parts."""
    return not path.name.endswith(INDEX_SUFFIX) or all(
        (path.parent / file).is_file() for file in shard_files(path))


def _download_hub(hub_id, folder):
    """Download a model of the hub into a folder, whichever form of weights it has.

    The weights come last: a folder that has them has what belongs to them.
    """
    def fetch(name: str, check: Callable) -> Path:
        return download([HubFile(hub_id, folder / name, name)], check)

    fetch('config.json', check_json)
    try:
        fetch('preprocessor_config.json', check_json)
    except MissingDownloadError:
        pass  # load_model says what it assumes instead
    for name in TRANSFORMERS_FILES:
        is_index = name.endswith(INDEX_SUFFIX)
        try:
            path = fetch(name, check_index if is_index else check_download)
        except MissingDownloadError as error:
            problem = error
            continue
        for file in shard_files(path) if is_index else ():
            fetch(file, check_shard)
        return path
    raise DownloadError(f'  there are no weights in it: {str(problem).strip()}')


def check_json(path: str | Path, _) -> None:
    """Raise WeightsError if a fresh download is no JSON object."""
    read_json(Path(path))


def check_index(path: str | Path, _) -> None:
    """Raise WeightsError if a fresh download is no index of sharded weights."""
    shard_files(Path(path))


def check_shard(path: str | Path, _) -> None:
    """Raise WeightsError if a fresh download is no readable part of sharded weights."""
    read_file(Path(path))


def check_download(path: str | Path, source: Url | HubFile) -> None:
    """Raise WeightsError if a fresh download is no state dict, or not the one that was named."""
    digest = re.search(r'-([0-9a-f]{8,})\.pth', str(source))
    if digest and not sha256(path).startswith(digest[1]):
        raise WeightsError(f'the sha256 of the download does not start with {digest[1]}')
    read_state_dict(path)


def sha256(path: str | Path) -> str:
    """Return the hexadecimal sha256 of a file; of sharded weights, of their parts together."""
    path = Path(path)
    if path.name.endswith(INDEX_SUFFIX):
        parts = [sha256(path.parent / file) for file in shard_files(path)]
        return hashlib.sha256(' '.join(parts).encode()).hexdigest()
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
