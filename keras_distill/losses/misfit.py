"""What features lack that a loss cannot compare: the answers of `DistillationLoss.misfit`.

Each takes the shapes of teacher and student, batch first, `None` for an unknown size, and
returns text that follows "Expected", or `None`.
"""

from keras_distill.losses import _shapes


def of_one_shape(teacher, student):
    """Features have to agree in all sizes but the batch."""
    if of_one_number(teacher, student) is not None:
        return "as many features from both"
    pairs = zip(_shapes.as_list(teacher), _shapes.as_list(student))
    return None if all(_agree(t, s) for t, s in pairs) else "features of the same shape"


def of_maps(teacher, student):
    """Features have to be maps, (batch, height, width, channels)."""
    shapes = [*_shapes.as_list(teacher), *_shapes.as_list(student)]
    if all(len(shape) == 4 for shape in shapes):
        return None
    return "maps of shape (batch, height, width, channels) from both"


def of_matched_maps(teacher, student):
    """Features have to be as many maps, whose sizes are known where they differ."""
    expected = of_one_number(teacher, student) or of_maps(teacher, student)
    if expected is not None:
        return expected
    for t, s in zip(_shapes.as_list(teacher), _shapes.as_list(student)):
        if any(None in sizes and sizes[0] != sizes[1] for sizes in zip(t[1:3], s[1:3])):
            return "maps of known height and width from both"
    return None


def of_vectors(teacher, student):
    """Features have to be vectors, (batch, size)."""
    shapes = [*_shapes.as_list(teacher), *_shapes.as_list(student)]
    if all(len(shape) == 2 for shape in shapes):
        return None
    return "vectors of shape (batch, size) from both"


def of_one_number(teacher, student):
    """Both networks have to give as many features."""
    if len(_shapes.as_list(teacher)) == len(_shapes.as_list(student)):
        return None
    return "as many features from both"


def of_one_feature(teacher, student):
    """Both networks have to give one feature with an axis behind the batch."""
    shapes = [*_shapes.as_list(teacher), *_shapes.as_list(student)]
    if len(shapes) == 2 and all(len(shape) >= 2 for shape in shapes):
        return None
    return "one feature of shape (batch, ..., size) from both"


def of_one_vector(teacher, student):
    """Both networks have to give one vector, (batch, size)."""
    if of_one_feature(teacher, student) is None and of_vectors(teacher, student) is None:
        return None
    return "one vector of shape (batch, size) from both, such as a pooled layer's"


def of_equal_channels(teacher, student):
    """Each pair of features has to agree in its last size."""
    pairs = zip(_shapes.as_list(teacher), _shapes.as_list(student))
    if all(_agree(t[-1:], s[-1:], start=0) for t, s in pairs):
        return None
    return "features with as many channels from both"


def _agree(shape, other, start=1):
    return len(shape) == len(other) and all(
        a is None or b is None or a == b for a, b in zip(shape[start:], other[start:])
    )
