"""keras-cv backbones as classifiers: no download, stages tapped, folded exactly."""

import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill import _keras
from keras_distill import backbones
from keras_distill import folding
from keras_distill import heads
from keras_distill import taps

keras_cv = pytest.importorskip("keras_cv")

TINY_MOBILENET = (
    (1, 8, 3, 2, 0.25, "relu"),
    (2, 16, 3, 1, None, "relu"),
    (2, 16, 3, 1, 0.25, "hard_swish"),
)


def resnet(**kwargs):
    options = {"filters": (8, 16), "blocks": (1, 2), "strides": (1, 2), "block_type": "block"}
    return backbones.cv_resnet(5, (32, 32, 3), **(options | kwargs))


def resnet_v2():
    return backbones.cv_resnet_v2(5, (32, 32, 3), filters=(8,), blocks=(2,), strides=(1,))


def mobilenet():
    return backbones.cv_mobilenet_v3(5, (32, 32, 3), blocks=TINY_MOBILENET, alpha=0.5)


BUILDERS = {"resnet": resnet, "resnet_v2": resnet_v2, "mobilenet": mobilenet}


def images():
    return np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize("name", BUILDERS)
def test_stages_are_tapped_through_the_nested_backbone(name):
    model = BUILDERS[name]()
    stages = backbones.stages(model)
    assert all(path.startswith("backbone/") for path in stages.values())
    outputs = taps.tap(model, list(stages.values()), logits=True)(images())
    np.testing.assert_array_equal(array(outputs["prediction"]), array(model(images())))
    np.testing.assert_array_equal(array(outputs["logits"]), array(outputs["prediction"]))
    backbone = model.get_layer("backbone")
    for path in stages.values():
        layer = backbone.get_layer(path.removeprefix("backbone/"))
        expected = keras.Model(backbone.input, layer.output)(images())
        np.testing.assert_array_equal(array(outputs["features"][path]), array(expected))
    assert heads.head_of(model) == "linear"


@pytest.mark.parametrize("name", BUILDERS)
def test_folding_is_within_1e_5_after_training(name):
    model = BUILDERS[name]()
    twin = taps.tap(model, fold_batch_norm=True)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    folded = [
        layer
        for layer in _keras.flatten_layers(twin)
        if isinstance(layer, folding.FoldedConvolution)
    ]
    assert len(folded) >= 2
    if name == "mobilenet":
        kinds = {type(layer.convolution) for layer in folded}
        assert kinds == {keras.layers.Conv2D, keras.layers.DepthwiseConv2D}
    expected = array(model(images()))
    np.testing.assert_allclose(array(twin(images())["prediction"]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_training_through_the_twin_is_training_the_model(name):
    results = []
    for tapped in (False, True):
        keras.utils.set_random_seed(0)
        model = BUILDERS[name]()
        path = list(backbones.stages(model).values())[-1]
        run = taps.tap(model, path) if tapped else model
        output = run(images(), training=True)
        output = output["prediction"] if tapped else output
        results.append([array(output), *[array(v) for v in model.non_trainable_variables]])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_small_and_the_large_mobilenet_have_the_papers_blocks():
    small, large = backbones.MOBILENET_V3_SMALL, backbones.MOBILENET_V3_LARGE
    assert [len(small), len(large)] == [11, 15]
    assert [np.prod([block[3] for block in blocks]) for blocks in (small, large)] == [16, 16]


def test_saving_keeps_the_classifier(tmp_path):
    model = resnet()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(loaded(images())), array(model(images())))
    assert backbones.stages(loaded) == backbones.stages(model)


def test_an_instance_becomes_a_classifier():
    backbone = keras_cv.models.ResNetBackbone(
        stackwise_filters=[8],
        stackwise_blocks=[1],
        stackwise_strides=[1],
        block_type="block",
        include_rescaling=False,
        input_shape=(32, 32, 3),
    )
    model = backbones.cv_classifier(
        backbone, 3, activation="softmax", pooling="max", dropout=0.2, name="mine"
    )
    assert model.name == "mine" and heads.head_of(model) == "softmax"
    np.testing.assert_allclose(array(model(images())).sum(-1), 1, rtol=1e-5)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="at least 2 for each stage"):
        backbones.cv_resnet_v2(3, filters=(8, 8), blocks=(2, 1), strides=(1, 2))
    with pytest.raises(ValueError, match="begin with 64"):
        backbones.cv_resnet(3, filters=(8, 8), blocks=(1, 1), strides=(1, 2))
    with pytest.raises(ValueError, match="one entry for each stage"):
        backbones.cv_resnet(3, filters=(64, 8), blocks=(1,), strides=(1, 2))
    with pytest.raises(TypeError, match="`backbone` to be a backbone"):
        backbones.cv_classifier("resnet18", 3)
    with pytest.raises(ValueError, match="`pooling`"):
        resnet(pooling="sum")
    with pytest.raises(ValueError, match="one map"):
        backbones.cv_classifier(backbones.small_cnn(), 3)


def test_its_absence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    with pytest.raises(ImportError, match=r'pip install "keras-distill\[cv\]"'):
        mobilenet()


def test_stages_of_a_model_that_names_none():
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="list_taps"):
        backbones.stages(keras.Model(inputs, keras.layers.Dense(2)(inputs)))
