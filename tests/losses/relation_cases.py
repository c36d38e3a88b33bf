"""The relation losses, each under a few settings: a newcomer adds a line."""

import dataclasses
from typing import Any

import numpy as np

from keras_distill import losses
from tests.oracles import relation as oracles

BATCH_OF_UNKNOWN_SIZE = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss with its arguments; `invariant` says what of the student changes nothing."""

    name: str
    cls: Any
    kwargs: dict
    # Of "scale", "row scale", "shift", "row shift" and "rotation".
    invariant: tuple = ()
    takes_maps: bool = False
    takes_other_sizes: bool = True
    least_batch: int = 1
    # One number for the batch, in each entry.
    one_number: bool = False
    of_any_order: bool = True

    @property
    def needs_labels(self):
        return bool(self.kwargs.get("supervised_weight"))

    @property
    def at_equal(self):
        """The value where the student is the teacher."""
        return None if self.needs_labels else 0.0

    def call(self, teacher, student, **overrides):
        function = getattr(losses, self.name)
        return function(*self._arguments(teacher, student), **{**self.kwargs, **overrides})

    def expected(self, teacher, student, **overrides):
        function = getattr(oracles, self.name)
        return function(*self._arguments(teacher, student), **{**self.kwargs, **overrides})

    def loss(self, **kwargs):
        return self.cls(**self.kwargs, **kwargs)

    def targets(self, teacher):
        return (teacher, labels_for(teacher)) if self.needs_labels else teacher

    def _arguments(self, teacher, student):
        return (teacher, student, labels_for(teacher))[: 3 if self.needs_labels else 2]

    def __str__(self):
        settings = ",".join(f"{key}={value}" for key, value in self.kwargs.items())
        return f"{self.name}({settings})".replace(" ", "")


def labels_for(features):
    """Class ids by position, one sample unlabelled."""
    labels = np.arange(features.shape[0] or BATCH_OF_UNKNOWN_SIZE) % 3
    labels[-1] = -1
    return labels


def case(cls, kwargs=None, **settings):
    name = cls.__name__
    snake = "".join(("_" if c.isupper() else "") + c.lower() for c in name)[1:]
    return Case(snake, cls, kwargs or {}, **settings)


ROWS = ("scale", "row scale", "rotation")
RIGID = ("scale", "shift", "rotation")

CASES = [
    case(losses.ProbabilisticTransfer, invariant=ROWS),
    case(losses.ProbabilisticTransfer, {"mode": "paper"}, invariant=ROWS),
    case(losses.ProbabilisticTransfer, {"supervised_weight": 0.5}, invariant=ROWS),
    case(losses.ProbabilisticTransfer, {"mode": "paper", "supervised_weight": 2.0}, invariant=ROWS),
    case(losses.RelationalDistance, invariant=RIGID),
    case(losses.RelationalDistance, {"normalize": True}, invariant=ROWS),
    case(losses.RelationalAngle, invariant=RIGID),
    case(losses.RelationalAngle, {"normalize": True}, invariant=ROWS),
    case(losses.CorrelationCongruence, invariant=ROWS),
    case(losses.CorrelationCongruence, {"gamma": 1.0, "order": 3}, invariant=ROWS),
    case(losses.CorrelationCongruence, {"kernel": "bilinear"}, invariant=ROWS),
    case(
        losses.CorrelationCongruence,
        {"mode": "neighbors"},
        takes_other_sizes=False,
        one_number=True,
        of_any_order=False,
    ),
    case(losses.SimilarityPreserving, invariant=("scale", "rotation"), takes_maps=True),
    *(
        case(
            losses.RepresentationalSimilarity,
            {"distance": distance},
            invariant=invariant,
            takes_maps=True,
            least_batch=4,
            one_number=True,
        )
        for distance, invariant in [
            ("correlation", ("scale", "row scale", "row shift")),
            ("euclidean", RIGID),
            ("squared", RIGID),
            ("cosine", ROWS),
        ]
    ),
    case(
        losses.RepresentationalSimilarity,
        {"distance": "euclidean", "compare": "mse"},
        invariant=("shift", "rotation"),
        takes_maps=True,
        least_batch=4,
        one_number=True,
    ),
    *(
        case(
            losses.KernelAlignment,
            kwargs,
            invariant=RIGID,
            takes_maps=True,
            least_batch=4 if kwargs.get("unbiased") else 2,
            one_number=True,
        )
        for kwargs in [
            {},
            {"unbiased": True},
            {"kernel": "rbf"},
            {"kernel": "rbf", "bandwidth": 0.5, "unbiased": True},
        ]
    ),
]

# Each class once, in its default setting.
DISTINCT = list({case.cls: case for case in reversed(CASES)}.values())


def data(batch, teacher_size=6, student_size=6, seed=0, dtype="float64"):
    """Teacher and student features of a batch; a size is a number or the shape of a map."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, *np.atleast_1d(size)) for size in (teacher_size, student_size)]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def each(cases=CASES):
    import pytest

    return [pytest.param(one, id=str(one)) for one in cases]
