"""Out of memory: how each backend says so, and what to do about it."""

import contextlib
import re

from keras_distill import _files

ADVICE = (
    "The memory does not hold this step. Try a smaller `batch_size` (the optimizer's "
    "`gradient_accumulation_steps` keeps the size of an update), the teacher in half precision "
    '(`teacher_dtype="bfloat16"`), its outputs from a `kd.data.TeacherCache`, or a smaller network.'
)

# TensorFlow and XLA raise `ResourceExhaustedError` and `InternalError`, JAX `JaxRuntimeError`,
# PyTorch `OutOfMemoryError` and `RuntimeError`, none of them a `MemoryError`.
WORDS = re.compile(
    r"\bOOM\b|out[ _]of[ _]memory|not enough memory|(?:can't|cannot|failed to) allocate", re.I
)


def is_out_of_memory(error):
    """Whether an error says that memory, on a device or on the host, was not enough."""
    if isinstance(error, MemoryError):
        return True
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    from_backend = bool(kinds & {"tensorflow", "jax", "jaxlib", "torch"})
    from_backend = from_backend or type(error) in (RuntimeError, OSError)
    return from_backend and bool(WORDS.search(str(error))) and not _files.lacks_room(error)


@contextlib.contextmanager
def advised():
    """Inside, an error of too little memory gets `ADVICE` as a note; it is raised as it is."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) and ADVICE not in getattr(error, "__notes__", ()):
            error.add_note(ADVICE)
        raise
