"""Labels as the distributions that the heads of a student predict."""

from keras import ops

from keras_distill import _checks
from keras_distill.losses._logits import target_mask
from keras_distill.models import labels as label_rules
from keras_distill.models.network import SIGMOID


def label_targets(wrapper, labels, prediction, logits, sample_weight):
    """The labels of each output as probabilities, and the weights of its samples.

    Args:
        wrapper: A `StudentModel`.
        labels: As they arrive: class ids, one-hot or soft labels, for independent labels 0 and
            1; in the structure of the outputs.
        prediction: The student's outputs.
        logits: The student's logits, one entry an output.
        sample_weight: Keras's sample weights or `None`.

    Returns:
        `(targets, weights)`, lists with an entry an output: float32 of the shape of the
        logits, and weights or `None`. Labels of -1 get the weight 0, as in the label loss.
    """
    if labels is None:
        raise ValueError(
            _checks.message("labels, which the teacher is made of", "y", labels, "Pass y.")
        )
    count = len(logits)
    keys = label_rules.output_keys(prediction, wrapper.output_names)
    activations = [wrapper.activation_of(i, own.shape[-1]) for i, own in enumerate(logits)]
    loss = wrapper._compiled_loss
    if loss is None:
        flat = label_rules.by_output(labels, count, keys)
        kinds = [_kind_of(y, own, kind) for y, own, kind in zip(flat, logits, activations)]
        loss = kinds if count > 1 else kinds[0]
    if loss is not None:
        labels, sample_weight, _ = label_rules.leave_out_unlabelled(
            loss, labels, prediction, sample_weight, wrapper.output_names
        )
    flat = label_rules.by_output(labels, count, keys)
    targets = [_distribution(*each) for each in zip(flat, logits, activations)]
    return targets, label_rules.by_output(sample_weight, count, keys)


def _kind_of(labels, logits, activation):
    """The loss that would read these labels, where they are class ids."""
    if activation == SIGMOID:
        return "binary_crossentropy"
    one_hot = len(labels.shape) == len(logits.shape) and labels.shape[-1] == logits.shape[-1]
    return None if one_hot else "sparse_categorical_crossentropy"


def _distribution(labels, logits, activation):
    if activation == SIGMOID:
        return ops.reshape(ops.cast(labels, "float32"), ops.shape(logits))
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == len(logits.shape) and labels.shape[-1] == logits.shape[-1]:
        return ops.cast(labels, "float32")
    return ops.cast(target_mask(labels, logits), "float32")
