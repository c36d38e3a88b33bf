"""Attention transfer: values, gradients, options, and what changes nothing."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_distill import losses
from tests.losses import numerics
from tests.losses.map_cases import ATTENTION
from tests.losses.map_cases import EXAMPLES
from tests.losses.map_cases import GRADIENT_SHAPES
from tests.losses.map_cases import SHAPES
from tests.losses.map_cases import VALUE_SHAPES
from tests.losses.map_cases import data
from tests.losses.map_cases import each
from tests.oracles import attention_transfer as oracles
from tests.oracles import finite_differences
from tests.oracles.relation import adaptive_average


@pytest.mark.parametrize("case", each(ATTENTION))
@pytest.mark.parametrize("shapes", VALUE_SHAPES, ids=str)
def test_values_are_the_equations(case, shapes):
    teacher, student = data(*shapes)
    values = numerics.values(case.call, teacher, student)
    assert values.shape == (shapes[0][0],) and values.dtype == "float64"
    # The cells' means are of float32 fractions.
    exact = shapes[0][1:3] == shapes[1][1:3]
    rtol = numerics.RTOL if exact else 2e-6
    np.testing.assert_allclose(values, case.expected(teacher, student), rtol, 1e-12)
    single = numerics.values(case.call, *(x.astype("float32") for x in (teacher, student)))
    np.testing.assert_allclose(single, case.expected(teacher, student), 2e-5, 1e-7)


@pytest.mark.parametrize("case", each(ATTENTION))
@pytest.mark.parametrize("shapes", GRADIENT_SHAPES, ids=str)
def test_gradients_are_those_of_the_equations(case, shapes):
    teacher, student = data(*shapes)
    expected = finite_differences.gradient(
        lambda x: case.expected(teacher, x).sum(), student, step=1e-6
    )
    gradient = numerics.gradient(lambda x: case.call(teacher, x), student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    single = numerics.gradient(
        lambda x: case.call(teacher.astype("float32"), x), student.astype("float32")
    )
    np.testing.assert_allclose(single, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(numerics.gradient(lambda x: case.call(x, student), teacher), 0.0)


def test_by_hand():
    """Two positions: Q_t = (9, 16)/norm... of features (3, 4); the student sees the first only."""
    teacher = np.array([[3.0, 2.0]]).reshape(1, 1, 2, 1)
    student = np.array([[5.0, 0.0]]).reshape(1, 1, 2, 1)
    norm = np.sqrt(81.0 + 16.0)
    squares = (1.0 - 9.0 / norm) ** 2 + (4.0 / norm) ** 2
    value = numerics.values(losses.attention_transfer, teacher, student)
    np.testing.assert_allclose(value, squares / 2.0, rtol=1e-6)
    value = numerics.values(losses.attention_transfer, teacher, student, mode="paper")
    np.testing.assert_allclose(value, np.sqrt(squares) / 2.0, rtol=1e-6)
    # Power 1: (3, 2) over its norm.
    norm = np.sqrt(13.0)
    squares = (1.0 - 3.0 / norm) ** 2 + (2.0 / norm) ** 2
    value = numerics.values(losses.attention_transfer, teacher, student, power=1)
    np.testing.assert_allclose(value, squares / 2.0, rtol=1e-6)


def test_odd_powers_take_magnitudes():
    """Of opposite signs in the channels, `f^3` would sum to 0."""
    teacher, student = data((2, 3, 3, 4), (2, 3, 3, 4))
    student[..., 2:] = -student[..., :2]
    values = numerics.values(losses.attention_transfer, teacher, student, power=3)
    of_magnitudes = numerics.values(losses.attention_transfer, teacher, np.abs(student), power=3)
    np.testing.assert_allclose(values, of_magnitudes, rtol=1e-9)
    assert values.min() > 1e-3


@pytest.mark.parametrize("case", each(ATTENTION[:1] + ATTENTION[5:7]))
def test_several_maps_are_summed(case):
    pairs = [data(*shapes, seed=i) for i, shapes in enumerate(SHAPES[1:4])]
    teachers, students = zip(*pairs)
    together = numerics.values(case.call, teachers, students)
    alone = sum(numerics.values(case.call, *pair) for pair in pairs)
    np.testing.assert_allclose(together, alone, rtol=1e-9)
    expected = case.expected(list(teachers), list(students))
    np.testing.assert_allclose(together, expected, rtol=2e-6)


CHANGES = {
    "sample scale": lambda x, scales, order: x * scales[:, :1, None, None],
    "sample sign": lambda x, scales, order: -x,
    "channel order": lambda x, scales, order: x[..., order],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("case", each(ATTENTION))
@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3))
def test_invariances(case, kind, seed, scale):
    assert kind in case.invariant
    teacher, student = data(seed=seed)
    rng = np.random.default_rng(seed + 1)
    scales = scale * rng.uniform(0.1, 10.0, (len(student), 1))
    moved = CHANGES[kind](student, scales, rng.permutation(student.shape[-1]))
    values = numerics.values(case.call, teacher, student)
    again = numerics.values(case.call, teacher, moved)
    np.testing.assert_allclose(again, values, rtol=max(1e-7, 10 * numerics.RTOL), atol=1e-12)


@pytest.mark.parametrize("case", each(ATTENTION))
@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_equal_features_are_the_least(case, seed):
    """And of each sample by itself: no other sample changes its value."""
    teacher, student = data((4, 5, 4, 6), (4, 5, 4, 6), seed)
    np.testing.assert_array_equal(numerics.values(case.call, teacher, teacher), 0.0)
    gradient = numerics.gradient(lambda x: case.call(teacher, x), teacher)
    np.testing.assert_array_equal(gradient, 0.0)
    values = numerics.values(case.call, teacher, student)
    assert values.min() > 0.0
    last = numerics.values(case.call, teacher[3:], student[3:])
    np.testing.assert_allclose(last, values[3:], rtol=max(1e-12, numerics.RTOL))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", each(ATTENTION))
def test_degenerate_maps_have_finite_values_and_gradients(case, dtype):
    """Zeros on either side, one position alone, constants, duplicates, 1e-20 and 1e18."""
    teacher, student = data((8, 4, 4, 3), (8, 4, 4, 3), dtype=dtype)
    student[0] = 0.0
    teacher[1] = 0.0
    student[2] = teacher[2] = 0.0
    student[3, 1:] = 0.0
    student[4] = -2.5
    student[5] = student[6] = teacher[5]
    student[6] *= 1e-20
    student[7] *= 1e18
    values = numerics.values(case.call, teacher, student)
    gradient = numerics.gradient(lambda x: case.call(teacher, x), student)
    numerics.assert_finite(values, gradient)
    assert values[2] == 0.0 and abs(values[5]) < 1e-12
    np.testing.assert_array_equal(gradient[[0, 2, 6]], 0.0)
    alone = numerics.values(case.call, teacher, np.zeros_like(student))
    np.testing.assert_allclose(values[[0, 6]], alone[[0, 6]], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1e3, 1e-8, 1e15])
@pytest.mark.parametrize("power", [2, 4, 1.5])
def test_scales_of_float32_features_leave_the_value(power, scale):
    teacher, student = data(dtype="float32")
    value = numerics.values(losses.attention_transfer, teacher, student, power)
    scale = np.float32(scale)
    scaled = numerics.values(losses.attention_transfer, teacher * scale, student * scale, power)
    np.testing.assert_allclose(scaled, value, rtol=1e-4)
    gradient, expected = (
        numerics.gradient(lambda x: losses.attention_transfer(teacher, x, power), x)
        for x in (student * scale, student)
    )
    largest = np.abs(expected).max()
    np.testing.assert_allclose(gradient * scale, expected, 1e-3, 1e-4 * largest)


def test_maps_are_averaged_before_they_are_raised():
    """The order of the codes: of signs that cancel in a cell nothing is left."""
    teacher, student = data((1, 2, 2, 1), (1, 4, 4, 1))
    student = np.tile([[1.0, -1.0], [-1.0, 1.0]], (2, 2)).reshape(1, 4, 4, 1)
    value = numerics.values(losses.attention_transfer, teacher, student)
    of_zeros = numerics.values(losses.attention_transfer, teacher, np.zeros((1, 2, 2, 1)))
    np.testing.assert_allclose(value, of_zeros, rtol=1e-6)
    cells = adaptive_average(student, (2, 2))
    assert np.abs(cells).max() == 0.0
    assert oracles.attention(cells[0], 2, "sum").max() == 0.0


@pytest.mark.parametrize("power", [0.5, 0, -1, float("nan"), "2", None, True])
def test_powers_below_1_are_an_error(power):
    with pytest.raises(ValueError, match="Expected `power` to be .*Received: power="):
        losses.AttentionTransfer(power=power)
    with pytest.raises(ValueError, match="Expected `power` to be .*Received: power="):
        losses.attention_transfer(np.ones((1, 2, 2, 1)), np.ones((1, 2, 2, 1)), power)


@pytest.mark.parametrize("options", [{"mode": "official"}, {"maps": "mean"}], ids=str)
def test_unknown_options_are_an_error(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"`{name}` to be one of .*{name}='{value}'"):
        losses.AttentionTransfer(**options)
    with pytest.raises(ValueError, match=f"`{name}` to be one of .*{name}='{value}'"):
        losses.attention_transfer(np.ones((1, 2, 2, 1)), np.ones((1, 2, 2, 1)), **options)


def test_defaults_are_the_codes():
    loss = losses.AttentionTransfer()
    assert (loss.power, loss.mode, loss.maps) == (2, "code", "sum")
    assert loss.get_config()["power"] == 2 and losses.AttentionTransfer(1.5).power == 1.5
    teacher, student = data(dtype="float32")
    value = float(loss(teacher, student))
    assert value == pytest.approx(oracles.attention_transfer(teacher, student).mean(), rel=1e-5)
    assert keras.saving.get_registered_name(type(loss)) == "keras_distill>AttentionTransfer"
