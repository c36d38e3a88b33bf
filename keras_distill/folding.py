"""Folding a BatchNormalization into the linear convolution that feeds it.

For a frozen network in inference, `gamma * (conv(x) + b - mean) / sqrt(variance + eps) + beta`
is one convolution with a scaled kernel and a shifted bias. Kernel and bias are computed from
the live variables of both layers in every call, so they are never stale.
"""

import keras
from keras import ops

from keras_distill import _ops
from keras_distill._types import Tensor

_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, *_DEPTHWISE)


def can_fold(convolution: keras.layers.Layer, batch_norm: keras.layers.Layer) -> bool:
    """Whether the two built layers, called one after the other, can be one convolution.

    Only Keras's own classes: a subclass may compute something else.
    """
    return (
        type(convolution) in _CONVOLUTIONS
        and type(batch_norm) is keras.layers.BatchNormalization
        and convolution.padding != "causal"
        and convolution.activation in (None, keras.activations.linear)
        and convolution.quantization_mode is None
        and convolution.activity_regularizer is None
        and batch_norm.activity_regularizer is None
        and not getattr(batch_norm, "renorm", False)
        and convolution.compute_dtype == batch_norm.compute_dtype
        and batch_norm.axis in _channel_axes(convolution)
    )


def _channel_axes(convolution):
    if convolution.data_format == "channels_last":
        return (-1, convolution.rank + 1)
    return (1, -convolution.rank - 1)


class FoldedConvolution(keras.layers.Layer):
    """`batch_norm(convolution(x))` as one convolution, with the variables of both layers.

    Where batch statistics are asked for (`training=True` and `batch_norm.trainable`), or the
    convolution has been quantized since, the two layers are called as they are.

    Args:
        convolution: A linear `Conv1D`, `Conv2D`, `Conv3D`, `DepthwiseConv1D` or
            `DepthwiseConv2D`, built.
        batch_norm: The `BatchNormalization` over its channels, built.
    """

    def __init__(
        self,
        convolution: keras.layers.Layer,
        batch_norm: keras.layers.Layer,
        name: str | None = None,
    ) -> None:
        # Variables are read in their own precision, and only the result is cast.
        super().__init__(name=name, dtype=batch_norm.variable_dtype, autocast=False)
        self.convolution = convolution
        self.batch_norm = batch_norm
        self.supports_masking = convolution.supports_masking
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        normalizes_batch = training and self.batch_norm.trainable
        if normalizes_batch or self.convolution.quantization_mode is not None:
            return self.batch_norm(self.convolution(inputs), training=training)
        dtype = self.convolution.compute_dtype
        kernel, bias = self._folded()
        x = ops.cast(inputs, dtype)
        return self._add_bias(self._convolve(x, ops.cast(kernel, dtype)), ops.cast(bias, dtype))

    def _add_bias(self, x, bias):
        if keras.backend.backend() == "tensorflow" and self.convolution.data_format != (
            "channels_first"
        ):
            # TensorFlow fuses a convolution with BiasAdd and a ReLU behind it, but not with Add:
            # 54 against 61 ms for a ResNet-20 of 128 images.
            import tensorflow as tf

            return tf.nn.bias_add(x, ops.reshape(bias, (-1,)))
        return ops.add(x, bias)

    def compute_output_spec(
        self, inputs: Tensor, training: bool | None = None
    ) -> keras.KerasTensor:
        return self.batch_norm.compute_output_spec(self.convolution.compute_output_spec(inputs))

    def _folded(self):
        """Kernel and bias, in float32 at least; the bias shaped as the output's channels."""
        convolution, batch_norm = self.convolution, self.batch_norm
        kernel = _ops.at_least_float32(convolution.kernel)
        mean = _ops.at_least_float32(batch_norm.moving_mean)
        scale = ops.rsqrt(_ops.at_least_float32(batch_norm.moving_variance) + batch_norm.epsilon)
        if batch_norm.gamma is not None:
            scale = scale * _ops.at_least_float32(batch_norm.gamma)
        bias = -mean
        if convolution.bias is not None:
            bias = bias + _ops.at_least_float32(convolution.bias)
        bias = bias * scale
        if batch_norm.beta is not None:
            bias = bias + _ops.at_least_float32(batch_norm.beta)
        if type(convolution) in _DEPTHWISE:
            # Kernel (..., channels, multiplier): output channel = channel * multiplier + m.
            scale = ops.reshape(scale, kernel.shape[-2:])
        if convolution.data_format == "channels_last":
            shape = (1,) * (convolution.rank + 1) + (-1,)
        else:
            shape = (1, -1) + (1,) * convolution.rank
        return kernel * scale, ops.reshape(bias, shape)

    def _convolve(self, inputs, kernel):
        convolution = self.convolution
        depthwise = type(convolution) in _DEPTHWISE
        convolve = ops.depthwise_conv if depthwise else ops.conv
        return convolve(
            inputs,
            kernel,
            strides=convolution.strides,
            padding=convolution.padding,
            dilation_rate=convolution.dilation_rate,
            data_format=convolution.data_format,
        )
