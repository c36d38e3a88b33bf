"""Writing beside and renaming, and holding back what native code prints."""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile

from keras_distill import _checks


def output_path(path, hint):
    """`path` as a `pathlib.Path`; raises unless it is a non-empty path."""
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise TypeError(_checks.message("`path` to be a path to write to", "path", path, hint))
    return pathlib.Path(path)


@contextlib.contextmanager
def written_beside(path):
    """Yields a path to write to, and moves what is there onto `path` if the block ends well.

    The new file or folder is made in a temporary folder next to `path`, so that the move is a
    rename on one file system: a reader sees the old file or the new one, never half of one.
    Missing parent folders are made. After an error `path` is as it was and nothing is left.

    Args:
        path: A `pathlib.Path`, the file or folder to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        written = beside / path.name
        yield written
        if written.is_dir() and path.exists():
            # A folder cannot be renamed onto a full one: the old one steps aside first.
            replaced = beside / f"{path.name}.replaced"
            os.rename(path, replaced)
            try:
                os.rename(written, path)
            except OSError:
                os.rename(replaced, path)
                raise
        else:
            os.replace(written, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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
