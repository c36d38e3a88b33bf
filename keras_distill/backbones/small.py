"""Little convolutional networks, for small images and quick runs (the demo's)."""

from collections.abc import Sequence

import keras
from keras import layers

from keras_distill import _checks


def small_cnn(
    input_shape: tuple[int, ...] = (8, 8, 1),
    classes: int = 10,
    channels: int | Sequence[int] = 32,
    dropout: float = 0.0,
    classifier_activation: str | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a network of three 3x3 convolutions, 2x2 pooling, and a dense head.

    For images from 8 x 8 (digits) to 32 x 32. Layers "stem", "stage1", "stage2", "pool" and
    "head" can be tapped; the stages have 1 and 2 times the channels and half and a quarter
    of the height and width.

    Args:
        input_shape: Shape of an image, `(height, width, channels)`, at least 4 x 4.
        classes: Number of classes.
        channels: Channels of the stem: 32 for a teacher of digits, 4 for a student. Or three
            numbers: stem and stages.
        dropout: Rate of the dropout before the head.
        classifier_activation: Activation of the head. Defaults to none: logits.
        name: Name of the model. Defaults to "small_cnn_CHANNELS".

    Returns:
        A functional `keras.Model`.
    """
    stem, stage1, stage2 = widths = _widths(channels)
    classes = _checks.positive_integer("classes", classes)
    if len(input_shape) != 3 or any(s is not None and s < 4 for s in input_shape[:2]):
        expected = "`input_shape` to be (height, width, channels), at least 4 x 4"
        raise ValueError(_checks.message(expected, "input_shape", input_shape))
    inputs = keras.Input(input_shape, name="image")
    x = _block(inputs, stem, "stem")
    x = layers.MaxPooling2D(name="stem_pool")(x)
    x = _block(x, stage1, "stage1")
    x = layers.MaxPooling2D(name="stage1_pool")(x)
    x = _block(x, stage2, "stage2")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Dense(classes, activation=classifier_activation, name="head")(x)
    given = widths if isinstance(channels, (tuple, list)) else widths[:1]
    return keras.Model(inputs, x, name=name or "_".join(map(str, ["small_cnn", *given])))


def _widths(channels):
    if isinstance(channels, (tuple, list)):
        if len(channels) != 3:
            expected = "`channels` to be a number, or the channels of the stem and two stages"
            raise ValueError(_checks.message(expected, "channels", channels))
        return [_checks.positive_integer("channels", width) for width in channels]
    channels = _checks.positive_integer("channels", channels)
    return [channels, channels, 2 * channels]


def _block(x, channels, name):
    x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return layers.Activation("relu", name=name)(x)
