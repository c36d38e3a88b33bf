"""FT: values, gradients, paraphraser and translator."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_distill import losses
from keras_distill.losses.factor_transfer import FactorReconstruction
from keras_distill.losses.factor_transfer import Paraphraser
from tests.losses import numerics
from tests.oracles import factor_transfer as oracles
from tests.oracles import finite_differences

FEW = numerics.BACKEND != "tensorflow"  # JAX runs each operation by itself.
EXAMPLES = 2 if FEW else 8
SHAPES = [
    ((3, 4, 4, 5), (3, 4, 4, 5)),
    ((2, 8, 8, 3), (2, 4, 4, 3)),
    ((2, 5, 6, 2), (2, 8, 3, 2)),
    ((1, 1, 1, 3), (1, 2, 3, 3)),
]
OPTIONS = [{}, {"power": 2}, {"power": 1.5}, {"mode": "attention"}]
# The same of the class: the student has channels of its own.
FITTED = [((2, 3, 3, 4), (2, 3, 3, 2)), ((2, 3, 2, 3), (2, 4, 3, 3))]
GRADIENT_SHAPES = SHAPES[2:3] if FEW else SHAPES[1:3]
if FEW:
    SHAPES, FITTED = SHAPES[2:3], FITTED[1:]


def data(teacher_shape=(4, 3, 4, 6), student_shape=(4, 3, 4, 6), seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in (teacher_shape, student_shape)]


def built(teacher_shape, student_shape, **options):
    with numerics.float64():
        loss = losses.FactorTransfer(dtype="float64", **options)
        loss.build_for(teacher_shape, student_shape)
    return loss


def pairs(layers):
    """`(kernel, bias)` of each convolution, `(gamma, beta)` of each batch normalization."""
    return [[numerics.to_numpy(w) for w in layer.weights[:2]] for layer in layers]


def expected_of(loss, teacher, student, **options):
    teacher_factor = oracles.encoded(teacher, pairs(loss.paraphraser.encoder))
    student_factor = oracles.encoded(student, pairs(loss.translator), pairs(loss.norms))
    return oracles.factor_transfer(teacher_factor, student_factor, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_values_are_the_equations(shapes, options):
    teacher, student = data(*shapes)
    values = numerics.values(losses.factor_transfer, teacher, student, **options)
    expected = oracles.factor_transfer(teacher, student, **options)
    assert values.shape == shapes[0][:1] and values.dtype == "float64"
    rtol = numerics.RTOL if shapes[0] == shapes[1] else 3e-6
    np.testing.assert_allclose(values, expected, rtol, 1e-12)
    single = [x.astype("float32") for x in (teacher, student)]
    np.testing.assert_allclose(losses.factor_transfer(*single, **options), expected, 3e-5, 1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shapes", GRADIENT_SHAPES, ids=str)
def test_gradients_are_those_of_the_equations(shapes, options):
    teacher, student = data(*shapes)
    gradient = numerics.gradient(lambda x: losses.factor_transfer(teacher, x, **options), student)
    expected = finite_differences.gradient(
        lambda x: oracles.factor_transfer(teacher, x, **options).sum(), student, step=1e-6
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    gradient = numerics.gradient(lambda x: losses.factor_transfer(x, student, **options), teacher)
    np.testing.assert_array_equal(gradient, 0.0)


def test_by_hand():
    """(3, 4) / 5 against (1, 0): 0.4 and 0.8, their mean and that of their squares."""
    teacher, student = np.array([3.0, 4.0]), np.array([7.0, 0.0])
    for shape in ((1, 1, 1, 2), (1, 1, 2, 1)):  # the norm is of positions and channels
        maps = teacher.reshape(shape), student.reshape(shape)
        np.testing.assert_allclose(losses.factor_transfer(*maps), [0.6], rtol=1e-6)
        np.testing.assert_allclose(losses.factor_transfer(*maps, power=2), [0.4], rtol=1e-6)
    # As attention maps: (9, 16) / sqrt(337) against (1, 0), and of channels one position alone.
    value = losses.factor_transfer(*maps, mode="attention")
    expected = (1.0 - 9.0 / np.sqrt(337.0) + 16.0 / np.sqrt(337.0)) / 2.0
    np.testing.assert_allclose(value, [expected], rtol=1e-6)
    maps = teacher.reshape(1, 1, 1, 2), student.reshape(1, 1, 1, 2)
    np.testing.assert_allclose(losses.factor_transfer(*maps, mode="attention"), [0.0], atol=1e-7)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3))
def test_scales_of_samples_change_nothing(options, seed, scale):
    teacher, student = data(seed=seed)
    scales = scale * np.random.default_rng(seed).uniform(0.1, 10.0, (4, 1, 1, 1))
    values = numerics.values(losses.factor_transfer, teacher, student, **options)
    again = numerics.values(losses.factor_transfer, teacher, scales * student, **options)
    np.testing.assert_allclose(again, values, rtol=max(1e-7, 10 * numerics.RTOL))
    if options.get("mode") == "attention":
        order = np.random.default_rng(seed).permutation(6)
        again = numerics.values(losses.factor_transfer, teacher, -student[..., order], **options)
        np.testing.assert_allclose(again, values, rtol=max(1e-7, 10 * numerics.RTOL))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_equal_factors_are_the_least(options, seed):
    teacher, student = data(seed=seed)
    np.testing.assert_array_equal(
        numerics.values(losses.factor_transfer, teacher, teacher, **options), 0.0
    )
    gradient = numerics.gradient(lambda x: losses.factor_transfer(teacher, x, **options), teacher)
    np.testing.assert_array_equal(gradient, 0.0)
    assert numerics.values(losses.factor_transfer, teacher, student, **options).min() > 0.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_degenerate_factors_have_finite_values_and_gradients(options, dtype):
    teacher, student = data((7, 4, 3, 2), (7, 4, 3, 2), dtype=dtype)
    student[0] = 0.0
    teacher[1] = 0.0
    teacher[2] = student[2] = 0.0
    student[3] = 0.5
    student[4] *= 1e-3
    student[5] *= 1e15
    student[6] = student[5]
    values = numerics.values(losses.factor_transfer, teacher, student, **options)
    gradient = numerics.gradient(lambda x: losses.factor_transfer(teacher, x, **options), student)
    numerics.assert_finite(values, gradient)
    assert values[2] == 0.0 and np.all(values[[0, 1, 3, 4, 5, 6]] > 0.0)
    np.testing.assert_array_equal(gradient[[0, 2]], 0.0)


# Paraphraser and translator.


@pytest.mark.parametrize("rate, factors", [(0.5, 4), (0.75, 6), (2.0, 16), (0.01, 1)])
def test_the_paraphraser_encodes_and_decodes(rate, factors):
    (maps, _) = data((2, 3, 4, 8))
    with numerics.float64():
        paraphraser = Paraphraser(rate, dtype="float64")
        again = numerics.to_numpy(paraphraser(keras.ops.convert_to_tensor(maps)))
    factor = numerics.values(paraphraser.encode, maps)
    expected = oracles.encoded(maps, pairs(paraphraser.encoder))
    assert factor.shape == (2, 3, 4, factors) and again.shape == maps.shape
    np.testing.assert_allclose(factor, expected, rtol=1e-9, atol=1e-12)
    expected = oracles.decoded(expected, pairs(paraphraser.decoder))
    np.testing.assert_allclose(again, expected, rtol=1e-9, atol=1e-12)
    shapes = [tuple(v.shape) for v in paraphraser.trainable_variables[0::2]]
    assert shapes[:3] == [(3, 3, 8, 8), (3, 3, 8, factors), (3, 3, factors, factors)]
    assert shapes[3:] == [(3, 3, factors, factors), (3, 3, 8, factors), (3, 3, 8, 8)]


def test_weights_and_biases_start_as_those_of_pytorch():
    """In 1 / sqrt(fan_in) either way; of a transposed convolution the fan is of the outputs."""
    loss = losses.FactorTransfer(rate=0.25)
    loss.build_for((None, 2, 2, 64), (None, 2, 2, 32))
    layers = [*loss.paraphraser.encoder, *loss.translator, *loss.paraphraser.decoder]
    fans = [64, 64, 16, 32, 32, 16, 16, 64, 64]
    for layer, fan in zip(layers, fans, strict=True):
        kernel, bias = (numerics.to_numpy(w) for w in layer.weights)
        bound = (9 * fan) ** -0.5
        assert 0.95 * bound < np.abs(kernel).max() <= bound
        assert 0.5 * bound < np.abs(bias).max() <= bound
        assert abs(kernel.mean()) < 0.1 * bound


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"mode": "attention"}, {"batch_normalization": True}], ids=str
)
@pytest.mark.parametrize("shapes", FITTED, ids=str)
def test_the_class_compares_factors(shapes, options):
    teacher, student = data(*shapes)
    loss = built(*shapes, **options)
    values = numerics.values(loss.call, teacher, student)
    mode = {"mode": options.get("mode", "factor")}
    expected = expected_of(loss, teacher, student, **mode)
    np.testing.assert_allclose(values, expected, max(3e-6, numerics.RTOL))
    weights = np.array([0.5, 1.5])

    def stateless(teacher, student):  # Moving averages are no part of it.
        with keras.StatelessScope():
            return loss.call(teacher, student)

    gradient = numerics.gradient(lambda x: stateless(teacher, x), student, weights)
    expected = finite_differences.gradient(
        lambda x: (weights * expected_of(loss, teacher, x, **mode)).sum(), student, step=1e-6
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)
    of_teacher = numerics.gradient(lambda x: stateless(x, student), teacher)
    np.testing.assert_array_equal(of_teacher, 0.0)


@pytest.mark.parametrize("kind", ["l1", "mse"])
def test_reconstruction_is_the_equations(kind):
    """It trains the paraphraser and looks at no student."""
    loss = built((2, 3, 4, 4), (2, 3, 4, 2))
    teacher, student = data((2, 3, 4, 4), (2, 5))
    with numerics.float64():
        reconstruction = loss.reconstruction(kind, dtype="float64")
        reconstruction.build_for((2, 3, 4, 4), (2, 5))
    values = numerics.values(reconstruction.call, teacher, student)
    paraphraser = loss.paraphraser
    factor = oracles.encoded(teacher, pairs(paraphraser.encoder))
    again = oracles.decoded(factor, pairs(paraphraser.decoder))
    expected = oracles.reconstruction(teacher, again, kind)
    np.testing.assert_allclose(values, expected, rtol=max(1e-9, numerics.RTOL))
    zero = numerics.gradient(lambda x: reconstruction.call(teacher, x), student)
    np.testing.assert_array_equal(zero, 0.0)
    assert [id(v) for v in reconstruction.trainable_variables] == [
        id(v) for v in paraphraser.trainable_variables
    ]
    assert {id(v) for v in loss.frozen_variables} == {id(v) for v in paraphraser.variables}
    assert type(reconstruction) is FactorReconstruction and reconstruction.frozen_variables == []


@pytest.mark.tensorflow
def test_gradients_by_the_weights():
    """The reconstruction reaches encoder and decoder; the transfer the translator alone."""
    import tensorflow as tf

    loss = built(*FITTED[0])
    reconstruction = loss.reconstruction(dtype="float64")
    reconstruction.build_for(*FITTED[0])
    teacher, student = data(*FITTED[0])
    paraphraser = loss.paraphraser

    def transferred(kernel):
        weights = pairs(loss.translator)
        weights[1][0] = kernel
        factor = oracles.encoded(teacher, pairs(paraphraser.encoder))
        return oracles.factor_transfer(factor, oracles.encoded(student, weights)).mean()

    def reconstructed(bias):
        weights = pairs(paraphraser.encoder)
        weights[1][1] = bias
        again = oracles.decoded(oracles.encoded(teacher, weights), pairs(paraphraser.decoder))
        return oracles.reconstruction(teacher, again).mean()

    for one, variable, oracle in (
        (loss, loss.translator[1].weights[0], transferred),
        (reconstruction, paraphraser.encoder[1].weights[1], reconstructed),
    ):
        with tf.GradientTape() as tape:
            value = one(teacher, student)
        own = one.trainable_variables
        gradients = tape.gradient(value, [v.value for v in own])
        reached = {id(v) for v, g in zip(own, gradients) if g is not None}
        frozen = {id(v) for v in one.frozen_variables}
        assert reached == {id(v) for v in own} - frozen
        (gradient,) = [g for v, g in zip(own, gradients) if v is variable]
        expected = finite_differences.gradient(oracle, numerics.to_numpy(variable), step=1e-6)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_features_that_do_not_fit_are_named():
    received = r"teacher_factor\.shape=\(2, 4, 4, 3\), student_factor\.shape=\(2, 4, 4, 2\)"
    with pytest.raises(ValueError, match=f"factors with as many channels. Received: {received}"):
        losses.factor_transfer(np.ones((2, 4, 4, 3)), np.ones((2, 4, 4, 2)))
    with pytest.raises(ValueError, match=r"Expected maps of shape.*\(2, 3\).*\(2, 4, 4, 3\)"):
        losses.factor_transfer(np.ones((2, 3)), np.ones((2, 4, 4, 3)))
    loss = losses.FactorTransfer()
    assert loss.misfit((None, 4, 4, 3), (None, 8, 5, 2)) is None
    assert "maps of shape" in loss.misfit((None, 4, 4, 3), (None, 3))
    assert "one feature" in loss.misfit([(None, 4, 4, 3)] * 2, [(None, 4, 4, 3)] * 2)
    reconstruction = loss.reconstruction()
    assert reconstruction.misfit((None, None, None, 3), (None, 7)) is None
    assert "one map of shape" in reconstruction.misfit((None, 3), (None, 4, 4, 3))


BAD = [
    ({"rate": 0}, "`rate` to be a positive"),
    ({"power": 0.5}, "`power` to be 1 or more"),
    ({"mode": "code"}, "`mode` to be one of 'factor', 'attention'"),
    ({"batch_normalization": None}, "`batch_normalization` to be True or False"),
]


@pytest.mark.parametrize("options, message", BAD, ids=str)
def test_bad_arguments_are_named(options, message):
    (name,) = options
    with pytest.raises((ValueError, TypeError), match=f"Expected {message}.*Received: {name}="):
        losses.FactorTransfer(**options)
    with pytest.raises(ValueError, match="`loss` to be one of 'l1', 'mse'"):
        losses.FactorTransfer().reconstruction("l2")
