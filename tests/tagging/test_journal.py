"""Long jobs of inference: outputs grow as files are done, and the same command line continues."""
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import inference
from audio.info import read_duration
from models.locks import hold_lock
from small_tagger import save_model, tag_here
from tagging import load_tagger, tag
from tagging.command import JOB_OPTIONS, find_audio
from tagging.journal import Job
from tagging.outputs import Csv
from utilities import parallel
from utilities.parallel import one_thread

FILES = 140
OUTPUTS = {'--json': 'out.json', '--csv': 'out.csv', '--embeddings': 'out.npz'}


@pytest.fixture(scope='module')
def job(tmp_path_factory):
    """Make a folder with 140 short recordings, some of them broken or longer, and a checkpoint."""
    folder = tmp_path_factory.mktemp('job')
    rng = np.random.default_rng(0)
    (folder / 'in').mkdir()
    for i in range(FILES):
        samples = 0.1 * rng.standard_normal(1600 + 1700 * (i % 7))
        soundfile.write(folder / 'in' / f'{i:03}.wav', samples, 16000)
    for i in (3, 4, 70):
        (folder / 'in' / f'{i:03}.wav').write_text('not audio')
    save_model(folder / 'model.pth')
    return folder


@pytest.fixture
def folder(job, tmp_path, monkeypatch):
    """Work in an empty folder beside which the job is, on one thread."""
    monkeypatch.chdir(tmp_path)
    os.symlink(job / 'in', 'in')
    os.symlink(job / 'model.pth', 'model.pth')
    os.symlink(job / 'model.json', 'model.json')
    with one_thread():
        yield tmp_path


# Options that a job knows in another way: by its files, by the digest of its Tagger, or by name.
KNOWN_OTHERWISE = {'help', 'audio', 'audio_path', 'checkpoint', 'fstride', 'tstride', 'num_mel_bins',
                   'audio_length', 'label_csv', 'dataset_mean', 'dataset_std', 'loss', 'device',
                   'amp', 'batch_size'}
HARMLESS = {'num_workers', 'raw_rate'}  # the second is for standard input, which is no job


def test_every_option_that_results_depend_on_belongs_to_a_job():
    names = {action.dest for action in inference.make_parser()._actions}
    assert names == {*JOB_OPTIONS, *KNOWN_OTHERWISE, *HARMLESS}


def words(folder, *more, files=('in',)):
    """Return the command line of a job whose outputs go into a folder."""
    outputs = [word for option, name in OUTPUTS.items() for word in (option, f'{folder}/{name}')]
    return [*files, '--checkpoint', 'model.pth', '--device', 'cpu', '--amp', 'off', *outputs,
            *more]


def run(*line):
    """Run inference here; return what it says at its end, or None."""
    try:
        inference.main([*line, '--num_workers', '0'])
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def break_off(monkeypatch):
    """Run inference, and stop it before the journal tells of one more recording than so many."""
    def start(count, *line):
        with monkeypatch.context() as patch:
            note = Job._note

            def note_or_stop(job, state):
                if state.files > count:
                    raise KeyboardInterrupt
                note(job, state)
            patch.setattr(Job, '_note', note_or_stop)
            assert run(*line) == 'stopped'
    return start


def same_outputs(one, other):
    """Return whether two folders hold the same outputs, and nothing else."""
    first, second = ({path.name: path.read_bytes() for path in Path(folder).iterdir()}
                     for folder in (one, other))
    assert set(first) == set(second) == set(OUTPUTS.values())
    return first == second


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes are forked, to start quickly')
def test_a_job_that_is_killed_at_random_ends_like_an_undisturbed_one(folder, root):
    run(*words('undisturbed'))
    script = root / 'tests' / 'kill_tagging.py'
    done = subprocess.run(
        [sys.executable, script, '--kills', '6', '--most', '22', '--', *words('killed')],
        capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 1 and '3 of 140 files could not be read' in done.stderr
    assert int(done.stdout.split()[-1]) == 6, done.stderr
    assert 'the same command line continues from there' in done.stderr
    assert same_outputs('undisturbed', 'killed')


@pytest.mark.parametrize('batch_size', ['3', '4'])
def test_outputs_do_not_depend_on_where_the_job_was_broken_off(folder, break_off, batch_size):
    line = ['--batch_size', batch_size]
    files = [f'in/{i:03}.wav' for i in range(12)]
    run(*words('whole', *line, files=files))
    for count in range(1, 12):
        break_off(count, *words(f'after{count}', *line, files=files))
        assert 'could not be read' in run(*words(f'after{count}', *line, files=files))
        assert same_outputs('whole', f'after{count}')


def test_a_damaged_line_of_the_journal_does_not_count(folder, break_off):
    files = [f'in/{i:03}.wav' for i in range(12)]
    run(*words('whole', files=files))
    break_off(6, *words('damaged', files=files))
    with open('damaged/out.json.progress', 'ab') as journal:
        journal.write(b'\0' * 20 + b'\n[1]\n7\n')  # a disk may leave this when the power fails
    assert 'could not be read' in run(*words('damaged', files=files))
    assert same_outputs('whole', 'damaged')


def test_a_job_whose_journal_lost_its_settings_is_refused_in_one_sentence(folder, break_off):
    files = [f'in/{i:03}.wav' for i in range(12)]
    break_off(6, *words('out', files=files))
    journal = Path('out/out.json.progress')
    _, rest = journal.read_bytes().split(b'\n', 1)
    for settings in (b'\0\0\0', b'[]'):
        journal.write_bytes(settings + b'\n' + rest)
        said = run(*words('out', files=files))
        assert 'unfinished job' in said and 'out/out.json.progress' in said and '\n' not in said


def test_files_grow_as_recordings_are_done(folder, break_off):
    break_off(40, *words('out'))
    assert sorted(path.name for path in Path('out').iterdir()) == sorted(
        [*(f'{name}.partial' for name in OUTPUTS.values()), 'out.json.progress'])
    with open('out/out.csv.partial', newline='') as file:
        rows = list(csv.DictReader(file))
    assert {'in/000.wav', 'in/039.wav'} <= {row['path'] for row in rows}
    entries = json.loads(Path('out/out.json.partial').read_text() + ']')
    assert [entry['path'] for entry in entries[:40]] == [f'in/{i:03}.wav' for i in range(40)]


def test_json_lines_are_the_objects_of_the_list(folder):
    files = ['in/002.wav', 'in/003.wav']
    run(*files, '--checkpoint', 'model.pth', '--json', 'a.json', '--device', 'cpu')
    run(*files, '--checkpoint', 'model.pth', '--json', 'a.jsonl', '--device', 'cpu')
    text = Path('a.json').read_text()
    assert text == json.dumps(json.loads(text), indent=1) + '\n'
    assert list(map(json.loads, Path('a.jsonl').read_text().splitlines())) == json.loads(text)


@pytest.mark.parametrize('change, name', [
    (['--top_k', '1'], '--top_k'), (['--hop_seconds', '0.1'], '--hop_seconds'),
    (['--batch_size', '2'], '--batch_size'), (['in/../in/000.wav'], 'files')])
def test_another_job_does_not_go_on_with_what_one_has_left(folder, break_off, capsys, change, name):
    break_off(20, *words('out'))
    with_other = words('out', *change) if name != 'files' else words('out', files=['in', *change])
    said = run(*with_other)
    assert f'unfinished job with other {name}' in said and 'remove out/out.json.progress' in said
    for path in said.rpartition('remove ')[2].split():
        os.remove(path)
    assert run(*with_other).startswith('error: 3 of')


def test_other_weights_under_the_same_name_do_not_go_on(folder, break_off):
    for name in ('model.pth', 'model.json'):
        os.remove(name)
    save_model(folder / 'model.pth')
    break_off(20, *words('out'))
    save_model(folder / 'model.pth', seed=1)
    assert 'other checkpoints' in run(*words('out'))


def test_what_is_left_without_its_journal_is_not_overwritten(folder, break_off):
    break_off(20, *words('out'))
    assert 'unfinished job' in run('in', '--checkpoint', 'model.pth', '--csv', 'out/out.csv')
    assert run(*words('out')).startswith('error: 3 of')


def test_a_job_that_has_done_nothing_leaves_nothing(folder, break_off):
    break_off(0, *words('out'))
    assert not Path('out').exists()


def test_a_kill_while_names_are_given_loses_nothing(folder, monkeypatch):
    run(*words('whole'))
    with monkeypatch.context() as patch:
        patch.setattr(Csv, 'publish', lambda self: os.kill(os.getpid(), 2))
        assert run(*words('out')) == 'stopped'
    assert Path('out/out.json').exists() and not Path('out/out.csv').exists()
    monkeypatch.setattr(Csv, 'piece', None)  # nothing is tagged again
    run(*words('out'))
    assert same_outputs('whole', 'out')


def test_two_processes_do_not_write_the_same_files(folder):
    with hold_lock('out.json.progress.lock'):
        assert 'another process is writing' in run(*words('.'))


def test_pictures_of_finished_recordings_are_not_drawn_again(folder, break_off):
    line = [*(f'in/00{i}.wav' for i in range(3)), '--checkpoint', 'model.pth', '--plot', 'plots']
    break_off(2, *line)
    (folder / 'plots' / '000.wav.png').write_text('drawn')
    run(*line)
    assert (folder / 'plots' / '000.wav.png').read_text() == 'drawn'
    assert (folder / 'plots' / '002.wav.png').read_bytes().startswith(b'\x89PNG')
    run(*line)  # a finished job begins anew
    assert (folder / 'plots' / '000.wav.png').read_bytes().startswith(b'\x89PNG')


def test_two_outputs_of_one_name_are_refused(folder):
    said = run('in', '--checkpoint', 'model.pth', '--json', 'a', '--csv', 'a')
    assert 'two outputs have the same name' in said


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system with room for 64 KiB; its path, and a function that makes it large."""
    path = tmp_path / 'small'
    path.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(path)]
    may_mount = sys.platform == 'linux' and not os.geteuid()
    if not may_mount or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('only root can make a small file system')
    yield path, lambda: subprocess.run(['mount', '-o', 'remount,size=8m', str(path)], check=True)
    subprocess.run(['umount', str(path)], check=True)


def test_a_full_disk_is_said_and_the_job_goes_on_when_there_is_room(folder, small_disk, capsys):
    path, enlarge = small_disk
    run(*words('whole'))
    said = run(*words('small'))
    assert said.startswith('error: cannot write small/out.') and 'is the disk full?' in said
    assert 'continues from there' in capsys.readouterr().err
    enlarge()
    run(*words('small'))
    assert same_outputs('whole', 'small')


def test_files_are_examined_as_they_are_needed(folder, monkeypatch):
    asked = []

    def spy(path):
        asked.append(path)
        return read_duration(path)

    monkeypatch.setattr('tagging.windows.read_duration', spy)
    taggings = tag(load_tagger('model.pth', 'cpu', 'off'), find_audio(['in']), num_workers=0)
    assert not asked
    next(taggings)
    assert len(asked) < 2 * parallel.ITEMS_AHEAD < FILES
    taggings.close()


def test_files_that_are_all_broken_are_reported_without_the_model(folder, monkeypatch):
    tagger = load_tagger('model.pth', 'cpu', 'off')
    monkeypatch.setattr(type(tagger), '__call__', None)
    taggings = tag_here(tagger, ['a.wav', 'in/003.wav'] * 10)
    assert len(taggings) == 20 and all(tagging.error for tagging in taggings)
