"""`keras-distill train` with losses that hold state: ids, banks, stages; stopped and taken up."""

import json

import keras
import numpy as np
import pytest

from keras_distill.recipes import distillation
from keras_distill.recipes import training

pytestmark = pytest.mark.tensorflow


class StopsAt(keras.callbacks.Callback):
    """As a user who interrupts at the begin of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def settings(loss, **options):
    small = {"limit": 40, "epochs": 2, "teacher_epochs": 1, "batch_size": 20}
    networks = {"teacher": "small-3", "student": "small-2"}
    return distillation.Settings("digits", loss=loss, **{**small, **networks, **options})


def distil(loss, out, **options):
    said = []
    distillation.distil(settings(loss, **options), out, verbose=0, say=said.append)
    student = keras.models.load_model(training.model_path(out, "student"), compile=False)
    return student.get_weights(), said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "stops", "stages"),
    [
        ("ContrastiveRepresentation", [1], None),
        ("FactorTransfer", [3, 7], [0] * 6 + [1] * 2),  # in the stage before, and in its own
    ],
)
def test_a_stopped_run_ends_as_an_undisturbed_one(loss, stops, stages, tmp_path, monkeypatch):
    """Banks and their Z, ids of the samples, helpers and stages are taken up."""
    undisturbed, said = distil(loss, tmp_path / "one")
    assert any(line.startswith(f"Loss: {loss} of ") for line in said)
    train = training.train

    def stopped(at):
        def run(folder, name, *arguments, **options):
            callbacks = [StopsAt(at)] if name == "student" else []
            return train(folder, name, *arguments, callbacks=callbacks, **options)

        return run

    for epoch in stops:
        monkeypatch.setattr(training, "train", stopped(epoch))
        with pytest.raises(KeyboardInterrupt):
            distil(loss, tmp_path / "two")
    monkeypatch.setattr(training, "train", train)
    resumed, said = distil(loss, tmp_path / "two")
    assert "Going on with the run" in said[0]
    for one, other in zip(undisturbed, resumed):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-7)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    own = [[line for line in each if line["model"] == "student distilled"] for each in lines]
    assert [line["epoch"] for line in own[1]] == [line["epoch"] for line in own[0]]
    if stages is not None:
        assert [line["stage"] for line in own[1]] == stages


@pytest.mark.slow
def test_the_same_seed_gives_the_same_helpers_for_a_student_from_a_file(tmp_path):
    """A connector starts by the seed, whatever state the process is in."""
    student = distillation.networks.build("small-2", (8, 8, 1), 10, seed=9)
    student.save(tmp_path / "student.keras")
    weights = []
    for state in (1, 2):
        keras.utils.set_random_seed(state)
        file = str(tmp_path / "student.keras")
        weights.append(distil("Hint", tmp_path / str(state), student=file, epochs=1)[0])
    for one, other in zip(*weights):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("wrong", [{"weight": -0.1}, {"label_weight": float("nan")}])
def test_weights_are_checked_where_they_are_given(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` to be a finite number"):
        settings("Hint", **wrong)
    assert settings("Hint").weight is None
