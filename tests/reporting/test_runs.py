"""The run's folder: whole files, one line an epoch, the same settings on resume."""

import json

import keras
import numpy as np
import pytest

from keras_distill.callbacks import MetricsLogger
from keras_distill.reporting import RunFolder


def train(run, epochs, initial_epoch=0, **identity):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    x = np.ones((8, 2), "float32")
    model.fit(
        x,
        np.ones((8, 1), "float32"),
        epochs=epochs,
        initial_epoch=initial_epoch,
        validation_data=(x, x[:, :1]),
        callbacks=[MetricsLogger(run, **identity)],
        verbose=0,
    )


def epochs_of(run, **identity):
    return [
        record["epoch"]
        for record in run.read_metrics()
        if all(record[name] == value for name, value in identity.items())
    ]


def test_start_is_new_once_and_then_goes_on(tmp_path):
    settings = {"dataset": "digits", "seeds": (0, 1), "temperature": np.float32(4), "net": None}
    run = RunFolder(tmp_path / "a" / "run")
    assert run.start(settings) is False
    assert run.read_settings() == {
        "dataset": "digits", "seeds": [0, 1], "temperature": 4.0, "net": None,
    }  # fmt: skip
    assert RunFolder(tmp_path / "a" / "run").start(settings) is True


def test_other_settings_are_an_error_that_names_them(tmp_path):
    run = RunFolder(tmp_path)
    run.start({"epochs": 5, "seed": 0})
    with pytest.raises(ValueError, match=r"epochs=6 \(there: 5\), new=1 \(there: None\)\. Choose"):
        run.start({"epochs": 6, "seed": 0, "new": 1})
    assert run.read_settings() == {"epochs": 5, "seed": 0}


def test_metrics_logger_writes_one_line_an_epoch(tmp_path):
    run = RunFolder(tmp_path)
    train(run, 3, model="student", seed=1)
    records = run.read_metrics()
    assert [record["epoch"] for record in records] == [0, 1, 2]
    for record in records:
        assert {"model", "seed", "seconds", "loss", "mae", "val_loss", "val_mae"} <= set(record)
        assert record["model"] == "student" and record["seed"] == 1
    assert records[2]["loss"] < records[0]["loss"]


def pretend(run, epochs, initial_epoch=0, **identity):
    """What `fit` calls, without its work."""
    logger = MetricsLogger(run, **identity)
    logger.on_train_begin()
    for epoch in range(initial_epoch, epochs):
        logger.on_epoch_begin(epoch)
        logger.on_epoch_end(epoch, {"loss": 1.0})


def test_resuming_redoes_the_lines_of_its_own_epochs_only(tmp_path):
    run = RunFolder(tmp_path)
    pretend(run, 3, model="student", seed=0)
    pretend(run, 2, model="student", seed=1)
    pretend(run, 5, initial_epoch=2, model="student", seed=0)
    assert epochs_of(run, seed=0) == [0, 1, 2, 3, 4]
    assert epochs_of(run, seed=1) == [0, 1]
    pretend(run, 1, model="student", seed=1)  # from the start again
    assert epochs_of(run, seed=1) == [0]
    assert epochs_of(run, seed=0) == [0, 1, 2, 3, 4]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    run = RunFolder(tmp_path)
    pretend(run, 2, model="student")
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write('{"model": "student", "epoch": 2, "lo\u00e4'.encode()[:-1])
    assert epochs_of(run) == [0, 1]
    train(run, 3, initial_epoch=2, model="student")
    assert epochs_of(run) == [0, 1, 2]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    run = RunFolder(tmp_path)
    run.append_metrics({"epoch": 0, "loss": float("nan"), "kl": np.float32(np.inf), "mae": 1})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "epoch": 0, "loss": None, "kl": None, "mae": 1,
    }  # fmt: skip


def test_results_and_pictures_round_trip_and_leave_no_other_file(tmp_path):
    run = RunFolder(tmp_path)
    run.write_results({"models": [{"accuracy": np.array([0.5, 0.25])}], "path": tmp_path})
    run.write_results({"models": [{"accuracy": np.array([0.5, 0.75])}], "count": np.int64(3)})
    assert run.read_results() == {"models": [{"accuracy": [0.5, 0.75]}], "count": 3}
    run.write_pictures(images=np.zeros((2, 3)), temperature=4.0)
    pictures = run.read_pictures()
    assert sorted(pictures) == ["images", "temperature"]
    assert float(pictures["temperature"]) == 4.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures.npz", "results.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    run = RunFolder(tmp_path)
    run.write_results({"good": 1})
    with pytest.raises(TypeError, match="Expected numbers, strings, lists and dicts"):
        run.write_results({"bad": object()})
    assert run.read_results() == {"good": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_what_is_missing_or_damaged_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder.*demo"):
        RunFolder(tmp_path / "none", create=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="It is a file"):
        RunFolder(tmp_path / "file")
    run = RunFolder(tmp_path)
    assert run.read_settings() == {} and run.read_metrics() == [] and run.read_pictures() == {}
    with pytest.raises(FileNotFoundError, match="Expected 'results.json'.*same command again"):
        run.read_results()
    for text in ("{", "[1]", ""):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match=r"results\.json' to be readable.*run again"):
            run.read_results()
    run.write_pictures(images=np.arange(500))
    whole = (tmp_path / "pictures.npz").read_bytes()
    changed = whole[:60] + b"?" * 20 + whole[80:]
    for data in (b"", b"PK\x03\x04 cut", b"text", whole[:-30], changed):
        (tmp_path / "pictures.npz").write_bytes(data)
        with pytest.raises(ValueError, match=r"pictures\.npz' to be readable"):
            run.read_pictures()


def test_metrics_logger_wants_a_run_folder(tmp_path):
    with pytest.raises(TypeError, match="`run_folder` to be a `kd.reporting.RunFolder`"):
        MetricsLogger(str(tmp_path))
