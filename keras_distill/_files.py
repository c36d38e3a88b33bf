"""Files that are whole or absent: written beside their place, then renamed."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import tempfile
import weakref

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ACCESS = (
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ENOLCK),
    *(errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE),
)
NOT_SYNCED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # of file systems that have none of it
ASIDE = ".replaced"
_HELD = weakref.WeakValueDictionary()


def lacks_room(error):
    """The number of the error of a full disk that an error is, or stems from; else None.

    HDF5 and TensorFlow raise errors of their own, with the system's words in the message.
    """
    return _number_of(error, NO_ROOM)


def lacks_access(error):
    """The number where an error is of the system, which did not let a whole file be read."""
    return _number_of(error, NO_ACCESS)


def _number_of(error, numbers):
    while error is not None:
        text = str(error)
        told = {int(number) for number in re.findall(r"(?:\[Errno |\berrno = )(\d+)", text)}
        for number in numbers:
            is_own = getattr(error, "errno", None) == number
            if is_own or number in told or os.strerror(number) in text:
                return number
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def written_beside(path):
    """Yields a path in the same folder; renames it to `path` unless the block raises.

    The name keeps the ending of `path`, which Keras and TensorFlow look at. A file or a folder
    may be written; one that is already at `path` is replaced only after the block. What a kill
    left of an earlier writing of `path` is cleared away first. What is renamed is on the disk: a
    loss of power leaves the old or the new, too. Of a symbolic link, the target is replaced.

    Args:
        path: The final path. Its folder is made where it is missing.

    Raises:
        OSError: If the disk is full, whatever the writer in the block makes of that.
    """
    path = pathlib.Path(path)
    name = path.name  # of a link, whose target may end otherwise
    if path.is_symlink():
        path = pathlib.Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _folder_beside(path) as folder:
        temporary = folder / name
        try:
            yield str(temporary)
            to_disk(temporary)
        except Exception as error:
            number = lacks_room(error)
            if number is None:
                raise
            raise OSError(number, os.strerror(number), str(path)) from error
        if path.is_dir() and not path.is_symlink():
            # A folder cannot be renamed onto another: the old one steps aside. It comes back,
            # see `_folder_beside`, unless the new one is in its place.
            os.rename(path, _aside(folder, path))
        os.replace(temporary, path)
        _folder_to_disk(path.parent)


def to_disk(path):
    """Waits until a file, or all files in a folder, are on the disk and not in memory alone."""
    path = pathlib.Path(path)
    if path.is_dir():
        for entry in path.iterdir():
            to_disk(entry)
        _folder_to_disk(path)
    elif path.is_file():
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in NOT_SYNCED:
                raise
        finally:
            os.close(descriptor)


def _folder_to_disk(folder):
    """The names in a folder; where the system has no way to do so, they come in its own time."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Hold:
    """A lock of a folder, this process's until nothing refers to the object, or the process ends.

    Args:
        descriptor: Of the folder, locked.
    """

    def __init__(self, descriptor):
        weakref.finalize(self, os.close, descriptor)


def held(folder):
    """Locks a folder for this process: a `Hold` to keep; None where there are no locks.

    A process may hold a folder several times.

    Raises:
        BlockingIOError: If another process holds it.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        status = os.fstat(descriptor)
    except OSError:
        return None
    known = _HELD.get((status.st_dev, status.st_ino))
    if known is not None:
        os.close(descriptor)
        return known
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None  # a file system without locks
    hold = _HELD[status.st_dev, status.st_ino] = Hold(descriptor)
    return hold


def clear_left(folder):
    """Removes what kills left of writings into a folder; a writer at work keeps its own."""
    for left in pathlib.Path(folder).glob(".writing-*"):
        if any(left.glob(f"*{ASIDE}")):
            continue  # the next writing of that folder puts the old one back
        with contextlib.suppress(BlockingIOError):
            hold = held(left)
            shutil.rmtree(left, ignore_errors=True)
            del hold


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
        lock = _locked(folder)
    try:
        _put_back(folder, path)
        _clear(folder)
        yield folder
    finally:
        try:
            _put_back(folder, path)  # else the folder is not removed, and the next writer tries
            shutil.rmtree(folder, ignore_errors=True)
        finally:
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


def _aside(folder, path):
    """Where the folder at `path` is while another one comes into its place."""
    return folder / f"{path.name}{ASIDE}"


def _put_back(folder, path):
    """An old folder that stepped aside goes back, unless a new one is in its place."""
    aside = _aside(folder, path)
    if aside.exists() and not path.exists():
        os.rename(aside, path)


def _clear(folder):
    """Empties a writer's folder."""
    for left in folder.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
