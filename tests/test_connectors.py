"""Connectors: every pair of ranks, sizes against numpy, saving, errors."""

import keras
import numpy as np
import pytest

import keras_distill as kd
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
        ((4, 4, 3), (16, 6), ["MapToTokens", "Dense"]),
        ((4, 4, 3), (9, 3), ["Resize", "MapToTokens"]),
        ((4, 4, 3), (10, 3), ["Resize", "MapToTokens"]),
        ((8, 4, 3), (20, 3), ["Resize", "MapToTokens"]),  # 6 x 3 and two tokens in front
        ((4, 4, 3), (13, 3), ["MapToTokens", "Resize"]),  # no grid: a sequence
        ((16, 4), (4, 4, 6), ["TokensToMap", "Conv2D"]),
        ((24, 4), (4, 6, 6), ["TokensToMap", "Conv2D"]),
        ((25, 4), (2, 3, 4), ["TokensToMap", "Resize"]),
        ((16, 4), (3, 4, 4), ["TokensToMap", "Resize"]),  # no grid of 3:4, so a square
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


def test_tokens_take_the_proportions_of_the_map():
    """24 tokens and a class token against 2 x 3: a grid of 4 x 6, averaged in cells of 2 x 2."""
    x = random(2, 25, 3)
    connector = connectors.automatic((None, 25, 3), (None, 2, 3, 3))
    expected = x[:, 1:].reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(run(connector, x), expected, rtol=1e-5, atol=1e-6)


def test_a_map_becomes_a_grid_of_tokens_behind_its_mean():
    """8 x 4 against 2 x 1 tokens and two in front: averaged place by place, not in a row."""
    x = random(2, 8, 4, 3)
    connector = connectors.automatic((None, 8, 4, 3), (None, 4, 3))
    places = x.reshape(2, 2, 4, 4, 3).mean((2, 3))
    mean = places.mean(1, keepdims=True)
    expected = np.concatenate([mean, mean, places], axis=1)
    np.testing.assert_allclose(run(connector, x), expected, rtol=1e-5, atol=1e-6)
    plain = run(connectors.MapToTokens(), x)
    np.testing.assert_array_equal(plain, x.reshape(2, 32, 3))


@pytest.mark.parametrize(
    "layer",
    [
        connectors.Resize((3, 4), name="r"),
        connectors.TokensToMap(2, 3, name="t"),
        connectors.MapToTokens(1, name="m"),
    ],
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


def shaped(shape, name):
    """A classifier whose layer "tap" has this shape."""
    inputs = keras.Input((6,))
    x = keras.layers.Dense(int(np.prod(shape)), name="hidden")(inputs)
    x = keras.layers.Reshape(shape, name="tap")(x)
    x = keras.layers.Flatten(name="flat")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x), name=name)


FITTED = {
    "channels": ((4, 4, 3), (4, 4, 13)),
    "height and width": ((8, 5, 3), (4, 7, 13)),
    "adaptive cells": ((8, 8, 3), (5, 3, 13)),
    "tokens to a map": ((25, 3), (2, 3, 13)),
    "a map to tokens": ((6, 4, 3), (7, 13)),
    "tokens": ((9, 3), (5, 13)),
    "vectors": ((3,), (13,)),
    "a map to a vector": ((4, 4, 3), (13,)),
    "tokens to a vector": ((9, 3), (13,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FITTED)
def test_a_wrapper_trains_and_saves_the_connector_and_exports_none(kind, tmp_path):
    mine, theirs = FITTED[kind]
    teacher, student = shaped(theirs, "teacher"), shaped(mine, "student")
    variables = [v.path for v in student.variables]
    term = kd.Term(kd.losses.Hint(), "tap", "tap", connector="auto")
    model = kd.Distiller(teacher, student, term)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    connector = model.terms[0].connectors[0]
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    frozen = [keras.ops.convert_to_numpy(v) for v in teacher.variables]
    model.fit(random(8, 6), np.arange(8) % 3, batch_size=8, verbose=0)
    trained = {id(v) for v in model.trainable_variables}
    assert trained == {id(v) for v in [*student.variables, *connector.variables]}
    for old, variable in zip(before, model.trainable_variables):
        assert np.any(old != keras.ops.convert_to_numpy(variable))
    for old, variable in zip(frozen, teacher.variables):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), old)
    model.save(tmp_path / "w.keras")
    loaded = keras.saving.load_model(tmp_path / "w.keras")
    x = random(4, *mine)
    np.testing.assert_array_equal(run(loaded.terms[0].connectors[0], x), run(connector, x))
    student.save(tmp_path / "s.keras")
    alone = keras.saving.load_model(tmp_path / "s.keras")
    assert [v.path for v in alone.variables] == variables
    assert 13 not in {size for v in alone.variables for size in v.shape}


@pytest.mark.slow
@pytest.mark.tensorflow
def test_no_export_holds_a_connector(tmp_path):
    """The teacher's 13 channels, which the connectors alone share, are in no exported tensor."""
    import tensorflow as tf

    mine, theirs = FITTED["height and width"]
    teacher, student = shaped(theirs, "teacher"), shaped(mine, "student")
    terms = [
        kd.Term(kd.losses.Hint(), "tap", "tap", connector="auto"),
        kd.Term(kd.losses.Hint(), "tap", "tap", name="given", connector=regressor(theirs)),
    ]
    model = kd.Distiller(teacher, student, terms)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(random(8, 6), np.arange(8) % 3, batch_size=8, verbose=0)
    served = tf.saved_model.load(str(kd.export.saved_model(model, tmp_path / "served")))
    assert len(served.variables) == len(student.variables)
    assert 13 not in {size for v in served.variables for size in v.shape}
    path = kd.export.tflite(model, tmp_path / "s.tflite")
    interpreter = tf.lite.Interpreter(str(path))
    sizes = {int(n) for t in interpreter.get_tensor_details() for n in t["shape"]}
    assert 13 not in sizes and 3 in sizes
    x = random(4, 6)
    np.testing.assert_allclose(served.serve(x), student(x), rtol=1e-5, atol=1e-6)


def regressor(target_shape):
    """Sizes, then channels, by layers of the papers."""
    return keras.Sequential(
        [connectors.Resize(target_shape[:2]), kd.regressors.ConvBatchNorm(target_shape[-1])]
    )


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_connectors_stay_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    connector = connectors.automatic((None, 8, 8, 4), (None, 4, 4, 6))
    outputs = connector(random(2, 8, 8, 4))
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
