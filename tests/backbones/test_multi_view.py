"""The network of the multi-view theorems, held against its formula in NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill import backbones
from keras_distill.backbones.multi_view import SmoothedReLU
from keras_distill.heads import head_of


def smoothed_relu(z, power, threshold):
    """The three pieces as the paper writes them, in float64."""
    z = np.asarray(z, "float64")
    bend = z**power / (power * threshold ** (power - 1))
    line = z - (1 - 1 / power) * threshold
    return np.where(z <= 0, 0.0, np.where(z <= threshold, bend, line))


@pytest.mark.parametrize(("power", "threshold"), [(3, 0.3), (4, 1.0), (1, 0.5)])
def test_smoothed_relu(power, threshold):
    values = np.linspace(-2.0, 2.0, 81).astype("float32")
    found = ops.convert_to_numpy(SmoothedReLU(power, threshold)(values))
    np.testing.assert_allclose(found, smoothed_relu(values, power, threshold), atol=1e-6)


def test_logits_are_sums_of_smoothed_relu(tmp_path):
    model = backbones.multi_view_cnn((5, 1, 7), 3, channels=2, power=3, deviation=0.5, seed=4)
    x = np.random.default_rng(0).normal(size=(4, 5, 1, 7)).astype("float32")
    filters = ops.convert_to_numpy(model.get_layer("filters").kernel).reshape(7, 3, 2)
    products = np.einsum("npd,dim->npim", x[:, :, 0].astype("float64"), filters)
    expected = smoothed_relu(products, 3, 0.3).sum(axis=(1, 3))
    logits = ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert head_of(model) == "linear"
    assert [weight.path for weight in model.trainable_weights] == ["filters/kernel"]
    again = backbones.multi_view_cnn((5, 1, 7), 3, channels=2, deviation=0.5, seed=4)
    assert np.array_equal(ops.convert_to_numpy(again(x)), logits)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.array_equal(ops.convert_to_numpy(loaded(x)), logits)


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_shape": (8, 2, 60)},
        {"channels": 0},
        {"power": 0.5},
        {"threshold": 0},
        {"classes": 0},
    ],
)
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match="Expected"):
        backbones.multi_view_cnn(**wrong)
