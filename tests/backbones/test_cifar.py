"""CIFAR ResNets and WRNs: shapes, names, and parameters counted layer by layer."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill import backbones
from keras_distill import taps


def trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def conv(size, inputs, outputs):
    return size * size * inputs * outputs


def norm(channels):
    return 2 * channels


def resnet_parameters(depth, classes, widths):
    """Stem; n blocks of two 3x3 convolutions a stage; a projection where the shape changes."""
    n = (depth - 2) // 6
    channels = widths[0]
    total = conv(3, 3, channels) + norm(channels)
    for stage, width in enumerate(widths[1:]):
        for block in range(n):
            total += conv(3, channels, width) + conv(3, width, width) + 2 * norm(width)
            if channels != width or (stage > 0 and block == 0):
                total += conv(1, channels, width) + norm(width)
            channels = width
    return total + (channels + 1) * classes


def wide_resnet_parameters(depth, k, classes):
    n = (depth - 4) // 6
    channels = 16
    total = conv(3, 3, 16)
    for width in (16 * k, 32 * k, 64 * k):
        for _ in range(n):
            total += norm(channels) + conv(3, channels, width)
            total += norm(width) + conv(3, width, width)
            if channels != width:
                total += conv(1, channels, width)
            channels = width
    return total + norm(channels) + (channels + 1) * classes


@pytest.mark.parametrize("depth", [8, 14, 20, 32])
def test_resnet_parameters(depth):
    model = backbones.resnet(depth, classes=100)
    assert trainable(model) == resnet_parameters(depth, 100, (16, 16, 32, 64))


@pytest.mark.parametrize("depth", [8, 32])
def test_resnet_x4_parameters(depth):
    model = backbones.resnet_x4(depth, classes=100)
    assert model.name == f"resnet{depth}x4"
    assert trainable(model) == resnet_parameters(depth, 100, (32, 64, 128, 256))


@pytest.mark.parametrize(("depth", "k"), [(10, 1), (16, 2), (40, 2)])
def test_wide_resnet_parameters(depth, k):
    model = backbones.wide_resnet(depth, k, classes=100)
    assert trainable(model) == wide_resnet_parameters(depth, k, 100)


def test_parameters_are_the_published_ones():
    """RepDistiller's networks for CIFAR-100: 0.28, 1.23, 7.43, 0.70 and 2.26 million."""
    assert resnet_parameters(20, 100, (16, 16, 32, 64)) == 278_324
    assert resnet_parameters(8, 100, (32, 64, 128, 256)) == 1_233_540
    assert resnet_parameters(32, 100, (32, 64, 128, 256)) == 7_433_860
    assert wide_resnet_parameters(16, 2, 100) == 703_284
    assert wide_resnet_parameters(40, 2, 100) == 2_255_156


@pytest.mark.slow
@pytest.mark.parametrize("depth", [44, 56, 110])
def test_deep_resnets(depth):
    model = backbones.resnet(depth)
    assert trainable(model) == resnet_parameters(depth, 10, (16, 16, 32, 64))


STAGES = {
    "stem": (32, 32, 16),
    "stage1": (32, 32, 16),
    "stage1_pre": (32, 32, 16),
    "stage2": (16, 16, 32),
    "stage2_pre": (16, 16, 32),
    "stage3": (8, 8, 64),
    "stage3_pre": (8, 8, 64),
    "pool": (64,),
    "head": (10,),
}


@pytest.mark.parametrize(
    "model", [lambda: backbones.resnet(14), lambda: backbones.wide_resnet(16, 1, dropout=0.3)]
)
def test_stages_can_be_tapped(model):
    model = model()
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    features = taps.tap(model, list(STAGES))(x)["features"]
    assert {path: tuple(tensor.shape[1:]) for path, tensor in features.items()} == STAGES
    for stage in ("stage3",) if model.name.startswith("wrn") else ("stage1", "stage2", "stage3"):
        pre = ops.convert_to_numpy(features[f"{stage}_pre"])
        np.testing.assert_array_equal(ops.convert_to_numpy(features[stage]), np.maximum(pre, 0))
    assert backbones.stages(model) == {f"stage{n}": f"stage{n}" for n in (1, 2, 3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        lambda: backbones.resnet(8, classes=3, input_shape=(16, 16, 1), width=4),
        lambda: backbones.wide_resnet(10, 1, classes=3, input_shape=(16, 16, 1)),
    ],
)
def test_every_variable_trains(model):
    model = model()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    x = np.random.default_rng(0).normal(size=(6, 16, 16, 1)).astype("float32")
    model.fit(x, np.arange(6) % 3, verbose=0)
    for old, variable in zip(before, model.trainable_variables, strict=True):
        assert np.abs(old - ops.convert_to_numpy(variable)).max() > 0, variable.path


def test_without_the_top_and_with_an_activation():
    assert backbones.resnet(8, include_top=False).output_shape == (None, 8, 8, 64)
    assert backbones.wide_resnet(10, 1, include_top=False).output_shape == (None, 8, 8, 64)
    model = backbones.resnet(8, classifier_activation="softmax", width=4)
    x = np.zeros((1, 32, 32, 3), "float32")
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("depth", [18, 7, 2, 0, 20.0])
def test_a_depth_that_is_no_resnet(depth):
    with pytest.raises(ValueError, match="`depth` to be"):
        backbones.resnet(depth)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="6n \\+ 4, such as 10, 16"):
        backbones.wide_resnet(20, 2)
    with pytest.raises(ValueError, match="channels of the stem and three stages"):
        backbones.resnet(8, width=(16, 32))
    with pytest.raises(ValueError, match="`classes`"):
        backbones.resnet(8, classes=0)
    with pytest.raises(ValueError, match="`dropout` to be in"):
        backbones.wide_resnet(10, 1, dropout=1.0)
