"""The relation losses compiled, of batches of unknown size, and in half precision."""

import keras
import numpy as np
import pytest

from keras_distill import losses
from tests.losses import numerics
from tests.losses.relation_cases import BATCH_OF_UNKNOWN_SIZE
from tests.losses.relation_cases import CASES
from tests.losses.relation_cases import DISTINCT
from tests.losses.relation_cases import data
from tests.losses.relation_cases import each

# Compiling takes seconds: each loss once, and the settings that compute something of their own.
COMPILED = DISTINCT + [
    case
    for case in CASES
    if case.kwargs.get("normalize")
    or case.kwargs in ({"distance": "euclidean"}, {"kernel": "rbf"}, {"mode": "neighbors"})
]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", each())
def test_half_precision_inputs_are_computed_in_float32(case, dtype):
    teacher, student = (
        keras.ops.convert_to_tensor(x.astype("float32"), dtype=dtype) for x in data(5)
    )
    values = case.call(teacher, student)
    assert keras.backend.standardize_dtype(values.dtype) == "float32"
    lifted = [keras.ops.cast(x, "float32") for x in (teacher, student)]
    expected = numerics.to_numpy(case.call(*lifted))
    np.testing.assert_array_equal(numerics.to_numpy(values), expected)
    gradient = numerics.gradient(lambda x: case.call(teacher, x), student)
    expected = numerics.gradient(lambda x: case.call(teacher, x), lifted[1])
    numerics.assert_finite(gradient)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(gradient.astype("float32"), expected, rtol=2e-2, atol=2e-2 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("case", each(COMPILED))
def test_xla_computes_the_same(case):
    """Values and gradients, with duplicates and a row of zeros."""
    teacher, student = data(9, dtype="float32")
    student[0], student[5] = 0.0, student[3]

    def both(teacher, student):
        gradient = numerics.slope(lambda x: case.call(teacher, x), student)
        return case.call(teacher, student), gradient

    arguments = [keras.ops.convert_to_tensor(x) for x in (teacher, student)]
    for result, plain in zip(numerics.compiled(both)(*arguments), both(*arguments)):
        result, plain = numerics.to_numpy(result), numerics.to_numpy(plain)
        numerics.assert_finite(result)
        np.testing.assert_allclose(result, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("case", each())
def test_batch_of_unknown_size(case):
    """As `fit` traces a loss: values and gradients, also of a batch too small for it."""
    import tensorflow as tf

    teacher, student = data(BATCH_OF_UNKNOWN_SIZE, dtype="float32")

    @tf.function(input_signature=[tf.TensorSpec((None, 6))] * 2)
    def both(teacher, student):
        gradient = numerics.slope(lambda x: case.call(teacher, x), student)
        return case.call(teacher, student), gradient

    values, gradient = both(teacher, student)
    np.testing.assert_allclose(values, case.call(teacher, student), rtol=1e-5, atol=1e-6)
    expected = numerics.gradient(lambda x: case.call(teacher, x), student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)
    if not case.needs_labels:
        for batch in (1, 2, 3):
            numerics.assert_finite(*both(teacher[:batch], student[:batch]))


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("cls", [losses.RelationalDistance, losses.KernelAlignment])
def test_xla_of_a_batch_of_unknown_size(cls):
    """One chunk of anchors: XLA inlines the loop and fuses what is around it."""
    import tensorflow as tf

    teacher, student = data(BATCH_OF_UNKNOWN_SIZE, dtype="float32")
    options = {"normalize": True} if cls is losses.RelationalDistance else {"kernel": "rbf"}
    loss = cls(**options)
    compiled = tf.function(loss, input_signature=[tf.TensorSpec((None, 6))] * 2, jit_compile=True)
    np.testing.assert_allclose(compiled(teacher, student), loss(teacher, student), rtol=1e-4)
