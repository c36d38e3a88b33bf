"""The mimicry loss as a function: against pair after pair, and at the ends of float32."""

import numpy as np
import pytest
from keras import ops

from keras_distill.models import mimicry
from tests.models import nets
from tests.oracles import mutual as oracle


def logits(count, rows=7, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    return [scale * rng.normal(size=(rows, nets.CLASSES)).astype("float32") for _ in range(count)]


def value(scores, k, average=False, total=False, temperature=1.0, activation="softmax"):
    log_probs = [mimicry.log_probabilities(z, activation, temperature) for z in scores]
    peers = [mimicry.as_peer(own) for j, own in enumerate(log_probs) if j != k]
    loss = mimicry.Mimicry(temperature)
    target = mimicry.target_of(peers, average, total)
    return nets.array(loss.call(tuple(target), log_probs[k]))


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("kind", ["each", "mean"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_equals_pair_after_pair(count, kind, reduce):
    scores = logits(count)
    for k in range(count):
        ours = value(scores, k, kind == "mean", reduce == "sum", temperature=2.0)
        log_probs = [nets.log_softmax(np.asarray(z, "float64") / 2.0) for z in scores]
        peers = [np.exp(own) for j, own in enumerate(log_probs) if j != k]
        expected = oracle.mimicry_rows(peers, log_probs[k], 2.0, kind, reduce)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_equal_students_have_nothing_to_mimic():
    same = logits(1) * 5
    np.testing.assert_allclose(value(same, 0), 0.0, atol=1e-6)
    np.testing.assert_allclose(value(same, 0, average=True), 0.0, atol=1e-6)
    np.testing.assert_array_equal(value(same[:2], 1), 0.0)


def test_saturated_students_stay_finite():
    """Probabilities of 0 in float32, on either side."""
    scores = [np.array([[0.0, -500.0, -500.0]]), np.array([[-500.0, 0.0, 3.0]]), np.zeros((1, 3))]
    for average in (False, True):
        for k in range(3):
            ours = value(scores, k, average)
            assert np.isfinite(ours).all()
            assert (ours > 0.1).all()
    # The exact value: p is the first class alone, whose log-probability here is -503.05.
    np.testing.assert_allclose(value(scores[:2], 1), 500 + np.log(1 + np.exp(3.0)), rtol=1e-4)


def test_independent_labels_sum_over_the_labels():
    scores = logits(3)
    expected = (
        nets.bernoulli_kd(scores[1], scores[0], 2.0) + nets.bernoulli_kd(scores[2], scores[0], 2.0)
    ) / 2
    ours = value(scores, 0, temperature=2.0, activation="sigmoid")
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("as_probabilities", [True, False])
def test_ensemble_is_the_mean_probability(activation, as_probabilities):
    scores = logits(3)
    log_probs = [mimicry.log_probabilities(z, activation) for z in scores]
    ours = nets.array(mimicry.ensemble_scores(log_probs, activation, as_probabilities))
    function = nets.softmax if activation == "softmax" else nets.sigmoid
    mean = np.mean([function(z) for z in scores], axis=0)
    np.testing.assert_allclose(ours if as_probabilities else function(ours), mean, rtol=1e-5)


def test_half_precision_is_computed_in_float32():
    half = [ops.cast(z, "float16") for z in logits(2)]
    ours = value(half, 0)
    assert ours.dtype == "float32"
    expected = nets.kd(nets.array(half[1]), nets.array(half[0]), 1.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
