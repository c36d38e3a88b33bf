"""Agreement with the teacher and calibration: functions on arrays, and Keras metrics.

Outputs are logits unless `from_logits=False` says that they are probabilities. Where the
values contradict that, it is an error: the softmax of a softmax is the commonest bug here.
"""

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_distill._checks import instance
from keras_distill._checks import message
from keras_distill._checks import positive_integer
from keras_distill._types import Config
from keras_distill._types import Structure
from keras_distill._types import Tensor


def teacher_agreement(
    teacher_outputs: ArrayLike, student_outputs: ArrayLike, from_logits: bool = True
) -> float:
    """The share of samples for which student and teacher name the same class.

    "Fidelity" in Stanton et al., "Does Knowledge Distillation Really Work?" (2021),
    equation 3 (average top-1 agreement).

    Args:
        teacher_outputs: Array of shape (..., classes); with one unit, a sigmoid's.
        student_outputs: Array of the same shape.
        from_logits: Whether these are logits rather than probabilities.

    Returns:
        A float from 0 to 1.

    Raises:
        ValueError: If the shapes differ, there is no sample, or the values contradict
            `from_logits`.
    """
    teacher = _log_probabilities("teacher_outputs", teacher_outputs, from_logits)
    student = _log_probabilities("student_outputs", student_outputs, from_logits)
    _check_same_shape(teacher, student)
    return float(np.mean(teacher.argmax(-1) == student.argmax(-1)))


def predictive_kl(
    teacher_outputs: ArrayLike, student_outputs: ArrayLike, from_logits: bool = True
) -> float:
    """The mean over samples of KL(teacher || student), in nats.

    Stanton et al. (2021), equation 4, at temperature 1. Probabilities of 0 are read as
    1e-12.

    Args:
        teacher_outputs: Array of shape (..., classes); with one unit, a sigmoid's.
        student_outputs: Array of the same shape.
        from_logits: Whether these are logits rather than probabilities.

    Returns:
        A float, 0 or more.

    Raises:
        ValueError: As `teacher_agreement`.
    """
    teacher = _log_probabilities("teacher_outputs", teacher_outputs, from_logits)
    student = _log_probabilities("student_outputs", student_outputs, from_logits)
    _check_same_shape(teacher, student)
    divergence = np.sum(np.exp(teacher) * (teacher - student), axis=-1)
    return float(max(np.mean(divergence), 0.0))


def expected_calibration_error(
    labels: ArrayLike, outputs: ArrayLike, bins: int = 15, from_logits: bool = True
) -> float:
    """How far confidence is from accuracy, averaged over bins of confidence.

    Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 3: bins of
    equal width over (0, 1], the upper edge inside; each weighs as its share of samples.
    Samples whose label is negative (unknown) are left out.

    Args:
        labels: int array of shape (...,), or one-hot of the shape of `outputs`.
        outputs: Array of shape (..., classes); with one unit, a sigmoid's.
        bins: Number of bins.
        from_logits: Whether `outputs` are logits rather than probabilities.

    Returns:
        A float from 0 to 1.

    Raises:
        ValueError: If the shapes do not fit, no sample has a label, or the values
            contradict `from_logits`.
    """
    counts, confidences, accuracies = calibration_bins(labels, outputs, bins, from_logits)
    return float(np.sum(counts * np.abs(accuracies - confidences)) / counts.sum())


def calibration_bins(
    labels: ArrayLike, outputs: ArrayLike, bins: int = 15, from_logits: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a reliability diagram shows: samples, confidence and accuracy by bin.

    Args:
        labels: As `expected_calibration_error`.
        outputs: As `expected_calibration_error`.
        bins: Number of bins.
        from_logits: Whether `outputs` are logits rather than probabilities.

    Returns:
        Three arrays of shape (bins,): the number of samples, their mean confidence and
        the share that is right; both are 0 in a bin without samples.

    Raises:
        ValueError: As `expected_calibration_error`.
    """
    positive_integer("bins", bins)
    log_probabilities = _log_probabilities("outputs", outputs, from_logits)
    labels = np.asarray(labels)
    one_hot = labels.ndim == np.ndim(outputs) and labels.ndim > 1
    if one_hot and labels.shape[-1] > 1:
        labels = labels.argmax(-1)
    elif one_hot:
        labels = labels[..., 0]
    if labels.shape != log_probabilities.shape[:-1]:
        raise ValueError(
            message(
                f"`labels` of shape {log_probabilities.shape[:-1]}", "labels.shape", labels.shape
            )
        )
    known = labels >= 0
    if not known.any():
        raise ValueError(message("one label or more that is known", "labels", "none, or all < 0"))
    confidence = np.exp(log_probabilities.max(-1))[known]
    right = (log_probabilities.argmax(-1) == labels)[known]
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    some = np.maximum(counts, 1)
    return (
        counts,
        np.bincount(index, weights=confidence, minlength=bins) / some,
        np.bincount(index, weights=right, minlength=bins) / some,
    )


def _log_probabilities(name, outputs, from_logits):
    """float64 log probabilities of shape (..., classes); one unit becomes two classes."""
    outputs = np.asarray(outputs, "float64")
    if outputs.ndim < 2 or outputs.size == 0:
        raise ValueError(
            message(f"`{name}` of shape (samples, classes)", f"{name}.shape", outputs.shape)
        )
    if not np.isfinite(outputs).all():
        raise ValueError(message(f"`{name}` to be finite", name, "values that are not"))
    one_unit = outputs.shape[-1] == 1
    in_range = outputs.min() >= 0 and outputs.max() <= 1 + 1e-3
    normalised = in_range and (one_unit or np.allclose(outputs.sum(-1), 1, atol=1e-2))
    if from_logits:
        if normalised and not one_unit:
            raise ValueError(
                message(f"`{name}` to be logits", "from_logits", True)
                + " These are probabilities: pass `from_logits=False`."
            )
        logits = np.concatenate([np.zeros_like(outputs), outputs], -1) if one_unit else outputs
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    if not normalised:
        raise ValueError(
            message(f"`{name}` to be probabilities that sum to 1", "from_logits", False)
            + " These are not: pass `from_logits=True` for logits."
        )
    both = np.concatenate([1 - outputs, outputs], -1) if one_unit else outputs
    return np.log(np.clip(both, 1e-12, 1.0))


def _check_same_shape(teacher, student):
    if teacher.shape != student.shape:
        raise ValueError(
            message(
                f"`student_outputs` of the teacher's shape {teacher.shape}",
                "student_outputs.shape",
                student.shape,
            )
        )


@keras.saving.register_keras_serializable(package="keras_distill")
class TeacherAgreement(keras.metrics.MeanMetricWrapper):
    """`teacher_agreement` as a running Keras metric.

    Call `update_state(teacher_outputs, student_outputs, sample_weight=None)`. It compares
    the largest units, so probabilities do as well as logits; a single unit cannot tell
    which it is and is an error.

    Args:
        name: Name of the metric.
        dtype: Its dtype.

    Example:
        >>> metric = TeacherAgreement()
        >>> metric.update_state([[2.0, 1.0], [0.0, 1.0]], [[5.0, 0.0], [1.0, 0.0]])
        >>> float(metric.result())
        0.5
    """

    def __init__(self, name: str = "teacher_agreement", dtype: Any = None) -> None:
        super().__init__(fn=_same_class, name=name, dtype=dtype)
        self._direction = "up"

    def get_config(self) -> Config:
        return {"name": self.name, "dtype": self.dtype}


def _same_class(teacher_outputs, student_outputs):
    teacher_outputs = ops.convert_to_tensor(teacher_outputs)
    student_outputs = ops.convert_to_tensor(student_outputs)
    if teacher_outputs.shape[-1] == 1:
        raise ValueError(
            message("outputs of two classes or more", "shape", tuple(teacher_outputs.shape))
            + " For a sigmoid's unit use `kd.metrics.teacher_agreement`."
        )
    same = ops.equal(ops.argmax(teacher_outputs, -1), ops.argmax(student_outputs, -1))
    return ops.cast(same, "float32")


@keras.saving.register_keras_serializable(package="keras_distill")
class ExpectedCalibrationError(keras.metrics.Metric):
    """`expected_calibration_error` as a running Keras metric, for `compile(metrics=...)`.

    Args:
        bins: Number of bins of confidence.
        from_logits: Whether `y_pred` holds logits rather than probabilities (Keras's
            default for metrics and losses: probabilities).
        name: Name of the metric.
        dtype: Its dtype.
    """

    def __init__(
        self,
        bins: int = 15,
        from_logits: bool = False,
        name: str = "expected_calibration_error",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.bins = positive_integer("bins", bins)
        self.from_logits = instance("from_logits", from_logits, bool, "True or False")
        self._direction = "down"
        self.counts = self._add_sums("counts")
        self.confidences = self._add_sums("confidences")
        self.hits = self._add_sums("hits")

    def _add_sums(self, name):
        return self.add_variable(shape=(self.bins,), initializer="zeros", name=name)

    def update_state(
        self, y_true: Structure, y_pred: Structure, sample_weight: Structure | None = None
    ) -> None:
        """Adds labels, shape (...,) or (..., 1) or one-hot, and outputs (..., classes)."""
        y_pred = ops.cast(y_pred, "float32")
        classes = y_pred.shape[-1]
        y_true = ops.convert_to_tensor(y_true)
        if len(y_true.shape) == len(y_pred.shape):
            one_hot = y_true.shape[-1] == classes and classes > 1
            y_true = ops.argmax(y_true, -1) if one_hot else ops.squeeze(y_true, -1)
        if classes == 1:
            positive = ops.sigmoid(y_pred) if self.from_logits else y_pred
            probabilities = ops.concatenate([1 - positive, positive], -1)
        else:
            probabilities = ops.softmax(y_pred) if self.from_logits else y_pred
        labels = ops.reshape(ops.cast(y_true, "int32"), (-1,))
        probabilities = ops.reshape(probabilities, (-1, max(classes, 2)))
        confidence = ops.max(probabilities, -1)
        right = ops.cast(
            ops.equal(ops.cast(ops.argmax(probabilities, -1), "int32"), labels), "float32"
        )
        weight = ops.cast(labels >= 0, "float32")
        if sample_weight is not None:
            sample_weight = ops.cast(sample_weight, "float32")
            weight = weight * ops.reshape(ops.broadcast_to(sample_weight, ops.shape(y_true)), (-1,))
        index = ops.cast(ops.ceil(confidence * self.bins), "int32") - 1
        member = ops.one_hot(ops.clip(index, 0, self.bins - 1), self.bins, dtype="float32")
        member = member * weight[:, None]
        for sums, values in (
            (self.counts, member),
            (self.confidences, member * confidence[:, None]),
            (self.hits, member * right[:, None]),
        ):
            sums.assign_add(ops.cast(ops.sum(values, axis=0), sums.dtype))

    def result(self) -> Tensor:
        gaps = ops.sum(ops.abs(self.hits - self.confidences))
        return ops.divide_no_nan(gaps, ops.sum(self.counts))

    def get_config(self) -> Config:
        return {**super().get_config(), "bins": self.bins, "from_logits": self.from_logits}
