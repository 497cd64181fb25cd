"""Worker processes that are not forked, or must not be started.

They are not forked on macOS, on Windows, and from Python 3.14 on.
"""
import multiprocessing
import operator
import re
import runpy
import sys

import numpy as np
import pytest
import torch

import run
from dataloader import AudiosetDataset
from models import ASTModel, save_checkpoint
from ranks import make_context
from tagging import load_tagger, tag
from training import norm_stats
from training.loaders import count_workers
from training.worker_signals import end_workers
from utilities import workers
from utilities.parallel import one_thread, parallel_map
from utilities.workers import may_start_processes, starts_by_fork

BASE = ('--data_train data.json --data_val data.json --label_csv labels.csv --n_class 2 '
        '--num_mel_bins 16 --audio_length 32 --fstride 16 --tstride 16 --model_size tiny224 '
        '--imagenet_pretrain False --batch_size 4 --lr 1e-4 --mixup 0.5 --device cpu '
        '--amp off').split()
NAMES = ['dog', 'rain']


@pytest.fixture
def folder(tmp_path, monkeypatch, make_tone):
    """Work in a folder with a recording of ten windows and a checkpoint, on one thread."""
    monkeypatch.chdir(tmp_path)
    make_tone('recording.wav', seconds=3)
    torch.manual_seed(0)
    model = ASTModel(2, 16, 16, 16, 32, imagenet_pretrain=False, model_size='tiny224')
    save_checkpoint(model, 'model.pth', labels={'mids': NAMES, 'names': NAMES}, mean=-6.0, std=3.0)
    with one_thread():
        yield tmp_path


@pytest.fixture
def data(folder, make_tone, make_labels, make_datafile):
    """In this folder, a datafile of eight recordings of two classes."""
    make_datafile([(make_tone(f'{i}.wav', 400 * (1 + i % 2), seconds=0.4, seed=i), f'/m/{i % 2}')
                   for i in range(8)])
    make_labels(2)
    return folder


@pytest.fixture
def start_method():
    """Choose how multiprocessing starts processes; those of forkserver have imported everything."""
    before = multiprocessing.get_start_method(allow_none=True)
    make_context()
    yield lambda method: multiprocessing.set_start_method(method, force=True)
    end_workers()
    multiprocessing.set_start_method(before, force=True)


def test_training_does_not_depend_on_how_workers_start(start_method, data):
    start_method('forkserver')
    for count in '0', '2':
        run.main([*BASE, '--num_workers', count, '--exp_dir', count])
    alone, spread = (np.loadtxt(data / count / 'result.csv', delimiter=',') for count in '02')
    assert np.array_equal(alone, spread)


def test_tagging_and_statistics_do_not_depend_on_how_workers_start(start_method, data):
    start_method('forkserver')
    tagger = load_tagger('model.pth', 'cpu', 'off')
    [alone], [spread] = (list(tag(tagger, 'recording.wav', num_workers=count)) for count in (0, 2))
    assert len(alone.scores) == 10 and np.array_equal(alone.scores, spread.scores)
    conf = {'num_mel_bins': 16, 'target_length': 32, 'mode': 'train', 'skip_norm': True}
    dataset = AudiosetDataset('data.json', conf, 'labels.csv')
    assert norm_stats.norm_stats(dataset, 0) == norm_stats.norm_stats(dataset, 2)
    assert list(parallel_map(operator.neg, [1, 2, 3], 'testing')) == [-1, -2, -3]


def work_in_a_pool(checkpoint, file):
    """What a worker of Celery or of a Pool does."""
    results = list(tag(load_tagger(checkpoint, 'cpu', 'off'), [file, file]))
    negatives = list(parallel_map(operator.neg, [1, 2], 'testing'))
    daemon = multiprocessing.current_process().daemon
    return daemon, count_workers(4), [result.scores for result in results], negatives


def test_a_daemonic_process_tags_without_workers(folder):
    with make_context().Pool(1) as pool:
        answer = pool.apply(work_in_a_pool, ('model.pth', 'recording.wav'))
    daemon, workers, scores, negatives = answer
    assert daemon and workers == 0 and negatives == [-1, -2]
    [here] = tag(load_tagger('model.pth', 'cpu', 'off'), 'recording.wav', num_workers=0)
    assert len(scores) == 2 and all(np.allclose(one, here.scores, atol=1e-6) for one in scores)


def readme_snippet(root):
    """Return the lines of the page on tagging that tag a recording, with files that are here."""
    page = root / 'src' / 'tagging' / 'README.md'
    text = page.read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    [snippet] = [block for block in blocks if 'tag(tagger' in block]
    return re.sub(r'[\w.]+\.pth', 'model.pth', snippet).replace('recording.mp3', 'recording.wav')


@pytest.mark.parametrize('method', ['fork', 'forkserver', 'spawn'])
def test_the_snippet_of_the_readme_works_in_a_script_without_a_guard(start_method, root, folder,
                                                                     capfd, caplog, method):
    script = folder / 'script.py'
    script.write_text(f'print("begun")\n{readme_snippet(root)}')
    start_method(method)
    runpy.run_path(str(script), run_name='__main__')
    said = capfd.readouterr()
    assert said.out.count('begun') == said.out.count('dog 0.') == 1
    assert 'Traceback' not in said.err
    messages = [record.getMessage() for record in caplog.records]
    about_the_guard = [message for message in messages if "__name__ == '__main__'" in message]
    # From Python 3.14 on, forkserver is what nobody has chosen.
    is_forked = method == 'fork' or method == 'forkserver' and sys.version_info >= (3, 14)
    assert len(about_the_guard) == (not is_forked)
    assert all(str(script) in message for message in about_the_guard)


MAY = 'from utilities.workers import may_start_processes as may\n'


@pytest.mark.parametrize('lines, expected', [
    ('answer = may()', False),
    ('def main():\n    return may()\nanswer = main()', False),
    ('def main():\n    return may()\nif __name__ == "__main__":\n    answer = main()', True),
    ('if "__main__" == __name__: answer = may()', True),
    ('if __name__ != "__main__":\n    pass\nelse:\n    answer = (\n        may())', True),
    ('try:\n    if __name__ == "__main__":\n        answer = may()\nfinally:\n    pass', True),
    ('if 2 > 1:\n    answer = may()\nif __name__ == "__main__":\n    pass', False)])
def test_a_script_may_start_processes_below_its_guard(start_method, tmp_path, lines, expected):
    (tmp_path / 'script.py').write_text(MAY + lines)
    for method, answer in (('spawn', expected), ('fork', True)):
        start_method(method)
        names = runpy.run_path(str(tmp_path / 'script.py'), run_name='__main__')
        assert names['answer'] is answer


def test_a_prompt_whose_lines_are_in_no_file_starts_no_processes(start_method, tmp_path):
    (tmp_path / 'prompt.py').write_text(f'{MAY}__file__ = "<stdin>"\nanswer = may()')
    start_method('spawn')
    assert runpy.run_path(str(tmp_path / 'prompt.py'), run_name='__main__')['answer'] is False


def test_what_a_test_or_a_module_calls_may_start_processes(start_method):
    start_method('spawn')
    assert may_start_processes()


@pytest.mark.parametrize('methods, platform, forked', [
    (['fork', 'spawn'], 'linux', True), (['forkserver', 'spawn', 'fork'], 'linux', True),
    (['spawn', 'fork'], 'darwin', False), (['spawn'], 'win32', False)])
def test_without_a_choice_of_the_user_linux_forks_and_nothing_is_fixed(start_method, monkeypatch, methods, platform,
                                                                       forked):
    monkeypatch.setattr(workers.sys, 'platform', platform)
    start_method(None)
    monkeypatch.setattr(workers.multiprocessing, 'get_all_start_methods', lambda: methods)
    assert starts_by_fork() is forked
    assert multiprocessing.get_start_method(allow_none=True) is None
