"""A student beside its teacher, and the terms between them: what a step of a Distiller computes."""

from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from keras_distill import _keras
from keras_distill.models import labels as label_rules
from keras_distill.models import sample_ids
from keras_distill.models.cached_teacher import CachedNetwork
from keras_distill.models.cached_teacher import CachedTeacher
from keras_distill.models.cached_teacher import check_teacher_data
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.ensemble_network import EnsembleNetwork
from keras_distill.models.network import Network
from keras_distill.models.outputs import Outputs
from keras_distill.models.terms import zero_masked
from keras_distill.models.wiring import check_inputs
from keras_distill.models.wiring import check_predictions
from keras_distill.models.wiring import check_separate
from keras_distill.models.wiring import check_structures
from keras_distill.models.wiring import shapes_of_inputs
from keras_distill.models.wiring import shared_classes


class Compared(NamedTuple):
    """What the terms of a step see.

    Attributes:
        teacher, student: What the networks gave; no teacher where there are no terms, or where
            the data brings what it says.
        features: For each term the student's features, connected, or `None`.
        inputs: Those of the teacher and of the student.
        training: Whether it is a training step.
        label_prediction: What the label loss of a training step reads, where that is not the
            student's prediction.
    """

    teacher: Any
    student: Any
    features: Any
    inputs: Any
    training: bool
    label_prediction: Any = None


class Comparison:
    """A plain object: models and terms are tracked by the wrapper.

    Args:
        student: The `keras.Model` that is trained.
        terms: `BoundTerm`s; none for labels alone.
        label_weight: Factor of the label loss.
        class_map: See `Distiller`, normalized.
        student_from_logits: See `Distiller`.
    """

    def __init__(self, student, terms, label_weight, class_map=None, student_from_logits=None):
        self.student = student
        self.terms = terms
        self.label_weight = label_weight
        self.class_map = class_map
        self.student_network = Network(
            student, "student", self._paths("student_paths"), from_logits=student_from_logits
        )
        self.teacher_network = None

    def _paths(self, side):
        return [path for term in self.terms for path in getattr(term, side)]

    @property
    def networks(self):
        """The networks that there are."""
        return [n for n in (self.teacher_network, self.student_network) if n is not None]

    # The teacher.

    def bind_teacher(self, teacher, from_logits=None, compute_dtype=None):
        """Gives the terms a teacher, and builds what they need for it; `None` takes it away."""
        if teacher is None or not self.terms:
            self.teacher_network = None
            return
        check_separate(teacher, self.student)
        paths = self._paths("teacher_paths")
        if isinstance(teacher, CachedTeacher):
            network = CachedNetwork(teacher, "teacher", paths)
        else:
            kind = EnsembleNetwork if isinstance(teacher, EnsembleTeacher) else Network
            network = kind(
                teacher,
                "teacher",
                paths,
                from_logits=from_logits,
                frozen=True,
                compute_dtype=compute_dtype,
            )
        for term in self.terms:
            if isinstance(network, CachedNetwork):
                network.ask(term)
            if term.on_features:
                shapes = (
                    [network.feature_shape(path) for path in term.teacher_paths],
                    self._student_shapes(term),
                )
                if term.connectors is None:
                    term.connect(*shapes)
                else:
                    term.check_shapes(*shapes)
            else:
                check_predictions(term, network, self.student_network, self.class_map)
        self.teacher_network = network

    def connect_saved(self):
        """Builds connectors that were resolved before the wrapper was saved without teacher."""
        for term in self.terms:
            if term.on_features and not term.is_automatic:
                term.connect(None, self._student_shapes(term))

    def _student_shapes(self, term):
        return [self.student_network.feature_shape(path) for path in term.student_paths]

    @property
    def is_cached(self):
        """Whether the data brings what the teacher says."""
        return isinstance(self.teacher_network, CachedNetwork)

    def check_teacher(self):
        """Raises where terms wait for a teacher."""
        if self.terms and self.teacher_network is None:
            raise ValueError(
                "Expected a teacher to train with. Received: a Distiller saved with "
                "include_teacher=False. Call distiller.set_teacher(teacher) first."
            )

    # Forward.

    def forward(self, inputs, training):
        """One forward of each network: `Outputs`."""
        self.check_teacher()
        teacher_inputs, student_inputs = split_inputs(self.student, inputs)
        runs = self.terms and not self.is_cached
        teacher = self.teacher_network(teacher_inputs) if runs else None
        student = self.student_network(student_inputs, training=training)
        features = []
        for term in self.terms:
            if term.on_features:
                own = [_feature(self.student_network, student, p) for p in term.student_paths]
                features.append(term.connected(own, training))
            else:
                features.append(None)
        inputs = teacher_inputs, student_inputs
        return Outputs(
            student.prediction, Compared(teacher, student, features, inputs, bool(training))
        )

    # Terms.

    def term_values(self, outputs, targets, sample_weight, step, output_names):
        """`[(name, reduced value, weight), ...]`, one a term."""
        compared = outputs.terms
        if self.is_cached:
            compared = compared._replace(teacher=self.teacher_network.read(targets))
        given = {"step": step, "ids": targets.get("ids"), "training": compared.training}
        values = []
        for term, features in zip(self.terms, compared.features):
            if term.on_inputs:
                networks = self.teacher_network.class_scores, self.student_network.class_scores
                value = term.value_on_inputs(
                    *networks,
                    compared.inputs,
                    targets.labels,
                    sample_weight,
                    step,
                    compared.training,
                )
            elif features is not None:
                theirs = [
                    zero_masked(_feature(self.teacher_network, compared.teacher, path))
                    for path in term.teacher_paths
                ]
                pair = [side[0] if len(side) == 1 else tuple(side) for side in (theirs, features)]
                value = term.value(*pair, targets.labels, sample_weight, **given)
            else:
                keys = label_rules.output_keys(compared.student.prediction, output_names)
                value = self._prediction_value(term, compared, targets, sample_weight, keys, given)
            values.append((term.name, value, term.current_weight(step)))
        return values

    def _prediction_value(self, term, compared, targets, sample_weight, keys, given):
        teacher, student, step = compared.teacher, compared.student, given["step"]
        count = len(student.scores)
        labels = label_rules.by_output(targets.labels, count, keys)
        weights = label_rules.by_output(sample_weight, count, keys)
        if not self.is_cached:
            check_structures(term, teacher.prediction, student.prediction)
        predictions = keras.tree.flatten(teacher.prediction), keras.tree.flatten(student.prediction)
        total = 0.0
        for i in range(count):
            if getattr(term.loss, "on_logits", False):
                temperature = term.current_temperature(step)
                asked = self.teacher_network.asked(term) if self.is_cached else temperature
                pair = (
                    self.teacher_network.logits(teacher, i, term.loss, asked),
                    self.student_network.logits(student, i, term.loss, temperature),
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

    def check_label_loss(self, loss, output_names):
        """Raises where a compiled cross-entropy contradicts the student's head."""
        keys = label_rules.output_keys(getattr(self.student, "output", None), output_names)
        label_rules.check_heads(loss, self.student_network.heads, keys=keys)

    def check_data(self, x, y, loss, output_names):
        """Raises where data does not fit; settles heads that no graph tells.

        Args:
            x, y: As in `fit`.
            loss: The compiled loss.
            output_names: Names of the student's outputs.
        """
        self.check_teacher()
        if self.is_cached:
            check_teacher_data(x, y)
            for term in self.terms:
                self.teacher_network.check_asked(term)
        for term in self.terms:
            if getattr(term.loss, "needs_ids", False):
                sample_ids.check(x, y, f"the term {term.name!r}", term.loss.check_ids)
        label_rules.check_class_ids(loss, y, self.student_network.output_shapes)
        teacher_x, student_x = split_inputs(self.student, shapes_of_inputs(x))
        for network in self.networks:
            if network is self.teacher_network and self.is_cached:
                continue
            own = student_x if network is self.student_network else teacher_x
            check_inputs(network.model, network.role, own)
        if not any(network.is_open for network in self.networks):
            return
        inputs = _keras.first_inputs(x)
        for network in self.networks:
            if not network.is_open:
                continue
            if inputs is None:
                raise ValueError(
                    f"Expected to know whether the {network.role} returns logits. Received: "
                    f"a model without a graph and a generator of data. Pass "
                    f"{network.role}_from_logits=True or False."
                )
            teacher_x, student_x = split_inputs(self.student, inputs)
            network.settle(student_x if network is self.student_network else teacher_x)
        self.check_label_loss(loss, output_names)
        for term in self.terms:
            if not term.on_features:
                check_predictions(term, self.teacher_network, self.student_network, self.class_map)


def split_inputs(student, inputs):
    """`(teacher's inputs, student's inputs)`; the same where one `x` serves both."""
    if isinstance(inputs, dict) and set(inputs) == {"teacher", "student"}:
        own = {name.split(":")[0] for name in getattr(student, "input_names", None) or ()}
        if own != {"teacher", "student"}:
            return inputs["teacher"], inputs["student"]
    return inputs, inputs


def _feature(network, outputs, path):
    return outputs.features[network.paths.index(path)]
