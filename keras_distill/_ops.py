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
