"""Files that are whole or absent: written beside their place, then renamed."""

import contextlib
import os
import pathlib
import shutil
import tempfile


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
            old = folder / "replaced"
            os.rename(path, old)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
