"""Deep mutual learning of linear softmax students: losses and one step, pair by pair."""

import numpy as np

from tests.oracles.finite_differences import gradient


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def logits_of(parameters, x):
    """`parameters`: (features + 1, classes), the last row the biases."""
    return x @ parameters[:-1] + parameters[-1]


def label_loss(parameters, x, y, sample_weight):
    rows = log_softmax(logits_of(parameters, x))[np.arange(len(y)), y]
    return -np.mean(sample_weight * rows)


def divergence(p, log_q):
    """KL(p || q), one value a row."""
    return np.sum(p * (np.log(p) - log_q), axis=-1)


def mimicry_rows(peers, log_probs, temperature=1.0, kind="each", reduce="mean"):
    """T^2 times the divergence from the peers' probabilities, one value a row."""
    if kind == "mean":
        factor = len(peers) if reduce == "sum" else 1.0
        rows = factor * divergence(np.mean(peers, axis=0), log_probs)
    else:
        total = sum(divergence(p, log_probs) for p in peers)
        rows = total if reduce == "sum" else total / len(peers)
    return temperature**2 * rows


def step(
    students,
    x,
    y,
    rate,
    temperature=1.0,
    weight=1.0,
    kind="each",
    reduce="mean",
    update="simultaneous",
    sample_weight=None,
):
    """One step of plain gradient descent.

    Args:
        students: Parameters of each, see `logits_of`.
        x, y: The batch: (rows, features), class ids.
        rate: Learning rate.
        temperature, weight, kind, reduce, update: As `MutualLearner`; `kind` is its `peers`.
        sample_weight: (rows,), or `None`.

    Returns:
        `(new parameters, label losses, mimicry losses)`, each by student.
    """
    students = [np.asarray(parameters, "float64") for parameters in students]
    x = np.asarray(x, "float64")
    sample_weight = np.ones(len(y)) if sample_weight is None else sample_weight
    before = list(students)
    label_losses, mimicries = [], []
    for k in range(len(students)):
        # What the peers predict now: in turn, those before k have stepped already.
        current = students if update == "sequential" else before
        peers = [
            np.exp(log_softmax(logits_of(parameters, x) / temperature))
            for j, parameters in enumerate(current)
            if j != k
        ]

        def mimicry(parameters, peers=peers):
            log_probs = log_softmax(logits_of(parameters, x) / temperature)
            rows = mimicry_rows(peers, log_probs, temperature, kind, reduce)
            return np.mean(sample_weight * rows)

        def loss(parameters, mimicry=mimicry):
            return label_loss(parameters, x, y, sample_weight) + weight * mimicry(parameters)

        label_losses.append(label_loss(before[k], x, y, sample_weight))
        mimicries.append(mimicry(before[k]))
        students[k] = before[k] - rate * gradient(loss, before[k])
    return students, label_losses, mimicries
