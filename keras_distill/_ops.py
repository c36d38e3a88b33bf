"""The few tensor helpers that several families of losses share."""

import keras
from keras import ops


def at_least_float32(x):
    """Casts half-precision tensors and integers to float32, and leaves float64 alone.

    Losses are computed in float32 under any dtype policy: `exp(x / 0.07)`, products of
    small probabilities and weights of 30000 leave the range of float16.
    """
    x = ops.convert_to_tensor(x)
    if keras.backend.standardize_dtype(x.dtype) in ("float32", "float64"):
        return x
    return ops.cast(x, "float32")


def per_sample_mean(x):
    """Mean over all axes but the first: shape `(batch,)`."""
    return x if len(x.shape) <= 1 else ops.mean(x, axis=tuple(range(1, len(x.shape))))


def flatten_samples(x):
    """`(batch, ...)` -> `(batch, features)`."""
    if len(x.shape) == 2:
        return x
    features = 1
    for size in x.shape[1:]:
        features = None if size is None or features is None else features * size
    if features is None:
        return ops.reshape(x, (ops.shape(x)[0], -1))
    return ops.reshape(x, (-1, features))


def l2_normalize(x, axis=-1, added=0.0):
    """`x` over its norm (plus `added`) along an axis.

    A vector whose norm is below 1e-12 becomes 0 with a gradient of 0, where dividing by
    1e-12 gives a gradient of 1e12 and a plain square root NaN.
    """
    square = ops.sum(ops.square(x), axis=axis, keepdims=True)
    present = square > 1e-24
    norm = ops.sqrt(ops.where(present, square, ops.ones_like(square)))
    return x * ops.where(present, 1.0 / (norm + added), ops.zeros_like(norm))
