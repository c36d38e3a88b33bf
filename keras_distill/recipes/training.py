"""One training of a run: begun, taken up after a kill, or found finished."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable

import keras

from keras_distill import _checks
from keras_distill import data
from keras_distill import distribution
from keras_distill.callbacks.backup import Backup
from keras_distill.callbacks.backup import restore
from keras_distill.callbacks.metrics_logger import MetricsLogger
from keras_distill.recipes import networks

MOST_STEPS_PER_EXECUTION = 32
RUN_FILES = ("settings.json", "metrics.jsonl", "results.json", "pictures.npz", "report.html")
RUN_FOLDERS = ("figures", "models", "backups")


@dataclasses.dataclass(frozen=True)
class Training:
    """How a network is trained: Adam at a constant rate, on batches that can be repeated.

    Attributes:
        epochs: Number of epochs.
        batch_size: Samples in a batch.
        learning_rate: Adam's.
        seed: For the order of the samples and their augmentation.
        augment: None, or a function for `kd.data.batches`.
    """

    epochs: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    seed: int = 0
    augment: Callable | None = None

    def __post_init__(self):
        _checks.positive_integer("epochs", self.epochs)
        _checks.positive_integer("batch_size", self.batch_size)
        _checks.positive("learning_rate", self.learning_rate)


def make_deterministic():
    """From here on, TensorFlow's operations give the same numbers each time (this process)."""
    if distribution.is_tensorflow():
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def begin(run, settings, restart=False):
    """Writes a run's settings, or checks that it goes on with the same ones.

    Args:
        run: A `RunFolder`.
        settings: A dict.
        restart: Whether to remove first what an earlier run left in the folder.

    Returns:
        Whether there is a run to go on with.
    """
    if restart and (run.path / "settings.json").exists():
        for name in RUN_FILES:
            (run.path / name).unlink(missing_ok=True)
        for name in RUN_FOLDERS:
            shutil.rmtree(run.path / name, ignore_errors=True)
    try:
        return run.start(settings)
    except ValueError as error:
        raise ValueError(f"{error} Or begin anew in it with --restart.") from error


def model_path(run, name):
    """Where a finished network of a run lies."""
    return pathlib.Path(run) / "models" / f"{name}.keras"


def train(run, name, make, images, training, *, log=None, callbacks=(), verbose=0):
    """Trains one network of a run, unless it is finished, and saves it.

    Args:
        run: The `RunFolder`.
        name: Names the file `models/NAME.keras`.
        make: A function that builds, with seeds of its own, `(model to fit, network to save)`:
            twice the same for a plain network, a wrapper and its student for a distillation.
        images: The training `ImageData`.
        training: A `Training`.
        log: A dict that tells this training's lines in `metrics.jsonl` apart, such as
            `{"model": "distilled", "seed": 0}`.
        callbacks: More Keras callbacks.
        verbose: As in `fit`.

    Returns:
        The trained network, read back from its file, not compiled.
    """
    path = model_path(run, name)
    if path.exists():
        return networks.load(path)
    model, network = make()
    steps = data.steps_per_epoch(len(images), training.batch_size)
    model.compile(
        optimizer=keras.optimizers.Adam(training.learning_rate),
        loss=networks.label_loss(network),
        metrics=["accuracy"],
        steps_per_execution=_divisor(steps),
    )
    folder = run.path / "backups" / name
    start = restore(model, folder)
    if start < training.epochs:
        batches = data.batches(
            images.images,
            images.labels,
            training.batch_size,
            epochs=training.epochs,
            start_epoch=start,
            augment=training.augment,
            seed=training.seed,
        )
        # The line of an epoch is written before its backup, and dropped if it is done again.
        logger = MetricsLogger(run, **(log or {"model": name}))
        model.fit(
            batches,
            epochs=training.epochs,
            initial_epoch=start,
            steps_per_epoch=steps,
            shuffle=False,
            verbose=verbose,
            callbacks=[logger, Backup(folder), *callbacks],
        )
    trained = networks.save(network, path)
    shutil.rmtree(folder, ignore_errors=True)
    return trained


def _divisor(steps):
    """The largest divisor of `steps` that is not too large: epochs must not share a call."""
    return max(n for n in range(1, min(steps, MOST_STEPS_PER_EXECUTION) + 1) if steps % n == 0)
