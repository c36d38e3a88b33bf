"""Cohorts of small students that the tests of `MutualLearner` share."""

import keras
import numpy as np

import keras_distill as kd
from tests.models import nets


def linear(name="linear", classes=nets.CLASSES, activation=None):
    """A student with nothing but a head, as the oracle has it."""
    inputs = keras.Input((nets.FEATURES,), name="vector")
    return keras.Model(
        inputs, keras.layers.Dense(classes, activation, name="head")(inputs), name=name
    )


def linears(count):
    """Linear students that disagree."""
    return [nets.sharpen(linear(f"net_{k}"), 2.0) for k in range(count)]


def parameters(student):
    """(features + 1, classes) in float64, the last row the biases."""
    head = student.get_layer("head")
    return np.vstack([nets.array(head.kernel), nets.array(head.bias)]).astype("float64")


def cnns(**options):
    """Two convolutional students of different widths."""
    return [nets.cnn(4, "a", **options), nets.cnn(5, "b", **options)]


def compiled(students, optimizer=None, loss=None, compile_options=None, **options):
    """A `MutualLearner`, compiled with plain SGD and the cross-entropy of logits."""
    cohort = kd.MutualLearner(students, **options)
    compile_options = {"jit_compile": False, **(compile_options or {})}
    cohort.compile(optimizer or nets.sgd(0.5), loss or nets.cross_entropy(), **compile_options)
    return cohort


def fit(model, x, y, **options):
    options = {"batch_size": 4, "shuffle": False, "verbose": 0, **options}
    return model.fit(x, y, **options).history


def states(model):
    """All variables, seeds included, as arrays."""
    return [nets.array(variable) for variable in model.variables]
