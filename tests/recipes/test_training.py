"""One training of a run: settings, finished models, going on, the `train` recipe's checks."""

import os

import pytest

import keras_distill as kd
from keras_distill.recipes import distillation
from keras_distill.recipes import training
from keras_distill.reporting import RunFolder


def test_restart_removes_the_run_and_nothing_else(tmp_path):
    run = RunFolder(tmp_path)
    assert training.begin(run, {"epochs": 1}) is False
    assert training.begin(run, {"epochs": 1}) is True
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "teacher.keras").touch()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="epochs=2.*--restart"):
        training.begin(run, {"epochs": 2})
    assert training.begin(run, {"epochs": 2}, restart=True) is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "settings.json"]


def test_restart_leaves_a_folder_alone_that_holds_no_run(tmp_path):
    (tmp_path / "models").mkdir()
    training.begin(RunFolder(tmp_path), {"epochs": 1}, restart=True)
    assert (tmp_path / "models").exists()


def test_a_folder_that_another_process_works_in_is_told_before_anything_is_removed(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    training.begin(RunFolder(tmp_path), {"epochs": 1})
    other = os.open(tmp_path, os.O_RDONLY)  # as if of another process: not known to this one
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="no other process works in.*another folder"):
            training.begin(RunFolder(tmp_path), {"epochs": 2}, restart=True)
        assert RunFolder(tmp_path).read_settings() == {"epochs": 1}
    finally:
        os.close(other)
    assert training.begin(RunFolder(tmp_path), {"epochs": 2}, restart=True) is False


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"epochs": 1, "batch_size": 0}, {"epochs": 1, "learning_rate": -1.0}]
)
def test_bad_training_settings(wrong):
    with pytest.raises(ValueError, match="Expected"):
        training.Training(**wrong)


def test_steps_per_execution_divides_the_steps():
    """Otherwise Keras takes batches of the next epoch into an epoch's last call."""
    assert [training._divisor(n) for n in (1, 7, 16, 37, 64, 390)] == [1, 7, 16, 1, 32, 30]


@pytest.mark.slow
@pytest.mark.tensorflow
def test_finished_model_is_read_not_trained(tmp_path):
    images = kd.data.load("digits", limit=20).train
    run = RunFolder(tmp_path)

    def make():
        model = distillation.networks.build("small-2", (8, 8, 1), 10, seed=1)
        return model, model

    how = training.Training(epochs=1, batch_size=10)
    first = training.train(run, "student", make, images, how)
    assert training.model_path(run, "student").is_file()
    assert not (tmp_path / "backups" / "student").exists()
    second = training.train(run, "student", lambda: 1 / 0, images, how)
    for a, b in zip(first.get_weights(), second.get_weights()):
        assert (a == b).all()
    assert [record["epoch"] for record in run.read_metrics()] == [0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ensemble": 0}, "ensemble"),
        ({"weight": -1.0}, "weight"),
        ({"teacher": "a.keras", "ensemble": 2}, "--ensemble"),
    ],
)
def test_bad_settings(wrong, said):
    with pytest.raises(ValueError, match=said):
        distillation.Settings(
            **{"dataset": "digits", "teacher": "small-2", "student": "s", **wrong}
        )
