"""Be Your Own Teacher: exits inside a network that learn from its deepest one."""

import numbers
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill._ops import at_least_float32
from keras_distill._types import Config
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.data.targets import Targets
from keras_distill.models import exits as exit_heads
from keras_distill.models import labels as label_rules
from keras_distill.models.early_exit import EarlyExit
from keras_distill.models.exit_terms import FEATURE_LOSSES
from keras_distill.models.exit_terms import feature_distance
from keras_distill.models.exit_terms import soft_cross_entropy
from keras_distill.models.labels import per_sample
from keras_distill.models.named_metrics import SeveralPredictions
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import SOFTMAX
from keras_distill.models.outputs import Outputs
from keras_distill.models.terms import zero_masked
from keras_distill.models.wiring import dtype_policy_of
from keras_distill.models.wiring import unique_names

SOFT_LOSSES = ("kl", "cross_entropy")
JOURNAL = {"scale_t2": False, "soft_loss": "cross_entropy", "adapt": True, "attention": True}
OWN = {"scale_t2": True, "soft_loss": "kl", "adapt": False, "attention": False}


@keras.saving.register_keras_serializable(package="keras_distill")
class SelfDistiller(SeveralPredictions):
    """Be Your Own Teacher: the deepest exit of a network teaches exits at its stages.

    With `p_i` the prediction of exit i, `F_i` its feature before the last dense layer, and C
    the deepest exit, the model's own head:

    `total = CE(p_C, y) + sum_i [(1 - alpha) CE(p_i, y) + alpha T^2 KL(p_C^T || p_i^T)
    + feature_weight * distance(F_i, F_C)] + regularisers`

    CE is the compiled loss. No gradient reaches the deepest exit through `p_C` and `F_C` as
    targets; all exits train the layers below them. One forward of the model gives everything.

    Each exit gets a head: blocks of depthwise-separable convolutions of stride 2 down to the
    size of the deepest map, global average pooling to a feature as wide as the deepest, and a
    dense layer. The heads belong to the wrapper: `evaluate`, `predict` and every export are
    the model's alone. `exit(i)` and `ensemble()` give the others.

    Args:
        model: A functional or Sequential model with one output (batch, classes) that ends in a
            dense layer over a vector. Changed in place; `distiller.student` is the model.
        exits: Paths of layers whose maps the exits read, from shallow to deep, without the
            deepest: "stage1", or "backbone/stage1" in a nested model.
        temperature: T of both predictions in the soft term.
        alpha: Weight of the soft term, and 1 - alpha that of the labels, at each exit but the
            deepest.
        feature_weight: Weight of the distance between features.
        feature_loss: "mse", the mean over batch and features; "squared_l2", the paper's sum
            over features, mean over the batch; "l2norm", the journal code's norm of the whole
            batch's difference, not squared (under a strategy, of the global batch).
        preset: `None`, or "journal" for the choices of the journal version's code:
            `feature_loss="l2norm"`, `scale_t2=False`, `soft_loss="cross_entropy"`,
            `adapt=True`, `attention=True`, and `feature_exits` without the deepest of `exits`.
            Of these all but `feature_loss` can be given otherwise beside it.
        scale_t2: Whether the soft term has the factor T^2. Defaults to `True`.
        soft_loss: "kl" (the default), or "cross_entropy", which has the same gradient and a
            larger value.
        adapt: Whether a trained linear map stands between `F_i` and the distance. Defaults to
            `False`.
        attention: Whether a sigmoid gate multiplies the map that an exit reads. Defaults to
            `False`.
        feature_exits: Indices of the exits with a feature term. Defaults to all.
        batch_norm: Whether the convolutions of the heads are normalized.
        name: Name of the wrapper.

    Logs: `label_loss` is the deepest exit's; exit i has `exit_i_label_loss`, `exit_i_soft` and
    `exit_i_feature`, without their weights. The compiled metrics, given for one network, are
    logged for the deepest exit under their own names, and in training (and in `evaluate` with
    `evaluate_terms=True`) as `exit_i_NAME` and `ensemble_NAME`.

    Example:
    ```python
    model = kd.backbones.small_cnn(classifier_activation=None)
    distiller = kd.SelfDistiller(model, ["stem", "stage1"])
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(images, labels, epochs=10)
    distiller.exit(0).save("shallow.keras")
    predictions, exits = distiller.early_exit(threshold=0.9).predict(images)
    ```

    Reference:
        Zhang et al., ICCV 2019, https://arxiv.org/abs/1905.08094. Convention of the journal
        version's code, ArchipLab-LinfengZhang/pytorch-self-distillation-final (heads, weights).
        Deviation: T^2 in the soft term, so that its weight does not depend on T.
        Deviation: the mean over features ("mse"); with the code's weight, the paper's sum over
        512 features would be many times the label loss.
        Deviation: as many blocks as the maps' sizes ask, and one where they ask for none.
        Deviation: "same" padding, which at stride 2 pads below and to the right only.
        Deviation (journal): the adaptation layers are made at construction, not at the first
        batch, and none for the exit without a feature term.
        Deviation (journal): Keras's initial weights; dense layers in float32 under any policy.
    """

    def __init__(
        self,
        model: keras.Model,
        exits: Sequence[str],
        temperature: float = 3.0,
        alpha: float = 0.3,
        feature_weight: float = 0.03,
        feature_loss: str = "mse",
        preset: str | None = None,
        *,
        scale_t2: bool | None = None,
        soft_loss: str | None = None,
        adapt: bool | None = None,
        attention: bool | None = None,
        feature_exits: Sequence[int] | None = None,
        batch_norm: bool = True,
        name: str = "self_distiller",
        **kwargs: Any,
    ) -> None:
        _checks.instance("model", model, keras.Model, "a keras.Model")
        deepest = exit_heads.find_deepest(model)
        exits = exit_heads.check_exits(model, exits, deepest)
        journal = _checks.one_of("preset", preset, (None, "journal")) == "journal"
        defaults = JOURNAL if journal else OWN
        if feature_exits is None:
            feature_exits = range(len(exits) - 1) if journal else range(len(exits))
        feature_exits = _checked_indices(feature_exits, len(exits))
        names = []
        for i in range(len(exits)):
            names += [f"exit_{i}_label_loss", f"exit_{i}_soft"]
            names += [f"exit_{i}_feature"] if i in feature_exits else []
        kwargs.setdefault("dtype", dtype_policy_of(model))
        super().__init__(model, names, paths=[*exits, deepest.path], name=name, **kwargs)
        self.exits = exits
        self.temperature = _checks.positive("temperature", temperature)
        self.alpha = _checks.non_negative("alpha", alpha)
        if self.alpha > 1:
            raise ValueError(_checks.message("`alpha` to be in [0, 1]", "alpha", alpha))
        self.feature_weight = _checks.non_negative("feature_weight", feature_weight)
        self.feature_loss = _checks.one_of("feature_loss", feature_loss, FEATURE_LOSSES)
        if journal and feature_loss == "squared_l2":
            raise ValueError(
                _checks.message(
                    '`feature_loss` to be left out with preset="journal"',
                    "feature_loss",
                    feature_loss,
                    "Give the preset's other options one by one instead.",
                )
            )
        if journal:
            self.feature_loss = "l2norm"
        self.preset = preset
        self.scale_t2 = _flag("scale_t2", scale_t2, defaults)
        soft_loss = defaults["soft_loss"] if soft_loss is None else soft_loss
        self.soft_loss = _checks.one_of("soft_loss", soft_loss, SOFT_LOSSES)
        self.adapt = _flag("adapt", adapt, defaults)
        self.attention = _flag("attention", attention, defaults)
        self.feature_exits = feature_exits
        self.batch_norm = _checks.instance("batch_norm", batch_norm, bool, "True or False")
        self._deepest = deepest
        self._build_heads()

    def _build_heads(self):
        taken = {layer.name for layer in _keras.flatten_layers(self.student)}
        units = self._student_network.output_shapes[0][-1]
        width = self._deepest.width
        heads = unique_names([f"exit_{i}" for i in range(len(self.exits))], taken)
        self.bottlenecks = [
            exit_heads.bottleneck(
                self.student,
                path,
                self._deepest,
                attention=self.attention,
                batch_norm=self.batch_norm,
                dtype=self.dtype_policy,
                name=name,
            )
            for path, name in zip(self.exits, heads)
        ]
        self.classifiers = [
            _built(layers.Dense(units, dtype="float32", name=f"{name}_head"), width)
            for name in heads
        ]
        self.adaptations = [
            _built(layers.Dense(width, dtype="float32", name=f"exit_{i}_adaptation"), width)
            for i in (self.feature_exits if self.adapt else ())
        ]

    @property
    def _head(self):
        """What the model's predictions are: "logits", "softmax" or "sigmoid"."""
        return self._student_network.heads[0]

    # Forward.

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        outputs = self._student_network(self.own_inputs(inputs), training=training)
        *maps, target = outputs.features
        target = target[self._deepest.position] if isinstance(target, list) else target
        logits, features = [], []
        for i, exit_map in enumerate(maps):
            feature = self.bottlenecks[i](zero_masked(exit_map), training=training)
            logits.append(self.classifiers[i](feature))
            if i in self.feature_exits:
                if self.adapt:
                    feature = self.adaptations[self.feature_exits.index(i)](feature)
                features.append(feature)
        target = ops.reshape(zero_masked(target), (-1, self._deepest.width))
        deepest = self.logits(outputs)[0]
        return Outputs(outputs.prediction, (deepest, logits, target, features))

    def _prediction(self, logits):
        """Logits in the form of the model's own predictions."""
        if self._head == SOFTMAX:
            return ops.softmax(at_least_float32(logits), axis=-1)
        return ops.sigmoid(at_least_float32(logits)) if self._head == SIGMOID else logits

    # Terms.

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        deepest, logits, target, features = outputs.terms
        features = dict(zip(self.feature_exits, features))
        weight = per_sample(label_rules.by_output(sample_weight, 1)[0])
        values = []
        for i, own in enumerate(logits):
            label_loss = self.label_loss(targets.labels, self._prediction(own), sample_weight)
            label_loss = 0.0 if label_loss is None else label_loss
            values.append((f"exit_{i}_label_loss", label_loss, 1.0 - self.alpha))
            soft = self._soft(deepest, own, sample_weight)
            values.append((f"exit_{i}_soft", soft, self.alpha))
            if i in features:
                feature = feature_distance(self.feature_loss, target, features[i], weight)
                values.append((f"exit_{i}_feature", feature, self.feature_weight))
        return values

    def _soft(self, deepest, own, sample_weight):
        """The soft term of one exit, divided by the number of replicas as Keras does."""
        squared = self.temperature**2
        if self.soft_loss == "kl":
            value = self.soft_value([deepest], [own], self.temperature, sample_weight)
            return value if self.scale_t2 else value / squared
        activation = self.activation_of(0, own.shape[-1])
        weight = label_rules.by_output(sample_weight, 1)[0]
        value = soft_cross_entropy(deepest, own, self.temperature, activation, weight)
        return value * squared if self.scale_t2 else value

    # Metrics of each exit.

    def prediction_names(self) -> list[str]:
        return [f"exit_{i}" for i in range(len(self.exits))] + ["ensemble"]

    def further_predictions(self, outputs: Outputs) -> Sequence[Structure]:
        """Those of the exits before the deepest, and of the ensemble of all."""
        deepest, logits, _, _ = outputs.terms
        mean = sum(at_least_float32(z) for z in [deepest, *logits]) / (1 + len(logits))
        return [self._prediction(z) for z in [*logits, mean]]

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Structure, sample_weight: Structure | None = None
    ) -> dict[str, Tensor]:
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        if self._compile_loss is None:
            for i in range(len(self.exits)):
                logs.pop(f"exit_{i}_label_loss", None)
        return logs

    # The exits as models.

    def exit(self, index: int) -> keras.Model:
        """The network up to one exit, as a plain functional model of inputs -> predictions.

        It shares the weights, holds no layer that the exit does not need, and its predictions
        are of the kind of the model's own (logits, or probabilities behind a softmax).

        Args:
            index: From 0, the shallowest, to `len(exits)`, the deepest: the model itself.

        Returns:
            A `keras.Model`.
        """
        if not isinstance(index, numbers.Integral) or index not in range(len(self.exits) + 1):
            expected = f"`index` from 0 (shallowest) to {len(self.exits)} (deepest)"
            raise ValueError(_checks.message(expected, "index", index))
        if index == len(self.exits):
            return self.student
        heads = self.bottlenecks[index], self.classifiers[index]
        return exit_heads.exit_model(self.student, self.exits[index], *heads, self._head)

    def ensemble(self) -> keras.Model:
        """The mean of the logits of all exits, the deepest included, as a plain model.

        A model that ends in a softmax or sigmoid gives that of the mean.

        Returns:
            A functional `keras.Model` that shares the weights.
        """
        heads = self.bottlenecks, self.classifiers
        return exit_heads.ensemble_model(self.student, self.exits, *heads, self._head)

    def early_exit(self, threshold: float = 0.9) -> EarlyExit:
        """Inference that stops, for each sample, at the first exit that is sure of it.

        Args:
            threshold: The confidence above which a sample leaves, see `EarlyExit`.

        Returns:
            An `EarlyExit`, whose sections share the weights.

        Raises:
            ValueError: If the model cannot be cut at an exit: connections pass it by.
        """
        heads = self.bottlenecks, self.classifiers
        sections = exit_heads.sections_of(self.student, self.exits, *heads, self._head)
        return EarlyExit(sections, threshold, self._head, self.student)

    # Saving.

    def get_config(self) -> Config:
        config = super().get_config()
        model = config.pop("student")
        del config["student_from_logits"]
        return {
            **config,
            "model": model,
            "exits": list(self.exits),
            "temperature": self.temperature,
            "alpha": self.alpha,
            "feature_weight": self.feature_weight,
            "feature_loss": self.feature_loss,
            "preset": self.preset,
            "scale_t2": self.scale_t2,
            "soft_loss": self.soft_loss,
            "adapt": self.adapt,
            "attention": self.attention,
            "feature_exits": list(self.feature_exits),
            "batch_norm": self.batch_norm,
        }


def _built(layer, width):
    layer.build((None, width))
    return layer


def _flag(name, value, defaults):
    value = defaults[name] if value is None else value
    return _checks.instance(name, value, bool, "True or False")


def _checked_indices(indices, count):
    found = list(indices) if not isinstance(indices, (str, numbers.Number)) else [indices]
    whole = all(isinstance(i, numbers.Integral) and 0 <= i < count for i in found)
    if not whole or len(set(found)) != len(found):
        expected = f"`feature_exits` to hold indices of exits, from 0 to {count - 1}, each once"
        raise ValueError(_checks.message(expected, "feature_exits", indices))
    return sorted(int(i) for i in found)
