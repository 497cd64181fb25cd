"""Use models, tagging, training and the notebook as on Windows, as far as Linux can pretend.

Remove what Windows does not have: names of `os` and `signal`, modules, fork. Make fail what fails
there: to sync a file opened for reading, and to remove or replace an open file.

windows.py NOTEBOOK OPTIONS: run it in a folder of data, with options of run.py.
"""
import errno
import json
import multiprocessing
import os
import signal
import sys
import types
from multiprocessing import popen_fork
from pathlib import Path

# The names whose availability is "Unix" in Python's documentation, except those that the standard
# library itself needs to start processes on Linux (os.WNOHANG, signal.pthread_sigmask, ...).
OS_NAMES = '''
    O_ASYNC O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_NDELAY O_NOATIME O_NOCTTY O_NOFOLLOW
    O_NONBLOCK O_PATH O_SYNC chown chroot confstr copy_file_range ctermid eventfd fchdir
    fchmod fchown fdatasync fork forkpty fpathconf fstatvfs getegid geteuid getgid
    getgrouplist getgroups getloadavg getpgid getpgrp getpriority getresgid getresuid getsid
    getuid getxattr initgroups killpg lchown listxattr lockf login_tty major makedev
    memfd_create minor mkfifo mknod nice openpty pathconf pidfd_open pipe2 posix_fadvise
    posix_fallocate posix_spawn posix_spawnp pread preadv pwrite pwritev readv
    register_at_fork removexattr sched_get_priority_max sched_getaffinity sched_getparam
    sched_getscheduler sched_setaffinity sched_yield sendfile setegid seteuid setgid setgroups
    setpgid setpriority setregid setresuid setreuid setsid setuid setxattr splice statvfs sync
    sysconf sysconf_names tcgetpgrp tcsetpgrp ttyname uname wait wait3 wait4 waitid
    writev'''.split()
MODULES = ('crypt', 'curses', 'fcntl', 'grp', 'nis', 'posix', 'pty', 'pwd', 'readline', 'resource',
           'spwd', 'syslog', 'termios', 'tty')
SIGNALS = ('SIGABRT', 'SIGFPE', 'SIGILL', 'SIGINT', 'SIGSEGV', 'SIGTERM')  # Windows has these


def pretend():
    """Take away what Windows does not have. Call this before any module of ours is imported."""
    # Imported first: these libraries have their own code for Windows, chosen by sys.platform.
    import matplotlib.pyplot  # noqa: F401
    import scipy.signal  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import soundfile  # noqa: F401
    import timm  # noqa: F401
    import torch.utils.data
    import torchaudio  # noqa: F401

    _restrict_open_files()
    _make_msvcrt()
    popen_fork.Popen.kill = lambda self, sigkill=signal.SIGKILL: os.kill(self.pid, sigkill)
    torch.utils.data._utils.signal_handling._set_SIGCHLD_handler = lambda: None
    multiprocessing.set_start_method('spawn', force=True)
    for name in OS_NAMES:
        if hasattr(os, name):
            delattr(os, name)
    for name in [name for name in vars(signal) if name.startswith('SIG') and '_' not in name]:
        if name.isupper() and name not in SIGNALS:
            delattr(signal, name)
    for name in MODULES:
        sys.modules[name] = None


def _restrict_open_files():
    """Let fsync, unlink and replace fail as on Windows if a file is open."""
    import fcntl
    fsync, unlink, replace = os.fsync, os.unlink, os.replace

    def careful_fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        fsync(descriptor)

    def careful_unlink(path, **how):
        _refuse_open(path)
        unlink(path, **how)

    def careful_replace(source, target, **how):
        _refuse_open(source)
        _refuse_open(target)
        replace(source, target, **how)

    os.fsync, os.replace = careful_fsync, careful_replace
    os.unlink = os.remove = careful_unlink


def _refuse_open(path):
    """Raise PermissionError if this process has a file open."""
    for descriptor in os.listdir('/proc/self/fd'):
        try:
            is_open = os.path.samefile(f'/proc/self/fd/{descriptor}', path)
        except OSError:
            continue
        if is_open:
            raise PermissionError(errno.EACCES, 'it is used by another process', str(path))


def _make_msvcrt():
    """Make the module with which files are locked on Windows."""
    import fcntl

    def locking(descriptor, mode, size):
        assert (mode, size) == (msvcrt.LK_NBLCK, 1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None

    msvcrt = types.ModuleType('msvcrt')
    msvcrt.locking, msvcrt.LK_NBLCK = locking, 2
    sys.modules['msvcrt'] = msvcrt


def main(notebook, options):
    """Tag, train, run the notebook; write the results into the working directory."""
    import numpy as np
    import torch

    import inference
    import run
    from models import ASTModel, save_checkpoint

    torch.manual_seed(0)
    model = ASTModel(2, 16, 16, 16, 32, imagenet_pretrain=False, model_size='tiny224')
    labels = {'mids': ['a', 'b'], 'names': ['dog', 'rain \N{CLOUD WITH RAIN}']}
    save_checkpoint(model, 'model.pth', labels=labels, mean=-6.0, std=3.0)
    options_of_model = ['--checkpoint', 'model.pth', '--device', 'cpu', '--amp', 'off']
    inference.main(['tone.wav', 'shard.zip/a/tone.wav', *options_of_model, '--num_workers', '1',
                    '--json', 'tags.json', '--csv', 'tags.csv', '--plot', 'plots',
                    '--embeddings', 'embeddings.npz'])
    tagger = inference.load_tagger('model.pth', 'cpu', 'off')
    [tagging] = inference.tag(tagger, 'shard.zip/a/tone.wav', num_workers=0)
    np.save('tag.npy', tagging.scores)
    run.main(options)
    np.save('notebook.npy', run_notebook(Path(notebook)))


def run_notebook(path):
    """Run the cells of the notebook, except those that draw attention maps; return its scores."""
    before = os.getcwd()
    os.chdir(path.parent)
    names = {}
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        code = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and 'show_grid' not in code:
            exec(code, names)
    os.chdir(before)
    return names['tagging'].scores


if __name__ in ('__main__', '__mp_main__'):  # __mp_main__ in processes that load data
    pretend()

if __name__ == '__main__':
    import average_checkpoints  # noqa: F401
    import check_data  # noqa: F401
    import demo  # noqa: F401
    import summarise_folds  # noqa: F401
    main(sys.argv[1], sys.argv[2:])
