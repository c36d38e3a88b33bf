"""AB: one value for each sample, element by element."""

import numpy as np


def activation_boundary(teacher, student, margin=1.0, mode="paper"):
    values = []
    for t, s in zip(np.asarray(teacher, "float64"), np.asarray(student, "float64")):
        errors = [element(a, b, margin) for a, b in zip(np.ravel(t), np.ravel(s))]
        values.append(sum(errors) / (len(errors) if mode == "mean" else 1))
    return np.array(values)


def element(t, s, margin):
    if t <= 0 and s > -margin:
        return (s + margin) ** 2
    if t > 0 and s <= margin:
        return (s - margin) ** 2
    return 0.0


def of_taps(teacher, student, margin=1.0, mode="paper"):
    """Taps from shallow to deep, weighed 2^(i - n + 1) for i = 0 ... n - 1."""
    count = len(teacher)
    return sum(
        2.0 ** (i - count + 1) * activation_boundary(t, s, margin, mode)
        for i, (t, s) in enumerate(zip(teacher, student))
    )
