"""Teacher-free distillation: from an earlier training of the same network, or a virtual teacher."""

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._types import Config
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.data.targets import Targets
from keras_distill.models.generations import Generations
from keras_distill.models.label_targets import label_targets
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import keep_mask
from keras_distill.models.outputs import Outputs

SELF = "self"
VIRTUAL = "virtual"
DEFAULT_ALPHA = {SELF: 0.9, VIRTUAL: 0.1}
OFFICIAL = {
    SELF: {"mean_over": "elements"},
    VIRTUAL: {
        "soften": "probabilities",
        "student_temperature": 1.0,
        "temperature_squared": False,
        "mean_over": "elements",
    },
}


@keras.saving.register_keras_serializable(package="keras_distill")
class TeacherFreeDistiller(Generations):
    """Tf-KD: the student's teacher is an earlier self, or a hand-made distribution.

    `total = (1 - alpha) CE(y, z) + alpha * multiplier * T^2 KL(teacher at T || student at T)`

    `mode="self"` (Tf-KD_self): `fit` trains the student on labels first, keeps it as a frozen
    teacher, and trains a fresh copy with the total above: two trainings of `epochs` epochs
    each. See `Generations` for what changes between them and for what callbacks see.

    `mode="virtual"` (Tf-KD_reg): the teacher is `correct_probability` on the true class and an
    even share of the rest on each other class, at temperature T; nothing is trained twice.

    Args:
        student: A `keras.Model`, changed in place; built, with `mode="self"`.
        mode: "self" or "virtual".
        preset: `None`, or "official" for the convention of the authors' code, which differs
            from the paper. It sets, where they are not given: `mean_over="elements"`; for the
            virtual teacher also `soften="probabilities"`, `student_temperature=1` and
            `temperature_squared=False`. The code's `alpha`, `temperature` and `multiplier`
            belong to each network: ResNet-18 on CIFAR-100 has 0.95, 6, 50 (self) and
            0.1, 20, 100 (virtual).
        temperature: T, positive.
        alpha: Weight of the soft term, from 0 to 1; the label loss has 1 - alpha. Defaults to
            0.9 ("self") or 0.1 ("virtual").
        correct_probability: The virtual teacher's probability a of the true class.
        soften: How the virtual teacher p is softened: "logits", `softmax(log(p) / T)`, or
            "probabilities", `softmax(p / T)`, which is close to even (0.208 against 0.198 for
            five classes at T = 20).
        student_temperature: Divides the student's logits. Defaults to T.
        temperature_squared: Whether the term is multiplied by T^2.
        mean_over: "samples" (the sum over classes, "batchmean"), or "elements": also divided
            by the number of classes.
        multiplier: Factor of the term.
        seed, restore_best, best_mode: As in `Generations`; of `mode="self"` alone.
        student_from_logits: As in `Distiller`.
        name: Name of the wrapper.

    The term is logged as `virtual_teacher` or `teacher`, before `alpha`. Independent labels
    (sigmoid heads) have a binary teacher for each. Labels of -1 have no virtual teacher.

    Example:
    ```python
    wrapper = kd.TeacherFreeDistiller(student, mode="virtual", temperature=20.0, alpha=0.1)
    wrapper.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    wrapper.fit(images, labels, epochs=10)
    ```

    Reference:
        Yuan et al., CVPR 2020, https://arxiv.org/abs/1909.11723, equation 9 for the virtual
        teacher; code: https://github.com/yuanli2333/Teacher-free-Knowledge-Distillation
        Deviation: the paper's formula has no T^2; here the term's gradient keeps its size
        when T changes, as everywhere in this library. `temperature_squared=False` omits it.
        Deviation: in the code the second training of Tf-KD_self is a run of its own.
    """

    def __init__(
        self,
        student: keras.Model,
        mode: str = SELF,
        preset: str | None = None,
        temperature: float = 20.0,
        alpha: float | None = None,
        *,
        correct_probability: float = 0.99,
        soften: str | None = None,
        student_temperature: float | None = None,
        temperature_squared: bool | None = None,
        mean_over: str | None = None,
        multiplier: float = 1.0,
        seed: int | None = None,
        restore_best: str | None = None,
        best_mode: str | None = None,
        student_from_logits: bool | None = None,
        name: str = "teacher_free_distiller",
        **kwargs: Any,
    ) -> None:
        _checks.one_of("mode", mode, (SELF, VIRTUAL))
        _checks.one_of("preset", preset, (None, "official"))
        super().__init__(
            student,
            ["teacher" if mode == SELF else "virtual_teacher"],
            generations=1 if mode == SELF else 0,
            seed=seed,
            restore_best=restore_best,
            best_mode=best_mode,
            student_from_logits=student_from_logits,
            name=name,
            **kwargs,
        )
        set_by_preset = OFFICIAL[mode] if preset else {}

        def chosen(option, value, default):
            return set_by_preset.get(option, default) if value is None else value

        self.mode = mode
        self.preset = preset
        self.temperature = _checks.positive("temperature", temperature)
        self.alpha = _share("alpha", DEFAULT_ALPHA[mode] if alpha is None else alpha)
        self.correct_probability = _share("correct_probability", correct_probability)
        self.soften = chosen("soften", soften, "logits")
        self.student_temperature = _checks.positive(
            "student_temperature",
            chosen("student_temperature", student_temperature, self.temperature),
        )
        self.temperature_squared = chosen("temperature_squared", temperature_squared, True)
        self.mean_over = chosen("mean_over", mean_over, "samples")
        self.multiplier = _checks.non_negative("multiplier", multiplier)
        self._check_convention()
        self.label_weight = 1.0 - self.alpha
        if mode == VIRTUAL:
            self.student_loss_weight = self.label_weight

    def _check_convention(self):
        _checks.one_of("soften", self.soften, ("logits", "probabilities"))
        _checks.one_of("mean_over", self.mean_over, ("samples", "elements"))
        if self.mode == SELF and self.soften != "logits":
            raise ValueError(
                _checks.message(
                    "`soften` only with mode='virtual': a trained teacher has logits",
                    "soften",
                    self.soften,
                )
            )
        if self.mode == VIRTUAL and not 0.0 < self.correct_probability < 1.0:
            raise ValueError(
                _checks.message(
                    "`correct_probability` to be above 0 and below 1",
                    "correct_probability",
                    self.correct_probability,
                )
            )

    # The soft term.

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        if self.mode == SELF:
            return super().forward(inputs, training)
        student = self._student_network(inputs, training=training)
        return Outputs(student.prediction, (None, student))

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        teacher, student = outputs.terms
        logits = self.logits(student)
        if self.mode == SELF:
            sources, weights = self.logits(teacher), sample_weight
        else:
            labels, weights = label_targets(
                self, targets.labels, outputs.prediction, logits, sample_weight
            )
            sources = [
                self.virtual_logits(label, own.shape[-1], self.activation_of(i, own.shape[-1]))
                for i, (label, own) in enumerate(zip(labels, logits))
            ]
        factor = self.multiplier * (self.temperature**2 if self.temperature_squared else 1.0)
        if self.mean_over == "elements":
            factor = factor / self._units(logits)
        value = self.soft_value(
            [ops.cast(source, "float32") / self.temperature for source in sources],
            [keep_mask(ops.cast(z, "float32") / self.student_temperature, z) for z in logits],
            sample_weight=weights,
        )
        return [(self._term_trackers[0].name, value * factor, self.alpha)]

    def virtual_logits(self, labels: Tensor, units: int, activation: str) -> Tensor:
        """What a softmax (or sigmoid) at temperature T makes the virtual teacher of.

        Args:
            labels: Float tensor `(batch, ..., units)`: one-hot or soft labels, or independent
                labels 0 and 1.
            units: Number of classes, or of independent labels.
            activation: "softmax" or "sigmoid".

        Returns:
            The log of the teacher's probabilities (their log-odds for a sigmoid), or with
            `soften="probabilities"` the probabilities themselves.
        """
        true = self.correct_probability
        rest = (1.0 - true) / (1 if activation == SIGMOID else units - 1)
        probabilities = rest + labels * (true - rest)
        if self.soften == "probabilities":
            if activation == SIGMOID:  # The pair softmax([(1 - p) / T, p / T]).
                return 2.0 * probabilities - 1.0
            return probabilities
        if activation == SIGMOID:
            return ops.log(probabilities) - ops.log(1.0 - probabilities)
        return ops.log(probabilities)

    def _units(self, logits):
        units = {2 if z.shape[-1] == 1 else z.shape[-1] for z in logits}
        if len(units) > 1:
            raise ValueError(
                "Expected outputs of one number of classes with mean_over='elements'. Received: "
                f"outputs of {sorted(units)}. Use mean_over='samples'."
            )
        return units.pop()

    def get_config(self) -> Config:
        names = (
            "mode preset temperature alpha correct_probability soften student_temperature "
            "temperature_squared mean_over multiplier"
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}


def _share(name, value):
    """Returns `value` as a float; raises unless it lies in [0, 1]."""
    if not _checks.is_number(value) or not 0.0 <= value <= 1.0:
        raise ValueError(_checks.message(f"`{name}` to be a number from 0 to 1", name, value))
    return float(value)
