"""PS-KD on a linear softmax classifier, `weights = [kernel, bias]`, trained by plain SGD."""

import numpy as np


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def cross_entropy(target, logits):
    return float(np.mean(-(target * np.log(softmax(logits))).sum(axis=-1)))


def train(x, y, weights, batches, alpha, rate):
    """Trains over epochs of batches of sample ids.

    Args:
        x, y: All inputs and class ids.
        weights: The initial weights.
        batches: One list an epoch, of arrays of ids.
        alpha: The share of the past in the last epoch.
        rate: The learning rate.

    Returns:
        `(weights, table, history)`: the table of the last predictions, and for each epoch the
        means of (total loss, label loss, cross-entropy to the past) over its samples.
    """
    kernel, bias = (np.array(w, "float64") for w in weights)
    x = np.asarray(x, "float64")
    one_hot = np.eye(kernel.shape[1])[y]
    table = np.full(one_hot.shape, np.nan)
    history = []
    for epoch, steps in enumerate(batches):
        share = alpha * (epoch + 1) / len(batches)
        sums = np.zeros(3)
        for ids in steps:
            logits = x[ids] @ kernel + bias
            if epoch == 0:
                table[ids] = one_hot[ids]
            past = table[ids]
            target = (1 - share) * one_hot[ids] + share * past
            total = cross_entropy(target, logits)
            parts = [total, cross_entropy(one_hot[ids], logits), cross_entropy(past, logits)]
            sums += len(ids) * np.array(parts)
            table[ids] = softmax(logits)
            gradient = (softmax(logits) - target) / len(ids)
            kernel = kernel - rate * x[ids].T @ gradient
            bias = bias - rate * gradient.sum(axis=0)
        history.append(sums / sum(len(ids) for ids in steps))
    return [kernel, bias], table, np.array(history)
