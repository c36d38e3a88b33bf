"""CS-KD and DDGSD on a network of one hidden layer of tanh, `weights = [w, b, w_head, b_head]`."""

import numpy as np


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(labels, logits):
    return float(np.mean([-row[label] for row, label in zip(log_softmax(logits), labels)]))


def tempered_kl(target, logits, temperature):
    """T^2 KL(target || logits), the mean over the rows."""
    p, q = log_softmax(target / temperature), log_softmax(logits / temperature)
    return temperature**2 * float(np.mean((np.exp(p) * (p - q)).sum(axis=-1)))


def discrepancy(features, other_features):
    """||mean F_a - mean F_b||^2."""
    gap = features.mean(axis=0) - other_features.mean(axis=0)
    return float(gap @ gap)


def network(weights, x):
    """`(logits, hidden)`."""
    w, b, w_head, b_head = weights
    hidden = np.tanh(x @ w + b)
    return hidden @ w_head + b_head, hidden


def class_wise(weights, constant_weights, x, x_pair, y, temperature, weight):
    """`(total, label loss, soft term)`; the pair's prediction is of `constant_weights`."""
    logits, _ = network(weights, x)
    target, _ = network(constant_weights, x_pair)
    label = cross_entropy(y, logits)
    soft = tempered_kl(target, logits, temperature)
    return label + weight * soft, label, soft


def distortion(
    weights, constant_weights, x, other, y, temperature, weight, feature_weight, detach=True
):
    """`(total, label loss, both KL terms, MMD)`; targets are of `constant_weights`."""
    logits, hidden = network(weights, x)
    other_logits, other_hidden = network(weights, other)
    target, other_target = logits, other_logits
    if detach:
        target, other_target = (network(constant_weights, view)[0] for view in (x, other))
    label = cross_entropy(y, logits) + cross_entropy(y, other_logits)
    soft = tempered_kl(other_target, logits, temperature)
    soft += tempered_kl(target, other_logits, temperature)
    feature = discrepancy(hidden, other_hidden)
    return label + weight * soft + feature_weight * feature, label, soft, feature


def descend(loss, weights, rate):
    """One step of gradient descent on `loss(weights, constant_weights)`, by differences."""
    constant = [np.array(weight, "float64") for weight in weights]
    updated = []
    for i, weight in enumerate(constant):
        gradient = np.zeros_like(weight)
        for index in np.ndindex(weight.shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [part.copy() for part in constant]
                moved[i][index] += step
                values.append(loss(moved, constant))
            gradient[index] = (values[0] - values[1]) / 2e-5
        updated.append(weight - rate * gradient)
    return updated
