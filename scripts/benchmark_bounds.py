"""The bounds that the issues name for speed and memory, each once: never loosened.

`benchmark.py` prints pass or short beside each. A bound is decided by the median over the rounds
of the wall clock (of the size, where memory is meant); processor time stands beside it.
"""

from typing import NamedTuple

AT_MOST, AT_LEAST = "at most", "at least"
PASS, SHORT, NOT_MEASURED = "pass", "short", "not measured"


class Bound(NamedTuple):
    """What an issue asks of a figure.

    Attributes:
        figure: Name of the figure that decides it, one of the set's `names()`.
        set: The set of `benchmark.py` that measures the figure.
        issue: Number of the issue.
        words: What the issue says, in short.
        value: The bound.
        direction: `AT_MOST` or `AT_LEAST`.
    """

    figure: str
    set: str
    issue: int
    words: str
    value: float
    direction: str = AT_MOST

    def verdict(self, figures):
        """`PASS`, `SHORT` or `NOT_MEASURED`, given a run's figures by name."""
        if self.figure not in figures:
            return NOT_MEASURED
        median = figures[self.figure]["wall"]["median"]
        met = median <= self.value if self.direction == AT_MOST else median >= self.value
        return PASS if met else SHORT


def _each(set_name, issue, words, value, *figures, direction=AT_MOST):
    return [Bound(name, set_name, issue, words, value, direction) for name in figures]


PARTS = "at most 0.95 of the floor, student fit + teacher predict"
TERM = "a term adds at most 5 % to the step of soft targets"
BARE = "at most 1.05 x the same arithmetic in a bare tf.function"
RATE = "per image emitted 0.95 or more of the plain pipeline's rate"

BOUNDS = (
    Bound(
        "KD, logits / keras.distillation, logits",
        "steps",
        2,
        "at most 0.95 x keras.distillation's time with logits",
        0.95,
    ),
    Bound(
        "KD, 3 taps / keras.distillation, 3 taps",
        "steps",
        2,
        "0.66 x with three taps",
        0.66,
    ),
    *_each("steps", 2, PARTS, 0.95, "KD, logits / the parts", "KD, 3 taps / the parts"),
    Bound(
        "KD, logits, bfloat16 teacher / PyTorch KD, channels-last",
        "steps",
        2,
        "with teacher_dtype and folding, pass the channels-last PyTorch loop",
        1.0,
    ),
    *_each(
        "schemes",
        3,
        "a cohort of K costs at most 1.05 x the sum of its students' own fit",
        1.05,
        *[f"cohort of {size} / {size} students alone" for size in (2, 4, 8)],
    ),
    *_each(
        "schemes",
        3,
        "DLB at most 1.08 x plain fit on as many forwarded images",
        1.08,
        "DLB / plain fit",
        "DLB, two forwards / plain fit",
    ),
    Bound(
        "BYOT / plain with the same heads",
        "schemes",
        3,
        "BYOT at most 1.05 x a plain model that has the same heads",
        1.05,
    ),
    *_each(
        "schemes",
        3,
        "CS-KD and DDGSD at most 1.05 x plain fit on their forwarded images",
        1.05,
        "CS-KD / plain fit",
        "DDGSD / plain fit",
    ),
    Bound(
        "DLB / plain fit, peak memory",
        "memory",
        3,
        "DLB at most 1.05 x plain fit's peak memory",
        1.05,
    ),
    *_each(
        "pipelines",
        3,
        RATE,
        0.95,
        *[
            f"halves of {half}, {how} / batches of {2 * half}, {how}, images/s"
            for how in ("augmented", "as they are")
            for half in (16, 64, 128)
        ],
        direction=AT_LEAST,
    ),
    Bound(
        "RelationalAngle / plain formula, peak memory",
        "angles",
        4,
        "B = 512, d = 128 takes under a tenth of the naive form's peak memory",
        0.1,
    ),
    Bound("RelationalAngle / plain formula, time", "angles", 4, "and is no slower", 1.0),
    Bound("RelationalAngle of 1024 samples, finite", "angles", 4, "B = 1024 runs", 1.0, AT_LEAST),
    Bound(
        "RelationalAngle, error against float64",
        "angles",
        4,
        "duplicates and offsets of 1e3 stay within 1e-4 of float64",
        1e-4,
    ),
    *_each(
        "losses",
        4,
        TERM,
        1.05,
        *[
            f"{name} / soft targets alone"
            for name in (
                "Hint",
                "AttentionTransfer",
                "ActivationBoundary",
                "SimilarityPreserving",
                "ProbabilisticTransfer",
                "RelationalDistance",
                "CorrelationCongruence",
                "FlowOfSolution",
            )
        ],
    ),
    Bound("NeuronSelectivity / soft targets alone", "losses", 4, "10 % for NST", 1.10),
    *_each(
        "losses",
        4,
        BARE,
        1.05,
        *[
            f"{name} / {name} in a bare step"
            for name in (
                "VariationalInformation",
                "FactorTransfer",
                "ReviewKD",
                "GradientAttention",
                "ContrastiveRepresentation",
                "BoundarySupport",
                "InstanceGraph",
                "RelationalAngle",
            )
        ],
    ),
    *_each(
        "cache",
        5,
        "training from a cache: at least 0.95 of plain fit's images/s",
        0.95,
        "fit from a cache, dense / student fit, images/s",
        "fit from a cache, k = 5 / student fit, images/s",
        direction=AT_LEAST,
    ),
    *_each(
        "cache",
        5,
        "building the cache: at least 0.95 of predict's images/s",
        0.95,
        "build, dense / teacher predict, images/s",
        "build, k = 5 / teacher predict, images/s",
        direction=AT_LEAST,
    ),
    Bound(
        "verification of 1 GB, seconds",
        "cache",
        5,
        "verification of a 1 GB cache in seconds (here: fewer than ten)",
        10.0,
    ),
    *_each(
        "memory",
        5,
        "peak resident size of cached training at most 1.1 x plain fit",
        1.1,
        "fit from a cache, dense / plain fit, peak memory",
        "fit from a cache, k = 5 / plain fit, peak memory",
    ),
)
