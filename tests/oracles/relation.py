"""Relation losses: one value for each sample, or the batch's number for each; teacher first."""

import math

import numpy as np


def rows_of(x):
    x = np.asarray(x, "float64")
    return x.reshape(len(x), -1)


def unit(x, added=0.0):
    norm = math.sqrt(float(np.dot(x, x)))
    return np.zeros_like(x) if norm <= 1e-12 else x / (norm + added)


def table(rows, function):
    """`function` of each pair of rows."""
    return np.array([[function(a, b) for b in rows] for a in rows])


def huber(d):
    return 0.5 * d * d if abs(d) < 1.0 else abs(d) - 0.5


def each_sample(value, batch):
    return np.full(batch, value)


# PKT


def shares(similarity, mode):
    result = np.zeros_like(similarity)
    for i, row in enumerate(similarity):
        kept = [j for j in range(len(row)) if mode == "code" or j != i]
        total = sum(row[j] for j in kept)
        for j in kept:
            result[i, j] = row[j] / total if total > 1e-7 else 0.0
    return result


def nearness(x, mode):
    units = [unit(row, added=1e-7) for row in x]
    return shares(table(units, lambda a, b: max((np.dot(a, b) + 1.0) / 2.0, 0.0)), mode)


def divergence(p, q, mode):
    batch = len(p)
    values = np.zeros(batch)
    for i in range(batch):
        row = [p[i, j] * math.log((p[i, j] + 1e-7) / (q[i, j] + 1e-7)) for j in range(batch)]
        values[i] = sum(row) / batch if mode == "code" else sum(row) * batch
    return values


def probabilistic_transfer(teacher, student, labels=None, mode="code", supervised_weight=0.0):
    q = nearness(rows_of(student), mode)
    value = divergence(nearness(rows_of(teacher), mode), q, mode)
    if supervised_weight:
        batch = range(len(labels))
        same = [[float(i == j or labels[i] == labels[j] >= 0) for j in batch] for i in batch]
        value = value + supervised_weight * divergence(shares(np.array(same), mode), q, mode)
    return value


# RKD


def relative_distances(x):
    distances = table(x, lambda a, b: math.sqrt(float(np.sum((a - b) ** 2))))
    positive = distances[distances > 0]
    return distances / positive.mean() if positive.size else distances


def maybe_normalized(x, normalize):
    return np.array([unit(row) for row in x]) if normalize else x


def relational_distance(teacher, student, normalize=False):
    t, s = (relative_distances(maybe_normalized(rows_of(x), normalize)) for x in (teacher, student))
    return np.array([np.mean([huber(d) for d in row]) for row in s - t])


def cosines_at(x, a):
    directions = np.array([unit(row - x[a]) for row in x])
    return directions @ directions.T


def relational_angle(teacher, student, normalize=False):
    t, s = (maybe_normalized(rows_of(x), normalize) for x in (teacher, student))
    values = []
    for a in range(len(t)):
        gaps = cosines_at(s, a) - cosines_at(t, a)
        values.append(np.mean([huber(d) for d in gaps.ravel()]))
    return np.array(values)


# CC


def congruence(x, gamma, order, kernel):
    units = [unit(row) for row in x]

    def entry(a, b):
        if kernel == "bilinear":
            return np.dot(a, b)
        return sum(
            math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * np.dot(a, b) ** p
            for p in range(order + 1)
        )

    return table(units, entry)


def correlation_congruence(teacher, student, gamma=0.4, order=2, mode="paper", kernel="gaussian"):
    t, s = rows_of(teacher), rows_of(student)
    batch = len(t)
    if mode == "neighbors":
        gaps = np.abs(s - t)
        products = [np.sum(gaps[i] * gaps[i + 1]) for i in range(batch - 1)]
        return each_sample(np.mean(products) if products else 0.0, batch)
    gaps = congruence(s, gamma, order, kernel) - congruence(t, gamma, order, kernel)
    return np.array([np.mean(row**2) for row in gaps])


# SP


def similarity_preserving(teacher, student):
    def relations(x):
        return np.array([unit(row) for row in rows_of(x) @ rows_of(x).T])

    return np.array([np.mean(row**2) for row in relations(student) - relations(teacher)])


# RSA


def pearson(x, y):
    x, y = x - x.mean(), y - y.mean()
    return np.dot(unit(x), unit(y))


def dissimilarities(x, distance):
    functions = {
        "correlation": lambda a, b: 1.0 - pearson(a, b),
        "euclidean": lambda a, b: math.sqrt(float(np.sum((a - b) ** 2))),
        "squared": lambda a, b: float(np.sum((a - b) ** 2)),
        "cosine": lambda a, b: 1.0 - np.dot(unit(a), unit(b)),
    }
    matrix = table(rows_of(x), functions[distance])
    return matrix[np.triu_indices(len(matrix), 1)]


def representational_similarity(teacher, student, distance="correlation", compare="pearson"):
    t, s = dissimilarities(teacher, distance), dissimilarities(student, distance)
    value = 1.0 - pearson(t, s) if compare == "pearson" else np.mean((s - t) ** 2)
    return each_sample(value, len(teacher))


# CKA


def squared(x):
    return table(x, lambda a, b: float(np.sum((a - b) ** 2)))


def kernel_matrix(x, kernel, bandwidth, median=None):
    if kernel == "linear":
        x = x - x.mean(axis=0)  # HSIC, biased or not, does not see it; float64 does.
        return x @ x.T
    squares = squared(x)
    median = np.median(squares) if median is None else median
    return np.exp(-squares / (2.0 * bandwidth**2 * median))


def hsic(k, m):
    """`<H K H, H L H>`."""
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return np.sum((h @ k @ h) * (h @ m @ h))


def unbiased_hsic(k, m):
    """Song et al. 2012, equation 5."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    value = np.trace(k @ m)
    value += (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    value -= 2.0 / (n - 2) * (one @ k @ m @ one)
    return value / (n * (n - 3))


def kernel_alignment(
    teacher, student, kernel="linear", unbiased=False, bandwidth=1.0, student_median=None
):
    """`student_median` holds the median still, where the gradient does."""
    k = kernel_matrix(rows_of(teacher), kernel, bandwidth)
    m = kernel_matrix(rows_of(student), kernel, bandwidth, student_median)
    estimate = unbiased_hsic if unbiased else hsic
    scale = estimate(k, k) * estimate(m, m)
    value = 1.0 - estimate(k, m) / math.sqrt(scale) if scale > 0 else 1.0
    return each_sample(value, len(teacher))


def alignment_of_features(x, y):
    """`||Y'X||^2 / (||X'X|| ||Y'Y||)`: Kornblith et al., equation for linear kernels."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.linalg.norm
    return norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))


# IRG


def edges(x):
    distances = np.maximum(squared(rows_of(x)), 1e-12)
    np.fill_diagonal(distances, 0.0)
    return distances / distances.max() if distances.max() > 0 else distances


def adaptive_average(x, size):
    """`(batch, height, width, channels)` averaged to `(batch, *size, channels)`."""
    batch, height, width, channels = x.shape
    result = np.zeros((batch, *size, channels))
    for i in range(size[0]):
        top, bottom = i * height // size[0], -((-(i + 1) * height) // size[0])
        for j in range(size[1]):
            left, right = j * width // size[1], -((-(j + 1) * width) // size[1])
            result[:, i, j] = x[:, top:bottom, left:right].mean(axis=(1, 2))
    return result


def change(earlier, later):
    earlier, later = np.asarray(earlier, "float64"), np.asarray(later, "float64")
    earlier = adaptive_average(earlier, later.shape[1:3])
    if later.shape[-1] > earlier.shape[-1]:
        later = (later[..., 0::2] + later[..., 1::2]) / 2.0
    distances = np.array([max(np.sum((a - b) ** 2), 1e-12) for a, b in zip(earlier, later)])
    return distances / distances.max()


def instance_graph(teacher, student, vertex_weight=0.1, edge_weight=5.0, transformation_weight=5.0):
    vertices = np.mean((np.asarray(student[3]) - np.asarray(teacher[3])) ** 2, axis=-1)
    edge = sum(np.mean((edges(student[k]) - edges(teacher[k])) ** 2, axis=1) for k in range(3)) / 3
    transformation = (change(*student[:2]) - change(*teacher[:2])) ** 2
    return vertex_weight * vertices + edge_weight * edge + transformation_weight * transformation
