"""Gradient-based attention transfer: the networks' sensitivity to the pixels."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._types import Config
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _inputs
from keras_distill.losses import _logits
from keras_distill.losses.base import DistillationLoss


def gradient_attention(
    teacher_gradients: Tensor,
    student_gradients: Structure,
    beta: float = 1.0,
    symmetry_weight: float = 0.0,
) -> Tensor:
    """`beta / 2 * ||J_s - J_t||` of each sample, J the slope of its cross-entropy by its input.

    With a `symmetry_weight` w, `beta / 2 * w * ||J_s - mirrored(J_s')||` is added, where J' is the
    slope at the mirrored input: the student's sensitivity should not depend on left and right.

    The paper's beta weighs the term beside the label loss; no published code shows one in use.
    Here it is 1 by default, for the weight of a `Term` to be the paper's beta.

    Args:
        teacher_gradients: Tensor `(batch, ...)`, a constant to the gradient.
        student_gradients: Tensor of the same shape; with a `symmetry_weight` a pair of maps
            `(batch, height, width, channels)`, at the images and at the mirrored images.
        beta: A number, 0 or more.
        symmetry_weight: A number, 0 or more.

    Returns:
        Tensor `(batch,)`, 0 where the slopes agree and, with a `symmetry_weight`, are symmetric.

    Raises:
        ValueError: If the shapes differ.

    References:
        Zagoruyko and Komodakis ICLR 2017, https://arxiv.org/abs/1612.03928, section 3.2; their
        code does not hold it. The paper leaves the reduction open: here each sample's own slope,
        its L2 norm over the whole input, the mean over the batch.
    """
    beta = _checks.non_negative("beta", beta)
    symmetry_weight = _checks.non_negative("symmetry_weight", symmetry_weight)
    mirrored = None
    if symmetry_weight:
        student_gradients, mirrored = student_gradients
        _check_images(mirrored)
    teacher, student = _logits.matched_pair(teacher_gradients, student_gradients)
    _logits.check_same_shape(teacher, student, "gradients", "Give both networks the same inputs.")
    values = _norms(student - teacher)
    if mirrored is not None:
        values = values + symmetry_weight * _norms(student - ops.flip(mirrored, axis=2))
    return 0.5 * beta * values


@keras.saving.register_keras_serializable(package="keras_distill")
class GradientAttention(DistillationLoss):
    """Gradient-based attention transfer (Zagoruyko and Komodakis 2017): see `gradient_attention`.

    It takes the slopes of both networks' cross-entropy by the inputs by itself, so that the term
    names no layers; it needs labels (samples of -1 have a slope of 0), one tensor of inputs for
    both networks, and TensorFlow, whose training step differentiates the student's slope again.
    The slopes are taken with both networks in inference mode: in training mode, batch
    normalisation would mix the samples' slopes.

    Args:
        beta: Factor, 0 or more.
        symmetry_weight: Weight of the term on mirrored images, 0 or more; 0 leaves it out.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    on_inputs = True

    def __init__(self, beta: float = 1.0, symmetry_weight: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.beta = _checks.non_negative("beta", beta)
        self.symmetry_weight = _checks.non_negative("symmetry_weight", symmetry_weight)

    def compared(
        self,
        teacher: Callable[[Structure], Tensor],
        student: Callable[[Structure], Tensor],
        inputs: tuple[Structure, Structure],
        labels: Tensor | None,
        training: bool = True,
    ) -> tuple[Structure, Structure]:
        images, labels = _inputs.images_and_labels(self.name, inputs, labels)
        of_teacher, logits = input_gradients(teacher, images, labels)
        of_student, student_logits = input_gradients(student, images, labels)
        _inputs.check_classes(self.name, logits, student_logits)
        if self.symmetry_weight:
            _check_images(images)
            mirrored, _ = input_gradients(student, ops.flip(images, axis=2), labels)
            of_student = of_student, mirrored
        return ops.stop_gradient(of_teacher), of_student

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        return gradient_attention(y_true, y_pred, self.beta, self.symmetry_weight)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "beta": self.beta,
            "symmetry_weight": self.symmetry_weight,
        }


def input_gradients(network, images, labels):
    """The slope of each sample's cross-entropy by its own input. On TensorFlow only.

    Args:
        network: A function of images that gives logits `(batch, classes)`, each sample's on its
            own.
        images: Float tensor `(batch, ...)`.
        labels: Class ids `(batch,)`; a label of -1 has a slope of 0.

    Returns:
        `(gradients, logits)`, the gradients of the shape of `images`.
    """
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = _inputs.scores_of(network, images)
        loss = -_inputs.log_probs_at(labels, logits)
    return tape.gradient(loss, images, unconnected_gradients="zero"), logits


def _norms(x):
    squares = ops.square(x)
    return _logits.safe_sqrt(ops.sum(squares, axis=tuple(range(1, len(x.shape)))))


def _check_images(images):
    if len(images.shape) != 4:
        raise ValueError(
            "Expected images (batch, height, width, channels) for a `symmetry_weight`. Received: "
            f"inputs.shape={tuple(images.shape)}. Pass symmetry_weight=0."
        )
