"""Classifiers on keras-hub backbones, built by configuration: nothing is downloaded."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill import _checks
from keras_distill.backbones import classifier


def hub_classifier(
    backbone: keras.Model,
    classes: int,
    activation: str | None = None,
    pooling: str = "avg",
    dropout: float = 0.0,
    name: str | None = None,
) -> keras.Model:
    """Puts a classification head on a keras-hub backbone.

    keras-hub's own `ImageClassifier`s serve as teacher and student too, taps included.

    Args:
        backbone: An instance of a keras-hub backbone that returns one map `(batch, height,
            width, channels)` or tokens `(batch, tokens, channels)`. It is renamed
            "backbone", so that its layers are tapped as "backbone/LAYER"; the blocks inside
            keras-hub's composite layers ("vit_encoder") cannot be reached.
        classes: Number of classes.
        activation: Activation of the head. Defaults to none: logits.
        pooling: "avg" or "max" over the places or tokens, or "token", the first token.
        dropout: Rate of the dropout before the head.
        name: Name of the model. Defaults to the backbone's class and "_classifier".

    Returns:
        A functional `keras.Model` of "backbone", "pool" and "head".
    """
    return classifier.build(backbone, classes, activation, pooling, dropout, name)


def hub_resnet(
    classes: int,
    input_shape: tuple[int, ...] = (224, 224, 3),
    filters: Sequence[int] = (64, 128, 256, 512),
    blocks: Sequence[int] = (2, 2, 2, 2),
    strides: Sequence[int] = (1, 2, 2, 2),
    block_type: str = "basic_block",
    stem_filters: int = 64,
    stem_kernel_size: int = 7,
    pre_activation: bool = False,
    **kwargs: Any,
) -> keras.Model:
    """Builds a classifier on keras-hub's ResNet; by default ResNet-18.

    Args:
        classes: Number of classes.
        input_shape: Shape of an image.
        filters, blocks, strides: Channels, blocks and first stride of each stage; keras-hub
            asks 64 channels of the first.
        block_type: "basic_block", "bottleneck_block" or a "_vd" variant of these.
        stem_filters, stem_kernel_size: The stem's convolution.
        pre_activation: Whether it is ResNet v2.
        **kwargs: Arguments of `hub_classifier`.
    """
    if filters[0] != 64:
        expected = "`filters` to begin with 64, as keras-hub asks"
        raise ValueError(_checks.message(expected, "filters", tuple(filters)))
    backbone = _models().ResNetBackbone(
        input_conv_filters=[stem_filters],
        input_conv_kernel_sizes=[stem_kernel_size],
        stackwise_num_filters=list(filters),
        stackwise_num_blocks=list(blocks),
        stackwise_num_strides=list(strides),
        block_type=block_type,
        use_pre_activation=pre_activation,
        image_shape=input_shape,
    )
    return hub_classifier(backbone, classes, **kwargs)


def hub_vit(
    classes: int,
    input_shape: tuple[int, ...] = (224, 224, 3),
    patch_size: int = 16,
    layers: int = 12,
    heads: int = 3,
    channels: int = 192,
    mlp_channels: int | None = None,
    dropout_rate: float = 0.0,
    pooling: str = "token",
    **kwargs: Any,
) -> keras.Model:
    """Builds a classifier on keras-hub's vision transformer; by default ViT-Ti/16.

    Args:
        classes: Number of classes.
        input_shape: Shape of an image, a multiple of the patch size.
        patch_size: Height and width of a patch.
        layers, heads, channels: Depth, attention heads and width.
        mlp_channels: Width inside the blocks. Defaults to 4 times the channels.
        dropout_rate: Dropout inside the encoder.
        pooling: As in `hub_classifier`.
        **kwargs: Other arguments of `hub_classifier`.
    """
    backbone = _models().ViTBackbone(
        image_shape=input_shape,
        patch_size=patch_size,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=channels,
        mlp_dim=mlp_channels or 4 * channels,
        dropout_rate=dropout_rate,
    )
    return hub_classifier(backbone, classes, pooling=pooling, **kwargs)


def _models():
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError(
            'keras-hub backbones need keras-hub: pip install "keras-distill[hub]"'
        ) from error
    return keras_hub.models
