"""Running the layers of a model in another precision than their own, for a while."""

import contextlib

import keras

from keras_distill import _keras

HALF_PRECISION = ("float16", "bfloat16")


class _ComputeIn(keras.dtype_policies.DTypePolicy):
    """Computes in one dtype with variables of any other (they are cast when they are read)."""

    def __init__(self, compute_dtype, variable_dtype):
        super().__init__(compute_dtype if compute_dtype == "float32" else f"mixed_{compute_dtype}")
        self._own_variable_dtype = variable_dtype

    @property
    def variable_dtype(self):
        return self._own_variable_dtype


@contextlib.contextmanager
def computing_in(model, compute_dtype, of=None):
    """Inside the block, the layers of `model` compute in `compute_dtype`.

    The policies are switched and given back, so that layers and variables stay the very same,
    where a clone would need every custom layer to serialise.

    Args:
        model: A Keras model. What Keras has compiled for it must not be traced meanwhile.
        compute_dtype: "float32", "float16" or "bfloat16"; `None` changes nothing.
        of: Switch only layers that compute in one of these dtypes. Defaults to all floats.
    """
    switched = []
    try:
        for layer in _keras.flatten_layers(model) if compute_dtype else ():
            own = layer.compute_dtype
            if own in of if of else keras.backend.is_float_dtype(own):
                switched.append((layer, layer.dtype_policy))
                layer.dtype_policy = _ComputeIn(compute_dtype, layer.variable_dtype)
        yield
    finally:
        for layer, policy in switched:
            layer.dtype_policy = policy
