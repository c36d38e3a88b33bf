"""Files that are whole or absent: written beside their place, then renamed."""

import contextlib
import os
import pathlib
import shutil
import tempfile


def _replace_folder(new, path, aside):
    """A folder cannot be renamed onto another: the old one steps aside, and back on failure."""
    os.rename(path, aside)
    try:
        os.replace(new, path)
    except OSError:
        os.rename(aside, path)
        raise


@contextlib.contextmanager
def written_beside(path):
    """Yields a path in the same folder; renames it to `path` unless the block raises.

    The name keeps the ending of `path`, which Keras and TensorFlow look at. A file or a folder
    may be written; one that is already at `path` is replaced only after the block.

    Args:
        path: The final path. Its folder is made where it is missing.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    try:
        temporary = folder / path.name
        yield str(temporary)
        if path.is_dir() and not path.is_symlink():
            _replace_folder(temporary, path, folder / "replaced")
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
