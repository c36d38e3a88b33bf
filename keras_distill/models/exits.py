"""Exits of a network: where they stand, the heads they get, the models they make."""

import math
from typing import Any
from typing import NamedTuple

import keras
from keras import layers

from keras_distill import _checks
from keras_distill import _graph
from keras_distill import _keras
from keras_distill import heads
from keras_distill import taps
from keras_distill.connectors import TokensToMap
from keras_distill.models.network import LOGITS
from keras_distill.models.network import PROBABILITIES
from keras_distill.models.network import logits_from
from keras_distill.models.sections import section

_SEPARABLE = {1: layers.SeparableConv1D, 2: layers.SeparableConv2D}
_POOLING = {1: layers.GlobalAveragePooling1D, 2: layers.GlobalAveragePooling2D}


class Deepest(NamedTuple):
    """The model's own head, read off its graph.

    Attributes:
        path: Path of the layer whose output the last dense layer reads: the feature.
        position: Which output of that layer it is.
        width: Size of the feature.
        map_shape: Shape of the last map before it, `None` where there is none.
        map_path: Path of the layer that returns that map, or `None`.
        kind: "linear" (logits), "softmax" or "sigmoid".
        classifier: Path of the last dense layer.
    """

    path: str
    position: int
    width: int
    map_shape: Any
    map_path: Any
    kind: str
    classifier: str


def find_deepest(model):
    """The `Deepest` of a model that ends in a dense classifier over a vector.

    Raises:
        TypeError, ValueError: Where the model has no graph, or does not end so.
    """
    taps.check_paths(model, [])
    graph = _graph.Graph(model)
    tensor = graph.output
    if keras.tree.is_nested(tensor) or len(tensor.shape) != 2:
        shapes = [tuple(output.shape) for output in graph.outputs]
        raise ValueError(
            "Expected `model` to have one output of shape (batch, classes). Received: outputs of "
            f"shape {shapes}. Wrap the part of it that classifies."
        )
    kind, prefix, outer = None, "", []
    while True:
        head = heads.trace(graph, tensor)
        kind = kind or head.kind
        if head.source == "nested":
            outer.append((graph, head.call))
            prefix += f"{head.call.name}/"
            graph = _graph.Graph(head.call.operation)
            tensor = graph.outputs[head.position]
        elif head.source == "input":
            tensor = head.call.inputs[0]
        else:
            break
    call = head.call
    width = None
    if head.source is not None and len(call.inputs) == 1:
        shape = tuple(call.inputs[0].shape)
        # A 1x1 convolution of a 1x1 map is a dense layer.
        width = shape[-1] if _is_vector(shape) else None
    if width is None:
        raise ValueError(
            "Expected `model` to end in a dense layer over a vector, with or without a softmax "
            f"or sigmoid. Received: model={model.name!r}, whose graph does not show one. Put a "
            "Dense layer behind its pooling."
        )
    source, position = graph.producer[id(call.inputs[0])]
    return Deepest(
        prefix + source.name,
        position,
        width,
        *_last_map(graph, call.inputs[0], outer),
        kind,
        prefix + call.name,
    )


def _is_vector(shape):
    return len(shape) >= 2 and all(size == 1 for size in shape[1:-1])


def _last_map(graph, tensor, outer):
    """Shape and path of the first tensor above `tensor` that has places; else `None`s."""
    outer = list(outer)
    while _is_vector(tensor.shape):
        call, position = graph.producer[id(tensor)]
        if call.is_input:
            if not outer:
                return None, None
            inputs = [id(x) for x in keras.tree.flatten(graph.input)]
            graph, nested = outer.pop()
            tensor = nested.inputs[inputs.index(id(tensor))]
        elif _graph.has_graph(call.operation):
            outer.append((graph, call))
            graph = _graph.Graph(call.operation)
            tensor = graph.outputs[position]
        else:
            tensor = call.inputs[0]
    names = [nested.name for _, nested in outer] + [graph.producer[id(tensor)][0].name]
    return tuple(tensor.shape), "/".join(names)


# Where exits may stand.


def check_exits(model, exits, deepest):
    """Returns `exits` as a list; raises unless they are maps on the way to the head, in order.

    Args:
        model: A model with a graph.
        exits: Paths of layers, shallow to deep.
        deepest: Its `Deepest`.
    """
    paths = taps.check_paths(model, exits, argument="exits")
    if not paths or (not isinstance(exits, str) and len(paths) < len(exits)):
        raise ValueError(
            _checks.message(
                "`exits` to name at least one layer, and each once",
                "exits",
                exits,
                "`keras_distill.backbones.stages(model)` lists the stages of a backbone, "
                "`keras_distill.taps.list_taps(model)` all layers.",
            )
        )
    shapes = taps.list_taps(model)
    for path in paths:
        if path in (deepest.path, deepest.classifier):
            expected = "`exits` to name layers before the model's own head"
            hint = "Leave it out: the head is the deepest exit in any case."
            raise ValueError(_checks.message(expected, "exits", path, hint))
        shape = shapes[path]
        if isinstance(shape, list) or len(shape) not in (3, 4) or shape[-1] is None:
            expected = (
                "`exits` to name layers that return one map, (batch, height, width, channels)"
            )
            hint = f"Its output has the shape {shape}. Name a layer before the pooling."
            raise ValueError(_checks.message(expected, "exits", path, hint))
    for layer in _keras.flatten_layers(model):
        if getattr(layer, "data_format", None) == "channels_first" and hasattr(layer, "kernel"):
            expected = "`model` to hold its channels last"
            raise ValueError(_checks.message(expected, "model", model.name))
    for first, second in zip(paths, [*paths[1:], deepest.path]):
        if not _comes_before(model, first, second):
            _raise_order(model, first, second, deepest)
    return paths


def _raise_order(model, first, second, deepest):
    if second == deepest.path:
        expected = "`exits` to name layers that feed the model's own head"
        raise ValueError(_checks.message(expected, "exits", first))
    expected = "`exits` from shallow to deep, each behind the one before"
    swap = _comes_before(model, second, first)
    hint = f"{second!r} comes before {first!r}: swap them." if swap else "They lie side by side."
    raise ValueError(_checks.message(expected, "exits", [first, second], hint))


def _comes_before(model, first, second):
    """Whether the layer at path `second` is computed from the layer at path `first`."""
    graph = _graph.Graph(model)
    first, _, first_rest = first.partition("/")
    second, _, second_rest = second.partition("/")
    if first == second:
        if first_rest and second_rest:
            return _comes_before(graph.names[first].operation, first_rest, second_rest)
        return bool(first_rest)
    waiting, seen = [graph.names[second]], set()
    while waiting:
        call = waiting.pop()
        if call is graph.names[first]:
            return True
        if id(call) not in seen:
            seen.add(id(call))
            waiting.extend(graph.producer[id(tensor)][0] for tensor in call.inputs)
    return False


# Heads.


def bottleneck(model, path, deepest, attention=False, batch_norm=True, dtype=None, name=None):
    """Builds what brings the map at an exit to a vector of the deepest feature's width.

    Blocks of two depthwise-separable convolutions, the first with stride 2, until the map is as
    small as the deepest (one block with stride 1 where it already is), each with twice the
    channels and the last with the deepest width; then global average pooling. Tokens of an
    image on a square grid are laid out as a map first; other sequences are convolved in 1D.

    Args:
        model: A model with a graph.
        path: Path of the exit.
        deepest: The model's `Deepest`.
        attention: Whether a sigmoid gate, computed from the map, multiplies it first.
        batch_norm: Whether each convolution is followed by batch normalization.
        dtype: Dtype policy of the layers.
        name: Name of the result.

    Returns:
        A functional `keras.Model` of (batch, ...) -> (batch, width).
    """
    of_image = len(keras.tree.flatten(model.inputs)[0].shape) == 4
    tensor = section(model, None, path).output
    inputs = x = keras.Input(batch_shape=(None, *tensor.shape[1:]), dtype=tensor.dtype)
    sizes = _sizes(x.shape, of_image)
    if sizes is None:
        raise ValueError(
            _checks.message(
                "`exits` to name maps, or tokens on a square grid",
                "exits",
                path,
                f"Its output has the shape {tuple(x.shape)}.",
            )
        )
    if len(x.shape) == 3 and of_image:
        x = TokensToMap(*sizes, dtype=dtype, name="grid")(x)
    block = _Blocks(len(sizes), batch_norm, dtype)
    if attention:
        x = _gated(x, block, path)
    strides = _strides(sizes, _sizes(deepest.map_shape, of_image), x.shape[-1], deepest.width)
    for number, stride in enumerate(strides, start=1):
        last = number == len(strides)
        channels = deepest.width if last else min(2 * x.shape[-1], deepest.width)
        x = block(x, channels, stride, f"block{number}")
    return keras.Model(inputs, _POOLING[len(sizes)](dtype=dtype, name="pool")(x), name=name)


def _sizes(shape, of_image):
    """Height and width (or length) of a map; `None` for tokens off a square grid."""
    if shape is None or len(shape) not in (3, 4):
        return None
    if len(shape) == 4 or not of_image:
        return tuple(shape[1:-1])
    side = math.isqrt(shape[1] or 0)
    # In front of the grid there may be a class token and a distillation token.
    return (side, side) if side and shape[1] - side * side <= 2 else None


def _strides(sizes, target, channels, width):
    """The first stride of each block."""
    if target is None or None in sizes or None in target:
        return [2] * max(1, round(math.log2(max(1.0, width / channels))))
    size, strides = max(sizes), []
    while size > max(target):
        size = -(-size // 2)
        strides.append(2)
    return strides or [1]


class _Blocks:
    """Makes blocks of two separable convolutions, each with normalization and ReLU."""

    def __init__(self, rank, batch_norm, dtype):
        self.rank = rank
        self.batch_norm = batch_norm
        self.dtype = dtype

    def __call__(self, x, channels, stride, prefix):
        for part, width, step in (("1", x.shape[-1], stride), ("2", channels, 1)):
            x = _SEPARABLE[self.rank](
                width,
                3,
                strides=step,
                padding="same",
                use_bias=not self.batch_norm,
                data_format="channels_last",
                dtype=self.dtype,
                name=f"{prefix}_conv{part}",
            )(x)
            if self.batch_norm:
                # PyTorch's momentum 0.1 is Keras's 0.9.
                x = layers.BatchNormalization(
                    momentum=0.9, epsilon=1e-5, dtype=self.dtype, name=f"{prefix}_bn{part}"
                )(x)
            x = layers.ReLU(dtype=self.dtype, name=f"{prefix}_relu{part}")(x)
        return x


def _gated(x, block, path):
    """`x` times a gate between 0 and 1, computed at half its height and width."""
    if len(x.shape) != 4 or None in x.shape[1:3]:
        expected = "`exits` to name maps of known height and width with `attention=True`"
        raise ValueError(_checks.message(expected, "exits", path))
    gate = block(x, x.shape[-1], 2, "gate")
    gate = layers.UpSampling2D(2, interpolation="bilinear", dtype=block.dtype, name="gate_up")(gate)
    surplus = [(0, gate.shape[axis] - x.shape[axis]) for axis in (1, 2)]
    if surplus != [(0, 0), (0, 0)]:
        gate = layers.Cropping2D(surplus, dtype=block.dtype, name="gate_crop")(gate)
    gate = layers.Activation("sigmoid", dtype=block.dtype, name="gate")(gate)
    return layers.Multiply(dtype=block.dtype, name="gated")([x, gate])


# The exits as models.


def exit_model(model, path, bottleneck, classifier, head):
    """The network up to an exit, with no layer that the exit does not need.

    Args:
        model: A model with a graph.
        path: Path of the exit.
        bottleneck: The exit's `bottleneck`.
        classifier: Its dense layer, which gives logits.
        head: What the model's own predictions are: "logits", "softmax" or "sigmoid".

    Returns:
        A functional `keras.Model` of inputs -> predictions of that kind.
    """
    part = section(model, None, path)
    outputs = _activated(classifier(bottleneck(part.output)), head)
    return keras.Model(part.input, outputs, name=f"{model.name}_{bottleneck.name}")


def ensemble_model(model, paths, bottlenecks, classifiers, head):
    """The mean of the logits of all exits and of the model, behind the activation of its head.

    Args:
        model, head: As in `exit_model`.
        paths, bottlenecks, classifiers: As in `exit_model`, one an exit.

    Returns:
        A functional `keras.Model` of inputs -> predictions.
    """
    twin = taps.tap(model, paths)
    prediction, features = twin.output["prediction"], twin.output["features"]
    # Of a softmax the log: a shift of the logits, which does not change the softmax of the mean.
    # So the ensemble consists of layers that any `.keras` file can hold.
    kind = LOGITS if head == LOGITS else PROBABILITIES
    logits = [logits_from(prediction, kind, head)]
    for path, bottleneck, classifier in zip(paths, bottlenecks, classifiers):
        logits.append(classifier(bottleneck(features[path])))
    mean = layers.Average(dtype="float32", name="mean_of_exits")(logits)
    return keras.Model(twin.input, _activated(mean, head), name=f"{model.name}_ensemble")


def sections_of(model, paths, bottlenecks, classifiers, head):
    """The network cut at its exits, for `EarlyExit`.

    Args:
        model, paths, bottlenecks, classifiers, head: As in `ensemble_model`.

    Returns:
        A list of functional models: see `EarlyExit`.

    Raises:
        ValueError: If the model cannot be cut at an exit, for connections pass it by.
    """
    sections = []
    for i, (start, end) in enumerate(zip([None, *paths], [*paths, None])):
        part = section(model, start, end)
        if end is not None:
            prediction = _activated(classifiers[i](bottlenecks[i](part.output)), head)
            outputs = {"features": part.output, "prediction": prediction}
            part = keras.Model(part.input, outputs, name=f"{model.name}_section_{i}")
        sections.append(part)
    return sections


def _activated(logits, head):
    if head == LOGITS:
        return logits
    return layers.Activation(head, dtype="float32", name="predictions")(logits)
