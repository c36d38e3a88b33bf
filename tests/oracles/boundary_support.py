"""BSS, sample by sample, step by step."""

import numpy as np


def softmax(z):
    e = np.exp(np.asarray(z, "float64") - np.max(z))
    return e / e.sum()


def selected(teacher_logits, student_logits, labels, attack_size):
    """The samples that are attacked: right in both networks, the most different first."""
    found = []
    for i, (t, s, y) in enumerate(zip(teacher_logits, student_logits, labels)):
        if np.argmax(t) == y == np.argmax(s):
            difference = (softmax(t) - softmax(s)) ** 2
            found.append((-(difference.sum() - difference[y]), i))
    return [i for _, i in sorted(found)][:attack_size]


def target_class(teacher_logits, label, draw):
    """The inverse of the distribution function of the other classes, the likeliest first."""
    probs = softmax(teacher_logits)
    others = sorted((k for k in range(len(probs)) if k != label), key=lambda k: -probs[k])
    reached = 0.0
    for k in others:
        reached += probs[k] / (1 - probs[label])
        if reached >= draw:
            return k
    return others[-1]


def attacked(kernel, image, target, steps, step_size, bounds, score="logits"):
    """The attack of the linear network `z = x kernel`, stopped where the class changes."""
    x = np.asarray(image, "float64").copy()
    base = np.argmax(x @ kernel)
    for _ in range(steps):
        z = x @ kernel
        if np.argmax(z) != base:
            break
        if score == "probs":
            p = softmax(z)
            # dp_k / dx = p_k (kernel_k - sum_j p_j kernel_j)
            slopes = p * (kernel - (kernel @ p)[:, None])
            z = p
        else:
            slopes = kernel
        slope = slopes[:, target] - slopes[:, base]
        norm = np.sqrt((slope**2).sum())
        if norm > 0:
            x = x + step_size * (z[base] - z[target] + 1e-4) * slope / norm
        if bounds is not None:
            x = np.clip(x, *bounds)
    return x


def soft_cross_entropy(teacher_logits, student_logits, temperature=3.0):
    values = []
    for t, s in zip(teacher_logits, student_logits):
        p, q = softmax(t / temperature), softmax(s / temperature)
        values.append(-(p * np.log(q)).sum())
    return np.array(values)


def loss(teacher, student, images, labels, draws, attack_size, temperature=3.0, **options):
    """The mean over the attacked images, of linear networks given by their kernels."""
    clean = images @ teacher
    values = []
    for i in selected(clean, images @ student, labels, attack_size):
        target = target_class(clean[i], labels[i], draws[i])
        x = attacked(teacher, images[i], target, **options)
        values += list(soft_cross_entropy([x @ teacher], [x @ student], temperature))
    return np.mean(values) if values else 0.0
