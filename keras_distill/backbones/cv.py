"""Classifiers on keras-cv backbones, built by configuration: nothing is downloaded.

keras-cv's preset names need the network even for a bare architecture; its classes do not.
"""

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill import _checks
from keras_distill.backbones import classifier


def cv_classifier(
    backbone: keras.Model,
    classes: int,
    activation: str | None = None,
    pooling: str = "avg",
    dropout: float = 0.0,
    name: str | None = None,
) -> keras.Model:
    """Puts a classification head on a keras-cv backbone.

    Args:
        backbone: An instance of a keras-cv backbone, or another Keras model that returns
            one map `(batch, height, width, channels)`. It is renamed "backbone", so that
            its layers are tapped as "backbone/LAYER"; `stages` lists those that end a level
            of the pyramid.
        classes: Number of classes.
        activation: Activation of the head. Defaults to none: logits.
        pooling: "avg" or "max", over height and width.
        dropout: Rate of the dropout before the head.
        name: Name of the model. Defaults to the backbone's class and "_classifier".

    Returns:
        A functional `keras.Model` of "backbone", "pool" and "head".
    """
    return classifier.build(backbone, classes, activation, pooling, dropout, name)


def cv_resnet(
    classes: int,
    input_shape: tuple[int, ...] = (224, 224, 3),
    filters: Sequence[int] = (64, 128, 256, 512),
    blocks: Sequence[int] = (2, 2, 2, 2),
    strides: Sequence[int] = (1, 2, 2, 2),
    block_type: str = "basic_block",
    include_rescaling: bool = False,
    **kwargs: Any,
) -> keras.Model:
    """Builds a classifier on keras-cv's ResNet (v1); by default ResNet-18.

    Args:
        classes: Number of classes.
        input_shape: Shape of an image.
        filters, blocks, strides: Channels, blocks and first stride of each stage. The
            first stage of basic blocks has 64 channels, those of the stem.
        block_type: "basic_block", or "block" (bottlenecks, 4 times the filters out).
        include_rescaling: Whether images in [0, 255] are divided by 255 first.
        **kwargs: Arguments of `cv_classifier`.
    """
    config = _resnet_config(filters, blocks, strides, block_type)
    backbone = _models().ResNetBackbone(
        input_shape=input_shape, include_rescaling=include_rescaling, **config
    )
    return cv_classifier(backbone, classes, **kwargs)


def cv_resnet_v2(
    classes: int,
    input_shape: tuple[int, ...] = (224, 224, 3),
    filters: Sequence[int] = (64, 128, 256, 512),
    blocks: Sequence[int] = (2, 2, 2, 2),
    strides: Sequence[int] = (1, 2, 2, 2),
    block_type: str = "block",
    include_rescaling: bool = False,
    **kwargs: Any,
) -> keras.Model:
    """Builds a classifier on keras-cv's ResNet v2 (pre-activation).

    Args:
        classes, input_shape, filters, strides, block_type, include_rescaling, **kwargs: As
            in `cv_resnet`.
        blocks: At least 2 for each stage: keras-cv gives two layers one name otherwise.
    """
    config = _resnet_config(filters, blocks, strides, block_type)
    if min(blocks) < 2:
        expected = "`blocks` to be at least 2 for each stage of keras-cv's ResNet v2"
        hint = "With one block keras-cv gives two layers one name; `cv_resnet` takes one."
        raise ValueError(_checks.message(expected, "blocks", tuple(blocks), hint))
    backbone = _models().ResNetV2Backbone(
        input_shape=input_shape, include_rescaling=include_rescaling, **config
    )
    return cv_classifier(backbone, classes, **kwargs)


def cv_mobilenet_v3(
    classes: int,
    input_shape: tuple[int, ...] = (224, 224, 3),
    blocks: Sequence[Sequence[Any]] | None = None,
    alpha: float = 1.0,
    include_rescaling: bool = False,
    **kwargs: Any,
) -> keras.Model:
    """Builds a classifier on keras-cv's MobileNetV3; by default the small one.

    Args:
        classes: Number of classes.
        input_shape: Shape of an image.
        blocks: The inverted residual blocks, a list of `(expansion, filters, kernel size,
            stride, squeeze-and-excite ratio or None, activation)`. Defaults to
            `MOBILENET_V3_SMALL`.
        alpha: Factor of the channels.
        include_rescaling: Whether images in [0, 255] are divided by 255 first.
        **kwargs: Arguments of `cv_classifier`.
    """
    expansion, filters, kernels, strides, ratios, activations = (
        list(column) for column in zip(*(blocks or MOBILENET_V3_SMALL), strict=True)
    )
    backbone = _models().MobileNetV3Backbone(
        stackwise_expansion=expansion,
        stackwise_filters=filters,
        stackwise_kernel_size=kernels,
        stackwise_stride=strides,
        stackwise_se_ratio=ratios,
        stackwise_activation=activations,
        include_rescaling=include_rescaling,
        input_shape=input_shape,
        alpha=_checks.positive("alpha", alpha),
    )
    return cv_classifier(backbone, classes, **kwargs)


# Howard et al., "Searching for MobileNetV3" (ICCV 2019), tables 2 and 1.
MOBILENET_V3_SMALL = (
    (1, 16, 3, 2, 0.25, "relu"),
    (72 / 16, 24, 3, 2, None, "relu"),
    (88 / 24, 24, 3, 1, None, "relu"),
    (4, 40, 5, 2, 0.25, "hard_swish"),
    (6, 40, 5, 1, 0.25, "hard_swish"),
    (6, 40, 5, 1, 0.25, "hard_swish"),
    (3, 48, 5, 1, 0.25, "hard_swish"),
    (3, 48, 5, 1, 0.25, "hard_swish"),
    (6, 96, 5, 2, 0.25, "hard_swish"),
    (6, 96, 5, 1, 0.25, "hard_swish"),
    (6, 96, 5, 1, 0.25, "hard_swish"),
)
MOBILENET_V3_LARGE = (
    (1, 16, 3, 1, None, "relu"),
    (4, 24, 3, 2, None, "relu"),
    (3, 24, 3, 1, None, "relu"),
    (3, 40, 5, 2, 0.25, "relu"),
    (3, 40, 5, 1, 0.25, "relu"),
    (3, 40, 5, 1, 0.25, "relu"),
    (6, 80, 3, 2, None, "hard_swish"),
    (2.5, 80, 3, 1, None, "hard_swish"),
    (2.3, 80, 3, 1, None, "hard_swish"),
    (2.3, 80, 3, 1, None, "hard_swish"),
    (6, 112, 3, 1, 0.25, "hard_swish"),
    (6, 112, 3, 1, 0.25, "hard_swish"),
    (6, 160, 5, 2, 0.25, "hard_swish"),
    (6, 160, 5, 1, 0.25, "hard_swish"),
    (6, 160, 5, 1, 0.25, "hard_swish"),
)


def _resnet_config(filters, blocks, strides, block_type):
    _checks.one_of("block_type", block_type, ("basic_block", "block"))
    if not len(filters) == len(blocks) == len(strides):
        raise ValueError(
            "Expected `filters`, `blocks` and `strides` to have one entry for each stage. "
            f"Received: filters={filters!r}, blocks={blocks!r}, strides={strides!r}."
        )
    if block_type == "basic_block" and filters[0] != 64:
        expected = "`filters` to begin with 64, the stem's channels, for basic blocks"
        hint = 'Other widths need block_type="block".'
        raise ValueError(_checks.message(expected, "filters", tuple(filters), hint))
    return {
        "stackwise_filters": list(filters),
        "stackwise_blocks": list(blocks),
        "stackwise_strides": list(strides),
        "block_type": block_type,
    }


def _models():
    try:
        import keras_cv
    except ImportError as error:
        raise ImportError(
            'keras-cv backbones need keras-cv: pip install "keras-distill[cv]"'
        ) from error
    return keras_cv.models
