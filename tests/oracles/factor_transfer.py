"""FT of one sample after the other, its convolutions, and what they make."""

import math

import numpy as np

from tests.oracles.attention_transfer import of_one_size
from tests.oracles.variational_information import batch_normalized


def factor_transfer(teacher, student, power=1, mode="factor"):
    values = []
    for t, s in zip(*of_one_size(teacher, student), strict=True):
        if mode == "attention":
            t, s = ((x**2).sum(axis=-1) / x.shape[-1] for x in (t, s))
        difference = np.abs(unit(s) - unit(t))
        values.append((difference**power).sum() / difference.size)
    return np.array(values)


def unit(x):
    flat = x.reshape(-1)
    norm = math.sqrt((flat * flat).sum())
    return flat / norm if norm > 0 else flat


def convolution(x, kernel, bias=0.0):
    """Stride 1, zeros around; kernel `(size, size, in, out)`."""
    size = len(kernel)
    batch, height, width, _ = x.shape
    padded = np.pad(x, [(0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)])
    result = np.zeros((batch, height, width, kernel.shape[-1])) + bias
    for i in range(height):
        for j in range(width):
            patch = padded[:, i : i + size, j : j + size]
            result[:, i, j] += np.einsum("bhwi,hwio->bo", patch, kernel)
    return result


def transposed_convolution(x, kernel, bias=0.0):
    """Each position spreads over its neighbours; kernel `(size, size, out, in)`."""
    size = len(kernel)
    batch, height, width, _ = x.shape
    result = np.zeros((batch, height + size - 1, width + size - 1, kernel.shape[2]))
    for i in range(height):
        for j in range(width):
            result[:, i : i + size, j : j + size] += np.einsum("bi,hwoi->bhwo", x[:, i, j], kernel)
    edge = size // 2
    return result[:, edge : edge + height, edge : edge + width] + bias


def leaky(x):
    return np.where(x > 0, x, 0.1 * x)


def encoded(x, weights, norms=()):
    """Convolutions with leaky ReLUs; `weights` are pairs of kernel and bias."""
    for i, pair in enumerate(weights):
        x = convolution(x, *pair)
        x = leaky(batch_normalized(x, *norms[i]) if norms else x)
    return x


def decoded(x, weights):
    for pair in weights:
        x = leaky(transposed_convolution(x, *pair))
    return x


def reconstruction(teacher, again, loss="l1"):
    values = []
    for one, other in zip(teacher, again, strict=True):
        difference = (other - one).reshape(-1)
        values.append((np.abs(difference) if loss == "l1" else difference**2).sum())
    return np.array(values) / np.asarray(teacher[0]).size
