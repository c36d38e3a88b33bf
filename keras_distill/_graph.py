"""The graph of a functional or Sequential model, as a list of calls.

All that the library reads of Keras's nodes (private names of Keras: `_nodes_by_depth`,
`_inbound_nodes`, `Node.arguments`, `Node.outputs`) is read here; `tests/test_graph.py`
tells when Keras changes it.
"""

import keras

from keras_distill import _keras


class Call:
    """One call of one layer or operation in a graph.

    Attributes:
        operation: The layer or operation that is called.
        args: Positional arguments, with `KerasTensor`s for tensors.
        kwargs: Keyword arguments, likewise.
        inputs: Flat list of the tensors among the arguments.
        outputs: Flat list of the tensors that the call returns.
        is_input: Whether this is an `Input`.
        index: This is the layer's call number `index` (from 0) in the graph...
        count: ...out of `count` calls.
    """

    def __init__(self, node):
        self.operation = node.operation
        self.args = node.arguments.args
        self.kwargs = node.arguments.kwargs
        self.inputs = list(node.input_tensors)
        self.outputs = list(node.outputs)
        self.is_input = node.is_input
        self.index = 0
        self.count = 1

    @property
    def name(self):
        """The layer's name, with "@index" where the graph calls it more than once."""
        name = self.operation.name
        return name if self.count == 1 else f"{name}@{self.index}"

    @property
    def only_input(self):
        """The one tensor that the call takes as its first argument, or None."""
        if len(self.inputs) != 1 or set(self.kwargs) - {"training", "mask", "inputs"}:
            return None
        if self.kwargs.get("mask") is not None:
            return None
        first = self.args[0] if self.args else self.kwargs.get("inputs")
        return first if first is self.inputs[0] else None


class Graph:
    """The calls of a model, in an order in which they can be run.

    Attributes:
        model: The model.
        input: Structure of its input tensors.
        output: Structure of its output tensors, a list of one unpacked as Keras does.
        calls: List of `Call`.
        names: Dict of the calls by `Call.name`.
        producer: Dict of id(tensor) -> (call, position of the tensor among its outputs).
        uses: Dict of id(tensor) -> in how many places it is used, outputs of the model
            included.
    """

    def __init__(self, model):
        functional = model
        if isinstance(model, keras.Sequential):
            functional = keras.Model(model.inputs[0], _unpacked(model.outputs))
        self.model = model
        self.input = functional.input
        self.output = _unpacked(functional.output)
        nodes = [
            node
            for depth in sorted(functional._nodes_by_depth, reverse=True)
            for node in functional._nodes_by_depth[depth]
        ]
        self.calls = [Call(node) for node in nodes]
        _number(nodes, self.calls)
        self.names = {call.name: call for call in self.calls}
        self.producer = {}
        self.uses = {}
        for call in self.calls:
            for position, tensor in enumerate(call.outputs):
                self.producer[id(tensor)] = (call, position)
            for tensor in call.inputs:
                self.uses[id(tensor)] = self.uses.get(id(tensor), 0) + 1
        for tensor in self.outputs:
            self.uses[id(tensor)] = self.uses.get(id(tensor), 0) + 1

    @property
    def outputs(self):
        """Flat list of the model's output tensors."""
        return keras.tree.flatten(self.output)


def has_graph(model):
    """Whether `model` is, and runs as, a graph of layers that can be read.

    True for functional and built Sequential models and for their subclasses (keras-cv and
    keras-hub backbones) unless these override `call`: then the graph is not what runs.
    """
    if isinstance(model, keras.Sequential):
        # Without a graph (not built yet, or built on nested inputs) `inputs` is an error.
        return type(model).call is keras.Sequential.call and hasattr(model, "inputs")
    return isinstance(model, _keras.Functional) and type(model).call is _keras.Functional.call


def uncompiled_clone(model):
    """`keras.models.clone_model`, of which neither the copy nor a model inside it is compiled.

    Keras compiles the copy of a compiled model: optimizer slots for nothing, and an error where
    a loss or a metric is a function that is not registered.
    """
    compiled = [part for part in _keras.flatten_layers(model) if getattr(part, "compiled", False)]
    for part in compiled:
        part.compiled = False
    try:
        return keras.models.clone_model(model)
    finally:
        for part in compiled:
            part.compiled = True


def _unpacked(structure):
    """What calling a model with this output structure returns: a list of one is unpacked."""
    if isinstance(structure, (list, tuple)) and len(structure) == 1:
        return structure[0]
    return structure


def _number(nodes, calls):
    """Sets `index` and `count`: a layer's calls are numbered as they were made."""
    by_operation = {}
    for node, call in zip(nodes, calls, strict=True):
        by_operation.setdefault(id(node.operation), []).append((node, call))
    for group in by_operation.values():
        made = group[0][0].operation._inbound_nodes
        group.sort(key=lambda pair: made.index(pair[0]))
        for index, (_, call) in enumerate(group):
            call.index = index
            call.count = len(group)
