"""Alpha-divergences, fixed and adaptive (AlphaNet)."""

import math
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._types import Config
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _logits
from keras_distill.losses.base import DistillationLoss

# Within this distance of 0 and of 1 the divergence is taken as its limit, a KL.
LIMIT = 1e-3
# The exponential of a larger number may overflow float32 once summed over classes.
LARGEST_EXPONENT = 64.0


def alpha_divergence(teacher_logits: Tensor, student_logits: Tensor, alpha: float) -> Tensor:
    """Alpha-divergence of the predictions, `D_a(teacher || student)`.

    `sum_k q_k ((p_k / q_k)^a - 1) / (a (a - 1))` with the teacher's `p` and the student's
    `q`, both at temperature 1. For a -> 1 it is KL(p || q), for a -> 0 KL(q || p): within
    1e-3 these limits are taken. A large a makes it costly to underrate a class that the
    teacher holds likely; a negative a, to overrate one that it holds unlikely.

    Outside [0, 1] it is unbounded, and grows like a power of `p / q`: for training take
    `adaptive_alpha_divergence`, which clips it. A class whose term exceeds e^64 counts
    e^64, and gives no gradient.

    Args:
        teacher_logits: Tensor `(batch, ..., classes)`, a constant to the gradient.
        student_logits: Tensor of the same shape.
        alpha: Finite number a.

    Returns:
        Tensor of shape `logits.shape[:-1]`, 0 where teacher and student agree.

    Raises:
        ValueError: If the shapes differ, there is one unit only, or `alpha` is not finite.

    References:
        Wang et al. ICML 2021, https://arxiv.org/abs/2102.07954. Convention of the official
        code (AlphaNet), less its clipping.
    """
    alpha = _checks.finite("alpha", alpha)
    teacher_logits, student_logits = _logits.matched_logits(teacher_logits, student_logits)
    teacher_log_probs = ops.log_softmax(teacher_logits)
    student_log_probs = ops.log_softmax(student_logits)
    if abs(alpha) < LIMIT:
        return _logits.kl_divergence(student_log_probs, teacher_log_probs)
    if abs(alpha - 1.0) < LIMIT:
        return _logits.kl_divergence(teacher_log_probs, student_log_probs)
    exponent = student_log_probs + alpha * (teacher_log_probs - student_log_probs)
    powered = ops.exp(ops.minimum(exponent, LARGEST_EXPONENT))
    return ops.sum(powered - ops.exp(student_log_probs), axis=-1) / (alpha * (alpha - 1.0))


@keras.saving.register_keras_serializable(package="keras_distill")
class AlphaDivergence(DistillationLoss):
    """Alpha-divergence of the predictions: see `alpha_divergence`.

    A one-unit head `z` is taken as the sigmoid pair `[0, z]`.

    Args:
        alpha: Finite number a; 1 is KL(teacher || student), 0 KL(student || teacher).
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    on_logits = True
    shift_invariant = True
    softmax_temperature = 1.0

    def __init__(self, alpha: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha = _checks.finite("alpha", alpha)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        y_true, y_pred = _logits.paired_class_scores(y_true, y_pred)
        return alpha_divergence(y_true, y_pred, self.alpha)

    def get_config(self) -> Config:
        return {**super().get_config(), "alpha": self.alpha}


def adaptive_alpha_divergence(
    teacher_logits: Tensor,
    student_logits: Tensor,
    alpha_min: float = -1.0,
    alpha_max: float = 1.0,
    clip: float = 5.0,
) -> Tensor:
    """Adaptive alpha-divergence: of two alpha-divergences, each prediction's larger one.

    The value is `max(D_a-, D_a+)` with `(p_k / q_k)^a` clipped at `clip`: near a = 0 (within
    1e-3) the ratio itself is clipped, and near a = 1 nothing.

    The gradient is not that of the value. It is the gradient of
    `S = -sum_k constant(q_k rho_k) log q_k` of the chosen a, with

    - `rho = w / a + 1 / (a (a - 1))` where w is the clipped power,
    - `rho = p / q` for a = 1,
    - `rho = log w - 1` for a = 0, where w is the clipped ratio,

    so that a clipped class keeps a bounded pull instead of none. Where nothing is clipped
    the two gradients are the same.

    Weight in use: alone, without a label loss, with gradients clipped by value at 1.

    Args:
        teacher_logits: Tensor `(batch, ..., classes)`, a constant to the gradient.
        student_logits: Tensor of the same shape.
        alpha_min: The lower a.
        alpha_max: The upper a, above `alpha_min`. A tie goes to it.
        clip: Largest power (or ratio) counted, at least 1.

    Returns:
        Tensor of shape `logits.shape[:-1]`, 0 where teacher and student agree.

    Raises:
        ValueError: If the shapes differ, there is one unit only, or an argument is out of
            range.

    References:
        Wang et al. ICML 2021, https://arxiv.org/abs/2102.07954. Convention of the official
        code (AlphaNet): temperature 1, mean over the batch.
        Deviation: the value is the divergence, where the code returns S, which may be
        negative; the gradient is the same.
        Deviation: an alpha of 0 is 0, where the code takes its default instead.
    """
    alpha_min, alpha_max, clip = _check_adaptive(alpha_min, alpha_max, clip)
    teacher_logits, student_logits = _logits.matched_logits(teacher_logits, student_logits)
    teacher_log_probs = ops.log_softmax(teacher_logits)
    student_log_probs = ops.log_softmax(student_logits)
    constants = teacher_log_probs, ops.stop_gradient(student_log_probs)
    lower_value, lower_pull = _clipped_divergence(*constants, alpha_min, math.log(clip))
    upper_value, upper_pull = _clipped_divergence(*constants, alpha_max, math.log(clip))
    lower_wins = lower_value > upper_value
    value = ops.where(lower_wins, lower_value, upper_value)
    pull = ops.where(ops.expand_dims(lower_wins, axis=-1), lower_pull, upper_pull)
    surrogate = -ops.sum(pull * student_log_probs, axis=-1)
    return value + (surrogate - ops.stop_gradient(surrogate))


def _clipped_divergence(teacher_log_probs, student_log_probs, alpha, log_clip):
    """The clipped divergence and, of each class, `q_k rho_k` (its pull on `log q_k`)."""
    student_probs = ops.exp(student_log_probs)
    log_ratio = teacher_log_probs - student_log_probs
    if abs(alpha - 1.0) < LIMIT:
        teacher_probs = ops.exp(teacher_log_probs)
        return ops.sum(teacher_probs * log_ratio, axis=-1), teacher_probs
    if abs(alpha) < LIMIT:
        clipped = ops.minimum(log_ratio, log_clip)
        return -ops.sum(student_probs * clipped, axis=-1), student_probs * (clipped - 1.0)
    scale = alpha * (alpha - 1.0)
    powered = ops.exp(ops.minimum(alpha * log_ratio, log_clip))
    value = ops.sum(student_probs * (powered - 1.0), axis=-1) / scale
    return value, student_probs * (powered / alpha + 1.0 / scale)


@keras.saving.register_keras_serializable(package="keras_distill")
class AdaptiveAlphaDivergence(DistillationLoss):
    """Adaptive alpha-divergence (Wang et al. 2021): see `adaptive_alpha_divergence`.

    A one-unit head `z` is taken as the sigmoid pair `[0, z]`.

    Args:
        alpha_min: The lower a.
        alpha_max: The upper a.
        clip: Largest power (or ratio) counted, at least 1.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    on_logits = True
    shift_invariant = True
    softmax_temperature = 1.0

    def __init__(
        self, alpha_min: float = -1.0, alpha_max: float = 1.0, clip: float = 5.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.alpha_min, self.alpha_max, self.clip = _check_adaptive(alpha_min, alpha_max, clip)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        y_true, y_pred = _logits.paired_class_scores(y_true, y_pred)
        return adaptive_alpha_divergence(y_true, y_pred, self.alpha_min, self.alpha_max, self.clip)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "alpha_min": self.alpha_min,
            "alpha_max": self.alpha_max,
            "clip": self.clip,
        }


def _check_adaptive(alpha_min, alpha_max, clip):
    alpha_min = _checks.finite("alpha_min", alpha_min)
    alpha_max = _checks.finite("alpha_max", alpha_max)
    if alpha_min >= alpha_max:
        raise ValueError(
            _checks.message(
                f"`alpha_min` to be below `alpha_max` ({alpha_max})", "alpha_min", alpha_min
            )
        )
    clip = _checks.finite("clip", clip)
    if clip < 1.0:
        raise ValueError(
            _checks.message("`clip` to be at least 1, the ratio of equal predictions", "clip", clip)
        )
    return alpha_min, alpha_max, clip
