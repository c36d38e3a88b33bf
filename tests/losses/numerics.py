"""Runs a loss on either backend: in float64, differentiated, compiled."""

import contextlib

import keras
import numpy as np

BACKEND = keras.backend.backend()
# How near a value comes to its float64 oracle: on JAX, Keras takes means in float32.
RTOL = 1e-10 if BACKEND == "tensorflow" else 2e-6


def float64():
    """A context in which float64 arrays stay float64 (JAX lowers them by default)."""
    if BACKEND == "jax":
        import jax

        return jax.enable_x64(True)
    return contextlib.nullcontext()


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def values(function, *args, **kwargs):
    with float64():
        return to_numpy(function(*args, **kwargs))


def gradient(function, x, weights=None):
    """Gradient by `x` of the (weighted) sum of `function(x)`, as an array of the dtype of `x`."""

    def weighted(x):
        result = function(x)
        return result if weights is None else result * weights

    with float64():
        return to_numpy(slope(weighted, keras.ops.convert_to_tensor(x)))


def slope(function, x):
    """Gradient of the sum of `function(x)` by the tensor `x`; may be compiled."""
    if BACKEND == "jax":
        import jax

        return jax.grad(lambda x: keras.ops.sum(function(x)))(x)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        result = keras.ops.sum(function(x))
    return tape.gradient(result, x, unconnected_gradients="zero")


def compiled(function):
    """The function under XLA."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=True)


def assert_finite(*arrays):
    for array in arrays:
        assert np.all(np.isfinite(np.asarray(array, dtype="float64")))
