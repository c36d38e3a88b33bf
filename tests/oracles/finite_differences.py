"""Gradients by central differences."""

import numpy as np


def gradient(function, x, step=1e-5):
    """Gradient of a scalar function of an array, in float64."""
    x = np.array(x, dtype="float64")
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[index] += step
        behind[index] -= step
        result[index] = (function(ahead) - function(behind)) / (2 * step)
    return result
