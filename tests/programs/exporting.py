"""Exports in children, each killed at its moment; what is there then, and after doing it again.

    python -m tests.programs.exporting FOLDER KILLS

Prints JSON: how long an undisturbed export takes, how many kills met one at work, how many of the
exports done again equal the undisturbed one, and in which states kills left the targets; the same
of a writer that is killed before each of its operations on files; and how a full disk ends.
"""

import collections
import json
import os
import pathlib
import shutil
import signal
import sys
import zipfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_distill as kd  # noqa: E402
from keras_distill import _files  # noqa: E402
from tests.programs import children  # noqa: E402

FILES = ("int8.tflite", "wrapper.keras", "wrapper.weights.h5")
TARGETS = ("saved", *FILES)
OPERATIONS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")
FULL = 3


def wrapper(seed):
    """A distiller of networks without a convolution, which take the least time to convert."""
    keras.utils.set_random_seed(seed)

    def network(name, units):
        inputs = keras.Input((4,), name="x")
        hidden = keras.layers.Dense(units, activation="relu", name="hidden")(inputs)
        return keras.Model(inputs, keras.layers.Dense(3, name="head")(hidden), name=name)

    return kd.Distiller(network("teacher", 8), network("student", 4), kd.losses.SoftTargets())


def export(folder, seed=1, targets=TARGETS):
    """Writes the targets into a folder."""
    distiller = wrapper(seed)
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    if "saved" in targets:
        kd.export.saved_model(distiller, folder / "saved")
    if "int8.tflite" in targets:
        kd.export.tflite(distiller, folder / "int8.tflite", "int8", representative_data=x)
    if "wrapper.keras" in targets:
        distiller.save(folder / "wrapper.keras")
    if "wrapper.weights.h5" in targets:
        distiller.save_weights(folder / "wrapper.weights.h5")


def export_where_there_is_no_room(folder, target):
    """The status of an export of one target."""
    try:
        export(folder, targets=(target,))
    except OSError as error:
        print(error, file=sys.stderr)
        return FULL


def content(path):
    """What a file holds, without times and addresses of objects; None where there is nothing."""
    if not path.exists():
        return None
    if path.suffix != ".keras":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    del files["metadata.json"]
    files["config.json"] = json.loads(files["config.json"], object_hook=without_addresses)
    return files


def without_addresses(config):
    return {key: value for key, value in config.items() if key != "shared_object_id"}


def answers(folder):
    """Writes what each SavedModel says of the same inputs, beside it."""
    import tensorflow as tf

    x = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
    for path in sorted(folder.glob("*/saved*/saved_model.pb")):
        network = tf.saved_model.load(str(path.parent))
        np.save(f"{path.parent}.npy", network.serve(x))


def names(folder):
    """Files and folders, hidden ones included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def contents(folder):
    return {target: content(folder / target) for target in FILES}


def state_of(there, old, new):
    """Which of two contents a target has."""
    states = {"absent": None, "old": old, "new": new}
    return ([name for name, state in states.items() if there == state] or ["half"])[0]


def killed_exports(folder, kills, length):
    """Kills exports, every other one over older files; then exports again."""
    old, new = contents(folder / "old"), contents(folder / "new")
    found = collections.Counter()

    def place(number):
        path = folder / f"killed_{number}"
        path.mkdir()
        if number % 2:
            shutil.copytree(folder / "old", path, dirs_exist_ok=True)
        return path

    killed = []
    for path in children.killed(kills, length, export, place):
        killed.append(path)
        there = contents(path)
        found.update(state_of(there[name], old[name], new[name]) for name in FILES)
        kept = folder / f"left_{path.name}"
        if (path / "saved").exists():
            shutil.copytree(path / "saved", kept / "saved")
        assert children.run(export, path) == 0
        found["equal"] += contents(path) == new and names(path) == names(folder / "new")
    found["inside"] = len(killed)
    assert children.run(answers, folder) == 0
    old, new = (np.load(folder / name / "saved.npy").tolist() for name in ("old", "new"))
    for path in folder.glob("left_*/saved"):
        found[state_of(np.load(f"{path}.npy").tolist(), old, new)] += 1
    for path in killed:
        found["saved_equal"] += np.load(path / "saved.npy").tolist() == new
    return found


def write(path, words, is_folder, operations=None):
    """Writes a file or a folder beside its place; killed before so many operations on files."""
    left = operations

    def count(event, arguments):
        nonlocal left
        if left is not None and event in OPERATIONS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if operations is not None:
        sys.addaudithook(count)
    with _files.written_beside(path) as temporary:
        if is_folder:
            os.mkdir(temporary)
            temporary = os.path.join(temporary, "file")
        with open(temporary, "w") as file:
            file.write(words)


def killed_writers(folder):
    """Kills a writer before its first operation on files, its second, and so on."""
    found = collections.Counter()
    for is_folder in (False, True):
        for has_old in (False, True):
            status, operations = None, 0
            while status != 0:
                path = folder / f"{is_folder}_{has_old}_{operations}" / "target"
                if has_old:
                    write(path, "old", is_folder)
                status = children.run(write, path, "new", is_folder, operations)
                assert status in (0, -signal.SIGKILL), status
                file = path / "file" if is_folder else path
                found[file.read_text() or "half" if file.exists() else "absent"] += 1
                found["lost"] += has_old and not file.exists() and not goes_back(path, is_folder)
                write(path, "new", is_folder)
                found["equal"] += names(path.parent) == ["target", "target/file"][: 1 + is_folder]
                found["kills"] += status != 0
                operations += 1
    return found


def goes_back(path, is_folder):
    """Whether an old folder that stepped aside is there after a writing that fails."""
    try:
        with _files.written_beside(path):
            raise InterruptedError
    except InterruptedError:
        return path.exists()


def main(folder, kills):
    folder = pathlib.Path(folder)
    for name in ("new", "old", "full", "writers"):
        (folder / name).mkdir(parents=True)
    length = children.timed(export, folder / "new")
    assert children.run(export, folder / "old", 0) == 0
    exports = killed_exports(folder, kills, length)
    shutil.copytree(folder / "old", folder / "full", dirs_exist_ok=True)
    work, place = export_where_there_is_no_room, folder / "full"
    full = [children.run(work, place, target, limit=1000) for target in TARGETS]
    kept = contents(place) == contents(folder / "old") and names(place) == names(folder / "old")
    found = {"seconds": length, "exports": exports, "writers": killed_writers(folder / "writers")}
    print(json.dumps({**found, "full": full, "kept": kept}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
