"""Alpha-divergences: limits, clipping, and the adaptive loss's own gradient."""

import numpy as np
import pytest

from keras_distill import losses
from tests.losses import numerics
from tests.losses.response_cases import data
from tests.oracles import response as oracles


def kl(log_p, log_q):
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


def test_limits_are_the_two_divergences():
    teacher, student, _ = data((4, 5))
    log_p, log_q = oracles.log_softmax(teacher), oracles.log_softmax(student)
    forward = numerics.values(losses.alpha_divergence, teacher, student, 1.0)
    reverse = numerics.values(losses.alpha_divergence, teacher, student, 0.0)
    np.testing.assert_allclose(forward, kl(log_p, log_q), numerics.RTOL)
    np.testing.assert_allclose(reverse, kl(log_q, log_p), numerics.RTOL)
    for alpha, limit in ((0.0, reverse), (1.0, forward)):
        # Just outside of 1e-3 the formula itself is near the limit.
        for side in (-2e-3, 2e-3):
            near = numerics.values(losses.alpha_divergence, teacher, student, alpha + side)
            np.testing.assert_allclose(near, limit, rtol=2e-2)
            assert np.all(near != limit)
        inside = numerics.values(losses.alpha_divergence, teacher, student, alpha + 5e-4)
        np.testing.assert_array_equal(inside, limit)


def test_known_members_of_the_family():
    """a = 2 is half of Pearson's chi-square, a = 1/2 four times Hellinger's distance squared."""
    teacher, student, _ = data((4, 5), scale=1.0)
    p, q = oracles.softmax(teacher), oracles.softmax(student)
    chi_square = 0.5 * np.sum((p - q) ** 2 / q, axis=-1)
    hellinger = 2.0 * np.sum((np.sqrt(p) - np.sqrt(q)) ** 2, axis=-1)
    values = numerics.values(losses.alpha_divergence, teacher, student, 2.0)
    np.testing.assert_allclose(values, chi_square, rtol=max(1e-9, numerics.RTOL))
    values = numerics.values(losses.alpha_divergence, teacher, student, 0.5)
    np.testing.assert_allclose(values, hellinger, rtol=max(1e-9, numerics.RTOL))


@pytest.mark.parametrize("alphas", [(-1.0, 2.0), (0.0, 1.0), (-0.5, 1.5)], ids=str)
def test_unclipped_it_is_the_larger_divergence_and_its_gradient(alphas):
    one, other, _ = data((3, 5))
    # D_a(p, q) = D_{1 - a}(q, p): a row and its swapped twin take either branch.
    teacher, student = np.concatenate([one, other]), np.concatenate([other, one])
    lower, upper = (
        numerics.values(losses.alpha_divergence, teacher, student, alpha) for alpha in alphas
    )

    def unclipped(x):
        return losses.adaptive_alpha_divergence(teacher, x, *alphas, clip=1e30)

    values = numerics.values(unclipped, student)
    np.testing.assert_allclose(values, np.maximum(lower, upper), rtol=max(1e-9, numerics.RTOL))
    slopes = [
        numerics.gradient(
            lambda x, alpha=alpha: losses.alpha_divergence(teacher, x, alpha), student
        )
        for alpha in alphas
    ]
    expected = np.where((lower > upper)[:, None], *slopes)
    np.testing.assert_allclose(numerics.gradient(unclipped, student), expected, rtol=1e-6)
    np.testing.assert_array_equal(lower > upper, np.roll(lower < upper, 3))


def test_clipping_binds_and_keeps_a_bounded_pull():
    """The student holds likely what the teacher holds unlikely: (p / q)^-1 is far above 12."""
    teacher, student = np.array([[8.0, 0.0, 0.0]]), np.array([[0.0, 2.0, 0.0]])
    kwargs = {"alpha_min": -1.0, "alpha_max": 0.5, "clip": 12.0}
    clipped = numerics.values(losses.adaptive_alpha_divergence, teacher, student, **kwargs)
    free = numerics.values(losses.alpha_divergence, teacher, student, -1.0)
    q = oracles.softmax(student)[0]
    # Both classes that the teacher holds unlikely are clipped, the first is q / p = q.
    np.testing.assert_allclose(
        clipped, ((q[1] + q[2]) * 11.0 + q[0] * (q[0] - 1.0)) / 2.0, rtol=1e-3
    )
    assert free > 100.0
    gradient = numerics.gradient(
        lambda x: losses.adaptive_alpha_divergence(teacher, x, **kwargs), student
    )
    # S = sum_k constant(q_k (w_k - 1/2)) log q_k, with w = (q_0, 12, 12).
    pull = q * (np.array([q[0], 12.0, 12.0]) - 0.5)
    np.testing.assert_allclose(gradient[0], pull - q * pull.sum(), rtol=1e-3)


def test_alpha_of_one_is_not_clipped():
    teacher, student = np.array([[9.0, 0.0]]), np.array([[-9.0, 0.0]])
    value = numerics.values(losses.adaptive_alpha_divergence, teacher, student, 0.5, 1.0, 5.0)
    forward = oracles.alpha_divergence(teacher, student, 1.0)
    np.testing.assert_allclose(value, forward, numerics.RTOL)
    assert forward > 4.0  # the largest D_0.5


def test_alpha_of_zero_is_zero_and_no_default():
    teacher, student, _ = data((6, 5))
    at_zero = numerics.values(losses.adaptive_alpha_divergence, teacher, student, alpha_min=0.0)
    default = numerics.values(losses.adaptive_alpha_divergence, teacher, student)
    expected = oracles.adaptive_alpha_divergence(teacher, student, alpha_min=0.0)
    np.testing.assert_allclose(at_zero, expected, numerics.RTOL)
    assert np.any(np.abs(at_zero - default) > 1e-3)
    assert losses.AdaptiveAlphaDivergence(alpha_min=0).alpha_min == 0.0


def test_value_is_a_divergence_though_the_surrogate_is_not():
    teacher, student, _ = data((6, 5))
    np.testing.assert_allclose(
        numerics.values(losses.adaptive_alpha_divergence, teacher, teacher), 0.0, atol=1e-12
    )
    gradient = numerics.gradient(lambda x: losses.adaptive_alpha_divergence(teacher, x), teacher)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)
    assert np.all(numerics.values(losses.adaptive_alpha_divergence, teacher, student) > 0.0)


def test_unbounded_divergence_stays_finite():
    teacher = np.array([[1e4, 0.0, 0.0]], dtype="float32")
    student = np.array([[0.0, 1e4, 0.0]], dtype="float32")
    for alpha in (-2.0, -1.0, 2.0, 3.0):
        value = numerics.to_numpy(losses.alpha_divergence(teacher, student, alpha))
        gradient = numerics.gradient(
            lambda x, alpha=alpha: losses.alpha_divergence(teacher, x, alpha), student
        )
        numerics.assert_finite(value, gradient)
        assert value > 1e20
