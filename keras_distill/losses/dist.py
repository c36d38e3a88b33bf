"""DIST: relations between and within classes, by Pearson's correlation."""

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._types import Config
from keras_distill._types import Scalar
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _logits
from keras_distill.losses.base import DistillationLoss

EPSILON = 1e-8


def dist(
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Scalar = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """DIST: one minus the correlation of predictions, along classes and along the batch.

    With P and Q the `(rows, classes)` predictions of teacher and student at temperature T,

    - inter = 1 - mean over rows of Pearson(P[i, :], Q[i, :]),
    - intra = 1 - mean over classes of Pearson(P[:, k], Q[:, k]),

    and the loss is `T^2 (beta inter + gamma intra)`. A correlation is the centered dot
    product over (the product of norms + 1e-8), so that a constant row or class correlates
    0 with anything: the loss of equal predictions is near 1e-7 instead of 0, more where
    predictions are uniform or a class is never predicted.

    The intra part needs two rows at least: of one it is the constant 1. With two classes the
    inter part sees but which is the larger one, and the intra part carries the rest.

    Leading axes beyond the batch (tokens, pixels) are flattened into rows. Rows that a mask
    or a weight leaves out still enter the intra part. With several replicas each correlates
    the samples of its own batch.

    Weights in use: 2, with 1 on the label loss; T = 1 (ImageNet) or 4 (CIFAR).

    Args:
        teacher_logits: Tensor `(batch, ..., classes)`, a constant to the gradient.
        student_logits: Tensor of the same shape.
        temperature: Positive number, scalar tensor or `keras.Variable`.
        beta: Weight of the relations between classes.
        gamma: Weight of the relations within a class.

    Returns:
        Tensor of shape `logits.shape[:-1]`. The intra part is the same number in each
        entry, so that the mean is the loss.

    Raises:
        ValueError: If the shapes differ, there is one unit only, or the temperature is not
            a positive number.

    References:
        Huang et al. NeurIPS 2022, https://arxiv.org/abs/2205.10536. Convention of the
        official code (DIST_KD).
        Deviation: the gradient of a norm of 0 is 0 instead of NaN.
    """
    teacher_logits, student_logits = _logits.matched_logits(teacher_logits, student_logits)
    temperature = _logits.temperature_like(temperature, student_logits)
    teacher_probs = ops.softmax(teacher_logits / temperature)
    student_probs = ops.softmax(student_logits / temperature)
    inter = 1.0 - _pearson(teacher_probs, student_probs, axis=-1)
    intra = 1.0 - ops.mean(
        _pearson(_logits.as_rows(teacher_probs), _logits.as_rows(student_probs), axis=0)
    )
    return ops.square(temperature) * (beta * inter + gamma * intra)


def _pearson(x, y, axis):
    """Pearson's correlation along an axis, with epsilon added to the product of norms."""
    x = x - ops.mean(x, axis=axis, keepdims=True)
    y = y - ops.mean(y, axis=axis, keepdims=True)
    norms = _norm(x, axis) * _norm(y, axis)
    return ops.sum(x * y, axis=axis) / (norms + EPSILON)


def _norm(x, axis):
    return _logits.safe_sqrt(ops.sum(ops.square(x), axis=axis))


@keras.saving.register_keras_serializable(package="keras_distill")
class DIST(DistillationLoss):
    """Relations between and within classes (Huang et al. 2022): see `dist`.

    A one-unit head `z` is taken as the sigmoid pair `[0, z]`.

    Args:
        temperature: Positive number T that divides both networks' logits.
        beta: Weight of the relations between classes.
        gamma: Weight of the relations within a class.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    on_logits = True
    shift_invariant = True

    def __init__(
        self, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.temperature = _checks.positive("temperature", temperature)
        self.beta = _checks.non_negative("beta", beta)
        self.gamma = _checks.non_negative("gamma", gamma)

    @property
    def softmax_temperature(self) -> float | None:
        return self.temperature

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        y_true, y_pred = _logits.paired_class_scores(y_true, y_pred)
        return dist(y_true, y_pred, self.temperature, self.beta, self.gamma)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "beta": self.beta,
            "gamma": self.gamma,
        }
