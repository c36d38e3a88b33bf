"""VID: values, gradients, the network of the means, the variances."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_distill import losses
from tests.losses import numerics
from tests.oracles import finite_differences
from tests.oracles import variational_information as oracles

FEW = numerics.BACKEND != "tensorflow"  # JAX runs each operation by itself.
EXAMPLES = 2 if FEW else 8
# Teacher's features and the student's means: one size, 8 to 4, 8 to 5, each way; vectors.
SHAPES = [
    ((3, 4, 4, 5), (3, 4, 4, 5)),
    ((2, 8, 8, 3), (2, 4, 4, 3)),
    ((2, 5, 6, 2), (2, 8, 3, 2)),
    ((1, 1, 1, 3), (1, 2, 3, 3)),
    ((4, 6), (4, 6)),
]
# The same of the class: the student has channels of its own.
FITTED = [((2, 4, 4, 3), (2, 4, 4, 2)), ((3, 5, 2, 2), (3, 8, 3, 3)), ((4, 3), (4, 5))]
if FEW:
    SHAPES, FITTED = SHAPES[2:3] + SHAPES[4:], FITTED[1:]


def data(teacher_shape, student_shape, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    teacher, means = (rng.standard_normal(s).astype(dtype) for s in (teacher_shape, student_shape))
    return teacher, means, rng.normal(size=teacher_shape[-1:]).astype(dtype)


def built(teacher_shape, student_shape, **options):
    with numerics.float64():
        loss = losses.VariationalInformation(dtype="float64", **options)
        loss.build_for(teacher_shape, student_shape)
        loss.alpha.assign(np.linspace(-1.0, 2.0, teacher_shape[-1]))
    return loss


def weights_of(loss):
    """The kernels as matrices, and `(gamma, beta)` of the batch normalizations."""
    kernels, norms = [], []
    for layer in loss.regressor.layers:
        own = [numerics.to_numpy(w) for w in layer.weights]
        if len(own) == 1:
            kernels.append(own[0].reshape(own[0].shape[-2:]))
        elif own:
            norms.append(own[:2])
    return kernels, norms


def expected_of(loss, teacher, student, **options):
    alpha = numerics.to_numpy(loss.alpha)
    if teacher.ndim == 4:
        teacher, student = oracles.of_one_size(teacher, student)
    means = oracles.regressor(student, *weights_of(loss))
    return oracles.variational_information(teacher, means, alpha, **options)


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_values_are_the_equations(shapes, mode):
    teacher, means, alpha = data(*shapes)
    function = losses.variational_information
    values = numerics.values(function, teacher, means, alpha, mode=mode)
    expected = oracles.variational_information(teacher, means, alpha, mode=mode)
    assert values.shape == shapes[0][:1] and values.dtype == "float64"
    rtol = numerics.RTOL if shapes[0] == shapes[1] else 2e-6
    np.testing.assert_allclose(values, expected, rtol, 1e-9)
    single = [x.astype("float32") for x in (teacher, means, alpha)]
    np.testing.assert_allclose(function(*single, mode=mode), expected, rtol=2e-5, atol=1e-6)
    values = numerics.values(function, teacher, means, alpha, 0.3, mode)
    expected = oracles.variational_information(teacher, means, alpha, 0.3, mode)
    np.testing.assert_allclose(values, expected, max(rtol, 1e-9), 1e-9)


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("shapes", SHAPES if FEW else SHAPES[2:], ids=str)
def test_gradients_are_those_of_the_equations(shapes, mode):
    """By the means and by alpha, of which the logarithm is part; none reaches the teacher."""
    teacher, means, alpha = data(*shapes)
    function, oracle = losses.variational_information, oracles.variational_information
    gradient = numerics.gradient(lambda x: function(teacher, x, alpha, mode=mode), means)
    expected = finite_differences.gradient(
        lambda x: oracle(teacher, x, alpha, mode=mode).sum(), means
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    gradient = numerics.gradient(lambda x: function(teacher, means, x, mode=mode), alpha)
    expected = finite_differences.gradient(
        lambda x: oracle(teacher, means, x, mode=mode).sum(), alpha
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    gradient = numerics.gradient(lambda x: function(x, means, alpha, mode=mode), teacher)
    np.testing.assert_array_equal(gradient, 0.0)


def test_by_hand():
    """Variances log(1 + 1) + 0.25 and 5: one sample of two channels, t - mu of 1 and 2."""
    alpha = np.array([0.0, np.log(np.expm1(4.75))])
    values = numerics.values(
        losses.variational_information, np.array([[1.0, 2.0]]), np.zeros((1, 2)), alpha, 0.25
    )
    first = np.log(2.0) + 0.25
    expected = 0.5 * (1.0 / first + np.log(first)) + 0.5 * (4.0 / 5.0 + np.log(5.0))
    np.testing.assert_allclose(values, [expected / 2.0], rtol=1e-6)


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3))
def test_equal_features_leave_the_logarithm_which_is_the_least(seed, scale):
    teacher, means, alpha = data((4, 3, 2, 5), (4, 3, 2, 5), seed)
    teacher, means = scale * teacher, scale * means
    values = numerics.values(losses.variational_information, teacher, teacher, alpha)
    expected = 0.5 * np.log(oracles.variance(alpha, 1e-5)).mean()
    np.testing.assert_allclose(values, np.full(4, expected), rtol=1e-6, atol=1e-9)
    gradient = numerics.gradient(
        lambda x: losses.variational_information(teacher, x, alpha), teacher
    )
    np.testing.assert_array_equal(gradient, 0.0)
    others = numerics.values(losses.variational_information, teacher, means, alpha)
    assert np.all(others > values)


def test_the_value_may_be_negative():
    values = losses.variational_information(np.ones((2, 3)), np.ones((2, 3)), np.full(3, -3.0))
    assert np.all(numerics.to_numpy(values) < -1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extremes_are_finite(dtype):
    """Variances far beyond the exponential's range, zeros, constants, scales 1e-3 and 1e3."""
    teacher, means, _ = data((5, 4, 3, 4), (5, 4, 3, 4), dtype=dtype)
    alpha = np.array([-1e4, -100.0, 100.0, 1e4], dtype)
    means[0], means[1], means[2] = 0.0, 7.0, teacher[2]
    teacher[1] = 7.0
    teacher[3], means[3] = 1e3 * teacher[3], 1e3 * means[3]
    teacher[4], means[4] = 1e-3 * teacher[4], 1e-3 * means[4]
    values = numerics.values(losses.variational_information, teacher, means, alpha)
    expected = oracles.variational_information(teacher, means, alpha)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    by_means = numerics.gradient(lambda x: losses.variational_information(teacher, x, alpha), means)
    by_alpha = numerics.gradient(lambda x: losses.variational_information(teacher, means, x), alpha)
    numerics.assert_finite(values, by_means, by_alpha)


@pytest.mark.parametrize("variance", [5.0, 1.0, 1e-3, 1e4])
def test_variances_start_as_told(variance):
    loss = losses.VariationalInformation(initial_variance=variance)
    loss.build_for((None, 4, 4, 6), (None, 4, 4, 3))
    alpha = numerics.to_numpy(loss.alpha)
    assert alpha.shape == (6,)
    np.testing.assert_allclose(oracles.variance(alpha, 1e-5), variance, rtol=1e-4)
    if variance == 5.0:
        np.testing.assert_allclose(alpha, 4.9932291827, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"width": 4}, {"batch_normalization": True}], ids=str)
@pytest.mark.parametrize("shapes", FITTED, ids=str)
def test_the_class_predicts_the_means(shapes, options):
    """Pooled first, then three products with a ReLU between; dense layers for vectors."""
    teacher, student, _ = data(*shapes)
    loss = built(*shapes, **options)
    values = numerics.values(loss.call, teacher, student)
    np.testing.assert_allclose(
        values, expected_of(loss, teacher, student), max(2e-6, numerics.RTOL)
    )
    kernels, norms = weights_of(loss)
    width = options.get("width", shapes[0][-1])
    inputs, outputs = shapes[1][-1], shapes[0][-1]
    expected = [(inputs, width), (width, width), (width, outputs)]
    assert [kernel.shape for kernel in kernels] == expected
    assert len(norms) == (2 if options.get("batch_normalization") else 0)
    assert len(loss.trainable_variables) == 4 + 2 * len(norms)
    paper = built(*shapes, mode="paper", **options)
    for own, other in zip(paper.weights, loss.weights):
        own.assign(other)
    values = numerics.values(paper.call, teacher, student)
    expected = expected_of(loss, teacher, student, mode="paper")
    np.testing.assert_allclose(values, expected, max(2e-6, numerics.RTOL))


@pytest.mark.parametrize("shapes", FITTED, ids=str)
def test_the_class_has_the_gradients_of_the_equations(shapes):
    teacher, student, _ = data(*shapes)
    loss = built(*shapes)
    weights = np.linspace(0.5, 1.5, len(student))
    gradient = numerics.gradient(lambda x: loss.call(teacher, x), student, weights)
    expected = finite_differences.gradient(
        lambda x: (weights * expected_of(loss, teacher, x)).sum(), student, step=1e-6
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    of_teacher = numerics.gradient(lambda x: loss.call(x, student), teacher)
    np.testing.assert_array_equal(of_teacher, 0.0)


def test_weights_start_as_those_of_pytorch():
    """Uniform in 1 / sqrt(fan_in) either way: near the bounds, and not beyond."""
    loss = losses.VariationalInformation(width=64)
    loss.build_for((None, 2, 2, 100), (None, 2, 2, 9))
    kernels, _ = weights_of(loss)
    for kernel in kernels:
        bound = len(kernel) ** -0.5
        assert 0.95 * bound < np.abs(kernel).max() <= bound
        assert abs(kernel.mean()) < 0.1 * bound


def test_alpha_can_be_kept_from_weight_decay_by_its_name():
    loss = losses.VariationalInformation()
    loss.build_for((None, 3), (None, 2))
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["alpha"])
    optimizer.build(loss.trainable_variables)
    before = [numerics.to_numpy(v) for v in loss.trainable_variables]
    optimizer.apply([keras.ops.zeros(v.shape) for v in loss.trainable_variables])
    for variable, old in zip(loss.trainable_variables, before):
        factor = 1.0 if variable is loss.alpha else 0.95
        np.testing.assert_allclose(numerics.to_numpy(variable), factor * old, rtol=1e-5)


def test_features_that_do_not_fit_are_named():
    function = losses.variational_information
    received = r"teacher_features\.shape=\(2, 4, 4, 3\), student_features\.shape=\(2, 3\)"
    with pytest.raises(ValueError, match=f"maps of shape .* or vectors .*Received: {received}"):
        function(np.ones((2, 4, 4, 3)), np.ones((2, 3)), np.ones(3))
    received = r"teacher_features\.shape=\(2, 3\), student_features\.shape=\(2, 4\)"
    with pytest.raises(ValueError, match=f"same shape. Received: {received}. VariationalInf"):
        function(np.ones((2, 3)), np.ones((2, 4)), np.ones(3))
    with pytest.raises(ValueError, match=r"same shape.*\(4, 3\).*\(1, 3\)"):
        function(np.ones((4, 3)), np.ones((1, 3)), np.ones(3))
    with pytest.raises(ValueError, match=r"`alpha` of shape \(3,\).*alpha\.shape=\(4,\)"):
        function(np.ones((2, 3)), np.ones((2, 3)), np.ones(4))
    loss = losses.VariationalInformation()
    assert loss.misfit((None, 4, 4, 3), (None, 8, 5, 2)) is None
    assert loss.misfit((None, 3), (None, 2)) is None
    assert "a map from both or a vector" in loss.misfit((None, 4, 4, 3), (None, 3))
    assert "a map from both or a vector" in loss.misfit((None, 7, 3), (None, 7, 3))
    assert "known height" in loss.misfit((None, None, 4, 3), (None, 8, 4, 3))
    assert "one feature" in loss.misfit([(None, 3)] * 2, [(None, 3)] * 2)


BAD = [
    ({"initial_variance": 0.0}, "`initial_variance` to be a positive"),
    ({"initial_variance": 1e-6}, "`initial_variance` to be above `epsilon`"),
    ({"epsilon": -1.0}, "`epsilon` to be a positive"),
    ({"width": 2.5}, "`width` to be a positive whole number"),
    ({"batch_normalization": 1}, "`batch_normalization` to be True or False"),
    ({"mode": "sum"}, "`mode` to be one of 'code', 'paper'"),
]


@pytest.mark.parametrize("options, message", BAD, ids=str)
def test_bad_arguments_are_named(options, message):
    (name,) = options
    with pytest.raises((ValueError, TypeError), match=f"Expected {message}.*Received: {name}="):
        losses.VariationalInformation(**options)
