"""Stop a small training at random moments, resume it, compare it with an undisturbed one.

python tests/kill_and_resume.py SIGKILL=100 SIGTERM=20 [--seed 0]

sends SIGKILL to runs 100 times and SIGTERM to others 20 times. Runs have 0 and 1 data workers in
turn. Exits with 0 if the tables and the final weights are identical, TensorBoard's log has every
epoch once, and no step was done twice, except after SIGKILL.
"""
import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from torch.utils import tensorboard  # noqa: F401, imported before the first fork

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'src'))
import run
from tensorboard_reader import check_log
from training.interrupt import EXIT_CODE, STOP_SIGNALS

CLIPS, STEPS, EPOCHS = 24, 6, 3
OPTIONS = ('--label_csv labels.csv --data_train train.json --data_val val.json --n_class 4 '
           '--dataset kill --model_size test_vit --imagenet_pretrain False --num_mel_bins 32 '
           f'--audio_length 32 --fstride 16 --tstride 16 --n_epochs {EPOCHS} '
           f'--batch_size {CLIPS // STEPS} --lr 1e-4 --mixup 0.5 --freqm 8 --timem 8 --noise True '
           '--freq_patchout 1 --time_patchout 1 --bal bal --warmup True --wa True '
           f'--wa_end {EPOCHS} --n_print_steps 1 --tensorboard True')


def make_data(folder):
    """Write short recordings of four classes, their datafiles, weights and labels."""
    rng = np.random.default_rng(0)
    t = np.arange(6400) / 16000
    clips = []
    for i in range(CLIPS):
        path = folder / f'{i}.wav'
        tone = np.sin(2 * np.pi * 400 * (1 + i % 4) * t)
        soundfile.write(path, 0.3 * tone + 0.05 * rng.standard_normal(len(t)), 16000)
        clips.append({'wav': str(path), 'labels': f'/m/{i % 4}'})
    (folder / 'train.json').write_text(json.dumps({'data': clips}))
    (folder / 'val.json').write_text(json.dumps({'data': clips[:18]}))
    rows = ''.join(f'{i},/m/{i},class {i}\n' for i in range(4))
    (folder / 'labels.csv').write_text(f'index,mid,display_name\n{rows}')
    np.savetxt(folder / 'train_weight.csv', 1 + np.arange(CLIPS))


def start(exp_dir, number_of_workers, log):
    """Fork a process that runs the experiment; return its pid. All imports are done already."""
    pid = os.fork()
    if pid:
        return pid
    # On a busy machine, the signal may come before the run listens for it. It would end the run.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    listen = run.Interrupt.listen

    def listen_and_unblock(interrupt):
        listen(interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return interrupt
    run.Interrupt.listen = listen_and_unblock
    with open(log, 'a') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        # A checkpoint is written after every step, so that many signals come while one is written.
        run.main([*OPTIONS.split(), '--exp_dir', exp_dir, '--num_workers', str(number_of_workers),
                  '--checkpoint_minutes', '0'])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        if isinstance(stop.code, str):
            print(stop.code, flush=True)
    finally:
        os._exit(code)


def finish(pid):
    """Wait for a process; return its exit code, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def disturb(kills, stop_signal, rng, log):
    """Start the experiment and send it a signal, several times; then let it finish.

    Args:
        kills: how many times.
        stop_signal: the signal.
        rng: draws the moments.
        log: the file that what the experiment prints is appended to.

    Returns:
        How many signals came before the experiment had ended.
    """
    hits = 0
    for i in range(kills):
        pid = start('disturbed', i % 2, log)
        time.sleep(rng.uniform(0.3, 2.5))
        if os.waitpid(pid, os.WNOHANG)[0]:
            break  # it ended before the signal; the caller checks that it had finished
        os.kill(pid, stop_signal)
        code = finish(pid)
        stopped = -stop_signal if stop_signal == signal.SIGKILL else EXIT_CODE
        assert code in (stopped, 0), f'{stop_signal.name} ended the run with exit code {code}'
        hits += code == stopped
    else:
        assert finish(start('disturbed', 0, log)) == 0, Path(log).read_text()
    return hits


def same(name):
    """Return whether the two experiments left the same file."""
    return (Path('undisturbed') / name).read_bytes() == (Path('disturbed') / name).read_bytes()


def compare_disturbed(stop_signal, kills, seed):
    """Disturb runs until enough signals have hit; compare each run with the undisturbed one."""
    hits, rounds = 0, 0
    while hits < kills:  # a run may end before its last signal; then another one follows
        rng = np.random.default_rng((seed, rounds))
        Path('disturbed.log').write_text('')
        hits += disturb(kills - hits, stop_signal, rng, 'disturbed.log')
        check_disturbed(Path('disturbed.log').read_text(), stop_signal)
        rounds += 1
        os.rename('disturbed', f'{stop_signal.name}{rounds}')
    print(f'{hits} times {stop_signal.name} in {rounds} runs: identical to the undisturbed run')


def check_disturbed(log_text, stop_signal):
    """Compare the disturbed run with the undisturbed one. log_text: what it has printed."""
    assert Path('disturbed/finished').exists(), log_text
    assert all(map(same, ('result.csv', 'metrics.csv', 'wa_result.csv',
                          'models/audio_model_wa.pth', 'models/best_audio_model.pth'))), (
        'the disturbed run differs')
    check_log(Path('disturbed'), EPOCHS, 'mAP')
    steps = re.findall(r'epoch (\d+) of \d+, step (\d+) of', log_text)
    if stop_signal != signal.SIGKILL:
        assert len(steps) == len(set(steps)) == STEPS * EPOCHS, (
            'a step was done twice, or not at all')


def signal_and_kills(text):
    """Read a word such as SIGTERM=4; return the signal and the number."""
    name, _, kills = text.partition('=')
    return {one.name: one for one in (signal.SIGKILL, *STOP_SIGNALS)}[name], int(kills)


def main():
    """Read the options, run the undisturbed experiment, then the disturbed ones."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('signals', type=signal_and_kills, nargs='+', metavar='SIGNAL=KILLS',
                        help='a signal, and how many times to send it')
    parser.add_argument('--seed', type=int, default=0, help='of the random moments')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_data(Path(folder))
        code = finish(start('undisturbed', 0, 'undisturbed.log'))
        assert code == 0, Path('undisturbed.log').read_text()
        for stop_signal, kills in args.signals:
            compare_disturbed(stop_signal, kills, args.seed)


if __name__ == '__main__':
    main()
