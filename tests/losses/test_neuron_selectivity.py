"""Neuron selectivity transfer: values, gradients, kernels, and what changes nothing."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_distill import losses
from tests.losses import numerics
from tests.losses.map_cases import EXAMPLES
from tests.losses.map_cases import GRADIENT_SHAPES
from tests.losses.map_cases import SELECTIVITY
from tests.losses.map_cases import SHAPES
from tests.losses.map_cases import VALUE_SHAPES
from tests.losses.map_cases import data
from tests.losses.map_cases import each
from tests.oracles import finite_differences
from tests.oracles import neuron_selectivity as oracles

KERNELS = [SELECTIVITY[0], *SELECTIVITY[-2:]]


@pytest.mark.parametrize("case", each(SELECTIVITY))
@pytest.mark.parametrize("shapes", VALUE_SHAPES, ids=str)
def test_values_are_the_equations(case, shapes):
    teacher, student = data(*shapes)
    values = numerics.values(case.call, teacher, student)
    assert values.shape == (shapes[0][0],) and values.dtype == "float64"
    # The cells' means are of float32 fractions.
    exact = shapes[0][1:3] == shapes[1][1:3] and numerics.BACKEND == "tensorflow"
    tolerance = (1e-10, 1e-12) if exact else (5e-6, 1e-6)
    np.testing.assert_allclose(values, case.expected(teacher, student), *tolerance)
    single = numerics.values(case.call, *(x.astype("float32") for x in (teacher, student)))
    largest = (1.0 + case.kwargs.get("offset", 0.0)) ** case.kwargs.get("degree", 2)
    np.testing.assert_allclose(single, case.expected(teacher, student), 5e-5, 2e-6 * largest)


@pytest.mark.parametrize("case", each(SELECTIVITY))
@pytest.mark.parametrize("shapes", GRADIENT_SHAPES, ids=str)
def test_gradients_are_those_of_the_equations(case, shapes):
    teacher, student = data(*shapes)
    expected = case.expected_near(teacher, student)
    expected = finite_differences.gradient(lambda x: expected(x).sum(), student, step=1e-6)
    gradient = numerics.gradient(lambda x: case.call(teacher, x), student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    single = numerics.gradient(
        lambda x: case.call(teacher.astype("float32"), x), student.astype("float32")
    )
    np.testing.assert_allclose(single, expected, rtol=1e-3, atol=2e-5)
    np.testing.assert_array_equal(numerics.gradient(lambda x: case.call(x, student), teacher), 0.0)


def test_by_hand():
    """Channels along the axes: the teacher's two, the student's one on the diagonal."""
    teacher = np.array([[2.0, 0.0], [0.0, 7.0]]).reshape(1, 1, 2, 2)
    student = np.array([[3.0], [3.0]]).reshape(1, 1, 2, 1)
    # Products: t-t 1, 0, 0, 1; s-s 1; t-s the root of 1/2, twice.
    root = np.sqrt(0.5)

    def value(**options):
        return numerics.values(losses.neuron_selectivity, teacher, student, **options)[0]

    assert value() == pytest.approx(0.5 + 1.0 - 2.0 * 0.5, rel=1e-6)
    assert value(kernel="linear") == pytest.approx(0.5 + 1.0 - 2.0 * root, rel=1e-5)
    cubes = (4.0 * 2.0 + 0.5**3 * 0.0 + (1.5**3 + 0.5**3) * 2.0) / 4.0 - 2.0
    cubes = cubes + 1.5**3 - 2.0 * (root + 0.5) ** 3
    assert value(degree=3, offset=0.5) == pytest.approx(cubes, rel=1e-5)
    # Squared distances: t-t 0 and 2, t-s 2 - 2 root = sigma^2.
    sigma2 = 2.0 - 2.0 * root
    expected = (1.0 + np.exp(-1.0 / sigma2)) / 2.0 + 1.0 - 2.0 * np.exp(-0.5)
    assert value(kernel="gaussian") == pytest.approx(expected, rel=1e-5)


def test_poly_matches_gram_matrices():
    """`|| T T' / C - S S' / C' ||_F^2` of the normalised positions by channels."""
    teacher, student = data((1, 3, 4, 5), (1, 3, 4, 2))
    t, s = (np.array(oracles.neurons(x[0])).T for x in (teacher, student))
    expected = ((t @ t.T / 5.0 - s @ s.T / 2.0) ** 2).sum()
    value = numerics.values(losses.neuron_selectivity, teacher, student)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("case", each(KERNELS))
def test_several_maps_are_summed(case):
    pairs = [data(*shapes, seed=i) for i, shapes in enumerate(SHAPES[1:4])]
    teachers, students = zip(*pairs)
    together = numerics.values(case.call, teachers, students)
    alone = sum(numerics.values(case.call, *pair) for pair in pairs)
    np.testing.assert_allclose(together, alone, rtol=1e-9)
    expected = case.expected(list(teachers), list(students))
    np.testing.assert_allclose(together, expected, rtol=1e-5)


def signs(x, rng):
    return x * rng.choice([-1.0, 1.0], x.shape[-1])


CHANGES = {
    "channel scale": lambda x, scale, rng: x * scale * rng.uniform(0.1, 10.0, x[:, :1, :1].shape),
    "channel order": lambda x, scale, rng: x[..., rng.permutation(x.shape[-1])],
    "channel sign": lambda x, scale, rng: signs(x, rng),
}
TRANSFORMS = [
    pytest.param(case, kind, id=f"{case}-{kind}".replace(" ", "-"))
    for case in SELECTIVITY
    for kind in case.invariant
]


@pytest.mark.parametrize("case, kind", TRANSFORMS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3))
def test_invariances(case, kind, seed, scale):
    teacher, student = data(seed=seed)
    moved = CHANGES[kind](student, scale, np.random.default_rng(seed + 1))
    values = numerics.values(case.call, teacher, student)
    again = numerics.values(case.call, teacher, moved)
    atol = 1e-12 if numerics.BACKEND == "tensorflow" else 2e-6
    np.testing.assert_allclose(again, values, rtol=max(1e-7, 10 * numerics.RTOL), atol=atol)


@pytest.mark.parametrize("case", each(SELECTIVITY))
@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_equal_features_are_the_least(case, seed):
    """And of each sample by itself: no other sample changes its value."""
    teacher, student = data((4, 5, 4, 6), (4, 5, 4, 6), seed)
    np.testing.assert_allclose(numerics.values(case.call, teacher, teacher), 0.0, atol=1e-12)
    gradient = numerics.gradient(lambda x: case.call(teacher, x), teacher)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)
    values = numerics.values(case.call, teacher, student)
    assert values.min() > 0.0
    last = numerics.values(case.call, teacher[3:], student[3:])
    np.testing.assert_allclose(last, values[3:], rtol=max(1e-9, 10 * numerics.RTOL))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", each(SELECTIVITY))
def test_degenerate_maps_have_finite_values_and_gradients(case, dtype):
    """Zeros, a dead channel, constants, channels all alike, 1e-20 and 1e18."""
    teacher, student = data((9, 4, 4, 3), (9, 4, 4, 3), dtype=dtype)
    student[0] = 0.0
    teacher[1] = 0.0
    student[2] = teacher[2] = 0.0
    student[3, ..., 1] = 0.0
    student[4], teacher[4] = 2.5, 0.7
    student[5] = teacher[5]
    student[6] = student[6, ..., :1]
    student[7] *= 1e-20
    student[8] *= 1e18
    values = numerics.values(case.call, teacher, student)
    gradient = numerics.gradient(lambda x: case.call(teacher, x), student)
    numerics.assert_finite(values, gradient)
    np.testing.assert_allclose(values[[2, 4, 5]], 0.0, atol=2e-6 * (1 + 2.5**3))
    np.testing.assert_array_equal(gradient[[0, 2, 7]], 0.0)
    np.testing.assert_array_equal(gradient[3, ..., 1], 0.0)
    assert np.abs(gradient[[1, 3, 6, 8]]).max() < 100.0


@pytest.mark.parametrize("spread", [1e-2, 1e-3])
def test_the_gaussian_tells_channels_that_hardly_differ(spread):
    """Distances of nearly equal vectors are those of the vectors less their mean."""
    teacher, student = data((2, 4, 4, 5), (2, 4, 4, 3))
    teacher, student = 1.0 + spread * teacher, 1.0 + spread * student
    expected = oracles.neuron_selectivity(teacher, student, "gaussian")
    single = [x.astype("float32") for x in (teacher, student)]
    values = numerics.values(losses.neuron_selectivity, *single, kernel="gaussian")
    np.testing.assert_allclose(values, expected, rtol=1e-6 / spread)


def test_the_gaussian_width_has_no_gradient():
    """Held fixed, the width gives our gradient; varied with the student, it does not."""
    teacher, student = data((1, 3, 3, 2), (1, 3, 3, 2))
    gradient = numerics.gradient(
        lambda x: losses.neuron_selectivity(teacher, x, "gaussian"), student
    )
    held = oracles.variances(teacher, student)
    fixed, varied = (
        finite_differences.gradient(
            lambda x, of=of: oracles.neuron_selectivity(
                teacher, x, "gaussian", fixed_variances=of
            ).sum(),
            student,
        )
        for of in (held, None)
    )
    np.testing.assert_allclose(gradient, fixed, rtol=1e-5, atol=1e-7)
    assert np.abs(gradient - varied).max() > 1e-4


@pytest.mark.tensorflow
def test_no_tensor_of_all_pairs_of_channels_by_positions():
    """Of the compiled step none is larger than the maps and the pairs of channels."""
    import tensorflow as tf

    batch, side, channels = 4, 8, 16

    @tf.function(jit_compile=False)
    def step(teacher, student):
        return numerics.slope(
            lambda x: sum(losses.neuron_selectivity(teacher, x, k) for k in KERNEL_NAMES), student
        )

    spec = tf.TensorSpec((batch, side, side, channels))
    graph = step.get_concrete_function(spec, spec).graph
    sizes = [
        output.shape.num_elements()
        for operation in graph.get_operations()
        for output in operation.outputs
        if output.shape.is_fully_defined()
    ]
    largest = batch * side * side * 2 * channels
    assert batch * side * side * channels <= max(sizes) <= largest
    assert largest < batch * channels * channels * side * side


KERNEL_NAMES = ("poly", "linear", "gaussian")


@pytest.mark.parametrize(
    "options, received",
    [
        ({"kernel": "rbf"}, "`kernel` to be one of .*kernel='rbf'"),
        ({"degree": 0}, "`degree` to be a positive whole number.*degree=0"),
        ({"degree": 1.5}, r"`degree` to be a positive whole number.*degree=1\.5"),
        ({"offset": -1.0}, r"`offset` to be a finite number, 0 or more.*offset=-1\.0"),
    ],
    ids=str,
)
def test_bad_options_are_an_error(options, received):
    with pytest.raises(ValueError, match=received):
        losses.NeuronSelectivity(**options)
    with pytest.raises(ValueError, match=received):
        losses.neuron_selectivity(np.ones((1, 2, 2, 1)), np.ones((1, 2, 2, 1)), **options)


def test_defaults_are_the_codes():
    loss = losses.NeuronSelectivity()
    assert (loss.kernel, loss.degree, loss.offset) == ("poly", 2, 0.0)
    teacher, student = data(dtype="float32")
    value = float(loss(teacher, student))
    assert value == pytest.approx(oracles.neuron_selectivity(teacher, student).mean(), rel=1e-4)
    assert keras.saving.get_registered_name(type(loss)) == "keras_distill>NeuronSelectivity"
