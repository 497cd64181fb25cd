"""Failures of a training that its user can do something about."""
import contextlib
from collections.abc import Iterator

# The words of PyTorch's allocator and CUDA, and of cuBLAS and cuDNN, for a lack of memory.
OUT_OF_MEMORY = ('out of memory', 'STATUS_ALLOC_FAILED')
NO_COMPILER = ('InvalidCxxCompiler', 'Failed to find C compiler')  # Inductor's and Triton's words
# Words of a DataLoader if one of its processes or threads is gone.
WORKER_SIGNS = ('DataLoader worker', 'Pin memory thread')


class TrainingError(RuntimeError):
    """A run that cannot continue. The message says what is wrong and what to try."""


@contextlib.contextmanager
def as_training_errors() -> Iterator[None]:
    """Turn errors that a user can fix into a TrainingError that says how.

    They are: too little memory of a GPU, a data worker that died, no compiler, a GPU that failed.
    """
    try:
        yield
    except BrokenPipeError:  # the program that reads this one's output is gone
        raise
    except (ConnectionError, EOFError) as error:  # a data worker sends no more batches
        raise TrainingError(_explain_lost_worker(error)) from None
    except RuntimeError as error:
        if explanation := _explain(error):
            raise TrainingError(explanation) from None
        raise


def _explain(error):
    """Return a sentence about a RuntimeError and what to do, or None if there is nothing to do."""
    if said := out_of_memory(error):
        return (f'the GPU is out of memory ({said}); nvidia-smi shows whether other programs fill '
                f'it; take a smaller --batch_size; in training, you can also put batches through '
                f'in pieces (--grad_accum 4) or recompute activations (--grad_checkpointing True); '
                f'a run that has begun continues with such new settings if you add --force')
    if any(sign in str(error) for sign in NO_COMPILER):
        return ('--compile True needs a C++ compiler, and there is none: install one (Debian, '
                'Ubuntu: apt-get install g++), or leave --compile out')
    # torch 2.6 has no class AcceleratorError. An assertion on the device is a fault of ours.
    if type(error).__name__ == 'AcceleratorError' and 'assert' not in str(error):
        return (f'the GPU failed ({str(error).splitlines()[0]}); nvidia-smi and the log of the '
                f'system may say why; started again, training continues from its checkpoint')
    if any(sign in str(error) for sign in WORKER_SIGNS):
        return _explain_lost_worker(error)
    return None


def out_of_memory(error: BaseException) -> str | None:
    """Return the line of an error that says that a GPU has no memory left; None if no line does.

    The last such line counts, since an error from a thread of nn.DataParallel begins with the
    thread's traceback.
    """
    lines = str(error).splitlines() if isinstance(error, RuntimeError) else []
    found = [line for line in lines if any(sign in line for sign in OUT_OF_MEMORY)]
    return found[-1] if found else None


def _explain_lost_worker(error):
    """Return a sentence about a data worker that died."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return (f'a process that loads data died ({reason}): it was killed, or memory or shared memory '
            f'(/dev/shm) ran out; try fewer --num_workers, or 0')
