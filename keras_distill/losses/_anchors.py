"""Distances and angles between samples, from differences, a few anchors at a time.

Products of features cancel where features lie near each other or far from 0; differences do
not. Of the (anchors, samples, features) differences only those of `CHUNK` anchors exist at a
time: the gradients compute them again.

Samples no further apart than the rounding of their own magnitude are duplicates, at a distance
of exactly 0: XLA fuses what computes a feature into one side of a difference only, and a
sample would lie at the distance of a rounding error from itself.
"""

import keras
from keras import ops

from keras_distill.losses._relation import huber

CHUNK = 8


def pairwise_distances(anchors, samples):
    """Euclidean distances, shape `(anchors, samples)`; the gradient at a distance of 0 is 0.

    Args:
        anchors: Tensor `(anchors, features)`.
        samples: Tensor `(samples, features)`.
    """
    return _distances(anchors, samples)


def angle_losses(teacher_anchors, student_anchors, teacher, student):
    """For each anchor, the mean Huber difference of the cosines of all angles at it.

    The cosine at anchor a between the samples b and c is the product of the directions from a
    to b and from a to c. A direction of length 0 is 0, with a gradient of 0.

    Args:
        teacher_anchors: Tensor `(anchors, features)`, a constant to the gradient.
        student_anchors: Tensor `(anchors, other features)`.
        teacher: Tensor `(samples, features)`, a constant to the gradient.
        student: Tensor `(samples, other features)`.

    Returns:
        Tensor `(anchors,)`.
    """
    return _angles(teacher_anchors, student_anchors, teacher, student)


@ops.custom_gradient
def _distances(anchors, samples):
    # Constants within: an eager tape would keep every chunk.
    anchors, samples = ops.stop_gradient(anchors), ops.stop_gradient(samples)

    def of_chunk(chunk):
        return _lengths(_differences(chunk, samples), chunk)

    distances = _join(ops.map(of_chunk, _split(anchors)), anchors)

    def gradient(*args, upstream=None):
        if upstream is None:
            (upstream,) = args
        slopes = upstream * _inverse(distances)

        def of_differences(chunk):
            anchor_chunk, slope_chunk = chunk
            return slope_chunk[:, :, None] * _differences(anchor_chunk, samples)

        return _gradients(of_differences, (anchors, slopes), samples)

    return distances, gradient


@ops.custom_gradient
def _angles(*tensors):
    teacher_anchors, student_anchors, teacher, student = map(ops.stop_gradient, tensors)
    entries = ops.square(ops.cast(ops.shape(student)[0], student.dtype))

    def compare(teacher_chunk, student_chunk):
        teacher_directions, _ = _directions(teacher_chunk, teacher)
        directions, inverse_lengths = _directions(student_chunk, student)
        return _cosines(directions) - _cosines(teacher_directions), directions, inverse_lengths

    def of_chunk(chunk):
        gaps, _, _ = compare(*chunk)
        return ops.sum(huber(gaps), axis=(1, 2)) / entries

    losses = ops.map(of_chunk, (_split(teacher_anchors), _split(student_anchors)))

    def gradient(*args, upstream=None):
        if upstream is None:
            (upstream,) = args

        def of_differences(chunk):
            teacher_chunk, student_chunk, upstream_chunk = chunk
            gaps, directions, inverse_lengths = compare(teacher_chunk, student_chunk)
            # The cosines are symmetric in b and c: both factors of a product give the same.
            scale = (2.0 / entries) * upstream_chunk
            slopes = ops.clip(gaps, -1.0, 1.0) * scale[:, None, None]
            of_directions = ops.matmul(slopes, directions)
            # Through the normalisation: a change along a direction does not turn it.
            along = ops.sum(of_directions * directions, axis=-1, keepdims=True)
            return inverse_lengths * (of_directions - along * directions)

        of_anchors, of_samples = _gradients(
            of_differences, (teacher_anchors, student_anchors, upstream), student
        )
        constant = ops.zeros_like(teacher_anchors), ops.zeros_like(teacher)
        return constant[0], of_anchors, constant[1], of_samples

    return _join(losses, student_anchors), gradient


def _differences(anchors, samples):
    """`(anchors, samples, features)`: each anchor less each sample."""
    return anchors[:, None, :] - samples[None, :, :]


def _lengths(differences, anchors):
    """`(anchors, samples)`: their lengths, exactly 0 between duplicates."""
    squares = ops.sum(ops.square(differences), axis=-1)
    rounding = 1.2e-7 if keras.backend.standardize_dtype(anchors.dtype) == "float32" else 2.3e-16
    least = ops.sum(ops.square(rounding * anchors), axis=-1)[:, None]
    apart = squares > least
    roots = ops.sqrt(ops.where(apart, squares, ops.ones_like(squares)))
    return ops.where(apart, roots, ops.zeros_like(roots))


def _directions(anchors, samples):
    """Differences over their lengths, 0 between duplicates, and `1 / length`."""
    differences = _differences(anchors, samples)
    inverse_lengths = _inverse(_lengths(differences, anchors))[:, :, None]
    return differences * inverse_lengths, inverse_lengths


def _cosines(directions):
    """`(anchors, samples, samples)`: products of the directions at each anchor."""
    return ops.matmul(directions, ops.transpose(directions, (0, 2, 1)))


def _inverse(x):
    """`1 / x`, and 0 where x is 0."""
    present = x > 0
    return ops.where(present, 1.0 / ops.where(present, x, ops.ones_like(x)), ops.zeros_like(x))


def _split(x):
    """`(rows, ...)` -> `(chunks, CHUNK, ...)`, filled up with rows of zeros."""
    chunks = (ops.shape(x)[0] + CHUNK - 1) // CHUNK
    filling = ops.zeros((CHUNK - 1, *ops.shape(x)[1:]), x.dtype)
    x = ops.concatenate([x, filling])
    return ops.reshape(x[: chunks * CHUNK], (chunks, CHUNK, *ops.shape(x)[1:]))


def _join(chunks, rows):
    """`(chunks, CHUNK, ...)` -> `(rows, ...)`: without what `_split` added."""
    joined = ops.reshape(chunks, (-1, *ops.shape(chunks)[2:]))
    return joined[: ops.shape(rows)[0]]


def _gradients(of_differences, per_anchor, samples):
    """Gradients by anchors and by samples, from those by their differences.

    Args:
        of_differences: Function of a chunk of each of `per_anchor`; returns the gradient by
            the differences, `(CHUNK, samples, features)`.
        per_anchor: Tensors `(anchors, ...)`.
        samples: Tensor `(samples, features)`.

    Returns:
        Tensors `(anchors, features)` and `(samples, features)`.
    """
    stacks = tuple(_split(x) for x in per_anchor)
    chunks = ops.shape(stacks[0])[0]
    numbers = ops.arange(chunks)[:, None, None]
    of_anchors = ops.zeros((chunks, CHUNK, ops.shape(samples)[1]), samples.dtype)

    def body(number, state):
        of_anchors, of_samples = state
        part = of_differences(tuple(ops.take(stack, number, axis=0) for stack in stacks))
        own = ops.where(ops.equal(numbers, number), ops.sum(part, axis=1)[None], of_anchors)
        return own, of_samples - ops.sum(part, axis=0)

    state = _one_by_one(chunks, body, (of_anchors, ops.zeros_like(samples)))
    return _join(state[0], per_anchor[0]), state[1]


def _one_by_one(count, body, state):
    """`ops.fori_loop` from 0, of which no two rounds are in memory at a time."""
    if keras.backend.backend() != "tensorflow":
        return ops.fori_loop(0, count, body, state)
    import tensorflow as tf

    def step(number, state):
        return number + 1, body(number, state)

    return tf.while_loop(lambda number, _: number < count, step, (0, state), parallel_iterations=1)[
        1
    ]
