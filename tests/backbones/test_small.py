"""The demo's little networks."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill import backbones
from keras_distill import heads
from keras_distill import taps


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
def test_shapes_names_and_logits(shape):
    model = backbones.small_cnn(shape, classes=7, channels=4)
    listed = taps.list_taps(model)
    assert listed["stem"][1:] == (*shape[:2], 4)
    assert listed["stage1"][1:] == (shape[0] // 2, shape[1] // 2, 4)
    assert listed["stage2"][1:] == (shape[0] // 4, shape[1] // 4, 8)
    assert listed["pool"] == (None, 8)
    assert model.output_shape == (None, 7)
    assert heads.head_of(model) == "linear"


def test_three_widths():
    model = backbones.small_cnn((8, 8, 1), channels=(3, 5, 6))
    for layer, width in (("stem", 3), ("stage1", 5), ("stage2", 6)):
        assert taps.list_taps(model)[layer][-1] == width
    assert model.name == "small_cnn_3_5_6"


@pytest.mark.slow
def test_it_learns():
    model = backbones.small_cnn((8, 8, 1), classes=2, channels=4, dropout=0.1)
    y = np.arange(64) % 2
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 1)) + 2 * y[:, None, None, None]
    model.compile(
        keras.optimizers.Adam(0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x, y, epochs=10, verbose=0)
    predicted = ops.convert_to_numpy(model(x, training=True)).argmax(-1)
    assert (predicted == y).mean() > 0.9


def test_wrong_arguments():
    with pytest.raises(ValueError, match="at least 4 x 4"):
        backbones.small_cnn((3, 3, 1))
    with pytest.raises(ValueError, match="`channels`"):
        backbones.small_cnn(channels=0)
    with pytest.raises(ValueError, match="two stages"):
        backbones.small_cnn(channels=(8, 16))
    with pytest.raises(ValueError, match="`channels`"):
        backbones.small_cnn(channels=(8, 16, 0))
