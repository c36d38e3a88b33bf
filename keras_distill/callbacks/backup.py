"""`Backup`: what a killed training needs to go on as if nothing had happened."""

import contextlib
import os
import pathlib
import re
import tempfile

import keras
import numpy as np

from keras_distill import _checks
from keras_distill import _files
from keras_distill import _keras
from keras_distill import _memory
from keras_distill import distribution
from keras_distill._files import written_beside
from keras_distill._types import Logs
from keras_distill._types import PathLike
from keras_distill.callbacks.non_finite import check_weights

SEEDS = "keras_distill_seeds"
NUMPY_MEMORY = "Unable to allocate"


class Backup(keras.callbacks.Callback):
    """Writes weights, optimizer and random states at the end of each epoch.

    The file, `epoch-00007.weights.h5` after seven epochs, is written beside its place and
    renamed, and only then are older ones removed: whenever the process is killed, one whole
    file is there. With data from `kd.data.batches`, a training taken up by `restore` equals one
    that was never disturbed. `keras.callbacks.BackupAndRestore` keeps weights and epoch in two
    files, and no state of random layers (dropout), which a weights file leaves out.

    Weights that are no longer numbers are an error, `NonFiniteLoss`, and the last backup stays:
    the update of an epoch's last step may overflow after a loss that was finite.

    Of several processes (`MultiWorkerMirroredStrategy`) the chief alone writes, where Keras's
    callback writes one file in all of them, and `restore` hands what it reads to the others.

    Args:
        folder: The folder for the backups of this one training. Made where it is missing.

    Example:
    ```python
    start = kd.callbacks.restore(model, "runs/backups")
    dataset = kd.data.batches(images, labels, 50, epochs=40, start_epoch=start)
    model.fit(
        dataset, epochs=40, initial_epoch=start, steps_per_epoch=8, shuffle=False,
        callbacks=[kd.callbacks.Backup("runs/backups")],
    )
    ```
    """

    def __init__(self, folder: PathLike) -> None:
        super().__init__()
        self.folder = pathlib.Path(folder)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        import h5py

        check_weights(self.model, epoch, self.model.trainable_variables)  # in all processes
        if not distribution.writes_files(_strategy(self.model)):
            return
        check_weights(self.model, epoch)
        path = self.folder / f"epoch-{epoch + 1:05d}.weights.h5"
        hidden = getattr(self.model, "without_frozen", contextlib.nullcontext)
        with hidden():
            content = _keras.weights_in_memory(self.model)
        with h5py.File(content, "a") as file:
            for i, state in enumerate(seed_states(self.model)):
                value = keras.ops.convert_to_numpy(state.value)
                file[f"{SEEDS}/{i}"] = np.asarray(value)
        with written_beside(path) as temporary:
            pathlib.Path(temporary).write_bytes(content.getbuffer())
        for old, _ in backups(self.folder):
            if old != path:
                old.unlink(missing_ok=True)


def seed_states(model):
    """The states of a model's random layers (Keras's `SeedGenerator`s), in a fixed order."""
    return [variable for variable in model.variables if variable.name == "seed_generator_state"]


def backups(folder):
    """`[(path, finished epochs), ...]` of a folder, the newest first."""
    folder = pathlib.Path(folder)
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        epochs = _epochs(path)
        if epochs is not None:
            found.append((path, epochs))
    return sorted(found, key=lambda entry: -entry[1])


def _epochs(path):
    """How many epochs were done when a backup was written, by its name; `None` of another file."""
    match = re.fullmatch(r"epoch-(\d+)\.weights\.h5", path.name)
    return int(match.group(1)) if match else None


def restore(model: keras.Model, folder: PathLike) -> int:
    """Loads the newest backup of a folder into a built and compiled model.

    What a kill left half-written is removed. Of several processes all have to call this; the
    chief's folder is the one that counts.

    Args:
        model: The model or wrapper, built and compiled as it was.
        folder: The folder of the `Backup`.

    Returns:
        The number of epochs that are done: `initial_epoch` of the `fit` to come. 0 where there
        is no backup.

    Raises:
        ValueError: If the backup is damaged, or of another model. Where the system does not let
            it be read (memory, permission, a disk that fails), that error is raised as it is.
    """
    strategy = _strategy(model)
    with _newest_backup(folder, strategy) as path:
        if path is None:
            return 0
        if not model.built:
            raise ValueError(
                _checks.message(
                    "`model` to be built", "model", model.name, "Call it on one batch first."
                )
            )
        if model.optimizer is not None and not model.optimizer.built:
            with contextlib.nullcontext() if strategy is None else strategy.scope():
                model.optimizer.build(model.trainable_variables)
        try:
            _load(model, path)
        except Exception as error:  # h5py's and Keras's many ways to say so
            if _is_of_the_system(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                "Expected a backup of this training in "
                f"{os.fspath(pathlib.Path(folder) / path.name)!r}. Received: {reason[:200]} "
                "Remove the file to begin this training anew."
            ) from error
        return _epochs(path)


def _strategy(model):
    """The `tf.distribute` strategy that a model was made under; `None` on other backends."""
    return model.distribute_strategy if distribution.is_tensorflow() else None


@contextlib.contextmanager
def _newest_backup(folder, strategy):
    """Yields the newest backup, in several processes a copy of the chief's; `None` without one."""
    path = None
    if distribution.writes_files(strategy):
        _files.clear_left(folder)
        path = next((path for path, _ in backups(folder)), None)
    if not distribution.in_several_processes(strategy):
        yield path
        return
    content = b"" if path is None else path.name.encode() + b"\n" + path.read_bytes()
    name, _, content = distribution.from_chief(content, strategy).partition(b"\n")
    with tempfile.TemporaryDirectory() as own:
        path = pathlib.Path(own, name.decode()) if name else None
        if path is not None:
            path.write_bytes(content)
        yield path


def _is_of_the_system(error):
    """Whether the backup may be whole: memory or the way to the file failed.

    Keras puts what a layer's loading raised into the text of an error of its own.
    """
    if _files.lacks_access(error):
        return True
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError) or _memory.WORDS.search(text) or NUMPY_MEMORY in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def _load(model, path):
    import h5py

    with h5py.File(path, "r") as file:
        stored = file.get(SEEDS, {})
        seeds = [np.asarray(stored[str(i)]) for i in range(len(stored))]
    states = seed_states(model)
    if len(seeds) != len(states):
        raise ValueError(f"it has {len(seeds)} random layers, the model {len(states)}.")
    model.load_weights(path)
    for state, value in zip(states, seeds):
        state.assign(value)
