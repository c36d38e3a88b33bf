"""The descriptors of the contract test: one line a wrapper."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

import keras_distill as kd

CLASSES = 4
SHAPE = (6, 6, 2)


def network(name, width=3, batch_norm=True, dropout=0.0, softmax=False, dtype=None):
    """A small convolutional classifier with the layers "stem", "features" and "logits"."""
    layers = keras.layers
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(width, 3, use_bias=not batch_norm, name="stem", dtype=dtype)(inputs)
    if batch_norm:
        x = layers.BatchNormalization(name="norm", dtype=dtype)(x)
    x = layers.ReLU(name="features", dtype=dtype)(x)
    x = layers.GlobalAveragePooling2D(name="pool", dtype=dtype)(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout", dtype=dtype)(x)
    activation = "softmax" if softmax else None
    outputs = layers.Dense(CLASSES, activation=activation, name="logits", dtype="float32")(x)
    return keras.Model(inputs, outputs, name=name)


def distiller(**options):
    """Logits, a feature with a connector, and a loss that reads labels."""
    terms = [
        kd.Term(kd.losses.SoftTargets(4.0), weight=0.9),
        kd.Term(kd.losses.Hint(), "features", "features", weight=0.5, connector="auto"),
        kd.Term(kd.losses.DecoupledKD(), weight=kd.schedules.WarmUp(0.2, steps=4)),
    ]
    teacher = network("teacher", 5, **{**options, "softmax": True})
    return kd.Distiller(teacher, network("student", **options), terms, student_loss_weight=0.1)


def distiller_of_ensemble(**options):
    """A Distiller whose teacher is an ensemble, with a tap into a member."""
    terms = [
        kd.losses.SoftTargets(2.0),
        kd.Term(kd.losses.Hint(), "b/features", "features", connector="auto"),
    ]
    teacher = kd.EnsembleTeacher([network("a", 4, **options), network("b", 5, **options)])
    return kd.Distiller(teacher, network("student", **options), terms)


def independent_ensemble(**options):
    """Members trained alone, heads mixed."""
    members = [network("a", 3, **options), network("b", 4, **{**options, "softmax": True})]
    return kd.EnsembleTeacher(members, weights=[2.0, 1.0])


def average_ensemble(**options):
    """The control experiment: the average trained directly."""
    members = [network("a", 3, **options), network("b", 4, **options)]
    return kd.EnsembleTeacher(members, average="logits", objective="average")


@dataclasses.dataclass
class Wrapper:
    """A wrapper under contract.

    Attributes:
        create: Makes a fresh one; takes the options of `network`.
        element: Makes `(x, y)` for training from `(images, labels)`.
    """

    create: Callable
    element: Callable = lambda images, labels: (images, labels)

    def compiled(self, seed=7, loss=True, **options):
        """A fresh wrapper from `seed`, compiled; `compile` holds arguments of compile."""
        compile_arguments = options.pop("compile", {})
        keras.utils.set_random_seed(seed)
        wrapper = self.create(**options)
        arguments = {"optimizer": keras.optimizers.SGD(0.05, momentum=0.9), "metrics": ["accuracy"]}
        if loss:
            arguments["loss"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        wrapper.compile(**{**arguments, **compile_arguments})
        return wrapper


WRAPPERS = {
    "Distiller": Wrapper(distiller),
    "Distiller of an ensemble": Wrapper(distiller_of_ensemble),
    "EnsembleTeacher, independent": Wrapper(independent_ensemble),
    "EnsembleTeacher, average": Wrapper(average_ensemble),
}


def samples(count=32, seed=0):
    """Images whose mean tells the label, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    images = rng.normal(size=(count, *SHAPE)).astype("float32") + labels[:, None, None, None]
    return images, labels


def state(model):
    """All weights of a wrapper and the seeds of what it trains, as arrays by position.

    A frozen teacher's dropout seeds are left out: nothing draws from them.
    """
    weights = {id(variable) for variable in model.weights}
    frozen = {id(variable) for variable in model.frozen_variables} - weights
    return [keras.ops.convert_to_numpy(v) for v in model.variables if id(v) not in frozen]
