"""What the response losses share: how they read logits, labels and temperatures."""

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._ops import at_least_float32
from keras_distill.losses.base import class_scores

# Stands for minus infinity where a class is left out: its exponential is 0 beside any finite
# logit, and unlike -inf it never makes inf - inf or 0 * inf.
EXCLUDED = -1e30

ONE_UNIT_HINT = (
    "One unit alone has no softmax: call the loss's class, which takes it as the sigmoid "
    "pair [0, z]."
)


def check_same_shape(teacher, student, kind, hint=""):
    """Raises unless `teacher.shape` and `student.shape` agree wherever both are known."""
    if _shapes_agree(teacher.shape, student.shape):
        return
    raise ValueError(
        f"Expected teacher and student {kind} of the same shape. Received: "
        f"teacher_{kind}.shape={tuple(teacher.shape)}, student_{kind}.shape={tuple(student.shape)}."
        + (f" {hint}" if hint else "")
    )


def check_logits(teacher_logits, student_logits, least_classes=1, hint=ONE_UNIT_HINT):
    """Raises unless both are `(batch, ..., classes)` of the same shape.

    Args:
        teacher_logits: Tensor.
        student_logits: Tensor.
        least_classes: How many classes the loss needs to be more than a constant.
        hint: What to do with fewer.
    """
    teacher_shape, student_shape = tuple(teacher_logits.shape), tuple(student_logits.shape)
    received = f"teacher_logits.shape={teacher_shape}, student_logits.shape={student_shape}"
    if len(teacher_shape) < 2 or len(student_shape) < 2:
        raise ValueError(
            f"Expected logits of shape (batch, ..., classes). Received: {received}. "
            "Give a head of one unit the shape (batch, 1)."
        )
    if not _shapes_agree(teacher_shape[-1:], student_shape[-1:]):
        raise ValueError(
            f"Expected teacher and student logits over the same classes. Received: {received}. "
            "Where the label sets differ, give the Distiller a `class_map`."
        )
    check_same_shape(teacher_logits, student_logits, "logits")
    if student_shape[-1] is not None and student_shape[-1] < least_classes:
        raise ValueError(
            f"Expected logits of at least {least_classes} classes. Received: {received}. {hint}"
        )


def matched_pair(teacher, student):
    """Both as tensors of one float dtype (float32 or float64), the teacher as a constant."""
    teacher = at_least_float32(teacher)
    student = at_least_float32(student)
    dtypes = [keras.backend.standardize_dtype(x.dtype) for x in (teacher, student)]
    dtype = "float64" if "float64" in dtypes else "float32"
    return ops.stop_gradient(ops.cast(teacher, dtype)), ops.cast(student, dtype)


def matched_logits(teacher_logits, student_logits, least_classes=2, hint=ONE_UNIT_HINT):
    """`matched_pair` of two sets of logits whose shapes `check_logits` has passed."""
    teacher_logits, student_logits = matched_pair(teacher_logits, student_logits)
    check_logits(teacher_logits, student_logits, least_classes, hint)
    return teacher_logits, student_logits


def paired_class_scores(teacher_logits, student_logits):
    """The logits as a class twin takes them: a one-unit head as the sigmoid pair."""
    check_logits(teacher_logits, student_logits)
    return class_scores(teacher_logits), class_scores(student_logits)


def temperature_like(temperature, logits):
    """A temperature as a scalar of the dtype of `logits`.

    A number must be positive and finite; a `keras.Variable` or scalar tensor, such as a
    schedule's value, is taken as it is.
    """
    if _checks.is_number(temperature) or not hasattr(temperature, "dtype"):
        temperature = _checks.positive("temperature", temperature)
        # A cast would go by way of float32.
        return ops.convert_to_tensor(temperature, dtype=logits.dtype)
    return ops.cast(temperature, logits.dtype)


def target_mask(labels, logits):
    """Where each row's label is: a boolean tensor of the shape of `logits`.

    Args:
        labels: Class ids of shape `logits.shape[:-1]`, also with a last axis of 1, as
            integers or floats; or one-hot (or soft) labels of the shape of `logits`, of
            which the argmax is taken.
        logits: Tensor `(batch, ..., classes)`.

    Returns:
        Boolean tensor `(batch, ..., classes)`. A row whose id is no class, such as the -1
        of an unlabelled sample, has no True entry.

    Raises:
        ValueError: If the shape of `labels` is none of these.
    """
    labels = ops.convert_to_tensor(labels)
    labels_shape, logits_shape = tuple(labels.shape), tuple(logits.shape)
    if len(labels_shape) == len(logits_shape) and labels_shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    elif len(labels_shape) == len(logits_shape) and _shapes_agree(labels_shape, logits_shape):
        labels = ops.argmax(labels, axis=-1)
    if not _shapes_agree(labels.shape, logits_shape[:-1]):
        raise ValueError(
            "Expected `labels` as class ids of shape logits.shape[:-1] or as one-hot labels of "
            f"shape logits.shape. Received: labels.shape={labels_shape}, "
            f"logits.shape={logits_shape}."
        )
    ids = ops.expand_dims(ops.cast(labels, "int32"), axis=-1)
    return ops.equal(ids, ops.arange(logits_shape[-1], dtype="int32"))


def kl_divergence(log_probs, other_log_probs):
    """KL(p || q) = sum over the last axis of p (log p - log q)."""
    return ops.sum(ops.exp(log_probs) * (log_probs - other_log_probs), axis=-1)


def bernoulli_kl(logits, other_logits):
    """KL(p || q) of p = Bernoulli(sigmoid(logits)), elementwise."""
    on = ops.sigmoid(logits) * (ops.log_sigmoid(logits) - ops.log_sigmoid(other_logits))
    off = ops.sigmoid(-logits) * (ops.log_sigmoid(-logits) - ops.log_sigmoid(-other_logits))
    return on + off


def safe_sqrt(x):
    """Square root of `x >= 0` whose gradient at 0 is 0, where the plain one's is infinite."""
    positive = x > 0
    root = ops.sqrt(ops.where(positive, x, ops.ones_like(x)))
    return ops.where(positive, root, ops.zeros_like(x))


def as_rows(logits):
    """`(batch, ..., classes)` -> `(rows, classes)`: each prediction is a row."""
    return ops.reshape(logits, (-1, logits.shape[-1]))


def _shapes_agree(shape, other_shape):
    return len(shape) == len(other_shape) and all(
        size is None or other is None or size == other
        for size, other in zip(shape, other_shape, strict=True)
    )
