"""Tf-KD and born-again networks on a linear softmax classifier, `weights = [kernel, bias]`."""

import numpy as np


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(logits):
    return np.exp(log_softmax(logits))


def scores(weights, x):
    kernel, bias = weights
    return np.asarray(x, "float64") @ kernel + bias


def cross_entropies(labels, logits):
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def kl(p, log_q):
    """KL of each row."""
    return (p * (np.log(p) - log_q)).sum(axis=-1)


# Tf-KD.


def virtual_teacher(labels, classes, correct):
    p = np.full((len(labels), classes), (1 - correct) / (classes - 1))
    p[np.arange(len(labels)), labels] = correct
    return p


def paper_term(labels, logits, temperature, correct):
    """KL(p_d at T || p at T), with this library's factor T^2, the mean over samples."""
    p = virtual_teacher(labels, logits.shape[-1], correct)
    p = softmax(np.log(p) / temperature)
    return temperature**2 * float(np.mean(kl(p, log_softmax(logits / temperature))))


def official_term(labels, logits, temperature, correct, multiplier):
    """The authors' code: probabilities softened, student at T = 1, the mean over N * C."""
    p = softmax(virtual_teacher(labels, logits.shape[-1], correct) / temperature)
    elements = p * (np.log(p) - log_softmax(logits))
    return multiplier * float(np.mean(elements))


def official_self_term(teacher_logits, logits, temperature, multiplier):
    p = softmax(teacher_logits / temperature)
    elements = p * (np.log(p) - log_softmax(logits / temperature))
    return multiplier * temperature**2 * float(np.mean(elements))


# Generations.


def train(x, y, starts, epochs, batch_size, rate, momentum, temperature, label_weight):
    """Trains generation 0 on labels, and each other one on the one before it.

    `total = label_weight CE(y, z) + T^2 KL(teacher at T || student at T)`, by SGD with momentum
    in the order of the samples; a generation's momenta begin at 0.

    Args:
        starts: The initial weights of each generation.

    Returns:
        `(generations, losses)`: the weights of each generation at its end, and the mean total
        of each of its epochs.
    """
    generations, losses = [], []
    for start in starts:
        kernel, bias = (np.array(w, "float64") for w in start)
        speed = [np.zeros_like(kernel), np.zeros_like(bias)]
        losses.append([])
        for _ in range(epochs):
            total = 0.0
            for first in range(0, len(x), batch_size):
                rows = np.asarray(x[first : first + batch_size], "float64")
                labels = y[first : first + batch_size]
                logits = rows @ kernel + bias
                hard = softmax(logits) - np.eye(kernel.shape[1])[labels]
                loss = float(np.mean(cross_entropies(labels, logits)))
                if not generations:
                    gradient = hard
                else:
                    p = softmax(scores(generations[-1], rows) / temperature)
                    q = log_softmax(logits / temperature)
                    loss = label_weight * loss + temperature**2 * float(np.mean(kl(p, q)))
                    gradient = label_weight * hard + temperature * (np.exp(q) - p)
                total += loss * len(rows)
                gradient = gradient / len(rows)
                speed[0] = momentum * speed[0] - rate * rows.T @ gradient
                speed[1] = momentum * speed[1] - rate * gradient.sum(axis=0)
                kernel, bias = kernel + speed[0], bias + speed[1]
            losses[-1].append(total / len(x))
        generations.append([kernel, bias])
    return generations, losses


def confidence_weighted(teacher_logits, labels, logits):
    """CWTM: each sample's cross-entropy times its share of the teacher's maxima."""
    confidence = softmax(teacher_logits).max(axis=-1)
    return float(np.sum(confidence / confidence.sum() * cross_entropies(labels, logits)))
