"""Parts of a network: from its inputs to a layer, between two layers, from a layer on."""

import keras

from keras_distill import _graph


def section(model, start=None, end=None, shape=None):
    """The part of a model between two layers, a functional model with the same weights.

    It holds no layer that `end` does not need; nested models are cut too.

    Args:
        model: A model with a graph.
        start: Path of the layer whose output the part takes; `None` for the model's inputs.
        end: Path of the layer whose output it returns; `None` for the model's outputs.
        shape: Shape of what the part takes at `start`, batch first, where it is another than
            that of the layer's output.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: If what `end` needs does not come through `start` alone.
    """
    graph = _graph.Graph(model)
    first, _, first_rest = (start or "").partition("/")
    last, _, last_rest = (end or "").partition("/")
    if first_rest and last_rest and first == last:
        return section(graph.names[first].operation, first_rest, last_rest, shape)
    inputs, values = graph.input, None
    if start is not None:
        call = graph.names[first]
        if first_rest:
            rest = section(call.operation, first_rest, shape=shape)
            inputs = _fresh_input(rest.inputs[0])
            outputs = rest(inputs)
        else:
            inputs = outputs = _fresh_input(call.outputs[0], shape)
        pairs = zip(call.outputs, keras.tree.flatten(outputs), strict=True)
        values = {id(old): new for old, new in pairs}
    if end is None:
        outputs = _replayed(graph, values, graph.output, start)
    elif last_rest:
        call = graph.names[last]
        inner = section(call.operation, None, last_rest)
        args, kwargs = _replayed(graph, values, (call.args, call.kwargs), start)
        outputs = inner(*args, **kwargs)
    else:
        outputs = _replayed(graph, values, graph.names[last].outputs[0], start)
    return keras.Model(inputs, outputs, name=model.name)


def _fresh_input(tensor, shape=None):
    shape = tensor.shape if shape is None else shape
    return keras.Input(batch_shape=(None, *shape[1:]), dtype=tensor.dtype)


def _replayed(graph, values, structure, start):
    """The tensors in `structure`, computed anew from those in `values`; as they are from none."""
    if values is None:
        return structure

    def fill(x):
        return values.get(id(x), x)

    needed, waiting = set(), [x for x in keras.tree.flatten(structure) if _is_tensor(x)]
    while waiting:
        tensor = waiting.pop()
        call, _ = graph.producer[id(tensor)]
        if id(tensor) in values or id(call) in needed:
            continue
        if call.is_input:
            raise ValueError(
                f"Expected layer {start!r} to be a place at which {graph.model.name!r} can be cut "
                "in two. Received: a model with a connection that passes it by. Choose exits "
                "that all the layers behind them depend on alone, such as the ends of stages."
            )
        needed.add(id(call))
        waiting.extend(call.inputs)
    for call in graph.calls:
        if id(call) in needed:
            args, kwargs = keras.tree.map_structure(fill, (call.args, call.kwargs))
            outputs = keras.tree.flatten(call.operation(*args, **kwargs))
            values.update(zip(map(id, call.outputs), outputs, strict=True))
    return keras.tree.map_structure(fill, structure)


def _is_tensor(x):
    return isinstance(x, keras.KerasTensor)
