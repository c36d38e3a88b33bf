"""What an exit is compared with: the deepest exit's predictions and feature.

Each function returns this replica's part of the value, as Keras's losses do: the parts of all
replicas add up to the value.
"""

import keras
from keras import ops

from keras_distill import _keras
from keras_distill import distribution
from keras_distill._ops import at_least_float32
from keras_distill.losses.feature import Hint
from keras_distill.models.network import SIGMOID

FEATURE_LOSSES = ("mse", "squared_l2", "l2norm")


def soft_cross_entropy(target, own, temperature, activation, weight=None):
    """Cross-entropy of the tempered predictions: the KL plus the entropy of the target.

    Args:
        target: Logits (batch, classes), a constant to the gradient.
        own: Logits, alike.
        temperature: T, which divides both. There is no factor T^2.
        activation: "softmax", or "sigmoid" for independent labels, whose values are summed.
        weight: Keras's sample weights or `None`.

    Returns:
        The mean over the samples.
    """
    target = ops.stop_gradient(at_least_float32(target)) / temperature
    own = at_least_float32(own) / temperature
    if activation == SIGMOID:
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        value = _keras.call_loss(loss, ops.sigmoid(target), own, weight, always_reduce=True)
        return value * own.shape[-1]  # Keras takes the mean over the labels.
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    target = ops.softmax(target, axis=-1)
    return _keras.call_loss(loss, target, own, weight, always_reduce=True)


def feature_distance(kind, target, own, weight=None):
    """The distance of an exit's feature from the deepest.

    Args:
        kind: One of `FEATURE_LOSSES`: the mean of the squared difference over samples and
            features, its mean over samples and sum over features, or the norm over both.
        target: Feature (batch, width), a constant to the gradient.
        own: Feature, alike.
        weight: Weights of the samples, (batch,), or `None`.

    Returns:
        A float32 scalar.
    """
    if kind == "l2norm":
        return _norm_of_the_batch(target, own, weight)
    value = _keras.call_loss(Hint(), target, own, weight, always_reduce=True)
    return value * own.shape[-1] if kind == "squared_l2" else value


def _norm_of_the_batch(target, own, weight):
    """`sqrt(sum_b w_b ||own_b - target_b||^2)` over the samples of all replicas."""
    difference = at_least_float32(own) - ops.stop_gradient(at_least_float32(target))
    squares = ops.sum(ops.square(difference), axis=-1)
    if weight is not None:
        squares = squares * ops.cast(weight, squares.dtype)
    part = ops.sum(squares)
    total = distribution.sum_over_replicas(ops.stop_gradient(part))
    replicas = distribution.sum_over_replicas(ops.ones_like(part))
    norm = ops.sqrt(ops.maximum(total, 1e-12))
    # With S the sum of all parts: d sqrt(S) = dS / (2 sqrt(S)). The rest makes up the value.
    return 0.5 * part / norm + 0.5 * norm / replicas
