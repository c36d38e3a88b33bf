"""The layers that trained losses are made of, started as the published PyTorch codes start them."""

import keras

UNIT_VARIANCE = 1.0
PYTORCH_DEFAULT = 1 / 3


def convolution(
    inputs, outputs, size, dtype, use_bias=True, transposed=False, scale=PYTORCH_DEFAULT
):
    """A built convolution of maps, stride 1, same size, `(batch, height, width, channels)`.

    Weights start uniform in `+-sqrt(3 scale / fan_in)`: `PYTORCH_DEFAULT` is PyTorch's default,
    `+-1 / sqrt(fan_in)`, and `UNIT_VARIANCE` its `kaiming_uniform_(a=1)`. Biases start uniform in
    `+-1 / sqrt(fan_in)`. Of a transposed convolution the fan counts the outputs, as there.

    Args:
        inputs: Number of channels that come in.
        outputs: Number of channels that go out.
        size: Side of the kernel.
        dtype: Of the layer.
        use_bias: Whether it has a bias.
        transposed: Whether it is a transposed convolution.
        scale: Scale of the start.
    """
    kind = keras.layers.Conv2DTranspose if transposed else keras.layers.Conv2D
    bound = (size * size * (outputs if transposed else inputs)) ** -0.5
    layer = kind(
        outputs,
        size,
        padding="same",
        data_format="channels_last",
        use_bias=use_bias,
        kernel_initializer=_uniform(scale),
        bias_initializer=keras.initializers.RandomUniform(-bound, bound),
        dtype=dtype,
    )
    layer.build((None, None, None, inputs))
    return layer


def projection(inputs, outputs, dtype, of_maps, scale=PYTORCH_DEFAULT):
    """A built 1x1 convolution without bias, or of vectors a dense layer."""
    if of_maps:
        return convolution(inputs, outputs, 1, dtype, use_bias=False, scale=scale)
    layer = keras.layers.Dense(
        outputs, use_bias=False, kernel_initializer=_uniform(scale), dtype=dtype
    )
    layer.build((None, inputs))
    return layer


def batch_normalization(channels, dtype, of_maps=True):
    """A built batch normalization of the last axis; PyTorch's momentum 0.1 is Keras's 0.9."""
    layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=dtype)
    layer.build((None, None, None, channels) if of_maps else (None, channels))
    return layer


def _uniform(scale):
    return keras.initializers.VarianceScaling(scale, mode="fan_in", distribution="uniform")
