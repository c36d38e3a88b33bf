"""Shapes of features: of one, or of several in a list."""


def is_shape(shapes):
    """Whether it is one shape, not a list of them."""
    return all(size is None or isinstance(size, int) for size in shapes)


def as_list(shapes):
    """One shape, or several, in a list."""
    return [shapes] if is_shape(shapes) else list(shapes)


def shapes_of(features):
    """The shape of a feature; of several, a list of theirs."""
    if isinstance(features, (list, tuple)):
        return [tuple(feature.shape) for feature in features]
    return tuple(features.shape)


def received(teacher, student):
    """Both networks' shapes, as every error names them."""
    return (
        f"teacher_features.shape={shapes_of(teacher)}, student_features.shape={shapes_of(student)}"
    )
