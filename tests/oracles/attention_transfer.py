"""Attention transfer of one image after the other."""

import math

import numpy as np

from tests.oracles.relation import adaptive_average


def of_one_size(teacher, student):
    """Both maps averaged to the lesser height and the lesser width."""
    teacher, student = np.asarray(teacher, "float64"), np.asarray(student, "float64")
    size = [min(teacher.shape[axis], student.shape[axis]) for axis in (1, 2)]
    return adaptive_average(teacher, size), adaptive_average(student, size)


def images(teacher, student):
    """For each sample the list of its pairs of features, of one map or of a list of maps."""
    if not isinstance(teacher, (list, tuple)):
        teacher, student = [teacher], [student]
    pairs = [of_one_size(t, s) for t, s in zip(teacher, student, strict=True)]
    for i in range(len(teacher[0])):
        yield [(t[i], s[i]) for t, s in pairs]


def attention(feature, power, maps):
    """The flattened attention map over its norm; the codes' mean over the channels for "sum"."""
    channels = [np.abs(feature[..., c]) ** power for c in range(feature.shape[-1])]
    mapped = np.max(channels, axis=0) if maps == "max" else np.mean(channels, axis=0)
    flat = mapped.reshape(-1)
    norm = math.sqrt((flat * flat).sum())
    return flat / norm if norm > 0 else flat


def attention_transfer(teacher, student, power=2, mode="code", maps="sum"):
    values = []
    for pairs in images(teacher, student):
        value = 0.0
        for t, s in pairs:
            difference = attention(s, power, maps) - attention(t, power, maps)
            if mode == "code":
                value += (difference**2).sum() / difference.size
            else:
                value += math.sqrt((difference**2).sum()) / 2
        values.append(value)
    return np.array(values)
