"""Failures of a training that its user can do something about."""
import contextlib

from training.devices import out_of_memory

NO_COMPILER = ('InvalidCxxCompiler', 'Failed to find C compiler')  # Inductor's and Triton's words
WORKER_SIGNS = ('DataLoader worker', 'Pin memory thread')  # in what a DataLoader says if one of them is gone


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says at which step and what to try."""


@contextlib.contextmanager
def explained():
    """Turn failures that a user can do something about into a TrainingError that says what."""
    try:
        yield
    except (ConnectionError, EOFError, RuntimeError) as error:  # the first two: of a worker that sends no batch
        if said := out_of_memory(error):
            raise TrainingError(
                f'the GPU is out of memory ({said}); nvidia-smi shows whether other programs fill it; take a smaller '
                f'--batch_size; in training, also put batches through in pieces (--grad_accum 4) or recompute '
                f'activations (--grad_checkpointing True), and --force to go on with them') from None
        if any(sign in str(error) for sign in NO_COMPILER):
            raise TrainingError('--compile True needs a C++ compiler, and there is none: install one (Debian, Ubuntu: '
                                'apt-get install g++), or leave --compile out') from None
        # torch 2.6 does not know that error; an assertion on the device is a fault of ours.
        if type(error).__name__ == 'AcceleratorError' and 'assert' not in str(error):
            raise TrainingError(f'the GPU failed ({str(error).splitlines()[0]}); nvidia-smi and the log of the system '
                                f'may say why; training goes on from its checkpoint if it is started again') from None
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in WORKER_SIGNS):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainingError(f'a process that loads data died ({reason}): it was killed, or memory '
                            f'or shared memory (/dev/shm) ran out; try fewer --num_workers, or 0') from None
