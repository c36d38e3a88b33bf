"""Kills, full disks, Ctrl-C, losses that are no numbers, too little memory: what each leaves."""

import contextlib
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import _files
from keras_distill import _memory
from keras_distill import cli
from keras_distill.recipes import training
from tests.contract import CLASSES
from tests.contract import SHAPE
from tests.contract import network
from tests.contract import samples

ROOT = pathlib.Path(__file__).resolve().parent.parent
KILLS = [3, pytest.param(20, marks=pytest.mark.slow)]
TO_CLASS_IDS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def program(name, folder, *arguments):
    """What a program of `tests/programs` prints, and its stderr; temporary files go to `folder`."""
    (folder / "tmp").mkdir()
    command = [sys.executable, "-m", f"tests.programs.{name}", folder / "work", *arguments]
    (folder / "work").mkdir()
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder / "tmp"), "TF_CPP_MIN_LOG_LEVEL": "2"},
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


# SIGKILL, at moments spread over the length of an undisturbed process.


@pytest.mark.tensorflow
@pytest.mark.parametrize("kills", KILLS)
def test_killed_trainings_end_as_the_undisturbed_one(tmp_path, kills):
    """The same command goes on: weights within one in a million, results, logs, names of files."""
    found, _ = program("training", tmp_path, kills)
    assert found["inside"] == kills
    assert found["equal"] == kills


@pytest.mark.tensorflow
@pytest.mark.parametrize("kills", KILLS)
def test_killed_exports_leave_the_old_the_new_or_nothing(tmp_path, kills):
    """SavedModel, int8 file, wrapper and its weights; then a full disk under each of them."""
    found, errors = program("exporting", tmp_path, kills)
    exports, writers = found["exports"], found["writers"]
    assert exports["inside"] == exports["equal"] == exports["saved_equal"] == kills
    assert "half" not in exports and exports["absent"] > 0
    assert "half" not in writers and writers["lost"] == 0
    assert writers["kills"] > 20 and writers["equal"] == writers["kills"] + 4
    assert found["full"] == [3, 3, 3, 3] and found["kept"]
    assert errors.count("[Errno 27] File too large") == 4


# Ctrl-C and full disks, through the command line.


@pytest.mark.slow
@pytest.mark.tensorflow
def test_stopped_commands_say_so_in_a_line_and_go_on(tmp_path):
    """The program itself compares what the commands leave, given again, with undisturbed ones."""
    found, _ = program("commands", tmp_path)
    stopped = {name: ended for name, ended in found.items() if name.startswith("interrupted")}
    assert len(stopped) == 5 and len(found) - len(stopped) == 5
    for name, (status, lines) in found.items():
        assert len(lines) == 1, (name, lines)
        if name in stopped:
            again = "begins anew" if name == "interrupted export" else "goes on from there"
            assert status == 130, (name, lines)
            assert lines[0].startswith("Interrupted. ") and again in lines[0]
        else:
            assert status == 2 and lines[0].startswith("keras-distill: Expected room ")
            assert "Received: File too large" in lines[0] and "make room" in lines[0]


def test_interrupt_while_keras_is_imported_ends_without_a_traceback():
    script = (
        "import os, signal, sys, threading; sys.argv[0] = 'keras-distill'; "
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start(); "
        "from keras_distill import cli"
    )
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert process.returncode == 130, process.stderr
    assert process.stderr == "Interrupted before anything was begun.\n"


# In this process.


@pytest.fixture
def call(capsys, monkeypatch):
    """`call("train", ...)` -> (status, stderr); the process keeps its settings."""
    monkeypatch.setattr(training, "make_deterministic", lambda: None)

    def run(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        return status, capsys.readouterr().err

    return run


def test_an_interrupt_that_native_code_takes_is_told_as_one(call, monkeypatch):
    """TensorFlow's converter: "'list' object has no attribute '_type_spec'", after Ctrl-C."""

    def swallowed(*args):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise RuntimeError("a list has no type")

    monkeypatch.setattr(cli, "_compare", swallowed)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status, errors = call("compare", "a.keras", "--dataset", "digits")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130 and errors.startswith("Interrupted. ") and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("compare", "a.keras"), "the same command goes on from there"),
        (("compare", "a.keras", "--restart"), "the same command without --restart goes on"),
        (("evaluate", "a.keras"), "the same command begins anew"),
    ],
)
def test_an_interrupt_says_how_to_go_on(call, monkeypatch, arguments, said):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_compare", interrupted)
    status, errors = call(*arguments, "--dataset", "digits")
    assert status == 130 and errors.count("\n") == 1
    assert errors.startswith("Interrupted. ") and said in errors


def test_a_restart_that_is_killed_does_not_take_old_models_for_new_ones(tmp_path, monkeypatch):
    """What the folder was started with goes last, so that the same command removes the rest."""
    run = kd.reporting.RunFolder(tmp_path)
    training.begin(run, {"epochs": 1})
    training.model_path(run, "student").parent.mkdir()
    training.model_path(run, "student").write_text("old")

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.shutil, "rmtree", killed)
        training.begin(run, {"epochs": 2}, restart=True)
    assert training.begin(run, {"epochs": 2}, restart=True) is False
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def train_arguments(folder, student="small-1"):
    networks = ("--teacher", "small-1", "--student", student)
    small = ("--limit", 40, "--epochs", 1, "--batch-size", 10)
    return ("train", "--dataset", "digits", *networks, *small, "--out", folder)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_loss_that_is_no_number_is_told_with_the_step_and_what_to_try(call, tmp_path):
    status, errors = call(*train_arguments(tmp_path / "run"), "--learning-rate", 1e30)
    assert status == 2 and errors.count("\n") == 1
    assert "Expected finite losses. Received: loss=" in errors
    assert " in one of the steps 1 to 4 of epoch 1. Try a smaller learning rate" in errors
    assert "--debug" not in errors
    assert not list((tmp_path / "run").glob("models/*.keras"))


@keras.saving.register_keras_serializable("tests.faults")
class Hungry(keras.layers.Layer):
    """Asks for more memory than a process can address, as soon as it runs."""

    def call(self, inputs):
        rows = keras.ops.shape(inputs)[0] * 2**20
        large = keras.ops.full((rows, 2**28), keras.ops.sum(inputs))
        return inputs + keras.ops.sum(keras.ops.cumsum(large, axis=0))

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


def hungry(shape, classes):
    inputs = keras.Input(shape)
    x = Hungry()(keras.layers.GlobalAveragePooling2D()(inputs))
    return keras.Model(inputs, keras.layers.Dense(classes)(x), name="student")


@pytest.mark.tensorflow
def test_too_little_memory_in_fit_is_raised_as_it_is_with_advice():
    import tensorflow as tf

    x, y = samples(8)
    wrapper = kd.Distiller(network("teacher"), hungry(SHAPE, CLASSES), kd.losses.SoftTargets())
    wrapper.compile("sgd", TO_CLASS_IDS)
    with pytest.raises(tf.errors.ResourceExhaustedError, match="OOM") as error:
        wrapper.fit(x, y, batch_size=4, verbose=0)
    assert error.value.__notes__ == [_memory.ADVICE]
    assert "`batch_size`" in _memory.ADVICE and "TeacherCache" in _memory.ADVICE


@pytest.mark.slow
@pytest.mark.tensorflow
def test_too_little_memory_is_a_line_of_advice_on_the_command_line(call, tmp_path):
    hungry((8, 8, 1), 10).save(tmp_path / "student.keras")
    status, errors = call(*train_arguments(tmp_path / "run", tmp_path / "student.keras"))
    assert status == 2 and errors.count("\n") == 1 and len(errors) < 700
    assert "Expected enough memory. Received: " in errors and "--batch-size" in errors


def test_memory_that_numpy_does_not_get_is_told_too(call, monkeypatch):
    monkeypatch.setattr(cli, "_compare", lambda *_: np.ones((2**30, 2**20)))
    status, errors = call("evaluate", "x.keras", "--dataset", "digits")
    assert status == 2 and errors.count("\n") == 1
    assert "Expected enough memory. Received: Unable to allocate" in errors


def test_memory_that_jax_does_not_get_is_recognised():
    jax = pytest.importorskip("jax")
    with pytest.raises(RuntimeError) as error:
        jax.numpy.zeros((2**30, 2**25)).block_until_ready()
    assert _memory.is_out_of_memory(error.value)
    assert not _memory.is_out_of_memory(ValueError("out of memory"))


@pytest.mark.tensorflow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_not_taken_for_memory_whatever_the_backend_says(tmp_path):
    import tensorflow as tf

    with pytest.raises(tf.errors.ResourceExhaustedError) as error:
        tf.io.write_file("/dev/full", "some words")
    assert not _memory.is_out_of_memory(error.value)
    with pytest.raises(OSError, match="No space left on device") as error:
        with _files.written_beside(tmp_path / "words.txt"):
            tf.io.write_file("/dev/full", "some words")
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(tmp_path / "words.txt") and not list(tmp_path.iterdir())
