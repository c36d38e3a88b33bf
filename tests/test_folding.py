"""Folding batch normalization: the same outputs, from live variables, in inference only."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_distill import _keras
from keras_distill import folding
from keras_distill import taps


def images(shape=(8, 8, 4), seed=0):
    return np.random.default_rng(seed).normal(size=(3, *shape)).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def randomize(model, seed=0):
    """Moving statistics, scales and shifts as after a training."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if len(weight.shape) == 1:
            low = 0.5 if "variance" in weight.name or "gamma" in weight.name else -1.0
            weight.assign(rng.uniform(low, 2.0, weight.shape))


def pair(convolution, batch_norm=None, shape=(8, 8, 4)):
    inputs = keras.Input(shape)
    batch_norm = batch_norm or layers.BatchNormalization(name="bn")
    model = keras.Model(inputs, layers.ReLU(name="relu")(batch_norm(convolution(inputs))))
    randomize(model)
    return model


def folded_layers(model):
    return [
        layer
        for layer in _keras.flatten_layers(model)
        if isinstance(layer, folding.FoldedConvolution)
    ]


CONVOLUTIONS = {
    "plain": lambda: layers.Conv2D(6, 3),
    "no bias": lambda: layers.Conv2D(6, 3, use_bias=False),
    "strides": lambda: layers.Conv2D(6, 3, strides=2, padding="same"),
    "groups": lambda: layers.Conv2D(6, 3, groups=2, padding="same"),
    "dilation": lambda: layers.Conv2D(6, 3, dilation_rate=2),
    "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same"),
    "depthwise 2": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False),
    "depthwise strides": lambda: layers.DepthwiseConv2D(3, strides=2, padding="same"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_outputs_are_within_1e_5(name):
    model = pair(CONVOLUTIONS[name]())
    twin = taps.tap(model, fold_batch_norm=True)
    assert len(folded_layers(twin)) == 1
    expected = array(model(images()))
    np.testing.assert_allclose(array(twin(images())["prediction"]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("convolution", "shape"),
    [
        (lambda: layers.Conv1D(5, 3, padding="same"), (8, 4)),
        (lambda: layers.DepthwiseConv1D(3, depth_multiplier=3), (8, 4)),
        (lambda: layers.Conv3D(5, 2), (4, 4, 4, 2)),
    ],
)
def test_one_and_three_dimensions(convolution, shape):
    model = pair(convolution(), shape=shape)
    twin = taps.tap(model, fold_batch_norm=True)
    assert len(folded_layers(twin)) == 1
    x = images(shape)
    np.testing.assert_allclose(array(twin(x)["prediction"]), array(model(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"axis": 3}])
def test_options_of_the_normalization(options):
    model = pair(layers.Conv2D(6, 3), layers.BatchNormalization(**options))
    twin = taps.tap(model, fold_batch_norm=True)
    assert len(folded_layers(twin)) == 1
    np.testing.assert_allclose(
        array(twin(images())["prediction"]), array(model(images())), rtol=1e-5, atol=1e-5
    )


def test_channels_first_is_folded_over_its_own_axis():
    convolution = layers.Conv2D(6, 3, data_format="channels_first")
    convolution.build((None, 4, 8, 8))
    first, last = layers.BatchNormalization(axis=1), layers.BatchNormalization(axis=-1)
    assert folding.can_fold(convolution, first)
    assert not folding.can_fold(convolution, last)


def test_never_stale():
    model = pair(layers.Conv2D(6, 3))
    twin = taps.tap(model, fold_batch_norm=True)
    before = array(twin(images())["prediction"])
    randomize(model, seed=1)
    for weight in model.trainable_weights:
        weight.assign(1.5 * weight)
    after = array(twin(images())["prediction"])
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(after, array(model(images())), rtol=1e-5, atol=1e-5)


@pytest.mark.tensorflow
def test_never_stale_in_a_compiled_function():
    import tensorflow as tf

    model = pair(layers.Conv2D(6, 3))
    twin = taps.tap(model, fold_batch_norm=True)
    run = tf.function(lambda x: twin(x, training=False)["prediction"])
    run(images())
    randomize(model, seed=2)
    np.testing.assert_allclose(array(run(images())), array(model(images())), rtol=1e-5, atol=1e-5)


def test_training_is_not_folded():
    results = []
    for tapped in (False, True):
        keras.utils.set_random_seed(0)
        model = pair(layers.Conv2D(6, 3))
        run = taps.tap(model, fold_batch_norm=True) if tapped else model
        output = run(images(), training=True)
        output = output["prediction"] if tapped else output
        results.append([array(output), *[array(w) for w in model.weights]])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_frozen_normalization_is_folded_in_training_too():
    batch_norm = layers.BatchNormalization()
    model = pair(layers.Conv2D(6, 3), batch_norm)
    batch_norm.trainable = False
    output = taps.tap(model, fold_batch_norm=True)(images(), training=True)["prediction"]
    np.testing.assert_allclose(
        array(output), array(model(images(), training=True)), rtol=1e-5, atol=1e-5
    )


def test_half_precision_folds_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = pair(layers.Conv2D(6, 3))
    twin = taps.tap(model, fold_batch_norm=True)
    assert len(folded_layers(twin)) == 1
    output = twin(images())["prediction"]
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16"
    np.testing.assert_allclose(
        array(ops.cast(output, "float32")),
        array(ops.cast(model(images()), "float32")),
        rtol=0.05,
        atol=0.05,
    )


def test_adapters_enabled_later_are_seen():
    convolution = layers.Conv2D(6, 3)
    model = pair(convolution)
    twin = taps.tap(model, fold_batch_norm=True)
    convolution.enable_lora(2)
    convolution.lora_kernel_b.assign(np.ones(convolution.lora_kernel_b.shape))
    np.testing.assert_allclose(
        array(twin(images())["prediction"]), array(model(images())), rtol=1e-5, atol=1e-5
    )


def unfoldable():
    """Models in which nothing may be folded, with the paths to tap."""
    x = inputs = keras.Input((8, 8, 4))
    convolution = layers.Conv2D(4, 3, padding="same", name="conv")
    batch_norm = layers.BatchNormalization(name="bn")
    y = convolution(x)
    yield "used twice", keras.Model(inputs, layers.Add()([y, batch_norm(y)])), ()
    yield "an output", keras.Model(inputs, [y, batch_norm(y)]), ()
    yield "tapped", keras.Model(inputs, batch_norm(y)), ("conv",)
    yield "called twice", keras.Model(inputs, batch_norm(convolution(convolution(x)))), ()
    yield "relu", pair(layers.Conv2D(4, 3, activation="relu")), ()
    yield "activity", pair(layers.Conv2D(4, 3, activity_regularizer="l2")), ()
    yield "axis", pair(layers.Conv2D(4, 3), layers.BatchNormalization(axis=1)), ()
    yield "layer norm", pair(layers.Conv2D(4, 3), layers.LayerNormalization()), ()
    yield "separable", pair(layers.SeparableConv2D(4, 3)), ()
    yield "dtype", pair(layers.Conv2D(4, 3, dtype="mixed_bfloat16")), ()

    yield "causal", pair(layers.Conv1D(4, 3, padding="causal"), shape=(8, 4)), ()

    class Standardized(layers.Conv2D):
        """A convolution of its own."""

    yield "subclass", pair(Standardized(4, 3)), ()
    training = layers.BatchNormalization(name="bn2")(layers.Conv2D(4, 3)(x), training=True)
    yield "training", keras.Model(inputs, training), ()


def test_what_is_not_exactly_a_convolution_and_its_normalization_is_left():
    for reason, model, paths in unfoldable():
        twin = taps.tap(model, paths, fold_batch_norm=True)
        assert folded_layers(twin) == [], reason
        x = images(model.input_shape[1:])
        expected = keras.tree.flatten(model(x))
        for a, b in zip(keras.tree.flatten(twin(x)["prediction"]), expected, strict=True):
            np.testing.assert_array_equal(array(a), array(b), reason)


def test_taps_beside_a_fold():
    model = pair(layers.Conv2D(6, 3))
    features = taps.tap(model, ["bn", "relu"], fold_batch_norm=True)(images())["features"]
    plain = taps.tap(model, ["bn", "relu"])(images())["features"]
    for path in plain:
        np.testing.assert_allclose(array(features[path]), array(plain[path]), rtol=1e-5, atol=1e-5)
