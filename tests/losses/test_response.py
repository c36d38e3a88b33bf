"""Every response loss as a pure function: values, gradients, odd inputs, XLA."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_distill import losses
from tests.losses import numerics
from tests.losses.response_cases import CASES
from tests.losses.response_cases import data
from tests.losses.response_cases import each
from tests.oracles import finite_differences
from tests.oracles import response as oracles

SHAPES = [(1, 5), (4, 2), (4, 3, 5)]
GRADIENT_SHAPES = [(1, 5), (4, 3, 5)]
if numerics.BACKEND == "tensorflow":  # JAX compiles each operation for each shape.
    SHAPES += [(5, 7), (2, 2, 3, 4)]
    GRADIENT_SHAPES += [(4, 5), (3, 2)]
SHIFT_INVARIANT = [case for case in CASES if case.loss().shift_invariant]
TEMPERED = [case for case in CASES if hasattr(case.loss(), "temperature")]


def enough_classes(case, shape):
    """The shape, with as many classes as the loss needs."""
    return (*shape[:-1], max(shape[-1], case.least_classes))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", each())
def test_value_is_the_equations(case, shape):
    teacher, student, labels = data(enough_classes(case, shape))
    values = numerics.values(case.call, teacher, student, labels)
    assert values.dtype == "float64"
    assert values.shape == shape[:-1]
    np.testing.assert_allclose(values, case.expected(teacher, student, labels), numerics.RTOL)


@pytest.mark.parametrize("shape", GRADIENT_SHAPES, ids=str)
@pytest.mark.parametrize("case", each())
def test_gradient_is_the_equations(case, shape):
    teacher, student, labels = data(enough_classes(case, shape), seed=1)
    weights = np.random.default_rng(2).uniform(0.5, 2.0, shape[:-1])
    gradient = numerics.gradient(lambda x: case.call(teacher, x, labels), student, weights)
    if case.gradient:
        expected = weights[..., None] * case.gradient(teacher, student)
    else:
        expected = finite_differences.gradient(
            lambda x: np.sum(weights * case.expected(teacher, x, labels)), student
        )
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", each())
def test_teacher_gets_no_gradient(case):
    teacher, student, labels = data((4, 5))
    gradient = numerics.gradient(lambda x: case.call(x, student, labels), teacher)
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("case", each())
def test_equal_teacher_and_student(case, scale):
    teacher, _, labels = data((4, 5), scale=scale, dtype="float32")
    values = numerics.to_numpy(case.call(teacher, teacher, labels))
    gradient = numerics.gradient(lambda x: case.call(teacher, x, labels), teacher)
    numerics.assert_finite(values, gradient)
    if case.name == "dist":
        # A class that no sample has correlates 0 with itself: what the formula says.
        np.testing.assert_allclose(values, case.expected(teacher, teacher, labels), atol=2e-5)
    elif case.at_equal is not None:
        np.testing.assert_allclose(values, case.at_equal, atol=1e-6)
        np.testing.assert_allclose(gradient, 0.0, atol=2e-6)


@pytest.mark.parametrize("case", each())
def test_huge_logits(case):
    """Logits of 1e4, in float32: nothing overflows, and the value is right where it exists."""
    teacher, student, labels = data((4, 5), scale=1e4, dtype="float32")
    values = numerics.to_numpy(case.call(teacher, student, labels))
    gradient = numerics.gradient(lambda x: case.call(teacher, x, labels), student)
    numerics.assert_finite(values, gradient)
    unbounded = case.name == "alpha_divergence" and not -1e-3 < case.kwargs["alpha"] < 1.001
    # The oracle takes plain powers of ratios: 0 / 0 for these logits.
    plain_powers = case.name in ("alpha_divergence", "adaptive_alpha_divergence")
    if not unbounded and not plain_powers:
        expected = case.expected(teacher, student, labels)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", each())
def test_rows_of_equal_logits(case):
    """A uniform student (a head initialised with zeros) and a uniform teacher."""
    teacher, student, labels = data((4, 5), dtype="float32")
    flat = np.zeros_like(student)
    for one, other in ((teacher, flat), (flat, student), (flat, flat)):
        values = numerics.to_numpy(case.call(one, other, labels))
        gradient = numerics.gradient(lambda x, one=one: case.call(one, x, labels), other)
        numerics.assert_finite(values, gradient)
        expected = case.expected(one.astype("float64"), other.astype("float64"), labels)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-3, 100.0])
@pytest.mark.parametrize("case", each(TEMPERED))
def test_small_and_large_temperatures(case, temperature):
    teacher, student, labels = data((4, 5), dtype="float32")
    values = numerics.to_numpy(case.call(teacher, student, labels, temperature=temperature))
    gradient = numerics.gradient(
        lambda x: case.call(teacher, x, labels, temperature=temperature), student
    )
    numerics.assert_finite(values, gradient)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", each())
def test_half_precision_inputs_are_computed_in_float32(case, dtype):
    teacher, student, labels = data((4, 3, 5))
    teacher = keras.ops.convert_to_tensor(teacher.astype("float32"), dtype=dtype)
    student = keras.ops.convert_to_tensor(student.astype("float32"), dtype=dtype)
    values = case.call(teacher, student, labels)
    assert keras.backend.standardize_dtype(values.dtype) == "float32"
    lifted = [keras.ops.cast(x, "float32") for x in (teacher, student)]
    expected = numerics.to_numpy(case.call(*lifted, labels))
    np.testing.assert_array_equal(numerics.to_numpy(values), expected)
    gradient = numerics.gradient(lambda x: case.call(teacher, x, labels), student)
    expected = numerics.gradient(lambda x: case.call(teacher, x, labels), lifted[1])
    numerics.assert_finite(gradient)
    np.testing.assert_allclose(gradient.astype("float32"), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("case", each())
def test_xla_computes_the_same(case):
    """Values and gradients, also at a row of equal logits: XLA's square root is less forgiving."""
    teacher, student, labels = data((4, 5), dtype="float32")
    student[0] = 0.0

    def gradient(teacher, student, labels):
        return numerics.slope(lambda x: case.call(teacher, x, labels), student)

    arguments = [keras.ops.convert_to_tensor(x) for x in (teacher, student, labels)]
    for function in (case.call, gradient):
        plain = numerics.to_numpy(function(*arguments))
        result = numerics.to_numpy(numerics.compiled(function)(*arguments))
        numerics.assert_finite(result)
        # Standardized, the row of equal logits has a gradient of 1e6.
        np.testing.assert_allclose(result, plain, rtol=1e-4, atol=1e-6 * np.abs(plain).max())


@pytest.mark.tensorflow
@pytest.mark.parametrize("case", each())
def test_batch_of_unknown_size(case):
    import tensorflow as tf

    teacher, student, labels = data((4, 3, 5), dtype="float32")
    traced = tf.function(
        case.call,
        input_signature=[
            tf.TensorSpec((None, None, 5)),
            tf.TensorSpec((None, None, 5)),
            tf.TensorSpec((None, None), tf.int64),
        ],
    )
    expected = numerics.to_numpy(case.call(teacher, student, labels))
    result = traced(*(tf.convert_to_tensor(x) for x in (teacher, student, labels)))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", each(TEMPERED))
def test_temperature_may_be_a_variable_or_tensor(case):
    teacher, student, labels = data((4, 5), dtype="float32")
    expected = numerics.to_numpy(case.call(teacher, student, labels, temperature=2.5))
    variable = keras.Variable(2.5, trainable=False)
    for temperature in (variable, keras.ops.convert_to_tensor(2.5), np.float32(2.5)):
        values = numerics.to_numpy(case.call(teacher, student, labels, temperature=temperature))
        np.testing.assert_allclose(values, expected, rtol=1e-6)
    variable.assign(1.0)
    expected = numerics.to_numpy(case.call(teacher, student, labels, temperature=1.0))
    values = numerics.to_numpy(case.call(teacher, student, labels, temperature=variable))
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("case", each(SHIFT_INVARIANT))
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shifts=st.lists(st.floats(-50, 50, allow_subnormal=False), min_size=8, max_size=8),
)
def test_shift_invariance(case, seed, shifts):
    """A constant added to a row's logits, of either network, changes nothing."""
    teacher, student, labels = data((4, 5), seed=seed)
    shifts = np.array(shifts).reshape(2, 4, 1)
    values = numerics.values(case.call, teacher, student, labels)
    moved = numerics.values(case.call, teacher + shifts[0], student + shifts[1], labels)
    np.testing.assert_allclose(moved, values, rtol=max(1e-8, numerics.RTOL), atol=1e-10)


@pytest.mark.parametrize("case", each(SHIFT_INVARIANT))
def test_log_probabilities_serve_as_logits(case):
    """What shift invariance is for: networks that end in a softmax."""
    teacher, student, labels = data((4, 5))
    values = numerics.values(case.call, teacher, student, labels)
    logs = oracles.log_softmax(teacher), oracles.log_softmax(student)
    np.testing.assert_allclose(
        numerics.values(case.call, *logs, labels), values, rtol=max(1e-9, numerics.RTOL)
    )


def test_which_losses_are_not_shift_invariant():
    assert not losses.LogitMSE().shift_invariant
    assert losses.LogitMSE(center=True).shift_invariant
    assert losses.SoftTargets().shift_invariant
    assert not losses.SoftTargets(activation="sigmoid").shift_invariant
    teacher, student, _ = data((4, 5))
    for function in (
        losses.logit_mse,
        lambda t, s: losses.soft_targets(t, s, activation="sigmoid"),
    ):
        values = numerics.values(function, teacher, student)
        assert np.all(np.abs(numerics.values(function, teacher, student + 3.0) - values) > 0.1)


def test_standardized_targets_ignore_each_rows_scale():
    teacher, student, _ = data((4, 5))
    values = numerics.values(losses.soft_targets, teacher, student, 2.0, standardize=True)
    scaled = student * np.array([[0.1], [2.0], [30.0], [1.0]])
    moved = numerics.values(losses.soft_targets, teacher, scaled, 2.0, standardize=True)
    np.testing.assert_allclose(moved, values, rtol=1e-4)


def test_soft_targets_gradient_does_not_depend_on_high_temperatures():
    """With T^2 it tends to the difference of the centered logits over the classes."""
    teacher, student, _ = data((4, 5))

    def slope(temperature):
        return numerics.gradient(lambda x: losses.soft_targets(teacher, x, temperature), student)

    limit = student - student.mean(-1, keepdims=True) - teacher + teacher.mean(-1, keepdims=True)
    np.testing.assert_allclose(slope(1e3), limit / 5, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(slope(2e3), slope(1e3), rtol=1e-2, atol=1e-3)


def test_jensen_shannon_is_symmetric_and_bounded():
    for scale, temperature in ((1.0, 1.0), (1.0, 4.0), (50.0, 1.0), (1e4, 2.0)):
        teacher, student, _ = data((20, 5), scale=scale)
        there = numerics.values(losses.jensen_shannon, teacher, student, temperature)
        back = numerics.values(losses.jensen_shannon, student, teacher, temperature)
        np.testing.assert_allclose(there, back, rtol=1e-9, atol=1e-12)
        assert np.all(there >= 0.0)
        assert np.all(there <= temperature**2 * np.log(2.0) * (1 + 1e-12))


def test_jensen_shannon_gradient_where_some_probabilities_agree():
    """Where p = q in some classes: the gradient of TensorFlow's logaddexp is wrong there."""
    teacher, student = np.array([[0.0, 0.0, 1.0, 2.0]]), np.array([[0.0, 0.0, 2.0, 1.0]])
    gradient = numerics.gradient(lambda x: losses.jensen_shannon(teacher, x), student)
    expected = finite_differences.gradient(
        lambda x: oracles.jensen_shannon(teacher, x).sum(), student
    )
    np.testing.assert_allclose(gradient, expected, atol=1e-8)
    assert np.abs(gradient).max() > 0.05


def test_mean_over_the_batch_is_the_batch_wide_value():
    """DIST and multi-level KD are one number for a batch: the mean of the values."""
    teacher, student, _ = data((6, 5))
    p, q = oracles.softmax(teacher), oracles.softmax(student)
    inter = np.mean([np.corrcoef(p[i], q[i])[0, 1] for i in range(6)])
    intra = np.mean([np.corrcoef(p[:, k], q[:, k])[0, 1] for k in range(5)])
    values = numerics.values(losses.dist, teacher, student)
    np.testing.assert_allclose(values.mean(), (1 - inter) + (1 - intra), rtol=1e-6)
    values = numerics.values(losses.multi_level_kd, teacher, student, (2.0,))
    p, q = oracles.softmax(teacher, 2.0), oracles.softmax(student, 2.0)
    expected = (
        4.0 * np.sum(p * np.log(p / q)) / 6
        + np.sum((q.T @ q - p.T @ p) ** 2) / 5
        + np.sum((q @ q.T - p @ p.T) ** 2) / 6
    )
    np.testing.assert_allclose(values.mean(), expected, numerics.RTOL)


def test_dist_of_a_single_sample_has_the_constant_one_for_its_batch_part():
    teacher, student, _ = data((1, 5))
    inter_alone = numerics.values(losses.dist, teacher, student, gamma=0.0)
    both = numerics.values(losses.dist, teacher, student, gamma=1.0)
    np.testing.assert_allclose(both, inter_alone + 1.0, numerics.RTOL)
    gradient = numerics.gradient(lambda x: losses.dist(teacher, x, beta=0.0), student)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-8)


@pytest.mark.parametrize("case", each())
def test_rows_do_not_mix_unless_the_loss_says_so(case):
    teacher, student, labels = data((4, 5))
    whole = numerics.values(case.call, teacher, student, labels)
    first = numerics.values(case.call, teacher[:1], student[:1], labels[:1])
    if case.by_row:
        np.testing.assert_allclose(whole[:1], first, numerics.RTOL)
    else:
        assert np.abs(whole[0] - first[0]) > 1e-6
