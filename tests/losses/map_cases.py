"""The losses of feature maps without layers of their own, each under a few settings."""

import dataclasses
import functools
from typing import Any

import numpy as np

from keras_distill import losses
from tests.losses import numerics
from tests.oracles import attention_transfer as attention_oracle
from tests.oracles import neuron_selectivity as selectivity_oracle


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss with its arguments; `invariant` says what of the student changes nothing."""

    name: str
    cls: Any
    oracle: Any
    kwargs: dict
    # Of "sample scale", "sample sign", "channel scale", "channel sign" and "channel order".
    invariant: tuple = ()

    def call(self, teacher, student):
        return getattr(losses, self.name)(teacher, student, **self.kwargs)

    def expected(self, teacher, student):
        return getattr(self.oracle, self.name)(teacher, student, **self.kwargs)

    def expected_near(self, teacher, student):
        """The oracle as a function of the student, what has no gradient held."""
        if self.kwargs.get("kernel") != "gaussian":
            return functools.partial(self.expected, teacher)
        held = self.oracle.variances(teacher, student)
        return lambda x: self.oracle.neuron_selectivity(
            teacher, x, **self.kwargs, fixed_variances=held
        )

    def loss(self, **kwargs):
        return self.cls(**self.kwargs, **kwargs)

    def __str__(self):
        settings = ",".join(f"{key}={value}" for key, value in self.kwargs.items())
        return f"{self.name}({settings})"


def attention(invariant=("sample scale", "sample sign", "channel order"), **kwargs):
    cls = losses.AttentionTransfer
    return Case("attention_transfer", cls, attention_oracle, kwargs, invariant)


def selectivity(invariant=("channel scale", "channel order"), **kwargs):
    cls = losses.NeuronSelectivity
    return Case("neuron_selectivity", cls, selectivity_oracle, kwargs, invariant)


ATTENTION = [
    attention(),
    attention(power=1),
    attention(power=3),
    attention(power=4),
    attention(power=1.5, mode="paper"),
    attention(mode="paper"),
    attention(maps="max"),
    attention(power=1, maps="max"),
    attention(power=3, mode="paper", maps="max"),
]

SIGNLESS = ("channel scale", "channel order", "channel sign")

SELECTIVITY = [
    selectivity(SIGNLESS),
    selectivity(kernel="poly", degree=3),
    selectivity(SIGNLESS, kernel="poly", degree=4),
    selectivity(kernel="poly", degree=1, offset=2.0),
    selectivity(kernel="poly", degree=3, offset=0.5),
    selectivity(kernel="linear"),
    selectivity(kernel="gaussian"),
]

# `(batch, height, width, channels)` of teacher and student: 8 to 4 and 8 to 5 on either side,
# height and width each their own way, one sample, one position, one channel.
SHAPES = [
    ((3, 4, 4, 5), (3, 4, 4, 3)),
    ((2, 8, 8, 3), (2, 4, 4, 2)),
    ((2, 5, 5, 2), (2, 8, 8, 3)),
    ((2, 8, 3, 2), (2, 5, 6, 3)),
    ((1, 3, 5, 4), (1, 3, 5, 4)),
    ((2, 1, 1, 3), (2, 2, 3, 1)),
]
# JAX compiles each operation by itself, for each shape.
FEW = numerics.BACKEND != "tensorflow"
VALUE_SHAPES = SHAPES[2:4] if FEW else SHAPES
GRADIENT_SHAPES = [
    tuple((1, *shape[1:]) for shape in pair) for pair in (SHAPES[3:4] if FEW else SHAPES[1:5])
]
EXAMPLES = 2 if FEW else 6


def data(teacher_shape=(4, 5, 4, 6), student_shape=(4, 5, 4, 3), seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in (teacher_shape, student_shape)]


def each(cases):
    import pytest

    return [pytest.param(one, id=str(one)) for one in cases]
