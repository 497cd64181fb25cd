"""Find files of weights on this machine, or download them."""
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from .descriptions import read_json
from .downloads import DownloadError, HubFile, MissingDownloadError, Url, download, sha256_of_file
from .errors import WeightsError
from .published import PUBLISHED, WeightsFile, published_file
from .state_dicts import INDEX_SUFFIX, read_file, read_state_dict, shard_files

# In a clone of the repository. There is no such folder if pip installed this package.
REPOSITORY_FOLDER = Path(__file__).resolve().parents[2] / 'pretrained_models'
# The names that transformers gives its weights. If several are there, the first counts.
TRANSFORMERS_FILES = ('model.safetensors', f'model.safetensors{INDEX_SUFFIX}', 'pytorch_model.bin',
                      f'pytorch_model.bin{INDEX_SUFFIX}')
SUFFIXES = ('.pth', '.pt', '.ckpt', '.bin', '.safetensors', '.json')  # of files, not of hub ids


def weights_folders() -> list[Path]:
    """Return the folders for weights: $TORCH_HOME, if it is set, then pretrained_models/.

    Outside a clone of the repository, hub_folder() takes the place of pretrained_models/. Downloads
    go to the first folder.
    """
    torch_home = os.environ.get('TORCH_HOME')
    default = REPOSITORY_FOLDER if REPOSITORY_FOLDER.is_dir() else hub_folder()
    return ([Path(torch_home).expanduser()] if torch_home else []) + [default]


def hub_folder() -> Path:
    """Return the folder in which torch.hub stores files.

    It is $TORCH_HOME/hub/checkpoints, or ~/.cache/torch/hub/checkpoints if TORCH_HOME is not set.
    """
    return Path(torch.hub.get_dir()) / 'checkpoints'


def searched_folders() -> list[Path]:
    """Return the folders to search for weights: the folders for weights and those of torch.hub.

    The published code downloaded DeiT with torch.hub, which stores files below $TORCH_HOME.
    """
    folders = []
    for folder in weights_folders():
        folders += [folder, folder / 'hub' / 'checkpoints']
    folders.append(hub_folder())
    return list(dict.fromkeys(folders))  # without repetitions


def find_or_download(file: WeightsFile, sources: Iterable[str] = ('url', 'hub'),
                     check: Callable[[Path], Any] | None = None) -> Path:
    """Return the path of a file of weights. Download it if it is in none of searched_folders().

    Args:
        file: the weights, for example an entry of PUBLISHED.
        sources: 'url' and 'hub' (Hugging Face), in the order in which to try them.
        check: raises an error for a downloaded file that is not what it should be; by default,
            read_state_dict does.

    Raises:
        WeightsError: if the file is nowhere and cannot be downloaded. The message says which file
            to get, from where, and where to put it.
    """
    names = (file.name, Path(file.name).name, file.hub_file_name, Path(file.hub_file_name).name,
             *file.other_names)
    for folder in searched_folders():
        for name in names:
            if (folder / name).is_file():
                return folder / name
    target = weights_folders()[0]
    places: dict[str, Url | HubFile] = {}
    if file.url:
        places['url'] = Url(file.url, target / file.name)
    if file.hub_id:
        places['hub'] = HubFile(file.hub_id, target / file.hub_file_name)
    chosen = [places[source] for source in sources if source in places]
    if not chosen:
        raise WeightsError(f'{file.name} was never put on Hugging Face: get it from {file.url}')
    try:
        return download(chosen, check or read_state_dict)
    except OSError as error:
        raise WeightsError(_download_advice(file, target, error)) from None


def _download_advice(file, target, error):
    """Say which file could not be downloaded, why, and how to get it by hand."""
    folders = ' or '.join(map(str, weights_folders()))
    if advice := _permission_advice(target):
        return f'{file.name} is not in {folders}, and cannot be downloaded ({error}): {advice}'
    ways = []
    if file.url:
        ways.append(f'from {file.url} and put it at {target / file.name}')
    if file.hub_id:
        hub_url = f'https://huggingface.co/{file.hub_id}/resolve/main/model.safetensors'
        ways.append(f'from {hub_url} and put it at {target / file.hub_file_name}')
    either = 'either ' if len(ways) > 1 else ''
    return (f'{file.name} is not in {folders} and could not be downloaded:\n{error}\n'
            f'Get it on a machine with network, {either}{", or ".join(ways)}.')


def _permission_advice(folder):
    """Return what to do if a folder, or the one in which it is to be made, cannot be written."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if os.access(existing, os.W_OK):
        return None
    return f'{existing} cannot be written: set TORCH_HOME to a folder that you can write to'


def locate(source: str | Path) -> Path:
    """Return the path of a checkpoint. Download it if necessary.

    Args:
        source: a file; a folder of `transformers`; the name of a published checkpoint
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
    is_published = any(file.hub_id == str(source) for file in PUBLISHED)
    if is_id and (is_published or not path.parent.exists()):
        return find_or_download_hub(str(source))
    if is_id and path.parent.is_dir():
        raise WeightsError(f'{source} does not exist; as there is a folder {path.parent} here, it '
                           f'is not looked for on Hugging Face')
    if path.suffix and len(path.parts) > 1:
        raise WeightsError(f'{source} does not exist')
    names = ', '.join(Path(file.name).name for file in PUBLISHED)
    raise WeightsError(f'{source} does not exist; a checkpoint is a file, a folder of '
                       f'transformers, the id of a model on Hugging Face, or one of {names}')


def find_transformers(folder: Path) -> Path | None:
    """Return the file of weights in a folder of transformers, or the index of their parts."""
    paths = (folder / name for name in TRANSFORMERS_FILES)
    return next((path for path in paths if path.is_file()), None)


def find_or_download_hub(hub_id: str) -> Path:
    """Return the path of the weights of a model on Hugging Face, with its description beside them.

    If they are in none of weights_folders(), download them to the first.

    Raises:
        WeightsError: if they cannot be downloaded. The message says what to get, and from where.
    """
    folders = [folder / hub_id.replace('/', '--') for folder in weights_folders()]
    for folder in folders:
        if (found := find_transformers(folder)) and _is_whole(found):
            return found
    folder = folders[0]
    try:
        return _download_hub(hub_id, folder)
    except OSError as error:
        if advice := _permission_advice(folder):
            raise WeightsError(f'{hub_id} cannot be downloaded ({error}): {advice}') from None
        raise WeightsError(f'{hub_id} could not be downloaded:\n{error}\nGet config.json, '
                           f'preprocessor_config.json and model.safetensors from '
                           f'https://huggingface.co/{hub_id} and put them into {folder}.') from None


def _is_whole(path):
    """Return whether weights are there with all their parts."""
    if not path.name.endswith(INDEX_SUFFIX):
        return True
    return all((path.parent / file).is_file() for file in shard_files(path))


def _download_hub(hub_id, folder):
    """Download a model of Hugging Face into a folder, in the first form of weights that it has.

    The weights come last: if they are there, everything that belongs to them is there.
    """
    def fetch(name: str, check: Callable) -> Path:
        return download([HubFile(hub_id, folder / name, name)], check)

    fetch('config.json', read_json)
    try:
        fetch('preprocessor_config.json', read_json)
    except MissingDownloadError:
        pass  # load_model then says which statistics it assumes
    for name in TRANSFORMERS_FILES:
        is_index = name.endswith(INDEX_SUFFIX)
        try:
            path = fetch(name, shard_files if is_index else read_state_dict)
        except MissingDownloadError as error:
            problem = error
            continue
        for part in shard_files(path) if is_index else ():
            fetch(part, read_file)
        return path
    raise DownloadError(f'  there are no weights in it: {str(problem).strip()}')


def sha256(path: str | Path) -> str:
    """Return the hexadecimal sha256 of a file; for the index of sharded weights, of all parts."""
    path = Path(path)
    if path.name.endswith(INDEX_SUFFIX):
        parts = [sha256(path.parent / file) for file in shard_files(path)]
        return hashlib.sha256(' '.join(parts).encode()).hexdigest()
    return sha256_of_file(path)
