"""Builds a cache again and again in children, each killed at its moment and then gone on with.

    python -m tests.programs.caching FOLDER KILLS

Prints JSON: how long an undisturbed build takes, how many kills met a build that ran, and how many
caches ended as the undisturbed one. Children are forked after the imports and before TensorFlow
does anything, so that a kill meets the build and not the imports.
"""

import hashlib
import json
import pathlib
import sys

import keras
import numpy as np

import keras_distill as kd
from keras_distill.data import teacher_cache
from tests.programs import children

FULL = 3
SAMPLES, VIEWS, BLOCK = 512, 6, 16


def build(path):
    """A cache of many small blocks."""
    keras.utils.set_random_seed(0)
    teacher_cache._block = lambda record_bytes, samples: BLOCK
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (SAMPLES, 8, 8, 3)).astype("uint8")
    y = rng.integers(0, 10, SAMPLES)
    teacher = kd.backbones.small_cnn((8, 8, 3), channels=4)
    kd.data.TeacherCache.build(
        path, teacher, x, y, views=VIEWS, augment=kd.data.crop_and_flip(1), batch_size=BLOCK
    )


def build_where_there_is_no_room(path):
    """The status of a build that the disk has no room for."""
    try:
        build(path)
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return FULL


def content(path):
    """What the files of a cache hold."""
    files = sorted(p for p in pathlib.Path(path).rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main(folder, kills):
    folder = pathlib.Path(folder)
    for name in ("first", "undisturbed"):  # The first one warms the machine's caches.
        length = children.timed(build, folder / name)
    expected = content(folder / "undisturbed")
    killed = list(children.killed(kills, length, build, lambda i: folder / f"killed_{i}"))
    equal = 0
    for path in killed:
        assert children.run(build, path) == 0
        equal += content(path) == expected
    # A disk that is full: a file may have so many bytes and no more.
    full = children.run(build_where_there_is_no_room, folder / "full", limit=6000)
    assert children.run(build, folder / "full") == 0
    found = {
        "seconds": length,
        "inside": len(killed),
        "equal": equal,
        "full": full,
        "after_full": content(folder / "full") == expected,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
