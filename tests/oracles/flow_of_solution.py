"""FSP: one value for each sample, by loops over samples, channels and cells."""

import numpy as np


def flow_of_solution(teacher, student, pool="max", mode="paper"):
    values = []
    for n in range(len(teacher[0])):
        value = 0.0
        for i in range(len(teacher) - 1):
            of_teacher = flow(teacher[i][n], teacher[i + 1][n], pool)
            of_student = flow(student[i][n], student[i + 1][n], pool)
            squares = (of_student - of_teacher) ** 2
            value += squares.mean() if mode == "mean" else squares.sum()
        values.append(value)
    return np.array(values)


def flow(first, second, pool="max"):
    """G of two maps (height, width, channels)."""
    first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
    height, width = np.minimum(first.shape[:2], second.shape[:2])
    first, second = pooled(first, height, width, pool), pooled(second, height, width, pool)
    result = np.zeros((first.shape[-1], second.shape[-1]))
    for h in range(height):
        for w in range(width):
            result += np.outer(first[h, w], second[h, w])
    return result / (height * width)


def pooled(x, height, width, pool):
    """Cell i of o over n entries: floor(i n / o) .. ceil((i + 1) n / o) - 1."""

    def cell(i, target, size):
        return slice(i * size // target, -(-(i + 1) * size // target))

    result = np.zeros((height, width, x.shape[-1]))
    for h in range(height):
        for w in range(width):
            part = x[cell(h, height, x.shape[0]), cell(w, width, x.shape[1])]
            if pool == "max":
                result[h, w] = part.max(axis=(0, 1))
            else:
                # Along each axis on its own: the mean of the rows' means.
                result[h, w] = part.mean(axis=0).mean(axis=0)
    return result
