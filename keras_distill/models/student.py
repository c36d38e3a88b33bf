"""The base of the wrappers of one trained network: its head, its views, its soft targets."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill._graph import has_graph
from keras_distill._types import Config
from keras_distill._types import Scalar
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses.response import SoftTargets
from keras_distill.models import labels as label_rules
from keras_distill.models.base import DistillationModel
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import SOFTMAX
from keras_distill.models.network import Network
from keras_distill.models.network import NetworkOutputs
from keras_distill.models.network import keep_mask
from keras_distill.models.network import logits_from
from keras_distill.models.wiring import check_inputs
from keras_distill.models.wiring import dtype_policy_of
from keras_distill.models.wiring import shapes_of_inputs


class StudentModel(DistillationModel):
    """Base class of the wrappers that train one student, without a teacher of another kind.

    A subclass gives `forward` and `term_values` (see `DistillationModel`). `x` may be a pair of
    views, `(x, other)`; which of the two is evaluated and exported stands in `own_view`.

    Args:
        student: A `keras.Model`, changed in place.
        term_names: Names of the terms.
        student_from_logits: Whether the student returns logits, where its graph does not tell.
        paths: Layers of the student whose outputs `forward` reads.
        name, **kwargs: As in `DistillationModel`.
    """

    own_view = 0
    _evaluates = False

    def __init__(
        self,
        student: keras.Model,
        term_names: Sequence[str],
        student_from_logits: bool | None = None,
        paths: Sequence[str] = (),
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        _checks.instance("student", student, keras.Model, "a keras.Model")
        kwargs.setdefault("dtype", dtype_policy_of(student))
        super().__init__(term_names=term_names, name=name, **kwargs)
        self.student_from_logits = student_from_logits
        self.student = student
        self._student_network = Network(student, "student", paths, from_logits=student_from_logits)
        self.built = bool(student.built)

    @property
    def inference_model(self) -> keras.Model:
        """The student."""
        return self.student

    @property
    def output_names(self) -> list[str] | None:
        """The student's: see `DistillationModel.output_names`."""
        return getattr(self.student, "output_names", None)

    def call(self, inputs: Structure, training: bool | None = None) -> Tensor:
        """See `DistillationModel.call`."""
        self._evaluates = not (training or self._collects_terms)
        return super().call(inputs, training=training)

    @property
    def losses(self) -> list[Tensor]:
        """Regularisers and activity losses; in evaluation those of the inference model alone."""
        # Keras on JAX hands the losses of the forward on to `compute_loss` by the override.
        if self._evaluates and not self._losses_override:
            return self.inference_model.losses
        return super().losses

    def views(self, inputs: Structure) -> tuple[Structure, ...]:
        """A tuple of the views in `inputs`: `(x,)`, or `(x, other)` for a pair.

        A pair is told from the inputs of a student with two by the student's graph; a student
        without a graph takes one input here, or a dict.
        """
        if not isinstance(inputs, (list, tuple)) or len(inputs) != 2:
            return (inputs,)
        if has_graph(self.student):
            own = len(keras.tree.flatten(self.student.inputs))
            if len(keras.tree.flatten(inputs)) == own:
                return (inputs,)
        return tuple(inputs)

    def own_inputs(self, inputs: Structure) -> Structure:
        """What the student sees of `inputs` when it is evaluated or exported."""
        views = self.views(inputs)
        return views[self.own_view] if len(views) == 2 else views[0]

    def infer(self, inputs: Structure) -> Structure:
        return self.student(self.own_inputs(inputs), training=False)

    # Soft targets.

    def logits(self, outputs: NetworkOutputs, network: Any = None) -> list[Tensor]:
        """The logits of each output of a `NetworkOutputs`, in the order of the flat outputs.

        Args:
            outputs: What a `Network` gave.
            network: That network. Defaults to the student's.

        Returns:
            A list of tensors `(batch, ..., classes)`, Keras's masks kept.
        """
        network = network or self._student_network
        predictions = keras.tree.flatten(outputs.prediction)
        return [
            keep_mask(
                ops.copy(logits_from(score, head, self.activation_of(i, score.shape[-1]))),
                predictions[i],
            )
            for i, (score, head) in enumerate(zip(outputs.scores, network.heads))
        ]

    def activation_of(self, index: int, units: int) -> str:
        """What the scores of output `index` are of: "softmax" classes, or "sigmoid" labels."""
        sigmoid = units == 1 or self._student_network.heads[index] == SIGMOID
        return SIGMOID if sigmoid else SOFTMAX

    def soft_value(
        self,
        targets: Sequence[Tensor],
        logits: Sequence[Tensor],
        temperature: Scalar = 1.0,
        sample_weight: Structure | None = None,
    ) -> Tensor:
        """`T^2 KL(softmax(target / T) || softmax(z / T))`, summed over the outputs.

        The mean over the samples, divided by the number of replicas as Keras does; binary on
        independent labels. No gradient reaches the targets.

        Args:
            targets: One tensor of logits an output; a log of probabilities serves as well.
            logits: The student's, alike, see `logits`.
            temperature: T, a positive number or scalar tensor.
            sample_weight: Keras's sample weights, in the structure of the outputs, or `None`.
        """
        keys = label_rules.output_keys(getattr(self.student, "output", None), self.output_names)
        weights = label_rules.by_output(sample_weight, len(logits), keys)
        total = 0.0
        for i, (target, own, weight) in enumerate(zip(targets, logits, weights)):
            loss = SoftTargets(activation=self.activation_of(i, own.shape[-1]))
            loss.temperature = temperature
            target = ops.stop_gradient(target)
            total = total + _keras.call_loss(loss, target, own, weight, always_reduce=True)
        return total

    # Checks.

    def check_label_loss(self, loss: Any) -> None:
        keys = label_rules.output_keys(getattr(self.student, "output", None), self.output_names)
        label_rules.check_heads(loss, self._student_network.heads, keys=keys)

    def check_data(self, x: Any, y: Any) -> None:
        super().check_data(x, y)
        label_rules.check_class_ids(self._compiled_loss, y, self._student_network.output_shapes)
        shapes = shapes_of_inputs(x)
        for view in self.views(shapes):
            check_inputs(self.student, "student", view)
        self.settle(x)

    def settle(self, x: Any) -> None:
        """Learns from the first samples whether a student without a graph returns logits."""
        if not self._student_network.is_open:
            return
        inputs = _keras.first_inputs(x)
        if inputs is None:
            raise ValueError(
                "Expected to know whether the student returns logits. Received: a model without "
                "a graph and a generator of data. Pass student_from_logits=True or False."
            )
        self._student_network.settle(self.own_inputs(inputs))
        self.check_label_loss(self._compiled_loss)

    # Saving.

    def get_config(self) -> Config:
        config = super().get_config()
        config.pop("dtype", None)
        return {
            **config,
            "name": self.name,
            "student": keras.saving.serialize_keras_object(self.student),
            "student_from_logits": self.student_from_logits,
        }

    @classmethod
    def from_config(cls, config: Config, custom_objects: Mapping[str, Any] | None = None) -> Self:
        return cls(**_keras.arguments_of(config, custom_objects))
