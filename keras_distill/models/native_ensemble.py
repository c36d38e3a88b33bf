"""ONE: branches on a shared stem, taught by the ensemble that a gate makes of them."""

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill._ops import at_least_float32
from keras_distill._types import Config
from keras_distill._types import NumberOrSchedule
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.data.targets import Targets
from keras_distill.models.branches import fresh_branch
from keras_distill.models.named_metrics import SeveralPredictions
from keras_distill.models.network import LOGITS
from keras_distill.models.network import OPEN
from keras_distill.models.network import PROBABILITIES
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import SOFTMAX
from keras_distill.models.network import Network
from keras_distill.models.network import keep_mask
from keras_distill.models.network import logits_from
from keras_distill.models.outputs import Outputs
from keras_distill.models.outputs import batch_size
from keras_distill.schedules import number_or_schedule
from keras_distill.schedules import value_at
from keras_distill.taps import tap

_SOFT = "soft_targets"
_ENSEMBLE = "ensemble_loss"


class _Terms(NamedTuple):
    """What the losses of a step see.

    Attributes:
        predictions: The branches' outputs, then the ensemble's.
        logits: For each branch, a list of logits by output.
        ensemble: The ensemble's logits by output.
    """

    predictions: Any
    logits: Any
    ensemble: Any


@keras.saving.register_keras_serializable(package="keras_distill")
class NativeEnsemble(SeveralPredictions):
    """On-the-fly native ensemble (ONE): one network whose last stages are there several times.

    All layers of the model after `branch_at` are copied, with fresh weights, into further
    branches on the shared stem. A gate on the shared feature weighs the branches for each
    sample, `z_T = sum_i g_i z_i`, and the ensemble teaches them:

    `sum_i CE(z_i) + CE(z_T) + weight * sum_i T^2 KL(softmax(z_T / T) || softmax(z_i / T))`

    with a target without gradient. Evaluated, saved alone and exported is branch 1, the model
    itself, which costs what it did; `gated_ensemble()` is the whole as a plain model.

    Args:
        model: A functional `keras.Model`, changed in place: stem and branch 1.
        branch_at: Path of the layer that ends the stem, such as "stage2" or
            "backbone/v2_stack_1_block2_out" (see `keras_distill.taps.list_taps`).
        branches: How many there are, the model's own included.
        temperature: T, a positive number.
        weight: Factor of the distillation term: a number, 0 or more, or a schedule of
            `optimizer.iterations`. The paper's is
            `keras_distill.schedules.SigmoidRamp(1.0, steps=80 * steps_per_epoch)`.
        gate: `None`, or a layer or model from the shared feature to weights `(batch, branches)`
            that sum to 1. By default average pooling, a dense layer, batch normalization, ReLU,
            softmax.
        student_from_logits: Whether the model returns logits, where its graph does not tell.
        name: Name of the wrapper.

    Logs: `label_loss` is the sum of `branch_1_loss`, ... and `ensemble_loss`; `soft_targets` the
    distillation term without its weight. Metrics see branch 1; in training those of a model
    with one output are also logged of the ensemble, as `ensemble_accuracy`, ...

    Example:
    ```python
    model = kd.backbones.resnet(32, classes=100)
    one = kd.NativeEnsemble(model, "stage2", weight=kd.schedules.SigmoidRamp(1.0, 80 * steps))
    one.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    one.fit(images, labels, epochs=300)
    model.save("student.keras")
    one.gated_ensemble().save("ensemble.keras")
    ```

    Reference:
        Lan, Zhu and Gong, 2018, https://arxiv.org/abs/1806.04606; convention of
        Lan1991Xu/ONE_NeurIPS2018.
        Deviation: the target is an exact softmax, without the code's 1e-7.
        Deviation: the ramp of the weight is of updates, not of epochs.
    """

    def __init__(
        self,
        model: keras.Model,
        branch_at: str,
        branches: int = 3,
        temperature: float = 3.0,
        weight: NumberOrSchedule = 1.0,
        gate: keras.layers.Layer | None = None,
        student_from_logits: bool | None = None,
        name: str = "native_ensemble",
        **kwargs: Any,
    ) -> None:
        _checks.instance("model", model, keras.Model, "a keras.Model")
        _checks.instance("branch_at", branch_at, str, "the path of a layer")
        if _checks.positive_integer("branches", branches) < 2:
            raise ValueError(_checks.message("`branches` to be at least 2", "branches", branches))
        others = [fresh_branch(model, branch_at, k, f"branch_{k + 1}") for k in range(1, branches)]
        losses = [f"branch_{k + 1}_loss" for k in range(branches)]
        super().__init__(
            model,
            term_names=[_SOFT, *losses, _ENSEMBLE],
            student_from_logits=student_from_logits,
            paths=[branch_at],
            name=name,
            **kwargs,
        )
        self.branch_at = branch_at
        self.branches = branches
        self.temperature = _checks.positive("temperature", temperature)
        self.weight = number_or_schedule("weight", weight)
        self.other_branches = others
        self._branch_networks = [
            Network(branch, f"branch {k}", from_logits=student_from_logits)
            for k, branch in enumerate(others, start=2)
        ]
        self._own_gate = gate is None
        shape = others[0].input_shape
        self.gate = _default_gate(shape, branches) if gate is None else gate
        _check_gate(self.gate, others[0].inputs[0], branches)

    # Forward.

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        first = self._student_network(self.own_inputs(inputs), training=training)
        shared = first.features[0]
        with _mask_passed_on():
            weights = ops.cast(self.gate(shared, training=training), "float32")
            others = [network(shared, training=training) for network in self._branch_networks]
        outputs = [first, *others]
        logits = [self.logits(branch) for branch in outputs]
        ensemble = [
            keep_mask(gated_mean(weights, branches), branches[0]) for branches in zip(*logits)
        ]
        predictions = [branch.prediction for branch in outputs]
        predictions.append(self._as_prediction(ensemble, first.prediction))
        return Outputs(first.prediction, _Terms(predictions, logits, ensemble))

    def _as_prediction(self, logits, like):
        """Logits in the form that the model returns, for loss and metrics."""
        values = []
        for i, value in enumerate(logits):
            kind = self.kind_of(i, value.shape[-1])
            values.append(keep_mask(_activated(value, kind), value))
        return keras.tree.pack_sequence_as(like, values)

    def kind_of(self, index: int, units: int) -> str:
        """What the model returns as output `index`: "logits", "softmax" or "sigmoid" values."""
        head = self._student_network.heads[index]
        return LOGITS if head in (LOGITS, OPEN) else self.activation_of(index, units)

    # Losses.

    def training_label_loss(
        self, labels: Structure | None, outputs: Outputs, sample_weight: Structure | None
    ) -> Tensor | None:
        if self._compile_loss is None:
            return None
        total = 0.0
        for tracker, prediction in zip(self._term_trackers[1:], outputs.terms.predictions):
            loss = self.label_loss(labels, prediction, sample_weight)
            self._log(tracker, loss, batch_size(prediction))
            total = total + loss
        return total

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        terms = outputs.terms
        value = sum(
            self.soft_value(terms.ensemble, logits, self.temperature, sample_weight)
            for logits in terms.logits
        )
        return [(_SOFT, value, value_at(self.weight, self.step))]

    # The compiled metrics, once more of the ensemble.

    def prediction_names(self) -> list[str]:
        return ["ensemble"] if len(self._student_network.heads) == 1 else []

    def further_predictions(self, outputs: Outputs) -> Sequence[Structure]:
        return outputs.terms.predictions[-1:]

    def check_data(self, x: Any, y: Any) -> None:
        super().check_data(x, y)
        if self._compiled_loss is None:
            raise ValueError(
                "Expected a label loss, for labels alone train the gate and tell the branches "
                "apart. Received: loss=None. Compile with a `loss`."
            )

    # The whole as one model.

    def gated_ensemble(self, name: str = "gated_ensemble") -> keras.Model:
        """A plain `keras.Model` of all branches and the gate, which shares their variables.

        It returns what the model returns: probabilities where that ends in a softmax or a
        sigmoid, else the ensemble's logits.

        Args:
            name: Name of the model.
        """
        twin = tap(self.student, [self.branch_at])
        shared = twin.output["features"][self.branch_at]
        structure = twin.output["prediction"]
        with _mask_passed_on():
            others = [branch(shared) for branch in self.other_branches]
            weights = self.gate(shared)
        flat = [keras.tree.flatten(output) for output in [structure, *others]]
        outputs = []
        for i, predictions in enumerate(zip(*flat)):
            kind = self.kind_of(i, predictions[0].shape[-1])
            mean = GatedMean(kind, name="gated_mean" if len(flat[0]) == 1 else f"gated_mean_{i}")
            outputs.append(mean([weights, *predictions]))
        return keras.Model(twin.input, keras.tree.pack_sequence_as(structure, outputs), name=name)

    # Saving.

    def get_config(self) -> Config:
        config = super().get_config()
        config["model"] = config.pop("student")
        return {
            **config,
            "branch_at": self.branch_at,
            "branches": self.branches,
            "temperature": self.temperature,
            "weight": _keras.serialized(self.weight),
            "gate": None if self._own_gate else keras.saving.serialize_keras_object(self.gate),
        }


@keras.saving.register_keras_serializable(package="keras_distill")
class GatedMean(keras.layers.Layer):
    """The mean of several predictions' logits under the weights of a gate, in float32.

    Called with `[weights, prediction, ...]`: weights `(batch, predictions)`, and predictions
    `(batch, ..., classes)`.

    Args:
        kind: What the predictions are, and what is returned: "logits", "softmax" or "sigmoid".
        name: Name of the layer.
    """

    def __init__(self, kind=LOGITS, name=None, **kwargs):
        kwargs.setdefault("dtype", "float32")
        super().__init__(name=name, **kwargs)
        self.kind = _checks.one_of("kind", kind, (LOGITS, SOFTMAX, SIGMOID))

    def build(self, input_shape):
        self.built = True

    def call(self, inputs):
        weights, *predictions = inputs
        if self.kind != LOGITS:
            predictions = [logits_from(p, PROBABILITIES, self.kind) for p in predictions]
        return _activated(gated_mean(weights, predictions), self.kind)

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


def gated_mean(weights, logits):
    """`sum_i g_i z_i` for each sample.

    Args:
        weights: g, shape `(batch, K)`.
        logits: K tensors of shape `(batch, ..., classes)`.

    Returns:
        A tensor of the shape of one of them, float32 at least.
    """
    logits = [at_least_float32(value) for value in logits]
    weights = ops.cast(weights, logits[0].dtype)
    while len(weights.shape) <= len(logits[0].shape):
        weights = ops.expand_dims(weights, 1)
    return ops.sum(weights * ops.stack(logits, axis=-1), axis=-1)


def _activated(logits, kind):
    if kind == LOGITS:
        return logits
    return ops.sigmoid(logits) if kind == SIGMOID else ops.softmax(logits, axis=-1)


def _default_gate(shape, branches):
    layers = keras.layers
    pools = {
        3: layers.GlobalAveragePooling1D,
        4: layers.GlobalAveragePooling2D,
        5: layers.GlobalAveragePooling3D,
    }
    inputs = x = keras.Input(shape[1:], name="shared")
    if len(shape) in pools:
        x = pools[len(shape)](name="pool", dtype="float32")(x)
    x = layers.Dense(branches, name="scores", dtype="float32")(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name="norm", dtype="float32")(x)
    x = layers.ReLU(name="relu", dtype="float32")(x)
    return keras.Model(inputs, layers.Softmax(name="weights", dtype="float32")(x), name="gate")


def _check_gate(gate, shared, branches):
    _checks.instance("gate", gate, keras.Layer, "None, or a Keras layer or model")
    shape = tuple(gate(keras.Input(batch_shape=shared.shape, dtype=shared.dtype)).shape)
    if len(shape) != 2 or shape[-1] != branches:
        raise ValueError(
            f"Expected `gate` to give weights of shape (batch, {branches}) for {branches} "
            f"branches. Received: a gate whose output has the shape {shape}."
        )


@contextlib.contextmanager
def _mask_passed_on():
    """Without Keras's warning that a nested model destroys its input's mask: it does not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not support masking")
        yield
