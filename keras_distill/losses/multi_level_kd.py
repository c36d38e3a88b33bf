"""Multi-level logit distillation."""

from collections.abc import Sequence
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


def multi_level_kd(
    teacher_logits: Tensor, student_logits: Tensor, temperatures: Sequence[Scalar] = (3.0, 4.0, 5.0)
) -> Tensor:
    """Multi-level logit distillation: instances, classes and batch, at several temperatures.

    For each temperature T, with P and Q the `(rows, classes)` predictions of teacher and
    student at T, `T^2 KL(teacher || student)` of each row, plus for the whole batch
    `||Q'Q - P'P||_F^2 / classes` and `||QQ' - PP'||_F^2 / rows`; the mean over the
    temperatures.

    Leading axes beyond the batch (tokens, pixels) are flattened into rows; the second matrix
    then is rows x rows. Rows that a mask or a weight leaves out still enter both matrices.
    With several replicas each compares the classes and samples of its own batch.

    Args:
        teacher_logits: Tensor `(batch, ..., classes)`, a constant to the gradient.
        student_logits: Tensor of the same shape.
        temperatures: Sequence of positive numbers, scalar tensors or `keras.Variable`s.

    Returns:
        Tensor of shape `logits.shape[:-1]`, 0 where teacher and student agree. The two
        batch parts are the same number in each entry, so that the mean is the loss.

    Raises:
        ValueError: If the shapes differ, there is one unit only, or a temperature is not a
            positive number.

    References:
        Jin et al. CVPR 2023,
        https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html.
        Form of the public code, which is built on mdistiller.
        Deviation: the mean over the temperatures, where the code sums them.
        Deviation: all samples and classes count, where the code masks the half of both in
        which the teacher is most confident.
        Deviation: one view, where the code pairs a weak and a strong one.
    """
    temperatures = _temperatures(temperatures)
    teacher_logits, student_logits = _logits.matched_logits(teacher_logits, student_logits)
    levels = [
        _one_temperature(
            teacher_logits, student_logits, _logits.temperature_like(temperature, student_logits)
        )
        for temperature in temperatures
    ]
    return sum(levels) / len(levels)


def _one_temperature(teacher_logits, student_logits, temperature):
    teacher_log_probs = ops.log_softmax(teacher_logits / temperature)
    student_log_probs = ops.log_softmax(student_logits / temperature)
    instances = _logits.kl_divergence(teacher_log_probs, student_log_probs)
    teacher_rows = _logits.as_rows(ops.exp(teacher_log_probs))
    student_rows = _logits.as_rows(ops.exp(student_log_probs))
    classes = _gram_distance(ops.transpose(teacher_rows), ops.transpose(student_rows))
    batch = _gram_distance(teacher_rows, student_rows)
    return ops.square(temperature) * instances + classes + batch


def _gram_distance(teacher_rows, student_rows):
    """`||S S' - T T'||_F^2 / rows`, with the teacher's T and the student's S."""
    difference = ops.matmul(student_rows, ops.transpose(student_rows)) - ops.matmul(
        teacher_rows, ops.transpose(teacher_rows)
    )
    return ops.sum(ops.mean(ops.square(difference), axis=-1))


@keras.saving.register_keras_serializable(package="keras_distill")
class MultiLevelKD(DistillationLoss):
    """Multi-level logit distillation (Jin et al. 2023): see `multi_level_kd`.

    A one-unit head `z` is taken as the sigmoid pair `[0, z]`.

    Args:
        temperatures: Sequence of positive numbers.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    on_logits = True
    shift_invariant = True

    def __init__(self, temperatures: Sequence[float] = (3.0, 4.0, 5.0), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperatures = tuple(
            _checks.positive("temperatures", temperature)
            for temperature in _temperatures(temperatures)
        )

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        y_true, y_pred = _logits.paired_class_scores(y_true, y_pred)
        return multi_level_kd(y_true, y_pred, self.temperatures)

    def get_config(self) -> Config:
        return {**super().get_config(), "temperatures": list(self.temperatures)}


def _temperatures(temperatures):
    """A non-empty tuple of temperatures."""
    if not isinstance(temperatures, (list, tuple)) or not temperatures:
        raise ValueError(
            _checks.message(
                "`temperatures` to be a non-empty list of positive numbers",
                "temperatures",
                temperatures,
            )
        )
    return tuple(temperatures)
