"""DeiT on a hidden layer of tanh with two linear heads, from the paper's equations.

`weights = [w, b, w_label, b_label, w_distilled, b_distilled]`.
"""

import numpy as np


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(labels, logits):
    return float(np.mean([-row[label] for row, label in zip(log_softmax(logits), labels)]))


def tempered_kl(target, logits, temperature):
    """tau^2 KL(target || logits), the mean over the rows."""
    p, q = log_softmax(target / temperature), log_softmax(logits / temperature)
    return temperature**2 * float(np.mean((np.exp(p) * (p - q)).sum(axis=-1)))


def heads(weights, x):
    """The logits of the label head and of the distillation head."""
    w, b, w_label, b_label, w_distilled, b_distilled = weights
    hidden = np.tanh(x @ w + b)
    return hidden @ w_label + b_label, hidden @ w_distilled + b_distilled


def hard(weights, x, y, teacher):
    """`(total, label loss, term)`: 1/2 CE(y) + 1/2 CE(the teacher's choice)."""
    label_logits, distilled = heads(weights, x)
    label, term = cross_entropy(y, label_logits), cross_entropy(teacher.argmax(-1), distilled)
    return (label + term) / 2, label, term


def soft(weights, x, y, teacher, share=0.1, temperature=3.0):
    """`(total, label loss, term)`: (1 - lambda) CE(y) + lambda tau^2 KL."""
    label_logits, distilled = heads(weights, x)
    label, term = cross_entropy(y, label_logits), tempered_kl(teacher, distilled, temperature)
    return (1 - share) * label + share * term, label, term
