"""What the losses that look at the networks' inputs share."""

import keras
from keras import ops

from keras_distill._ops import at_least_float32
from keras_distill.losses import _logits
from keras_distill.losses.base import class_scores


def images_and_labels(name, inputs, labels):
    """The inputs of both networks as one float tensor, and the class ids.

    Args:
        name: The loss's, for messages.
        inputs: `(teacher's inputs, student's inputs)`.
        labels: Class ids `(batch,)`, or `None`.

    Raises:
        ValueError: If the inputs differ, are several tensors, or there are no labels.
    """
    teacher, student = inputs
    if labels is None:
        raise ValueError(
            f"Expected labels for the loss {name!r}, which needs them. Received: y=None. "
            "Give `fit` labels."
        )
    if teacher is not student or keras.tree.is_nested(student):
        received = [getattr(x, "shape", x) for x in keras.tree.flatten([teacher, student])]
        raise ValueError(
            f"Expected one tensor of inputs that teacher and student share for the loss {name!r}. "
            f"Received: inputs of the shapes {[tuple(shape) for shape in received]}. Put the "
            "teacher behind an adapter that takes the student's input."
        )
    return at_least_float32(student), labels


def scores_of(network, images):
    """A network's logits over at least two classes, in float32 at least."""
    return at_least_float32(class_scores(network(images)))


def check_classes(name, teacher_logits, student_logits):
    """Raises unless both give logits `(batch, classes)` over as many classes."""
    shapes = tuple(teacher_logits.shape), tuple(student_logits.shape)
    if all(len(shape) == 2 for shape in shapes) and shapes[0][-1] == shapes[1][-1]:
        return
    raise ValueError(
        f"Expected logits (batch, classes) over the same classes for the loss {name!r}. "
        f"Received: teacher_logits.shape={shapes[0]}, student_logits.shape={shapes[1]}."
    )


def log_probs_at(labels, logits):
    """The log-probability of each label, 0 where the label is no class (-1)."""
    mask = _logits.target_mask(labels, logits)
    log_probs = ops.log_softmax(logits, axis=-1)
    return ops.sum(ops.where(mask, log_probs, ops.zeros_like(log_probs)), axis=-1)
