"""Layers that compute as TF Lite's int8 kernels do, for training and for export.

Rounding is Keras's `fake_quant_with_min_max_vars`; on TensorFlow it is the operation whose ranges
the converter keeps. The gradient passes straight through inside the range and is 0 outside (Jacob
et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018). It is computed here: TensorFlow's own gradient of the operation is an error
on a GPU where operations have to be deterministic.
"""

import contextlib
import contextvars

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill import _ops

_SMALLEST_RANGE = 1e-6
_PACKAGE = "keras_distill"
_CONVERTING = contextvars.ContextVar("keras_distill_converting", default=False)
_FUSED = (keras.activations.relu, keras.activations.relu6)

WEIGHTED = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)


def is_rectifier(operation):
    """Whether TF Lite computes this layer or operation as the end of the one before it."""
    kind = type(operation)
    if kind is keras.layers.Activation:
        return operation.activation in _FUSED
    if kind is keras.layers.ReLU:
        plain = operation.negative_slope == 0 and operation.threshold == 0
        return plain and operation.max_value in (None, 6)
    return kind.__module__.startswith("keras.src.ops.") and kind.__name__ in ("Relu", "Relu6")


def ranges_of(model):
    """The `FakeQuantize` layers of a model, inside its layers too; none for a float model."""
    return [layer for layer in _keras.flatten_layers(model) if isinstance(layer, FakeQuantize)]


@contextlib.contextmanager
def for_the_converter(model):
    """Inside the block, a model leaves to TF Lite's converter what that rounds by itself.

    The converter rounds the kernels of dense layers channel by channel, as `Int8Weights` does,
    but fails where it finds them rounded so: it transposes them. All else is rounded by the bare
    operation, without what the gradient and empty ranges need.
    """
    dense = [
        layer
        for layer in _keras.flatten_layers(model)
        if isinstance(layer, Int8Weights) and isinstance(layer.layer, keras.layers.Dense)
    ]
    for layer in dense:
        layer.rounds = False
    token = _CONVERTING.set(True)
    try:
        yield
    finally:
        _CONVERTING.reset(token)
        for layer in dense:
            layer.rounds = True


@keras.saving.register_keras_serializable(package=_PACKAGE)
class FakeQuantize(keras.layers.Layer):
    """Rounds a tensor to the 256 values of an int8 tensor, in one range for all its elements.

    In training the range follows the batches' smallest and largest values, as an exponential
    average; in inference it stays. It always holds 0. Shapes stay as they are. A range that has
    seen nothing is empty: the first batch of a training sets it, inference passes values on as
    they are.

    Args:
        momentum: Share of the range that a batch leaves as it is.
        name, **kwargs: As in `keras.layers.Layer`.

    Attributes:
        minimum, maximum: The range, variables of shape `()`.
        observing: Whether calls widen the range to all that they see and round nothing.
    """

    def __init__(self, momentum=0.99, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= momentum < 1:
            raise ValueError(_checks.message("`momentum` to be in [0, 1)", "momentum", momentum))
        self.momentum = momentum
        self.observing = False
        self.supports_masking = True

    def build(self, input_shape):
        for name in ("minimum", "maximum"):
            variable = self.add_weight(
                shape=(),
                initializer="zeros",
                dtype="float32",
                trainable=False,
                autocast=False,
                aggregation="mean",
                name=name,
            )
            setattr(self, name, variable)

    def call(self, inputs, training=None):
        if self.observing:
            self._observe(inputs)
            return inputs
        if training and self.trainable:
            self._follow(inputs)
        values = ops.cast(inputs, "float32")
        low, high = self.minimum.value, self.maximum.value
        if _CONVERTING.get():
            rounded = keras.quantizers.fake_quant_with_min_max_vars(values, low, high)
        else:
            empty = self.is_empty()
            high = ops.where(empty, low + 1.0, high)
            lowest, highest = _representable(low, high)
            inside = ops.logical_and(values >= lowest, values <= highest)
            rounded = keras.quantizers.fake_quant_with_min_max_vars(
                ops.stop_gradient(values), low, high
            )
            rounded = _with_gradient_of(ops.where(inside, values, 0.0), rounded)
            rounded = ops.where(empty, values, rounded)
        return ops.cast(rounded, inputs.dtype)

    def is_empty(self):
        """Whether the range has seen nothing yet."""
        return ops.equal(self.minimum.value, self.maximum.value)

    def _observe(self, inputs):
        low, high = _range_of(inputs)
        self._set(ops.minimum(low, self.minimum), ops.maximum(high, self.maximum))

    def _follow(self, inputs):
        low, high = _range_of(inputs)
        share = ops.where(self.is_empty(), 1.0, 1.0 - self.momentum)
        self._set(
            self.minimum + share * (low - self.minimum),
            self.maximum + share * (high - self.maximum),
        )

    def _set(self, low, high):
        self.minimum.assign(low)
        self.maximum.assign(ops.maximum(high, low + _SMALLEST_RANGE))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}


def _rounded(values):
    """A constant of the file: rounded in the range of its own values and 0."""
    low, high = _range_of(values)
    return _rounded_within(values, low, ops.maximum(high, low + _SMALLEST_RANGE))


def _rounded_within(values, low, high, **settings):
    """`values`, all of them between `low` and `high`, rounded; the gradient passes through."""
    if _CONVERTING.get():
        return keras.quantizers.fake_quant_with_min_max_vars(values, low, high, **settings)
    fixed = ops.stop_gradient(values)
    return _with_gradient_of(
        values, keras.quantizers.fake_quant_with_min_max_vars(fixed, low, high, **settings)
    )


def _with_gradient_of(values, rounded):
    """What is `rounded`, exactly, and has the gradient of `values`, which must be finite."""
    return ops.stop_gradient(rounded) + (values - ops.stop_gradient(values))


def _representable(low, high):
    """The ends of a range once moved so that 0 is one of its 256 values."""
    step = (high - low) / 255.0
    zero = ops.clip(ops.round(-low / step), 0.0, 255.0)
    return -zero * step, (255.0 - zero) * step


def _range_of(inputs):
    values = ops.stop_gradient(ops.cast(inputs, "float32"))
    return ops.minimum(ops.min(values), 0.0), ops.maximum(ops.max(values), 0.0)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Int8Weights(keras.layers.Layer):
    """A convolution or dense layer whose kernel is rounded as the converter rounds it.

    One symmetric range for each output channel, up to its largest absolute weight: a batch
    normalization behind it, which the converter multiplies into the kernel channel by channel,
    leaves the rounded numbers as they are. A ReLU or ReLU6 of the layer is applied; any other
    activation is left to the layer behind, for TF Lite computes it by itself. An activity
    regularizer of the layer goes with its activation.

    Args:
        layer: A `Conv2D`, `DepthwiseConv2D` or `Dense`.
        name, **kwargs: As in `keras.layers.Layer`.
    """

    def __init__(self, layer, **kwargs):
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        if self.activation_behind is None:
            self.activity_regularizer = layer.activity_regularizer
        self.rounds = True
        self.supports_masking = layer.supports_masking

    @property
    def fused_activation(self):
        """The activation that is computed here."""
        activation = self.layer.activation
        return activation if activation in _FUSED else keras.activations.linear

    @property
    def activation_behind(self):
        """The activation of the layer that is not computed here, or None."""
        activation = self.layer.activation
        return None if activation in (*_FUSED, keras.activations.linear) else activation

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)

    def call(self, inputs):
        layer, dtype = self.layer, self.layer.compute_dtype
        kernel = self.rounded_kernel() if self.rounds else layer.kernel
        outputs = self._apply(ops.cast(inputs, dtype), ops.cast(kernel, dtype))
        if layer.bias is not None:
            shape = [1] * len(outputs.shape)
            first = getattr(layer, "data_format", None) == "channels_first"
            shape[1 if first else -1] = -1
            outputs = outputs + ops.reshape(ops.cast(layer.bias, dtype), shape)
        return self.fused_activation(outputs)

    def rounded_kernel(self):
        """The kernel in float32, rounded to 255 values a channel."""
        kernel = _ops.at_least_float32(self.layer.kernel)
        shape = ops.shape(kernel)
        if isinstance(self.layer, keras.layers.DepthwiseConv2D):
            # (height, width, channels, multiplier): each output channel has its own range.
            kernel = ops.reshape(kernel, (*shape[:-2], shape[-2] * shape[-1]))
        axes = tuple(range(len(kernel.shape) - 1))
        largest = ops.max(ops.abs(ops.stop_gradient(kernel)), axis=axes)
        largest = ops.maximum(largest, _SMALLEST_RANGE)
        rounded = _rounded_within(kernel, -largest, largest, narrow_range=True, axis=-1)
        return ops.reshape(rounded, shape)

    def _apply(self, inputs, kernel):
        layer = self.layer
        if isinstance(layer, keras.layers.Dense):
            return ops.matmul(inputs, kernel)
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        return (ops.depthwise_conv if depthwise else ops.conv)(
            inputs,
            kernel,
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def get_config(self):
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["layer"] = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**config)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Int8BatchNormalization(keras.layers.Layer):
    """A batch normalization that no convolution takes in: in int8, a product and a sum.

    In training it is the layer itself, for its factors are those of the batch; the product's
    range follows the moving statistics. In inference factors, product and summands are rounded,
    each in one range.

    Args:
        layer: A `BatchNormalization`.
        momentum: As in `FakeQuantize`.
        name, **kwargs: As in `keras.layers.Layer`.
    """

    def __init__(self, layer, momentum=0.99, **kwargs):
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.product_range = FakeQuantize(momentum, name="product_range")
        self.supports_masking = True

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)
        self.product_range.build(input_shape)

    def call(self, inputs, training=None, mask=None):
        layer = self.layer
        normalizes_batch = training and layer.trainable
        scale = ops.rsqrt(layer.moving_variance.value + layer.epsilon)
        if layer.gamma is not None:
            scale = scale * layer.gamma.value
        offset = -layer.moving_mean.value * scale
        if layer.beta is not None:
            offset = offset + layer.beta.value
        shape = [1] * len(inputs.shape)
        shape[layer.axis] = -1
        values = ops.cast(inputs, "float32")
        product = values * ops.reshape(_rounded(scale), shape)
        product = self.product_range(product, training=training)
        if normalizes_batch:
            return layer(inputs, training=True, mask=mask)
        return ops.cast(product + ops.reshape(_rounded(offset), shape), layer.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        momentum = self.product_range.momentum
        return {**super().get_config(), "layer": layer, "momentum": momentum}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["layer"] = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**config)
