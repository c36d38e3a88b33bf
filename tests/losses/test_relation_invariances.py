"""What changes no relation loss, as the table of the methods' properties has it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_distill import losses
from tests.losses import numerics
from tests.losses.relation_cases import CASES
from tests.losses.relation_cases import data
from tests.losses.relation_cases import each
from tests.losses.relation_cases import labels_for

EXAMPLES = 5 if numerics.BACKEND == "tensorflow" else 2  # JAX runs each operation by itself.

TRANSFORMS = [
    pytest.param(case, kind, id=f"{case}-{kind}".replace(" ", "-"))
    for case in CASES
    for kind in case.invariant
]


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


@pytest.mark.slow
@pytest.mark.parametrize("case, kind", TRANSFORMS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_invariances(case, kind, seed, scale, shift):
    """What changes nothing: of the student alone, in the spec's table."""
    teacher, student = data(6, 5, 5, seed=seed)
    rng = np.random.default_rng(seed + 1)
    row_scales = scale * rng.uniform(0.1, 10.0, (6, 1))
    moved = {
        "scale": lambda: student * scale,
        "row scale": lambda: student * row_scales,
        "shift": lambda: student + shift * rng.standard_normal((1, 5)),
        "row shift": lambda: student + shift * rng.standard_normal((6, 1)),
        "rotation": lambda: student @ rotation(5, seed),
    }[kind]()
    values = numerics.values(case.call, teacher, student)
    # PKT adds 1e-7 to its norms.
    rtol = 2e-4 if case.cls is losses.ProbabilisticTransfer else max(1e-7, 10 * numerics.RTOL)
    again = numerics.values(case.call, teacher, moved)
    np.testing.assert_allclose(again, values, rtol=rtol, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("case", each())
@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_the_order_of_the_batch_does_not_matter(case, seed):
    teacher, student = data(6, seed=seed)
    order = np.random.default_rng(seed).permutation(6)
    values = numerics.values(case.call, teacher, student)
    if case.needs_labels:
        labels = labels_for(teacher)[order]
        function = getattr(losses, case.name)
        moved = numerics.values(function, teacher[order], student[order], labels, **case.kwargs)
    else:
        moved = numerics.values(case.call, teacher[order], student[order])
    if case.of_any_order:
        np.testing.assert_allclose(moved, values[order], rtol=1e-6, atol=1e-9)
    elif abs(moved[0] - values[0]) < 1e-9:
        assert list(order) in (list(range(6)), list(range(5, -1, -1)))


@pytest.mark.slow
@pytest.mark.parametrize("case", each())
@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_equal_features_are_the_least(case, seed):
    teacher, student = data(6, 5, 5, seed=seed)
    values = numerics.values(case.call, teacher, student)
    equal = numerics.values(case.call, teacher, teacher)
    if case.at_equal is not None:
        np.testing.assert_allclose(equal, 0.0, atol=1e-6)
        assert values.mean() > 0.0
