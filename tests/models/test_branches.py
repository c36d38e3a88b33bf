"""Fresh branches: the same layers after the cut, weights of their own."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_distill as kd
from keras_distill import _keras
from keras_distill.models.branches import fresh_branch
from keras_distill.models.branches import shift_seeds
from tests.models import nets


def assert_same_function(model, branch, path, x):
    """With the weights of the original, the branch computes what the model does from there."""
    originals = weights_after(model, branch)
    before = [nets.array(v) for v in branch.weights]
    for variable, original in zip(branch.weights, originals, strict=True):
        variable.assign(original)
    outputs = kd.tap(model, [path])(x)
    actual = nets.predict(branch, outputs["features"][path])
    keras.tree.assert_same_structure(actual, outputs["prediction"])
    for a, b in zip(keras.tree.flatten(actual), keras.tree.flatten(outputs["prediction"])):
        np.testing.assert_allclose(a, nets.array(b), rtol=1e-5, atol=1e-6)
    for variable, value in zip(branch.weights, before):
        variable.assign(value)


def weights_after(model, branch):
    """The model's variables that answer to the branch's, by the layers' names."""
    by_name = {layer.name: layer for layer in _keras.flatten_layers(model)}
    values = {}
    for layer in _keras.flatten_layers(branch):
        if list(layer._layers) or not layer.weights:
            continue
        for own, original in zip(layer.weights, by_name[layer.name].weights, strict=True):
            values[id(own)] = nets.array(original)
    return [values[id(v)] for v in branch.weights]


def assert_fresh(model, branch, trained):
    own = {id(v) for v in model.variables}
    assert not own & {id(v) for v in branch.variables}
    assert len(branch.trainable_variables) == trained
    originals = {id(v): value for v, value in zip(branch.weights, weights_after(model, branch))}
    kernels = [v for v in branch.trainable_variables if v.name == "kernel"]
    assert kernels
    for kernel in kernels:
        assert np.abs(nets.array(kernel) - originals[id(kernel)]).max() > 1e-3


def test_cifar_resnet():
    model = kd.backbones.resnet(8, 5, (16, 16, 3), width=4)
    branch = fresh_branch(model, "stage2", 1, "branch_2")
    assert branch.name == "branch_2"
    assert branch.input_shape == (None, 8, 8, 8)
    # A block of two convolutions and a shortcut, each with batch normalization, and the head.
    assert_fresh(model, branch, trained=3 * 3 + 2)
    x = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype("float32")
    assert_same_function(model, branch, "stage2", x)
    assert [v.shape for v in branch.weights] == [
        v.shape for v in model.weights[-len(branch.weights) :]
    ]


def test_wide_resnet():
    model = kd.backbones.wide_resnet(10, 1, 5, (16, 16, 3), dropout=0.2)
    x = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype("float32")
    assert_same_function(model, fresh_branch(model, "stage1", 1, "b"), "stage1", x)


def nested(activation="softmax", seed=None):
    inner_inputs = keras.Input((8, 8, 1), name="inner")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inner_inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU(name="stage1")(x)
    initializer = keras.initializers.GlorotUniform(seed=seed)
    y = layers.Conv2D(4, 3, padding="same", kernel_initializer=initializer, name="conv2")(x)
    x = layers.Dropout(0.5, seed=3, name="drop")(x + ops.relu(y))
    backbone = keras.Model(inner_inputs, x, name="backbone")
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.GlobalAveragePooling2D(name="pool")(backbone(inputs))
    outputs = layers.Dense(5, activation=activation, name="head")(x)
    return keras.Model(inputs, outputs, name="classifier")


@pytest.mark.parametrize("path", ["backbone/stage1", "backbone/conv", "backbone", "pool"])
def test_nested_backbone(path):
    model = nested()
    branch = fresh_branch(model, path, 1, "branch")
    expected = {"backbone/stage1": 4, "backbone/conv": 6, "backbone": 2, "pool": 2}[path]
    assert_fresh(model, branch, trained=expected)
    assert_same_function(model, branch, path, nets.images(5))


def test_keras_cv_backbone():
    pytest.importorskip("keras_cv")
    model = kd.backbones.cv_resnet(
        5, (32, 32, 3), filters=(8, 16), blocks=(1, 2), strides=(1, 2), block_type="block"
    )
    path = "backbone/" + next(iter(kd.backbones.stages(model.get_layer("backbone")).values()))
    branch = fresh_branch(model, path, 1, "branch")
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    assert_same_function(model, branch, path, x)
    stem = len(model.trainable_variables) - len(branch.trainable_variables)
    assert 0 < stem < len(model.trainable_variables)


def test_whole_nested_model_after_the_cut_is_copied_with_it():
    inner = nets.mlp(name="inner")
    inputs = keras.Input((nets.FEATURES,))
    x = layers.Dense(nets.FEATURES, name="stem")(inputs)
    model = keras.Model(inputs, inner(x))
    branch = fresh_branch(model, "stem", 1, "branch")
    assert_fresh(model, branch, trained=4)
    assert_same_function(model, branch, "stem", nets.vectors(5))


def test_several_outputs_and_a_mask():
    model = nets.two_heads("dict")
    branch = fresh_branch(model, "hidden", 1, "branch")
    assert set(branch.output) == {"zebra", "apple"}
    assert_same_function(model, branch, "hidden", nets.vectors(5))
    tagger = nets.tagger()
    branch = fresh_branch(tagger, "embedding", 1, "branch")
    feature = kd.tap(tagger, ["embedding"])(nets.token_ids())["features"]["embedding"]
    with pytest.warns(UserWarning, match="does not support masking"):  # Of any nested model.
        mask = _keras.get_keras_mask(branch(feature))
    np.testing.assert_array_equal(nets.array(mask), nets.token_ids() != 0)


def test_fixed_seeds_differ_from_branch_to_branch():
    model = nested(seed=11)
    kernels, seeds = [nets.array(model.get_layer("backbone").get_layer("conv2").kernel)], [3]
    for index in (1, 2):
        branch = fresh_branch(model, "backbone/stage1", index, "branch")
        kernels.append(nets.array(branch.get_layer("conv2").kernel))
        seeds.append(branch.get_layer("drop").seed)
    for i in range(3):
        for j in range(i):
            assert np.abs(kernels[i] - kernels[j]).max() > 1e-3
    assert len(set(seeds)) == 3


def test_shift_seeds_goes_deep():
    config = {"seed": 1, "a": [{"config": {"seed": {"config": {"seed": 5}}}}], "b": (2, None)}
    moved = {"seed": 11, "a": [{"config": {"seed": {"config": {"seed": 15}}}}], "b": (2, None)}
    assert shift_seeds(config, 10) == moved
    assert shift_seeds({"seed": None}, 10) == {"seed": None}


def test_frozen_and_adapted_layers_keep_their_values():
    inputs = keras.Input((nets.FEATURES,))
    x = layers.Dense(4, name="stem")(inputs)
    normalization = layers.Normalization(name="normalization")
    x = normalization(x)
    x = layers.Dense(4, name="frozen", trainable=False)(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    normalization.adapt(np.random.default_rng(0).normal(3.0, 2.0, (32, 4)))
    branch = fresh_branch(model, "stem", 1, "branch")
    for name in ("frozen", "normalization"):
        own, original = branch.get_layer(name), model.get_layer(name)
        for a, b in zip(own.weights, original.weights, strict=True):
            np.testing.assert_array_equal(nets.array(a), nets.array(b))
    own = branch.get_layer("normalization")
    np.testing.assert_array_equal(nets.array(own.mean), nets.array(normalization.mean))
    assert not branch.get_layer("frozen").trainable
    assert len(branch.trainable_variables) == 2


@keras.saving.register_keras_serializable(package="tests")
class NoConfig(layers.Layer):
    def __init__(self, units):
        super().__init__(name="no_config")
        self.dense = layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


def skip_around():
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="conv1")(inputs)
    y = layers.Conv2D(4, 3, padding="same", name="inside")(x)
    x = layers.Add(name="sum")([x, y])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def called_twice():
    inner = nets.mlp(name="inner", classes=nets.FEATURES)
    inputs = keras.Input((nets.FEATURES,))
    return keras.Model(inputs, layers.Dense(3)(inner(inner(inputs))))


def without_config():
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="stem")(inputs)
    return keras.Model(inputs, NoConfig(3)(x))


def splits():
    inputs = keras.Input((4,))
    a, b = layers.Lambda(lambda x: [x, 2 * x], name="two")(layers.Dense(4)(inputs))
    return keras.Model(inputs, layers.Dense(3)(a + b))


@pytest.mark.parametrize(
    "make, path, message",
    [
        (skip_around, "inside", "pass through `branch_at`.*Received: branch_at='inside'.*ends a"),
        (nets.cnn, "head", "layers with weights after it.*branch_at='head'"),
        (nets.cnn, "stage9", "name a layer of the model.*Did you mean"),
        (called_twice, "inner@0/hidden", "called once.*called 2 times"),
        (without_config, "stem", "made anew.*'no_config' of type NoConfig"),
        (splits, "two", "a layer with one output"),
        (nets.Subclassed, "hidden", "a model with a graph"),
    ],
)
def test_bad_input(make, path, message):
    with pytest.raises(ValueError, match=message):
        fresh_branch(make(), path, 1, "branch")
