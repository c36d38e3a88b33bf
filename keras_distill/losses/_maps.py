"""What the losses of feature maps share: maps of one size, pairs of maps, scale."""

from keras import ops

from keras_distill import _checks
from keras_distill.connectors import adaptive_average_matrix
from keras_distill.losses import _logits
from keras_distill.losses._shapes import received

# The magnitude below which a map counts as zeros.
LEAST_SCALE = 1e-12


def matched_maps(teacher_maps, student_maps):
    """Two maps in one float dtype, the teacher's constant, each averaged down to the smaller.

    Height and width are brought to the smaller of the two on their own, on either side.

    Args:
        teacher_maps: Tensor `(batch, height, width, channels)`.
        student_maps: Tensor `(batch, height, width, channels)`.

    Returns:
        `(teacher, student)`, alike in height and width.

    Raises:
        ValueError: If one is no map, the batches differ, or the sizes differ and one of them is
            unknown.
    """
    teacher, student = _logits.matched_pair(teacher_maps, student_maps)
    check_maps(teacher, student)
    for axis in (1, 2):
        sizes = teacher.shape[axis], student.shape[axis]
        if sizes[0] == sizes[1]:
            continue
        if None in sizes:
            raise ValueError(
                f"Expected maps of known height and width. Received: {received(teacher, student)}."
                " Build both models with fixed input sizes."
            )
        teacher, student = (average_down(x, axis, min(sizes)) for x in (teacher, student))
    return teacher, student


def matched_pairs(teacher_features, student_features):
    """`matched_maps` of each pair, of one map a network or of a list of them: a list of pairs."""
    teachers, students = as_list(teacher_features), as_list(student_features)
    if len(teachers) != len(students) or not teachers:
        raise ValueError(
            "Expected as many maps from teacher and student. Received: "
            f"{received(teacher_features, student_features)}. Give each of the student's maps the "
            "teacher's that it is compared with."
        )
    return [matched_maps(teacher, student) for teacher, student in zip(teachers, students)]


def average_down(x, axis, target):
    """The mean of the adaptive cells along an axis; `x` itself where the size is the target."""
    size = x.shape[axis]
    if size == target:
        return x
    matrix = ops.cast(adaptive_average_matrix(size, target).T, x.dtype)
    return ops.moveaxis(ops.matmul(ops.moveaxis(x, axis, -1), matrix), -1, axis)


def check_maps(teacher_maps, student_maps):
    """Raises unless both are `(batch, height, width, channels)` of one batch."""
    if len(teacher_maps.shape) != 4 or len(student_maps.shape) != 4:
        raise ValueError(
            "Expected maps of shape (batch, height, width, channels). Received: "
            f"{received(teacher_maps, student_maps)}. Name layers before the pooling."
        )
    batches = teacher_maps.shape[0], student_maps.shape[0]
    if None not in batches and batches[0] != batches[1]:
        raise ValueError(
            "Expected maps of the same batch. Received: "
            f"{received(teacher_maps, student_maps)}. Run both networks on the same samples."
        )


def as_list(features):
    """The maps of a network, one or several, in a list."""
    return list(features) if isinstance(features, (list, tuple)) else [features]


def positions(maps):
    """`(batch, height, width, channels)` -> `(batch, height * width, channels)`."""
    _, height, width, channels = maps.shape
    if None in (height, width):
        return ops.reshape(maps, (ops.shape(maps)[0], -1, channels))
    return ops.reshape(maps, (-1, height * width, channels))


def of_unit_size(x, least=LEAST_SCALE):
    """Each sample over its largest magnitude, a constant; where that is below `least`, 0.

    For losses that no scale of a sample changes, whose powers would leave the range of float32.
    """
    axes = tuple(range(1, len(x.shape)))
    largest = ops.max(ops.abs(ops.stop_gradient(x)), axis=axes, keepdims=True)
    present = largest > least
    scale = 1.0 / ops.where(present, largest, ops.ones_like(largest))
    return x * ops.where(present, scale, ops.zeros_like(scale))


def checked_power(power):
    """Returns the power of a norm; raises below 1."""
    if _checks.finite("power", power) < 1:
        raise ValueError(
            _checks.message(
                "`power` to be 1 or more",
                "power",
                power,
                "Below 1 the gradient of a zero is infinite.",
            )
        )
    return power
