"""Where an export goes, and holding back what native code prints on the way."""

import contextlib
import os
import pathlib
import sys

from keras_distill import _checks


def output_path(path, hint):
    """`path` as a `pathlib.Path`; raises unless it is a non-empty path."""
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise TypeError(_checks.message("`path` to be a path to write to", "path", path, hint))
    return pathlib.Path(path)


@contextlib.contextmanager
def native_output_held_back():
    """Drops what C++ writes to the process's stderr inside the block.

    The converter's and the interpreter's notes ("fully_quantize: 0, ...", "Created XNNPACK
    delegate") obey no log level, so the file descriptor itself is pointed elsewhere.
    """
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # the process has no stderr
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
