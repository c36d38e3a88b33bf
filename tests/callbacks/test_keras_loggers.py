"""Keras's own callbacks on a wrapper: what they do to a plain model they do to it."""

import csv

import keras
import numpy as np
import pytest

from tests.contract import WRAPPERS
from tests.contract import network
from tests.contract import samples

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]
BATCH, STEPS, RATE, FACTOR = 8, 4, 0.05, 0.5
NEVER = {"monitor": "val_loss", "mode": "min", "min_delta": 1e3}  # no improvement is as large


def plain():
    model = network("plain")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(RATE, momentum=0.9), loss, metrics=["accuracy"])
    return model


MODELS = {
    "plain": (plain, ["accuracy", "loss"], ["accuracy", "loss"]),
    "Distiller": (
        WRAPPERS["Distiller"].compiled,
        ["accuracy", "decoupled_kd", "hint", "label_loss", "loss", "soft_targets"],
        ["accuracy", "loss"],
    ),
    "MutualLearner": (
        WRAPPERS["MutualLearner"].compiled,
        [f"{name}_{what}" for name in "abc" for what in ("accuracy", "loss", "mimicry")]
        + ["ensemble_accuracy", "label_loss", "loss"],
        [f"{name}_{what}" for name in "abc" for what in ("accuracy", "loss")]
        + ["ensemble_accuracy", "loss"],
    ),
}


class Run:
    """One `fit` under all callbacks at once.

    Attributes:
        model: The model, trained.
        folder: What the callbacks wrote into.
        history: What `fit` returned.
        batches: The names of each batch's logs.
        losses: `val_loss` as a callback saw it at the end of each epoch.
    """

    def __init__(self, model, folder):
        self.model, self.folder = model, folder
        self.batches, self.losses = [], []
        x, y = samples(BATCH * STEPS)
        told = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: self.batches.append(sorted(logs)),
            on_epoch_end=lambda epoch, logs: self.losses.append(logs["val_loss"]),
        )
        callbacks = keras.callbacks
        self.history = model.fit(
            x,
            y,
            batch_size=BATCH,
            epochs=9,
            validation_data=(x, y),
            verbose=0,
            callbacks=[
                callbacks.CSVLogger(folder / "log.csv"),
                callbacks.TensorBoard(folder / "board", update_freq="epoch", profile_batch=0),
                callbacks.ModelCheckpoint(folder / "best.keras", save_best_only=True),
                callbacks.ModelCheckpoint(folder / "last.weights.h5", save_weights_only=True),
                callbacks.ReduceLROnPlateau(**NEVER, factor=FACTOR, patience=1),
                callbacks.EarlyStopping(**NEVER, patience=2),
                callbacks.TerminateOnNaN(),
                told,
            ],
        )


@pytest.fixture(scope="module", params=MODELS)
def run(request, tmp_path_factory):
    pytest.importorskip("tensorboard", reason="Keras's TensorBoard callback writes through it")
    create, logs, validation_logs = MODELS[request.param]
    run = Run(create(), tmp_path_factory.mktemp(request.param))
    run.logs, run.validation_logs = sorted(logs), sorted(validation_logs)
    return run


def inner_optimizers(model):
    return getattr(model.optimizer, "optimizers", [model.optimizer])


def test_history_csv_and_batches_hold_each_log(run):
    expected = [*run.logs, *(f"val_{name}" for name in run.validation_logs)]
    # The rates are what ReduceLROnPlateau adds behind.
    shown = {name: v for name, v in run.history.history.items() if "learning_rate" not in name}
    assert sorted(shown) == sorted(expected)
    assert run.batches == [run.logs] * (STEPS * len(run.history.epoch))
    with open(run.folder / "log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", *expected]
    for name in expected:
        np.testing.assert_allclose([float(row[name]) for row in rows], shown[name], rtol=1e-6)
    np.testing.assert_allclose(run.losses, shown["val_loss"], rtol=1e-6)


def test_the_rate_falls_and_the_training_stops(run):
    # Epoch 1 is the best so far, 2 without an improvement follow: then it stops.
    assert run.history.epoch == [0, 1, 2]
    optimizers = inner_optimizers(run.model)
    rates = [float(optimizer.learning_rate) for optimizer in optimizers]
    np.testing.assert_allclose(rates, [RATE * FACTOR**2] * len(optimizers), rtol=1e-6)
    logged = {n: v for n, v in run.history.history.items() if n.startswith("learning_rate")}
    names = ["learning_rate"]
    if len(optimizers) > 1:
        names = [f"learning_rate_{student.name}" for student in run.model.students]
    assert sorted(logged) == names
    for values in logged.values():
        np.testing.assert_allclose(values, [RATE, RATE, RATE * FACTOR], rtol=1e-6)


def test_checkpoints_are_the_best_and_the_last(run):
    x, y = samples(BATCH * STEPS)
    best = keras.models.load_model(run.folder / "best.keras")
    loss = best.evaluate(x, y, batch_size=BATCH, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(loss, min(run.losses), rtol=1e-4)
    best.load_weights(run.folder / "last.weights.h5")
    loss = best.evaluate(x, y, batch_size=BATCH, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(loss, run.losses[-1], rtol=1e-4)


def test_tensorboard_shows_each_log(run):
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    def tags(part):
        files = [str(path) for path in (run.folder / "board" / part).iterdir()]
        events = [event_pb2.Event.FromString(r.numpy()) for r in tf.data.TFRecordDataset(files)]
        return {value.tag for event in events for value in event.summary.value}

    assert {f"epoch_{name}" for name in run.logs} <= tags("train")
    assert {f"epoch_{name}" for name in run.validation_logs} <= tags("validation")


def test_a_nan_ends_the_training(run):
    x, y = samples(BATCH * STEPS)
    x[BATCH] = np.nan  # in the second batch
    seen = []
    told = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    nan = keras.callbacks.TerminateOnNaN()
    run.model.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=[nan, told])
    assert seen == [0, 1]
    assert run.model.stop_training
