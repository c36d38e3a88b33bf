"""Every relation loss as a pure function: values, gradients, odd inputs, examples by hand."""

import numpy as np
import pytest

from keras_distill import losses
from tests.losses import numerics
from tests.losses.relation_cases import CASES
from tests.losses.relation_cases import data
from tests.losses.relation_cases import each
from tests.oracles import finite_differences
from tests.oracles import relation as oracles

# (batch, teacher's size, student's size); 9 samples are more than the chunks of anchors.
SHAPES = [(5, 6, 6)]
GRADIENT_SHAPES = [(5, 6, 6)]
MAPS = [(5, (2, 3, 1), (2, 3, 1))]
if numerics.BACKEND == "tensorflow":  # JAX compiles each operation for each shape.
    SHAPES += [(4, 2, 6), (5, 6, 3), (9, 3, 5)]
    GRADIENT_SHAPES += [(5, 6, 3), (9, 3, 5)]
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


@pytest.mark.parametrize("shape", GRADIENT_SHAPES, ids=str)
@pytest.mark.parametrize("case", each())
def test_gradient_is_the_equations(case, shape):
    teacher, student = data(*fit(case, shape), seed=1)
    weights = np.random.default_rng(2).uniform(0.5, 2.0, len(student))
    gradient = numerics.gradient(lambda x: case.call(teacher, x), student, weights)
    expected = expected_gradient(case, teacher, student, weights)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
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
    teacher, _ = data(5, dtype="float32")
    values = numerics.to_numpy(case.call(teacher, teacher))
    if case.at_equal is None:
        assert values.mean() > 0.01
        return
    np.testing.assert_allclose(values, case.at_equal, atol=5e-7)
    gradient = numerics.gradient(lambda x: case.call(teacher, x), teacher)
    # The sum over all pairs of PKT's paper form has as many roundings.
    np.testing.assert_allclose(gradient, 0.0, atol=2e-5 if case.kwargs.get("mode") else 2e-6)


def degenerate():
    """`name -> (5, 6)` features: each is some loss's 0 / 0."""
    rng = np.random.default_rng(5)
    plain = rng.standard_normal((5, 6)).astype("float32")
    duplicates, zero_rows, flat_rows = plain.copy(), plain.copy(), plain.copy()
    duplicates[3:] = duplicates[0]
    zero_rows[1:3] = 0.0
    flat_rows[2], flat_rows[4] = 0.1, 2.3
    return {
        "plain": plain,
        "duplicates": duplicates,
        "rows of zeros": zero_rows,
        "constant rows": flat_rows,
        "constant": np.full_like(plain, 0.1),
        "all equal": np.repeat(plain[:1], 5, axis=0),
        "zeros": np.zeros_like(plain),
    }


# JAX has the same arithmetic and takes a minute for all of them.
DEGENERATE = list(degenerate()) if numerics.BACKEND == "tensorflow" else ["duplicates", "zeros"]


@pytest.mark.parametrize("of_student", DEGENERATE)
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
        if of_student in ("constant", "all equal", "zeros") and case.least_batch > 1:
            # Nothing correlates with what is constant; the oracle divides noise by noise.
            alike = 0.0 if case.kwargs.get("compare") == "mse" else 1.0
            if of_teacher == of_student or alike:
                np.testing.assert_allclose(values, alike, atol=1e-6)
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


@pytest.mark.parametrize("case", each([case for case in CASES if "shift" in case.invariant]))
def test_far_from_the_origin(case):
    """Offsets of 1e3, in float32: within 1e-4 of float64 on the same numbers."""
    teacher, student = data(5, seed=3)
    teacher, student = (x.astype("float32") for x in (teacher + 1e3, student - 1e3))
    student[2] = student[4]
    values = numerics.to_numpy(case.call(teacher, student))
    expected = case.expected(teacher.astype("float64"), student.astype("float64"))
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    gradient = numerics.gradient(lambda x: case.call(teacher, x), student)
    exact = numerics.gradient(
        lambda x: case.call(teacher.astype("float64"), x), student.astype("float64")
    )
    numerics.assert_finite(gradient)
    np.testing.assert_allclose(gradient, exact, rtol=1e-3, atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("case", each([case for case in CASES if "scale" in case.invariant]))
def test_small_and_large_features(case, scale):
    teacher, student = data(5, dtype="float32")
    values = numerics.to_numpy(case.call(teacher * np.float32(scale), student * np.float32(scale)))
    expected = case.expected(teacher * scale, student * scale)
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-5)


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
    np.testing.assert_allclose(values, by_hand, rtol=max(1e-9, numerics.RTOL))


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
