"""The recipe under signals, as a terminal, a scheduler or an impatient user sends them; Slurm has a file of its own."""
import json
import os
import signal
import subprocess

import pytest

# An epoch has twenty steps: four signals come before its end.
OPTIONS = ['--demo', 'True', '--clips_per_fold', '2', '--batch_size', '4', '--n_epochs', '2', '--folds', '1',
           '--num_workers', '0', '--n_print_steps', '1', '--prep_dir', 'prep', '--exp_dir', 'exp']


def hear_signals():
    """Undo what nohup and & have done to the tests: bash cannot trap an ignored signal."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope='module')
def start(root, terminal, tmp_path_factory):
    """Start the training stage in a process group of its own, in a directory of prepared data; returns both."""
    folder = tmp_path_factory.mktemp('recipe')

    def start_recipe(*options):
        command = [str(root / 'egs' / 'esc50' / 'run_esc50.sh'), *OPTIONS, *options]
        return folder, subprocess.Popen(command, cwd=folder, env=terminal(), stderr=subprocess.PIPE,
                                        stdout=subprocess.DEVNULL, text=True, start_new_session=True,
                                        preexec_fn=hear_signals)
    _, process = start_recipe('--stop_stage', '1')
    assert process.wait() == 0, process.stderr.read()
    return lambda *options: start_recipe('--stage', '2', '--stop_stage', '2', *options)


SLOW_PYTHON = """#!/bin/sh
# A Python that takes long to prepare data.
case "$*" in *prep_sc.py*) echo prepares; exec sleep 60 ;; esac
exec "$REAL_PYTHON" "$@"
"""


def test_ctrl_c_while_data_are_prepared_says_that_the_same_command_continues(root, terminal,
                                                                             tmp_path):
    slow = tmp_path / 'python'
    slow.write_text(SLOW_PYTHON)
    slow.chmod(0o755)
    environ = terminal()
    environ |= {'REAL_PYTHON': environ['AST_PYTHON'], 'AST_PYTHON': str(slow)}
    command = [str(root / 'egs' / 'speechcommands' / 'run_sc.sh'), '--prep_dir', str(tmp_path)]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, start_new_session=True,
                               preexec_fn=hear_signals)
    assert any('prepares' in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and said == 'stopped; the same command continues\n'


def test_a_recipe_that_is_signalled_stops_with_75_and_the_same_line_goes_on(start):
    options, advice = ['--resume', 'none'], 'the same command without --resume none continues'
    for number, to_all in [(signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGUSR1, False),
                           (signal.SIGHUP, True)]:  # a closed terminal
        folder, process = start(*options)
        begun = []
        for line in process.stderr:
            begun.append(line)
            if 'epoch 1 of 2, step ' in line:
                (os.killpg if to_all else os.kill)(process.pid, number)
                break
        said = process.stderr.read()
        assert process.wait() == 75 and advice in said and 'Traceback' not in said, f'{number}: {said}'
        fold = folder / 'exp' / 'fold1'
        assert (fold / 'interrupted').exists() and (fold / 'checkpoint.pth').exists()
        assert not (fold / 'result.csv').exists()
        assert bool(options) != ('continuing in epoch 1' in ''.join(begun))
        options, advice = [], 'the same command continues'
    _, process = start()
    said = process.stderr.read()
    assert process.wait() == 0, said
    assert 'continuing in epoch 1' in said and (fold / 'finished').exists() and not (fold / 'interrupted').exists()
    chosen = json.loads((fold / 'args.json').read_text())
    assert (chosen['dataset'], chosen['model_size'], chosen['n_epochs']) == ('demo', 'tiny224', 2)
