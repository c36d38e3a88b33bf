"""What a model's outputs are: probabilities after a softmax or sigmoid, or logits.

Read off the graph, never guessed: what the graph does not tell is "unknown".
"""

import typing

import keras

from keras_distill import _graph
from keras_distill import _quantization
from keras_distill._types import Structure
from keras_distill._types import Tensor

_LINEAR_MAPS = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)
# Layers that give back their input in inference.
_IDENTITIES = (
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    # Not an identity, but what it rounds are logits still.
    _quantization.FakeQuantize,
)
# Layers and `keras.ops` that move values, here only where the last axis stays whole.
_RESHAPES = (keras.layers.Flatten, keras.layers.Permute, keras.layers.Reshape)
_SUMS = (keras.layers.Add, keras.layers.Average)  # Of logits they are logits.
_RESHAPE_OPS = ("Cast", "ExpandDims", "Identity", "Reshape", "Squeeze")


class Head(typing.NamedTuple):
    """How one output of a model comes about.

    Attributes:
        kind: "softmax" | "sigmoid" | "linear" | "unknown".
        source: Where the logits are: "output" (the output itself, kind "linear"), "input"
            (what `call` takes), "inside" (in the layer of `call`, before its activation),
            "nested" (output `position` of the model that `call` calls), or None.
        call: The `Call` meant by `source`.
        position: See "nested".
        after: The calls between the logits and the output, last first. They change the
            shape or dtype and not the values.
    """

    kind: str
    source: str | None = None
    call: object = None
    position: int = 0
    after: tuple = ()


UNKNOWN = Head("unknown")


def head_of(model: keras.Model) -> Structure:
    """Finds what the last activation of each output of a model is.

    Looks through nested models, `Activation`, `Softmax` and `keras.ops` nodes, the
    activation of `Dense`, `EinsumDense` and `Conv` layers, and past layers that leave the
    values as they are in inference (dropout, reshapes that keep the last axis, casts).

    Args:
        model: A Keras model. Without a graph of layers all its outputs are unknown.

    Returns:
        For one output a string, else a structure of strings like the model's output:
        "softmax" or "sigmoid" over the last axis, "linear" (logits, certainly), or
        "unknown". A single "unknown" for a model without a graph.
    """
    if not _graph.has_graph(model):
        return "unknown"
    graph = _graph.Graph(model)
    return keras.tree.map_structure(lambda tensor: trace(graph, tensor).kind, graph.output)


def trace(graph: _graph.Graph, tensor: keras.KerasTensor) -> Head:
    """The `Head` of one tensor of a `Graph`."""
    after = []
    while True:
        call, position = graph.producer[id(tensor)]
        layer = call.operation
        if _graph.has_graph(layer):
            inner = _graph.Graph(layer)
            head = trace(inner, inner.outputs[position])
            if head.source is None:
                return Head(head.kind)
            return Head(head.kind, "nested", call, position, tuple(after))
        if type(layer) in _SUMS and all(trace(graph, x).kind == "linear" for x in call.inputs):
            return Head("linear", "output", call, after=tuple(after))
        if not _passes(call):
            return _head_of_call(call)._replace(after=tuple(after))
        if not isinstance(layer, _IDENTITIES):
            after.append(call)
        tensor = call.inputs[0]


def _passes(call):
    """Whether the call leaves the values and the last axis of its one input as they are."""
    layer = call.operation
    if call.is_input or len(call.inputs) != 1 or len(call.outputs) != 1:
        return False
    if type(layer) in _IDENTITIES:
        return True
    if type(layer) is keras.layers.Activation:
        return activation_kind(layer.activation) == "linear"
    if type(layer) is keras.layers.Permute:
        return layer.dims[-1] == len(layer.dims)
    if type(layer) in _RESHAPES or _is_op(layer, _RESHAPE_OPS):
        classes = call.inputs[0].shape[-1:]
        return classes == call.outputs[0].shape[-1:] and classes != (None,)
    return False


def _head_of_call(call):
    layer = call.operation
    inner = layer.layer if type(layer) is keras.layers.TimeDistributed else layer
    if call.is_input or len(call.outputs) != 1:
        return UNKNOWN
    if type(inner) is keras.layers.Activation:
        kind = activation_kind(inner.activation)
        return Head(kind, "input", call) if kind in ("softmax", "sigmoid") else UNKNOWN
    if type(inner) is keras.layers.Softmax:
        plain = call.only_input is not None and _is_last(inner.axis, call)
        return Head("softmax", "input", call) if plain else UNKNOWN
    if _is_op(inner, ("Softmax",)):
        return Head("softmax", "input", call) if _is_last(inner.axis, call) else UNKNOWN
    if _is_op(inner, ("Sigmoid",)):
        return Head("sigmoid", "input", call)
    if type(inner) is _quantization.Int8Weights:
        linear = inner.fused_activation is keras.activations.linear and _channels_last(inner.layer)
        return Head("linear", "output", call) if linear else UNKNOWN
    if type(inner) in _LINEAR_MAPS and _channels_last(inner):
        kind = activation_kind(inner.activation)
        if kind == "linear":
            return Head(kind, "output", call)
        if kind is not None:
            reachable = inner is layer and call.only_input is not None
            return Head(kind, "inside" if reachable else None, call)
    return UNKNOWN


def activation_kind(activation: typing.Any) -> str | None:
    """Returns "linear", "softmax", "sigmoid", or None for any other activation."""
    if activation is None or activation is keras.activations.linear:
        return "linear"
    if activation in (keras.activations.softmax, keras.ops.softmax):
        return "softmax"
    if isinstance(activation, keras.layers.Softmax) and activation.axis == -1:
        return "softmax"
    if activation in (keras.activations.sigmoid, keras.ops.sigmoid):
        return "sigmoid"
    return None


def _is_op(operation, names):
    """Whether this is one of Keras's operations (`keras.ops` on a `KerasTensor`)."""
    cls = type(operation)
    return cls.__module__.startswith("keras.src.ops.") and cls.__name__ in names


def _is_last(axis, call):
    return axis in (-1, len(call.inputs[0].shape) - 1)


def _channels_last(layer):
    return getattr(layer, "data_format", "channels_last") == "channels_last"


class PreActivation(keras.layers.Layer):
    """Calls a layer and returns `(output, logits)`, the logits from before its activation.

    The layer runs as it always does, activity regularizer included: for the time of one
    call, a copy of its attributes (the variables shared) has an activation that notes what
    it is given. The layer itself is not touched, so that threads, `tf.function` and XLA
    are safe.

    Args:
        layer: A built layer with an `activation`, which it applies last and once.
    """

    def __init__(self, layer: keras.layers.Layer, name: str | None = None) -> None:
        super().__init__(name=name, dtype=layer.dtype_policy, autocast=False)
        self.layer = layer
        self.supports_masking = layer.supports_masking
        self.built = True

    def call(self, inputs: Tensor) -> tuple[Structure, Tensor]:
        activation = self.layer.activation
        noted = []

        def note(logits):
            noted.append(logits)
            return activation(logits)

        view = object.__new__(type(self.layer))
        view.__dict__.update(self.layer.__dict__)
        view.__dict__["activation"] = note
        outputs = view(inputs)
        return outputs, noted[0]

    def compute_output_spec(self, inputs: Tensor) -> tuple[Structure, keras.KerasTensor]:
        spec = self.layer.compute_output_spec(inputs)
        return spec, keras.KerasTensor(spec.shape, dtype=spec.dtype)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None) -> Structure:
        mask = self.layer.compute_mask(inputs, previous_mask)
        return (mask, mask)
