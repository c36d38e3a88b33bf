"""Feature losses: Hint."""

import keras
import numpy as np
import pytest

from keras_distill import losses
from tests.losses import numerics
from tests.oracles import feature as oracles
from tests.oracles import finite_differences

SHAPES = [(4, 6), (1, 3, 2, 5), (2, 3, 4), (5,)]


def data(shape, dtype="float64"):
    rng = np.random.default_rng(3)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(2)]


@pytest.mark.parametrize("mode", ["mean", "paper"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hint_is_the_equations(shape, mode):
    teacher, student = data(shape)
    values = numerics.values(losses.hint, teacher, student, mode)
    assert values.shape == shape[:1]
    np.testing.assert_allclose(values, oracles.hint(teacher, student, mode), numerics.RTOL)
    gradient = numerics.gradient(lambda x: losses.hint(teacher, x, mode), student)
    expected = finite_differences.gradient(lambda x: oracles.hint(teacher, x, mode).sum(), student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


def test_hint_gives_the_teacher_no_gradient_and_is_zero_at_equality():
    teacher, student = data((2, 3, 4))
    gradient = numerics.gradient(lambda x: losses.hint(x, student), teacher)
    np.testing.assert_array_equal(gradient, 0.0)
    np.testing.assert_array_equal(numerics.values(losses.hint, teacher, teacher), 0.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_hint_squares_half_precision_in_float32(dtype):
    """The square of 1000 is beyond float16."""
    teacher = keras.ops.cast(np.zeros((2, 3), "float32"), dtype)
    student = keras.ops.cast(np.full((2, 3), 1000.0, "float32"), dtype)
    values = losses.hint(teacher, student)
    assert keras.backend.standardize_dtype(values.dtype) == "float32"
    np.testing.assert_allclose(numerics.to_numpy(values), 1e6)


def test_hint_class_reduces_weighs_and_restores():
    teacher, student = data((4, 3, 2), "float32")
    values = oracles.hint(teacher, student, "paper")
    loss = losses.Hint(mode="paper")
    assert float(loss(teacher, student)) == pytest.approx(values.mean(), rel=1e-5)
    weight = np.array([0.0, 1.0, 2.0, 0.5], "float32")
    weighted = loss(teacher, student, sample_weight=weight)
    assert float(weighted) == pytest.approx((weight * values).mean(), rel=1e-5)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(restored) is losses.Hint and restored.get_config() == loss.get_config()
    assert loss.name == "hint" and not loss.on_logits and not loss.shift_invariant
    assert losses.Hint().mode == "mean"


def test_hint_under_xla():
    teacher, student = (keras.ops.convert_to_tensor(x) for x in data((4, 3, 2), "float32"))
    values = numerics.to_numpy(numerics.compiled(losses.hint)(teacher, student))
    np.testing.assert_allclose(values, numerics.to_numpy(losses.hint(teacher, student)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 2, 6), (4, 3, 1, 6)], ids=str)
def test_features_of_other_shapes_are_an_error(shape):
    received = r"teacher_features\.shape=\(4, 3, 6\), student_features\.shape=\(4, "
    with pytest.raises(ValueError, match=rf'same shape. Received: {received}.*connector="auto"'):
        losses.hint(np.ones((4, 3, 6)), np.ones(shape))
