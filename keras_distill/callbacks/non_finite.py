"""Ends a training whose loss is no longer a number, and says which term it was."""

import math

import keras
import numpy as np

from keras_distill._types import Logs


class NonFiniteLoss(RuntimeError):
    """A loss or a term that is NaN or infinite; the message names it, the step and what to try."""


class TerminateOnNonFinite(keras.callbacks.Callback):
    """Raises as soon as the loss or one of its terms is NaN or infinite.

    Looks at the logs of each batch, which hold each term under its own name. Weights are as the
    step left them: go on from a backup. Keras's `TerminateOnNaN` ends a training without an error
    and looks at the total alone.

    With `steps_per_execution`, Keras shows the logs after so many steps, and the error names all
    of these.

    Raises:
        NonFiniteLoss: At the end of that batch.
    """

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._epoch = self._first = 0

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        self._first = batch

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        values = {name: float(np.mean(value)) for name, value in (logs or {}).items()}
        named = {name: v for name, v in values.items() if not math.isfinite(v)}
        named = {name: v for name, v in named.items() if name in self._losses()}
        if not named:
            return  # a metric may have no value yet
        received = ", ".join(
            f"{name}={v}" for name, v in named.items() if name != "loss" or len(named) == 1
        )
        one = f"step {batch + 1}"
        steps = (
            one if batch == self._first else f"one of the steps {self._first + 1} to {batch + 1}"
        )
        raise NonFiniteLoss(
            f"Expected finite losses. Received: {received} in {steps} of epoch "
            f"{self._epoch + 1}.{_advice(self.model, named)}"
        )

    def _losses(self):
        """Names under which the wrapper logs losses: means, unlike compiled metrics."""
        means = [metric.name for metric in self.model.metrics if type(metric) is keras.metrics.Mean]
        return {"loss", *means}


def _advice(model, named):
    policy = getattr(getattr(model, "dtype_policy", None), "name", "")
    tries = ["a smaller learning rate or `clipnorm` in the optimizer", "finite and scaled inputs"]
    others = [name for name in named if name not in ("loss", "label_loss")]
    if others:
        tries.insert(1, f"a smaller weight or a warm-up of {others[0]!r}")
    if policy == "mixed_float16":
        tries.append("mixed_bfloat16 or float32 instead of mixed_float16")
    return f" Try {'; '.join(tries)}. The last backup is as it was."
