"""Hard-label distillation: the class that the teacher would choose is the label."""

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._types import Config
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _logits
from keras_distill.losses.base import DistillationLoss


def hard_targets(teacher_logits: Tensor, student_logits: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the student with the class that the teacher finds likeliest.

    With `t = argmax teacher_logits` and `q = softmax(student_logits)`:
    `(1 - eps) * -log q_t + eps / C * sum_c -log q_c`. There is no temperature: the order of
    the teacher's logits is all that is read. Of classes that tie the first counts.

    Weight in use: 0.5 with 0.5 on the label loss (ImageNet).

    Args:
        teacher_logits: Tensor `(batch, ..., classes)`, a constant to the gradient.
        student_logits: Tensor of the same shape.
        smoothing: eps, at least 0 and below 1: the mass that all classes share.

    Returns:
        Tensor of shape `logits.shape[:-1]`.

    Raises:
        ValueError: If the shapes differ, there is one unit only, or `smoothing` is out of
            range.

    Example:
    ```python
    teacher_logits = np.array([[4.0, 1.0, -2.0]])
    student_logits = np.array([[1.0, 2.0, 0.0]])
    hard_targets(teacher_logits, student_logits)  # -log softmax(student_logits)[:, 0]
    ```

    References:
        Touvron et al. 2021, https://arxiv.org/abs/2012.12877. Convention of
        facebookresearch/deit: mean over the batch, the teacher's labels not smoothed.
        Deviation: `smoothing` is ours, by Keras's `eps / C`.
    """
    _check_smoothing(smoothing)
    teacher_logits, student_logits = _logits.matched_logits(teacher_logits, student_logits)
    losses = -ops.log_softmax(student_logits, axis=-1)
    chosen = _logits.target_mask(ops.argmax(teacher_logits, axis=-1), student_logits)
    label_loss = ops.sum(ops.where(chosen, losses, 0.0), axis=-1)
    return (1.0 - smoothing) * label_loss + smoothing * ops.mean(losses, axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class HardTargets(DistillationLoss):
    """Hard-label distillation (Touvron et al. 2021): see `hard_targets`.

    A one-unit head `z` is taken as the sigmoid pair `[0, z]`. A cache of the teacher's
    likeliest classes serves, at temperature 1.

    Args:
        smoothing: eps, at least 0 and below 1: the mass that all classes share.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    on_logits = True
    shift_invariant = True
    softmax_temperature = 1.0

    def __init__(self, smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.smoothing = _check_smoothing(smoothing)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        y_true, y_pred = _logits.paired_class_scores(y_true, y_pred)
        return hard_targets(y_true, y_pred, self.smoothing)

    def get_config(self) -> Config:
        return {**super().get_config(), "smoothing": self.smoothing}


def _check_smoothing(smoothing):
    if not _checks.is_number(smoothing) or not 0 <= smoothing < 1:
        raise ValueError(_checks.message("`smoothing` to be in [0, 1)", "smoothing", smoothing))
    return float(smoothing)
