"""Exits: the deepest feature, where exits may stand, their heads, parts of a model."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill import backbones
from keras_distill.models import exits
from keras_distill.models.sections import section
from tests.models import nets


def classifier(x, activation=None, classes=4, name="head"):
    return layers.Dense(classes, activation, name=name)(x)


def convolutional(size=8, top=None, name="net"):
    """Layers "stage1" (size / 2) and "stage2" (size / 4), then what `top` makes."""
    inputs = keras.Input((size, size, 2), name="image")
    x = layers.Conv2D(4, 3, 2, padding="same", activation="relu", name="stage1")(inputs)
    x = layers.Conv2D(6, 3, 2, padding="same", activation="relu", name="stage2")(x)
    x = top(x) if top else classifier(layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(inputs, x, name=name)


def residual(name="net"):
    """A residual connection inside "stage2", and layers "stage1", "inner", "stage2"."""
    inputs = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="stage1")(inputs)
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="inner")(x)
    x = layers.Add(name="stage2")([x, y])
    return keras.Model(inputs, classifier(layers.GlobalAveragePooling2D(name="pool")(x)), name=name)


def nested(name="outer", pooled=False):
    """`convolutional`'s layers inside a model "backbone"."""
    top = layers.GlobalAveragePooling2D(name="inner_pool") if pooled else layers.ReLU(name="end")
    backbone = convolutional(top=top, name="backbone")
    inputs = keras.Input((8, 8, 2), name="image")
    x = backbone(inputs)
    x = x if pooled else layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, classifier(x), name=name)


def images(count=3, size=8):
    return np.random.default_rng(0).normal(size=(count, size, size, 2)).astype("float32")


def pooled(then):
    return lambda x: then(layers.GlobalAveragePooling2D(name="pool")(x))


# The deepest feature.


def dropped_out(x):
    return classifier(layers.Dropout(0.5, name="dropout")(x))


def with_softmax_layer(x):
    return layers.Softmax(name="softmax")(classifier(x))


def flattened(x):
    return classifier(layers.Flatten(name="flat")(x), "softmax")


def hidden(x):
    return classifier(layers.Dense(5, "relu", name="hidden")(layers.Flatten(name="flat")(x)))


def of_1x1_convolutions(x):
    x = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    x = layers.Conv2D(7, 1, activation="relu", name="mix")(x)
    x = layers.Conv2D(4, 1, name="head")(x)
    return layers.Softmax(name="softmax")(layers.Flatten(name="flat")(x))


@pytest.mark.parametrize(
    ("top", "path", "width", "kind"),
    [
        (pooled(classifier), "pool", 6, "linear"),
        (pooled(dropped_out), "dropout", 6, "linear"),
        (pooled(with_softmax_layer), "pool", 6, "softmax"),
        (flattened, "flat", 24, "softmax"),
        (hidden, "hidden", 5, "linear"),
        (of_1x1_convolutions, "mix", 7, "softmax"),
    ],
    ids=["plain", "dropout", "softmax layer", "flatten", "hidden layer", "1x1 convolutions"],
)
def test_deepest_feature_is_what_the_last_dense_layer_reads(top, path, width, kind):
    found = exits.find_deepest(convolutional(top=top))
    assert (found.path, found.width, found.kind) == (path, width, kind)
    assert found.map_shape == (None, 2, 2, 6)
    assert found.classifier == "head"


def test_deepest_feature_in_nested_models():
    assert exits.find_deepest(nested()).path == "pool"
    assert exits.find_deepest(nested()).map_shape == (None, 2, 2, 6)
    inside = exits.find_deepest(nested(pooled=True))
    assert (inside.path, inside.map_shape) == ("backbone", (None, 2, 2, 6))
    top = keras.Sequential([keras.Input((6,), name="vector"), layers.Dense(4)], name="top")
    nested_head = exits.find_deepest(convolutional(top=pooled(top)))
    assert nested_head.path == "top/vector"
    assert (nested_head.width, nested_head.map_shape) == (6, (None, 2, 2, 6))


def test_sequential_models_serve():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, name="stage1"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(4, name="head"),
        ]
    )
    found = exits.find_deepest(model)
    assert found.path == "pool"
    assert exits.check_exits(model, ["stage1"], found) == ["stage1"]
    part = section(model, None, "stage1")
    assert [layer.name for layer in part.layers][1:] == ["stage1"]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: nets.two_heads(), "one output of shape"),
        (lambda: nets.tagger(), "one output of shape"),
        (lambda: nets.Subclassed(), "a graph of layers"),
        (lambda: convolutional(top=pooled(layers.ReLU(name="end"))), "end in a dense layer"),
    ],
    ids=["two outputs", "a label a token", "subclassed", "no dense layer"],
)
def test_models_that_do_not_end_in_a_dense_classifier(make, error):
    with pytest.raises(ValueError, match=error):
        exits.find_deepest(make())


# Where exits may stand.


def checked(model, paths):
    return exits.check_exits(model, paths, exits.find_deepest(model))


def test_exits_are_paths_from_shallow_to_deep():
    assert checked(convolutional(), ["stage1", "stage2"]) == ["stage1", "stage2"]
    assert checked(convolutional(), "stage1") == ["stage1"]
    assert checked(nested(), ["backbone/stage1", "backbone/stage2", "backbone"])


@pytest.mark.parametrize(
    ("paths", "error"),
    [
        ([], "at least one layer"),
        (["stage1", "stage1"], "each once"),
        (["stage7"], "Did you mean 'stage"),
        (["pool"], "before the model's own head.*exits='pool'"),
        (["head"], "before the model's own head.*exits='head'"),
        (["stage2", "stage1"], "'stage1' comes before 'stage2': swap them"),
    ],
    ids=["none", "twice", "missing", "deepest feature", "head", "deeper first"],
)
def test_exits_that_cannot_be(paths, error):
    with pytest.raises(ValueError, match=error):
        checked(convolutional(), paths)


def test_exits_without_a_map():
    model = convolutional(top=hidden)
    with pytest.raises(ValueError, match=r"return one map.*exits='flat'.*\(None, 24\)"):
        checked(model, ["stage1", "flat"])
    with pytest.raises(TypeError, match="`exits` to be the path"):
        checked(model, [3])


def test_exits_beside_the_way():
    inputs = keras.Input((8, 8, 2))
    a = layers.Conv2D(4, 3, name="a")(inputs)
    b = layers.Conv2D(4, 3, name="b")(inputs)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="sum")([a, b]))
    model = keras.Model(inputs, classifier(x))
    with pytest.raises(ValueError, match="side by side"):
        checked(model, ["a", "b"])
    assert checked(model, ["a", "sum"]) == ["a", "sum"]


def test_exits_deeper_first_in_a_nested_model():
    with pytest.raises(ValueError, match="'backbone/stage1' comes before 'backbone/stage2'"):
        checked(nested(), ["backbone/stage2", "backbone/stage1"])
    with pytest.raises(ValueError, match="comes before 'backbone'"):
        checked(nested(), ["backbone", "backbone/stage1"])


# Heads.


def bottleneck(model, path, **options):
    return exits.bottleneck(model, path, exits.find_deepest(model), name="exit", **options)


def strides(head):
    convolutions = [layer for layer in head.layers if "_conv1" in layer.name]
    return [layer.strides[0] for layer in convolutions if layer.name.startswith("block")]


@pytest.mark.parametrize("size", [8, 9, 16, 31])
def test_bottleneck_reaches_size_and_width_of_the_deepest(size):
    model = convolutional(size)
    head = bottleneck(model, "stage1")
    assert head.output_shape == (None, 6)
    assert head.get_layer("pool").input.shape == (None, *model.get_layer("stage2").output.shape[1:])
    assert strides(head) == [2]
    assert strides(bottleneck(model, "stage2")) == [1]


def test_bottleneck_of_several_blocks_doubles_the_channels():
    model = backbones.small_cnn((32, 32, 1), channels=4)
    deep = backbones.resnet(8, input_shape=(32, 32, 3), width=(4, 4, 8, 16))
    head = bottleneck(deep, "stage1")
    assert strides(head) == [2, 2]
    widths = [layer.filters for layer in head.layers if "conv" in layer.name]
    assert widths == [4, 8, 8, 16]
    assert bottleneck(model, "stem").output_shape == (None, 8)


def test_bottleneck_without_normalization_and_with_a_gate():
    model = convolutional(9)
    plain = bottleneck(model, "stage1", batch_norm=False)
    assert not plain.non_trainable_variables
    gated = bottleneck(model, "stage1", attention=True)
    assert gated.get_layer("gated").output.shape == (None, 5, 5, 4)
    maps = np.abs(np.random.default_rng(0).normal(size=(2, 5, 5, 4))).astype("float32")
    gate = keras.Model(gated.input, gated.get_layer("gated").output)
    values = nets.array(gate(maps))
    assert np.all(values >= 0) and np.all(values <= maps)


def test_bottleneck_of_tokens_and_of_sequences():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 2, 2, name="patches")(image)
    x = layers.Reshape((16, 6))(x)
    x = layers.ZeroPadding1D((1, 0), name="tokens")(x)  # in place of a class token
    x = layers.Dense(6, name="block")(x)
    pooled_tokens = layers.GlobalAveragePooling1D(name="pool")(x)
    transformer = keras.Model(image, classifier(pooled_tokens))
    head = bottleneck(transformer, "tokens")
    assert head.get_layer("grid").output.shape == (None, 4, 4, 6)
    assert head.output_shape == (None, 6)

    signal = keras.Input((32, 2))
    x = layers.Conv1D(4, 3, 2, padding="same", name="stage1")(signal)
    x = layers.Conv1D(8, 3, 2, padding="same", name="stage2")(x)
    waves = keras.Model(signal, classifier(layers.GlobalAveragePooling1D(name="pool")(x)))
    head = bottleneck(waves, "stage1")
    assert head.get_layer("pool").input.shape == (None, 8, 8)
    with pytest.raises(ValueError, match="known height and width"):
        bottleneck(waves, "stage1", attention=True)


def test_tokens_off_a_square_grid_are_refused():
    image = keras.Input((8, 4, 3))
    x = layers.Reshape((8, 12), name="tokens")(image)
    x = layers.Dense(6, name="block")(x)
    model = keras.Model(image, classifier(layers.GlobalAveragePooling1D(name="pool")(x)))
    with pytest.raises(ValueError, match=r"tokens on a square grid.*exits='tokens'.*8, 12"):
        bottleneck(model, "tokens")


def test_unknown_sizes_go_by_the_channels():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, 2, name="stage1")(inputs)
    x = layers.Conv2D(16, 3, 2, name="stage2")(x)
    model = keras.Model(inputs, classifier(layers.GlobalAveragePooling2D(name="pool")(x)))
    assert strides(bottleneck(model, "stage1")) == [2, 2]


# Parts of a model.


@pytest.mark.parametrize(
    ("make", "cuts"),
    [
        (convolutional, ["stage1", "stage2"]),
        (residual, ["stage1", "stage2"]),
        (nested, ["backbone/stage1", "backbone/stage2"]),
        (nested, ["backbone/stage1", "backbone"]),
        (lambda: nested(pooled=True), ["backbone/stage2"]),
        (lambda: convolutional(top=nested_top()), ["stage2", "top/squeeze"]),
    ],
    ids=["plain", "residual", "nested", "nested's end", "pooled inside", "into a nested"],
)
def test_parts_one_after_the_other_are_the_model(make, cuts):
    model, x = make(), images()
    expected = nets.array(model(x))
    values = x
    for start, end in zip([None, *cuts], [*cuts, None]):
        part = section(model, start, end)
        values = nets.array(part(values))
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)


def nested_top():
    inputs = keras.Input((2, 2, 6), name="map")
    x = layers.Conv2D(3, 1, name="squeeze")(inputs)
    x = layers.GlobalAveragePooling2D(name="inner_pool")(x)
    return keras.Model(inputs, classifier(x, name="inner_head"), name="top")


def test_a_part_holds_no_layer_that_it_does_not_need():
    model = nested()
    first = section(model, None, "backbone/stage1")
    assert {v.path for v in first.variables} == {"stage1/kernel", "stage1/bias"}
    last = section(model, "backbone/stage2")
    assert {id(v) for v in last.variables} == {id(v) for v in model.get_layer("head").variables}


def test_a_part_with_a_connection_past_its_start_is_refused():
    with pytest.raises(ValueError, match="'inner' to be a place at which 'net' can be cut"):
        section(residual(), "inner")
    with pytest.raises(ValueError, match="can be cut"):
        section(residual(), "inner", "stage2")
