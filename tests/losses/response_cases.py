"""The response losses, each under a few settings: a newcomer adds a line."""

import dataclasses
from typing import Any
from typing import Callable

import numpy as np

from keras_distill import losses
from tests.oracles import response as oracles


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss with its arguments: `call` and `expected` take (teacher, student, labels)."""

    name: str
    cls: Any
    kwargs: dict
    # Analytic gradient where it is not that of the value.
    gradient: Callable | None = None
    # The value at student = teacher, where it is a constant.
    at_equal: float | None = 0.0
    least_classes: int = 2
    # Values of a row depend on that row alone.
    by_row: bool = True

    @property
    def needs_labels(self):
        return self.cls.needs_labels

    def call(self, teacher, student, labels, **overrides):
        return self._apply(getattr(losses, self.name), teacher, student, labels, **overrides)

    def expected(self, teacher, student, labels):
        return self._apply(getattr(oracles, self.name), teacher, student, labels)

    def loss(self, **kwargs):
        return self.cls(**self.kwargs, **kwargs)

    def targets(self, teacher, labels):
        return (teacher, labels) if self.needs_labels else teacher

    def _apply(self, function, teacher, student, labels, **overrides):
        args = (teacher, student, labels) if self.needs_labels else (teacher, student)
        return function(*args, **{**self.kwargs, **overrides})

    def __str__(self):
        settings = ",".join(f"{key}={value}" for key, value in self.kwargs.items())
        return f"{self.name}({settings})".replace(" ", "")


def case(name, cls, kwargs=None, **settings):
    return Case(name, cls, kwargs or {}, **settings)


def adaptive(**kwargs):
    def gradient(teacher, student):
        return oracles.adaptive_alpha_gradient(teacher, student, **kwargs)

    name, cls = "adaptive_alpha_divergence", losses.AdaptiveAlphaDivergence
    return case(name, cls, kwargs, gradient=gradient)


CASES = [
    case("soft_targets", losses.SoftTargets),
    case("soft_targets", losses.SoftTargets, {"temperature": 0.5}),
    case(
        "soft_targets",
        losses.SoftTargets,
        {"temperature": 2.0, "standardize": True},
        least_classes=3,
    ),
    case("soft_targets", losses.SoftTargets, {"temperature": 3.0, "activation": "sigmoid"}),
    case("hard_targets", losses.HardTargets, at_equal=None),
    case("hard_targets", losses.HardTargets, {"smoothing": 0.1}, at_equal=None),
    case("logit_mse", losses.LogitMSE),
    case("logit_mse", losses.LogitMSE, {"center": True}),
    case("jensen_shannon", losses.JensenShannon),
    case("jensen_shannon", losses.JensenShannon, {"temperature": 3.0}),
    case("decoupled_kd", losses.DecoupledKD),
    case("decoupled_kd", losses.DecoupledKD, {"alpha": 0.5, "beta": 2.0, "temperature": 1.0}),
    case("normalized_kd", losses.NormalizedKD, at_equal=None),
    case("normalized_kd", losses.NormalizedKD, {"gamma": 0.5, "temperature": 2.0}, at_equal=None),
    case("dist", losses.DIST, by_row=False),
    case("dist", losses.DIST, {"temperature": 4.0, "beta": 2.0, "gamma": 0.5}, by_row=False),
    case("multi_level_kd", losses.MultiLevelKD, by_row=False),
    case("multi_level_kd", losses.MultiLevelKD, {"temperatures": (1.0, 2.0)}, by_row=False),
    case("alpha_divergence", losses.AlphaDivergence, {"alpha": 0.5}),
    case("alpha_divergence", losses.AlphaDivergence, {"alpha": 2.0}),
    case("alpha_divergence", losses.AlphaDivergence, {"alpha": -1.0}),
    case("alpha_divergence", losses.AlphaDivergence, {"alpha": 0.0}),
    case("alpha_divergence", losses.AlphaDivergence, {"alpha": 1.0005}),
    adaptive(),
    adaptive(alpha_min=-0.5, alpha_max=0.0, clip=2.0),
    adaptive(alpha_min=0.0, alpha_max=2.0, clip=1.5),
]


def data(shape, seed=0, scale=2.0, dtype="float64"):
    """Teacher and student logits and labels for predictions of a shape."""
    rng = np.random.default_rng(seed)
    teacher = (scale * rng.standard_normal(shape)).astype(dtype)
    student = (scale * rng.standard_normal(shape)).astype(dtype)
    return teacher, student, rng.integers(0, shape[-1], shape[:-1])


def each(cases=CASES):
    import pytest

    return [pytest.param(one, id=str(one)) for one in cases]
