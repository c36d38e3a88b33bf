"""Be Your Own Teacher (1905.08094): the terms of one exit, from the deepest exit's outputs."""

import numpy as np


def log_softmax(z, temperature=1.0):
    z = np.asarray(z, "float64") / temperature
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def weighted_mean(values, weights):
    """Keras's mean: the weighted sum over the number of samples, weights of 0 counted."""
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, "float64")
    return float(np.sum(weights * values) / len(values))


def cross_entropy(labels, logits, weights=None):
    rows = np.arange(len(labels))
    return weighted_mean(-log_softmax(logits)[rows, labels], weights)


def soft(deepest, own, temperature=3.0, scale_t2=True, kind="kl", weights=None):
    """T^2 KL(p_C^T || p_i^T), or the cross-entropy; the code has no T^2."""
    target, log_q = log_softmax(deepest, temperature), log_softmax(own, temperature)
    values = -np.sum(np.exp(target) * log_q, -1)
    if kind == "kl":
        values = values + np.sum(np.exp(target) * target, -1)
    return weighted_mean(values, weights) * (temperature**2 if scale_t2 else 1.0)


def soft_gradient(deepest, own, temperature=3.0, scale_t2=True, weights=None):
    """d soft / d own: `w (p_i^T - p_C^T) / T / n`, times T^2; the same for both kinds."""
    difference = np.exp(log_softmax(own, temperature)) - np.exp(log_softmax(deepest, temperature))
    weights = np.ones(len(own)) if weights is None else np.asarray(weights, "float64")
    gradient = weights[:, None] * difference / temperature / len(own)
    return gradient * (temperature**2 if scale_t2 else 1.0)


def sigmoid_soft(deepest, own, temperature=3.0):
    """T^2 times the sum over labels of the binary KL, the mean over samples."""
    p = 1.0 / (1.0 + np.exp(-np.asarray(deepest, "float64") / temperature))
    q = 1.0 / (1.0 + np.exp(-np.asarray(own, "float64") / temperature))
    kl = p * np.log(p / q) + (1.0 - p) * np.log((1.0 - p) / (1.0 - q))
    return temperature**2 * float(kl.sum(-1).mean())


def feature(target, own, kind="mse", weights=None):
    """Distance of two features (batch, width), in the three forms."""
    squares = np.square(np.asarray(own, "float64") - np.asarray(target, "float64"))
    if kind == "mse":
        return weighted_mean(squares.mean(-1), weights)
    if kind == "squared_l2":
        return weighted_mean(squares.sum(-1), weights)
    weights = np.ones(len(squares)) if weights is None else np.asarray(weights, "float64")
    return float(np.sqrt(np.sum(weights * squares.sum(-1))))


def feature_gradient(target, own, kind="mse", weights=None):
    """d feature / d own."""
    difference = np.asarray(own, "float64") - np.asarray(target, "float64")
    weights = np.ones(len(own)) if weights is None else np.asarray(weights, "float64")
    weighted = weights[:, None] * difference
    if kind == "l2norm":
        return weighted / feature(target, own, kind, weights)
    return 2.0 * weighted / len(own) / (difference.shape[-1] if kind == "mse" else 1)


def total(labels, logits, features, alpha=0.3, feature_weight=0.03, feature_exits=None, **options):
    """The whole loss.

    Args:
        labels: Class ids.
        logits, features: One an exit, shallow to deep, the deepest last.
        alpha, feature_weight: The paper's weights.
        feature_exits: Indices of the exits with a feature term.
        **options: "temperature", "scale_t2", "kind" of the soft term, "feature_kind".
    """
    feature_kind = options.pop("feature_kind", "mse")
    value = cross_entropy(labels, logits[-1])
    for i, (own, vector) in enumerate(zip(logits[:-1], features[:-1])):
        value += (1.0 - alpha) * cross_entropy(labels, own)
        value += alpha * soft(logits[-1], own, **options)
        if feature_exits is None or i in feature_exits:
            value += feature_weight * feature(features[-1], vector, feature_kind)
    return value
