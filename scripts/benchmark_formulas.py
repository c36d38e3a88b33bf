"""What `benchmark.py --torch` times: the losses beside their plain formulas in PyTorch on the CPU.

A loss and its gradient by the student's features alone, on tensors of the size of the ResNet's
last maps, stages and pooled vector, ours in a `tf.function`.
"""

import functools

import numpy as np
from benchmark_measure import Case
from benchmark_measure import Ratio
from benchmark_measure import Timed

import keras_distill as kd

CHANNELS, SIDES = (16, 16, 32, 64), (32, 32, 16, 8)  # stem and stages of a CIFAR ResNet
REPEATS = 5
KINDS = {
    "Hint": "map",
    "AttentionTransfer": "map",
    "ActivationBoundary": "map",
    "FlowOfSolution": "maps",
    "NeuronSelectivity": "map",
    "SimilarityPreserving": "map",
    "ProbabilisticTransfer": "vector",
    "RelationalDistance": "vector",
    "RelationalAngle": "vector",
    "CorrelationCongruence": "vector",
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


def both(name, count):
    """Ours and the plain formula of a loss; raises where their values differ."""
    import benchmark_losses_torch

    pair = features(KINDS[name], count)
    runs = ours(name, pair), benchmark_losses_torch.theirs(name, pair, REPEATS)
    np.testing.assert_allclose(*[run() for run in runs], rtol=2e-3, err_msg=name)
    return runs


def suite(settings):
    found = functools.cache(both)
    cases, ratios = {}, []
    for name in KINDS:
        for i, case in enumerate((f"{name} alone", f"{name} in PyTorch")):
            cases[case] = Case(
                lambda name=name, i=i: found(name, settings.batch_size)[i],
                REPEATS * settings.batch_size,
                ("torch", "tensorflow"),
            )
        ratios.append(Ratio(f"{name} alone", (f"{name} in PyTorch",)))
    return Timed(cases, tuple(ratios))
