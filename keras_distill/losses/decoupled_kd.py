"""Losses that split the labelled class from the rest: decoupled and normalized KD."""

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


def decoupled_kd(
    teacher_logits: Tensor,
    student_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: Scalar = 4.0,
) -> Tensor:
    """Decoupled knowledge distillation: `T^2 (alpha TCKD + beta NCKD)`.

    With predictions at temperature T and y the label, TCKD is the KL(teacher || student) of
    the pair `[p(y), 1 - p(y)]`, and NCKD that of the predictions restricted to the other
    classes. Plain distillation is `T^2 (TCKD + (1 - p_teacher(y)) NCKD)`: the factor hides
    what a confident teacher knows, and beta replaces it. Of two classes NCKD is 0.

    Weights in use: alpha 1 and beta 8, 2 or 6 at T = 4 (CIFAR-100), beta 0.5 at T = 1
    (ImageNet), with 1 on the label loss; the whole term warms up linearly, over 20 epochs
    (ImageNet: 1).

    Args:
        teacher_logits: Tensor `(batch, ..., classes)`, a constant to the gradient.
        student_logits: Tensor of the same shape.
        labels: Class ids of shape `logits.shape[:-1]` (a last axis of 1 may follow), as
            integers or floats; or one-hot labels of the shape of the logits (of soft labels
            the argmax is taken).
        alpha: Weight of the target class's part.
        beta: Weight of the other classes' part.
        temperature: Positive number, scalar tensor or `keras.Variable`.

    Returns:
        Tensor of shape `logits.shape[:-1]`, 0 where teacher and student agree, and 0 where
        the label is no class (the -1 of an unlabelled sample).

    Raises:
        ValueError: If the shapes do not fit, there is one unit only, or the temperature is
            not a positive number.

    Example:
    ```python
    teacher_logits = np.array([[4.0, 1.0, -2.0]])
    student_logits = np.array([[1.0, 2.0, 0.0]])
    decoupled_kd(teacher_logits, student_logits, np.array([0]))  # shape (1,)
    ```

    References:
        Zhao et al. CVPR 2022, https://arxiv.org/abs/2203.08679. Convention of mdistiller:
        weights, T^2, mean over the batch.
        Deviation: the other classes' log probability is a log-sum-exp over their logits,
        where the code takes the logarithm of a sum that may be 0.
        Deviation: the target is left out exactly, where the code lowers its logit by 1000.
    """
    teacher_logits, student_logits = _logits.matched_logits(teacher_logits, student_logits)
    is_target = _logits.target_mask(labels, student_logits)
    temperature = _logits.temperature_like(temperature, student_logits)
    teacher_logits, student_logits = teacher_logits / temperature, student_logits / temperature
    target_part = _logits.bernoulli_kl(
        _target_margin(teacher_logits, is_target), _target_margin(student_logits, is_target)
    )
    teacher_log_probs = _log_probs_of_rest(teacher_logits, is_target)
    student_log_probs = _log_probs_of_rest(student_logits, is_target)
    rest_part = _sum_over_rest(
        ops.exp(teacher_log_probs) * (teacher_log_probs - student_log_probs), is_target
    )
    value = ops.square(temperature) * (alpha * target_part + beta * rest_part)
    return _where_labelled(value, is_target)


@keras.saving.register_keras_serializable(package="keras_distill")
class DecoupledKD(DistillationLoss):
    """Decoupled knowledge distillation (Zhao et al. 2022): see `decoupled_kd`.

    Called with `y_true=(teacher_logits, labels)`. A one-unit head `z` is taken as the
    sigmoid pair `[0, z]` with labels 0 and 1.

    Args:
        alpha: Weight of the target class's part.
        beta: Weight of the other classes' part.
        temperature: Positive number T that divides both networks' logits.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    needs_labels = True
    on_logits = True
    shift_invariant = True

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.alpha = _checks.non_negative("alpha", alpha)
        self.beta = _checks.non_negative("beta", beta)
        self.temperature = _checks.positive("temperature", temperature)

    @property
    def softmax_temperature(self) -> float | None:
        return self.temperature

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        teacher_logits, labels = y_true
        teacher_logits, y_pred = _logits.paired_class_scores(teacher_logits, y_pred)
        return decoupled_kd(teacher_logits, y_pred, labels, self.alpha, self.beta, self.temperature)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "beta": self.beta,
            "temperature": self.temperature,
        }


def normalized_kd(
    teacher_logits: Tensor,
    student_logits: Tensor,
    labels: Tensor,
    gamma: float = 1.5,
    temperature: Scalar = 1.0,
) -> Tensor:
    """Normalized knowledge distillation: soft cross-entropies of the target and of the rest.

    `-p(y) log q(y) - gamma T^2 sum_{i != y} p'_i log q'_i`, where p and q are the teacher's
    and student's predictions at temperature 1, and p' and q' those at temperature T among
    the classes other than the label y. The teacher's p(y) is a constant.

    Weight in use: 1, added to a label loss of weight 1, with gamma 1.5 and T = 1 (ImageNet).

    Args:
        teacher_logits: Tensor `(batch, ..., classes)`, a constant to the gradient.
        student_logits: Tensor of the same shape.
        labels: As in `decoupled_kd`.
        gamma: Weight of the other classes' part.
        temperature: Positive number, scalar tensor or `keras.Variable`; of the second part
            alone.

    Returns:
        Tensor of shape `logits.shape[:-1]`: cross-entropies, so not 0 where teacher and
        student agree; 0 where the label is no class (the -1 of an unlabelled sample).

    Raises:
        ValueError: If the shapes do not fit, there is one unit only, or the temperature is
            not a positive number.

    References:
        Yang et al. ICCV 2023, https://arxiv.org/abs/2303.13005. Convention of the official
        code (cls_KD), without the label loss that it adds.
    """
    teacher_logits, student_logits = _logits.matched_logits(teacher_logits, student_logits)
    is_target = _logits.target_mask(labels, student_logits)
    temperature = _logits.temperature_like(temperature, student_logits)
    target_part = -ops.sigmoid(_target_margin(teacher_logits, is_target)) * ops.log_sigmoid(
        _target_margin(student_logits, is_target)
    )
    teacher_log_probs = _log_probs_of_rest(teacher_logits / temperature, is_target)
    student_log_probs = _log_probs_of_rest(student_logits / temperature, is_target)
    rest_part = _sum_over_rest(-ops.exp(teacher_log_probs) * student_log_probs, is_target)
    return _where_labelled(target_part + gamma * ops.square(temperature) * rest_part, is_target)


@keras.saving.register_keras_serializable(package="keras_distill")
class NormalizedKD(DistillationLoss):
    """Normalized knowledge distillation (Yang et al. 2023): see `normalized_kd`.

    Called with `y_true=(teacher_logits, labels)`. A one-unit head `z` is taken as the
    sigmoid pair `[0, z]` with labels 0 and 1.

    Args:
        gamma: Weight of the other classes' part.
        temperature: Positive number T of that part.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    needs_labels = True
    on_logits = True
    shift_invariant = True

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gamma = _checks.non_negative("gamma", gamma)
        self.temperature = _checks.positive("temperature", temperature)

    @property
    def softmax_temperature(self) -> float | None:
        # The target class is compared at 1, the others at the temperature.
        return 1.0 if self.temperature == 1.0 else None

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        teacher_logits, labels = y_true
        teacher_logits, y_pred = _logits.paired_class_scores(teacher_logits, y_pred)
        return normalized_kd(teacher_logits, y_pred, labels, self.gamma, self.temperature)

    def get_config(self) -> Config:
        return {**super().get_config(), "gamma": self.gamma, "temperature": self.temperature}


def _rest(logits, is_target):
    """The logits with the target class left out: a softmax over them gives it 0."""
    return ops.where(is_target, ops.full_like(logits, _logits.EXCLUDED), logits)


def _target_margin(logits, is_target):
    """The logit of the target against all other classes: `sigmoid(margin)` is its p."""
    target = ops.sum(ops.where(is_target, logits, ops.zeros_like(logits)), axis=-1)
    return target - ops.logsumexp(_rest(logits, is_target), axis=-1)


def _log_probs_of_rest(logits, is_target):
    """Log-probabilities among the other classes, very low at the target."""
    return ops.log_softmax(_rest(logits, is_target))


def _sum_over_rest(terms, is_target):
    return ops.sum(ops.where(is_target, ops.zeros_like(terms), terms), axis=-1)


def _where_labelled(values, is_target):
    """Zero for rows whose label is no class."""
    return ops.where(ops.any(is_target, axis=-1), values, ops.zeros_like(values))
