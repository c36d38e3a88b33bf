"""DDGSD: a network learns to see and to predict alike two distorted views of an image."""

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import _graph
from keras_distill import _keras
from keras_distill import distribution
from keras_distill._ops import at_least_float32
from keras_distill._types import Config
from keras_distill._types import NumberOrSchedule
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.data.targets import Targets
from keras_distill.losses.base import DistillationLoss
from keras_distill.models import labels as label_rules
from keras_distill.models.labels import per_sample
from keras_distill.models.network import SIGMOID
from keras_distill.models.outputs import Outputs
from keras_distill.models.paired import PairedStudent
from keras_distill.models.terms import zero_masked
from keras_distill.schedules import number_or_schedule


@keras.saving.register_keras_serializable(package="keras_distill")
class DistortionDistiller(PairedStudent):
    """Data-distortion guided self-distillation (DDGSD): two views of an image teach each other.

    `CE_a + CE_b + weight * T^2 (KL(b || a) + KL(a || b)) + feature_weight * MMD(F_a, F_b)`

    The two views `a` and `b` of a batch go through the student in one forward. `KL(b || a)` is
    that of the softened predictions, the first one being the constant target. The maximum mean
    discrepancy with a linear kernel is `||mean F_a - mean F_b||^2`, the means taken over the
    batch, of the global features, a map averaged over its positions. On several replicas the
    means are those of the global batch, so that the step equals one device's.

    Trains on elements `((x_view, x_other_view), y)`, which `keras_distill.data.two_views` makes.
    Sample weights weigh a sample's part in every term.

    Args:
        student: A `keras.Model`, changed in place; logits are taken before a softmax.
        temperature: T, a positive number or a schedule. Defaults to 3.
        weight: Factor of the two KL terms, a number or a schedule. Defaults to 1.
        feature_weight: Factor of the MMD, a number or a schedule; 0 leaves it out. Defaults to
            5e-4.
        features: Path of the layer that gives the global features, as in `tap`. Defaults to
            what the classifier, the last layer with weights, takes.
        detach: Whether each KL term's target is a constant. False lets the gradient through
            both sides.
        student_from_logits: Whether the student returns logits, where its graph does not tell.
        name: Name of the wrapper.

    Logs: `loss`, `label_loss` (`CE_a + CE_b`), `distortion_loss` (both KL terms with T^2),
    `feature_loss`, and metrics on the first view.

    Example:
    ```python
    views = kd.data.two_views(images, labels, 128, kd.data.crop_and_flip(), epochs=10)
    distiller = kd.DistortionDistiller(student)
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(views, epochs=10, steps_per_epoch=steps, shuffle=False)
    ```

    Reference:
        Xu and Liu, 2019, https://doi.org/10.1609/aaai.v33i01.33015565; settings as in
        youngerous/ddgsd-pytorch, constant targets as in winycg/Self-KD-Lib.
        Deviation: T^2 and the mean over the batch, as all soft terms of this library have.
    """

    pair_source = "keras_distill.data.two_views"

    def __init__(
        self,
        student: keras.Model,
        temperature: NumberOrSchedule = 3.0,
        weight: NumberOrSchedule = 1.0,
        feature_weight: NumberOrSchedule = 5e-4,
        features: str | None = None,
        detach: bool = True,
        student_from_logits: bool | None = None,
        name: str = "distortion_distiller",
        **kwargs: Any,
    ) -> None:
        feature_weight = number_or_schedule("feature_weight", feature_weight)
        compares_features = callable(feature_weight) or feature_weight > 0
        path = None
        if compares_features:
            _checks.instance("student", student, keras.Model, "a keras.Model")
            path = _classifier_input(student) if features is None else features
            _checks.instance("features", path, str, "the path of a layer")
        super().__init__(
            student,
            temperature,
            weight,
            term_names=["distortion_loss", "feature_loss"][: 1 + compares_features],
            paths=[path] if compares_features else [],
            student_from_logits=student_from_logits,
            name=name,
            **kwargs,
        )
        self.feature_weight = feature_weight
        self.features = features
        self.detach = _checks.instance("detach", detach, bool, "True or False")

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        view, other_view = self.pair(inputs, training)
        if other_view is None:
            student = self._student_network(view, training=training)
            return Outputs(student.prediction, None)
        both = keras.tree.map_structure(
            lambda a, b: ops.concatenate([a, b], axis=0), view, other_view
        )
        student = self._student_network(both, training=training)
        prediction, other_prediction = _halves(student.prediction)
        logits = _halves(self.logits(student))
        features = _halves([zero_masked(feature) for feature in student.features])
        return Outputs(prediction, (other_prediction, logits, features))

    def training_label_loss(
        self, labels: Structure | None, outputs: Outputs, sample_weight: Structure | None
    ) -> Tensor | None:
        loss = super().training_label_loss(labels, outputs, sample_weight)
        if loss is None or outputs.terms is None:
            return loss
        return loss + self.label_loss(labels, outputs.terms[0], sample_weight)

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        _, (logits, other_logits), (features, other_features) = outputs.terms
        if self.detach:
            divergence = self.soft_term(other_logits, logits, sample_weight)
            divergence = divergence + self.soft_term(logits, other_logits, sample_weight)
        else:
            divergence = self._symmetric_term(logits, other_logits, sample_weight)
        values = [("distortion_loss", divergence, self._current(self.weight))]
        if features:
            value = discrepancy(features[0], other_features[0], sample_weight)
            values.append(("feature_loss", value, self._current(self.feature_weight)))
        return values

    def _symmetric_term(self, logits, other_logits, sample_weight):
        keys = label_rules.output_keys(getattr(self.student, "output", None), self.output_names)
        weights = label_rules.by_output(sample_weight, len(logits), keys)
        total = 0.0
        for i, (own, other, weight) in enumerate(zip(logits, other_logits, weights)):
            loss = _SymmetricKL(
                self._current(self.temperature), self.activation_of(i, own.shape[-1])
            )
            total = total + _keras.call_loss(loss, other, own, weight, always_reduce=True)
        return total

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "feature_weight": _keras.serialized(self.feature_weight),
            "features": self.features,
            "detach": self.detach,
        }


def discrepancy(features, other_features, sample_weight=None):
    """`||mean F_a - mean F_b||^2`, the maximum mean discrepancy with a linear kernel.

    Args:
        features: Tensor `(batch, ..., channels)`, averaged over what lies between.
        other_features: Tensor of the same shape; row by row of the same samples.
        sample_weight: `None`, or weights of the samples, which multiply both.

    Returns:
        A scalar, divided by the number of replicas as Keras does; the means are those of the
        global batch, taken through all replicas with their gradient.
    """
    difference = at_least_float32(features) - at_least_float32(other_features)
    if len(difference.shape) > 2:
        difference = ops.mean(difference, axis=tuple(range(1, len(difference.shape) - 1)))
    if sample_weight is not None and not keras.tree.is_nested(sample_weight):
        weight = ops.reshape(per_sample(sample_weight), (-1, 1))
        difference = difference * ops.cast(weight, difference.dtype)
    rows = ops.reshape(ops.cast(ops.shape(difference)[0], difference.dtype), (1,))
    sums = distribution.sum_over_replicas(ops.concatenate([ops.sum(difference, axis=0), rows]))
    mean = sums[:-1] / ops.maximum(sums[-1], 1.0)  # A replica may have no row at all.
    return _keras.scale_loss_for_distribution(ops.sum(ops.square(mean)))


class _SymmetricKL(DistillationLoss):
    """`T^2 (KL(p || q) + KL(q || p)) = T^2 sum (p - q)(log p - log q)`, both sides trained."""

    def __init__(self, temperature, activation):
        super().__init__(name="symmetric_kl")
        self.temperature = temperature
        self.activation = activation

    def call(self, y_true, y_pred):
        temperature = ops.cast(self.temperature, y_pred.dtype)
        own, other = y_pred / temperature, y_true / temperature
        if self.activation == SIGMOID:
            gap = ops.sigmoid(own) - ops.sigmoid(other)
        else:
            own, other = ops.log_softmax(own), ops.log_softmax(other)
            gap = ops.exp(own) - ops.exp(other)
        return ops.square(temperature) * ops.sum(gap * (own - other), axis=-1)


def _halves(structure):
    """The first and the second half of the rows of each tensor, Keras's masks kept."""
    flat = keras.tree.flatten(structure)
    pairs = [ops.split(tensor, 2, axis=0) for tensor in flat]
    for tensor, pair in zip(flat, pairs):
        mask = _keras.get_keras_mask(tensor)
        if mask is not None:
            for half, half_mask in zip(pair, ops.split(mask, 2, axis=0)):
                _keras.set_keras_mask(half, half_mask)
    return tuple(
        keras.tree.pack_sequence_as(structure, [pair[i] for pair in pairs]) for i in range(2)
    )


def _classifier_input(model):
    """Path of the layer whose output the classifier takes: the last layer with weights."""
    hint = "Pass features=..., the path of a layer, or feature_weight=0."
    if not _graph.has_graph(model):
        raise ValueError(
            f"Expected a `student` with a graph to find its global features in. Received: "
            f"{type(model).__name__}. Build it as a functional model, or pass feature_weight=0."
        )
    graph, prefix = _graph.Graph(model), ""
    if len(graph.outputs) != 1:
        received = f"{len(graph.outputs)} outputs"
        raise ValueError(f"Expected a `student` with one output. Received: {received}. {hint}")
    tensor, behind_classifier = graph.outputs[0], False
    while True:
        call, position = graph.producer[id(tensor)]
        if behind_classifier:
            return prefix + call.name
        if _graph.has_graph(call.operation):
            graph, prefix = _graph.Graph(call.operation), f"{prefix}{call.name}/"
            tensor = graph.outputs[position]
            continue
        if len(call.inputs) != 1:
            raise ValueError(
                "Expected a `student` that ends in a classifier. Received: one that ends in "
                f"{call.name!r}. {hint}"
            )
        behind_classifier = bool(getattr(call.operation, "weights", []))
        tensor = call.inputs[0]
