"""Start run.py as several processes that train together, as torchrun would.

They are forked from a server that has already imported everything.
"""
import functools
import json
import multiprocessing
import os
import socket
import sys
import time
from multiprocessing import forkserver

import numpy as np
import soundfile
import torch

import run

# The last batch of an epoch has three clips. Of two processes, one gets two and the other one. Of
# four processes, the last gets none.
CLIPS, BATCH, EPOCHS = 43, 8, 2
OPTIONS = ('--data_train train.json --data_val val.json --label_csv labels.csv --n_class 3 '
           '--num_mel_bins 32 --audio_length 32 --fstride 16 --tstride 16 --model_size tiny224 '
           f'--imagenet_pretrain False --lr 1e-4 --batch_size {BATCH} --n_epochs {EPOCHS} '
           '--mixup 0.5 --freqm 8 --timem 8 --noise True --bal bal --wa True '
           f'--wa_end {EPOCHS} --freq_patchout 1 --clip_grad 1 --save_model True --amp off '
           '--device cpu --num_workers 0 --n_print_steps 1').split()
LOSSES = (5, 6)  # columns of result.csv


def write_data(folder):
    """Write what OPTIONS name: recordings of three classes, datafiles, labels, weights."""
    # With this seed, no two recordings have scores so close that rounding could swap them.
    rng = np.random.default_rng(1)
    clips = []
    for i in range(CLIPS):
        tone = np.sin(2 * np.pi * 400 * (1 + i % 3) * np.arange(6400) / 16000)
        soundfile.write(folder / f'{i}.wav', 0.3 * tone + 0.05 * rng.standard_normal(6400), 16000)
        clips.append({'wav': str(folder / f'{i}.wav'), 'labels': f'/m/{i % 3}'})
    (folder / 'train.json').write_text(json.dumps({'data': clips}))
    (folder / 'val.json').write_text(json.dumps({'data': clips[:19]}))
    # Of four processes, one gets none of these.
    (folder / 'few.json').write_text(json.dumps({'data': clips[:3]}))
    (folder / 'labels.csv').write_text('index,mid,display_name\n0,/m/0,a\n1,/m/1,b\n2,/m/2,c\n')
    np.savetxt(folder / 'train_weight.csv', 1 + np.arange(CLIPS))


def log_of(folder, name):
    """Return what processes have printed so far."""
    return (folder / name).read_text() if (folder / name).exists() else ''


def wait_for(text, ranks, folder, log, seconds=60):
    """Wait until processes have printed a text. Fail if one ends, or if it takes too long."""
    end = time.monotonic() + seconds
    while text not in log_of(folder, log):
        all_run = all(process.is_alive() for process in ranks)
        assert all_run and time.monotonic() < end, log_of(folder, log)
        time.sleep(0.02)


def require_same(folder, exp_dir, tolerance=1e-5, metrics=True):
    """Compare an experiment with the experiment exp1: losses, predictions, metrics.

    Args:
        folder: that has both.
        exp_dir: the name of the experiment.
        metrics: False if rounding may swap two predictions that are nearly equal.
    """
    def rows(experiment, name):
        return np.loadtxt(folder / experiment / name, delimiter=',')

    def predictions(experiment, name):
        return np.load(folder / experiment / 'predictions' / f'{name}.npy')

    for name in ('result.csv', 'wa_result.csv') if metrics else ():
        np.testing.assert_allclose(rows(exp_dir, name), rows('exp1', name), atol=tolerance)
    losses, expected = (rows(name, 'result.csv')[:, LOSSES] for name in (exp_dir, 'exp1'))
    np.testing.assert_allclose(losses, expected, atol=tolerance)
    for name in ('predictions_1', 'predictions_2', 'cum_predictions', 'target'):
        np.testing.assert_allclose(predictions(exp_dir, name), predictions('exp1', name),
                                   atol=tolerance)


@functools.cache
def make_context():
    """Start the server, once; return the multiprocessing context that forks from it.

    It finds what it imports only on PYTHONPATH.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['experiment', 'matplotlib.pyplot', 'sklearn.metrics'])
    before = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join(sys.path)
    forkserver.ensure_running()
    if before is None:
        del os.environ['PYTHONPATH']
    else:
        os.environ['PYTHONPATH'] = before
    return context


def start_ranks(size, options, folder, log='log.txt', **environment):
    """Start run.py in processes that train together; return them.

    Args:
        size: how many. A single one is an ordinary process, unless `environment` has a RANK.
        options: of run.py.
        folder: their working directory.
        log: the file in it that what they print is appended to.
        environment: further environment variables.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    words = [str(word) for word in options]
    ranks = [make_context().Process(target=_run, args=(rank, size, port, str(folder), words, log,
                                                       environment)) for rank in range(size)]
    for process in ranks:
        process.start()
    return ranks


def _run(rank, size, port, folder, options, log, environment):
    """Run run.py as one of the processes: set its environment, append its output to `log`."""
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)  # quicker for a model of this size, by far on a busy machine
    os.environ.update(environment)
    if size > 1 or 'RANK' in environment:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank),
                          LOCAL_WORLD_SIZE=str(size), MASTER_ADDR='127.0.0.1',
                          MASTER_PORT=str(port))
    run.main(options)


def finish_ranks(ranks, seconds=90):
    """Wait for the processes, and kill those that take too long.

    Returns:
        Their exit codes; negative if a signal ended the process.
    """
    for process in ranks:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]
