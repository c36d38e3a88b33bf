"""An ensemble of networks as one model: a teacher, and the object of Allen-Zhu and Li."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill._graph import has_graph
from keras_distill._ops import at_least_float32
from keras_distill._types import Config
from keras_distill._types import OptimizerLike
from keras_distill._types import PathLike
from keras_distill._types import Scalar
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.data.targets import Targets
from keras_distill.models import labels as label_rules
from keras_distill.models.base import DistillationModel
from keras_distill.models.network import LOGITS
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import SOFTMAX
from keras_distill.models.network import Network
from keras_distill.models.network import NetworkOutputs
from keras_distill.models.network import keep_mask
from keras_distill.models.network import logits_from
from keras_distill.models.outputs import Outputs
from keras_distill.models.outputs import batch_size
from keras_distill.models.per_network import PerNetworkOptimizer
from keras_distill.models.wiring import check_inputs
from keras_distill.models.wiring import check_separate
from keras_distill.models.wiring import dtype_policy_of
from keras_distill.models.wiring import shapes_of_inputs
from keras_distill.models.wiring import unique_names


@keras.saving.register_keras_serializable(package="keras_distill")
class EnsembleTeacher(DistillationModel):
    """Several models that answer, train, save and export as one.

    `call` returns values whose softmax is the ensemble, float32, whatever the members' heads:
    the mean logits, or the log of the mean probability. `soft_outputs` gives the same at a
    temperature, which a `Distiller` asks for each of its losses, the members run once.

    Args:
        members: At least two `keras.Model`s with the same outputs. Softmax and sigmoid heads
            and logits may be mixed.
        average: "probabilities", or "logits" (Allen-Zhu and Li's average of outputs, the
            normalised geometric mean of the probabilities).
        weights: `None` for equal ones, one number a member, or a callable of `x` (a layer, a
            model or a registered function) that returns weights of shape (members,) or
            (batch, members). They are divided by their sum.
        objective: How `fit` trains. "independent": each member on its own label loss, as if
            trained alone, with an optimizer of its own. "average": the label loss of the
            average, the control experiment that does not make an ensemble.
        activation: "softmax", or "sigmoid" for independent labels. By default it is read off
            the members' heads; a head of one unit is a sigmoid.
        members_from_logits: As `teacher_from_logits` of the `Distiller`, for all members.
        name: Name of the model.

    Compile it for ONE network that returns logits: `loss` and optimizer are copied for each
    member (a list gives each its own optimizer), `metrics` see the ensemble. The logged `loss`
    is what is minimised, the sum over the members; each member's loss is logged as
    `NAME_loss`.

    Reference:
        Allen-Zhu and Li, 2020, https://arxiv.org/abs/2012.09816. Their average is of the
        outputs before the softmax: `average="logits"`.
        Deviation: the default averages probabilities, at the temperature of the loss.
    """

    def __init__(
        self,
        members: Sequence[keras.Model],
        average: str = "probabilities",
        weights: Sequence[float] | Callable[..., Tensor] | None = None,
        objective: str = "independent",
        activation: str | None = None,
        members_from_logits: bool | None = None,
        name: str = "ensemble_teacher",
        **kwargs: Any,
    ) -> None:
        members = list(members)
        if len(members) < 2:
            raise ValueError(_checks.message("at least two `members`", "members", members))
        for member in members:
            _checks.instance("members", member, keras.Model, "a list of keras.Model")
        for i, member in enumerate(members):
            for other in members[:i]:
                check_separate(other, member)
        names = unique_names([member.name for member in members])
        kwargs.setdefault("dtype", dtype_policy_of(members[0]))
        logged = [f"{member}_loss" for member in names] if objective == "independent" else []
        super().__init__(term_names=logged, name=name, **kwargs)
        self.member_names = names
        self.average = _checks.one_of("average", average, ("probabilities", "logits"))
        self.objective = _checks.one_of("objective", objective, ("independent", "average"))
        self.members = members
        self.members_from_logits = members_from_logits
        self.weights_by_member = _checked_weights(weights, len(members))
        self._networks = [
            Network(member, f"member {name}", from_logits=members_from_logits)
            for member, name in zip(members, names)
        ]
        self._check_outputs()
        self.activation = _checks.one_of("activation", activation, (None, SOFTMAX, SIGMOID))
        self.built = all(member.built for member in members)

    def _check_outputs(self):
        shapes = [network.output_shapes for network in self._networks]
        known = [shape for shape in shapes if shape is not None]
        if any(
            len(shape) != len(known[0]) or any(a[-1] != b[-1] for a, b in zip(shape, known[0]))
            for shape in known
        ):
            raise ValueError(
                "Expected `members` with the same outputs. Received: output shapes "
                f"{[shape for shape in known]}."
            )

    # Averaging.

    def member_outputs(
        self, inputs: Structure, training: bool = False
    ) -> tuple[list[list[Tensor]], Structure, Tensor]:
        """One forward of each member; returns what `gathered` does."""
        self._settle(inputs)
        outputs = [network(inputs, training=training) for network in self._networks]
        return self.gathered(inputs, outputs, [network.heads for network in self._networks])

    def gathered(
        self, inputs: Structure, outputs: Sequence[NetworkOutputs], heads: Sequence[Sequence[str]]
    ) -> tuple[list[list[Tensor]], Structure, Tensor]:
        """The members' outputs, ready to be averaged.

        Args:
            inputs: The members' inputs, for weights that depend on them.
            outputs: One `NetworkOutputs` a member.
            heads: The heads of each member.

        Returns:
            `(scores, structure, log_weights)`: logits by output and member, the members'
            output structure, and the log of the normalised weights, shape (members,) or
            (batch, members).
        """
        structure = outputs[0].prediction
        count = len(outputs[0].scores)
        scores = []
        for i in range(count):
            activation = self.activation_of(i, outputs[0].scores[i].shape[-1])
            scores.append(
                [
                    keep_mask(
                        at_least_float32(logits_from(output.scores[i], head[i], activation)),
                        keras.tree.flatten(output.prediction)[i],
                    )
                    for output, head in zip(outputs, heads)
                ]
            )
        return scores, structure, self._log_weights(inputs)

    def _log_weights(self, inputs):
        if self.weights_by_member is None:
            weights = ops.ones((len(self.members),), dtype="float32")
        elif callable(self.weights_by_member):
            weights = ops.cast(self.weights_by_member(inputs), "float32")
        else:
            weights = ops.convert_to_tensor(self.weights_by_member, dtype="float32")
        weights = weights / ops.sum(weights, axis=-1, keepdims=True)
        return ops.log(ops.maximum(weights, 1e-37))

    def combine(
        self,
        member_logits: Sequence[Tensor],
        log_weights: Tensor,
        temperature: Scalar = 1.0,
        activation: str = SOFTMAX,
    ) -> Tensor:
        """Values whose softmax (or sigmoid) at `temperature` is the weighted ensemble.

        Args:
            member_logits: A list of logits, one a member, shape (..., classes).
            log_weights: Log of the weights, (members,) or (batch, members).
            temperature: T. The mean logits do not depend on it.
            activation: "softmax" or "sigmoid".

        Returns:
            With the mean of probabilities, `T * log sum_k w_k softmax(z_k / T)`; else
            `sum_k w_k z_k`. Float32.
        """
        logits = ops.stack(member_logits, axis=0)
        if len(log_weights.shape) == 2:
            log_weights = ops.transpose(log_weights)
        while len(log_weights.shape) < len(logits.shape):
            log_weights = ops.expand_dims(log_weights, -1)
        if self.average == "logits":
            return ops.sum(ops.exp(log_weights) * logits, axis=0)
        tempered = logits / ops.cast(temperature, logits.dtype)
        if activation == SIGMOID:
            on = ops.logsumexp(log_weights + ops.log_sigmoid(tempered), axis=0)
            off = ops.logsumexp(log_weights + ops.log_sigmoid(-tempered), axis=0)
            mean = on - off
        else:
            mean = ops.logsumexp(log_weights + ops.log_softmax(tempered, axis=-1), axis=0)
        return mean * ops.cast(temperature, mean.dtype)

    def activation_of(self, index: int, units: int) -> str:
        """Returns "softmax" or "sigmoid", for output `index`."""
        if self.activation is not None:
            return self.activation
        if units == 1:
            return SIGMOID
        known = [n.heads[index] for n in self._networks if len(n.heads) > index]
        return SIGMOID if SIGMOID in known else SOFTMAX

    def soft_outputs(self, x: Any, temperature: float = 1.0) -> Structure:
        """The ensemble at a temperature: `T * log sum_k w_k softmax(z_k / T)`.

        Args:
            x: Inputs of the members.
            temperature: T, positive.

        Returns:
            The structure of one member's outputs.
        """
        scores, structure, log_weights = self.member_outputs(x)
        return self._packed(scores, structure, log_weights, temperature)

    def _packed(self, scores, structure, log_weights, temperature=1.0):
        combined = [
            keep_mask(
                self.combine(
                    logits, log_weights, temperature, self.activation_of(i, logits[0].shape[-1])
                ),
                logits[0],
            )
            for i, logits in enumerate(scores)
        ]
        return keras.tree.pack_sequence_as(structure, combined)

    # The wrapper's parts.

    @property
    def output_names(self) -> list[str] | None:
        """The first member's: see `DistillationModel.output_names`."""
        return getattr(self.members[0], "output_names", None)

    def infer(self, inputs: Structure) -> Structure:
        return self._packed(*self.member_outputs(inputs))

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        scores, structure, log_weights = self.member_outputs(inputs, training)
        return Outputs(self._packed(scores, structure, log_weights), (scores, structure))

    def training_label_loss(
        self, labels: Structure | None, outputs: Outputs, sample_weight: Structure | None
    ) -> Tensor | None:
        if self.objective == "average":
            return super().training_label_loss(labels, outputs, sample_weight)
        if self._compile_loss is None:
            return None
        scores, structure = outputs.terms
        total = 0.0
        for k, tracker in enumerate(self._term_trackers):
            prediction = keras.tree.pack_sequence_as(structure, [logits[k] for logits in scores])
            loss = self.label_loss(labels, prediction, sample_weight)
            self._log(tracker, loss, batch_size(prediction))
            total = total + loss
        return total

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        return []

    def check_label_loss(self, loss: Any) -> None:
        heads = [LOGITS] * max(len(network.heads) for network in self._networks)
        outputs = getattr(self.members[0], "output", None)
        keys = label_rules.output_keys(outputs, self.output_names)
        label_rules.check_heads(loss, heads, role="ensemble", keys=keys)

    def compile(
        self,
        optimizer: OptimizerLike | Sequence[OptimizerLike] = "rmsprop",
        loss: Any = None,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`, for one network that returns logits.

        Args:
            optimizer: One for all, copied for each member, or a list with one a member.
            loss: The label loss.
            **kwargs: As in `DistillationModel.compile`.
        """
        if self.objective == "independent" and optimizer is not None:
            optimizer = PerNetworkOptimizer.for_networks(optimizer, self.members)
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def check_data(self, x: Any, y: Any) -> None:
        super().check_data(x, y)
        for member, name in zip(self.members, self.member_names):
            check_inputs(member, f"member {name}", shapes_of_inputs(x))
        self._settle_from(x)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`: `loss` and metrics are the ensemble's."""
        self._settle_from(x)
        return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`."""
        self._settle_from(x)
        return super().predict(x, *args, **kwargs)

    def _settle_from(self, x):
        if any(network.is_open for network in self._networks):
            self._settle(_keras.first_inputs(x))

    def _settle(self, inputs):
        """Learns from `inputs` whether members without a graph return logits."""
        if not any(network.is_open for network in self._networks):
            return
        try:
            if inputs is not None:
                inputs = keras.tree.map_structure(ops.convert_to_numpy, inputs)
        except Exception:  # Inputs of a trace; each backend has an error of its own.
            inputs = None
        if inputs is None:
            raise ValueError(
                "Expected to know whether the members return logits. Received: members without "
                "a graph and no data to look at. Pass members_from_logits=True or False."
            )
        for network in self._networks:
            network.settle(inputs)

    @property
    def inference_model(self) -> keras.Model:
        """A functional model of the whole ensemble."""
        if not all(has_graph(member) for member in self.members):
            return self
        inputs = self.members[0].inputs
        fresh = [keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name) for t in inputs]
        packed = fresh[0] if len(fresh) == 1 else fresh
        return keras.Model(packed, self(packed), name=self.name)

    def export(self, filepath: PathLike, format: str = "tf_saved_model", **kwargs: Any) -> Any:
        """As `keras.Model.export`, of the ensemble."""
        model = self.inference_model
        if model is self:
            return keras.Model.export(self, filepath, format=format, **kwargs)
        return model.export(filepath, format=format, **kwargs)

    # Saving.

    def get_config(self) -> Config:
        config = super().get_config()
        config.pop("dtype", None)
        return {
            **config,
            "name": self.name,
            "members": _keras.serialized(self.members),
            "average": self.average,
            "weights": _keras.serialized(self.weights_by_member),
            "objective": self.objective,
            "activation": self.activation,
            "members_from_logits": self.members_from_logits,
        }

    @classmethod
    def from_config(cls, config: Config, custom_objects: Mapping[str, Any] | None = None) -> Self:
        return cls(**_keras.arguments_of(config, custom_objects))


def _checked_weights(weights, count):
    if weights is None or callable(weights):
        return weights
    if isinstance(weights, str) or not hasattr(weights, "__len__"):
        raise TypeError(
            _checks.message("`weights` to be numbers, or a callable of `x`", "weights", weights)
        )
    weights = [_checks.non_negative("weights", float(weight)) for weight in weights]
    if len(weights) != count or sum(weights) <= 0:
        raise ValueError(
            _checks.message(
                f"one weight for each of the {count} members, not all 0", "weights", weights
            )
        )
    return weights
