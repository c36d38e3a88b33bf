"""Builds a cache again and again in children, each killed at its moment and then gone on with.

    python -m tests.programs.caching FOLDER KILLS

Prints JSON: how long an undisturbed build takes, how many kills met a build that ran, and how many
caches ended as the undisturbed one. Children are forked after the imports and before TensorFlow
does anything, so that a kill meets the build and not the imports.
"""

import hashlib
import json
import os
import pathlib
import resource
import signal
import sys
import time
import traceback

import keras
import numpy as np

import keras_distill as kd
from keras_distill.data import teacher_cache

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


def child(path, limit=None):
    """Starts a build in a process of its own; its number."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        build(path)
        status = 0
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        status = 3
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(number):
    """The exit status of a child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def content(path):
    """What the files of a cache hold."""
    files = sorted(p for p in pathlib.Path(path).rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main(folder, kills):
    folder = pathlib.Path(folder)
    for name in ("first", "undisturbed"):  # The first one warms the machine's caches.
        start = time.perf_counter()
        assert ended(child(folder / name)) == 0
        length = time.perf_counter() - start
    expected = content(folder / "undisturbed")
    inside = equal = 0
    for i in range(kills):
        path = folder / f"killed_{i}"
        number = child(path)
        time.sleep((i + 0.5) / kills * length)
        os.kill(number, signal.SIGKILL)
        inside += ended(number) == -signal.SIGKILL
        status = ended(child(path))
        assert status == 0, (i, status, inside)
        equal += content(path) == expected
    # A disk that is full: a file may have so many bytes and no more.
    full = ended(child(folder / "full", limit=6000))
    assert ended(child(folder / "full")) == 0
    print(
        json.dumps(
            {
                "seconds": length,
                "inside": inside,
                "equal": equal,
                "full": full,
                "after_full": content(folder / "full") == expected,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
