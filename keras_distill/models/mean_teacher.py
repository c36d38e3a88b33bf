"""Mean teacher: the student agrees with the moving average of its own weights."""

from typing import Any

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
from keras_distill.models import labels as label_rules
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import Network
from keras_distill.models.network import fresh_copy
from keras_distill.models.network import keep_mask
from keras_distill.models.outputs import Outputs
from keras_distill.models.student import StudentModel
from keras_distill.schedules import number_or_schedule
from keras_distill.schedules import value_at

_CONSISTENCY = "consistency"


@keras.saving.register_keras_serializable(package="keras_distill")
class MeanTeacher(StudentModel):
    """Mean teacher: the target is the prediction of the averaged weights (EMA).

    `CE(z, y) + weight * consistency`, and after each update of the weights
    `averaged = a * averaged + (1 - a) * student` with `a = min(1 - 1 / (t + 1), decay)`, t the
    number of updates so far: 1/2 after the first. Steps that only accumulate gradients, or
    that loss scaling skips, move nothing.

    The averaged network (`wrapper.averaged`) starts as a copy of the student, gets no gradient,
    and is what is evaluated and exported; it is saved in every kind of file. Metrics in `fit`
    are the student's, those of validation the averaged network's.

    Trains on `(x, y)`, of which both networks see the same, or on `((x, x_other_view), y)`
    (see `keras_distill.data.two_views`): the student sees the first view, the averaged network
    the second. Unlabelled samples (class id -1) count in the consistency alone.

    Args:
        student: A built `keras.Model`, changed in place.
        decay: The largest a, at least 0 and below 1. The paper's code: 0.999; 0.97 early and
            0.99 later on CIFAR-10.
        weight: Factor of the consistency: a number, 0 or more, or a schedule of
            `optimizer.iterations` such as `keras_distill.schedules.SigmoidRamp`. In use are
            1 to 10 with "kl", and between C and C^2 for C classes with "mse".
        consistency: "mse", the squared difference of the probabilities, mean over the classes;
            or "kl", `KL(averaged || student)`. Both are means over the batch.
        teacher_training: `False`: moving statistics are averaged with the weights, and the
            averaged network runs for inference. `True`, the official mode: it runs in training
            mode, with dropout of its own and its own statistics; parameters alone are averaged.
        student_from_logits: Whether the student returns logits, where its graph does not tell.
        name: Name of the wrapper.

    Logs: `loss`, `label_loss`, `consistency` (without its weight), metrics.

    Example:
    ```python
    views = kd.data.two_views(images, labels, 128, augment=kd.data.crop_and_flip(), epochs=60)
    ramp = kd.schedules.SigmoidRamp(100.0, steps=5 * steps_per_epoch)
    wrapper = kd.MeanTeacher(student, weight=ramp)
    wrapper.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    wrapper.fit(views, epochs=60, steps_per_epoch=steps_per_epoch, shuffle=False)
    wrapper.averaged.save("averaged.keras")
    ```

    Reference:
        Tarvainen and Valpola, 2017, https://arxiv.org/abs/1703.01780; convention of
        CuriousAI/mean-teacher.
        Deviation: moving statistics are averaged too, see `teacher_training`.
        Deviation: one logit head; the code's second head, coupled to the first, is left out.
    """

    saved_attributes = ("averaged",)

    def __init__(
        self,
        student: keras.Model,
        decay: float = 0.999,
        weight: NumberOrSchedule = 10.0,
        consistency: str = "mse",
        teacher_training: bool = False,
        student_from_logits: bool | None = None,
        name: str = "mean_teacher",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            student,
            term_names=[_CONSISTENCY],
            student_from_logits=student_from_logits,
            name=name,
            **kwargs,
        )
        if not _checks.is_number(decay) or not 0 <= decay < 1:
            raise ValueError(_checks.message("`decay` to be in [0, 1)", "decay", decay))
        self.decay = float(decay)
        self.weight = number_or_schedule("weight", weight)
        self.consistency = _checks.one_of("consistency", consistency, ("mse", "kl"))
        self.teacher_training = _checks.instance(
            "teacher_training", teacher_training, bool, "True or False"
        )
        self.averaged = fresh_copy(student)
        self.averaged.set_weights(student.get_weights())
        if self.teacher_training:
            _set_seeds_apart(self.averaged)
        self._averaged_network = Network(
            self.averaged,
            "averaged network",
            from_logits=student_from_logits,
            frozen=not self.teacher_training,
        )
        self._updates, self._seen_step = (
            self.add_weight(
                shape=(), initializer="zeros", dtype="int32", trainable=False, name=counter
            )
            for counter in ("updates", "seen_step")
        )

    @property
    def inference_model(self) -> keras.Model:
        """The averaged network."""
        return self.averaged

    def infer(self, inputs: Structure) -> Structure:
        return self.averaged(self.own_inputs(inputs), training=False)

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        views = self.views(inputs)
        student = self._student_network(views[0], training=training)
        averaged = self._averaged_network(views[-1], training=training)
        # The official mode runs the averaged network unfrozen; its losses are not the student's.
        self._averaged_network._clear_losses()
        shown = student if training else averaged
        return Outputs(shown.prediction, (self.logits(averaged), self.logits(student)))

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        averaged, student = outputs.terms
        if self.consistency == "kl":
            value = self.soft_value(averaged, student, sample_weight=sample_weight)
        else:
            value = self._squared_value(averaged, student, sample_weight)
        return [(_CONSISTENCY, value, value_at(self.weight, self.step))]

    def _squared_value(self, targets, logits, sample_weight):
        keys = label_rules.output_keys(getattr(self.student, "output", None), self.output_names)
        weights = label_rules.by_output(sample_weight, len(logits), keys)
        loss = keras.losses.MeanSquaredError(dtype="float32")
        total = 0.0
        for i, (target, own, weight) in enumerate(zip(targets, logits, weights)):
            activation = self.activation_of(i, own.shape[-1])
            target = ops.stop_gradient(_probabilities(target, activation))
            own = keep_mask(_probabilities(own, activation), own)
            total = total + _keras.call_loss(loss, target, own, weight, always_reduce=True)
        return total

    # The average.

    def after_update(self) -> None:
        """Moves the average, where the optimizer has moved the weights."""
        step = ops.cast(self.optimizer.iterations, "int32")
        moved = ops.logical_and(step > 0, ops.not_equal(step, self._seen_step))
        updates = self._updates + ops.cast(moved, "int32")
        share = ops.maximum(1.0 / (ops.cast(updates, "float32") + 1.0), 1.0 - self.decay)
        share = ops.where(moved, share, 0.0)
        for own, average in self._averaged_pairs():
            if not keras.backend.is_float_dtype(average.dtype):
                average.assign(own)
                continue
            difference = ops.subtract(own, average)
            average.assign(ops.add(average, ops.cast(share, average.dtype) * difference))
        self._updates.assign(updates)
        self._seen_step.assign(step)

    def _averaged_pairs(self):
        """`(student's variable, averaged variable)` for all that is averaged."""
        pairs = zip(self.student.weights, self.averaged.weights, strict=True)
        if not self.teacher_training:
            return list(pairs)
        layers = _keras.flatten_layers(self.student)
        statistics = {id(v) for layer in layers for v in layer._non_trainable_variables}
        return [(own, average) for own, average in pairs if id(own) not in statistics]

    # Saving.

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "decay": self.decay,
            "weight": _keras.serialized(self.weight),
            "consistency": self.consistency,
            "teacher_training": self.teacher_training,
        }


def _probabilities(logits, activation):
    logits = at_least_float32(logits)
    return ops.sigmoid(logits) if activation == SIGMOID else ops.softmax(logits, axis=-1)


def _set_seeds_apart(network):
    """Dropout of its own: layers with a fixed seed would drop what the student's drop."""
    weights = {id(variable) for variable in network.weights}
    for variable in network.variables:
        if id(variable) not in weights:
            state = ops.convert_to_tensor(variable)
            variable.assign(state + ops.ones_like(state))
