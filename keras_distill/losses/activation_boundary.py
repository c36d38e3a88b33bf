"""Activation boundaries (AB): which units of a teacher are active, learnt with a margin."""

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._ops import flatten_samples
from keras_distill._types import Config
from keras_distill._types import Shapes
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _logits
from keras_distill.losses import _maps
from keras_distill.losses import misfit
from keras_distill.losses.base import DistillationLoss

MODES = ("paper", "mean")


def activation_boundary(
    teacher_features: Structure,
    student_features: Structure,
    margin: float = 1.0,
    mode: str = "paper",
) -> Tensor:
    """AB: the student's units on the same side of 0 as the teacher's, by a margin.

    For a teacher's value t and a student's s before the activation, with margin m,

        e = max(s + m, 0)^2 where t <= 0,    e = max(m - s, 0)^2 where t > 0.

    `mode="paper"`: the sum of e over the elements of a sample. `mode="mean"`: the mean. Of
    several features, deepest last, feature i of n counts `2^(i - n)`: 1, and half as much at
    each step towards the input.

    The value is 0 where each s has the sign of t and is at least m away from 0: not where s is
    t. Exact zeros of the teacher are inactive.

    The student is to be tapped before its activation ("stage1_pre" to "stage3_pre" of
    `keras_distill.backbones`; elsewhere the batch normalization or sum that a ReLU reads): behind
    a ReLU nothing is below 0, and no unit can be put out. Of the teacher only `t > 0` counts,
    which a ReLU keeps and other activations do not.

    Weights in use: 3/1000 with `mode="paper"` (the official code on CIFAR, where the sum grows
    with the maps), 10 with `mode="mean"` and a margin of 2 (AberHu's
    Knowledge-Distillation-Zoo). In two stages: first this loss alone, on the student up to the
    tapped layers, then the labels alone.

    Args:
        teacher_features: Tensor `(batch, ...)`, a constant to the gradient; or a list of them,
            deepest last.
        student_features: Tensor of the same shape, or a list, alike.
        margin: Positive distance from 0 that is asked of the student.
        mode: `"paper"` or `"mean"`.

    Returns:
        Tensor `(batch,)`.

    Raises:
        ValueError: If the shapes or the numbers of features differ, or an option is wrong.

    References:
        Heo et al. AAAI 2019, https://arxiv.org/abs/1811.03233. Convention of the official code,
        https://github.com/bhheo/AB_distillation. Where channels differ, its connector is
        `keras_distill.regressors.ConvBatchNorm`.
        Deviation: the teacher runs for inference; the official first stage runs it in training
        mode, where its batch statistics move.
    """
    margin = _checks.positive("margin", margin)
    _checks.one_of("mode", mode, MODES)
    teachers, students = _maps.as_list(teacher_features), _maps.as_list(student_features)
    if len(teachers) != len(students) or not teachers:
        shapes = [[tuple(x.shape) for x in own] for own in (teachers, students)]
        raise ValueError(
            f"Expected as many features from both. Received: teacher_features.shape={shapes[0]}, "
            f"student_features.shape={shapes[1]}. Name as many layers of both."
        )
    total = 0.0
    for teacher, student in zip(teachers, students):
        total = 0.5 * total + _of_one(teacher, student, margin, mode)
    return total


def _of_one(teacher, student, margin, mode):
    teacher, student = _logits.matched_pair(teacher, student)
    _logits.check_same_shape(
        teacher, student, "features", 'Give the Term `connector="auto"`, which fits them.'
    )
    teacher, student = flatten_samples(teacher), flatten_samples(student)
    # Half of -1 or 1; `where` takes several times as long on CPUs.
    half_side = ops.cast(teacher > 0, student.dtype) - 0.5
    values = 4.0 * _squares(student, half_side, 0.5 * margin)
    if mode == "mean":
        return values / ops.cast(ops.shape(student)[1], values.dtype)
    return values


def _squares(student, half_side, half_margin):
    """The sum of `max(half_margin - half_side * student, 0)^2` of each sample."""

    @ops.custom_gradient
    def of(student, half_side):
        missing = ops.relu(half_margin - half_side * student)

        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            slopes = missing * half_side * (-2.0 * upstream)[:, None]
            return slopes, ops.zeros_like(half_side)

        return ops.sum(ops.square(missing), axis=-1), gradient

    return of(student, half_side)


@keras.saving.register_keras_serializable(package="keras_distill")
class ActivationBoundary(DistillationLoss):
    """Which units are active, AB (Heo et al. 2019): see `activation_boundary`.

    Args:
        margin: Positive distance from 0 that is asked of the student.
        mode: `"paper"`, the sum over the elements of a sample, or `"mean"`.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.

    Example:
    ```python
    taps = ["stage1_pre", "stage2_pre", "stage3_pre"]
    kd.Term(kd.losses.ActivationBoundary(), taps, taps, weight=3e-3, connector="auto")
    ```
    """

    def __init__(self, margin: float = 1.0, mode: str = "paper", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = _checks.positive("margin", margin)
        self.mode = _checks.one_of("mode", mode, MODES)

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        return misfit.of_one_shape(teacher_shapes, student_shapes)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        return activation_boundary(y_true, y_pred, self.margin, self.mode)

    def get_config(self) -> Config:
        return {**super().get_config(), "margin": self.margin, "mode": self.mode}
