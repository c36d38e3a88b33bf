"""A loss by name, wired: its layers, connectors and stages, and the papers' weights."""

import dataclasses

from keras_distill import losses
from keras_distill import schedules
from keras_distill.models.distiller import Distiller
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.stages import Stage
from keras_distill.models.terms import Term
from keras_distill.recipes import loss_layers
from keras_distill.recipes import loss_names

ROLES = ("teacher", "student")
PARAPHRASER_EPOCHS = 6  # FactorTransfer's official code


@dataclasses.dataclass(frozen=True)
class Use:
    """How a loss is used where the user says nothing else.

    Attributes:
        weight: Factor of the loss: what the papers or their codes have.
        label_weight: Factor of the label loss beside it.
        layers: One of `loss_layers.KINDS`; None for the first kind that the loss can compare.
        rises: In which first share of the steps the weight rises from 0 in a straight line.
        falls: In which first share of them it falls to 0, alike.
        temperature: Of the loss; None for its own default.
        first: In which first share of the epochs the loss trains the student by itself, a stage
            of its own; the labels alone train it after that.
        arguments: Of the loss, where they are not its defaults.
    """

    weight: float = 1.0
    label_weight: float = 1.0
    layers: str | None = None
    rises: float | None = None
    falls: float | None = None
    temperature: float | None = None
    first: float | None = None
    arguments: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        at = "" if self.temperature is None else f"temperature {self.temperature:g}, "
        return f"{at}weight {self.weight:g}{self.course}; label loss: weight {self.label_weight:g}"

    @property
    def course(self):
        """How the weight changes in a training, in words; "" where it does not."""
        if self.rises is not None:
            return f", from 0 in the first {self.rises:.0%} of the steps"
        if self.falls is not None:
            return f", falling to 0 in the first {self.falls:.0%} of the steps"
        if self.first is not None:
            return f", alone in the first {self.first:.0%} of the epochs, then none"
        return ""


OF_RESPONSE = Use(0.9, 0.1)
WARM_UP = 20 / 240  # epochs, in mdistiller
FIRST = 30 / 270  # epochs, in RepDistiller
# Layers as in RepDistiller. A loss that is not here has a weight of 1 on layers and inputs, and
# those of KD on predictions. DIST's weight belongs to the temperature that its code has on CIFAR;
# JensenShannon has those of KD, which is our choice. ActivationBoundary and FlowOfSolution are a
# first stage, as published and in RepDistiller, whose mean over pairs of channels FlowOfSolution
# has here: with the paper's sum its gradient is hundreds of times the label loss's.
USES = {
    "ActivationBoundary": Use(3e-3, layers="pre-activations", first=FIRST),
    "AdaptiveAlphaDivergence": Use(1.0, 0.0),
    "AttentionTransfer": Use(1000.0, layers="stages"),
    "BoundarySupport": Use(2.0, falls=0.75),
    "ContrastiveRepresentation": Use(0.8, layers="pooled"),
    "CorrelationCongruence": Use(100.0, layers="pooled"),
    "DIST": Use(2.0, temperature=4.0),
    "DecoupledKD": Use(rises=WARM_UP),
    "FactorTransfer": Use(500.0, layers="last stage"),
    "FlowOfSolution": Use(layers="stem and stages", first=FIRST, arguments={"mode": "mean"}),
    "HardTargets": Use(0.5, 0.5),
    "Hint": Use(100.0, layers="middle stage"),
    "InstanceGraph": Use(layers="graph"),
    "JensenShannon": Use(0.9, 0.1, temperature=4.0),
    "LogitMSE": Use(0.1),
    "NeuronSelectivity": Use(50.0, layers="stages"),
    "NormalizedKD": Use(),
    "ProbabilisticTransfer": Use(30000.0, layers="pooled"),
    "RelationalAngle": Use(50.0, layers="pooled"),
    "RelationalDistance": Use(25.0, layers="pooled"),
    "ReviewKD": Use(5.0, layers="review", rises=WARM_UP),
    "SimilarityPreserving": Use(3000.0, layers="last stage"),
    "SoftTargets": OF_RESPONSE,
    "VariationalInformation": Use(layers="stages"),
}
# What is tried for a loss whose layers are not in `USES`.
TRIED = ("pooled", "last stage", "stages", "stages and pooled", "graph")


@dataclasses.dataclass(frozen=True)
class Wiring:
    """A loss and all that its terms need.

    Attributes:
        name: The loss.
        arguments: Its arguments.
        use: The `Use`, with the user's weights.
        pairs: For each term `(teacher's paths, student's paths, connectors)`; None for one on
            predictions or inputs.
    """

    name: str
    arguments: dict
    use: Use
    pairs: list | None = None

    @property
    def needs_ids(self):
        """Whether the batches have to carry ids."""
        return getattr(losses, self.name).needs_ids

    def epochs(self, epochs):
        """`(those of a stage that goes before, the others)`, of so many epochs of the student.

        A stage that trains the student too is taken out of its epochs, one at least; that of
        `FactorTransfer`'s paraphraser comes on top.
        """
        if self.paraphrases:
            return PARAPHRASER_EPOCHS, epochs
        if self.use.first is None:
            return 0, epochs
        before = max(1, round(self.use.first * epochs))
        return before, max(1, epochs - before)

    @property
    def paraphrases(self):
        """Whether something of the teacher's is trained before: `FactorTransfer`'s paraphraser."""
        return hasattr(getattr(losses, self.name), "reconstruction")

    def loss(self):
        """A loss, new each time: one with layers belongs to one term."""
        return getattr(losses, self.name)(**self.arguments)

    def distiller(self, teacher, student, epochs, steps, optimizer=None):
        """A `Distiller` for all epochs that `self.epochs` says.

        Args:
            teacher, student: The networks.
            epochs: Epochs of the student, of `steps` steps.
            steps: See `epochs`.
            optimizer: A function of a number of epochs that gives each stage its optimizer. By
                default a fresh copy of the compiled one, whose schedule begins anew in each.
        """
        weight = self._weight(epochs * steps)
        if self.pairs is None:
            terms = [Term(self.loss(), weight=weight)]
        else:
            terms = [
                Term(self.loss(), own, other, weight, connector=connectors)
                for own, other, connectors in self.pairs
            ]
        label_weight = self.use.label_weight
        first, then = self.epochs(epochs)
        if not first:
            return Distiller(teacher, student, terms, student_loss_weight=label_weight)
        before, trainable = terms, None
        if self.paraphrases:
            before = [Term(t.loss.reconstruction(), t.teacher, t.student) for t in terms]
            trainable = []
        optimizers = [optimizer and optimizer(count) for count in (first, then)]
        options = {"trainable": trainable, "student_loss_weight": 0}
        after = [] if self.use.first else terms
        stages = [
            Stage("before", first, before, optimizer=optimizers[0], **options),
            Stage("transfer", then, after, None, optimizers[1], student_loss_weight=label_weight),
        ]
        return Distiller(teacher, student, stages=stages)

    def _weight(self, steps):
        use = self.use
        if use.rises is not None:
            return schedules.WarmUp(use.weight, max(1, int(use.rises * steps)))
        if use.falls is not None:
            return schedules.Linear(use.weight, 0.0, max(1, int(use.falls * steps)))
        return use.weight

    def layers(self, side):
        """The paths of the teacher (0) or the student (1), or None."""
        if self.pairs is None:
            return None
        return ",".join(path for pair in self.pairs for path in pair[side])

    def settings(self):
        """The settings that the user may leave open, by name."""
        return {
            "temperature": self.arguments.get("temperature"),
            "weight": self.use.weight,
            "label_weight": self.use.label_weight,
            "teacher_layer": self.layers(0),
            "student_layer": self.layers(1),
        }

    def __str__(self):
        parts = [f"Loss: {self.name}"]
        if self.pairs is not None:
            parts.append(f" of {self.layers(0)} (teacher) and {self.layers(1)} (student)")
            if any(part for *_, connectors in self.pairs for part in connectors or ()):
                parts.append(", fitted by trained connectors")
        if "temperature" in self.arguments:
            parts.append(f", temperature {self.arguments['temperature']:g}")
        parts.append(f", weight {self.use.weight:g}{self.use.course}")
        if self.paraphrases:
            parts.append(f", after {PARAPHRASER_EPOCHS} epochs of its paraphraser")
        return "".join(parts) + f"; label loss: weight {self.use.label_weight:g}"


def use_of(name):
    """The `Use` of a loss where the user says nothing else."""
    return USES.get(name, OF_RESPONSE if getattr(losses, name).on_logits else Use())


def wired(settings, teacher, student, images):
    """The `Wiring` of a loss by name; raises where it cannot compare the two networks.

    Args:
        settings: With `loss`, `temperature`, `weight`, `label_weight`, `teacher_layer`,
            `student_layer`, `ensemble` and `seed`, None for what was not said.
        teacher, student: The networks.
        images: The training `ImageData`.
    """
    name = settings.loss
    loss_names.check(name, settings.temperature)
    cls = getattr(losses, name)
    use = use_of(name)
    if settings.weight is not None:
        use = dataclasses.replace(use, weight=settings.weight, rises=None, falls=None)
    if settings.label_weight is not None:
        use = dataclasses.replace(use, label_weight=settings.label_weight)
    arguments = {**use.arguments, **loss_names.supplied(name, images, settings.seed)}
    said = settings.temperature
    temperature = use.temperature if said is None else said
    if temperature is not None:
        arguments["temperature"] = temperature
    made = Wiring(name, arguments, use)
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
