"""The layers that a loss compares where the user names none."""

import keras

from keras_distill import _checks
from keras_distill import _graph
from keras_distill import backbones
from keras_distill import heads
from keras_distill import taps

ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
)


class Network:
    """A network whose layers are found by what they are.

    Args:
        model: A `keras.Model` with a graph of layers.
        role: "teacher" or "student", for the errors.
    """

    def __init__(self, model, role):
        self.model = model
        self.role = role
        self.shapes = taps.list_taps(model)

    def stages(self):
        """Paths of the stages, the deepest one last."""
        try:
            return list(backbones.stages(self.model).values())
        except ValueError:
            raise self._missing("stages that have names") from None

    def stem(self):
        """Path of the stem, in a list; empty where none is called so."""
        return [path for path in ("stem",) if path in self.shapes]

    def pooled(self):
        """Path of the vector that the head reads, in a list."""
        if "pool" in self.shapes:
            return ["pool"]
        graph = _graph.Graph(self.model)
        call, is_head = self._last(graph), False
        while call.only_input is not None and not is_head:
            is_head = isinstance(call.operation, keras.layers.Dense)
            call = graph.producer[id(call.only_input)][0]
        if not is_head or len(self.shapes.get(call.name, ())) != 2:
            raise self._missing("a pooled vector before a dense head")
        return [call.name]

    def logits(self):
        """Path of the layer that returns the logits, in a list."""
        if heads.head_of(self.model) != "linear":
            raise self._missing("a last layer that returns logits")
        return [self._last(_graph.Graph(self.model)).name]

    def before_activation(self, path):
        """Path of what a stage's last activation reads; the stage itself where it has none."""
        if f"{path}_pre" in self.shapes:
            return f"{path}_pre"
        *outer, name = path.split("/")
        graph = _graph.Graph(self.model)
        for part in outer:
            graph = _graph.Graph(graph.names[part].operation)
        call = graph.names[name]
        if not isinstance(call.operation, ACTIVATIONS) or call.only_input is None:
            return path
        return "/".join([*outer, graph.producer[id(call.only_input)][0].name])

    def named(self, layers):
        """The paths in "a,b", checked."""
        paths = [path.strip() for path in layers.split(",")]
        return taps.check_paths(self.model, paths, f"{self.role}_layer")

    def shapes_of(self, paths):
        """The shape of each layer's output."""
        return [self.shapes[path] for path in paths]

    def _last(self, graph):
        if len(graph.outputs) != 1:
            raise self._missing("one output")
        return graph.producer[id(graph.outputs[0])][0]

    def _missing(self, what):
        return ValueError(
            _checks.message(
                f"a {self.role} with {what}",
                self.role,
                self.model.name,
                "Name the layers: --teacher-layer and --student-layer.",
            )
        )


def _stages(network):
    return network.stages()


def _pre_activations(network):
    return [network.before_activation(path) for path in network.stages()]


def _reviewed(network):
    return _pre_activations(network) if network.role == "teacher" else network.stages()


def _last_but_one(network):
    return network.stages()[-2:][:1]


def _graph_of_instances(network):
    return [*network.stages()[-2:], *network.pooled(), *network.logits()]


# Kinds of layers: how a network's are found, the deepest stage last. Of networks with unequal
# numbers of stages the deepest ones are compared.
KINDS = {
    "pooled": Network.pooled,
    "last stage": lambda network: network.stages()[-1:],
    "middle stage": _last_but_one,
    "stages": _stages,
    "pre-activations": _pre_activations,
    "stem and stages": _stages,
    "stages and pooled": _stages,
    "review": _reviewed,
    "graph": _graph_of_instances,
}
BEFORE = {"stem and stages": Network.stem}
BEHIND = {"stages and pooled": Network.pooled, "review": Network.pooled}


def of_kind(kind, teacher, student):
    """The layers of a kind: `(teacher's paths, student's paths)`, as many of both.

    Args:
        kind: One of `KINDS`.
        teacher, student: `Network`s.
    """
    pair = teacher, student
    found = [KINDS[kind](network) for network in pair]
    count = min(map(len, found))
    found = [paths[len(paths) - count :] for paths in found]
    before = [BEFORE.get(kind, _nothing)(network) for network in pair]
    behind = [BEHIND.get(kind, _nothing)(network) for network in pair]
    if not all(before):
        before = [[], []]
    return tuple([*a, *b, *c] for a, b, c in zip(before, found, behind))


def _nothing(network):
    return []
