"""Trains by `keras-distill train` in children, each killed at its moment and then gone on with.

    python -m tests.programs.training FOLDER KILLS

Prints JSON: how long an undisturbed run takes, how many kills met a run at work, and how many
runs ended with the same bits; one that ended otherwise than the undisturbed one is an error.
"""

import json
import os
import pathlib
import sys
import zipfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import sklearn.datasets  # noqa: E402, F401

from keras_distill import cli  # noqa: E402
from tests.programs import children  # noqa: E402

# 37 steps an epoch: a prime number, so that Keras runs them one by one.
ARGUMENTS = (
    *("train", "--dataset", "digits", "--limit", "185", "--batch-size", "5", "--epochs", "3"),
    *("--teacher", "small-2", "--teacher-epochs", "2", "--student", "small-1"),
    *("--augment", "--no-flip"),
)


def train(folder):
    """A teacher and a student, or what is left of their training."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return cli.main([*ARGUMENTS, "--out", str(folder)])


def weights(path):
    """The weights in a `.keras` file, by name."""
    found = {}
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as stored:
        with h5py.File(stored, "r") as file:
            file.visititems(
                lambda name, item: (
                    found.update({name: np.asarray(item)})
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
    return found


def outcome(folder):
    """What must not depend on kills: results, logs without times, names of files, weights."""
    folder = pathlib.Path(folder)
    results = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logs = [{key: line[key] for key in line if key != "seconds"} for line in lines]
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    models = {path.name: weights(path) for path in sorted((folder / "models").iterdir())}
    return {"results": results, "logs": logs, "names": names}, models


def compare(folder, expected):
    """`(equal to one in a million, the same bits)` of two runs; raises where they differ."""
    (told, models), (expected_told, expected_models) = outcome(folder), expected
    assert told == expected_told, (told, expected_told)
    assert models.keys() == expected_models.keys()
    same = True
    for name, arrays in models.items():
        assert arrays.keys() == expected_models[name].keys()
        for key, array in arrays.items():
            np.testing.assert_allclose(array, expected_models[name][key], rtol=1e-6)
            same = same and np.array_equal(array, expected_models[name][key])
    return same


def main(folder, kills):
    folder = pathlib.Path(folder)
    sys.modules["matplotlib"] = None  # as if not installed: drawing takes longer than training
    length = children.timed(train, folder / "first")
    expected = outcome(folder / "first")
    if kills > 3:  # the machine's caches are warm now
        length = children.timed(train, folder / "second")
        assert compare(folder / "second", expected)
    inside = equal = same = 0
    for path in children.killed(kills, length, train, lambda i: folder / f"killed_{i}"):
        inside += 1
        assert children.run(train, path) == 0
        same += compare(path, expected)
        equal += 1
    found = {"seconds": length, "inside": inside, "equal": equal, "same": same}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
