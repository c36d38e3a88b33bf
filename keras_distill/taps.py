"""Reading the layers inside a model: a twin with the same weights and more outputs."""

import collections
import re
from typing import Any

import keras

from keras_distill import _checks
from keras_distill import _graph
from keras_distill import folding
from keras_distill import heads
from keras_distill._types import Layers

_NO_GRAPH = (
    "Build it as a functional model, `keras.Model(inputs, outputs)`, or as a Sequential model "
    "with an `Input`; of a model that overrides `call` only the outputs can be used."
)


def tap(
    model: keras.Model, paths: Layers = (), *, fold_batch_norm: bool = False, logits: bool = False
) -> keras.Model:
    """Builds a functional twin of a model that also returns layers inside it.

    The twin shares the layers, and so the variables, and computes what the model computes
    (outputs differ by 0.0), in training too: dropout, batch statistics, masks,
    regularizers. The model itself stays as it is. A layer that feeds no output of the twin
    is not run. The twin is a view, made again when needed: save the model, not the twin.

    Args:
        model: A functional or Sequential model, or a subclass of these that does not
            override `call`: `keras.applications`, keras-cv and keras-hub backbones and
            classifiers, and models that nest them.
        paths: A path or a list of paths. "head" is the layer of that name, and
            "backbone/stage2" the layer `stage2` in the nested model `backbone`. Where a
            model calls a layer several times, "head@0" is the first call that was made,
            "head@1" the second. `list_taps(model)` gives all.
        fold_batch_norm: Whether each `BatchNormalization` fed by a linear convolution runs
            as one convolution in inference, computed from the live variables of both
            (outputs within 1e-5). With `training=True` nothing is folded.
        logits: Whether to return the values before each softmax or sigmoid too.

    Returns:
        A `keras.Model` with the inputs of `model`, which returns a dict:
        - "prediction": what `model` returns.
        - "features": dict of path -> tensor; a list for a layer with several outputs.
        - "logits", if `logits=True`: for one output its logits; the key is missing where
          the graph does not tell them. For several outputs a dict of those that are told,
          by the output's key or its position as a string ("0", "1"), the parts of deeper
          structures joined by "/". A head without activation is its own logits.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If `model` has no graph of layers, or a path is not in it.

    Example:
    ```python
    twin = keras_distill.tap(model, ["backbone/stage2"])
    outputs = twin(images)
    outputs["prediction"], outputs["features"]["backbone/stage2"]
    ```
    """
    paths = check_paths(model, paths)
    graph = _graph.Graph(model)
    replay = _Replay(graph, paths, fold_batch_norm, range(len(graph.outputs)) if logits else ())
    outputs = {
        "prediction": keras.tree.map_structure(replay.value, graph.output),
        "features": replay.features,
    }
    found = replay.logits
    if logits and keras.tree.is_nested(graph.output):
        leaves = keras.tree.flatten_with_path(graph.output)
        names = ["/".join(str(part) for part in path) for path, _ in leaves]
        outputs["logits"] = {names[position]: found[position] for position in found}
    elif found:
        outputs["logits"] = found[0]
    return keras.Model(graph.input, outputs, name=model.name)


def list_taps(model: keras.Model) -> dict[str, Any]:
    """Lists all that `tap` can return from a model.

    Args:
        model: As in `tap`.

    Returns:
        Dict of path -> shape of the output, in the order in which the layers run; a list
        of shapes for a layer with several outputs.

    Raises:
        TypeError, ValueError: As in `tap`.
    """
    _check_model(model)
    return _list_taps(_graph.Graph(model))


def check_paths(model: keras.Model, paths: Layers, argument: str = "paths") -> list[str]:
    """Returns `paths` as a list of distinct paths; raises unless all are in the model.

    Args:
        model: As in `tap`.
        paths: As in `tap`.
        argument: What the caller calls its argument, for the error.

    Raises:
        TypeError, ValueError: As in `tap`.
    """
    _check_model(model)
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, (list, tuple)) or not all(isinstance(p, str) for p in paths):
        raise TypeError(
            _checks.message(
                f"`{argument}` to be the path of a layer or a list of paths", argument, paths
            )
        )
    paths = list(dict.fromkeys(paths))
    if not paths:
        return paths
    taps = _list_taps(_graph.Graph(model))
    for path in paths:
        if path not in taps:
            expected = f"`{argument}` to name a layer of the model {model.name!r}"
            raise ValueError(_checks.message(expected, argument, path, _hint(path, taps)))
    return paths


def _check_model(model):
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Expected `model` to be a Keras model. Received: model={model!r} of type "
            f"{type(model).__name__}."
        )
    if not _graph.has_graph(model):
        received = f"{model.name} of type {type(model).__name__}"
        raise ValueError(
            f"Expected `model` to be a model with a graph of layers. Received: {received}. "
            f"{_NO_GRAPH}"
        )


def _list_taps(graph):
    taps = {}
    for call in graph.calls:
        shapes = [tuple(tensor.shape) for tensor in call.outputs]
        taps[call.name] = shapes[0] if len(shapes) == 1 else shapes
        if _graph.has_graph(call.operation):
            inner = _list_taps(_graph.Graph(call.operation))
            taps |= {f"{call.name}/{path}": shape for path, shape in inner.items()}
    return taps


def _hint(path, taps):
    """What to do about a path that does not exist: the nearest names, and what is there."""
    calls = [tap for tap in taps if re.fullmatch(rf"{re.escape(path)}@\d+", tap)]
    if calls:
        return f"It is called {len(calls)} times: choose one of {', '.join(map(repr, calls))}."
    near = _checks.nearest_names(path, list(taps))
    parent = path.rpartition("/")[0]
    while parent and parent not in taps:
        parent = parent.rpartition("/")[0]
    prefix = f"{parent}/" if parent else ""
    beside = [tap for tap in taps if tap.startswith(prefix) and "/" not in tap[len(prefix) :]]
    if not beside:
        return f"{parent!r} is not a model with a graph of layers: tap {parent!r} itself."
    more = "..., " if len(beside) > 12 else ""
    owner = repr(parent) if parent else "It"
    exists = f"{owner} has: {more}{', '.join(map(repr, beside[-12:]))}"
    if not near:
        return f"{exists}."
    return f"Did you mean {' or '.join(map(repr, near))}? {exists}."


class _Replay:
    """Runs a graph again on its own input tensors, with some calls replaced.

    Only what is replaced, and what depends on it, is called again; all other tensors are
    those of the original graph.

    Args:
        graph: A `Graph`.
        paths: Paths to return, existing ones.
        fold: Whether to fold batch normalization.
        logits: Positions of the outputs whose logits to return.

    Attributes:
        features: Dict of path -> tensor, or list of tensors.
        logits: Dict of position -> tensor, for those that can be had.
    """

    def __init__(self, graph, paths, fold, logits):
        self._graph = graph
        self._fold = fold
        self._values = {}
        self._inside = {}
        self._twins = {}
        wanted = collections.defaultdict(list)
        for path in paths:
            name, _, rest = path.partition("/")
            if rest:
                wanted[name].append(rest)
        self._taps = [path for path in paths if "/" not in path]
        self._wanted = wanted
        self._heads = {position: heads.trace(graph, graph.outputs[position]) for position in logits}
        self._folds = self._find_folds() if fold else {}
        self._run()
        self.features = {path: self._feature(path) for path in paths}
        self.logits = {
            position: self._logits(graph.outputs[position], head)
            for position, head in self._heads.items()
            if head.source is not None
        }

    def value(self, tensor):
        """The twin's tensor for a tensor of the graph."""
        return self._values.get(id(tensor), tensor)

    def _run(self):
        folded = {id(convolution) for convolution in self._folds.values()}
        inside = {id(h.call): h.call for h in self._heads.values() if h.source == "inside"}
        for call in self._graph.calls:
            if call.is_input or id(call) in folded:
                continue
            if id(call) in self._folds:
                self._call_folded(call, self._folds[id(call)])
            elif id(call) in inside:
                layer = heads.PreActivation(call.operation, name=f"{call.operation.name}_logits")
                outputs, self._inside[id(call)] = layer(self.value(call.only_input))
                self._set(call, outputs)
            elif (twin := self._twin(call.operation)) is not None:
                outputs = self._call(twin, call)
                self._set(call, outputs.pop("prediction"))
                self._inside[id(call)] = outputs
            elif any(id(tensor) in self._values for tensor in call.inputs):
                self._set(call, self._call(call.operation, call))

    def _call(self, layer, call):
        def fill(x):
            return self.value(x) if isinstance(x, keras.KerasTensor) else x

        args = keras.tree.map_structure(fill, call.args)
        kwargs = keras.tree.map_structure(fill, call.kwargs)
        return layer(*args, **kwargs)

    def _set(self, call, outputs):
        for old, new in zip(call.outputs, keras.tree.flatten(outputs), strict=True):
            self._values[id(old)] = new

    def _twin(self, layer):
        """The twin of a nested model, the same one for all its calls; None if not needed."""
        if id(layer) in self._twins:
            return self._twins[id(layer)]
        twin = None
        if _graph.has_graph(layer):
            calls = [call for call in self._graph.calls if call.operation is layer]
            paths = [path for call in calls for path in self._wanted[call.name]]
            positions = {
                head.position
                for head in self._heads.values()
                if head.source == "nested" and head.kind != "linear" and head.call in calls
            }
            inner = _Replay(
                _graph.Graph(layer), list(dict.fromkeys(paths)), self._fold, sorted(positions)
            )
            twin = inner.model() if paths or positions or inner._values else None
        self._twins[id(layer)] = twin
        return twin

    def model(self):
        """The twin of a nested model."""
        outputs = {
            "prediction": keras.tree.map_structure(self.value, self._graph.output),
            "features": self.features,
            "logits": {str(position): tensor for position, tensor in self.logits.items()},
        }
        return keras.Model(self._graph.input, outputs, name=self._graph.model.name)

    def _feature(self, path):
        name, _, rest = path.partition("/")
        call = self._graph.names[name]
        if rest:
            return self._inside[id(call)]["features"][rest]
        tensors = [self.value(tensor) for tensor in call.outputs]
        return tensors[0] if len(tensors) == 1 else tensors

    def _logits(self, tensor, head):
        if head.kind == "linear":
            return self.value(tensor)
        if head.source == "input":
            logits = self.value(head.call.inputs[0])
        elif head.source == "inside":
            logits = self._inside[id(head.call)]
        else:
            logits = self._inside[id(head.call)]["logits"][str(head.position)]
        for call in reversed(head.after):
            logits = call.operation(logits)
        return logits

    def _find_folds(self):
        """Dict of id(call of a BatchNormalization) -> call of the convolution to fold in."""
        folds = {}
        tapped = set(self._taps)
        for call in self._graph.calls:
            if call.is_input or call.only_input is None or call.kwargs.get("training"):
                continue
            convolution, _ = self._graph.producer[id(call.only_input)]
            alone = call.count == 1 and convolution.count == 1
            if (
                alone
                and not convolution.is_input
                and convolution.only_input is not None
                and self._graph.uses[id(call.only_input)] == 1
                and convolution.name not in tapped
                and folding.can_fold(convolution.operation, call.operation)
            ):
                folds[id(call)] = convolution
        return folds

    def _call_folded(self, call, convolution):
        layer = folding.FoldedConvolution(
            convolution.operation, call.operation, name=f"{call.operation.name}_folded"
        )
        x = self.value(convolution.only_input)
        self._set(call, layer(x, training=call.kwargs.get("training")))
