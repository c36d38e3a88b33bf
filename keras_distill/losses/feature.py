"""Losses between feature maps or vectors of a teacher and a student."""

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._ops import per_sample_mean
from keras_distill._types import Config
from keras_distill._types import Shapes
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _logits
from keras_distill.losses import misfit
from keras_distill.losses.base import DistillationLoss

HINT_MODES = ("mean", "paper")


def hint(teacher_features: Structure, student_features: Structure, mode: str = "mean") -> Tensor:
    """FitNet's hint: squared difference of features.

    `mode="mean"`: the mean of `(s - t)^2` over all elements of a sample. `mode="paper"`:
    half their sum, so that the mean over the batch is the paper's `1/2 ||s - t||^2`.

    The features must have one shape: a regressor on the student's side, which is no part of
    the loss, sees to it (`connector="auto"` of a `Term`).

    Weight in use: 100 with `mode="mean"`, beside the label loss.

    Args:
        teacher_features: Tensor `(batch, ...)`, a constant to the gradient.
        student_features: Tensor of the same shape.
        mode: `"mean"` or `"paper"`.

    Returns:
        Tensor `(batch,)`, 0 where the features agree.

    Raises:
        ValueError: If the shapes differ or `mode` is unknown.

    References:
        Romero et al. ICLR 2015, https://arxiv.org/abs/1412.6550. Convention of RepDistiller
        and mdistiller (`"mean"`, in one stage with the label loss); the paper trains the
        student up to the guided layer on the hint alone first.
    """
    _checks.one_of("mode", mode, HINT_MODES)
    teacher_features, student_features = _logits.matched_pair(teacher_features, student_features)
    _logits.check_same_shape(
        teacher_features,
        student_features,
        "features",
        'Give the Term `connector="auto"`, which fits them.',
    )
    squares = ops.square(student_features - teacher_features)
    if mode == "mean":
        return per_sample_mean(squares)
    return 0.5 * ops.sum(squares, axis=tuple(range(1, len(squares.shape))))


@keras.saving.register_keras_serializable(package="keras_distill")
class Hint(DistillationLoss):
    """FitNet's hint (Romero et al. 2015): see `hint`.

    Args:
        mode: `"mean"` over the elements of a sample, or `"paper"`, half their sum.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(self, mode: str = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mode = _checks.one_of("mode", mode, HINT_MODES)

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        expected = misfit.of_one_feature(teacher_shapes, student_shapes)
        return expected or misfit.of_one_shape(teacher_shapes, student_shapes)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        return hint(y_true, y_pred, self.mode)

    def get_config(self) -> Config:
        return {**super().get_config(), "mode": self.mode}
