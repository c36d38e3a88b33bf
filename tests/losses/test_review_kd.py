"""ReviewKD: the context loss, the fusions, the levels that fit."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_distill import losses
from keras_distill.losses.review_kd import AttentionFusion
from tests.losses import numerics
from tests.oracles import finite_differences
from tests.oracles import review_kd as oracles

FEW = numerics.BACKEND != "tensorflow"  # JAX runs each operation by itself.
EXAMPLES = 2 if FEW else 8
# Levels of teacher and student: maps of 1 to 8, not square, 8 to 4 and 8 to 5, vectors.
LEVELS = {
    "alike": ([(8, 8, 2), (4, 4, 3), (5,)],) * 2,
    "not square": ([(8, 5, 2), (3, 2, 3), (1, 4, 2)],) * 2,
    "8 to 4, 8 to 5": ([(8, 8, 2), (5, 8, 2), (3,)], [(4, 4, 2), (8, 5, 2), (1, 1, 3)]),
}
# The same of the class: the student has channels of its own, and sizes that the fusions fit.
FITTED = {
    "alike": ([(4, 4, 2), (2, 2, 3), (4,)], [(4, 4, 3), (2, 2, 2), (3,)]),
    "other sizes": ([(5, 3, 2), (4, 1, 2)], [(3, 3, 2), (2, 2, 3)]),
    "one level": ([(3, 2, 2)], [(2, 2, 3)]),
}
NAMES = ["8 to 4, 8 to 5"] if FEW else list(LEVELS)
FITTED_NAMES = ["other sizes"] if FEW else list(FITTED)


def data(levels, batch=2, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    return [
        [rng.standard_normal((batch, *level)).astype(dtype) for level in network]
        for network in levels
    ]


def replaced(features, position, x):
    return [x if i == position else other for i, other in enumerate(features)]


def built(name, batch=3, **options):
    """A loss in float64, and features of the batch."""
    teacher, student = data(FITTED[name], batch)
    with numerics.float64():
        loss = losses.ReviewKD(dtype="float64", **options)
        loss.build_for([x.shape for x in teacher], [x.shape for x in student])
    return loss, teacher, student


def weights_of(loss):
    """What `oracles.fused` takes; gamma and beta away from 1 and 0."""
    weights = []
    for i, fusion in enumerate(loss.fusions):
        for norm in (fusion.reduce_norm, fusion.expand_norm):
            channels = norm.gamma.shape[0]
            with numerics.float64():
                norm.gamma.assign(np.linspace(0.5, 1.5, channels) + i)
                norm.beta.assign(np.linspace(-0.5, 0.5, channels))
        layers = ["reduce", "expand", "reduce_norm", "expand_norm", "attention"]
        own = {}
        for name in layers:
            layer = getattr(fusion, name)
            if layer is not None:
                values = [numerics.to_numpy(w) for w in layer.weights[:2]]
                own[name] = values if len(values) > 1 else values[0]
        weights.append(own)
    return weights


def stateless(loss, teacher, student):
    """The values in training; the moving averages stay."""
    with keras.StatelessScope():
        return loss.call(teacher, student)


def expected_of(weights, teacher, student):
    targets = [x.shape[1:3] if x.ndim == 4 else (1, 1) for x in teacher]
    return oracles.review_kd(teacher, oracles.fused(student, weights, targets))


@pytest.mark.parametrize("name", NAMES)
def test_values_are_the_equations(name):
    teacher, student = data(LEVELS[name], batch=3)
    values = numerics.values(losses.review_kd, teacher, student)
    expected = oracles.review_kd(teacher, student)
    assert values.shape == (3,) and values.dtype == "float64"
    np.testing.assert_allclose(values, expected, rtol=2e-6)
    single = [[x.astype("float32") for x in network] for network in (teacher, student)]
    np.testing.assert_allclose(losses.review_kd(*single), expected, rtol=2e-5)
    alone = numerics.values(losses.review_kd, *([x[:1] for x in n] for n in (teacher, student)))
    np.testing.assert_allclose(alone, expected[:1], rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_equations(name, level):
    teacher, student = data(LEVELS[name])
    gradient = numerics.gradient(
        lambda x: losses.review_kd(teacher, replaced(student, level, x)), student[level]
    )
    expected = finite_differences.gradient(
        lambda x: oracles.review_kd(teacher, replaced(student, level, x)).sum(), student[level]
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    of_teacher = numerics.gradient(
        lambda x: losses.review_kd(replaced(teacher, level, x), student), teacher[level]
    )
    np.testing.assert_array_equal(of_teacher, 0.0)


@pytest.mark.parametrize(
    "size, weights",
    [(1, []), (2, [0.5]), (4, [0.5, 0.25]), (5, [0.5, 0.25, 0.125]), (8, [0.5, 0.25, 0.125])],
)
def test_by_hand(size, weights):
    """Of a constant difference of 3 each average is 9; of a checkerboard all pooled ones are 0."""
    zeros = np.zeros((1, size, size, 2))
    np.testing.assert_allclose(losses.review_kd([zeros], [zeros + 3.0]), [9.0], rtol=1e-6)
    if size in (4, 8):
        board = np.indices((size, size)).sum(axis=0) % 2 * 2.0 - 1.0
        # At 4 of 4 positions no average is taken; at 4 of 8, of two by two.
        value = losses.review_kd([zeros], [zeros + board[None, :, :, None]])
        np.testing.assert_allclose(value, [1.0 / (1.0 + sum(weights))], rtol=1e-6)


def test_the_pooled_sizes_are_below_both_height_and_width():
    """Of 8 x 2 the averages over 1 x 1 alone, of weight 1/2."""
    difference = np.arange(16.0).reshape(1, 8, 2, 1)
    mean = difference.mean()
    expected = ((difference**2).mean() + 0.5 * mean**2) / 1.5
    for maps in (difference, np.swapaxes(difference, 1, 2)):
        value = losses.review_kd([np.zeros_like(maps)], [maps])
        np.testing.assert_allclose(value, [expected], rtol=1e-6)


def test_vectors_are_maps_of_one_position_and_levels_are_summed():
    teacher, student = data(LEVELS["alike"])
    together = numerics.values(losses.review_kd, teacher, student)
    each = [numerics.values(losses.review_kd, t, s) for t, s in zip(teacher, student)]
    np.testing.assert_allclose(together, sum(each), rtol=1e-9)
    np.testing.assert_allclose(each[2], ((student[2] - teacher[2]) ** 2).mean(axis=1), rtol=1e-6)
    as_map = student[2][:, None, None, :]
    np.testing.assert_array_equal(
        numerics.values(losses.review_kd, [teacher[2]], [as_map]), each[2]
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3))
def test_equal_features_are_the_least(seed, scale):
    """0 there, with a gradient of 0; a common factor of both comes squared."""
    teacher, student = data(LEVELS["alike"], seed=seed)
    np.testing.assert_array_equal(numerics.values(losses.review_kd, teacher, teacher), 0.0)
    gradient = numerics.gradient(
        lambda x: losses.review_kd(teacher, replaced(teacher, 0, x)), teacher[0]
    )
    np.testing.assert_array_equal(gradient, 0.0)
    values = numerics.values(losses.review_kd, teacher, student)
    scaled = [[scale * x for x in network] for network in (teacher, student)]
    assert values.min() > 0.0
    np.testing.assert_allclose(
        numerics.values(losses.review_kd, *scaled), scale**2 * values, rtol=1e-6
    )


# The fusions.


@pytest.mark.parametrize("mid_channels", [None, 3])
@pytest.mark.parametrize("name", FITTED_NAMES)
def test_the_class_fuses_the_levels(name, mid_channels):
    """From deep to shallow, in the batch's own statistics."""
    loss, teacher, student = built(name, mid_channels=mid_channels)
    weights = weights_of(loss)
    values = numerics.values(loss.call, teacher, student)
    np.testing.assert_allclose(values, expected_of(weights, teacher, student), rtol=5e-6)
    middle = mid_channels or student[-1].shape[-1]
    for fusion, t, s in zip(loss.fusions, teacher, student, strict=True):
        assert tuple(fusion.reduce.kernel.shape) == (1, 1, s.shape[-1], middle)
        assert tuple(fusion.expand.kernel.shape) == (3, 3, middle, t.shape[-1])
    assert loss.fusions[-1].attention is None
    assert all(tuple(f.attention.kernel.shape)[2:] == (2 * middle, 2) for f in loss.fusions[:-1])
    assert len(loss.trainable_variables) == 8 * len(teacher) - 2


@pytest.mark.parametrize("name", FITTED_NAMES)
def test_the_class_has_the_gradients_of_the_equations(name):
    """Each level by itself: the deepest one reaches the value through all fusions."""
    loss, teacher, student = built(name)
    weights = weights_of(loss)
    factors = np.array([0.5, 1.0, 2.0])
    for level in range(len(student)):
        gradient = numerics.gradient(
            lambda x, level=level: stateless(loss, teacher, replaced(student, level, x)),
            student[level],
            factors,
        )
        expected = finite_differences.gradient(
            lambda x, level=level: (
                factors * expected_of(weights, teacher, replaced(student, level, x))
            ).sum(),
            student[level],
        )
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    of_teacher = numerics.gradient(
        lambda x: stateless(loss, replaced(teacher, 0, x), student), teacher[0]
    )
    np.testing.assert_array_equal(of_teacher, 0.0)


def test_batch_statistics_move_in_training_alone():
    loss, teacher, student = built("alike")
    norm = loss.fusions[0].reduce_norm
    start = numerics.to_numpy(norm.moving_mean)
    value = numerics.values(loss.call, teacher, student, training=False)
    np.testing.assert_array_equal(numerics.to_numpy(norm.moving_mean), start)
    trained = numerics.values(loss.call, teacher, student, training=True)
    maps = student[0] @ numerics.to_numpy(loss.fusions[0].reduce.kernel)[0, 0]
    expected = 0.1 * maps.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(numerics.to_numpy(norm.moving_mean), expected, rtol=1e-5, atol=1e-7)
    assert np.abs(value - trained).max() > 1e-3


def test_mid_channels_default_to_the_last_level_512_at_most():
    loss = losses.ReviewKD()
    loss.build_for([(None, 2, 2, 3), (None, 4)], [(None, 2, 2, 3), (None, 600)])
    assert loss.fusions[0].mid_channels == 512
    assert tuple(loss.fusions[1].expand.kernel.shape) == (3, 3, 512, 4)


def test_weights_start_as_those_of_the_code():
    """kaiming_uniform_(a=1): sqrt(3 / fan_in); of the attention PyTorch's default."""
    fusion = AttentionFusion(60, 40, 30, (2, 2))
    attention, bias = (numerics.to_numpy(w) for w in fusion.attention.weights)
    for kernel, bound in (
        (numerics.to_numpy(fusion.reduce.kernel), (3 / 60) ** 0.5),
        (numerics.to_numpy(fusion.expand.kernel), (3 / 360) ** 0.5),
        (attention, 80**-0.5),
    ):
        assert 0.9 * bound < np.abs(kernel).max() <= bound
        assert abs(kernel.mean()) < 0.15 * bound
    assert 0.0 < np.abs(bias).max() <= 80**-0.5
    assert fusion.reduce.bias is None and fusion.expand.bias is None
    assert (fusion.reduce_norm.epsilon, fusion.reduce_norm.momentum) == (1e-5, 0.9)
    restored = AttentionFusion.from_config(fusion.get_config())
    assert [v.shape for v in restored.variables] == [v.shape for v in fusion.variables]


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_maps_of_one_value_and_single_samples_are_finite(value):
    teacher, student = data(FITTED["alike"], batch=1, dtype="float32")
    constant = [np.full_like(x, value) for x in student]
    loss = losses.ReviewKD()
    for features in (student, constant):
        values = numerics.to_numpy(loss(teacher, features))
        numerics.assert_finite(values)
        assert values > 0.0
        for level in range(1 if FEW else 3):
            numerics.assert_finite(
                numerics.gradient(
                    lambda x, level=level, features=features: stateless(
                        loss, teacher, replaced(features, level, x)
                    ),
                    features[level],
                )
            )


# Errors.


def test_features_that_do_not_fit_are_named():
    maps, vector = np.ones((2, 4, 4, 3)), np.ones((2, 3))
    received = r"teacher_features\.shape=\[\(2, 4, 4, 3\)\], student_features\.shape=\[\(2, 4, 4, 2"
    with pytest.raises(ValueError, match=f"levels with as many channels.*Received: {received}"):
        losses.review_kd([maps], [maps[..., :2]])
    with pytest.raises(ValueError, match=r"as many maps from teacher and student.*Received: "):
        losses.review_kd([maps, maps], [maps])
    with pytest.raises(ValueError, match=r"Expected levels of shape.*\[\(2, 4, 4, 3\), \(2, 4, 3"):
        losses.review_kd([maps, maps[:, 0]], [maps, vector])


def test_levels_that_do_not_fit_are_named():
    loss = losses.ReviewKD()
    large, small, vector = (None, 8, 8, 2), (None, 4, 4, 3), (None, 5)
    assert loss.misfit([large, small, vector], [small, small, vector]) is None
    assert loss.misfit(large, small) is None
    assert loss.misfit([large, small], [large]) == "as many features from both"
    assert "or pooled vectors" in loss.misfit([large, (None, 7, 3)], [large, small])
    assert "known height and width" in loss.misfit([(None, None, 8, 2)], [large])
    for wrong in ([small, large], [vector, small]):
        assert "from shallow to deep" in loss.misfit([large, small], wrong)


@pytest.mark.parametrize("mid_channels", [0, -1, 2.0, "8"])
def test_bad_arguments_are_named(mid_channels):
    with pytest.raises(ValueError, match="`mid_channels` to be a positive whole.*mid_channels="):
        losses.ReviewKD(mid_channels=mid_channels)
    assert losses.ReviewKD(mid_channels=8).get_config()["mid_channels"] == 8
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(losses.ReviewKD(8))
    )
    assert type(restored) is losses.ReviewKD and restored.mid_channels == 8
