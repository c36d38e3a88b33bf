"""What the losses of feature maps share: sizes, pairs, scale and messages."""

import keras
import numpy as np
import pytest

from keras_distill.losses import _maps
from tests.losses import numerics
from tests.oracles.relation import adaptive_average

SIZES = [
    ((8, 8), (4, 4), (4, 4)),
    ((8, 8), (5, 5), (5, 5)),
    ((8, 3), (5, 6), (5, 3)),
    ((4, 9), (4, 2), (4, 2)),
    ((7, 1), (7, 1), (7, 1)),
]


def maps(batch, size, channels, seed=0, dtype="float32"):
    shape = (batch, *size, channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_matched_maps_average_the_larger_side_of_each_axis(sizes, swapped):
    *sizes, target = sizes
    teacher, student = (
        maps(2, size, c, c) for size, c in zip(sizes[:: -1 if swapped else 1], (3, 2))
    )
    matched = _maps.matched_maps(teacher, student)
    for result, given in zip(matched, (teacher, student)):
        expected = adaptive_average(given.astype("float64"), target)
        np.testing.assert_allclose(numerics.to_numpy(result), expected, rtol=1e-5, atol=1e-6)


def test_the_cells_of_8_rows_on_5_overlap():
    """Rows 0-1, 1-3, 3-4, 4-6, 6-7, by hand."""
    x = np.arange(8.0, dtype="float32").reshape(1, 8, 1, 1) ** 2
    result = numerics.to_numpy(_maps.average_down(keras.ops.convert_to_tensor(x), 1, 5))
    expected = [0.5, 14 / 3, 12.5, 77 / 3, 42.5]
    np.testing.assert_allclose(result.ravel(), expected, rtol=1e-6)
    same = keras.ops.convert_to_tensor(x)
    assert _maps.average_down(same, 1, 8) is same


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_matched_maps_are_of_one_float_dtype(dtype):
    with numerics.float64():
        teacher = keras.ops.cast(maps(1, (4, 4), 2), dtype)
        pair = _maps.matched_maps(teacher, maps(1, (2, 2), 2))
        dtypes = {keras.backend.standardize_dtype(x.dtype) for x in pair}
    assert dtypes == {"float64" if dtype == "float64" else "float32"}


def test_matched_maps_hold_the_teacher_constant():
    teacher, student = maps(1, (4, 4), 2), maps(1, (2, 2), 2)

    def product(teacher, student):
        pair = _maps.matched_maps(teacher, student)
        return keras.ops.sum(pair[0] * pair[1], axis=(1, 2, 3))

    np.testing.assert_array_equal(numerics.gradient(lambda x: product(x, student), teacher), 0.0)
    gradient = numerics.gradient(lambda x: product(teacher, x), student)
    np.testing.assert_allclose(gradient, adaptive_average(teacher, (2, 2)), rtol=1e-5)


@pytest.mark.tensorflow
def test_sizes_unknown_on_both_sides_stay_and_on_one_are_an_error():
    import tensorflow as tf

    def shapes(*specs):
        function = tf.function(lambda t, s: _maps.matched_maps(t, s))
        outputs = function.get_concrete_function(*map(tf.TensorSpec, specs)).outputs
        return [tuple(x.shape) for x in outputs]

    open_, fixed = (None, None, None, 3), (None, 4, 4, 2)
    assert shapes(open_, open_) == [open_, open_]
    assert shapes((None, 8, 4, 3), fixed) == [(None, 4, 4, 3), fixed]
    with pytest.raises(
        ValueError, match=r"maps of known height and width. Received: .*None.*fixed"
    ):
        shapes(open_, fixed)


@pytest.mark.tensorflow
def test_positions_of_known_and_unknown_sizes():
    import tensorflow as tf

    x = maps(2, (3, 4), 5)
    expected = x.reshape(2, 12, 5)
    np.testing.assert_array_equal(_maps.positions(tf.constant(x)), expected)
    for shape in ((None, 3, 4, 5), (None, None, None, 5)):
        function = tf.function(_maps.positions, input_signature=[tf.TensorSpec(shape)])
        np.testing.assert_array_equal(function(x), expected)
        assert function.get_concrete_function().outputs[0].shape[2] == 5


def test_matched_pairs_of_one_map_and_of_several():
    teacher, student = maps(2, (4, 4), 3), maps(2, (2, 2), 5)
    ((t, s),) = _maps.matched_pairs(teacher, student)
    assert tuple(t.shape) == (2, 2, 2, 3) and tuple(s.shape) == (2, 2, 2, 5)
    pairs = _maps.matched_pairs((teacher, student), [student, teacher])
    assert [tuple(t.shape) for t, _ in pairs] == [(2, 2, 2, 3), (2, 2, 2, 5)]


@pytest.mark.parametrize(
    "teacher, student, message",
    [
        ((2, 4), (2, 4), r"maps of shape \(batch, height, width, channels\).*\(2, 4\).*pooling"),
        ((2, 4, 4, 3), (2, 16, 3), r"maps of shape .*\(2, 4, 4, 3\).*shape=\(2, 16, 3\)"),
        ((2, 4, 4, 3), (3, 4, 4, 3), r"same batch.*\(2, 4, 4, 3\).*\(3, 4, 4, 3\).*same samples"),
        ([(2, 4, 4, 3)] * 2, [(2, 4, 4, 3)], r"as many maps.*shape=\[\(2.*\), \(2.*\)\].*\[\(2"),
        ([], [], r"as many maps.*shape=\[\], .*shape=\[\]"),
        ([(2, 4, 4, 3)] * 2, (2, 4, 4, 3), r"as many maps.*student_features\.shape=\(2, 4, 4, 3\)"),
    ],
    ids=str,
)
def test_features_that_do_not_fit_are_named(teacher, student, message):
    def ones(shape):
        return [np.ones(s) for s in shape] if isinstance(shape, list) else np.ones(shape)

    with pytest.raises(ValueError, match=message) as error:
        _maps.matched_pairs(ones(teacher), ones(student))
    assert str(error.value).startswith("Expected ")
    assert "Received: teacher_features.shape=" in str(error.value)


def test_unit_size_is_each_samples_own_and_a_constant():
    x = maps(4, (2, 3), 2)
    x[1] *= 1e6
    x[2] = 0.0
    x[3] *= 1e-15
    scaled = numerics.to_numpy(_maps.of_unit_size(x))
    np.testing.assert_allclose(np.abs(scaled[:2]).max(axis=(1, 2, 3)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(scaled[1] * np.abs(x[1]).max(), x[1], rtol=1e-5)
    np.testing.assert_array_equal(scaled[2:], 0.0)
    gradient = numerics.gradient(_maps.of_unit_size, x)
    largest = np.abs(x[:2]).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(gradient[:2], np.ones_like(x[:2]) / largest, rtol=1e-5)
    np.testing.assert_array_equal(gradient[2:], 0.0)
