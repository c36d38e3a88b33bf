"""Neuron selectivity transfer, pair of channels by pair of channels."""

import math

import numpy as np

from tests.oracles.attention_transfer import images


def neurons(feature):
    """The channels of an image's feature, each flattened and over its norm."""
    result = []
    for c in range(feature.shape[-1]):
        flat = feature[..., c].reshape(-1)
        norm = math.sqrt((flat * flat).sum())
        result.append(flat / norm if norm > 0 else flat)
    return result


def mean_of_pairs(function, first, second):
    return sum(function(x, y) for x in first for y in second) / (len(first) * len(second))


def variance(teacher, student):
    """The mean squared distance of the pairs of an image."""
    squares = mean_of_pairs(lambda x, y: ((x - y) ** 2).sum(), neurons(teacher), neurons(student))
    return max(squares, 1e-8)


def variances(teacher, student):
    """For each sample and each of its maps the variance of the Gaussian kernel."""
    return [[variance(t, s) for t, s in pairs] for pairs in images(teacher, student)]


def neuron_selectivity(teacher, student, kernel="poly", degree=2, offset=0.0, fixed_variances=None):
    """`fixed_variances`, of `variances`, hold the Gaussian's for a derivative."""
    fixed = fixed_variances or variances(teacher, student)
    values = []
    for pairs, of_maps in zip(images(teacher, student), fixed):
        value = 0.0
        for (t, s), sigma2 in zip(pairs, of_maps):

            def k(x, y, sigma2=sigma2):
                if kernel == "linear":
                    return x @ y
                if kernel == "poly":
                    return (x @ y + offset) ** degree
                return math.exp(-((x - y) ** 2).sum() / (2 * sigma2))

            t, s = neurons(t), neurons(s)
            value += mean_of_pairs(k, t, t) + mean_of_pairs(k, s, s) - 2 * mean_of_pairs(k, t, s)
        values.append(value)
    return np.array(values)
