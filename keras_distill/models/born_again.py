"""Born-again networks: generations of one architecture, each taught by the one before it."""

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import distribution
from keras_distill._ops import at_least_float32
from keras_distill._types import Config
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.data.targets import Targets
from keras_distill.models import labels as label_rules
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.generations import Generations
from keras_distill.models.network import SOFTMAX
from keras_distill.models.outputs import Outputs

VARIANTS = ("kd", "cwtm", "dkpp")


@keras.saving.register_keras_serializable(package="keras_distill")
class BornAgain(Generations):
    """Born-again networks (BAN): a student, its student, and so on, and their ensemble.

    Generation 0 learns from labels. Each later one starts afresh and learns from the one
    before it, which is frozen and runs for inference:

    `total = label_weight * CE(y, z) + T^2 KL(p_teacher at T || p at T)`

    One `fit` trains all generations, `epochs` epochs each; see `Generations` for what changes
    between them and for what callbacks see. The student that was given is the last
    generation in the end; `trained_generations()` holds all, `ensemble_of_generations()`
    averages them.

    Args:
        student: A built `keras.Model`, changed in place; see `Generations` for fresh copies.
        generations: How many follow generation 0 (BAN-1, BAN-2, ...).
        temperature: T, positive; 1 in the paper.
        label_weight: Factor of the label loss after generation 0: 0 for "BAN", 1 for "BAN+L".
        variant: What a later generation learns. "kd": the formula above. "cwtm", confidence
            weighted by teacher maximum: in place of KL the label loss, each sample weighed by
            the teacher's largest probability over its mean in the batch. "dkpp", dark
            knowledge with permuted predictions: KL with the teacher's probabilities other
            than the largest permuted at random, anew in each step, for each sample.
        restore_best, best_mode: As in `Generations`: the best epoch of a generation, which is
            what the paper's next one learns from, instead of its last.
        seed: As in `Generations`, and for the permutations.
        student_from_logits: As in `Distiller`.
        name: Name of the wrapper.

    The term is logged as `teacher`, from generation 1 on.

    Example:
    ```python
    wrapper = kd.BornAgain(student, generations=2)
    wrapper.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = wrapper.fit(images, labels, epochs=10)  # 30 epochs
    history.generations[0]["loss"]
    ensemble = wrapper.ensemble_of_generations()
    ```

    Reference:
        Furlanello et al., ICML 2018, https://arxiv.org/abs/1805.04770. There is no official
        code; "cwtm" and "dkpp" are our reading of the paper's text.
        Deviation: KL, not cross-entropy, is logged: the gradient is the same.
        Deviation: weights are the last epoch's unless `restore_best` is given.
    """

    def __init__(
        self,
        student: keras.Model,
        generations: int = 1,
        temperature: float = 1.0,
        label_weight: float = 0.0,
        variant: str = "kd",
        *,
        restore_best: str | None = None,
        best_mode: str | None = None,
        seed: int | None = None,
        student_from_logits: bool | None = None,
        name: str = "born_again",
        **kwargs: Any,
    ) -> None:
        _checks.positive_integer("generations", generations)
        super().__init__(
            student,
            ["teacher"],
            generations=generations,
            seed=seed,
            restore_best=restore_best,
            best_mode=best_mode,
            student_from_logits=student_from_logits,
            name=name,
            **kwargs,
        )
        self.generations = generations
        self.temperature = _checks.positive("temperature", temperature)
        self.label_weight = _checks.non_negative("label_weight", label_weight)
        self.variant = _checks.one_of("variant", variant, VARIANTS)
        if variant != "kd":
            self._check_classes()
        if variant == "dkpp":
            self._permutations = keras.random.SeedGenerator(self.seed)

    def _check_classes(self):
        shapes = self._student_network.output_shapes or [(None, None)]
        if len(shapes) > 1 or self.activation_of(0, shapes[0][-1]) != SOFTMAX:
            raise ValueError(
                f"Expected a student with one output over classes for variant={self.variant!r}. "
                f"Received: output shapes {shapes}, heads {self._student_network.heads}. Use "
                "variant='kd'."
            )

    def ensemble_of_generations(self, average: str = "probabilities") -> EnsembleTeacher:
        """An `EnsembleTeacher` of all generations so far, generation 0 first.

        It shares their weights, as `trained_generations` does.
        """
        members = self.trained_generations()
        if len(members) < 2:
            raise ValueError(
                f"Expected two generations or more. Received: {len(members)}. Call fit first."
            )
        return EnsembleTeacher(
            members, average=average, members_from_logits=self.student_from_logits
        )

    # The term.

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        prediction, terms = super().forward(inputs, training)
        return Outputs(prediction, terms and (*terms, training))

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        teacher, student, training = outputs.terms
        teacher_logits = self.logits(teacher)
        if self.variant == "cwtm":
            value = self._weighted_label_loss(teacher_logits[0], outputs, targets, sample_weight)
            return [("teacher", value, 1.0)]
        if self.variant == "dkpp" and training:
            teacher_logits = [self._permuted(teacher_logits[0])]
        value = self.soft_value(
            teacher_logits, self.logits(student), self.temperature, sample_weight
        )
        return [("teacher", value, 1.0)]

    def _weighted_label_loss(self, teacher_logits, outputs, targets, sample_weight):
        confidence = ops.max(ops.softmax(at_least_float32(teacher_logits), axis=-1), axis=-1)
        confidence = ops.stop_gradient(confidence)
        mean = distribution.sum_over_replicas(ops.sum(confidence)) / distribution.sum_over_replicas(
            ops.cast(ops.size(confidence), "float32")
        )
        weights = label_rules.by_output(sample_weight, 1)[0]
        if weights is not None:
            weights = ops.cast(weights, "float32")
            while len(weights.shape) < len(confidence.shape):
                weights = ops.expand_dims(weights, -1)
            if len(weights.shape) > len(confidence.shape):
                weights = ops.squeeze(weights, -1)
            confidence = confidence * weights
        return self.label_loss(targets.labels, outputs.prediction, confidence / mean)

    def _permuted(self, logits):
        """The logits with all but each row's largest permuted."""
        logits = at_least_float32(logits)
        units = logits.shape[-1]
        classes = ops.arange(units, dtype="int32")
        largest = ops.expand_dims(ops.argmax(logits, axis=-1), -1)
        is_largest = ops.equal(classes, ops.cast(largest, "int32"))
        noise = keras.random.uniform(ops.shape(logits), seed=self._permutations)
        # Both orders begin with the largest: the j-th of one moves to the place of the other.
        given = ops.argsort(ops.where(is_largest, -1, classes), axis=-1)
        drawn = ops.argsort(ops.where(is_largest, -1.0, noise), axis=-1)
        source = ops.take_along_axis(given, ops.argsort(drawn, axis=-1), axis=-1)
        return ops.take_along_axis(logits, source, axis=-1)

    def get_config(self) -> Config:
        names = "generations temperature label_weight variant"
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}
