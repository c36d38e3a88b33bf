"""The losses' plain formulas in PyTorch on the CPU, for `benchmark.py --losses --torch`.

A loss and its gradient by the student's features alone, on tensors of the size of the ResNet's
last maps, stages and pooled vector, beside ours in a `tf.function`.
"""

import numpy as np
import torch
from benchmark_schemes import Variant
from torch.nn import functional

import keras_distill as kd

CHANNELS, SIDES = (16, 16, 32, 64), (32, 32, 16, 8)  # stem and stages of a CIFAR ResNet
REPEATS = 5


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
    "Hint": (hint, "map"),
    "AttentionTransfer": (attention, "map"),
    "ActivationBoundary": (boundary, "map"),
    "FlowOfSolution": (flow, "maps"),
    "NeuronSelectivity": (selectivity, "map"),
    "SimilarityPreserving": (similarity, "map"),
    "ProbabilisticTransfer": (probabilistic, "vector"),
    "RelationalDistance": (distance, "vector"),
    "RelationalAngle": (angle, "vector"),
    "CorrelationCongruence": (correlation, "vector"),
}


def features(kind, count):
    """The teacher's and the student's, channels last."""
    rng = np.random.default_rng(0)
    if kind == "vector":
        shapes = [(count, CHANNELS[-1])]
    else:
        shapes = [(count, side, side, width) for side, width in zip(SIDES, CHANNELS)]
        shapes = shapes if kind == "maps" else shapes[-2:-1]
    both = [[rng.normal(size=s).astype("float32") for s in shapes] for _ in range(2)]
    return both if kind == "maps" else [own[0] for own in both]


def ours(name, pair):
    """A function that computes value and gradient with `keras_distill`."""
    import tensorflow as tf

    loss = getattr(kd.losses, name)()
    teacher, student = tf.nest.map_structure(tf.constant, pair)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = loss(teacher, student)
        return value, tape.gradient(value, student)

    def run():
        for _ in range(REPEATS):
            value, _ = step()
        return float(value)

    return run


def theirs(formula, pair):
    """The same with the formula in PyTorch, channels first."""

    def tensors(own):
        if isinstance(own, list):
            return [tensors(x) for x in own]
        return torch.from_numpy(np.moveaxis(own, -1, 1).copy())

    teacher, student = tensors(pair[0]), tensors(pair[1])
    leaves = student if isinstance(student, list) else [student]
    for leaf in leaves:
        leaf.requires_grad_()

    def run():
        for _ in range(REPEATS):
            value = formula(teacher, student)
            torch.autograd.grad(value, leaves)
        return float(value.detach())

    return run


def variants(arguments):
    """Ours and the plain formula of each loss; raises where their values differ."""
    found = {}
    for name, (formula, kind) in FORMULAS.items():
        if arguments.only and name not in arguments.only:
            continue
        pair = features(kind, arguments.batch_size)
        runs = ours(name, pair), theirs(formula, pair)
        values = [run() for run in runs]
        np.testing.assert_allclose(*values, rtol=2e-3, err_msg=name)
        found[f"{name}, PyTorch"] = Variant(runs[1], 1)
        found[f"{name}, loss alone"] = Variant(runs[0], 1, f"{name}, PyTorch")
    return found
