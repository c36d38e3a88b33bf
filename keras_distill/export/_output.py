"""Where an export goes."""

import os
import pathlib

from keras_distill import _checks


def output_path(path, hint):
    """`path` as a `pathlib.Path`; raises unless it is a non-empty path."""
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise TypeError(_checks.message("`path` to be a path to write to", "path", path, hint))
    return pathlib.Path(path)
