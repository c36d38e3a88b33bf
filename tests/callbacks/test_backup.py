"""`Backup` and `restore`: a training that is taken up again equals an undisturbed one."""

import errno
import os

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.backbones import small_cnn
from keras_distill.callbacks.backup import Backup
from keras_distill.callbacks.backup import backups
from keras_distill.callbacks.backup import restore

pytestmark = pytest.mark.tensorflow  # `data.batches` is a tf.data pipeline

EPOCHS = 4
STEPS = 3


class Killed(Exception):
    """Stands for the end of the process."""


class Kill(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.at == self.epoch and batch == 1:
            raise Killed

    def on_epoch_begin(self, epoch, logs=None):
        self.at = epoch


def data():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, 8, 8, 1)).astype("uint8")
    return images, generator.integers(0, 3, 24)


def student(dropout=0.0, channels=2):
    keras.utils.set_random_seed(7)
    return small_cnn(classes=3, channels=channels, dropout=dropout)


def distiller(dropout=0.0):
    model = student(dropout)
    teacher = small_cnn(classes=3, channels=3, dropout=0.1, name="teacher")
    return kd.Distiller(teacher, model, kd.losses.SoftTargets(4.0))


def ensemble(dropout=0.0):
    keras.utils.set_random_seed(7)
    members = [small_cnn(classes=3, channels=2, dropout=dropout, name=f"m{i}") for i in (0, 1)]
    return kd.EnsembleTeacher(members)


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    return model


def train(model, folder, callbacks=()):
    images, labels = data()
    start = restore(model, folder)
    model.fit(
        kd.data.batches(images, labels, 8, epochs=EPOCHS, start_epoch=start, seed=3),
        epochs=EPOCHS,
        initial_epoch=start,
        steps_per_epoch=STEPS,
        shuffle=False,
        verbose=0,
        callbacks=[Backup(folder), *callbacks],
    )
    return start


@pytest.mark.slow
@pytest.mark.parametrize("build", [student, distiller, ensemble])
def test_resumed_training_equals_undisturbed(build, tmp_path):
    """Weights, optimizer, batch statistics and dropout go on where the epoch ended."""
    undisturbed = compiled(build(dropout=0.3))
    assert train(undisturbed, tmp_path / "a") == 0
    killed = compiled(build(dropout=0.3))
    with pytest.raises(Killed):
        train(killed, tmp_path / "b", [Kill(epoch=2)])
    assert [epochs for _, epochs in backups(tmp_path / "b")] == [2]
    resumed = compiled(build(dropout=0.3))
    assert train(resumed, tmp_path / "b") == 2
    for one, two in zip(undisturbed.get_weights(), resumed.get_weights()):
        np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-7)
    assert int(undisturbed.optimizer.iterations) == EPOCHS * STEPS
    assert int(resumed.optimizer.iterations) == EPOCHS * STEPS


def back_up(model, folder, epochs=EPOCHS):
    """A backup as if so many epochs were done."""
    model.optimizer.build(model.trainable_variables)
    callback = Backup(folder)
    callback.set_model(model)
    callback.on_epoch_end(epochs - 1)


@pytest.mark.slow
def test_one_whole_file_is_left_and_nothing_half_written(tmp_path):
    (tmp_path / ".writing-killed").mkdir()
    (tmp_path / ".writing-killed" / "epoch-00003.weights.h5").write_bytes(b"half")
    train(compiled(student()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00004.weights.h5"]


def test_newest_backup_counts(tmp_path):
    """A kill between the new file and the removal of the old one leaves both."""
    back_up(compiled(student()), tmp_path)
    (tmp_path / "epoch-00002.weights.h5").write_bytes(b"older")
    assert restore(compiled(student()), tmp_path) == EPOCHS


def test_without_backup_training_begins_at_0(tmp_path):
    assert restore(compiled(student()), tmp_path / "missing") == 0


@pytest.mark.parametrize(
    ("spoil", "build"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), student),
        (lambda path: path.write_bytes(b"no h5"), student),
        (lambda path: None, lambda: student(channels=4)),
        (lambda path: None, lambda: student(dropout=0.5)),
    ],
    ids=["cut", "foreign", "other widths", "other layers"],
)
def test_corrupt_or_foreign_backup_is_an_error_that_names_the_file(tmp_path, spoil, build):
    back_up(compiled(student()), tmp_path)
    path = tmp_path / "epoch-00004.weights.h5"
    spoil(path)
    with pytest.raises(ValueError, match="Expected a backup of this training in .*epoch-00004"):
        restore(compiled(build()), tmp_path)


@pytest.mark.filterwarnings("ignore:Skipping nested container")  # Keras, of what failed
@pytest.mark.parametrize("build", [student, distiller])
@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        BlockingIOError(errno.EAGAIN, "unable to lock file, errno = 11"),
        OSError(errno.EIO, "read failed"),
        MemoryError("Unable to allocate 9 GiB"),
    ],
    ids=["permission", "lock", "disk", "memory"],
)
def test_a_backup_that_the_system_keeps_back_is_not_called_damaged(
    tmp_path, monkeypatch, build, error
):
    """Keras makes a text of what a layer's loading raises; a wrapper an error of its own."""
    back_up(compiled(build()), tmp_path)

    def failing(layer, store):
        raise error

    monkeypatch.setattr(keras.layers.Dense, "load_own_variables", failing)
    with pytest.raises(Exception) as caught:
        restore(compiled(build()), tmp_path)
    assert "Remove the file" not in str(caught.value)
    assert str(error) in str(caught.value)


@pytest.mark.parametrize("place", ["trained", "moving"])
def test_weights_that_are_no_numbers_do_not_replace_a_backup(tmp_path, place):
    model = compiled(student())
    back_up(model, tmp_path, epochs=1)
    trained = model.trainable_variables[0]
    other = next(v for v in model.non_trainable_variables if v.path.endswith("moving_variance"))
    other.assign(np.full(other.shape, np.inf))  # is none of the optimizer's doing
    back_up(model, tmp_path, epochs=2)
    value = np.full(trained.shape, np.inf) if place == "trained" else np.full(other.shape, np.nan)
    (trained if place == "trained" else other).assign(value)
    with pytest.raises(kd.callbacks.NonFiniteLoss, match="finite weights.*after epoch 3.*Try a"):
        back_up(model, tmp_path, epochs=3)
    assert [epochs for _, epochs in backups(tmp_path)] == [2]
