"""Gradient attention of a network with one hidden layer: `tanh(x W + b) V + c`."""

import numpy as np


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def slopes(weights, images, labels):
    """`d CE / dx` of each sample, by the chain rule; 0 for a label of -1."""
    kernel, bias, last, shift = (np.asarray(w, "float64") for w in weights)
    result = []
    for image, label in zip(images, labels):
        hidden = np.tanh(np.ravel(image).astype("float64") @ kernel + bias)
        error = softmax(hidden @ last + shift)
        if label < 0:
            error = np.zeros_like(error)
        else:
            error[label] -= 1.0
        slope = kernel @ ((last @ error) * (1 - hidden**2))
        result.append(slope.reshape(np.shape(image)))
    return np.array(result)


def gradient_attention(teacher, student, mirrored=None, beta=1.0, symmetry_weight=0.0):
    """One value a sample, from the slopes `(batch, ...)`."""
    values = []
    for i in range(len(teacher)):
        value = np.sqrt(((student[i] - teacher[i]) ** 2).sum())
        if symmetry_weight:
            value += symmetry_weight * np.sqrt(((student[i] - mirrored[i][:, ::-1]) ** 2).sum())
        values.append(beta / 2 * value)
    return np.array(values)


def loss(teacher, student, images, labels, beta=1.0, symmetry_weight=0.0):
    """From the weights of both networks."""
    mirrored = None
    if symmetry_weight:
        mirrored = slopes(student, images[:, :, ::-1], labels)
    own = [slopes(weights, images, labels) for weights in (teacher, student)]
    return gradient_attention(*own, mirrored, beta, symmetry_weight)
