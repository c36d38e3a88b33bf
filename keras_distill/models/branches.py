"""Branches: fresh copies of all that follows a layer of a functional model."""

import keras

from keras_distill import _checks
from keras_distill import _graph
from keras_distill import _keras
from keras_distill import taps

_SEED_STRIDE = 7919


def fresh_branch(model, branch_at, index, name, argument="branch_at"):
    """A new network of the layers that `model` runs after `branch_at`.

    Every layer with variables is made anew from its config: its own weights, freshly drawn
    (a seed that the config fixes is shifted by the index), its own dropout masks. Layers
    that are frozen, or adapted to data, start with a copy of their values. Layers and
    operations without variables are those of the model.

    Args:
        model: A `keras.Model` with a graph of layers.
        branch_at: Path of the layer whose output the branches share, see `keras_distill.tap`;
            it may lie in a nested model.
        index: The branch's number, which shifts fixed seeds.
        name: Name of the new model.
        argument: What the caller calls `branch_at`, for errors.

    Returns:
        A functional `keras.Model` from the output of `branch_at` to the outputs of `model`.

    Raises:
        TypeError, ValueError: If the model has no graph, the path is not in it or names
            several tensors, an output of the model does not pass through it alone, or a layer
            cannot be made anew.
    """
    taps.check_paths(model, [branch_at], argument)
    graph = _graph.Graph(model)
    shared = _tensor_at(graph, branch_at, argument)
    inputs = keras.Input(batch_shape=shared.shape, dtype=shared.dtype, name="shared")
    copies = _Copies(index, branch_at, argument)
    values = _replay(graph, branch_at, inputs, copies)
    outputs = [copies.value(values, tensor) for tensor in graph.outputs]
    copies.keep_frozen()
    branch = keras.Model(inputs, keras.tree.pack_sequence_as(graph.output, outputs), name=name)
    if not branch.trainable_variables:
        raise ValueError(
            _checks.message(
                f"`{argument}` to have layers with weights after it, one set for each branch",
                argument,
                branch_at,
            )
        )
    return branch


def _tensor_at(graph, path, argument):
    """The one tensor that the path names."""
    name, _, rest = path.partition("/")
    call = graph.names[name]
    if rest:
        if call.count > 1:
            raise ValueError(
                _checks.message(
                    f"`{argument}` in a model that is called once",
                    argument,
                    path,
                    f"{call.operation.name!r} is called {call.count} times: take a layer outside.",
                )
            )
        return _tensor_at(_graph.Graph(call.operation), rest, argument)
    if len(call.outputs) != 1:
        expected = f"`{argument}` to be a layer with one output"
        raise ValueError(_checks.message(expected, argument, path))
    return call.outputs[0]


def _replay(graph, path, shared, copies):
    """Runs what follows `path` on `shared`. Returns `id(tensor) -> new tensor`."""
    name, _, rest = path.partition("/")
    start = graph.names[name]
    values = {}
    if rest:
        inner = _graph.Graph(start.operation)
        found = _replay(inner, rest, shared, copies)
        for outer, tensor in zip(start.outputs, inner.outputs, strict=True):
            if id(tensor) in found:
                values[id(outer)] = found[id(tensor)]
    else:
        values[id(start.outputs[0])] = shared
    for call in graph.calls:
        if call is start or not any(id(tensor) in values for tensor in call.inputs):
            continue

        def fill(x):
            return copies.value(values, x) if isinstance(x, keras.KerasTensor) else x

        args = keras.tree.map_structure(fill, call.args)
        kwargs = keras.tree.map_structure(fill, call.kwargs)
        outputs = copies.of(call.operation)(*args, **kwargs)
        for old, new in zip(call.outputs, keras.tree.flatten(outputs), strict=True):
            values[id(old)] = new
    return values


class _Copies:
    """The layers of a branch, each made once, and the errors that name the path."""

    def __init__(self, index, path, argument):
        self._shift = _SEED_STRIDE * index
        self._path = path
        self._argument = argument
        self._layers = {}

    def of(self, operation):
        """The branch's own layer; what has no variables is taken as it is."""
        if id(operation) not in self._layers:
            self._layers[id(operation)] = (operation, self._fresh(operation))
        return self._layers[id(operation)][1]

    def _fresh(self, operation):
        if not isinstance(operation, keras.Layer) or not operation.variables:
            return operation
        try:
            return type(operation).from_config(shift_seeds(operation.get_config(), self._shift))
        except Exception as error:  # Whatever a layer of the user's raises.
            raise ValueError(
                f"Expected the layers after `{self._argument}` to be made anew from their config. "
                f"Received: {operation.name!r} of type {type(operation).__name__} ({error}). Give "
                "it `get_config`, or branch behind it."
            ) from error

    def keep_frozen(self):
        """Gives the copies of frozen and of adapted layers the values of the originals."""
        for operation, copy in self._layers.values():
            if copy is operation:
                continue
            pairs = zip(_keras.flatten_layers(operation), _keras.flatten_layers(copy), strict=True)
            for old, new in pairs:
                if not old.trainable or hasattr(old, "adapt"):
                    own = {}
                    old.save_own_variables(own)
                    new.load_own_variables(own)

    def value(self, values, tensor):
        """The branch's tensor for one of the model's."""
        if id(tensor) in values:
            return values[id(tensor)]
        raise ValueError(
            _checks.message(
                f"every way from the inputs to the outputs to pass through `{self._argument}`",
                self._argument,
                self._path,
                f"What follows it also reads {tensor.name!r}, from before: choose a layer that "
                "ends a stage.",
            )
        )


def shift_seeds(config, shift):
    """A layer's config with every fixed seed in it moved by `shift`."""
    if isinstance(config, dict):
        return {
            key: value + shift
            if key == "seed" and isinstance(value, int)
            else shift_seeds(value, shift)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(shift_seeds(value, shift) for value in config)
    return config
