"""What every distillation loss is: a `keras.losses.Loss` of (teacher, student)."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from numpy.typing import ArrayLike

from keras_distill import _keras
from keras_distill._types import Config
from keras_distill._types import Shapes
from keras_distill._types import Structure
from keras_distill._types import Tensor


class DistillationLoss(keras.losses.Loss):
    """Base class of the losses in `keras_distill.losses`.

    Called as `loss(teacher_outputs, student_outputs, sample_weight=None)`: the teacher is
    the target (`y_true`), the student the prediction (`y_pred`). `call` returns one value
    for each prediction, shape `logits.shape[:-1]` for response losses and `(batch,)` for
    losses of features, and Keras does the rest: it reduces, weighs and masks, and divides
    by the number of replicas.

    A subclass calls `super().__init__(**kwargs)`, keeps one attribute for each argument
    and returns them from `get_config`.

    Class attributes, which say what a loss asks of the wrapper:
        needs_labels: `call` takes `y_true=(teacher_outputs, labels)`.
        needs_ids: `call` takes `y_true=(teacher_outputs, ids)` (after the labels, where
            both are asked), the ids of the samples.
        shift_invariant: adding one constant to all of a row's logits changes nothing, so
            that log-probabilities serve as well as logits.
        on_logits: the loss compares the scores of classes (a response loss). The wrapper
            hands it logits, taken before a softmax or sigmoid head.
        softmax_temperature: the temperature at which the teacher's softmax over classes is all
            that a response loss reads of the teacher, so that a cache of it serves; `None` for a
            loss that reads more.
        on_inputs: the loss looks at the networks' inputs: the wrapper asks `compared` for
            what `call` sees. On TensorFlow only.

    Args:
        name: Name of the loss, under which a wrapper logs it. Defaults to the class's
            name in snake case.
        reduction: As in `keras.losses.Loss`.
        dtype: As in `keras.losses.Loss`; by default float32 whatever the dtype policy.
    """

    needs_labels = False
    needs_ids = False
    shift_invariant = False
    on_logits = False
    on_inputs = False
    softmax_temperature: float | None = None

    def __init__(
        self,
        name: str | None = None,
        reduction: str | None = "sum_over_batch_size",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            name=name or _keras.to_snake_case(type(self).__name__),
            reduction=reduction,
            dtype=dtype or _loss_dtype(),
        )

    def __call__(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        sample_weight: Structure | None = None,
    ) -> Tensor:
        return _keras.call_loss(self, teacher_outputs, student_outputs, sample_weight)

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        """What features of these shapes lack: text that follows "Expected", or `None`.

        A wrapper asks before training, and names the term and both shapes in its error.

        Args:
            teacher_shapes: The shape of the teacher's feature, batch first, `None` for an
                unknown size; a list of shapes where a term names several layers.
            student_shapes: The student's, alike, after the term's connector.
        """
        return None

    def check_ids(self, ids: ArrayLike) -> None:
        """Raises where a loss that `needs_ids` has no room for one of an array of ids."""

    def compared(
        self,
        teacher: Callable[[Structure], Tensor],
        student: Callable[[Structure], Tensor],
        inputs: tuple[Structure, Structure],
        labels: Tensor | None,
        training: bool = True,
    ) -> tuple[Structure, Structure]:
        """What `call` compares, of a loss `on_inputs`: `(y_true, y_pred)`.

        Args:
            teacher: A function of inputs that gives the teacher's logits, for inference,
                through which a `tf.GradientTape` differentiates by the inputs.
            student: The student's, alike, also by the student's variables.
            inputs: The inputs of both, `(teacher_inputs, student_inputs)`.
            labels: Class ids `(batch,)`, -1 for none, or `None`.
            training: Whether it is a training step: another changes no state.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no `compared`.")

    def get_config(self) -> Config:
        config = super().get_config()
        if self.dtype != _loss_dtype():
            config["dtype"] = self.dtype
        return config


def _loss_dtype():
    """Float32, or float64 where that is Keras's floatx: never a half precision."""
    return "float64" if keras.config.floatx() == "float64" else "float32"


def class_scores(logits):
    """Logits over at least two classes: a one-unit head `z` becomes the pair `[0, z]`.

    `softmax([0, z])` is `[1 - sigmoid(z), sigmoid(z)]`, so that every loss over classes
    holds for a sigmoid head too.
    """
    if logits.shape[-1] == 1:
        return ops.concatenate([ops.zeros_like(logits), logits], axis=-1)
    return logits
