"""Knowledge distillation from a frozen teacher into a student."""

from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill.models import labels as label_rules
from keras_distill.models.base import DistillationModel
from keras_distill.models.base import Outputs
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.ensemble_network import EnsembleNetwork
from keras_distill.models.network import Network
from keras_distill.models.network import check_compute_dtype
from keras_distill.models.terms import BoundTerm
from keras_distill.models.terms import Term
from keras_distill.models.terms import zero_masked
from keras_distill.models.wiring import as_terms
from keras_distill.models.wiring import check_inputs
from keras_distill.models.wiring import check_predictions
from keras_distill.models.wiring import check_separate
from keras_distill.models.wiring import check_structures
from keras_distill.models.wiring import dtype_policy_of
from keras_distill.models.wiring import normalized_class_map
from keras_distill.models.wiring import shapes_of_inputs
from keras_distill.models.wiring import shared_classes
from keras_distill.models.wiring import unique_names

_TEACHER = "a keras.Model or an EnsembleTeacher"
_LEFT_OUT = object()  # the teacher of a wrapper that was saved without it


class _Compared(NamedTuple):
    """What the terms of a step see.

    Attributes:
        teacher, student: What the networks gave.
        features: For each term `(teacher's, student's)` features, or `None`.
        inputs: Those of the teacher and of the student.
        training: Whether it is a training step.
    """

    teacher: Any
    student: Any
    features: Any
    inputs: Any
    training: bool


@keras.saving.register_keras_serializable(package="keras_distill")
class Distiller(DistillationModel):
    """Trains a student on labels and on what a frozen teacher says and sees.

    `total = student_loss_weight * label loss + sum(weight_i * term_i) + regularisers`

    The teacher runs for inference, once a step, and is never changed. The student runs once
    a step too: label loss, logits and features come from the same forward. `evaluate` and
    `predict` are the student's alone.

    Args:
        teacher: A `keras.Model`, or an `EnsembleTeacher`. It may have a softmax or sigmoid
            head: the logits before it are found. A teacher that wants another input size or
            range goes behind an adapter:
            `keras.Sequential([keras.Input(...), keras.layers.Resizing(...), teacher])`.
        student: A `keras.Model`, changed in place.
        distillation_losses: A loss, a `Term`, or a list of them. A loss alone compares
            predictions.
        student_loss_weight: Factor of the label loss. Defaults to 1.
        class_map: Aligns label sets that differ: for each of the student's classes the
            teacher's class, or -1 for none (a sequence), or a dict of the classes that both
            know. Response losses then see the shared classes alone.
        teacher_from_logits, student_from_logits: Whether the models return logits. Only for
            models whose graph does not tell (subclassed, or ending in a layer of your own);
            without it the outputs for the first batch decide, before training.
        teacher_dtype: Run the teacher's layers in this dtype, such as "bfloat16". Defaults to
            its own policies.
        name: Name of the wrapper.

    Inputs that differ between the networks are given as
    `x = {"teacher": ..., "student": ...}`.

    Labels of -1 mark unlabelled samples where the compiled loss reads class ids: the label
    loss and terms that need labels give them weight 0 (they still count in the mean, as
    Keras counts any weight of 0), metrics leave them out, the other terms keep them.

    Example:
    ```python
    distiller = kd.Distiller(teacher, student, kd.losses.SoftTargets(temperature=4.0))
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(images, labels, epochs=10)
    student.save("student.keras")
    ```

    Reference:
        Hinton et al., 2015, https://arxiv.org/abs/1503.02531.
    """

    frozen_attributes = ("teacher",)

    def __init__(
        self,
        teacher,
        student,
        distillation_losses,
        student_loss_weight=1.0,
        class_map=None,
        *,
        teacher_from_logits=None,
        student_from_logits=None,
        teacher_dtype=None,
        name="distiller",
        **kwargs,
    ):
        _checks.instance("student", student, keras.Model, "a keras.Model")
        if teacher is not _LEFT_OUT:
            _checks.instance("teacher", teacher, keras.Model, _TEACHER)
        terms = as_terms(distillation_losses)
        names = unique_names([term.name for term in terms], taken={"loss", "label_loss"})
        kwargs.setdefault("dtype", dtype_policy_of(student))
        super().__init__(term_names=names, name=name, **kwargs)
        self.student_loss_weight = _checks.non_negative("student_loss_weight", student_loss_weight)
        self.class_map = normalized_class_map(class_map)
        self.teacher_from_logits = teacher_from_logits
        self.student_from_logits = student_from_logits
        self.teacher_dtype = check_compute_dtype("teacher_dtype", teacher_dtype)
        self.student = student
        self.terms = [BoundTerm(term, name) for term, name in zip(terms, names)]
        self._student_network = Network(
            student, "student", self._paths("student_paths"), from_logits=student_from_logits
        )
        self._teacher_network = None
        if teacher is _LEFT_OUT:
            self._connect_saved()
            teacher = None
        self.teacher = teacher
        self.built = bool(student.built)

    def _paths(self, side):
        return [path for term in self.terms for path in getattr(term, side)]

    # The teacher may be missing in a wrapper that was saved without it, and set later.

    def __setattr__(self, name, value):
        if name == "teacher":
            self._bind_teacher(value)
        super().__setattr__(name, value)

    def _connect_saved(self):
        """Builds connectors that were resolved before the wrapper was saved without teacher."""
        for term in self.terms:
            if term.on_features and not term.is_automatic:
                shapes = [self._student_network.feature_shape(p) for p in term.student_paths]
                term.connect(None, shapes)

    def _bind_teacher(self, teacher):
        if teacher is None:
            self._teacher_network = None
            return
        _checks.instance("teacher", teacher, keras.Model, _TEACHER)
        check_separate(teacher, self.student)
        kind = EnsembleNetwork if isinstance(teacher, EnsembleTeacher) else Network
        network = kind(
            teacher,
            "teacher",
            self._paths("teacher_paths"),
            from_logits=self.teacher_from_logits,
            frozen=True,
            compute_dtype=self.teacher_dtype,
        )
        for term in self.terms:
            if term.on_features:
                shapes = (
                    [network.feature_shape(path) for path in term.teacher_paths],
                    [self._student_network.feature_shape(p) for p in term.student_paths],
                )
                if term.connectors is None:
                    term.connect(*shapes)
                else:
                    term.check_shapes(*shapes)
            else:
                check_predictions(term, network, self._student_network, self.class_map)
        self._teacher_network = network

    def set_teacher(self, teacher):
        """Gives a wrapper that was saved without its teacher one to train with."""
        with _keras.unlocked(self):
            self.teacher = teacher

    @property
    def inference_model(self):
        """The student."""
        return self.student

    @property
    def output_names(self):
        """The student's: see `DistillationModel.output_names`."""
        return getattr(self.student, "output_names", None)

    # Forward.

    def forward(self, inputs, training):
        if self._teacher_network is None:
            raise ValueError(
                "Expected a teacher to train with. Received: a Distiller saved with "
                "include_teacher=False. Call distiller.set_teacher(teacher) first."
            )
        teacher_inputs, student_inputs = self.split_inputs(inputs)
        teacher = self._teacher_network(teacher_inputs)
        student = self._student_network(student_inputs, training=training)
        compared = []
        for term in self.terms:
            if term.on_features:
                targets = [
                    zero_masked(self._feature("teacher", teacher, p)) for p in term.teacher_paths
                ]
                features = [self._feature("student", student, p) for p in term.student_paths]
                compared.append((targets, term.connected(features, training)))
            else:
                compared.append(None)
        inputs = teacher_inputs, student_inputs
        return Outputs(student.prediction, _Compared(teacher, student, compared, inputs, training))

    def infer(self, inputs):
        return self.student(self.split_inputs(inputs)[1], training=False)

    def split_inputs(self, inputs):
        """`(teacher's inputs, student's inputs)`; the same where one `x` serves both."""
        if isinstance(inputs, dict) and set(inputs) == {"teacher", "student"}:
            own = {name.split(":")[0] for name in getattr(self.student, "input_names", None) or ()}
            if own != {"teacher", "student"}:
                return inputs["teacher"], inputs["student"]
        return inputs, inputs

    def _feature(self, side, outputs, path):
        network = self._teacher_network if side == "teacher" else self._student_network
        return outputs.features[network.paths.index(path)]

    # Terms.

    def term_values(self, outputs, targets, sample_weight):
        terms, step = outputs.terms, self.step
        given = {"step": step, "ids": targets.get("ids"), "training": terms.training}
        values = []
        for term, features in zip(self.terms, terms.features):
            if term.on_inputs:
                networks = self._teacher_network.class_scores, self._student_network.class_scores
                value = term.value_on_inputs(*networks, terms.inputs, targets.labels, sample_weight)
            elif features is not None:
                pair = [side[0] if len(side) == 1 else tuple(side) for side in features]
                value = term.value(*pair, targets.labels, sample_weight, **given)
            else:
                value = self._prediction_value(term, terms, targets, sample_weight, given)
            values.append((term.name, value, term.current_weight(step)))
        return values

    def _prediction_value(self, term, terms, targets, sample_weight, given):
        teacher, student, step = terms.teacher, terms.student, given["step"]
        count = len(student.scores)
        keys = label_rules.output_keys(student.prediction, self.output_names)
        labels = label_rules.by_output(targets.labels, count, keys)
        weights = label_rules.by_output(sample_weight, count, keys)
        check_structures(term, teacher.prediction, student.prediction)
        predictions = keras.tree.flatten(teacher.prediction), keras.tree.flatten(student.prediction)
        total = 0.0
        for i in range(count):
            if getattr(term.loss, "on_logits", False):
                temperature = term.current_temperature(step)
                pair = (
                    self._teacher_network.logits(teacher, i, term.loss, temperature),
                    self._student_network.logits(student, i, term.loss, temperature),
                )
                if self.class_map is not None:
                    pair, labels[i], weights[i] = shared_classes(
                        self.class_map, pair, labels[i], weights[i], term.loss
                    )
                mask = _keras.get_keras_mask(predictions[1][i])
                if mask is not None:
                    pair = pair[0], ops.copy(pair[1])
                    _keras.set_keras_mask(pair[1], mask)
            else:
                pair = predictions[0][i], predictions[1][i]
            total = total + term.value(*pair, labels[i], weights[i], **given)
        return total

    # Checks.

    def check_label_loss(self, loss):
        outputs = getattr(self.student, "output", None)
        keys = label_rules.output_keys(outputs, self.output_names)
        label_rules.check_heads(loss, self._student_network.heads, keys=keys)

    def check_data(self, x, y):
        super().check_data(x, y)
        if self._teacher_network is None:
            raise ValueError(
                "Expected a teacher to train with. Received: a Distiller saved with "
                "include_teacher=False. Call distiller.set_teacher(teacher) first."
            )
        label_rules.check_class_ids(self._compiled_loss, y, self._student_network.output_shapes)
        networks = (self._teacher_network, self._student_network)
        for network, own in zip(networks, self.split_inputs(shapes_of_inputs(x))):
            check_inputs(network.model, network.role, own)
        if not any(network.is_open for network in networks):
            return
        inputs = _keras.first_inputs(x)
        for network, own in zip(networks, self.split_inputs(inputs)):
            if network.is_open:
                if inputs is None:
                    raise ValueError(
                        f"Expected to know whether the {network.role} returns logits. Received: "
                        f"a model without a graph and a generator of data. Pass "
                        f"{network.role}_from_logits=True or False."
                    )
                network.settle(own)
        self.check_label_loss(self._compiled_loss)
        for term in self.terms:
            if not term.on_features:
                check_predictions(
                    term, self._teacher_network, self._student_network, self.class_map
                )

    # Saving.

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        config = super().get_config()
        config.pop("dtype", None)
        return {
            **config,
            "name": self.name,
            "teacher": None if self._hides_frozen else serialize(self.teacher),
            "student": serialize(self.student),
            "distillation_losses": [
                {"class_name": "Term", "config": term.get_config(), "name": term.name}
                for term in self.terms
            ],
            "student_loss_weight": self.student_loss_weight,
            "class_map": self.class_map,
            "teacher_from_logits": self.teacher_from_logits,
            "student_from_logits": self.student_from_logits,
            "teacher_dtype": self.teacher_dtype,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        with keras.saving.custom_object_scope(custom_objects or {}):
            for name in ("teacher", "student"):
                config[name] = keras.saving.deserialize_keras_object(config[name])
            config["distillation_losses"] = [
                Term.from_config({**term["config"], "name": term["name"]})
                for term in config["distillation_losses"]
            ]
        if config["teacher"] is None:
            config["teacher"] = _LEFT_OUT
        return cls(**config)

    @classmethod
    def from_keras(cls, distiller):
        """Converts a `keras.distillation.Distiller`, with the losses that its author meant.

        See `keras_distill.models.from_keras.terms_of` for the rules.

        Args:
            distiller: A `keras.distillation.Distiller`. Its teacher and student are shared,
                not copied. The teacher's `trainable`, which Keras set to `False`, is left so.
        """
        from keras_distill.models.from_keras import terms_of

        return cls(
            distiller.teacher,
            distiller.student,
            terms_of(distiller),
            student_loss_weight=float(distiller.student_loss_weight),
            name=distiller.name,
        )
