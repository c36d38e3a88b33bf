"""A network that trains in simulated int8, so that its int8 file loses nothing more."""

import itertools
from typing import Any

import keras

from keras_distill import _checks
from keras_distill import _graph
from keras_distill import _quantization
from keras_distill.export import _network
from keras_distill.export import _samples

__all__ = ["quantization_aware"]

_BATCH_NORM = keras.layers.BatchNormalization
# These give back values that they were given: what comes out has the range of what went in.
_PRESERVING = (
    keras.layers.ActivityRegularization,
    keras.layers.Cropping2D,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.MaxPooling2D,
    keras.layers.Permute,
    keras.layers.Reshape,
    keras.layers.SpatialDropout2D,
    keras.layers.ZeroPadding2D,
)
_COMPUTING = (
    keras.layers.Activation,
    keras.layers.Add,
    keras.layers.AveragePooling2D,
    keras.layers.Concatenate,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.LeakyReLU,
    keras.layers.Multiply,
    keras.layers.ReLU,
    keras.layers.Softmax,
    keras.layers.Subtract,
)
_PRESERVING_OPS = ("ExpandDims", "Identity", "Reshape", "Squeeze", "Transpose")
_COMPUTING_OPS = ("Add", "Concatenate", "Mean", "Multiply", "Relu", "Relu6", "Softmax", "Subtract")
# A ReLU or ReLU6 behind one of these, or behind a weighted layer, is computed together with it.
_BEFORE_RECTIFIERS = (
    _BATCH_NORM,
    keras.layers.Add,
    keras.layers.AveragePooling2D,
    keras.layers.Multiply,
    keras.layers.Rescaling,
    keras.layers.Subtract,
)
_OPS_BEFORE_RECTIFIERS = ("Add", "Multiply", "Subtract")
# TF Lite fixes the range of what these return.
_FIXED = (keras.activations.sigmoid, keras.activations.softmax, keras.activations.tanh)
# The activations that have an int8 kernel, alone or as a chain of some.
_ACTIVATIONS = (
    *_FIXED,
    keras.activations.gelu,
    keras.activations.hard_silu,
    keras.activations.leaky_relu,
    keras.activations.linear,
    keras.activations.relu,
    keras.activations.relu6,
    keras.activations.silu,
)


def quantization_aware(
    model: keras.Model,
    representative_data: Any,
    momentum: float = 0.99,
    representative_samples: int = 256,
) -> keras.Model:
    """Copies a network into one that trains and predicts in simulated int8.

    Weights and activations are rounded where the int8 file rounds them, with gradients that
    pass straight through. Give the copy to any wrapper as its student, train it, and write it
    with `kd.export.tflite(..., quantize="int8")`: the ranges that it was trained with go into
    the file, and no data is asked for again. Start from a student that was distilled in float,
    at a tenth of its learning rate or less.

    Kernels of `Conv2D`, `DepthwiseConv2D` and `Dense` have a symmetric range for each output
    channel, found anew at each step. Activations have one range a tensor, which follows the
    batches; a batch normalization and a ReLU or ReLU6 behind a convolution share its
    range, for TF Lite computes them as one.

    After Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (CVPR 2018); the places of ranges as in
    tensorflow-model-optimization's 8-bit scheme.

    Deviations from the paper:
    - Batch normalization is not folded while training: by channels it commutes with the rounding.
    - Activations are rounded from the first step, in ranges measured on `representative_data`.

    Deviations from the int8 file:
    - What softmax, sigmoid and tanh return is not rounded; TF Lite has fixed ranges for it.
    - Biases are not rounded (in the file they have 32 bits), nor are the scales and offsets of a
      `Rescaling`.

    Args:
        model: A built functional or Sequential `keras.Model`, or one that nests such models;
            it stays as it is.
        representative_data: Some training images, in the form that `kd.export.tflite` takes:
            the ranges begin with all that is seen in them.
        momentum: Share of an activation's range that a batch leaves as it is.
        representative_samples: At most so many samples are measured.

    Returns:
        A `keras.Model` with the inputs, outputs and weights of `model`, and two more variables,
        not trained, for each range. Layers and outputs keep their names: NAME computes what NAME
        computed before, "NAME_range" rounds it. What TF Lite computes in two steps has a layer
        in front, "NAME_linear" before an activation or "NAME_product" before an offset. Where
        the model returns what is rounded, NAME is the range, "NAME_unrounded" the layer. Dtypes
        and shapes stay.

    Raises:
        ValueError: If `model` has no graph or no weights, takes inputs that are not float, holds
            layers whose int8 kernels are not simulated (the error names them), or is such a copy
            already; if the data does not fit.

    Example:
    ```python
    student = kd.export.quantization_aware(distiller.student, x_train)
    again = kd.Distiller(teacher, student, kd.losses.SoftTargets())
    again.compile(keras.optimizers.Adam(1e-4), loss, metrics=["accuracy"])
    again.fit(x_train, y_train, epochs=5)
    kd.export.tflite(again, "student.tflite", "int8")
    ```
    """
    _checks.instance("model", model, keras.Model, "a keras.Model")
    if not model.built or not _graph.has_graph(model):
        raise ValueError(
            _checks.message(
                "`model` to be a functional or Sequential model with weights", "model", model.name
            )
        )
    if _quantization.ranges_of(model):
        raise ValueError(
            _checks.message("a float `model`", "model", f"{model.name}, in simulated int8 already")
        )
    _checks.positive_integer("representative_samples", representative_samples)
    _require_known(model)
    copy = _graph.uncompiled_clone(model)
    copy.set_weights(model.get_weights())
    aware = _Rounding(_graph.Graph(copy), momentum, is_outermost=True).model()
    _observe(aware, representative_data, representative_samples)
    return aware


def _require_known(model):
    for tensor in model.inputs:
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                _checks.message(
                    "`model` to take inputs of a float dtype",
                    "model",
                    f"{model.name}, whose input {tensor.name} has dtype {dtype}",
                    "Build it with float inputs, whose values are the same.",
                )
            )
    unknown = [f"{name} ({kind})" for name, kind in _unknown(_graph.Graph(model))]
    if unknown:
        raise ValueError(
            "Expected layers whose int8 kernels are simulated. "
            f"Received: {', '.join(dict.fromkeys(unknown))}. Replace them in the student, or "
            'quantise after the training: kd.export.tflite(..., "int8", representative_data).'
        )


def _unknown(graph):
    for call in graph.calls:
        operation = call.operation
        if call.is_input:
            continue
        if _graph.has_graph(operation):
            for name, kind in _unknown(_graph.Graph(operation)):
                yield f"{operation.name}/{name}", kind
        elif not _is_known(operation):
            yield operation.name, type(operation).__name__
        elif getattr(operation, "activation", keras.activations.linear) not in _ACTIVATIONS:
            activation = getattr(operation.activation, "__name__", repr(operation.activation))
            yield operation.name, f"{type(operation).__name__} with {activation}"


def _is_known(operation):
    kind = type(operation)
    return (
        kind in (*_quantization.WEIGHTED, _BATCH_NORM, keras.layers.Rescaling)
        or kind in _PRESERVING
        or kind in _COMPUTING
        or _is_op(operation, (*_PRESERVING_OPS, *_COMPUTING_OPS))
    )


def _is_op(operation, names):
    kind = type(operation)
    return kind.__module__.startswith("keras.src.ops.") and kind.__name__ in names


class _Rounding:
    """Calls the layers of a graph again, with ranges between them.

    Args:
        graph: A `Graph`, of a network that is thrown away afterwards.
        momentum: Of the ranges.
        is_outermost: Whether the inputs are rounded and the outputs named; those of a nested
            model come rounded and have no names.
    """

    def __init__(self, graph, momentum, is_outermost):
        self._graph = graph
        self._momentum = momentum
        self._is_outermost = is_outermost
        self._values = {}
        self._steps = {}
        self._consumers = {}
        for call in graph.calls:
            for tensor in call.inputs:
                self._consumers.setdefault(id(tensor), []).append(call)
        for call in graph.calls:
            if not call.is_input:
                self._run(call)
            elif is_outermost:
                name = f"{call.operation.name}_range"
                self._set(call, self._ranged(call.outputs[0], name))

    def model(self):
        """The network that rounds."""
        outputs = keras.tree.map_structure(self._value, self._graph.output)
        return keras.Model(self._graph.input, outputs, name=self._graph.model.name)

    def _run(self, call):
        name = call.name.replace("@", "_")
        steps = self._steps_of(call)
        outputs = self._call(steps[0], call)
        for before, step in itertools.pairwise(steps):
            # What a layer computes and its own activation are two tensors of the file.
            ending = before.name.removeprefix(call.operation.name)
            outputs = step(self._ranged(outputs, f"{name}{ending}_range"))
        if self._needs_range(call):
            if self._names_an_output(call):
                steps[-1].name = f"{name}_unrounded"
                outputs = self._ranged(outputs, name)
            else:
                outputs = self._ranged(outputs, f"{name}_range")
        self._set(call, outputs)

    def _names_an_output(self, call):
        """Whether a layer is the only one whose name an output of the whole model has."""
        return (
            self._is_outermost
            and call.count == 1
            and isinstance(call.operation, keras.layers.Layer)
            and any(tensor is call.outputs[0] for tensor in self._graph.outputs)
        )

    def _steps_of(self, call):
        """The layers that are called in place of an operation, with ranges between them."""
        key = id(call.operation)
        if key not in self._steps:
            self._steps[key] = self._made(call.operation, call)
        return self._steps[key]

    def _made(self, operation, call):
        kind = type(operation)
        if _graph.has_graph(operation):
            inner = _graph.Graph(operation)
            return [_Rounding(inner, self._momentum, is_outermost=False).model()]
        if kind in _quantization.WEIGHTED:
            return self._weighted(operation)
        if kind is _BATCH_NORM and not self._is_folded(call):
            normalization = _quantization.Int8BatchNormalization(
                operation, self._momentum, name=operation.name
            )
            return [normalization]
        if kind is keras.layers.Rescaling:
            return self._rescaling(operation)
        return [operation]

    def _weighted(self, operation):
        layer = _quantization.Int8Weights(operation, name=operation.name)
        if layer.activation_behind is None:
            return [layer]
        layer.name = f"{operation.name}_linear"
        activation = keras.layers.Activation(layer.activation_behind, **_settings_of(operation))
        return [layer, activation]

    def _rescaling(self, operation):
        if not keras.ops.any(keras.ops.convert_to_tensor(operation.offset) != 0):
            return [operation]
        product = keras.layers.Rescaling(
            operation.scale, name=f"{operation.name}_product", dtype=operation.dtype_policy
        )
        return [product, keras.layers.Rescaling(1.0, operation.offset, **_settings_of(operation))]

    def _is_folded(self, call):
        """Whether the converter multiplies a batch normalization into what feeds it."""
        if call.count > 1 or call.only_input is None:
            return False
        before = self._graph.producer[id(call.only_input)][0]
        return (
            type(before.operation) in _quantization.WEIGHTED
            and before.count == 1
            and before.operation.activation is keras.activations.linear
            and self._graph.uses[id(call.only_input)] == 1
            and call.operation.axis % len(call.only_input.shape) == _channel_axis(before)
        )

    def _needs_range(self, call):
        operation = call.operation
        if _graph.has_graph(operation) or type(operation) in _PRESERVING:
            return False
        if _is_op(operation, _PRESERVING_OPS):
            return False
        if type(operation) is keras.layers.Softmax or _is_op(operation, ("Softmax",)):
            return False
        if getattr(operation, "activation", None) in _FIXED:
            return False
        return not self._is_fused(call)

    def _is_fused(self, call):
        """Whether TF Lite computes what takes the outputs of a call together with it."""
        consumers = self._consumers.get(id(call.outputs[0]), [])
        if len(consumers) != 1 or self._graph.uses[id(call.outputs[0])] != 1:
            return False
        behind = consumers[0]
        if type(behind.operation) is _BATCH_NORM:
            return self._is_folded(behind)
        return _quantization.is_rectifier(behind.operation) and _takes_in_rectifier(call.operation)

    def _call(self, layer, call):
        def fill(x):
            return self._value(x) if isinstance(x, keras.KerasTensor) else x

        args = keras.tree.map_structure(fill, call.args)
        kwargs = keras.tree.map_structure(fill, call.kwargs)
        return layer(*args, **kwargs)

    def _ranged(self, tensor, name):
        layer = _quantization.FakeQuantize(self._momentum, dtype=_keras_policy(tensor), name=name)
        return layer(tensor)

    def _value(self, tensor):
        return self._values.get(id(tensor), tensor)

    def _set(self, call, outputs):
        for old, new in zip(call.outputs, keras.tree.flatten(outputs), strict=True):
            self._values[id(old)] = new


def _takes_in_rectifier(operation):
    """Whether TF Lite computes a ReLU or ReLU6 behind an operation as the end of it."""
    if type(operation) in _quantization.WEIGHTED:
        return operation.activation is keras.activations.linear
    return type(operation) in _BEFORE_RECTIFIERS or _is_op(operation, _OPS_BEFORE_RECTIFIERS)


def _channel_axis(call):
    """Along which axis what a weighted layer returns has its channels."""
    first = getattr(call.operation, "data_format", None) == "channels_first"
    return 1 if first else len(call.outputs[0].shape) - 1


def _settings_of(layer):
    """Arguments of the layer that ends what `layer` computes, and so has its name."""
    return {
        "name": layer.name,
        "dtype": layer.dtype_policy,
        "activity_regularizer": layer.activity_regularizer,
    }


def _keras_policy(tensor):
    """The policy of a layer that passes a tensor on in its own dtype."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return dtype if dtype in ("float32", "float64") else f"mixed_{dtype}"


def _observe(model, data, count):
    """Widens all ranges to what a model computes from at most `count` samples."""
    ranges = _quantization.ranges_of(model)
    inputs = _network.inputs_of(model)
    samples = _samples.take(inputs, data, "representative_data", count)
    for layer in ranges:
        layer.observing = True
    try:
        for arrays in _samples.batches(inputs, inputs.pack(samples), "representative_data"):
            model(inputs.pack(arrays), training=False)
    finally:
        for layer in ranges:
            layer.observing = False
