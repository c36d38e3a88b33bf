"""The mimicry loss of mutual learning, and the mean of a cohort's probabilities."""

from typing import Any
from typing import NamedTuple

from keras import ops

from keras_distill._ops import at_least_float32
from keras_distill.losses.base import DistillationLoss
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import SOFTMAX


class Peer(NamedTuple):
    """One output of a student as the others see it, a constant to the gradient.

    Attributes:
        probabilities: p, shape (batch, ..., events).
        negative_entropy: `sum p log p`, shape (batch, ...).
    """

    probabilities: Any
    negative_entropy: Any


class Mimicry(DistillationLoss):
    """`T^2 KL(peer || student)`, from a `Peer` and the student's `log_probabilities`."""

    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def call(self, y_true, y_pred):
        probabilities, negative_entropy = y_true
        divergence = negative_entropy - ops.sum(probabilities * y_pred, axis=-1)
        return ops.square(ops.cast(self.temperature, divergence.dtype)) * divergence


def log_probabilities(logits, activation, temperature=1.0):
    """Log of the probabilities at a temperature, float32.

    Args:
        logits: Tensor (batch, ..., units).
        activation: "softmax" for classes; "sigmoid" for independent labels, each of which
            makes two events, present and absent. A sum over events is then a sum over the
            labels, and one formula serves both.
        temperature: T.

    Returns:
        Tensor (batch, ..., events): as many events as classes, or twice as many as labels.
    """
    logits = at_least_float32(logits)
    tempered = logits / ops.cast(temperature, logits.dtype)
    if activation == SIGMOID:
        return ops.log_sigmoid(ops.concatenate([tempered, -tempered], axis=-1))
    return ops.log_softmax(tempered, axis=-1)


def as_peer(log_probs):
    """A `Peer` from `log_probabilities`."""
    log_probs = ops.stop_gradient(log_probs)
    probabilities = ops.exp(log_probs)
    return Peer(probabilities, ops.sum(probabilities * log_probs, axis=-1))


def target_of(peers, average, total):
    """What a student is drawn to.

    Its mean (or summed) divergence from several peers is
    `sum_l sum_c p_l log p_l - sum_c (sum_l p_l) log p`, over their number: linear in the
    probabilities, so that one sum over the classes serves all peers.

    Args:
        peers: `Peer`s, those of the other students.
        average: Whether to compare with the mean probability, instead of with each peer.
        total: Whether to sum over the peers, instead of averaging.

    Returns:
        A `Peer`; its probabilities sum to the number of peers where `total`.
    """
    count = len(peers)
    if count == 1:
        return peers[0]
    probabilities = sum(peer.probabilities for peer in peers)
    negative_entropy = sum(peer.negative_entropy for peer in peers)
    if average:
        mean = probabilities / count
        logs = ops.log(ops.maximum(mean, 1e-37))
        negative_entropy = ops.sum(probabilities * logs, axis=-1)
    target = Peer(probabilities, negative_entropy)
    return target if total else Peer(*(part / count for part in target))


def ensemble_scores(log_probs, activation, as_probabilities):
    """The mean probability of all students.

    Args:
        log_probs: `log_probabilities` of one output at T = 1, one tensor a student.
        activation: "softmax" or "sigmoid".
        as_probabilities: Whether to return the probabilities, instead of values whose softmax
            (or sigmoid) they are.
    """
    logs = ops.logsumexp(ops.stack(log_probs, axis=0), axis=0)
    logs = logs - ops.log(ops.cast(len(log_probs), logs.dtype))
    if activation == SOFTMAX:
        return ops.exp(logs) if as_probabilities else logs
    present, absent = ops.split(logs, 2, axis=-1)
    return ops.exp(present) if as_probabilities else present - absent
