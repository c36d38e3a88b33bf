"""Response losses: one value for each row of logits, teacher first."""

import numpy as np


def log_softmax(logits, temperature=1.0):
    scaled = np.asarray(logits, dtype="float64") / temperature
    shifted = scaled - scaled.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(logits, temperature=1.0):
    return np.exp(log_softmax(logits, temperature))


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def kl(log_p, log_q):
    return float(np.sum(np.exp(log_p) * (log_p - log_q)))


def row_by_row(function, *arrays):
    """Applies a function of vectors (and labels) to each row: shape `arrays[0].shape[:-1]`."""
    leading = arrays[0].shape[:-1]
    values = np.zeros(leading)
    for index in np.ndindex(*leading):
        values[index] = function(*(np.asarray(array)[index] for array in arrays))
    return values


def soft_targets(teacher, student, temperature=4.0, standardize=False, activation="softmax"):
    def one(t, s):
        if standardize:
            t = (t - t.mean()) / (1e-7 + t.std(ddof=1))
            s = (s - s.mean()) / (1e-7 + s.std(ddof=1))
        if activation == "softmax":
            return temperature**2 * kl(log_softmax(t, temperature), log_softmax(s, temperature))
        total = 0.0
        for t_label, s_label in zip(t / temperature, s / temperature):
            # A label is a two-class problem: present or absent.
            total += kl(
                np.array([log_sigmoid(t_label), log_sigmoid(-t_label)]),
                np.array([log_sigmoid(s_label), log_sigmoid(-s_label)]),
            )
        return temperature**2 * total

    return row_by_row(one, teacher, student)


def hard_targets(teacher, student, smoothing=0.0):
    def one(t, s):
        target = np.full(len(s), smoothing / len(s))
        target[t.argmax()] += 1.0 - smoothing
        return -np.sum(target * log_softmax(s))

    return row_by_row(one, teacher, student)


def logit_mse(teacher, student, center=False):
    def one(t, s):
        if center:
            t, s = t - t.mean(), s - s.mean()
        return np.mean((s - t) ** 2)

    return row_by_row(one, teacher, student)


def target_and_rest(logits, label, temperature):
    """Log of `[p(y), 1 - p(y)]`, and the log-probabilities without the target."""
    log_p = log_softmax(logits, temperature)
    rest = np.delete(log_p, label)
    log_rest = rest.max() + np.log(np.exp(rest - rest.max()).sum())
    # From the logits, as the differences of log-probabilities near -1e4 have lost digits.
    return np.array([log_p[label], log_rest]), log_softmax(np.delete(logits, label), temperature)


def decoupled_parts(teacher, student, label, temperature):
    """TCKD and NCKD of one row, without the factor T^2."""
    teacher_pair, teacher_rest = target_and_rest(teacher, label, temperature)
    student_pair, student_rest = target_and_rest(student, label, temperature)
    return kl(teacher_pair, student_pair), kl(teacher_rest, student_rest)


def decoupled_kd(teacher, student, labels, alpha=1.0, beta=8.0, temperature=4.0):
    def one(t, s, label):
        target, rest = decoupled_parts(t, s, int(label), temperature)
        return temperature**2 * (alpha * target + beta * rest)

    return row_by_row(one, teacher, student, labels)


def normalized_kd(teacher, student, labels, gamma=1.5, temperature=1.0):
    def one(t, s, label):
        target = -softmax(t)[label] * log_softmax(s)[label]
        _, teacher_rest = target_and_rest(t, label, temperature)
        _, student_rest = target_and_rest(s, label, temperature)
        return target - gamma * temperature**2 * np.sum(np.exp(teacher_rest) * student_rest)

    return row_by_row(one, teacher, student, labels)


def pearson(x, y):
    x, y = x - x.mean(), y - y.mean()
    return np.dot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y) + 1e-8)


def dist(teacher, student, temperature=1.0, beta=1.0, gamma=1.0):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    inter = row_by_row(lambda p_row, q_row: 1.0 - pearson(p_row, q_row), p, q)
    classes = p.shape[-1]
    p_rows, q_rows = p.reshape(-1, classes), q.reshape(-1, classes)
    intra = 1.0 - np.mean([pearson(p_rows[:, k], q_rows[:, k]) for k in range(classes)])
    return temperature**2 * (beta * inter + gamma * intra)


def alpha_divergence(teacher, student, alpha):
    def one(t, s):
        if abs(alpha - 1.0) < 1e-3:
            return kl(log_softmax(t), log_softmax(s))
        if abs(alpha) < 1e-3:
            return kl(log_softmax(s), log_softmax(t))
        p, q = softmax(t), softmax(s)
        return np.sum(q * ((p / q) ** alpha - 1.0)) / (alpha * (alpha - 1.0))

    return row_by_row(one, teacher, student)


def clipped_alpha(t, s, alpha, clip):
    """Clipped divergence of one row and the vector rho."""
    p, q = softmax(t), softmax(s)
    ratio = p / q
    if abs(alpha - 1.0) < 1e-3:
        return np.sum(p * np.log(ratio)), ratio
    if abs(alpha) < 1e-3:
        ratio = np.minimum(ratio, clip)
        return -np.sum(q * np.log(ratio)), np.log(ratio) - 1.0
    power = np.minimum(ratio**alpha, clip)
    scale = alpha * (alpha - 1.0)
    return np.sum(q * (power - 1.0)) / scale, power / alpha + 1.0 / scale


def larger_alpha(t, s, alpha_min, alpha_max, clip):
    lower = clipped_alpha(t, s, alpha_min, clip)
    upper = clipped_alpha(t, s, alpha_max, clip)
    return lower if lower[0] > upper[0] else upper


def adaptive_alpha_divergence(teacher, student, alpha_min=-1.0, alpha_max=1.0, clip=5.0):
    return row_by_row(
        lambda t, s: larger_alpha(t, s, alpha_min, alpha_max, clip)[0], teacher, student
    )


def adaptive_alpha_gradient(teacher, student, alpha_min=-1.0, alpha_max=1.0, clip=5.0):
    """d S / d student logits, row by row: `-(q rho - q sum(q rho))`."""
    result = np.zeros_like(np.asarray(student, dtype="float64"))
    for index in np.ndindex(*result.shape[:-1]):
        q = softmax(student[index])
        _, rho = larger_alpha(teacher[index], student[index], alpha_min, alpha_max, clip)
        result[index] = -(q * rho - q * np.sum(q * rho))
    return result


def jensen_shannon(teacher, student, temperature=1.0):
    def one(t, s):
        p, q = softmax(t, temperature), softmax(s, temperature)
        middle = (p + q) / 2

        def divergence(r):
            used = r > 0
            return np.sum(r[used] * np.log(r[used] / middle[used]))

        return temperature**2 * (divergence(p) + divergence(q)) / 2

    return row_by_row(one, teacher, student)


def multi_level_kd(teacher, student, temperatures=(3.0, 4.0, 5.0)):
    total = np.zeros(teacher.shape[:-1])
    classes = teacher.shape[-1]
    for temperature in temperatures:
        p = softmax(teacher, temperature).reshape(-1, classes)
        q = softmax(student, temperature).reshape(-1, classes)
        by_class = np.linalg.norm(q.T @ q - p.T @ p, "fro") ** 2 / classes
        by_batch = np.linalg.norm(q @ q.T - p @ p.T, "fro") ** 2 / len(p)
        total += soft_targets(teacher, student, temperature) + by_class + by_batch
    return total / len(temperatures)
