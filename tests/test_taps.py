"""`tap`: the twin computes what the model computes, returns what is asked, and leaves no trace."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_distill import _keras
from keras_distill import taps


def images(batch=4, shape=(8, 8, 3), seed=0):
    return np.random.default_rng(seed).normal(size=(batch, *shape)).astype("float32")


def backbone(name="backbone"):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU(name="stage1")(x)
    x = layers.Dropout(0.3, seed=7, name="drop")(x)
    x = layers.Conv2D(6, 3, strides=2, activation="relu", name="stage2")(x)
    return keras.Model(inputs, x, name=name)


def nested(activation="softmax"):
    inputs = keras.Input((8, 8, 3), name="image")
    x = backbone()(inputs)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.5, seed=3, name="dropout")(x)
    x = layers.Dense(5, activation=activation, name="head")(x)
    return keras.Model(inputs, x, name="classifier")


def array(x):
    return keras.tree.map_structure(ops.convert_to_numpy, x)


def assert_equal(actual, expected):
    keras.tree.assert_same_structure(actual, expected)
    for a, b in zip(keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True):
        np.testing.assert_array_equal(array(a), array(b))


def test_prediction_is_identical_and_features_are_the_layers():
    model = nested()
    x = images()
    outputs = taps.tap(model, ["backbone/stage1", "backbone", "pool"])(x)
    assert_equal(outputs["prediction"], model(x))
    inner = model.get_layer("backbone")
    stage1 = keras.Model(inner.input, inner.get_layer("stage1").output)
    assert_equal(outputs["features"]["backbone/stage1"], stage1(x))
    assert_equal(outputs["features"]["backbone"], inner(x))
    assert outputs["features"]["pool"].shape == (4, 6)
    assert set(outputs) == {"prediction", "features"}


def test_no_paths_and_one_path_as_a_string():
    model = nested()
    assert taps.tap(model)(images())["features"] == {}
    assert list(taps.tap(model, "pool")(images())["features"]) == ["pool"]


def test_an_input_and_the_output_can_be_tapped():
    outputs = taps.tap(nested(), ["image", "head"])(images())
    assert_equal(outputs["features"]["image"], images())
    assert_equal(outputs["features"]["head"], outputs["prediction"])


def test_variables_are_shared():
    model = nested()
    twin = taps.tap(model, ["backbone/stage1"])
    assert {id(v) for v in twin.variables} == {id(v) for v in model.variables}
    for weight in model.trainable_variables:
        weight.assign(weight + 0.1)
    assert_equal(twin(images())["prediction"], model(images()))


def test_training_is_passed_through_nested_models():
    """Same dropout masks, same batch statistics, same moving averages as the model."""
    results = []
    for tapped in (False, True):
        keras.utils.set_random_seed(0)
        model = nested()
        run = taps.tap(model, ["backbone/stage1"]) if tapped else model
        outputs = [run(images(), training=True) for _ in range(2)]
        outputs = [o["prediction"] for o in outputs] if tapped else outputs
        results.append((outputs, [array(v) for v in model.non_trainable_variables]))
        assert not np.allclose(array(outputs[0]), array(model(images())))
    assert_equal(results[0], results[1])


def test_training_fixed_at_construction_is_kept():
    inputs = keras.Input((8, 8, 3))
    x = backbone()(inputs, training=False)
    model = keras.Model(inputs, layers.Flatten()(x))
    outputs = taps.tap(model, ["backbone/stage2"])(images())
    assert_equal(outputs["prediction"], model(images()))


def test_regularizers_activity_and_layer_losses_are_those_of_the_model():
    class AddsLoss(layers.Layer):
        def call(self, x):
            self.add_loss(ops.mean(x))
            return x

    inner_inputs = keras.Input((6,))
    x = layers.Dense(4, kernel_regularizer="l2", activity_regularizer="l2", name="d")(inner_inputs)
    inner = keras.Model(inner_inputs, AddsLoss(name="adds")(x), name="inner")
    inputs = keras.Input((6,))
    x = layers.Dense(3, activation="softmax", activity_regularizer="l2", name="head")(inner(inputs))
    model = keras.Model(inputs, x)
    x = images(shape=(6,))
    model(x)
    expected = sorted(float(v) for v in model.losses)
    twin = taps.tap(model, ["inner/d"], logits=True)
    twin(x)
    assert len(expected) == 4
    np.testing.assert_allclose(sorted(float(v) for v in twin.losses), expected, rtol=1e-6)


def test_masks_reach_the_prediction():
    inner_inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True, name="embed")(inner_inputs)
    x = layers.LSTM(3, return_sequences=True, name="lstm")(x)
    inner = keras.Model(inner_inputs, x, name="inner")
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(inner(inputs)))
    tokens = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 1]])
    expected = model(tokens)
    outputs = taps.tap(model, ["inner/lstm", "inner/embed"], logits=True)(tokens)
    assert_equal(outputs["prediction"], expected)
    assert _keras.get_keras_mask(expected) is not None
    for tensor in (outputs["prediction"], outputs["logits"], *outputs["features"].values()):
        assert_equal(_keras.get_keras_mask(tensor), _keras.get_keras_mask(expected))


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_several_inputs_and_outputs(structure):
    a, b = keras.Input((8, 8, 3), name="a"), keras.Input((4,), name="b")
    x = layers.Flatten(name="flat")(backbone()(a))
    x = layers.Concatenate(name="both")([x, layers.Dense(4, name="dense")(b)])
    one, two = layers.Dense(2, name="one")(x), layers.Dense(3, name="two")(x)
    if structure == "dict":
        model = keras.Model({"a": a, "b": b}, {"one": one, "two": two})
        x = {"a": images(), "b": images(shape=(4,))}
    else:
        model = keras.Model([a, b], [one, two])
        x = [images(), images(shape=(4,))]
    outputs = taps.tap(model, ["backbone/stage1", "both"])(x)
    assert_equal(outputs["prediction"], model(x))
    assert outputs["features"]["backbone/stage1"].shape == (4, 8, 8, 4)


def test_an_output_list_of_one_is_unpacked_as_keras_does():
    inputs = keras.Input((4,))
    model = keras.Model([inputs], [layers.Dense(2, name="d")(inputs)])
    x = images(shape=(4,))
    assert_equal(taps.tap(model, "d")([x])["prediction"], model([x]))


def test_shared_layers_are_named_by_their_calls():
    first, second = keras.Input((8, 8, 3), name="first"), keras.Input((8, 8, 3), name="second")
    shared = backbone()
    x = layers.Subtract()([shared(first), shared(second)])
    model = keras.Model([first, second], x)
    with pytest.raises(
        ValueError, match="called 2 times: choose one of 'backbone@0', 'backbone@1'"
    ):
        taps.tap(model, "backbone")
    twin = taps.tap(model, ["backbone@0/stage1", "backbone@1/stage1", "backbone@1"])
    x = [images(seed=1), images(seed=2)]
    outputs = twin(x)
    assert_equal(outputs["prediction"], model(x))
    stage1 = keras.Model(shared.input, shared.get_layer("stage1").output)
    assert_equal(outputs["features"]["backbone@0/stage1"], stage1(x[0]))
    assert_equal(outputs["features"]["backbone@1/stage1"], stage1(x[1]))
    assert_equal(outputs["features"]["backbone@1"], shared(x[1]))
    # Asked of one call only, the other call still works.
    only = taps.tap(model, ["backbone@1/stage1"])(x)
    assert_equal(only["features"]["backbone@1/stage1"], stage1(x[1]))


def test_sequential_with_nested_models():
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv"), layers.ReLU(name="relu")],
        name="inner",
    )
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), backbone_like(inner), layers.Dense(3, name="head")]
    )
    outputs = taps.tap(model, ["middle/inner/relu", "head"])(images())
    assert_equal(outputs["prediction"], model(images()))
    assert_equal(outputs["features"]["middle/inner/relu"], inner(images()))


def backbone_like(inner):
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, layers.GlobalMaxPooling2D(name="pool")(inner(inputs)), name="middle")


def test_operations_and_layers_with_several_outputs():
    inputs = keras.Input((4,))
    x = ops.relu(inputs)
    outputs, state, carry = layers.LSTM(3, return_state=True, name="lstm")(ops.expand_dims(x, 1))
    model = keras.Model(inputs, layers.Dense(2, name="head")(outputs + state + carry))
    relu = next(name for name in taps.list_taps(model) if "relu" in name)
    features = taps.tap(model, [relu, "lstm"])(images(shape=(4,)))["features"]
    assert_equal(features[relu], np.maximum(images(shape=(4,)), 0))
    assert [tuple(t.shape) for t in features["lstm"]] == [(4, 3)] * 3
    assert taps.list_taps(model)["lstm"] == [(None, 3)] * 3


def test_list_taps_gives_paths_and_shapes():
    listed = taps.list_taps(nested())
    assert listed["backbone/stage2"] == (None, 3, 3, 6)
    assert listed["head"] == (None, 5)
    assert next(iter(listed)) == "image"


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    model = nested()
    outputs = taps.tap(model, ["backbone/stage1"], logits=True)(images())
    assert_equal(outputs["prediction"], model(images()))
    assert (
        keras.backend.standardize_dtype(outputs["features"]["backbone/stage1"].dtype) == "float16"
    )


# What tapping must not do to the model.


def test_the_model_is_left_as_it_was(tmp_path):
    model = nested()
    x = images()
    expected = array(model(x))
    tensor = model.get_layer("pool").output
    config = model.to_json()
    twins = [
        taps.tap(model, ["backbone/stage1"], logits=True, fold_batch_norm=fold)
        for fold in (False, True)
    ]
    for twin in twins:
        np.testing.assert_allclose(array(twin(x)["prediction"]), expected, atol=1e-6)
    assert model.get_layer("pool").output is tensor
    assert model.get_layer("backbone").get_layer("stage1").output.shape == (None, 8, 8, 4)
    assert model.to_json() == config
    assert model.get_layer("head").activation is keras.activations.softmax
    keras.models.clone_model(model)(x)
    model.save(tmp_path / "model.keras")
    assert_equal(keras.models.load_model(tmp_path / "model.keras")(x), expected)
    extended = keras.Model(model.input, layers.Dense(2)(model.get_layer("pool").output))
    assert extended(x).shape == (4, 2)


def test_a_tap_of_a_tap():
    twin = taps.tap(nested(), ["backbone/stage1", "pool"], logits=True)
    again = taps.tap(twin, ["pool"])(images())
    assert_equal(again["prediction"], twin(images()))


def test_the_twin_trains_the_model():
    model = nested(activation=None)
    twin = taps.tap(model, ["backbone/stage1"])

    class Wrapper(keras.Model):
        def __init__(self):
            super().__init__()
            self.twin = twin

        def call(self, x, training=None):
            return self.twin(x, training=training)["prediction"]

    before = array(model.get_layer("backbone").get_layer("conv").kernel)
    wrapper = Wrapper()
    wrapper.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    wrapper.fit(images(), np.array([0, 1, 2, 3]), verbose=0)
    after = array(model.get_layer("backbone").get_layer("conv").kernel)
    assert np.abs(after - before).max() > 0
    assert wrapper.count_params() == model.count_params()


@pytest.mark.tensorflow
def test_the_twin_runs_compiled():
    import tensorflow as tf

    model = nested()
    twin = taps.tap(model, ["backbone/stage1"], logits=True, fold_batch_norm=True)
    expected = array(model(images()))
    for jit_compile in (False, True):
        run = tf.function(lambda x: twin(x, training=False), jit_compile=jit_compile)
        np.testing.assert_allclose(array(run(images())["prediction"]), expected, atol=1e-6)


# Errors.


def test_a_missing_path_names_the_nearest_and_what_exists():
    with pytest.raises(ValueError, match="Did you mean 'backbone/stage2'") as error:
        taps.tap(nested(), "stage2")
    assert "paths='stage2'" in str(error.value)
    assert "It has: 'image', 'backbone', 'pool', 'dropout', 'head'" in str(error.value)
    with pytest.raises(ValueError, match="'backbone' has: .*'backbone/stage1'"):
        taps.tap(nested(), ["pool", "backbone/stag1"])
    with pytest.raises(ValueError, match="`teacher` to name .* teacher='nothing'"):
        taps.check_paths(nested(), "nothing", argument="teacher")


def test_a_path_into_a_layer_that_is_no_model():
    with pytest.raises(ValueError, match="'head' is not a model with a graph"):
        taps.tap(nested(), "head/kernel")


@pytest.mark.parametrize("paths", [3, [3], None, [["head"]]])
def test_paths_of_a_wrong_type(paths):
    with pytest.raises(TypeError, match="`paths` to be the path of a layer"):
        taps.tap(nested(), paths)


def test_models_without_a_graph():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    class Overrides(keras.Model):
        def __init__(self):
            inputs = keras.Input((4,))
            super().__init__(inputs, layers.Dense(2)(inputs))

        def call(self, x, training=None):
            return 2 * super().call(x, training=training)

    for model in (Subclassed(), Overrides(), keras.Sequential([layers.Dense(2)])):
        with pytest.raises(ValueError, match="functional model, `keras.Model"):
            taps.tap(model, "dense")
    with pytest.raises(TypeError, match="a Keras model"):
        taps.tap("resnet", "dense")


def test_a_nested_model_that_overrides_call_is_one_layer():
    class Doubled(keras.Model):
        def __init__(self):
            inputs = keras.Input((4,))
            super().__init__(inputs, layers.Dense(2, name="d")(inputs), name="doubled")

        def call(self, x, training=None):
            return 2 * super().call(x, training=training)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3)(Doubled()(inputs)))
    x = images(shape=(4,))
    outputs = taps.tap(model, "doubled")(x)
    assert_equal(outputs["prediction"], model(x))
    with pytest.raises(ValueError, match="'doubled' is not a model with a graph"):
        taps.tap(model, "doubled/d")
