"""RKD: by hand, duplicates, and what is held in memory."""

import keras
import numpy as np
import pytest

from keras_distill import losses
from keras_distill.losses import _anchors
from tests.losses import numerics
from tests.losses.relation_cases import data
from tests.oracles import relation as oracles

FUNCTIONS = [losses.relational_distance, losses.relational_angle]


def test_distances_by_hand():
    """Three points on a line: 1, 2 and 3 apart against 1, 1 and 2."""
    teacher, student = np.array([[0.0], [1.0], [3.0]]), np.array([[0.0], [1.0], [2.0]])
    relative = [np.array([1.0, 3.0, 2.0]) / 2.0, np.array([1.0, 2.0, 1.0]) / (4.0 / 3.0)]
    gaps = 0.5 * (relative[1] - relative[0]) ** 2
    by_hand = np.array([gaps[0] + gaps[1], gaps[0] + gaps[2], gaps[1] + gaps[2]]) / 3.0
    values = numerics.values(losses.relational_distance, teacher, student)
    np.testing.assert_allclose(values, by_hand, rtol=max(1e-9, numerics.RTOL))


def test_angles_by_hand():
    """A right angle at the first of three points against a straight line."""
    teacher = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    student = np.array([[0.0], [1.0], [-1.0]])
    root = np.sqrt(0.5)
    # At the first 0 against -1; at the others cos 45 degrees against 1, each twice.
    by_hand = np.array([2 * 0.5, 2 * 0.5 * (1 - root) ** 2, 2 * 0.5 * (1 - root) ** 2]) / 9.0
    values = numerics.values(losses.relational_angle, teacher, student)
    np.testing.assert_allclose(values, by_hand, rtol=1e-9, atol=1e-12)


def test_duplicates_stay_out_of_the_mean_distance():
    """As float32 copies, also far from the origin, where their products differ in rounding."""
    rng = np.random.default_rng(1)
    student = (rng.standard_normal((8, 300)) + 1e3).astype("float32")
    student[4:] = student[:4]
    distances = numerics.to_numpy(_anchors.pairwise_distances(student, student))
    np.testing.assert_array_equal(np.diag(distances), 0.0)
    np.testing.assert_array_equal(np.diag(distances[4:]), 0.0)
    assert np.sum(distances == 0.0) == 16
    teacher = rng.standard_normal((8, 5)).astype("float32")
    values = numerics.to_numpy(losses.relational_distance(teacher, student))
    expected = oracles.relational_distance(teacher, student.astype("float64"))
    np.testing.assert_allclose(values, expected, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 17])
def test_distances_of_more_anchors_than_samples_and_fewer(size):
    """The pull of each pair reaches both its ends, whatever the chunks."""
    anchors, samples = data(size, 3)[0], data(6, 3, seed=4)[0]
    weights = np.random.default_rng(0).uniform(0.5, 1.5, (size, 6))
    gaps = anchors[:, None] - samples[None]
    lengths = np.sqrt(np.sum(gaps**2, axis=-1))
    distances = numerics.values(_anchors.pairwise_distances, anchors, samples)
    np.testing.assert_allclose(distances, lengths, rtol=1e-12)
    pulls = (weights / lengths)[:, :, None] * gaps
    of_anchors = numerics.gradient(
        lambda x: _anchors.pairwise_distances(x, samples), anchors, weights
    )
    of_samples = numerics.gradient(
        lambda x: _anchors.pairwise_distances(anchors, x), samples, weights
    )
    np.testing.assert_allclose(of_anchors, pulls.sum(axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(of_samples, -pulls.sum(axis=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_angles_of_a_larger_batch_are_the_plain_formula(dtype):
    """40 samples, with duplicates, against all triplets at once."""
    teacher, student = data(40, 9, 7, dtype=dtype)
    student[11] = student[30]
    t, s = (oracle_cosines(x.astype("float64")) for x in (teacher, student))
    gaps = np.abs(s - t)
    expected = np.where(gaps < 1, gaps**2 / 2, gaps - 0.5).mean(axis=(1, 2))
    values = numerics.values(losses.relational_angle, teacher, student)
    np.testing.assert_allclose(values, expected, rtol=1e-5 if dtype == "float32" else 1e-6)


def oracle_cosines(x):
    gaps = x[None] - x[:, None]
    lengths = np.linalg.norm(gaps, axis=-1, keepdims=True)
    directions = np.divide(gaps, lengths, out=np.zeros_like(gaps), where=lengths > 0)
    return directions @ np.swapaxes(directions, 1, 2)


def tensors_of(graph):
    """The elements of each tensor of a graph and of the loops in it."""
    for operation in graph.get_operations():
        for output in operation.outputs:
            if output.shape.is_fully_defined():
                yield int(np.prod(output.shape.as_list()))
    for name in graph._functions:
        yield from tensors_of(graph._get_function(name).graph)


@pytest.mark.tensorflow
@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_tensor_of_all_pairs_and_features_or_of_all_triplets(function):
    import tensorflow as tf

    batch, features = 96, 64

    @tf.function
    def both(teacher, student):
        return numerics.slope(lambda x: function(teacher, x), student)

    specification = tf.TensorSpec((batch, features))
    largest = max(tensors_of(both.get_concrete_function(specification, specification).graph))
    # Those of the anchors of one chunk: differences, and the angles between them.
    size = batch if function is losses.relational_angle else features
    assert largest == _anchors.CHUNK * batch * size
    assert largest < batch * batch * features / 7


@pytest.mark.slow
def test_angles_of_a_batch_of_1024():
    """Against the plain formula at a few of its anchors; the gradient is finite."""
    teacher, student = data(1024, 32, 16, dtype="float32")
    values = numerics.to_numpy(losses.relational_angle(teacher, student))
    for anchor in (0, 511, 1023):
        gaps = oracles.cosines_at(student, anchor) - oracles.cosines_at(teacher, anchor)
        gaps = np.abs(gaps)
        expected = np.where(gaps < 1, gaps**2 / 2, gaps - 0.5).mean()
        assert values[anchor] == pytest.approx(expected, rel=1e-4)
    gradient = numerics.gradient(lambda x: losses.relational_angle(teacher, x), student)
    numerics.assert_finite(gradient)
    assert np.abs(gradient).max() > 0


def test_twins_are_the_functions():
    teacher, student = data(5, dtype="float32")
    for cls, function in zip((losses.RelationalDistance, losses.RelationalAngle), FUNCTIONS):
        for normalize in (False, True):
            value = float(cls(normalize=normalize)(teacher, student))
            expected = float(keras.ops.mean(function(teacher, student, normalize)))
            assert value == pytest.approx(expected, rel=1e-6)
