"""ReviewKD: the context loss of one level and one sample after the other, and the fusions."""

import math

import numpy as np

from tests.oracles.attention_transfer import of_one_size
from tests.oracles.factor_transfer import convolution
from tests.oracles.relation import adaptive_average
from tests.oracles.variational_information import batch_normalized


def review_kd(teacher, student):
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        t, s = (np.asarray(x, "float64") for x in (t, s))
        t, s = (x[:, None, None, :] if x.ndim == 2 else x for x in (t, s))
        t, s = of_one_size(t, s)
        total = total + np.array([context(t[i : i + 1], s[i : i + 1]) for i in range(len(t))])
    return total


def context(t, s):
    """One sample of one level."""
    value, weight, total = mean_square(t, s), 1.0, 1.0
    for size in (4, 2, 1):
        if size < t.shape[1] and size < t.shape[2]:
            weight /= 2
            total += weight
            value += weight * mean_square(*(adaptive_average(x, (size, size)) for x in (t, s)))
    return value / total


def mean_square(t, s):
    return ((s - t) ** 2).sum() / t.size


def nearest(x, size):
    """Cell (i, j) of the new map is that of the old one at `floor(i * old / new)`."""
    _, height, width, _ = x.shape
    result = np.zeros((len(x), *size, x.shape[-1]))
    for i in range(size[0]):
        for j in range(size[1]):
            result[:, i, j] = x[
                :, math.floor(i * height / size[0]), math.floor(j * width / size[1])
            ]
    return result


def fused(levels, weights, targets):
    """What the fusions make of the student's levels, from shallow to deep.

    Args:
        levels: Maps, or vectors.
        weights: Of each level a dict of `reduce`, `expand` (kernels), `reduce_norm`,
            `expand_norm` (gamma, beta) and, but for the last level, `attention` (kernel, bias).
        targets: Of each level the teacher's height and width.
    """
    results, residual = [None] * len(levels), None
    for level in reversed(range(len(levels))):
        own, x = weights[level], np.asarray(levels[level], "float64")
        x = x[:, None, None, :] if x.ndim == 2 else x
        x = batch_normalized(convolution(x, own["reduce"]), *own["reduce_norm"])
        if residual is not None:
            deeper = nearest(residual, x.shape[1:3])
            scores = convolution(np.concatenate([x, deeper], axis=-1), *own["attention"])
            maps = 1.0 / (1.0 + np.exp(-scores))
            x = x * maps[..., 0:1] + deeper * maps[..., 1:2]
        residual = nearest(x, targets[level])  # As in the official code: behind the resizing.
        output = convolution(residual, own["expand"])
        results[level] = batch_normalized(output, *own["expand_norm"])
    return results
