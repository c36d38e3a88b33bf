"""keras-hub backbones and image classifiers, and keras.applications: built offline, tapped."""

import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill import backbones
from keras_distill import heads
from keras_distill import taps

keras_hub = pytest.importorskip("keras_hub")


def images(seed=0):
    return np.random.default_rng(seed).normal(size=(2, 32, 32, 3)).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def resnet(**kwargs):
    return backbones.hub_resnet(
        5,
        (32, 32, 3),
        filters=(64, 8),
        blocks=(1, 1),
        strides=(1, 2),
        stem_filters=64,
        stem_kernel_size=3,
        **kwargs,
    )


def vit(**kwargs):
    return backbones.hub_vit(
        5, (32, 32, 3), patch_size=8, layers=2, heads=2, channels=8, dropout_rate=0.1, **kwargs
    )


def mobilenet_backbone():
    return keras_hub.models.MobileNetBackbone(
        stackwise_expansion=[[16, 24], [32]],
        stackwise_num_blocks=[2, 1],
        stackwise_num_filters=[[8, 8], [16]],
        stackwise_kernel_size=[[3, 3], [5]],
        stackwise_num_strides=[[2, 1], [2]],
        stackwise_se_ratio=[[None, None], [0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish"]],
        stackwise_padding=[[1, 1], [2]],
        output_num_filters=32,
        input_num_filters=8,
        input_activation="hard_swish",
        output_activation="hard_swish",
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=32,
        squeeze_and_excite=0.5,
        image_shape=(32, 32, 3),
    )


def mobilenet():
    return backbones.hub_classifier(mobilenet_backbone(), 5)


def image_classifier():
    backbone = resnet().get_layer("backbone")
    return keras_hub.models.ResNetImageClassifier(
        backbone=backbone, num_classes=5, activation="softmax", dropout=0.3
    )


def application():
    return keras.applications.MobileNetV2(
        input_shape=(32, 32, 3), alpha=0.35, weights=None, classes=5
    )


# Name -> (builder, a path into it, its head).
MODELS = {
    "resnet": (resnet, None, "linear"),
    "mobilenet": (mobilenet, None, "linear"),
    "vit": (vit, "backbone/vit_encoder", "linear"),
    "image classifier": (image_classifier, None, "softmax"),
    "keras.applications": (application, "block_3_expand_relu", "softmax"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_taps_equal_the_model(name):
    build, path, head = MODELS[name]
    model = build()
    path = path or [p for p in taps.list_taps(model) if p.startswith("backbone/")][-2]
    assert heads.head_of(model) == head
    outputs = taps.tap(model, path, logits=True)(images())
    expected = array(model(images()))
    np.testing.assert_array_equal(array(outputs["prediction"]), expected)
    logits = array(outputs["logits"])
    probabilities = ops.softmax(logits) if head == "softmax" else logits
    np.testing.assert_allclose(array(probabilities), expected, atol=1e-6)
    assert outputs["features"][path].shape[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_training_and_folding_equal_the_model(name):
    build = MODELS[name][0]
    results = []
    for tapped in (False, True):
        keras.utils.set_random_seed(0)
        model = build()
        run = taps.tap(model, logits=True, fold_batch_norm=True) if tapped else model
        trained = run(images(), training=True)
        inferred = run(images(1), training=False)
        results.append([array(y["prediction"] if tapped else y) for y in (trained, inferred)])
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5, atol=1e-5)


def test_stages_are_keras_hubs_levels():
    model = resnet()
    stages = backbones.stages(model)
    features = taps.tap(model, list(stages.values()))(images())["features"]
    shapes = {stage: tuple(features[path].shape[1:]) for stage, path in stages.items()}
    assert shapes == {"P2": (8, 8, 64), "P3": (4, 4, 8)}


@pytest.mark.parametrize("pooling", ["token", "avg", "max"])
def test_pooling_of_tokens(pooling):
    model = vit(pooling=pooling)
    outputs = taps.tap(model, ["backbone", "pool"])(images())["features"]
    tokens = array(outputs["backbone"])
    expected = {"token": tokens[:, 0], "avg": tokens.mean(1), "max": tokens.max(1)}[pooling]
    np.testing.assert_allclose(array(outputs["pool"]), expected, rtol=1e-5, atol=1e-6)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="begin with 64"):
        backbones.hub_resnet(3, filters=(8, 8))
    with pytest.raises(ValueError, match="for a map of places"):
        resnet(pooling="token")


def test_its_absence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match=r'pip install "keras-distill\[hub\]"'):
        vit()
