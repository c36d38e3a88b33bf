"""The losses as the command line knows them: by name, with their layers and the papers' weights."""

import dataclasses
import inspect
import re

from keras_distill import _checks
from keras_distill import _keras
from keras_distill import losses
from keras_distill import schedules
from keras_distill.losses._relation import RelationLoss
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.terms import Term
from keras_distill.recipes import loss_layers

ROLES = ("teacher", "student")
FAMILIES = ("response", "feature", "relation", "contrastive and boundary")


@dataclasses.dataclass(frozen=True)
class Use:
    """How a loss is used where the user says nothing else.

    Attributes:
        weight: Factor of the loss: what the papers or their codes have.
        label_weight: Factor of the label loss beside it.
        layers: One of `loss_layers.KINDS`; None for the first kind that the loss can compare.
        until: At which share of the steps the weight has fallen to 0, in a straight line; None
            for never.
    """

    weight: float = 1.0
    label_weight: float = 1.0
    layers: str | None = None
    until: float | None = None


OF_RESPONSE = Use(0.9, 0.1)
# Layers as in RepDistiller. A loss that is not here has a weight of 1.
USES = {
    "ActivationBoundary": Use(3e-3, layers="pre-activations"),
    "AdaptiveAlphaDivergence": Use(1.0, 0.0),
    "AttentionTransfer": Use(1000.0, layers="stages"),
    "BoundarySupport": Use(2.0, until=0.75),
    "ContrastiveRepresentation": Use(0.8, layers="pooled"),
    "CorrelationCongruence": Use(100.0, layers="pooled"),
    "DIST": Use(2.0),
    "DecoupledKD": Use(),
    "FactorTransfer": Use(500.0, layers="last stage"),
    "FlowOfSolution": Use(layers="stem and stages"),
    "Hint": Use(100.0, layers="middle stage"),
    "InstanceGraph": Use(layers="graph"),
    "LogitMSE": Use(0.1),
    "NeuronSelectivity": Use(50.0, layers="stages"),
    "NormalizedKD": Use(),
    "ProbabilisticTransfer": Use(30000.0, layers="pooled"),
    "RelationalAngle": Use(50.0, layers="pooled"),
    "RelationalDistance": Use(25.0, layers="pooled"),
    "ReviewKD": Use(layers="stages and pooled"),
    "SimilarityPreserving": Use(3000.0, layers="last stage"),
    "SoftTargets": OF_RESPONSE,
    "VariationalInformation": Use(layers="stages"),
}
# What is tried for a loss whose layers are not in `USES`.
TRIED = ("pooled", "last stage", "stages", "stages and pooled", "graph")

# Arguments of losses that the command line knows from the training.
SUPPLIED = {
    "bounds": lambda images, seed: (0.0, 1.0),  # what `data.batches` makes of images
    "labels": lambda images, seed: images.labels,
    "negatives": lambda images, seed: min(16384, len(images)),
    "samples": lambda images, seed: len(images),
    "seed": lambda images, seed: seed,
}


def names():
    """The names of all losses, family by family."""
    found = [name for name in losses.__all__ if _is_loss(name)]
    return sorted(found, key=lambda name: FAMILIES.index(family(name)))


def _is_loss(name):
    found = getattr(losses, name)
    return inspect.isclass(found) and found is not losses.DistillationLoss


def family(name):
    """One of `FAMILIES`."""
    cls = getattr(losses, name)
    if name == "BoundarySupport" or cls.needs_ids is True:
        return "contrastive and boundary"
    if cls.on_logits:
        return "response"
    return "relation" if issubclass(cls, RelationLoss) else "feature"


def summary(name):
    """What a loss is, with its paper, in a line, and the paper's address or None."""
    cls = getattr(losses, name)
    line = inspect.getdoc(cls).splitlines()[0].partition(": see")[0].rstrip(".")
    twin = getattr(losses, _keras.to_snake_case(name), None)
    for text in map(inspect.getdoc, filter(None, (twin, cls))):
        address = re.search(r"https?://[^\s)>]*[^\s)>.,;:]", text)
        if address:
            return line, address.group()
    return line, None


def listed():
    """The lines of `keras-distill losses`."""
    lines = []
    for name in names():
        title = f"{family(name)}:"
        if title not in lines:
            lines.append(title)
        line, address = summary(name)
        missing = unknown_arguments(name)
        in_python = f" (in Python: it needs {', '.join(missing)})" if missing else ""
        lines.append(f"  {name:26} {line}. {address or ''}".rstrip() + in_python)
    return lines


def unknown_arguments(name):
    """The arguments that a loss cannot do without and the command line does not know."""
    return [
        argument
        for argument, parameter in _parameters(name).items()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
        and argument not in SUPPLIED
    ]


def _parameters(name):
    parameters = inspect.signature(getattr(losses, name).__init__).parameters
    return {argument: value for argument, value in parameters.items() if argument != "self"}


def check(name, temperature=None):
    """Raises `ValueError` unless the command line can make the loss of that name.

    Args:
        name: What `--loss` says.
        temperature: What `--temperature` says, or None.
    """
    known = names()
    if name not in known:
        near = _checks.nearest_names(str(name), known)
        hint = f"Nearest: {', '.join(near)}." if near else ""
        expected = "`loss` to be one that `keras-distill losses` lists"
        raise ValueError(_checks.message(expected, "loss", name, hint))
    missing = unknown_arguments(name)
    if missing:
        raise ValueError(
            _checks.message(
                f"a `loss` that needs no {', '.join(missing)}",
                "loss",
                name,
                "Use that one in Python, in a kd.Term.",
            )
        )
    if temperature is not None and "temperature" not in _parameters(name):
        raise ValueError(
            _checks.message(
                f"no `temperature` for {name}",
                "temperature",
                temperature,
                "It has none: leave the option out.",
            )
        )


@dataclasses.dataclass(frozen=True)
class Wiring:
    """A loss and all that its terms need.

    Attributes:
        name: The loss.
        arguments: Its arguments.
        weight, label_weight: Factors of each term and of the label loss.
        until: As in `Use`.
        pairs: For each term `(teacher's paths, student's paths, connectors)`; None for one on
            predictions or inputs.
    """

    name: str
    arguments: dict
    weight: float
    label_weight: float
    until: float | None = None
    pairs: list | None = None

    @property
    def needs_ids(self):
        """Whether the batches have to carry ids."""
        return getattr(losses, self.name).needs_ids

    def loss(self):
        """A loss, new each time: one with layers belongs to one term."""
        return getattr(losses, self.name)(**self.arguments)

    def terms(self, steps):
        """New `Term`s for a training of so many steps."""
        weight = self.weight
        if self.until is not None and weight:
            weight = schedules.Linear(weight, 0.0, max(1, int(self.until * steps)))
        if self.pairs is None:
            return [Term(self.loss(), weight=weight)]
        return [
            Term(self.loss(), teacher, student, weight, connector=connectors)
            for teacher, student, connectors in self.pairs
        ]

    def layers(self, side):
        """The paths of the teacher (0) or the student (1), or None."""
        if self.pairs is None:
            return None
        return ",".join(path for pair in self.pairs for path in pair[side])

    def settings(self):
        """The settings that it was made from, as far as they were left open, by name."""
        return {
            "weight": self.weight,
            "label_weight": self.label_weight,
            "teacher_layer": self.layers(0),
            "student_layer": self.layers(1),
        }

    def __str__(self):
        falls = "" if self.until is None else f", falling to 0 at {self.until:.0%} of the steps"
        where = ""
        if self.pairs is not None:
            where = f" of {self.layers(0)} (teacher) and {self.layers(1)} (student)"
            if any(part for *_, connectors in self.pairs for part in connectors or ()):
                where += ", fitted by trained connectors"
        labels = f"label loss: weight {self.label_weight:g}"
        return f"Loss: {self.name}{where}, weight {self.weight:g}{falls}; {labels}"


def wired(settings, teacher, student, images):
    """The `Wiring` of a loss by name; raises where it cannot compare the two networks.

    Args:
        settings: With `loss`, `temperature`, `weight`, `label_weight`, `teacher_layer`,
            `student_layer`, `ensemble` and `seed`, None for what was not said.
        teacher, student: The networks.
        images: The training `ImageData`.
    """
    name = settings.loss
    check(name, settings.temperature)
    cls = getattr(losses, name)
    use = USES.get(name, OF_RESPONSE if cls.on_logits else Use())
    arguments = {
        argument: SUPPLIED[argument](images, settings.seed)
        for argument in _parameters(name)
        if argument in SUPPLIED
    }
    if settings.temperature is not None:
        arguments["temperature"] = settings.temperature
    made = Wiring(
        name,
        arguments,
        use.weight if settings.weight is None else settings.weight,
        use.label_weight if settings.label_weight is None else settings.label_weight,
        use.until if settings.weight is None else None,
    )
    given = settings.teacher_layer, settings.student_layer
    if cls.on_logits or cls.on_inputs:
        if any(given):
            compared = "predictions" if cls.on_logits else "slopes by the images"
            raise ValueError(
                f"Expected no --teacher-layer and --student-layer for {name}, which compares "
                f"{compared}. Received: {', '.join(filter(None, given))}. Leave them out."
            )
        return made
    if settings.ensemble > 1 or isinstance(teacher, EnsembleTeacher):
        raise ValueError(
            f"Expected one teacher for {name}, which compares layers. Received: an ensemble. Use "
            "a loss of predictions, or wire a layer of a member in Python, with kd.Term."
        )
    networks = [loss_layers.Network(m, r) for m, r in zip((teacher, student), ROLES)]
    return dataclasses.replace(made, pairs=_pairs(made.loss(), use.layers, networks, given))


def _pairs(loss, kind, networks, given):
    """The `pairs` of a `Wiring`: the layers that were named, or those of a kind."""
    kinds = [kind] if kind or any(given) else TRIED
    refused = None
    for kind in kinds:
        paths = [n.named(layers) if layers else None for n, layers in zip(networks, given)]
        if None in paths:
            try:
                default = loss_layers.of_kind(kind or TRIED[0], *networks)
            except ValueError as error:
                refused = refused or error
                continue
            paths = [own or other for own, other in zip(paths, default)]
        if len(paths[0]) != len(paths[1]):
            raise ValueError(
                f"Expected as many layers of the teacher as of the student. Received: "
                f"teacher {', '.join(paths[0])}; student {', '.join(paths[1])}. Give both "
                "--teacher-layer and --student-layer, or neither."
            )
        pairs, expected = _together_or_each(loss, paths, networks)
        if pairs is not None:
            return pairs
        shapes = [n.shapes_of(own) for n, own in zip(networks, paths)]
        refused = refused or ValueError(
            f"Expected {expected} for {type(loss).__name__}. Received: teacher "
            f"{_told(paths[0], shapes[0])}; student {_told(paths[1], shapes[1])}. Name other "
            "layers: --teacher-layer and --student-layer."
        )
    raise refused


def _together_or_each(loss, paths, networks):
    """`(pairs, None)` of one term on all paths, or one on each; `(None, what is missing)`."""
    shapes = [n.shapes_of(own) for n, own in zip(networks, paths)]
    teacher, student = shapes
    alone = len(teacher) == 1
    for connector in (None, "auto"):
        own = teacher if connector else student
        expected = loss.misfit(teacher[0], own[0]) if alone else loss.misfit(teacher, own)
        if expected is None:
            fitted = None if connector is None else [connector] * len(teacher)
            return [(*paths, fitted)], None
    first, pairs = expected, []
    for i in range(0 if alone else len(teacher)):
        fits = [loss.misfit(teacher[i], own) is None for own in (student[i], teacher[i])]
        if not any(fits):
            return None, first
        pairs.append(([paths[0][i]], [paths[1][i]], None if fits[0] else ["auto"]))
    return pairs or None, first


def _told(paths, shapes):
    return ", ".join(f"{path} {shape}" for path, shape in zip(paths, shapes))
