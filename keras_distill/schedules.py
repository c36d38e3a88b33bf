"""Values that change with the step: for the weights and temperatures of terms.

A schedule is a `keras.optimizers.schedules.LearningRateSchedule`, so that Keras's own
(cosine, polynomial, piecewise) serve too. The step is `optimizer.iterations`: the number
of updates that the optimizer has made, which a resumed run continues.
"""

import math
from collections.abc import Callable
from typing import Any
from typing import TypeAlias

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._types import Config
from keras_distill._types import NumberOrSchedule
from keras_distill._types import Scalar
from keras_distill._types import Tensor

Schedule: TypeAlias = keras.optimizers.schedules.LearningRateSchedule


def number_or_schedule(
    name: str, value: NumberOrSchedule, check: Callable[[str, Any], float] = _checks.non_negative
) -> NumberOrSchedule:
    """Returns `value`, a schedule or a checked number.

    Args:
        name: The argument's name.
        value: What the caller was given.
        check: One of the checks of numbers in `_checks`.
    """
    if not isinstance(value, Schedule):
        return check(name, value)
    for step in (0, 10**9):  # The ends of a schedule, between which it moves.
        check(f"{name}, a schedule, at step {step}", float(ops.convert_to_numpy(value(step))))
    return value


def value_at(value: NumberOrSchedule | Tensor, step: Scalar) -> Tensor:
    """The float32 value of a number or schedule at this step."""
    return ops.cast(value(step) if callable(value) else value, "float32")


@keras.saving.register_keras_serializable(package="keras_distill")
class Constant(Schedule):
    """The same `value` at every step."""

    def __init__(self, value: float) -> None:
        self.value = _checks.finite("value", value)

    def __call__(self, step: Scalar) -> Tensor:
        return ops.convert_to_tensor(self.value, dtype="float32")

    def get_config(self) -> Config:
        return {"value": self.value}


class _Ramp(Schedule):
    """From `start` to `end` over `steps` updates, then `end`."""

    def __init__(self, start: float, end: float, steps: int) -> None:
        self.start = _checks.finite("start", start)
        self.end = _checks.finite("end", end)
        self.steps = _checks.positive_integer("steps", steps)

    def done(self, step: Scalar) -> Tensor:
        """The share of the way at this step, 0 to 1."""
        return ops.clip(ops.cast(step, "float32") / self.steps, 0.0, 1.0)

    def get_config(self) -> Config:
        return {"start": self.start, "end": self.end, "steps": self.steps}


@keras.saving.register_keras_serializable(package="keras_distill")
class Linear(_Ramp):
    """From `start` to `end` in a straight line over `steps` updates, then `end`."""

    def __call__(self, step: Scalar) -> Tensor:
        return self.start + (self.end - self.start) * self.done(step)


@keras.saving.register_keras_serializable(package="keras_distill")
class Cosine(_Ramp):
    """From `start` to `end` along half a cosine over `steps` updates, then `end`."""

    def __call__(self, step: Scalar) -> Tensor:
        falling = 0.5 * (1.0 + ops.cos(math.pi * self.done(step)))
        return self.end + (self.start - self.end) * falling


@keras.saving.register_keras_serializable(package="keras_distill")
class WarmUp(Schedule):
    """`value * min((step + 1) / steps, 1)`: DKD's and ReviewKD's warm-up, counted in updates.

    The published codes count in epochs, from 1: give `steps = epochs * steps_per_epoch`.
    """

    def __init__(self, value: float, steps: int) -> None:
        self.value = _checks.finite("value", value)
        self.steps = _checks.positive_integer("steps", steps)

    def __call__(self, step: Scalar) -> Tensor:
        return self.value * ops.minimum((ops.cast(step, "float32") + 1.0) / self.steps, 1.0)

    def get_config(self) -> Config:
        return {"value": self.value, "steps": self.steps}


@keras.saving.register_keras_serializable(package="keras_distill")
class SigmoidRamp(Schedule):
    """`value * exp(-5 (1 - min(step / steps, 1))^2)`: the ramp-up of consistency weights.

    From 0.0067 times `value` to `value`: that of the mean teacher (Tarvainen and Valpola,
    2017, https://arxiv.org/abs/1703.01780) and of ONE, counted in updates.

    The published codes count in epochs: give `steps = epochs * steps_per_epoch`.
    """

    def __init__(self, value: float, steps: int) -> None:
        self.value = _checks.finite("value", value)
        self.steps = _checks.positive_integer("steps", steps)

    def __call__(self, step: Scalar) -> Tensor:
        missing = 1.0 - ops.minimum(ops.cast(step, "float32") / self.steps, 1.0)
        return self.value * ops.exp(-5.0 * ops.square(missing))

    def get_config(self) -> Config:
        return {"value": self.value, "steps": self.steps}


@keras.saving.register_keras_serializable(package="keras_distill")
class Stop(Schedule):
    """`value` for the first `steps` updates, then 0: distillation that ends early."""

    def __init__(self, value: float, steps: int) -> None:
        self.value = _checks.finite("value", value)
        self.steps = _checks.positive_integer("steps", steps)

    def __call__(self, step: Scalar) -> Tensor:
        return self.value * ops.cast(ops.cast(step, "float32") < self.steps, "float32")

    def get_config(self) -> Config:
        return {"value": self.value, "steps": self.steps}
