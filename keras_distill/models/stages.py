"""Several stages of a distillation in one `fit`: each with terms, epochs and an optimizer."""

from collections.abc import Sequence
from typing import Self

import keras

from keras_distill import _checks
from keras_distill import _keras
from keras_distill import taps
from keras_distill._graph import has_graph
from keras_distill._types import Config
from keras_distill._types import Layers
from keras_distill._types import LossLike
from keras_distill._types import OptimizerLike
from keras_distill.models.per_network import PerNetworkOptimizer
from keras_distill.models.sections import section
from keras_distill.models.terms import Term
from keras_distill.models.wiring import as_terms

CONTINUED = "continue"


@keras.saving.register_keras_serializable(package="keras_distill")
class Stage:
    """A part of a training: its terms, its epochs, what it trains and with which optimizer.

    Given to a `Distiller` as `stages=[...]`, which runs them one after another in one `fit`.

    Args:
        name: Name of the stage, one of its own.
        epochs: Number of its epochs.
        terms: A loss, a `Term`, or a list of them; `[]` for labels alone.
        trainable: What is trained of the student: `None` for all that the stage's losses
            reach; the path of a layer, or several, for the layers up to there; `[]` for
            nothing. The layers of terms and connectors are trained in the stages that use them.
            Batch statistics of layers that are not trained move all the same.
        optimizer: `None` for a fresh copy of the compiled one, a Keras optimizer, or
            "continue" for the stage before's, with its state. Its iterations, which schedules
            of weights read, begin at 0 unless it is continued.
        student_loss_weight: Factor of the label loss in this stage. `None` for the
            Distiller's; 0 trains on the terms alone.
        student: Another network to train in this stage, a teacher assistant. `None` for the
            Distiller's student.
        teacher: The network of an earlier stage's `student`, frozen, in place of the
            Distiller's teacher.

    Examples, of FitNets and of a teacher assistant:
    ```python
    kd.Distiller(teacher, student, stages=[
        kd.Stage("hint", 10, kd.Term(kd.losses.Hint(), "stage2", "stage2", connector="auto"),
                 student_loss_weight=0),
        kd.Stage("kd", 100, kd.losses.SoftTargets(temperature=4.0)),
    ])
    kd.Distiller(teacher, student, stages=[
        kd.Stage("assistant", 50, kd.losses.SoftTargets(), student=assistant),
        kd.Stage("student", 50, kd.losses.SoftTargets(), teacher=assistant),
    ])
    ```

    References:
        Romero et al., 2015, https://arxiv.org/abs/1412.6550 (hint, then distillation).
        Mirzadeh et al., 2020, https://arxiv.org/abs/1902.03393 (teacher assistants).
    """

    def __init__(
        self,
        name: str,
        epochs: int,
        terms: LossLike | Term | Sequence[LossLike | Term] | None,
        trainable: Layers | None = None,
        optimizer: OptimizerLike | None = None,
        *,
        student_loss_weight: float | None = None,
        student: keras.Model | None = None,
        teacher: keras.Model | None = None,
    ) -> None:
        self.name = _checks.instance("name", name, str, "the name of the stage")
        self.epochs = _checks.positive_integer("epochs", epochs)
        self.terms = [] if terms in (None, [], ()) else as_terms(terms)
        self.trainable = trainable
        self.optimizer = optimizer
        if optimizer is not None and optimizer != CONTINUED:
            self.optimizer = keras.optimizers.get(optimizer)
        self.student_loss_weight = student_loss_weight
        if student_loss_weight is not None:
            _checks.non_negative("student_loss_weight", student_loss_weight)
        for role, network in (("student", student), ("teacher", teacher)):
            if network is not None:
                _checks.instance(role, network, keras.Model, "a keras.Model")
        self.student = student
        self.teacher = teacher
        if not self.terms and self.student_loss_weight == 0:
            raise ValueError(
                f"Expected terms or a label loss in the stage {name!r}. Received: terms=[] and "
                "student_loss_weight=0. Give it something to learn."
            )

    def get_config(self) -> Config:
        optimizer = self.optimizer
        return {
            "name": self.name,
            "epochs": self.epochs,
            "terms": _keras.serialized_objects(self.terms),
            "trainable": self.trainable,
            "optimizer": (
                optimizer
                if optimizer in (None, CONTINUED)
                else keras.optimizers.serialize(optimizer)
            ),
            "student_loss_weight": self.student_loss_weight,
        }

    @classmethod
    def from_config(cls, config: Config) -> Self:
        return cls(**_keras.arguments_of(config))


def checked_stages(stages):
    """The stages as a list; raises unless they follow each other."""
    stages = list(stages)
    for stage in stages:
        _checks.instance("stages", stage, Stage, "a list of kd.Stage")
    names = [stage.name for stage in stages]
    if not stages or len(set(names)) != len(names):
        raise ValueError(
            _checks.message("`stages` to be at least one, each with its own name", "stages", names)
        )
    if stages[0].optimizer == CONTINUED:
        raise ValueError(
            f"Expected an optimizer to go on with. Received: optimizer='continue' in the first "
            f"stage, {names[0]!r}."
        )
    trained = set()
    for stage in stages:
        if stage.teacher is not None and id(stage.teacher) not in trained:
            raise ValueError(
                f"Expected `teacher` of the stage {stage.name!r} to be the `student` of an earlier "
                f"stage. Received: {stage.teacher.name!r}. Give other teachers to the Distiller."
            )
        if stage.student is not None:
            trained.add(id(stage.student))
    return stages


def trained_variables(stage, comparison):
    """The variables that a stage trains: the student's part, and the helpers of its terms."""
    helpers = [v for term in comparison.terms for v in term.trainable_variables]
    return _unique([*_part_of_student(stage, comparison), *helpers])


def _part_of_student(stage, comparison):
    student, paths = comparison.student, stage.trainable
    if paths is None:
        on_features = all(term.on_features for term in comparison.terms)
        if comparison.label_weight != 0 or not on_features or not has_graph(student):
            return student.trainable_variables
        paths = [path for term in comparison.terms for path in term.student_paths]
        paths = list(dict.fromkeys(paths))
    paths = taps.check_paths(student, paths, argument="trainable")
    return [v for path in paths for v in section(student, None, path).trainable_variables]


def _unique(variables):
    return list({id(variable): variable for variable in variables}.values())


class Parts:
    """The comparisons of the stages, and which one runs: plain, so that Keras tracks nothing."""

    def __init__(self, stages, comparisons):
        self.stages = stages
        self.comparisons = comparisons
        self.active = 0
        self._trained = {}

    @property
    def current(self):
        return self.comparisons[self.active]

    def trained(self, number):
        """The variables that a stage trains."""
        if number not in self._trained:
            part = self.comparisons[number]
            variables = trained_variables(self.stages[number], part)
            if not part.student.built:
                return variables
            self._trained[number] = variables
        return self._trained[number]

    def check_trained(self):
        """Raises where a stage trains nothing."""
        for number, stage in enumerate(self.stages):
            if not self.trained(number):
                raise ValueError(
                    f"Expected the stage {stage.name!r} to train something. Received: "
                    f"trainable={stage.trainable!r}, and terms without layers of their own."
                )


def terms_of(configs):
    """The terms of a Distiller's config."""
    return [Term.from_config({**term["config"], "name": term["name"]}) for term in configs]


def configs_of(stages, terms, assistants):
    """The configs of stages, with those of their terms, and networks by their positions.

    Args:
        stages: The `Stage`s.
        terms: The configs of the terms of each.
        assistants: The networks that stages name.
    """
    places = {id(network): i for i, network in enumerate(assistants)}
    return [
        {
            **stage.get_config(),
            "terms": own,
            "student": places.get(id(stage.student)),
            "teacher": places.get(id(stage.teacher)),
        }
        for stage, own in zip(stages, terms)
    ]


def stage_of(config, assistants):
    """The `Stage` of a Distiller's config, which names networks by their place in a list."""
    config = {**config, "terms": terms_of(config["terms"])}
    for role in ("student", "teacher"):
        place = config.pop(role)
        config[role] = None if place is None else assistants[place]
    return Stage(**{**config, "optimizer": _keras.deserialized(config["optimizer"])})


@keras.saving.register_keras_serializable(package="keras_distill")
class StageOptimizer(PerNetworkOptimizer):
    """One optimizer a stage, of which the present stage's is applied.

    Args:
        optimizers: The optimizers.
        positions: For each stage, which of them it uses.
        name: Name of the container.
    """

    def __init__(self, optimizers, positions=None, name="stages"):
        super().__init__(optimizers, name=name)
        self.positions = list(range(len(optimizers)) if positions is None else positions)
        self.active = 0

    @classmethod
    def for_stages(cls, optimizer, stages, groups):
        """What `compile` makes of the optimizer that it is given.

        Args:
            optimizer: The compiled one, or such a container.
            stages: The `Stage`s.
            groups: For each stage, a function that returns the variables it trains.
        """
        if not isinstance(optimizer, cls):
            optimizer = keras.optimizers.get(optimizer)
            config = keras.optimizers.serialize(optimizer)
            optimizers, positions = [], []
            for stage in stages:
                if stage.optimizer != CONTINUED:
                    own = stage.optimizer
                    own = config if own is None else keras.optimizers.serialize(own)
                    optimizers.append(keras.optimizers.deserialize(own))
                positions.append(len(optimizers) - 1)
            optimizer = cls(optimizers, positions)
        optimizer.route_stages(groups)
        return optimizer

    def route_stages(self, groups):
        """Says which variables each stage trains, as functions that return them."""

        def group_of(position):
            own = [group for group, p in zip(groups, self.positions) if p == position]
            return lambda: _unique([v for group in own for v in group()])

        self.route([group_of(position) for position in range(len(self.optimizers))])
        self._of_stages = groups

    def begin(self, stage):
        """Goes on with the optimizer of a stage, by its number."""
        self.active = stage

    def of_stage(self):
        """The optimizer of the present stage. No property: Keras would save it a second time."""
        return self.optimizers[self.positions[self.active]]

    def applied(self):
        trained = {id(v) for v in self._of_stages[self.active]()}
        group = list(self._groups)[self.positions[self.active]]
        return [(self.of_stage(), [v for v in group if id(v) in trained])]

    def scale_loss(self, loss):
        return self.of_stage().scale_loss(loss)

    def finalize_variable_values(self, var_list):
        for optimizer, group in self.applied():
            optimizer.finalize_variable_values(group)

    @property
    def iterations(self):
        return self.of_stage().iterations if self._inner_ready else self._iterations

    @property
    def learning_rate(self):
        return self.of_stage().learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        if self._inner_ready:
            self.of_stage().learning_rate = value

    def get_config(self):
        return {**super().get_config(), "positions": self.positions}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        optimizers = [keras.optimizers.deserialize(o, custom_objects) for o in config["optimizers"]]
        return cls(optimizers, config["positions"], config.get("name", "stages"))


class FollowStages(keras.callbacks.Callback):
    """Begins each stage in its first epoch, and notes in the logs which one runs.

    Args:
        stages: The `Stage`s.
    """

    def __init__(self, stages):
        super().__init__()
        self.stages = stages

    def on_epoch_begin(self, epoch, logs=None):
        first = 0
        for number, stage in enumerate(self.stages):
            if epoch < first + stage.epochs or number == len(self.stages) - 1:
                break
            first += stage.epochs
        if self.model.stage != number:
            self.model.finish_stage()
        self.model.begin_stage(number)

    def on_epoch_end(self, epoch, logs=None):
        logs["stage"] = self.model.stage
