"""Start run.py as several processes that train together, forked from a server that has imported everything already."""
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

CLIPS, BATCH, EPOCHS = 43, 8, 2  # the last batch has three: two processes have two and one, of four the last none
OPTIONS = ('--data_train train.json --data_val val.json --label_csv labels.csv --n_class 3 --num_mel_bins 32 '
           '--audio_length 32 --fstride 16 --tstride 16 --model_size tiny224 --imagenet_pretrain False --lr 1e-4 '
           f'--batch_size {BATCH} --n_epochs {EPOCHS} --mixup 0.5 --freqm 8 --timem 8 --noise True --bal bal --wa True '
           f'--wa_end {EPOCHS} --freq_patchout 1 --clip_grad 1 --save_model True --amp off --device cpu '
           '--num_workers 0 --n_print_steps 1').split()
LOSSES = (5, 6)  # columns of result.csv


def write_data(folder):
    """Write what OPTIONS name: tiny recordings of three classes, datafiles, weights and labels."""
    rng = np.random.default_rng(1)  # with which no two recordings have scores so close that rounding swaps them
    clips = []
    for i in range(CLIPS):
        tone = np.sin(2 * np.pi * 400 * (1 + i % 3) * np.arange(6400) / 16000)
        soundfile.write(folder / f'{i}.wav', 0.3 * tone + 0.05 * rng.standard_normal(6400), 16000)
        clips.append({'wav': str(folder / f'{i}.wav'), 'labels': f'/m/{i % 3}'})
    (folder / 'train.json').write_text(json.dumps({'data': clips}))
    (folder / 'val.json').write_text(json.dumps({'data': clips[:19]}))
    (folder / 'few.json').write_text(json.dumps({'data': clips[:3]}))  # of four processes, one has none
    (folder / 'labels.csv').write_text('index,mid,display_name\n0,/m/0,a\n1,/m/1,b\n2,/m/2,c\n')
    np.savetxt(folder / 'train_weight.csv', 1 + np.arange(CLIPS))


def log_of(folder, name):
    """What processes printed."""
    return (folder / name).read_text() if (folder / name).exists() else ''


def wait_for(text, ranks, folder, log, seconds=60):
    """Wait until processes have printed a text."""
    end = time.monotonic() + seconds
    while text not in log_of(folder, log):
        assert time.monotonic() < end and all(process.is_alive() for process in ranks), log_of(folder, log)
        time.sleep(0.02)


def require_same(folder, exp_dir, tolerance=1e-5, metrics=True):
    """Compare an experiment with exp1: losses, predictions and, unless a tie may turn over, metrics."""
    def rows(name, experiment):
        return np.loadtxt(folder / experiment / name, delimiter=',')
    for name in ('result.csv', 'wa_result.csv') if metrics else ():
        np.testing.assert_allclose(rows(name, exp_dir), rows(name, 'exp1'), atol=tolerance)
    np.testing.assert_allclose(rows('result.csv', exp_dir)[:, LOSSES], rows('result.csv', 'exp1')[:, LOSSES],
                               atol=tolerance)
    for name in ('predictions_1', 'predictions_2', 'cum_predictions', 'target'):
        np.testing.assert_allclose(np.load(folder / exp_dir / 'predictions' / f'{name}.npy'),
                                   np.load(folder / 'exp1' / 'predictions' / f'{name}.npy'), atol=tolerance)


@functools.cache
def make_context():
    """The server, which finds what it is to import on PYTHONPATH alone."""
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
    """Start `size` processes in a folder, as torchrun would; returns them. What they print is appended to `log`.

    One is an ordinary process, unless the environment given has a RANK.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    words = [str(word) for word in options]
    ranks = [make_context().Process(target=_run, args=(rank, size, port, str(folder), words, log, environment))
             for rank in range(size)]
    for process in ranks:
        process.start()
    return ranks


def _run(rank, size, port, folder, options, log, environment):
    """Be one of them."""
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)  # quicker for a model of this size, by far on a busy machine
    os.environ.update(environment)
    if size > 1 or 'RANK' in environment:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
                          MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    run.main(options)


def finish_ranks(ranks, seconds=90):
    """Wait for the processes; returns their exit codes, negative for a signal. Kills those that take too long."""
    for process in ranks:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]
