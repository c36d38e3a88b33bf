"""A term wires a loss: which layers of teacher and student it compares, and how much."""

import copy
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill import connectors
from keras_distill import distribution
from keras_distill._types import Config
from keras_distill._types import Layers
from keras_distill._types import LossLike
from keras_distill._types import NumberOrSchedule
from keras_distill.losses import misfit
from keras_distill.losses.base import DistillationLoss
from keras_distill.losses.trained import TrainedLoss
from keras_distill.models import sample_ids
from keras_distill.models.function_loss import as_loss
from keras_distill.models.function_loss import at_temperature
from keras_distill.models.function_loss import is_of_keras
from keras_distill.models.labels import given_labels
from keras_distill.models.labels import per_sample
from keras_distill.schedules import number_or_schedule

REDUCING_CALLS = (
    keras.losses.Loss.__call__,
    DistillationLoss.__call__,
    TrainedLoss.__call__,
)


@keras.saving.register_keras_serializable(package="keras_distill")
class Term:
    """One distillation loss and its wiring.

    Args:
        loss: A loss of `keras_distill.losses`, any `keras.losses.Loss`, the name of a Keras
            loss, or a plain function of (teacher, student) that returns one value a
            prediction, or one for the batch (a mean). All are right on replicas.
        teacher: Path of the teacher's layer ("backbone/stage2"), a list of paths for a loss
            of several maps, or `None` for the predictions. With several outputs, `None`
            compares each output with its counterpart and sums.
        student: The student's layer or layers, as `teacher`.
        weight: Factor of the term in the total: a number, 0 or more, or a
            `keras_distill.schedules.Schedule` of `optimizer.iterations`. Defaults to 1.
        temperature: Overrides the loss's temperature: a positive number or a schedule.
            Needs a loss that has one.
        connector: What fits the student's feature to the teacher's: `None`, "auto"
            (`keras_distill.connectors.automatic`), a Keras layer, or a list with one entry
            a layer. Stands on the student's side, is trained and saved with the wrapper.
        name: Name in the logs. Defaults to the loss's name.

    The wrapper copies the term. `wrapper.terms[i].weight` and `.temperature` are variables
    that a callback may `assign`, without a retrace: at each epoch on every backend, at each
    batch on TensorFlow.
    """

    def __init__(
        self,
        loss: LossLike,
        teacher: Layers | None = None,
        student: Layers | None = None,
        weight: NumberOrSchedule = 1.0,
        temperature: NumberOrSchedule | None = None,
        connector: str | keras.layers.Layer | Sequence[Any] | None = None,
        name: str | None = None,
    ) -> None:
        self.loss = as_loss(loss)
        self.teacher = teacher
        self.student = student
        self.weight = number_or_schedule("weight", weight, _checks.non_negative)
        self.temperature = (
            None
            if temperature is None
            else number_or_schedule("temperature", temperature, _checks.positive)
        )
        self.connector = connector
        self.name = name or self.loss.name
        self._check_wiring()

    def _check_wiring(self):
        for side in ("teacher", "student"):
            for path in _paths(getattr(self, side)):
                _checks.instance(side, path, str, "the path of a layer, or a list of paths")
        if (self.teacher is None) != (self.student is None):
            given = "teacher" if self.teacher is not None else "student"
            raise ValueError(
                "Expected `teacher` and `student` of a Term to be both paths or both None (the "
                f"predictions). Received: only {given}={getattr(self, given)!r}."
            )
        if len(_paths(self.teacher)) != len(_paths(self.student)):
            raise ValueError(
                "Expected as many teacher paths as student paths in a Term. Received: "
                f"teacher={self.teacher!r}, student={self.student!r}."
            )
        if self.connector is not None and self.teacher is None:
            raise ValueError(
                _checks.message(
                    "`connector` only in a Term on features (with `teacher` and `student`)",
                    "connector",
                    self.connector,
                    "Class counts that differ are aligned by the Distiller's `class_map`.",
                )
            )
        for part in _as_list(self.connector):
            if part != "auto" and part is not None:
                _checks.instance("connector", part, keras.Layer, 'None, "auto" or a Keras layer')
        if getattr(self.loss, "on_inputs", False):
            distribution.require_tensorflow(f"The loss {type(self.loss).__name__}")
            if self.teacher is not None:
                raise ValueError(
                    _checks.message(
                        f"no layers for {type(self.loss).__name__}, which looks at the inputs",
                        "teacher",
                        self.teacher,
                        "Leave `teacher` and `student` out.",
                    )
                )
        if self.temperature is not None and not hasattr(self.loss, "temperature"):
            raise ValueError(
                _checks.message(
                    f"no `temperature` for {type(self.loss).__name__}, which has none",
                    "temperature",
                    self.temperature,
                    "Use a loss with a temperature, such as keras_distill.losses.SoftTargets.",
                )
            )

    def get_config(self) -> Config:
        return {
            "loss": _keras.serialized(self.loss),
            "teacher": self.teacher,
            "student": self.student,
            "weight": _keras.serialized(self.weight),
            "temperature": _keras.serialized(self.temperature),
            "connector": _keras.serialized(self.connector),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: Config) -> Self:
        return cls(**_keras.arguments_of(config))

    def __repr__(self):
        where = "" if self.teacher is None else f", {self.teacher!r} -> {self.student!r}"
        return f"Term({self.name}{where}, weight={self.weight!r})"


class BoundTerm(keras.layers.Layer):
    """A term inside a wrapper: owns its weight, its temperature and its connectors.

    A Keras layer, so that these are tracked, trained and saved with the wrapper.

    Attributes:
        weight: A scalar variable, or the schedule that the term was given.
        temperature: `None`, a scalar variable, or a schedule.
    """

    def __init__(self, term, name):
        super().__init__(name=name, dtype="float32", autocast=False)
        self._term = copy.copy(term)
        self.teacher_paths = _paths(term.teacher)
        self.student_paths = _paths(term.student)
        self.loss = term.loss
        self.weight = self._scalar("weight", term.weight)
        self.temperature = None
        if term.temperature is not None:
            self.temperature = self._scalar("temperature", term.temperature)
        self.connectors = None
        self.on_features = term.teacher is not None
        self.on_inputs = getattr(term.loss, "on_inputs", False)
        self.built = True

    def _scalar(self, name, value):
        if callable(value):
            return value
        return self.add_weight(
            shape=(), initializer=keras.initializers.Constant(value), trainable=False, name=name
        )

    @property
    def trainable_variables(self):
        frozen = {id(v) for v in getattr(self.loss, "frozen_variables", ())}
        return [v for v in super().trainable_variables if id(v) not in frozen]

    @property
    def is_automatic(self):
        """Whether a connector still waits for the teacher's shape."""
        return "auto" in _as_list(self._term.connector)

    def connect(self, teacher_shapes, student_shapes):
        """Builds the connectors for features of these shapes (lists, one entry a path).

        `teacher_shapes` is `None` where no teacher is there and no connector is "auto".
        """
        parts = _as_list(self._term.connector) or [None]
        if len(parts) == 1:
            parts = parts * len(student_shapes)
        if len(parts) != len(student_shapes):
            raise ValueError(
                f"Expected one connector, or one for each of the {len(student_shapes)} layers of "
                f"the term {self.name!r}. Received: {len(parts)} connectors."
            )
        connectors_ = []
        teachers = teacher_shapes or [None] * len(student_shapes)
        for i, (part, student, teacher) in enumerate(zip(parts, student_shapes, teachers)):
            if part == "auto":
                part = connectors.automatic(student, teacher, name=f"{self.name}_connector_{i}")
            elif part is not None and not part.built:
                part.build(student)
            connectors_.append(part)
        self.connectors = connectors_
        self._term.connector = connectors_ if len(connectors_) > 1 else connectors_[0]
        if teacher_shapes is not None:
            self.check_shapes(teacher_shapes, student_shapes)

    def check_shapes(self, teacher_shapes, student_shapes):
        """Raises where features do not fit; builds a loss that has layers of its own."""
        student_shapes = [
            shape if part is None else part.compute_output_shape(shape)
            for part, shape in zip(self.connectors, student_shapes)
        ]
        shapes = [
            tuple(own[0]) if len(own) == 1 else [tuple(shape) for shape in own]
            for own in (teacher_shapes, student_shapes)
        ]
        if is_of_keras(self.loss):
            expected = misfit.of_one_shape(*shapes)
        else:
            expected = _misfit(self.loss, *shapes)
        if expected is not None:
            connected = any(part is not None for part in self.connectors)
            raise ValueError(
                f"Expected {expected} for the term {self.name!r}. Received: teacher {shapes[0]}, "
                f"student {shapes[1]}{' after the connector' if connected else ''}. Name other "
                "layers, or pass connector='auto' to fit the student's feature to the teacher's."
            )
        if isinstance(self.loss, TrainedLoss):
            self.loss.build_for(*shapes)

    def connected(self, features, training):
        """The student's features after the connectors, masked positions zeroed."""
        outputs = []
        for feature, connector in zip(features, self.connectors or [None] * len(features)):
            mask = _keras.get_keras_mask(feature)
            feature = zero_masked(feature)
            if connector is not None:
                tokens = feature.shape[1]
                feature = connector(feature, training=training)
                if mask is not None and len(feature.shape) > 2 and feature.shape[1] == tokens:
                    # The connector's bias is no feature of a masked position.
                    _keras.set_keras_mask(feature, mask)
                    feature = zero_masked(feature)
            outputs.append(feature)
        return outputs

    def current_weight(self, step):
        """The weight at this step, a float32 scalar."""
        return ops.cast(self.weight(step) if callable(self.weight) else self.weight, "float32")

    def current_temperature(self, step):
        """The temperature at this step, or the loss's own; `None` where there is none."""
        if self.temperature is None:
            return getattr(self.loss, "temperature", None)
        if callable(self.temperature):
            return self.temperature(step)
        return ops.convert_to_tensor(self.temperature)

    def value(self, teacher, student, labels, sample_weight, step, ids=None, training=True):
        """The reduced loss of one pair, divided by the number of replicas as Keras does.

        Args:
            teacher: The teacher's tensor, or a tuple of features.
            student: The student's, alike.
            labels: Labels, for losses that need them, else `None`.
            sample_weight: Keras's sample weights or `None`.
            step: `optimizer.iterations`.
            ids: Ids of the samples, for losses that need them, else `None`.
            training: Whether the layers of a loss that has some run in training mode.
        """
        loss = self._loss_at(step)
        extras = []
        if getattr(loss, "needs_labels", False):
            like = None if self.on_features else teacher
            labels, sample_weight = given_labels(self.name, labels, like, sample_weight)
            extras.append(labels)
        if getattr(loss, "needs_ids", False):
            extras.append(self._checked_ids(ids))
        target = (teacher, *extras) if extras else teacher
        if self.on_features:
            sample_weight = per_sample(sample_weight)
        if type(loss).__call__ in REDUCING_CALLS:
            arguments = {"training": training} if isinstance(loss, TrainedLoss) else {}
            return _keras.call_loss(
                loss, target, student, sample_weight, always_reduce=True, **arguments
            )
        return loss(target, student, sample_weight=sample_weight)

    def value_on_inputs(self, teacher, student, inputs, labels, sample_weight, step, training):
        """The reduced loss of a term `on_inputs`; arguments as in `DistillationLoss.compared`."""
        loss = self._loss_at(step)
        if labels is not None:
            labels, sample_weight = given_labels(self.name, labels, None, sample_weight)
        target, student = loss.compared(teacher, student, inputs, labels, training)
        sample_weight = per_sample(sample_weight)
        return _keras.call_loss(loss, target, student, sample_weight, always_reduce=True)

    @property
    def softmax_temperature(self):
        """The loss's `softmax_temperature` at the temperature of the term, where that is fixed."""
        given, loss = self._term.temperature, self.loss
        if callable(given):
            return None
        if given is not None:
            loss = at_temperature(loss, float(ops.convert_to_numpy(self.temperature)))
        return getattr(loss, "softmax_temperature", None)

    def _loss_at(self, step):
        if self.temperature is None:
            return self.loss
        return at_temperature(self.loss, self.current_temperature(step))

    def _checked_ids(self, ids):
        if ids is None:
            raise ValueError(
                f"Expected ids of the samples for the term {self.name!r}, whose loss needs them. "
                f"Received: y without `ids`. {sample_ids.HINT}"
            )
        return ops.cast(ids, "int32")

    def get_config(self):
        """The config of the term, its automatic connectors resolved."""
        return self._term.get_config()


def _misfit(loss, teacher_shapes, student_shapes):
    return getattr(loss, "misfit", lambda *shapes: None)(teacher_shapes, student_shapes)


def zero_masked(feature):
    """The feature without its Keras mask, masked positions set to 0."""
    mask = _keras.get_keras_mask(feature)
    if mask is None:
        return feature
    mask = ops.cast(mask, feature.dtype)
    while len(mask.shape) < len(feature.shape):
        mask = ops.expand_dims(mask, -1)
    return feature * mask


def _as_list(value):
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _paths(paths):
    return _as_list(paths)
