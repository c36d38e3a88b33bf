"""Mean teacher: the decay's warm-up, the consistency losses, a whole training of one layer."""

import numpy as np


def softmax(logits):
    logits = np.asarray(logits, dtype="float64")
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def decay_at(update, decay):
    """a after update number `update`, from 1: the first is 1/2."""
    return min(1.0 - 1.0 / (update + 1.0), decay)


def averages(start, history, decay):
    """The average after each update, from the weights at the start and after each update."""
    average, found = np.asarray(start, dtype="float64"), []
    for update, weights in enumerate(history, start=1):
        a = decay_at(update, decay)
        average = a * average + (1.0 - a) * np.asarray(weights, dtype="float64")
        found.append(average)
    return found


def squared(student, teacher):
    """Sum of squared differences of probabilities over C, mean over the samples."""
    return np.mean(np.sum((softmax(student) - softmax(teacher)) ** 2, axis=-1) / student.shape[-1])


def squared_gradient(student, teacher):
    """Of `squared`, by the student's logits."""
    count, classes = student.shape
    p = softmax(student)
    difference = 2.0 * (p - softmax(teacher)) / classes
    return p * (difference - np.sum(p * difference, axis=-1, keepdims=True)) / count


def kl(student, teacher):
    """KL(teacher || student), mean over the samples."""
    p, q = softmax(teacher), softmax(student)
    return np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=-1))


def kl_gradient(student, teacher):
    """Of `kl`, by the student's logits."""
    return (softmax(student) - softmax(teacher)) / len(student)


def train(kernel, bias, batches, rate, decay, weight_at, consistency):
    """Plain gradient descent on a dense layer of logits.

    Args:
        kernel, bias: Its weights at the start.
        batches: List of (view, other view, labels).
        rate: Learning rate.
        weight_at: The weight of the consistency at step t, from 0.
        consistency: "mse" or "kl".

    Returns:
        A list with one dict a step: label loss, consistency, and the four arrays after it.
    """
    value, slope = {"mse": (squared, squared_gradient), "kl": (kl, kl_gradient)}[consistency]
    own = [np.asarray(kernel, "float64"), np.asarray(bias, "float64")]
    average = [part.copy() for part in own]
    found = []
    for t, (view, other, labels) in enumerate(batches):
        student = view @ own[0] + own[1]
        teacher = other @ average[0] + average[1]
        truth = np.eye(student.shape[-1])[labels]
        step = {
            "label_loss": -np.mean(np.log(softmax(student))[np.arange(len(labels)), labels]),
            "consistency": value(student, teacher),
        }
        by_logits = (softmax(student) - truth) / len(labels)
        by_logits = by_logits + weight_at(t) * slope(student, teacher)
        own = [own[0] - rate * view.T @ by_logits, own[1] - rate * by_logits.sum(axis=0)]
        a = decay_at(t + 1, decay)
        average = [a * old + (1.0 - a) * new for old, new in zip(average, own)]
        found.append({**step, "student": own, "averaged": average})
    return found
