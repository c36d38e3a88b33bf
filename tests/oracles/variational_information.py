"""VID of one sample after the other, and the network that predicts the means."""

import math

import numpy as np

from tests.oracles.attention_transfer import of_one_size


def variance(alpha, epsilon):
    """softplus + epsilon; of what overflows, the softplus is the number itself."""
    softplus = [a if a > 500 else math.log1p(math.exp(a)) for a in np.asarray(alpha, "float64")]
    return np.array(softplus) + epsilon


def variational_information(teacher, means, alpha, epsilon=1e-5, mode="code"):
    if np.ndim(teacher) == 4:
        teacher, means = of_one_size(teacher, means)
    variances = variance(alpha, epsilon)
    values = []
    for t, m in zip(np.asarray(teacher, "float64"), np.asarray(means, "float64"), strict=True):
        t, m = t.reshape(-1, t.shape[-1]), m.reshape(-1, m.shape[-1])
        total = 0.0
        for c, v in enumerate(variances):
            total += 0.5 * (((t[:, c] - m[:, c]) ** 2).sum() / v + len(t) * math.log(v))
        values.append(total / t.size if mode == "code" else total)
    return np.array(values)


def regressor(x, kernels, norms=()):
    """Products with three matrices over the last axis, normalised (over the batch), ReLU between.

    Args:
        x: `(batch, ..., channels)`.
        kernels: Three matrices.
        norms: Nothing, or `(gamma, beta)` for each of the first two.
    """
    for i, kernel in enumerate(kernels):
        x = np.einsum("...i,io->...o", x, kernel)
        if i < 2:
            if norms:
                x = batch_normalized(x, *norms[i])
            x = np.where(x > 0, x, 0.0)
    return x


def batch_normalized(x, gamma, beta, epsilon=1e-5):
    """In training: by the mean and the biased variance of each channel over all else."""
    rows = x.reshape(-1, x.shape[-1])
    mean = rows.sum(axis=0) / len(rows)
    spread = ((rows - mean) ** 2).sum(axis=0) / len(rows)
    return (x - mean) / np.sqrt(spread + epsilon) * gamma + beta
