"""The losses' plain formulas in PyTorch, for `benchmark.py --torch`: the teacher's tensor first."""

import numpy as np
import torch
from benchmark_features import features
from torch.nn import functional


def hint(t, s):
    return functional.mse_loss(s, t)


def attention(t, s):
    maps = [functional.normalize(x.pow(2).mean(1).flatten(1)) for x in (t, s)]
    return (maps[0] - maps[1]).pow(2).mean()


def boundary(t, s):
    missing = torch.where(t > 0, torch.relu(1.0 - s), torch.relu(s + 1.0))
    return missing.pow(2).sum() / len(s)


def flow(t, s):
    total = 0.0
    for i in range(len(t) - 1):
        grams = []
        for first, second in ((t[i], t[i + 1]), (s[i], s[i + 1])):
            if first.shape[-1] > second.shape[-1]:
                first = functional.max_pool2d(first, first.shape[-1] // second.shape[-1])
            first, second = first.flatten(2), second.flatten(2)
            grams.append(first @ second.transpose(1, 2) / first.shape[-1])
        total = total + (grams[0] - grams[1]).pow(2).sum() / len(first)
    return total


def selectivity(t, s):
    t, s = (functional.normalize(x.flatten(2), dim=2) for x in (t, s))

    def mean(x, y):
        return (x @ y.transpose(1, 2)).pow(2).mean()

    return mean(t, t) + mean(s, s) - 2.0 * mean(t, s)


def similarity(t, s):
    grams = [functional.normalize(x.flatten(1) @ x.flatten(1).T) for x in (t, s)]
    return (grams[0] - grams[1]).pow(2).sum() / len(s) ** 2


def probabilistic(t, s):
    kernels = []
    for x in (t, s):
        x = x / (x.norm(dim=1, keepdim=True) + 1e-7)
        kernel = (x @ x.T + 1.0) / 2.0
        kernels.append(kernel / kernel.sum(1, keepdim=True))
    p, q = kernels
    return (p * torch.log((p + 1e-7) / (q + 1e-7))).mean()


def _distances(x):
    squares = x.pow(2).sum(1)
    found = (squares[:, None] + squares[None, :] - 2.0 * x @ x.T).clamp(min=1e-12).sqrt()
    return found * (1.0 - torch.eye(len(x)))


def distance(t, s):
    t, s = (d / d[d > 0].mean() for d in map(_distances, (t, s)))
    return functional.smooth_l1_loss(s, t)


def angle(t, s):
    def cosines(x):
        units = functional.normalize(x[None] - x[:, None], dim=2)
        return units @ units.transpose(1, 2)

    return functional.smooth_l1_loss(cosines(s), cosines(t))


def correlation(t, s):
    def kernel(x):
        products = functional.normalize(x) @ functional.normalize(x).T
        return np.exp(-0.8) * (1.0 + 0.8 * products + 0.32 * products.pow(2))

    return (kernel(s) - kernel(t)).pow(2).mean()


FORMULAS = {
    "Hint": hint,
    "AttentionTransfer": attention,
    "ActivationBoundary": boundary,
    "FlowOfSolution": flow,
    "NeuronSelectivity": selectivity,
    "SimilarityPreserving": similarity,
    "ProbabilisticTransfer": probabilistic,
    "RelationalDistance": distance,
    "RelationalAngle": angle,
    "CorrelationCongruence": correlation,
}


def theirs(name, count, repeats):
    """A function that computes value and gradient so many times, channels first."""
    formula = FORMULAS[name]

    def tensors(own):
        if isinstance(own, list):
            return [tensors(x) for x in own]
        return torch.from_numpy(np.moveaxis(own, -1, 1).copy())

    teacher, student = map(tensors, features(name, count))
    leaves = student if isinstance(student, list) else [student]
    for leaf in leaves:
        leaf.requires_grad_()

    def run():
        for _ in range(repeats):
            value = formula(teacher, student)
            torch.autograd.grad(value, leaves)
        return float(value.detach())

    return run
