"""Downloads, from a real HTTP server on this machine, are whole, checked, or not there."""
import errno
import hashlib
import os
import shutil
import ssl
import subprocess
import threading

import pytest
import torch

from http_server import Page, Server, running
from models import WeightsError, load_checkpoint, save_checkpoint
from models.downloads import DownloadError, Url, download
from models.weights import WeightsFile, find_or_download


def anything(path):
    """A check that every file passes."""


@pytest.fixture
def no_pause(monkeypatch):
    """Let a second attempt follow the first at once."""
    monkeypatch.setattr('time.sleep', lambda seconds: None)


def test_a_download_lands_at_its_destination_with_nothing_beside_it(server, tmp_path):
    server.pages['/weights.pth?dl=1'] = Page(b'w' * 100_000)
    destination = tmp_path / 'some' / 'new' / 'weights.pth'
    found = download([Url(f'{server.address}/weights.pth?dl=1', destination)], anything)
    assert found == destination
    assert destination.read_bytes() == b'w' * 100_000
    assert os.listdir(destination.parent) == ['weights.pth']


def test_a_download_writes_nothing_into_the_working_directory(server, tmp_path, monkeypatch):
    (tmp_path / 'cwd').mkdir()
    monkeypatch.chdir(tmp_path / 'cwd')
    server.pages['/a'] = Page(b'content')
    download([Url(f'{server.address}/a', tmp_path / 'there' / 'a')], anything)
    assert os.listdir(tmp_path / 'cwd') == []


def test_a_missing_page_falls_back_to_the_second_source(server, tmp_path):
    server.pages['/second'] = Page(b'from the second')
    sources = [
        Url(f'{server.address}/first', tmp_path / 'a'),
        Url(f'{server.address}/second', tmp_path / 'b'),
    ]
    assert download(sources, anything) == tmp_path / 'b'
    assert (tmp_path / 'b').read_bytes() == b'from the second'
    assert not (tmp_path / 'a').exists()


def test_a_connection_cut_short_is_refused_and_leaves_nothing(server, tmp_path, no_pause):
    server.pages['/a'] = Page(b'half', length=8)
    with pytest.raises(DownloadError, match='/a: .*4 out of 8 bytes'):
        download([Url(f'{server.address}/a', tmp_path / 'a')], anything)
    assert os.listdir(tmp_path) == []


def test_a_download_that_its_check_refuses_leaves_nothing(server, tmp_path):
    def refuse(path):
        raise ValueError(f'{path.read_text()} is not what it should be')

    server.pages['/a'] = Page(b'something')
    with pytest.raises(DownloadError, match='/a: something is not what it should be'):
        download([Url(f'{server.address}/a', tmp_path / 'a')], refuse)
    assert os.listdir(tmp_path) == []


def test_a_download_is_checked_beside_its_destination(server, tmp_path):
    """Where a rename moves it in one step; between two file systems it could not."""
    folders = []
    server.pages['/a'] = Page(b'content')
    download(
        [Url(f'{server.address}/a', tmp_path / 'a')],
        lambda path: folders.append(path.parent.parent),
    )
    assert folders == [tmp_path]


def test_a_failed_download_says_why_in_one_line_a_source(server, tmp_path, no_pause):
    server.pages['/second'] = Page(b'half', length=8)
    sources = [Url(f'{server.address}/{name}', tmp_path / name) for name in ('first', 'second')]
    with pytest.raises(DownloadError) as error:
        download(sources, anything)
    first, second = str(error.value).split('\n')
    assert f'{server.address}/first: ' in first and '404' in first
    assert f'{server.address}/second: ' in second


def test_a_file_that_is_there_is_not_downloaded_again(server, tmp_path):
    server.pages['/a'] = server.pages['/b'] = Page(b'new')
    (tmp_path / 'b').write_bytes(b'old')
    sources = [Url(f'{server.address}/{name}', tmp_path / name) for name in ('a', 'b')]
    assert download(sources, anything) == tmp_path / 'b'
    assert (tmp_path / 'b').read_bytes() == b'old'
    assert server.requests == []


@pytest.mark.parametrize('folder', ['file', 'file/below'])
def test_a_folder_that_cannot_be_made_is_named(folder, server, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match=str(tmp_path / folder)):
        download([Url(f'{server.address}/a', tmp_path / folder / 'a')], anything)


@pytest.mark.parametrize('number', [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_named_with_the_reason(
    number, server, tmp_path, monkeypatch
):
    """The system's answer is made up: tests often run as root, whom no permission stops."""
    def refuse(path, *arguments, **options):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, 'mkdir', refuse)
    with pytest.raises(OSError, match=f'{os.strerror(number)}.*{tmp_path / "folder"}'):
        download([Url(f'{server.address}/a', tmp_path / 'folder' / 'a')], anything)


@pytest.fixture
def secure_server(tmp_path_factory, no_proxy, monkeypatch):
    """A Server that speaks https, with a certificate of its own that is trusted here."""
    if not shutil.which('openssl'):
        pytest.skip('there is no openssl to make a certificate with')
    folder = tmp_path_factory.mktemp('certificate')
    command = ('openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 '
               '-subj /CN=here -addext subjectAltName=IP:127.0.0.1 '
               '-keyout key.pem -out certificate.pem')
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    monkeypatch.setenv('SSL_CERT_FILE', str(folder / 'certificate.pem'))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / 'certificate.pem', folder / 'key.pem')
    server = Server()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.address = server.address.replace('http:', 'https:')
    with running(server):
        yield server


def redirect(address):
    """A Page that leads to another address."""
    return Page(status=302, headers={'Location': address})


def test_https_is_followed_to_https(secure_server, tmp_path):
    secure_server.pages['/a'] = redirect(f'{secure_server.address}/b')
    secure_server.pages['/b'] = Page(b'content')
    download([Url(f'{secure_server.address}/a', tmp_path / 'a')], anything)
    assert (tmp_path / 'a').read_bytes() == b'content'


def test_an_https_server_whose_certificate_nobody_vouches_for_is_refused(
    secure_server, tmp_path, monkeypatch, no_pause
):
    monkeypatch.delenv('SSL_CERT_FILE')
    secure_server.pages['/a'] = Page(b'content')
    with pytest.raises(DownloadError, match='certificate'):
        download([Url(f'{secure_server.address}/a', tmp_path / 'a')], anything)


def test_a_redirect_from_https_to_http_is_refused_and_not_asked(
    secure_server, server, tmp_path, no_pause
):
    server.pages['/b'] = Page(b'content')
    secure_server.pages['/a'] = redirect(f'{server.address}/b')
    with pytest.raises(
        DownloadError, match=f'it redirects to {server.address}/b, which is not https'
    ):
        download([Url(f'{secure_server.address}/a', tmp_path / 'a')], anything)
    assert server.requests == [] and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    'address',
    [
        'http://example.invalid/a',
        'http://localhost.example.invalid/a',
        'http://127.0.0.1@example.invalid/a',
        'file:///a',
        'ftp://127.0.0.1/a',
        'data:,a',
        '--help',
    ],
)
def test_an_address_without_https_is_refused(address, tmp_path):
    with pytest.raises(DownloadError, match=f'{address}: the address is not https'):
        download([Url(address, tmp_path / 'a')], anything)
    assert os.listdir(tmp_path) == []


DOWNLOAD = """
import sys, types
from pathlib import Path
models = sys.modules['models'] = types.ModuleType('models')
models.__path__ = ['src/models']  # without its __init__, which imports torch and timm
from models.downloads import HubFile, Url, download
sources = {'url': Url, 'hub': HubFile}
print('started', flush=True)
print(download([sources[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))], check=lambda path: None))
"""


def test_two_processes_at_once_download_once(server, tmp_path, root, start_python):
    page = server.pages['/a'] = Page(b'content', may_answer=threading.Event())
    arguments = ('-c', DOWNLOAD, 'url', f'{server.address}/a', tmp_path / 'a')
    first = start_python(*arguments, cwd=root)
    assert page.asked.wait(60)
    second = start_python(*arguments, cwd=root)
    assert second.stdout.readline() == 'started\n'
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(1)  # for the first
    page.may_answer.set()
    assert first.communicate(timeout=60)[0].split('\n')[1] == str(tmp_path / 'a')
    assert second.communicate(timeout=60)[0] == f'{tmp_path / "a"}\n'
    assert server.requests == ['/a'] and os.listdir(tmp_path) == ['a']


def hub_page(body, **settings):
    """A Page with the headers that huggingface_hub asks of a hub."""
    digest = hashlib.sha256(body).hexdigest()
    return Page(body, headers={'ETag': f'"{digest}"', 'X-Repo-Commit': 'c' * 40}, **settings)


def test_weights_from_the_hub_land_at_their_destination_and_in_no_cache(
    server, tmp_path, root, run_python
):
    server.pages['/someone/model/resolve/main/model.safetensors'] = hub_page(b'weights')
    destination = tmp_path / 'weights' / 'a.safetensors'
    run_python('-c', DOWNLOAD, 'hub', 'someone/model', destination, cwd=root,
               HF_ENDPOINT=server.address, HF_HOME=tmp_path / 'cache')
    assert destination.read_bytes() == b'weights'
    assert os.listdir(destination.parent) == ['a.safetensors']
    assert not list(tmp_path.glob('cache/**/*.safetensors'))


def test_weights_that_the_hub_lacks_are_a_download_error(server, tmp_path, root, start_python):
    process = start_python('-c', DOWNLOAD, 'hub', 'someone/model', tmp_path / 'a.safetensors',
                           cwd=root, HF_ENDPOINT=server.address, HF_HOME=tmp_path / 'cache')
    assert 'DownloadError:   Hugging Face someone/model: ' in process.communicate(timeout=120)[1]
    assert not (tmp_path / 'a.safetensors').exists()


@pytest.fixture
def checkpoint(make_tiny, tmp_path):
    """(a tiny model, the bytes of its checkpoint)"""
    model = make_tiny()
    save_checkpoint(model, tmp_path / 'served.pth')
    return model, (tmp_path / 'served.pth').read_bytes()


def test_published_weights_are_downloaded_to_torch_home_and_load(
    server, checkpoint, make_tiny, torch_home, hub_offline
):
    model, content = checkpoint
    server.pages['/s/some.pth?dl=1'] = Page(content)
    file = WeightsFile('ensemble/some.pth', f'{server.address}/s/some.pth?dl=1', 'nobody/nothing')
    path = find_or_download(file)
    loaded, x = make_tiny(), torch.rand(1, 64, 32)
    load_checkpoint(loaded, path)
    assert path == torch_home / 'ensemble' / 'some.pth'
    assert torch.equal(loaded(x), model(x))
    assert find_or_download(file) == path and len(server.requests) == 1


@pytest.mark.parametrize(
    'size', [lambda content: len(content) // 2, len], ids=['cut', 'cut-unnoticed']
)
def test_half_of_the_published_weights_is_never_trusted(
    size, server, checkpoint, torch_home, hub_offline, no_pause
):
    content = checkpoint[1]
    half = content[:len(content) // 2]
    server.pages['/some.pth'] = Page(half, length=len(half) if size is len else len(content))
    with pytest.raises(WeightsError, match='some.pth'):
        find_or_download(WeightsFile('some.pth', f'{server.address}/some.pth', 'nobody/nothing'))
    assert os.listdir(torch_home) == []


def test_a_web_page_in_place_of_weights_is_refused(server, torch_home, hub_offline):
    server.pages['/some.pth'] = Page(b'<!DOCTYPE html><html>Sign in</html>')
    with pytest.raises(WeightsError, match='not a readable checkpoint'):
        find_or_download(WeightsFile('some.pth', f'{server.address}/some.pth', 'nobody/nothing'))
    assert os.listdir(torch_home) == []


def test_weights_are_held_against_the_digest_in_their_name(
    server, checkpoint, torch_home, hub_offline
):
    def named(digest):
        url = f'{server.address}/deit-{digest}.pth'
        return WeightsFile(f'deit-{digest}.pth', url, 'nobody/nothing')

    digest = hashlib.sha256(checkpoint[1]).hexdigest()[:8]
    server.pages[f'/deit-{digest}.pth'] = server.pages['/deit-00000000.pth'] = Page(checkpoint[1])
    with pytest.raises(WeightsError, match='sha256 of the download does not start with 00000000'):
        find_or_download(named('00000000'))
    assert find_or_download(named(digest)) == torch_home / f'deit-{digest}.pth'
