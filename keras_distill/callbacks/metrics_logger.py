"""`MetricsLogger`: each epoch's logs as a line of the run's `metrics.jsonl`."""

import time
from typing import Any

import keras

from keras_distill._checks import message
from keras_distill._types import Logs


class MetricsLogger(keras.callbacks.Callback):
    """Appends the logs of each epoch to the `metrics.jsonl` of a run's folder.

    A training that is resumed first drops the lines of the epochs that it does again, so
    that each epoch has one line, whenever the run was killed.

    Args:
        run_folder: A `kd.reporting.RunFolder`.
        **identity: What tells this training from the others in the folder, such as
            `model="distilled", seed=0`; stands in each line.

    Raises:
        TypeError: If `run_folder` is none.

    Example:
        >>> run = RunFolder("runs/digits")
        >>> model.fit(dataset, epochs=5, callbacks=[MetricsLogger(run, model="student", seed=0)])
        >>> run.read_metrics()[0]["epoch"]
        0
    """

    def __init__(self, run_folder: Any, **identity: Any) -> None:
        super().__init__()
        if not hasattr(run_folder, "append_metrics") or not hasattr(run_folder, "forget_metrics"):
            raise TypeError(
                message("`run_folder` to be a `kd.reporting.RunFolder`", "run_folder", run_folder)
            )
        self.run_folder = run_folder
        self.identity = identity
        self._resumed = False
        self._start = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._resumed = False

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        if not self._resumed:
            self.run_folder.forget_metrics(epoch, **self.identity)
            self._resumed = True
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        seconds = round(time.perf_counter() - self._start, 3)
        record = {**self.identity, "epoch": epoch, "seconds": seconds, **(logs or {})}
        self.run_folder.append_metrics(record)
