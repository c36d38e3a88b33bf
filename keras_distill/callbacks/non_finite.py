"""Ends a training whose loss is no longer a number, and says which term it was."""

import math
from collections.abc import Sequence

import keras
import numpy as np

from keras_distill._types import Logs


class NonFiniteLoss(RuntimeError):
    """A loss, a term or a weight that is no finite number.

    The message names it, the step or the epoch, and what to try.
    """


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


def check_weights(
    model: keras.Model, epoch: int, variables: Sequence[keras.Variable] | None = None
) -> None:
    """Raises where an update has left weights that are no longer numbers.

    Trained ones must be finite; others may be infinite (masks, a best value yet to come).

    Args:
        model: A model or wrapper. Its frozen networks are not looked at.
        epoch: The number of the epoch that has ended, from 0 on.
        variables: Those to look at. Defaults to all.

    Raises:
        NonFiniteLoss: If there is such a weight.
    """
    trained = {id(variable) for variable in model.trainable_variables}
    frozen = {id(variable) for variable in getattr(model, "frozen_variables", ())}
    for variable in model.weights if variables is None else variables:
        if id(variable) in frozen or not keras.backend.is_float_dtype(variable.dtype):
            continue
        value = np.asarray(keras.ops.convert_to_numpy(variable))
        wrong = ~np.isfinite(value) if id(variable) in trained else np.isnan(value)
        if wrong.any():
            raise NonFiniteLoss(
                f"Expected finite weights. Received: {np.count_nonzero(wrong)} of {value.size} "
                f"numbers of {variable.path!r} that are not, after epoch {epoch + 1}."
                f"{_advice(model, {})}"
            )


def _advice(model, named):
    policy = getattr(getattr(model, "dtype_policy", None), "name", "")
    tries = ["a smaller learning rate or `clipnorm` in the optimizer", "finite and scaled inputs"]
    others = [name for name in named if name not in ("loss", "label_loss")]
    if others:
        tries.insert(1, f"a smaller weight or a warm-up of {others[0]!r}")
    if policy == "mixed_float16":
        tries.append("mixed_bfloat16 or float32 instead of mixed_float16")
    return f" Try {'; '.join(tries)}. The last backup is as it was."
