"""Every relation loss as a pure function: values, gradients, odd inputs, invariances, XLA."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_distill import losses
from tests.losses import numerics
from tests.losses.relation_cases import BATCH_OF_UNKNOWN_SIZE
from tests.losses.relation_cases import CASES
from tests.losses.relation_cases import data
from tests.losses.relation_cases import each
from tests.losses.relation_cases import labels_for
from tests.oracles import finite_differences
from tests.oracles import relation as oracles

# (batch, teacher's size, student's size); 9 samples are more than the chunks of anchors.
SHAPES = [(5, 6, 3), (4, 2, 6)]
MAPS = [(4, (2, 2, 2), (2, 2, 2))]
if numerics.BACKEND == "tensorflow":  # JAX compiles each operation for each shape.
    SHAPES += [(5, 4, 4), (9, 3, 5)]
    MAPS += [(4, (4, 4, 2), (2, 2, 3)), (5, (8, 3, 1), (5, 2, 2)), (4, (3, 2), 5)]
TAKES_MAPS = [case for case in CASES if case.takes_maps]
ONE_SAMPLE = [case for case in CASES if case.least_batch == 1]


def fit(case, shape):
    """The shape, with sizes that the case takes."""
    batch, teacher_size, student_size = shape
    if not case.takes_other_sizes:
        student_size = teacher_size
    return max(batch, case.least_batch), teacher_size, student_size


def expected_gradient(case, teacher, student, weights):
    still = {}
    if case.kwargs.get("kernel") == "rbf":  # The median is a constant to the gradient.
        still["student_median"] = np.median(oracles.squared(oracles.rows_of(student)))
    return finite_differences.gradient(
        lambda x: np.sum(weights * case.expected(teacher, x, **still)), student
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", each())
def test_value_is_the_equations(case, shape):
    teacher, student = data(*fit(case, shape))
    values = numerics.values(case.call, teacher, student)
    assert values.dtype == "float64" and values.shape == (len(student),)
    expected = case.expected(teacher, student)
    np.testing.assert_allclose(values, expected, numerics.RTOL, atol=1e-14)
    if case.one_number:
        assert len(set(values)) == 1


@pytest.mark.parametrize("shape", SHAPES[:1] + SHAPES[3:], ids=str)
@pytest.mark.parametrize("case", each())
def test_gradient_is_the_equations(case, shape):
    teacher, student = data(*fit(case, shape), seed=1)
    weights = np.random.default_rng(2).uniform(0.5, 2.0, len(student))
    gradient = numerics.gradient(lambda x: case.call(teacher, x), student, weights)
    expected = expected_gradient(case, teacher, student, weights)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("case", each(TAKES_MAPS))
def test_maps_of_any_sizes_are_flattened(case, shape):
    teacher, student = data(*shape)
    values = numerics.values(case.call, teacher, student)
    np.testing.assert_allclose(values, case.expected(teacher, student), numerics.RTOL, atol=1e-14)
    weights = np.linspace(0.5, 1.5, len(student))
    gradient = numerics.gradient(lambda x: case.call(teacher, x), student, weights)
    expected = expected_gradient(case, teacher, student, weights)
    assert gradient.shape == student.shape
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", each())
def test_teacher_gets_no_gradient(case):
    teacher, student = data(5)
    gradient = numerics.gradient(lambda x: case.call(x, student), teacher)
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("case", each())
def test_equal_teacher_and_student(case):
    teacher, _ = data(9, dtype="float32")
    values = numerics.to_numpy(case.call(teacher, teacher))
    if case.at_equal is None:
        assert values.mean() > 0.01
        return
    np.testing.assert_allclose(values, case.at_equal, atol=5e-7)
    gradient = numerics.gradient(lambda x: case.call(teacher, x), teacher)
    np.testing.assert_allclose(gradient, 0.0, atol=2e-6)


def degenerate():
    """`name -> (batch, 6)` features: each is some loss's 0 / 0."""
    rng = np.random.default_rng(5)
    plain = rng.standard_normal((6, 6)).astype("float32")
    duplicates, zero_rows, flat_rows = plain.copy(), plain.copy(), plain.copy()
    duplicates[3:5] = duplicates[0]
    zero_rows[1:3] = 0.0
    flat_rows[2], flat_rows[4] = 0.1, -2.3
    return {
        "plain": plain,
        "duplicates": duplicates,
        "rows of zeros": zero_rows,
        "constant rows": flat_rows,
        "constant": np.full_like(plain, 0.1),
        "all equal": np.repeat(plain[:1], 6, axis=0),
        "zeros": np.zeros_like(plain),
    }


@pytest.mark.parametrize("of_student", degenerate())
@pytest.mark.parametrize("case", each())
def test_degenerate_features(case, of_student):
    """Finite values and gradients, and the values of the equations in float64."""
    student = degenerate()[of_student]
    for of_teacher in ("plain", of_student):
        teacher = degenerate()[of_teacher]
        values = numerics.to_numpy(case.call(teacher, student))
        gradient = numerics.gradient(lambda x, t=teacher: case.call(t, x), student)
        numerics.assert_finite(values, gradient)
        # No division by what rounding left of a 0.
        assert np.abs(gradient).max() < 1e3
        if of_student in ("constant", "all equal") and case.cls in (
            losses.KernelAlignment,
            losses.RepresentationalSimilarity,
        ):
            # What is constant correlates 0; the oracle's float64 has noise in its place.
            np.testing.assert_allclose(values, values[0])
            continue
        expected = case.expected(teacher.astype("float64"), student.astype("float64"))
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", each(ONE_SAMPLE))
def test_batch_of_one(case):
    teacher, student = data(1, dtype="float32")
    values = numerics.to_numpy(case.call(teacher, student))
    gradient = numerics.gradient(lambda x: case.call(teacher, x), student)
    np.testing.assert_allclose(values, 0.0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@pytest.mark.parametrize("case", each([case for case in CASES if case.least_batch > 1]))
def test_batches_too_small_for_the_statistic_are_an_error(case):
    least = case.least_batch
    teacher, student = data(least - 1, 4, 3)
    shapes = rf"teacher_features\.shape=\({least - 1}, 4\), student_features\.shape=\({least - 1}"
    with pytest.raises(ValueError, match=rf"at least {least} samples a batch.*Received: {shapes}"):
        case.call(teacher, student)
    assert np.isfinite(numerics.values(case.call, *data(least, 4, 3))).all()


@pytest.mark.parametrize("case", each())
def test_far_from_the_origin(case):
    """Offsets of 1e3, in float32: within 1e-4 of float64 on the same numbers."""
    if "shift" not in case.invariant:
        pytest.skip("an offset changes the value")
    teacher, student = data(9, 8, 8, seed=3)
    teacher, student = (x.astype("float32") for x in (teacher + 1e3, student - 1e3))
    student[4] = student[7]
    values = numerics.to_numpy(case.call(teacher, student))
    expected = case.expected(teacher.astype("float64"), student.astype("float64"))
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    gradient = numerics.gradient(lambda x: case.call(teacher, x), student)
    exact = numerics.gradient(lambda x: case.call(teacher.astype("float64"), x), student + 0.0)
    numerics.assert_finite(gradient)
    np.testing.assert_allclose(gradient, exact, rtol=1e-3, atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("case", each([case for case in CASES if "scale" in case.invariant]))
def test_small_and_large_features(case, scale):
    teacher, student = data(5, dtype="float32")
    values = numerics.to_numpy(case.call(teacher * np.float32(scale), student * np.float32(scale)))
    np.testing.assert_allclose(values, case.expected(teacher, student), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", each())
def test_half_precision_inputs_are_computed_in_float32(case, dtype):
    teacher, student = (
        keras.ops.convert_to_tensor(x.astype("float32"), dtype=dtype) for x in data(5)
    )
    values = case.call(teacher, student)
    assert keras.backend.standardize_dtype(values.dtype) == "float32"
    lifted = [keras.ops.cast(x, "float32") for x in (teacher, student)]
    expected = numerics.to_numpy(case.call(*lifted))
    np.testing.assert_array_equal(numerics.to_numpy(values), expected)
    gradient = numerics.gradient(lambda x: case.call(teacher, x), student)
    expected = numerics.gradient(lambda x: case.call(teacher, x), lifted[1])
    numerics.assert_finite(gradient)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(gradient.astype("float32"), expected, rtol=2e-2, atol=2e-2 * scale)


@pytest.mark.parametrize("case", each())
def test_xla_computes_the_same(case):
    """Values and gradients, with duplicates and a row of zeros."""
    teacher, student = data(9, dtype="float32")
    student[0], student[5] = 0.0, student[3]

    def gradient(teacher, student):
        return numerics.slope(lambda x: case.call(teacher, x), student)

    arguments = [keras.ops.convert_to_tensor(x) for x in (teacher, student)]
    for function in (case.call, gradient):
        plain = numerics.to_numpy(function(*arguments))
        result = numerics.to_numpy(numerics.compiled(function)(*arguments))
        numerics.assert_finite(result)
        np.testing.assert_allclose(result, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


@pytest.mark.tensorflow
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("case", each())
def test_batch_of_unknown_size(case, jit_compile):
    """As `fit` traces a loss: values and gradients, also of a batch too small for it."""
    import tensorflow as tf

    teacher, student = data(BATCH_OF_UNKNOWN_SIZE, dtype="float32")
    specification = tf.TensorSpec((None, 6))

    @tf.function(input_signature=[specification] * 2, jit_compile=jit_compile)
    def both(teacher, student):
        return case.call(teacher, student), numerics.slope(lambda x: case.call(teacher, x), student)

    values, gradient = both(teacher, student)
    np.testing.assert_allclose(values, case.call(teacher, student), rtol=1e-4, atol=1e-6)
    expected = numerics.gradient(lambda x: case.call(teacher, x), student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    if not case.needs_labels:
        for batch in (1, 2, 3):
            numerics.assert_finite(*both(teacher[:batch], student[:batch]))


TRANSFORMS = [
    pytest.param(case, kind, id=f"{case}-{kind}".replace(" ", "-"))
    for case in CASES
    for kind in case.invariant
]


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


@pytest.mark.parametrize("case, kind", TRANSFORMS)
@settings(max_examples=8, deadline=None)
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


@pytest.mark.parametrize("case", each())
@settings(max_examples=8, deadline=None)
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


@pytest.mark.parametrize("case", each())
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**16), batch=st.integers(4, 7))
def test_equal_features_are_the_least(case, seed, batch):
    teacher, student = data(batch, 5, 5, seed=seed)
    values = numerics.values(case.call, teacher, student)
    equal = numerics.values(case.call, teacher, teacher)
    if case.at_equal is not None:
        np.testing.assert_allclose(equal, 0.0, atol=1e-6)
        assert values.mean() > 0.0


def test_probabilistic_transfer_by_hand():
    """Two samples: at a right angle for the teacher, alike for the student."""
    teacher, student = np.eye(2), np.ones((2, 2))
    by_hand = (2 / 3 * np.log((2 / 3) / 0.5) + 1 / 3 * np.log((1 / 3) / 0.5)) / 2
    values = numerics.values(losses.probabilistic_transfer, teacher, student)
    np.testing.assert_allclose(values, by_hand, rtol=1e-6)
    # Of one class: the labels' shares are the student's.
    of_labels = numerics.values(
        losses.probabilistic_transfer, student, student, np.array([3, 3]), supervised_weight=1.0
    )
    np.testing.assert_allclose(of_labels, 0.0, atol=1e-7)


def test_probabilistic_transfer_takes_labels_of_every_form():
    teacher, student = data(6, dtype="float32")
    ids = np.array([0, 1, 2, 0, 1, 1])

    def value(labels):
        return numerics.to_numpy(
            losses.probabilistic_transfer(teacher, student, labels, supervised_weight=1.0)
        )

    expected = oracles.probabilistic_transfer(teacher, student, ids, supervised_weight=1.0)
    for form in (ids, ids.astype("float32"), ids[:, None], np.eye(3, dtype="float32")[ids]):
        np.testing.assert_allclose(value(form), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="`labels` where `supervised_weight`.*labels=None"):
        value(None)
    for shape in ((5,), (6, 2, 3)):
        with pytest.raises(ValueError, match=r"`labels` as class ids.*labels\.shape=\("):
            value(np.zeros(shape, "int32"))


def test_probabilistic_transfer_of_opposite_features():
    """Cosines of -1 that rounding takes below it: no logarithm of a negative number."""
    rng = np.random.default_rng(0)
    line = rng.standard_normal((1, 700)).astype("float32")
    student = line * np.array([[1.0], [-1.0], [3.3], [-0.7]], "float32")
    teacher = rng.standard_normal((4, 5)).astype("float32")
    for mode in ("code", "paper"):
        values = numerics.to_numpy(losses.probabilistic_transfer(teacher, student, mode=mode))
        numerics.assert_finite(values)


def test_correlation_congruence_is_the_gaussian_kernel_of_unit_vectors():
    """The expansion tends to exp(-gamma ||f_i - f_j||^2)."""
    teacher, student = data(5)
    units = [np.array([row / np.linalg.norm(row) for row in x]) for x in (teacher, student)]
    kernels = [np.exp(-0.4 * oracles.squared(x)) for x in units]
    expected = np.mean((kernels[1] - kernels[0]) ** 2, axis=1)
    values = numerics.values(losses.correlation_congruence, teacher, student, order=12)
    np.testing.assert_allclose(values, expected, rtol=max(1e-9, numerics.RTOL))


def test_similarity_preserving_by_hand():
    """Features (1, 0), (0, 1) against (1, 0), (1, 0)."""
    teacher, student = np.eye(2), np.array([[1.0, 0.0], [1.0, 0.0]])
    root = np.sqrt(0.5)
    by_hand = ((root - 1.0) ** 2 + root**2) / 2
    values = numerics.values(losses.similarity_preserving, teacher, student)
    np.testing.assert_allclose(values, by_hand, rtol=1e-9)


def test_representational_similarity_is_numpys_correlation():
    teacher, student = data(6, (3, 2), 5)
    upper = np.triu_indices(6, 1)
    matrices = [1.0 - np.corrcoef(x.reshape(6, -1))[upper] for x in (teacher, student)]
    expected = 1.0 - np.corrcoef(*matrices)[0, 1]
    values = numerics.values(losses.representational_similarity, teacher, student)
    np.testing.assert_allclose(values, expected, rtol=max(1e-9, numerics.RTOL))


def test_kernel_alignment_is_that_of_features_and_of_kernels():
    teacher, student = data(7, 4, 3)
    expected = 1.0 - oracles.alignment_of_features(teacher, student)
    values = numerics.values(losses.kernel_alignment, teacher, student)
    np.testing.assert_allclose(values, expected, rtol=max(1e-9, numerics.RTOL))


def test_kernel_alignment_is_biased_and_the_other_is_not():
    """Independent features, more of them than samples."""
    biased, unbiased = [], []
    for seed in range(12):
        teacher, student = data(8, 200, 200, seed=seed, dtype="float32")
        biased.append(1.0 - float(losses.kernel_alignment(teacher, student)[0]))
        unbiased.append(1.0 - float(losses.kernel_alignment(teacher, student, unbiased=True)[0]))
    assert np.mean(biased) > 0.9
    assert abs(np.mean(unbiased)) < 0.1
