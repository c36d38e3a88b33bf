"""Files that are whole or absent: written beside their place, then renamed."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ASIDE = ".replaced"


def lacks_room(error):
    """The number of the error of a full disk that an error is, or stems from; else None.

    HDF5 and TensorFlow raise errors of their own, with the system's words in the message.
    """
    while error is not None:
        for number in NO_ROOM:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def written_beside(path):
    """Yields a path in the same folder; renames it to `path` unless the block raises.

    The name keeps the ending of `path`, which Keras and TensorFlow look at. A file or a folder
    may be written; one that is already at `path` is replaced only after the block. What a kill
    left of an earlier writing of `path` is cleared away first.

    Args:
        path: The final path. Its folder is made where it is missing.

    Raises:
        OSError: If the disk is full, whatever the writer in the block makes of that.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _folder_beside(path) as folder:
        temporary = folder / path.name
        try:
            yield str(temporary)
        except Exception as error:
            number = lacks_room(error)
            if number is None:
                raise
            raise OSError(number, os.strerror(number), str(path)) from error
        if path.is_dir() and not path.is_symlink():
            _replace_folder(temporary, path, folder / f"{path.name}{ASIDE}")
        else:
            os.replace(temporary, path)


@contextlib.contextmanager
def _folder_beside(path):
    """An empty folder of this writer's own beside `path`, gone after the block.

    Its name follows from that of `path`, so that the next writer finds what a kill left there.
    A lock, which ends with its process, tells that from the folder of a writer at work.
    """
    folder = path.with_name(f".writing-{path.name}")
    lock = _locked(folder)
    if lock is None:
        folder = pathlib.Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    else:
        _clear(folder, path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(folder):
    """Makes and locks a folder: a descriptor, or None where another writer has it."""
    if fcntl is None:
        return None
    lock = None
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(folder)):  # else removed in between
            return lock
    except OSError:  # locked, or a file system without locks
        pass
    if lock is not None:
        os.close(lock)
    return None


def _clear(folder, path):
    """Empties a writer's folder; an old folder that a kill left stepped aside goes back."""
    aside = folder / f"{path.name}{ASIDE}"
    if aside.exists() and not path.exists():
        os.rename(aside, path)
    for left in folder.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def _replace_folder(new, path, aside):
    """A folder cannot be renamed onto another: the old one steps aside, and back on failure."""
    os.rename(path, aside)
    try:
        os.replace(new, path)
    except OSError:
        os.rename(aside, path)
        raise
