"""The label loss: what it expects of the head, and labels that are missing."""

import keras
import numpy as np
from keras import ops

from keras_distill import _keras
from keras_distill._ops import per_sample_mean
from keras_distill.data.pipeline import class_weights
from keras_distill.data.targets import Targets
from keras_distill.models.network import LOGITS
from keras_distill.models.network import OPEN
from keras_distill.models.network import PROBABILITIES
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import SOFTMAX

CROSS_ENTROPIES = (
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
    "binary_crossentropy",
    "categorical_focal_crossentropy",
    "binary_focal_crossentropy",
    "label_smoothing",
)
SPARSE_LOSSES = ("sparse_categorical_crossentropy", "label_smoothing")
CLASS_ID_LOSSES = (
    *SPARSE_LOSSES,
    "binary_crossentropy",
    "binary_focal_crossentropy",
)


def loss_name(loss):
    """Snake-case name of a loss given as a string, a class instance or a function."""
    if isinstance(loss, str):
        return _keras.to_snake_case(loss)
    if isinstance(loss, keras.losses.Loss):
        return _keras.to_snake_case(type(loss).__name__)
    return getattr(loss, "__name__", type(loss).__name__)


def from_logits_of(loss):
    """Whether a cross-entropy reads logits; `None` for any other loss.

    Strings and bare functions of Keras read probabilities.
    """
    if loss_name(loss) not in CROSS_ENTROPIES:
        return None
    if isinstance(loss, keras.losses.Loss):
        return bool(loss.get_config().get("from_logits", False))
    return False


def output_keys(outputs, names=None):
    """What a dict of losses or labels calls each output, in the order of the flat outputs.

    Args:
        outputs: The structure of the outputs, as the model returns it.
        names: Names of the model's output layers, which name the entries of a list.

    Returns:
        A list of keys, or `None` where the outputs have no names.
    """
    if isinstance(outputs, dict):
        return sorted(outputs)
    if isinstance(outputs, (list, tuple)) and names and len(names) == len(outputs):
        return list(names)
    return None


def by_output(structure, count, keys=None):
    """The entry of each of `count` outputs in what the user gave for them.

    Args:
        structure: One for all, a list or a dict, such as the compiled loss, labels or weights.
        count: How many outputs the model has.
        keys: See `output_keys`.
    """
    if structure is None:
        return [None] * count
    if isinstance(structure, dict) and keys is not None and set(structure) <= set(keys):
        return [structure.get(key) for key in keys]
    flat = keras.tree.flatten(structure)
    if len(flat) == count:
        return flat
    one_for_all = len(flat) == 1 and not isinstance(structure, dict)
    return flat * count if one_for_all else [None] * count


def check_heads(loss, heads, role="student", keys=None):
    """Raises where a compiled cross-entropy contradicts the head that it reads.

    Args:
        loss: What the user gave to `compile`.
        heads: The network's heads, one an output; "open" ones are passed over.
        role: The network's name in the message.
        keys: Names of the outputs, see `output_keys`.
    """
    for one, head in zip(by_output(loss, len(heads), keys), heads):
        if one is None:
            continue
        from_logits = from_logits_of(one)
        if from_logits is None or head == OPEN:
            continue
        if from_logits and head in (SOFTMAX, SIGMOID, PROBABILITIES):
            ends = "returns probabilities" if head == PROBABILITIES else f"ends in a {head}"
            raise ValueError(
                f"Expected a `loss` that reads probabilities, for the {role} {ends}. Received: "
                f"{loss_name(one)} with from_logits=True. Pass from_logits=False, or end the "
                f"{role} in logits."
            )
        if not from_logits and head == LOGITS:
            raise ValueError(
                f"Expected a `loss` that reads logits, for the {role} ends without a softmax or "
                f"sigmoid. Received: loss={_shown(one)}, which reads probabilities. Pass "
                f"{_class_name(one)}(from_logits=True)."
            )


def check_class_ids(loss, labels, output_shapes):
    """Raises where arrays of class ids name a class that the head does not have.

    Only NumPy arrays are looked at: a data set is not read through before training.
    """
    if output_shapes is None or not isinstance(labels, np.ndarray) or len(output_shapes) != 1:
        return
    classes = output_shapes[0][-1]
    if loss is None or loss_name(loss) not in SPARSE_LOSSES or not labels.size:
        return
    if classes is not None and (labels.max() >= classes or labels.min() < -1):
        raise ValueError(
            f"Expected labels from 0 to {classes - 1} (or -1 for none), for the model has "
            f"{classes} classes. Received: y from {labels.min()} to {labels.max()}."
        )


def leave_out_unlabelled(loss, labels, prediction, sample_weight, names=None):
    """Gives samples labelled -1 the weight 0 in the label loss.

    Only where the compiled loss reads class ids (sparse categorical, or binary on one unit):
    elsewhere -1 is a value like any other.

    Args:
        loss: What the user gave to `compile`.
        labels: Labels, in the structure of the outputs.
        prediction: The network's outputs.
        sample_weight: Weights or `None`.
        names: Names of the network's output layers.

    Returns:
        `(labels, sample_weight, masks)`: labels with 0 in place of -1, the weights, and one
        mask an output (`None` where nothing was looked for).
    """
    flat_predictions = keras.tree.flatten(prediction)
    count = len(flat_predictions)
    keys = output_keys(prediction, names)
    losses = by_output(loss, count, keys)
    flat_labels = by_output(labels, count, keys)
    masks = [None] * count
    reads = [
        one is not None and _reads_class_ids(one, y, p)
        for one, y, p in zip(losses, flat_labels, flat_predictions)
    ]
    if not any(reads):
        return labels, sample_weight, masks
    weights = by_output(sample_weight, count, keys)
    for i, y in enumerate(flat_labels):
        if not reads[i]:
            continue
        known = y >= 0
        flat_labels[i] = ops.where(known, y, ops.zeros_like(y))
        if len(known.shape) == len(flat_predictions[i].shape) and known.shape[-1] == 1:
            known = ops.squeeze(known, axis=-1)
        masks[i] = known
        weights[i] = _weigh(known, weights[i])
    if not keras.tree.is_nested(prediction):
        return flat_labels[0], weights[0], masks
    return (
        keras.tree.pack_sequence_as(prediction, flat_labels),
        keras.tree.pack_sequence_as(prediction, weights),
        masks,
    )


def with_class_weight(dataset, class_weight):
    """A `tf.data.Dataset` of `(x, y)` with the weight of each label's class as third entry.

    Keras's own has no weight for -1: unlabelled samples get 1, which the terms see.
    """

    def add(*element):
        x, y, sample_weight = _keras.unpack_x_y_sample_weight(element)
        labels = y.get("labels") if isinstance(y, Targets) else y
        if sample_weight is not None or labels is None or keras.tree.is_nested(labels):
            raise ValueError(
                "Expected `class_weight` only for (x, y) with the labels of one output. "
                "Received: a dataset of other elements. Give it sample weights instead."
            )
        return x, y, class_weights(labels, class_weight)

    return dataset.map(add)


def update_metrics(compiled, labels, prediction, sample_weight, masks):
    """Updates the compiled metrics, the unweighted ones too without the unlabelled samples.

    Args:
        compiled: Keras's `CompileMetrics`.
        labels, sample_weight, masks: As `leave_out_unlabelled` returns them.
        prediction: The network's outputs.
    """
    if all(mask is None for mask in masks):
        compiled.update_state(labels, prediction, sample_weight)
        return
    if not compiled.built:
        compiled.build(labels, prediction)
    known = [None if mask is None else ops.cast(mask, "float32") for mask in masks]
    if keras.tree.is_nested(prediction):
        known = compiled._flatten_y(keras.tree.pack_sequence_as(prediction, known))
    weights = compiled._flatten_y(sample_weight)
    pairs = list(zip(compiled._flatten_y(labels), compiled._flatten_y(prediction)))
    for metrics, weighs in (
        (compiled._flat_metrics, known),
        (compiled._flat_weighted_metrics, weights),
    ):
        for metric, (y, p), weight in zip(metrics, pairs, weighs):
            if metric:
                metric.update_state(y, p, weight)


def _reads_class_ids(loss, labels, prediction):
    if loss_name(loss) not in CLASS_ID_LOSSES or labels is None:
        return False
    if loss_name(loss) in SPARSE_LOSSES:
        return True
    return prediction.shape[-1] == 1


def _weigh(known, weight):
    known = ops.cast(known, "float32")
    if weight is None:
        return known
    weight = ops.cast(weight, "float32")
    if len(weight.shape) == len(known.shape) + 1:
        weight = ops.squeeze(weight, axis=-1)
    while len(weight.shape) < len(known.shape):
        weight = ops.expand_dims(weight, -1)
    return weight * known


def _class_name(loss):
    name = "".join(part.capitalize() for part in loss_name(loss).split("_"))
    return name if name == "LabelSmoothing" else f"keras.losses.{name}"


def _shown(loss):
    return repr(loss) if isinstance(loss, str) else loss_name(loss)


def given_labels(name, labels, like, sample_weight):
    """Labels as class ids (or one-hot as they are), and weights without the unlabelled.

    Args:
        name: The term's.
        labels: `(batch,)` or `(batch, 1)` or one-hot, or with more axes, as `like` has.
        like: The logits that they are of: their samples labelled -1 get the class 0, beside
            their weight of 0. `None` for labels of samples: -1 stays, one-hot become ids.
        sample_weight: Weights or `None`.

    Returns:
        `(labels, sample_weight)`.
    """
    if labels is None:
        raise ValueError(
            f"Expected labels for the term {name!r}, whose loss needs them. Received: y=None. "
            "Give `fit` labels, or use a loss without, such as SoftTargets."
        )
    labels = ops.convert_to_tensor(labels)
    rank = 2 if like is None else len(like.shape)
    if len(labels.shape) == rank:
        if labels.shape[-1] == 1:
            labels = ops.squeeze(labels, axis=-1)
        elif like is None:
            labels = ops.argmax(labels, axis=-1)
        else:
            return labels, sample_weight
    known = ops.cast(labels >= 0, "float32")
    if like is not None:
        labels = ops.maximum(labels, ops.zeros_like(labels))
    labels = ops.cast(labels, "int32")
    if sample_weight is None:
        return labels, known
    sample_weight = ops.cast(sample_weight, "float32")
    if len(sample_weight.shape) == len(known.shape) + 1:
        sample_weight = ops.squeeze(sample_weight, axis=-1)
    return labels, sample_weight * known


def per_sample(sample_weight):
    """Weights of shape (batch,): weights of tokens or pixels are averaged over the sample."""
    if sample_weight is None:
        return None
    return per_sample_mean(ops.convert_to_tensor(sample_weight))
