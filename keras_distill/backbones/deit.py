"""DeiT: a vision transformer of keras-hub with a distillation token, and a head on each token."""

from typing import Any

import keras
from keras import layers
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill.backbones import hub


@keras.saving.register_keras_serializable(package="keras_distill")
class DistillationToken(layers.Layer):
    """Puts a learned token behind the class token, with a position of its own.

    Tokens `(batch, 1 + patches, channels)`, the class token first and positions added, become
    `(batch, 2 + patches, channels)`: class token, distillation token, patches.

    Args:
        **kwargs: As in `keras.layers.Layer`.
    """

    def build(self, input_shape):
        for name in ("token", "position"):
            weight = self.add_weight(
                shape=(1, 1, input_shape[-1]),
                initializer=keras.initializers.TruncatedNormal(stddev=0.02),
                name=name,
            )
            setattr(self, name, weight)

    def call(self, tokens):
        token = ops.cast(self.token + self.position, tokens.dtype)
        token = ops.tile(token, (ops.shape(tokens)[0], 1, 1))
        return ops.concatenate([tokens[:, :1], token, tokens[:, 1:]], axis=1)

    def compute_output_shape(self, input_shape):
        batch, count, channels = input_shape
        return (batch, None if count is None else count + 1, channels)

    def get_config(self):
        return super().get_config()  # Keras refuses a policy as `dtype` where none is defined.


@keras.saving.register_keras_serializable(package="keras_distill")
class ViTWithDistillationToken(keras.Model):
    """The layers of a keras-hub `ViTBackbone` with a `DistillationToken` between them.

    A class of its own for saving: keras-hub's layers are loaded by way of their backbone alone.

    Args:
        backbone: A `ViTBackbone` with a class token, whose layers are shared.
        name: Name of the model.
        **kwargs: As in `keras.Model`.
    """

    def __init__(self, backbone, name="backbone", **kwargs):
        if not backbone.use_class_token:
            expected = "`backbone` to have a class token (use_class_token=True)"
            raise ValueError(_checks.message(expected, "backbone", backbone))
        parts = ("vit_patching_and_embedding", "vit_encoder")
        embed, encode = (backbone.get_layer(part) for part in parts)
        insert = DistillationToken(dtype=embed.dtype_policy, name="distillation_token")
        inputs = keras.Input(backbone.input_shape[1:], name="images")
        super().__init__(inputs, encode(insert(embed(inputs))), name=name, **kwargs)
        self._given = _keras.serialized(backbone)

    def get_config(self):
        return {"backbone": self._given, "name": self.name, "trainable": self.trainable}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**_keras.arguments_of(config, custom_objects))


def hub_distilled(
    backbone: keras.Model, classes: int, activation: str | None = None, name: str | None = None
) -> keras.Model:
    """Puts a class head and a distillation head on a vision transformer of keras-hub.

    `kd.TwoHeadDistiller` trains "head", on the class token, by labels, and
    "distillation_head", on the distillation token, by a teacher. The model returns the mean
    of their logits, as it is evaluated and exported.

    Args:
        backbone: A keras-hub `DeiTBackbone`, which has both tokens and is renamed "backbone";
            or a `ViTBackbone` with a class token, pretrained or not, whose layers are shared
            and get a `DistillationToken` between them. In both cases layers are tapped as
            "backbone/LAYER".
        classes: Number of classes.
        activation: Activation of the mean. Defaults to none: logits.
        name: Name of the model. Defaults to the backbone's class and "_distilled".

    Returns:
        A functional `keras.Model` of "backbone", "class_token", "distillation_token", "head",
        "distillation_head" and "mean_of_heads".

    Raises:
        TypeError: If `backbone` is neither.
        ValueError: If a `ViTBackbone` has no class token.

    References:
        Touvron et al. 2021, https://arxiv.org/abs/2012.12877. Convention of
        facebookresearch/deit: the mean of the logits; the paper adds the two softmaxes.
    """
    models = hub._models()
    kinds = models.DeiTBackbone, models.ViTBackbone
    _checks.instance("backbone", backbone, kinds, "a keras-hub DeiTBackbone or ViTBackbone")
    classes = _checks.positive_integer("classes", classes)
    default = f"{_keras.to_snake_case(type(backbone).__name__)}_distilled"
    if isinstance(backbone, models.ViTBackbone):
        backbone = ViTWithDistillationToken(backbone)
    backbone.name = "backbone"
    inputs = keras.Input(backbone.input_shape[1:], name="image")
    tokens = backbone(inputs)
    logits = []
    for place, (token, head) in enumerate(
        (("class_token", "head"), ("distillation_token", "distillation_head"))
    ):
        x = layers.Identity(name=token)(tokens[:, place])
        logits.append(layers.Dense(classes, name=head)(x))
    x = layers.Average(name="mean_of_heads")(logits)
    if activation is not None:
        x = layers.Activation(activation, name="predictions")(x)
    return keras.Model(inputs, x, name=name or default)


def hub_deit(
    classes: int,
    input_shape: tuple[int, ...] = (224, 224, 3),
    patch_size: int = 16,
    layers: int = 12,
    heads: int = 3,
    channels: int = 192,
    mlp_channels: int | None = None,
    dropout_rate: float = 0.0,
    **kwargs: Any,
) -> keras.Model:
    """Builds a two-headed classifier on keras-hub's DeiT; by default DeiT-Ti/16.

    Args:
        classes: Number of classes.
        input_shape: Shape of an image, a multiple of the patch size.
        patch_size: Height and width of a patch.
        layers, heads, channels: Depth, attention heads and width.
        mlp_channels: Width inside the blocks. Defaults to 4 times the channels.
        dropout_rate: Dropout inside the encoder.
        **kwargs: Other arguments of `hub_distilled`.
    """
    backbone = hub._models().DeiTBackbone(
        image_shape=input_shape,
        patch_size=patch_size,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=channels,
        intermediate_dim=mlp_channels or 4 * channels,
        dropout_rate=dropout_rate,
    )
    return hub_distilled(backbone, classes, **kwargs)
