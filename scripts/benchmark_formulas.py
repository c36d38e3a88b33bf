"""What `benchmark.py --torch` times: the losses beside their plain formulas in PyTorch on the CPU.

A loss and its gradient by the student's features alone, on tensors of the size of the ResNet's
last maps, stages and pooled vector, ours in a `tf.function`.
"""

import functools

import benchmark_peers
import numpy as np
from benchmark_features import KINDS
from benchmark_features import features
from benchmark_measure import Case
from benchmark_measure import Ratio
from benchmark_measure import Timed

import keras_distill as kd

REPEATS = 5


def ours(name, count):
    """A function that computes value and gradient with `keras_distill`."""
    import tensorflow as tf

    loss = getattr(kd.losses, name)()
    teacher, student = tf.nest.map_structure(tf.constant, features(name, count))

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
    own = ours(name, count)
    other = benchmark_peers.made(formula=name, count=count, repeats=REPEATS)
    np.testing.assert_allclose(own(), other().value, rtol=2e-3, err_msg=name)
    return own, other


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
