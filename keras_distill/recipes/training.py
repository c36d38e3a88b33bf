"""One training of a run: begun, taken up after a kill, or found finished."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras

from keras_distill import _checks
from keras_distill import data
from keras_distill import distribution
from keras_distill._types import PathLike
from keras_distill.callbacks.backup import Backup
from keras_distill.callbacks.backup import restore
from keras_distill.callbacks.metrics_logger import MetricsLogger
from keras_distill.callbacks.non_finite import TerminateOnNonFinite
from keras_distill.callbacks.non_finite import check_weights
from keras_distill.data.images import ImageData
from keras_distill.models.self_distiller import SelfDistiller
from keras_distill.recipes import networks
from keras_distill.reporting.runs import RunFolder
from keras_distill.reporting.source import EXITS

MOST_STEPS_PER_EXECUTION = 32
RUN_FILES = (
    "metrics.jsonl",
    "results.json",
    "pictures.npz",
    "report.html",
    "comparison.md",
)
RUN_FOLDERS = ("figures", "models", "backups", "runs")


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


@dataclasses.dataclass(frozen=True)
class Forwards:
    """Images that a training forwards in an epoch, or in the mean of its epochs.

    Attributes:
        student: By the network that is kept, with a gradient.
        peers: By other networks, with a gradient.
        frozen: By any network, without one: a teacher, an average, a partner.
    """

    student: float
    peers: float = 0
    frozen: float = 0

    @property
    def all(self) -> float:
        """The sum."""
        return self.student + self.peers + self.frozen


@dataclasses.dataclass(frozen=True)
class Plan:
    """One training, made ready: a wrapper, its data, and how it is compiled.

    Attributes:
        model: The wrapper or network to fit, built, not compiled.
        network: The `keras.Model` that is kept: evaluated and saved.
        data: A function of `start_epoch` that gives the `tf.data.Dataset` of all batches from
            there to the last epoch.
        compile: The arguments of `compile`.
        epochs: Number of epochs, of each generation.
        steps: Steps of an epoch.
        forwards: The `Forwards` of an epoch, those of all generations together.
        generations: How many trainings `fit` does one after another, each of `epochs` epochs.
    """

    model: Any
    network: Any
    data: Callable
    compile: dict
    epochs: int
    steps: int
    forwards: Forwards
    generations: int = 1

    @property
    def all_epochs(self) -> int:
        """Epochs of all generations."""
        return self.epochs * self.generations


def make_deterministic() -> None:
    """From here on, TensorFlow's operations give the same numbers each time (this process)."""
    if distribution.is_tensorflow():
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def begin(run: RunFolder, settings: Mapping[str, Any], restart: bool = False) -> bool:
    """Writes a run's settings, or checks that it goes on with the same ones.

    Args:
        run: A `RunFolder`.
        settings: A dict.
        restart: Whether to remove first what an earlier run left in the folder.

    Returns:
        Whether there is a run to go on with.

    Raises:
        ValueError: If another process works in the folder, or the settings differ.
    """
    run.hold()
    known = run.path / "settings.json"
    if restart and known.exists():
        for name in RUN_FILES:
            (run.path / name).unlink(missing_ok=True)
        for folder in filter(pathlib.Path.exists, [run.path / name for name in RUN_FOLDERS]):
            shutil.rmtree(folder)
        known.unlink()  # the last: without it, models that a kill left would pass for this run's
    try:
        return run.start(settings)
    except ValueError as error:
        raise ValueError(f"{error} Or begin anew in it with --restart.") from error


def model_path(run: PathLike, name: str) -> pathlib.Path:
    """Where a finished network of a run lies."""
    return pathlib.Path(run) / "models" / f"{name}.keras"


def _backups(run, name):
    """Where the backups of a training of a run lie until it is done."""
    return run.path / "backups" / name


def _finished(run, name):
    """The network of a training that is done, read from its file; None of one that is not."""
    path = model_path(run, name)
    if not path.exists():
        return None
    shutil.rmtree(_backups(run, name), ignore_errors=True)  # a kill may have come before that
    return networks.load(path)


def train(
    run: RunFolder,
    name: str,
    make: Callable[[], tuple[keras.Model, keras.Model]],
    images: ImageData,
    training: Training,
    *,
    log: Mapping[str, Any] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | str = 0,
    ids: bool = False,
) -> keras.Model:
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
        ids: Whether the batches carry the ids of the samples, as in `kd.data.batches`.

    Returns:
        The trained network, read back from its file, not compiled.
    """
    finished = _finished(run, name)
    if finished is not None:
        return finished
    model, network = make()

    def batches(start_epoch):
        return data.batches(
            images.images,
            images.labels,
            training.batch_size,
            epochs=training.epochs,
            start_epoch=start_epoch,
            augment=training.augment,
            seed=training.seed,
            ids=ids,
        )

    compile = {
        "optimizer": keras.optimizers.Adam(training.learning_rate),
        "loss": networks.label_loss(network),
        "metrics": ["accuracy"],
    }
    steps = data.steps_per_epoch(len(images), training.batch_size)
    forwards = Forwards(student=len(images))
    plan = Plan(model, network, batches, compile, training.epochs, steps, forwards)
    return carry_out(run, name, plan, log=log, callbacks=callbacks, verbose=verbose)


def carry_out(
    run: RunFolder,
    name: str,
    plan: Plan,
    *,
    log: Mapping[str, Any] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | str = 0,
) -> keras.Model:
    """Trains as planned, unless it is done, and saves the network.

    Args:
        run, name, log, callbacks, verbose: As in `train`. The callbacks come first, so that what
            they put into an epoch's logs stands in its line of `metrics.jsonl`.
        plan: A `Plan`.

    Returns:
        The trained network, read back from its file, not compiled. A wrapper with exits is kept
        beside it, in `models/NAME_exits.keras`, for the report's early-exit curve.
    """
    finished = _finished(run, name)
    if finished is not None:
        return finished
    folder = _backups(run, name)
    plan.model.compile(**plan.compile, steps_per_execution=_divisor(plan.steps))
    start = restore(plan.model, folder)
    if start < plan.all_epochs:
        # The line of an epoch is written before its backup, and dropped if it is done again.
        logger = MetricsLogger(run, **(log or {"model": name}))
        plan.model.fit(
            plan.data(start),
            epochs=plan.epochs,
            initial_epoch=start,
            steps_per_epoch=plan.steps,
            shuffle=False,
            verbose=verbose,
            callbacks=[*callbacks, TerminateOnNonFinite(), logger, Backup(folder)],
        )
    check_weights(plan.network, plan.all_epochs - 1)
    path = model_path(run, name)
    if isinstance(plan.model, SelfDistiller):  # first, as the network's file says that all is done
        networks.save(plan.model, path.with_name(f"{name}{EXITS}"))
    trained = networks.save(plan.network, path)
    shutil.rmtree(folder, ignore_errors=True)
    return trained


def _divisor(steps):
    """The largest divisor of `steps` that is not too large: epochs must not share a call."""
    return max(n for n in range(1, min(steps, MOST_STEPS_PER_EXECUTION) + 1) if steps % n == 0)
