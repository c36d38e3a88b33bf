"""Six steps of DLB with a linear softmax network, in float64 (Shen et al., 2022)."""

import numpy as np


def compositions(orders, size, carry):
    """`[(repeated ids or None, new ids), ...]`: the batches of several epochs.

    Args:
        orders: One order of the ids an epoch.
        size: Samples of a half; the remainder of an epoch is dropped.
        carry: Whether the seam crosses the epochs.
    """
    steps, last = [], None
    for order in orders:
        if not carry:
            last = None
        for start in range(0, len(order) - size + 1, size):
            new = order[start : start + size]
            steps.append((last, new))
            last = new
    return steps


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def train(x, y, kernel, bias, steps, rate, temperature=3.0, weight=1.0):
    """Trains `z = x kernel + bias` by SGD.

    Returns:
        `(kernel, bias, label losses, KL terms with T^2, the logits cached at each step)`.
    """
    kernel, bias = kernel.astype("float64"), bias.astype("float64")
    classes = kernel.shape[1]
    label_losses, terms, caches = [], [], []
    cached = None
    for last, new in steps:
        rows = new if last is None else np.concatenate([last, new])
        z = x[rows] @ kernel + bias
        one_hot = np.eye(classes)[y[rows]]
        label_losses.append(-(one_hot * log_softmax(z)).sum() / len(rows))
        gradient = (np.exp(log_softmax(z)) - one_hot) / len(rows)
        term = 0.0
        if last is not None:
            target, own = (
                log_softmax(cached / temperature),
                log_softmax(z[: len(last)] / temperature),
            )
            p = np.exp(target)
            term = temperature**2 * (p * (target - own)).sum() / len(last)
            gradient[: len(last)] += weight * temperature * (np.exp(own) - p) / len(last)
        terms.append(term)
        cached = z[-len(new) :]
        caches.append(cached)
        kernel = kernel - rate * x[rows].T @ gradient
        bias = bias - rate * gradient.sum(axis=0)
    return kernel, bias, label_losses, terms, caches
