"""Connectors: every pair of ranks, sizes against numpy, saving, errors."""

import keras
import numpy as np
import pytest

from keras_distill import connectors


def run(layer, x):
    return keras.ops.convert_to_numpy(layer(x))


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def names(connector):
    return [type(layer).__name__ for layer in connector.layers]


@pytest.mark.parametrize(
    "student, teacher, expected",
    [
        ((8, 8, 4), (8, 8, 6), ["Conv2D"]),
        ((16, 16, 4), (8, 8, 4), ["Resize"]),
        ((4, 4, 4), (8, 8, 4), ["Resize"]),
        ((7, 5, 4), (3, 8, 6), ["Resize", "Conv2D"]),
        ((5,), (7,), ["Dense"]),
        ((8, 8, 4), (6,), ["GlobalAveragePooling2D", "Dense"]),
        ((8, 8, 6), (6,), ["GlobalAveragePooling2D"]),
        ((10, 4), (6,), ["GlobalAveragePooling1D", "Dense"]),
        ((10, 4), (10, 6), ["Dense"]),
        ((10, 4), (25, 6), ["Resize", "Dense"]),
        ((4, 4, 3), (16, 6), ["Reshape", "Dense"]),
        ((4, 4, 3), (9, 3), ["Reshape", "Resize"]),
        ((16, 4), (4, 4, 6), ["TokensToMap", "Conv2D"]),
        ((17, 4), (4, 4, 4), ["TokensToMap"]),
        ((18, 4), (8, 8, 6), ["TokensToMap", "Resize", "Conv2D"]),
    ],
)
def test_automatic_fits(student, teacher, expected, tmp_path):
    connector = connectors.automatic((None, *student), (None, *teacher), name="fit")
    assert names(connector) == expected
    assert connector.built
    x = random(3, *student)
    outputs = run(connector, x)
    assert outputs.shape == (3, *teacher)
    assert connector.compute_output_shape((None, *student)) == (None, *teacher)
    connector.save(tmp_path / "c.keras")
    loaded = keras.saving.load_model(tmp_path / "c.keras")
    np.testing.assert_array_equal(run(loaded, x), outputs)


def test_nothing_where_the_shapes_agree():
    assert connectors.automatic((None, 8, 8, 4), (None, 8, 8, 4)) is None
    assert connectors.automatic((None, None, 4), (2, None, 4)) is None


def test_unknown_sizes_serve_where_only_channels_differ():
    connector = connectors.automatic((None, None, None, 4), (None, None, None, 6))
    assert run(connector, random(2, 5, 7, 4)).shape == (2, 5, 7, 6)
    connector = connectors.automatic((None, None, 4), (None, 9))
    assert run(connector, random(2, 5, 4)).shape == (2, 9)


def adaptive_average(x, target):
    """The definition, cell by cell, along the first axis."""
    size = len(x)
    cells = [(i * size // target, -(-(i + 1) * size // target)) for i in range(target)]
    return np.stack([x[first:last].mean(0) for first, last in cells])


@pytest.mark.parametrize("size, target", [(8, 4), (7, 3), (10, 7), (5, 1), (6, 6)])
def test_resize_averages_down_in_adaptive_cells(size, target):
    x = random(2, size, size + 1, 3)
    expected = np.stack(
        [adaptive_average(np.moveaxis(adaptive_average(row, target), 1, 0), target) for row in x]
    )
    expected = np.moveaxis(expected, 2, 1)
    resized = run(connectors.Resize((target, target)), x)
    np.testing.assert_allclose(resized, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size, target", [(4, 8), (3, 7), (1, 5)])
def test_resize_interpolates_up_linearly(size, target):
    x = random(2, size, 3)
    centres = (np.arange(target) + 0.5) * size / target - 0.5
    expected = np.stack(
        [
            np.stack([np.interp(centres, np.arange(size), row[:, c]) for c in range(3)], -1)
            for row in x
        ]
    )
    np.testing.assert_allclose(run(connectors.Resize((target,)), x), expected, rtol=1e-5, atol=1e-6)


def test_resize_keeps_a_constant_and_mixes_axes():
    ones = np.ones((2, 9, 3, 2), "float32")
    np.testing.assert_allclose(
        run(connectors.Resize((4, 7)), ones), np.ones((2, 4, 7, 2)), rtol=1e-6
    )


def test_tokens_to_map_drops_leading_tokens():
    x = random(2, 6, 3)
    expected = x[:, 2:].reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(run(connectors.TokensToMap(2, 2), x), expected)


@pytest.mark.parametrize(
    "layer", [connectors.Resize((3, 4), name="r"), connectors.TokensToMap(2, 3, name="t")]
)
def test_config_round_trip(layer):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.get_config() == layer.get_config()


@pytest.mark.parametrize(
    "student, teacher",
    [
        ((None, None, 4), (8, 8, 4)),  # unknown size, and it differs
        ((16, 16, 4), (None, None, 4)),
        ((15, 4), (4, 4, 4)),  # tokens on no square grid
        ((5,), (8, 8, 4)),  # a vector has no places
        ((5,), (10, 4)),
        ((None, None, 4), (16, 4)),
        ((4, 4, 4, 2), (16, 4)),  # volumes against tokens
    ],
)
def test_what_cannot_be_fitted_is_an_error(student, teacher):
    with pytest.raises(ValueError, match="`connector`"):
        connectors.automatic((None, *student), (None, *teacher))


def test_volumes_of_the_same_rank_are_fitted():
    connector = connectors.automatic((None, 4, 4, 4, 2), (None, 2, 2, 2, 3))
    assert run(connector, random(2, 4, 4, 4, 2)).shape == (2, 2, 2, 2, 3)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_connectors_stay_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    connector = connectors.automatic((None, 8, 8, 4), (None, 4, 4, 6))
    outputs = connector(random(2, 8, 8, 4))
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
