"""Losses between a teacher's and a student's logits: soft targets and their kin.

`decoupled_kd.py`, `dist.py`, `multi_level_kd.py` and `alpha_divergence.py` hold the rest of
the family.
"""

import math
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

STANDARDIZE_EPSILON = 1e-7
ACTIVATIONS = ("softmax", "sigmoid")


def soft_targets(
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Scalar = 4.0,
    standardize: bool = False,
    activation: str = "softmax",
) -> Tensor:
    """Knowledge distillation: KL(teacher || student) of softened predictions, times T^2.

    `T^2 * sum_k p_k (log p_k - log q_k)` with `p = softmax(teacher_logits / T)` and
    `q = softmax(student_logits / T)`. The factor keeps the gradient's size nearly
    independent of the temperature.

    With `standardize=True` each row is first taken to mean 0 and (unbiased) standard
    deviation 1 on both sides, `(z - mean) / (1e-7 + std)`: the student need only have the
    teacher's ranking and relations, not its range. It asks for three classes at least, as
    two standardized classes keep nothing but their order. A row of equal logits has a
    gradient up to 1e7 times the ordinary one.

    With `activation="sigmoid"` the units are independent labels: the Bernoulli
    KL(teacher || student) of each label at `sigmoid(z / T)`, summed over the labels, times
    T^2.

    Weights in use: 0.9 with 0.1 on the label loss at T = 4 (CIFAR-100), 0.5 and 0.5 at T = 1
    (ImageNet); standardized: 9 with 0.1 on the label loss at T = 2.

    Args:
        teacher_logits: Tensor `(batch, ..., classes)`, a constant to the gradient.
        student_logits: Tensor of the same shape.
        temperature: Positive number, scalar tensor or `keras.Variable`.
        standardize: Whether to standardize each row of logits.
        activation: `"softmax"` (exclusive classes) or `"sigmoid"` (multi-label heads).

    Returns:
        Tensor of shape `logits.shape[:-1]`, 0 where teacher and student agree.

    Raises:
        ValueError: If the shapes differ, a softmax is asked over one unit, or an argument is
            out of range.

    Example:
    ```python
    teacher_logits = np.array([[4.0, 1.0, -2.0]])
    student_logits = np.array([[1.0, 2.0, 0.0]])
    soft_targets(teacher_logits, student_logits, temperature=2.0)  # shape (1,)
    ```

    References:
        Hinton et al. 2015, https://arxiv.org/abs/1503.02531; standardization: Sun et al.
        2024, https://arxiv.org/abs/2403.01427. Convention of RepDistiller and of
        logit-standardization-KD: KL with T^2, mean over the batch, unbiased deviation.
    """
    _check_soft_targets(standardize, activation)
    least_classes, advice = _least_classes(standardize, activation)
    teacher_logits, student_logits = _logits.matched_logits(
        teacher_logits, student_logits, least_classes, advice
    )
    if standardize:
        teacher_logits = _standardized(teacher_logits)
        student_logits = _standardized(student_logits)
    temperature = _logits.temperature_like(temperature, student_logits)
    teacher_logits, student_logits = teacher_logits / temperature, student_logits / temperature
    if activation == "sigmoid":
        divergence = ops.sum(_logits.bernoulli_kl(teacher_logits, student_logits), axis=-1)
    else:
        divergence = _logits.kl_divergence(
            ops.log_softmax(teacher_logits), ops.log_softmax(student_logits)
        )
    return ops.square(temperature) * divergence


@keras.saving.register_keras_serializable(package="keras_distill")
class SoftTargets(DistillationLoss):
    """Knowledge distillation (Hinton et al. 2015): see `soft_targets`.

    A one-unit head `z` is taken as the sigmoid pair `[0, z]`, so that the loss is the binary
    KL; `activation="sigmoid"` gives the same for it.

    Args:
        temperature: Positive number T that divides both networks' logits.
        standardize: Whether to standardize each row of logits first.
        activation: `"softmax"`, or `"sigmoid"` for multi-label heads.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    on_logits = True
    shift_invariant = True

    def __init__(
        self,
        temperature: float = 4.0,
        standardize: bool = False,
        activation: str = "softmax",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature = _checks.positive("temperature", temperature)
        _check_soft_targets(standardize, activation)
        self.standardize = standardize
        self.activation = activation
        self.shift_invariant = activation == "softmax"

    @property
    def softmax_temperature(self) -> float | None:
        plain = self.activation == "softmax" and not self.standardize
        return self.temperature if plain else None

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        if self.activation == "softmax" and not self.standardize:
            y_true, y_pred = _logits.paired_class_scores(y_true, y_pred)
        return soft_targets(y_true, y_pred, self.temperature, self.standardize, self.activation)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "standardize": self.standardize,
            "activation": self.activation,
        }


def logit_mse(teacher_logits: Tensor, student_logits: Tensor, center: bool = False) -> Tensor:
    """Mean over the classes of the squared difference of the logits.

    `mean_k (z_k - t_k)^2`. It matches the logits themselves, their common offset included;
    `center=True` takes each row's mean away on both sides first.

    Weight in use: 0.1 beside the label loss.

    Args:
        teacher_logits: Tensor `(batch, ..., classes)`, a constant to the gradient.
        student_logits: Tensor of the same shape.
        center: Whether to remove each row's mean (two classes at least).

    Returns:
        Tensor of shape `logits.shape[:-1]`, 0 where teacher and student agree.

    Raises:
        ValueError: If the shapes differ, or one unit is to be centered.

    References:
        Ba and Caruana 2014, https://arxiv.org/abs/1312.6184. Convention of
        AberHu/Knowledge-Distillation-Zoo: mean over batch and classes.
        Deviation: `center` is ours.
    """
    teacher_logits, student_logits = _logits.matched_logits(
        teacher_logits,
        student_logits,
        least_classes=2 if center else 1,
        hint="A centered unit is 0: use `center=False`.",
    )
    difference = student_logits - teacher_logits
    if center:
        difference = difference - ops.mean(difference, axis=-1, keepdims=True)
    return ops.mean(ops.square(difference), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class LogitMSE(DistillationLoss):
    """Squared difference of logits (Ba and Caruana 2014): see `logit_mse`.

    Args:
        center: Whether to remove each row's mean on both sides.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    on_logits = True

    def __init__(self, center: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.center = _checks.instance("center", center, bool, "True or False")
        self.shift_invariant = center

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        return logit_mse(y_true, y_pred, self.center)

    def get_config(self) -> Config:
        return {**super().get_config(), "center": self.center}


def jensen_shannon(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Scalar = 1.0
) -> Tensor:
    """Jensen-Shannon divergence of softened predictions, times T^2.

    `T^2 * (KL(p || m) + KL(q || m)) / 2` with `p = softmax(teacher_logits / T)`,
    `q = softmax(student_logits / T)` and `m = (p + q) / 2`. Symmetric, and at most
    `T^2 log 2`.

    Args:
        teacher_logits: Tensor `(batch, ..., classes)`, a constant to the gradient.
        student_logits: Tensor of the same shape.
        temperature: Positive number, scalar tensor or `keras.Variable`.

    Returns:
        Tensor of shape `logits.shape[:-1]`, 0 where teacher and student agree.

    Raises:
        ValueError: If the shapes differ, there is one unit only, or the temperature is not
            a positive number.

    References:
        Lin 1991, https://doi.org/10.1109/18.61115.
        Deviation: T^2, by which it weighs like `soft_targets` at any temperature, is ours.
    """
    teacher_logits, student_logits = _logits.matched_logits(teacher_logits, student_logits)
    temperature = _logits.temperature_like(temperature, student_logits)
    teacher_log_probs = ops.log_softmax(teacher_logits / temperature)
    student_log_probs = ops.log_softmax(student_logits / temperature)
    # Not `ops.logaddexp`: on TensorFlow its gradient is wrong where both are equal.
    both = ops.stack([teacher_log_probs, student_log_probs])
    mean_log_probs = ops.logsumexp(both, axis=0) - math.log(2.0)
    divergence = _logits.kl_divergence(teacher_log_probs, mean_log_probs) + _logits.kl_divergence(
        student_log_probs, mean_log_probs
    )
    return 0.5 * ops.square(temperature) * divergence


@keras.saving.register_keras_serializable(package="keras_distill")
class JensenShannon(DistillationLoss):
    """Jensen-Shannon divergence: see `jensen_shannon`.

    A one-unit head `z` is taken as the sigmoid pair `[0, z]`.

    Args:
        temperature: Positive number T that divides both networks' logits.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    on_logits = True
    shift_invariant = True

    def __init__(self, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = _checks.positive("temperature", temperature)

    @property
    def softmax_temperature(self) -> float | None:
        return self.temperature

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        y_true, y_pred = _logits.paired_class_scores(y_true, y_pred)
        return jensen_shannon(y_true, y_pred, self.temperature)

    def get_config(self) -> Config:
        return {**super().get_config(), "temperature": self.temperature}


def _least_classes(standardize, activation):
    """How many classes `soft_targets` asks for, and what to do with fewer."""
    if activation == "sigmoid":
        return 1, ""
    if standardize:
        return 3, "Fewer keep nothing but their order: use `standardize=False`."
    return 2, f'{_logits.ONE_UNIT_HINT} For independent labels: `activation="sigmoid"`.'


def _standardized(logits):
    centered = logits - ops.mean(logits, axis=-1, keepdims=True)
    variance = ops.sum(ops.square(centered), axis=-1, keepdims=True) / (logits.shape[-1] - 1)
    return centered / (STANDARDIZE_EPSILON + _logits.safe_sqrt(variance))


def _check_soft_targets(standardize, activation):
    _checks.instance("standardize", standardize, bool, "True or False")
    _checks.one_of("activation", activation, ACTIVATIONS)
    if standardize and activation == "sigmoid":
        raise ValueError(
            _checks.message(
                '`activation` to be "softmax" where `standardize=True`',
                "activation",
                activation,
                "Standardized logits have lost the zero that a sigmoid decides by.",
            )
        )
