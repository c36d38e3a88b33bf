"""ONE: the loss of K branches and a gate, its gradients, and the ramp of its weight."""

import numpy as np


def log_softmax(logits, temperature=1.0):
    scaled = np.asarray(logits, dtype="float64") / temperature
    shifted = scaled - scaled.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(logits, temperature=1.0):
    return np.exp(log_softmax(logits, temperature))


def cross_entropy(logits, labels):
    """Mean over the samples."""
    return -np.mean(log_softmax(logits)[np.arange(len(labels)), labels])


def ensemble(branches, gate):
    """z_T = sum_i g_i z_i: branches (K, N, C), gate (N, K)."""
    return np.einsum("knc,nk->nc", branches, gate)


def distillation(branches, target, temperature):
    """sum_i T^2 KL(p_T || p_i), mean over the samples, against constant target logits."""
    log_target = log_softmax(target, temperature)
    total = 0.0
    for logits in branches:
        log_own = log_softmax(logits, temperature)
        total += temperature**2 * np.mean(np.sum(np.exp(log_target) * (log_target - log_own), -1))
    return total


def loss(branches, gate, labels, temperature=3.0, weight=1.0, target=None):
    """The total; `target` holds the teacher's logits fixed."""
    mean = ensemble(branches, gate)
    total = cross_entropy(mean, labels) + sum(cross_entropy(z, labels) for z in branches)
    return total + weight * distillation(branches, mean if target is None else target, temperature)


def gradients(branches, gate, labels, temperature=3.0, weight=1.0):
    """`(by the branches' logits, by the gate's weights)`, the teacher a constant in the KL."""
    count, classes = branches.shape[1:]
    mean = ensemble(branches, gate)
    truth = np.eye(classes)[labels]
    of_mean = (softmax(mean) - truth) / count
    by_logits = np.zeros(branches.shape)
    by_gate = np.zeros(gate.shape)
    for i, logits in enumerate(branches):
        by_logits[i] = (softmax(logits) - truth) / count + gate[:, i : i + 1] * of_mean
        soft = softmax(logits, temperature) - softmax(mean, temperature)
        by_logits[i] += weight * temperature * soft / count
        by_gate[:, i] = np.sum(of_mean * logits, axis=-1)
    return by_logits, by_gate


def ramp(epoch, length=80):
    """w(e) = exp(-5 (1 - min(e, R) / R)^2)."""
    return np.exp(-5.0 * (1.0 - min(epoch, length) / length) ** 2)
