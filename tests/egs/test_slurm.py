"""The recipe on a real Slurm: submitted, preempted while it trains, queued again, finished."""
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

PROGRAMS = ('sbatch', 'munged', 'slurmctld', 'slurmd', 'scontrol', 'scancel', 'sinfo')
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)),
    reason='Slurm is not installed (Debian: apt-get install slurm-wlm munge)')

CONFIGURATION = '''
ClusterName=sandbox
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock,cred_expire=5
CryptoType=crypto/munge
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
ReturnToService=2
KillWait=5
MinJobAge=600
GresTypes=gpu
SlurmdParameters=config_overrides
EnforcePartLimits=ALL
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 Boards=1 SocketsPerBoard=1 CoresPerSocket=64 \
ThreadsPerCore=1 RealMemory=1000000 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
'''

# Eight clips: an epoch has four steps, each of them logged, and then writes its tables and pictures.
SMALL = ('--model_size tiny224 --imagenet_pretrain False --audioset_pretrain False --num_mel_bins 32 '
         '--audio_length 32 --freqm 8 --timem 8 --fstride 16 --tstride 16 --batch_size 2 --n_epochs 3 '
         '--lr 1e-4 --n_print_steps 1 --num_workers 0 --amp off --device cpu').split()

# A job in which common.sh starts four processes that say what they may use.
SHARE = '''#!/bin/bash
. {root}/egs/common.sh
"${{SRUN[@]}}" --nodes=1 --ntasks=4 --ntasks-per-node=4 bash -c 'echo "process $SLURM_PROCID of \
$SLURM_STEP_NUM_TASKS: GPUs ${{CUDA_VISIBLE_DEVICES:-}}, $SLURM_CPUS_ON_NODE cores"'
echo ended with $?
'''


@pytest.fixture(scope='module')
def slurm():
    """Start a cluster of one node on this machine; return the environment in which to use it.

    The node pretends to have four GPUs.
    """
    folder = Path(tempfile.mkdtemp(prefix='slurm'))  # Unix sockets need a short path
    folder.chmod(0o755)  # munge refuses a socket that not everybody can reach
    host = socket.gethostname()
    for name in ('state', 'spool', 'log', 'run', 'munge', 'fakedev', 'key'):
        (folder / name).mkdir(mode=0o700 if name == 'key' else 0o755)
    for i in range(4):
        (folder / 'fakedev' / f'nvidia{i}').symlink_to('/dev/null')
    key = folder / 'key' / 'munge.key'
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    user = subprocess.check_output(['id', '-un'], text=True).strip()
    (folder / 'slurm.conf').write_text(CONFIGURATION.format(host=host, user=user, folder=folder))
    gpus = f'NodeName={host} Name=gpu File={folder}/fakedev/nvidia[0-3]\n'
    (folder / 'gres.conf').write_text(gpus)
    environment = {**os.environ, 'SLURM_CONF': str(folder / 'slurm.conf'),
                   'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'}
    munge = [f'--{name}-file={folder}/munge/munged.{name}' for name in ('pid', 'log', 'seed')]
    commands = [['munged', '-F', f'--key-file={key}', f'--socket={folder}/munge/munge.sock',
                 *munge],
                ['slurmctld', '-D', '-c', '-f', folder / 'slurm.conf'],
                ['slurmd', '-D', '-N', host, '-f', folder / 'slurm.conf']]
    daemons = []
    for command in commands:
        daemons.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL))
        time.sleep(0.5)
    wait_for(lambda: ask(environment, 'sinfo', '-h', '-o', '%t').startswith('idle'), 30,
             'the node to be idle')
    yield environment
    ask(environment, 'scancel', '--user', user)
    wait_for(lambda: not ask(environment, 'squeue', '-h'), 30, 'jobs to end')
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait()
    shutil.rmtree(folder)


def ask(environment, *command):
    """Return what a Slurm command prints."""
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True,
                          text=True)
    return done.stdout.strip()


def wait_for(condition, seconds, what):
    """Poll until condition() is true; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f'waited {seconds} s in vain for {what}')
        time.sleep(0.2)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder in which all runs share their data, and leave their results."""
    return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def undisturbed(root, terminal, write_esc, folder):
    """The folder with the results of the recipe in one process that nobody disturbed."""
    write_esc(folder / 'esc')
    recipe = root / 'egs' / 'esc50' / 'run_esc50.sh'
    done = subprocess.run([recipe, *options(folder, 'undisturbed')], capture_output=True,
                          text=True, env=terminal())
    assert done.returncode == 0, done.stderr
    return folder / 'undisturbed'


def options(folder, exp_dir):
    """Return the options of a short training, on data that all runs share."""
    return ['--data_dir', folder / 'esc', '--prep_dir', folder / 'prep', '--exp_dir',
            folder / exp_dir, '--folds', '1 2', *SMALL]


def preempt(slurm, root, folder, exp_dir, asked_for, more=''):
    """Submit the recipe, preempt it in the second epoch, wait until it has ended; return its log.

    Args:
        asked_for: options of sbatch.
        more: further options of the recipe.
    """
    log = folder / f'{exp_dir}.txt'
    words = ['sbatch', '--parsable', f'--output={log}', *asked_for.split(), 'run_esc50.sh',
             *options(folder, exp_dir), *more.split()]
    job = subprocess.check_output([str(word) for word in words], cwd=root / 'egs' / 'esc50',
                                  env=slurm, text=True).strip()
    wait_for(lambda: log.exists() and 'epoch 2 of 3, step' in log.read_text(), 180,
             'the second epoch')
    ask(slurm, 'scancel', '--batch', '--signal=USR1', job)
    wait_for(lambda: 'queued again' in log.read_text(), 60, 'the job to be queued again')
    assert (folder / exp_dir / 'fold1' / 'checkpoint.pth').exists()
    wait_for(lambda: 'PENDING' in ask(slurm, 'squeue', '-h', '-o', '%T', '-j', job), 60,
             'the job to be pending')
    time.sleep(3)  # slurmd takes no job back in the second in which it let it go
    # Otherwise Slurm waits for two minutes.
    ask(slurm, 'scontrol', 'update', f'JobId={job}', 'StartTime=now')
    wait_for(lambda: re.search('COMPLETED|FAILED', ask(slurm, 'scontrol', 'show', 'job', job)), 240,
             'the job to end')
    assert 'continuing in epoch' in log.read_text()
    return log.read_text()


def test_a_preempted_job_is_queued_again_and_ends_as_if_undisturbed(slurm, root, folder,
                                                                    undisturbed):
    preempt(slurm, root, folder, 'job', '--gres=gpu:1 -c 2')
    for name in ('result.csv', 'acc_fold.csv', 'fold1/result.csv', 'fold2/result.csv'):
        assert (folder / 'job' / name).read_bytes() == (undisturbed / name).read_bytes()


def test_a_job_of_two_tasks_trains_in_two_processes_and_is_queued_again_like_any_other(
        slurm, root, folder, undisturbed):
    said = preempt(slurm, root, folder, 'tasks', '--gres=gpu:1 --ntasks-per-node=2 -c 1',
                   '--launcher slurm --stage 2 --folds 1')
    assert 'in each of 2 processes' in said and 'Traceback' not in said
    expected = np.loadtxt(undisturbed / 'fold1' / 'result.csv', delimiter=',')
    for name in ('result.csv', 'fold1/result.csv'):  # the mean of one fold is that fold
        results = np.loadtxt(folder / 'tasks' / name, delimiter=',')
        np.testing.assert_allclose(results, expected, atol=1e-5)


def test_a_job_whose_gpu_pytorch_cannot_use_ends_before_any_work(slurm, root, folder):
    log = folder / 'gpu.txt'
    words = ['sbatch', '--parsable', '--wait', f'--output={log}', '--gres=gpu:1', 'run_esc50.sh',
             '--demo', 'True', '--prep_dir', folder / 'nothing', '--exp_dir', folder / 'nothing']
    done = subprocess.run([str(word) for word in words], cwd=root / 'egs' / 'esc50', env=slurm,
                          capture_output=True)
    assert done.returncode == 1 and not (folder / 'nothing').exists()
    said = log.read_text()
    assert 'asks for a GPU, but PyTorch' in said and '--device cpu continues without' in said


@pytest.mark.parametrize('asked_for, gpus, cores', [
    ('', 4, 16), ('-c 2', 4, 2), ('--gres=none --gpus-per-task=4', 4, 16),
    ('--gres=none --gpus=3', 3, 16), ('--gres=none -c 1', 0, 1)])
def test_processes_share_what_the_job_has_however_it_was_asked_for(
        slurm, root, folder, asked_for, gpus, cores):
    script, log = folder / 'share.sh', folder / 'share.txt'
    script.write_text(SHARE.format(root=root))
    header = '--gres=gpu:4 --ntasks-per-node=1 -c 16 --mem=48000'.split()  # of the recipes
    log.unlink(missing_ok=True)
    ask(slurm, 'sbatch', f'--output={log}', *header, *asked_for.split(), script)
    wait_for(lambda: log.exists() and 'ended with' in log.read_text(), 30, 'the job')
    visible = ','.join(map(str, range(gpus)))
    seen = sorted(line for line in log.read_text().split('\n') if line.startswith('process'))
    assert seen == [f'process {i} of 4: GPUs {visible}, {cores} cores' for i in range(4)]
