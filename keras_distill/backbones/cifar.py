"""The networks of the CIFAR distillation papers: ResNet-8...110, the x4 widths, WRN-d-k.

Architectures as in RepDistiller (`models/resnet.py`, `models/wrn.py`), on which most
published distillation tables stand. All are functional models that return logits, with
layers named "stem", "stage1", "stage2", "stage3", "pool" and "head", and "stage1_pre" to
"stage3_pre" for the values before a stage's last ReLU.

Deviations from RepDistiller:
- "same" padding, which at stride 2 pads below and to the right only;
- the dense head starts as Keras's does (Glorot uniform, zero bias);
- any input size, through global average pooling.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from keras_distill import _checks

_STAGES = 3


def resnet(
    depth: int,
    classes: int = 10,
    input_shape: tuple[int, ...] = (32, 32, 3),
    width: int | Sequence[int] = 16,
    include_top: bool = True,
    classifier_activation: str | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a CIFAR ResNet of basic blocks, depth 6n + 2.

    He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2, in
    RepDistiller's form: where the shape changes, the shortcut is a 1x1 convolution with
    batch normalization (option B), not padding. Trainable parameters for 100 classes:
    ResNet-20 278,324, ResNet-8x4 1,233,540, ResNet-32x4 7,433,860.

    Args:
        depth: 8, 14, 20, 32, 44, 56, 110 or another 6n + 2.
        classes: Number of classes.
        input_shape: Shape of an image, `(height, width, channels)`.
        width: Channels of the stem; the stages have 1, 2 and 4 times as many. Or four
            numbers: stem and stages. The "x4" nets have `(32, 64, 128, 256)`.
        include_top: Whether to end in "pool" and "head", or at the map of "stage3".
        classifier_activation: Activation of the head. Defaults to none: logits.
        name: Name of the model. Defaults to "resnet" and the depth.

    Returns:
        A functional `keras.Model`.
    """
    blocks = _blocks(depth, 2)
    stem, *widths = _widths(width)
    inputs = keras.Input(input_shape, name="image")
    x = _convolution(stem, 3, 1, "stem_conv")(inputs)
    x = _batch_norm("stem_bn")(x)
    x = layers.Activation("relu", name="stem")(x)
    for stage, channels in enumerate(widths, start=1):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            last = block == blocks
            prefix = f"stage{stage}_block{block}"
            x = _basic_block(x, channels, stride, prefix, f"stage{stage}" if last else prefix)
    if include_top:
        x = _top(x, classes, classifier_activation)
    return keras.Model(inputs, x, name=name or f"resnet{depth}")


def resnet_x4(
    depth: int,
    classes: int = 10,
    input_shape: tuple[int, ...] = (32, 32, 3),
    name: str | None = None,
    **kwargs: Any,
) -> keras.Model:
    """Builds ResNet-8x4, ResNet-32x4, ...: `resnet` with channels 32, 64, 128, 256.

    Args:
        depth, classes, input_shape, name: As in `resnet`; the name defaults to "resnet8x4".
        **kwargs: Other arguments of `resnet`.
    """
    name = name or f"resnet{depth}x4"
    return resnet(depth, classes, input_shape, width=(32, 64, 128, 256), name=name, **kwargs)


def wide_resnet(
    depth: int,
    width: int,
    classes: int = 10,
    input_shape: tuple[int, ...] = (32, 32, 3),
    dropout: float = 0.0,
    include_top: bool = True,
    classifier_activation: str | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds WRN-d-k, a wide residual network with pre-activation, depth 6n + 4.

    Zagoruyko and Komodakis, "Wide Residual Networks" (BMVC 2016). Trainable parameters for
    100 classes: WRN-16-2 703,284, WRN-40-2 2,255,156. As in RepDistiller, "stage1" and
    "stage2" are the sums that leave the stages and "stage3" comes after the last batch
    normalization and ReLU; "stage1_pre" and "stage2_pre" are the normalized sums, before
    the ReLU that opens the next stage.

    Args:
        depth: 10, 16, 22, 28, 40 or another 6n + 4.
        width: The factor k: the stages have 16k, 32k and 64k channels.
        classes: Number of classes.
        input_shape: Shape of an image, `(height, width, channels)`.
        dropout: Rate of the dropout between the two convolutions of a block.
        include_top: Whether to end in "pool" and "head", or at the map of "stage3".
        classifier_activation: Activation of the head. Defaults to none: logits.
        name: Name of the model. Defaults to "wrn_DEPTH_WIDTH".

    Returns:
        A functional `keras.Model`.
    """
    blocks = _blocks(depth, 4)
    width = _checks.positive_integer("width", width)
    if not 0 <= dropout < 1:
        raise ValueError(_checks.message("`dropout` to be in [0, 1)", "dropout", dropout))
    inputs = keras.Input(input_shape, name="image")
    x = _convolution(16, 3, 1, "stem")(inputs)
    for stage in range(1, _STAGES + 1):
        channels = 16 * width * 2 ** (stage - 1)
        for block in range(1, blocks + 1):
            prefix = f"stage{stage}_block{block}"
            pre = f"stage{stage - 1}_pre" if stage > 1 and block == 1 else f"{prefix}_bn1"
            end = f"stage{stage}" if block == blocks and stage < _STAGES else prefix
            stride = 2 if stage > 1 and block == 1 else 1
            x = _wide_block(x, channels, stride, dropout, prefix, pre, end)
    x = _batch_norm("stage3_pre")(x)
    x = layers.Activation("relu", name="stage3")(x)
    if include_top:
        x = _top(x, classes, classifier_activation)
    return keras.Model(inputs, x, name=name or f"wrn_{depth}_{width}")


def _blocks(depth, extra):
    """The number n of blocks in a stage, from depth = 6n + extra."""
    depth = _checks.positive_integer("depth", depth)
    if depth < 6 + extra or (depth - extra) % 6:
        near = ", ".join(str(6 * n + extra) for n in (1, 2, 3, 5, 6, 9))
        expected = f"`depth` to be 6n + {extra}, such as {near}"
        raise ValueError(_checks.message(expected, "depth", depth))
    return (depth - extra) // 6


def _widths(width):
    if isinstance(width, (tuple, list)):
        if len(width) != _STAGES + 1:
            expected = "`width` to be a number, or the channels of the stem and three stages"
            raise ValueError(_checks.message(expected, "width", width))
        return [_checks.positive_integer("width", channels) for channels in width]
    width = _checks.positive_integer("width", width)
    return [width, width, 2 * width, 4 * width]


def _convolution(channels, size, stride, name):
    return layers.Conv2D(
        channels,
        size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(
            2.0, mode="fan_out", distribution="untruncated_normal"
        ),
        name=name,
    )


def _basic_block(x, channels, stride, prefix, end):
    shortcut = x
    if stride != 1 or x.shape[-1] != channels:
        shortcut = _convolution(channels, 1, stride, f"{prefix}_shortcut_conv")(x)
        shortcut = _batch_norm(f"{prefix}_shortcut_bn")(shortcut)
    x = _convolution(channels, 3, stride, f"{prefix}_conv1")(x)
    x = _batch_norm(f"{prefix}_bn1")(x)
    x = layers.Activation("relu", name=f"{prefix}_relu1")(x)
    x = _convolution(channels, 3, 1, f"{prefix}_conv2")(x)
    x = _batch_norm(f"{prefix}_bn2")(x)
    x = layers.Add(name=f"{end}_pre")([x, shortcut])
    return layers.Activation("relu", name=end)(x)


def _wide_block(x, channels, stride, dropout, prefix, pre, end):
    changes = stride != 1 or x.shape[-1] != channels
    shortcut = x
    x = _batch_norm(pre)(x)
    x = layers.Activation("relu", name=f"{prefix}_relu1")(x)
    if changes:
        shortcut = _convolution(channels, 1, stride, f"{prefix}_shortcut_conv")(x)
    x = _convolution(channels, 3, stride, f"{prefix}_conv1")(x)
    x = _batch_norm(f"{prefix}_bn2")(x)
    x = layers.Activation("relu", name=f"{prefix}_relu2")(x)
    if dropout:
        x = layers.Dropout(dropout, name=f"{prefix}_dropout")(x)
    x = _convolution(channels, 3, 1, f"{prefix}_conv2")(x)
    return layers.Add(name=end)([x, shortcut])


def _batch_norm(name):
    # PyTorch's momentum 0.1 is Keras's 0.9.
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)


def _top(x, classes, activation):
    classes = _checks.positive_integer("classes", classes)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return layers.Dense(classes, activation=activation, name="head")(x)
