"""What the losses of feature maps share: maps of one size."""

from keras import ops

from keras_distill.connectors import adaptive_average_matrix
from keras_distill.losses import _logits


def matched_maps(teacher_maps, student_maps):
    """Two maps in one float dtype, the teacher's constant, each averaged down to the smaller.

    Height and width are brought to the smaller of the two on their own, on either side.

    Args:
        teacher_maps: Tensor `(batch, height, width, channels)`.
        student_maps: Tensor `(batch, height, width, channels)`.

    Returns:
        `(teacher, student)`, alike in height and width.

    Raises:
        ValueError: If one is no map, or the sizes differ and one of them is unknown.
    """
    check_maps(teacher_maps, student_maps)
    teacher, student = _logits.matched_pair(teacher_maps, student_maps)
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


def average_down(x, axis, target):
    """The mean of the adaptive cells along an axis; `x` itself where the size is the target."""
    size = x.shape[axis]
    if size == target:
        return x
    matrix = ops.cast(adaptive_average_matrix(size, target).T, x.dtype)
    return ops.moveaxis(ops.matmul(ops.moveaxis(x, axis, -1), matrix), -1, axis)


def check_maps(teacher_maps, student_maps):
    """Raises unless both are `(batch, height, width, channels)`."""
    if len(teacher_maps.shape) == 4 and len(student_maps.shape) == 4:
        return
    raise ValueError(
        "Expected maps of shape (batch, height, width, channels). Received: "
        f"{received(teacher_maps, student_maps)}. Name layers before the pooling."
    )


def received(teacher, student):
    """Both shapes, for a message."""
    return (
        f"teacher_features.shape={tuple(teacher.shape)}, "
        f"student_features.shape={tuple(student.shape)}"
    )


def positions(maps):
    """`(batch, height, width, channels)` -> `(batch, height * width, channels)`."""
    _, height, width, channels = maps.shape
    if None in (height, width):
        return ops.reshape(maps, (ops.shape(maps)[0], -1, channels))
    return ops.reshape(maps, (-1, height * width, channels))
