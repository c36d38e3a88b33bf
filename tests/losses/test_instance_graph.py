"""IRG: four tensors of each network."""

import keras
import numpy as np
import pytest

from keras_distill import losses
from tests.losses import numerics
from tests.oracles import finite_differences
from tests.oracles import relation as oracles

# Each network: the earlier and the later map's (height, width, channels), and the vector's size.
PAIRS = {
    "alike": [((4, 4, 2), (2, 2, 4), 5)] * 2,
    "8 to 5 and not square": [((8, 3, 2), (5, 2, 2), 4), ((4, 4, 3), (4, 4, 6), 3)],
    "other sizes": [((6, 6, 2), (3, 3, 4), 4), ((4, 2, 3), (2, 2, 3), 6)],
}


def features(sizes, batch=4, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    earlier, later, vector = sizes
    shapes = [(batch, *earlier), (batch, *later), (batch, vector), (batch, 3)]
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def pair(name="alike", batch=4, dtype="float64"):
    teacher, student = PAIRS[name]
    return features(teacher, batch, 0, dtype), features(student, batch, 1, dtype)


@pytest.mark.parametrize("name", PAIRS)
def test_value_is_the_equations(name):
    teacher, student = pair(name)
    values = numerics.values(losses.instance_graph, teacher, student)
    expected = oracles.instance_graph(teacher, student)
    assert values.shape == (4,)
    np.testing.assert_allclose(values, expected, rtol=max(1e-7, numerics.RTOL))
    weights = {"vertex_weight": 1.0, "edge_weight": 0.5, "transformation_weight": 0.0}
    values = numerics.values(losses.instance_graph, teacher, student, **weights)
    expected = oracles.instance_graph(teacher, student, **weights)
    np.testing.assert_allclose(values, expected, rtol=max(1e-7, numerics.RTOL))


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("name", PAIRS)
def test_gradient_is_the_equations(name, part):
    """Through the largest distance too."""
    teacher, student = pair(name)
    weights = np.linspace(0.5, 2.0, 4)

    def replaced(x):
        return tuple(x if i == part else other for i, other in enumerate(student))

    gradient = numerics.gradient(
        lambda x: losses.instance_graph(teacher, replaced(x)), student[part], weights
    )
    expected = finite_differences.gradient(
        lambda x: np.sum(weights * oracles.instance_graph(teacher, replaced(x))), student[part]
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    of_teacher = numerics.gradient(
        lambda x: losses.instance_graph(
            tuple(x if i == part else other for i, other in enumerate(teacher)), student
        ),
        teacher[part],
    )
    np.testing.assert_array_equal(of_teacher, 0.0)


def test_zero_at_equal_features_and_any_order():
    teacher, student = pair()
    np.testing.assert_array_equal(numerics.values(losses.instance_graph, teacher, teacher), 0.0)
    order = [2, 0, 3, 1]
    moved = [tuple(x[order] for x in network) for network in (teacher, student)]
    values = numerics.values(losses.instance_graph, teacher, student)
    np.testing.assert_allclose(
        numerics.values(losses.instance_graph, *moved), values[order], rtol=1e-6
    )


def test_finite_where_all_is_equal_or_zero_and_for_one_sample():
    teacher, student = pair(dtype="float32")
    constant = tuple(np.full_like(x, 0.1) for x in student)
    zero = tuple(np.zeros_like(x) for x in student)
    alone = [tuple(x[:1] for x in network) for network in (teacher, student)]
    for one, other in ((teacher, constant), (teacher, zero), (zero, zero), alone):
        values = numerics.to_numpy(losses.instance_graph(one, other))
        numerics.assert_finite(values)
        for part in range(4):
            gradient = numerics.gradient(
                lambda x, one=one, other=other, part=part: losses.instance_graph(
                    one, tuple(x if i == part else y for i, y in enumerate(other))
                ),
                other[part],
            )
            numerics.assert_finite(gradient)
    # One sample has no edges and the largest change: what is left is the logits.
    only = losses.instance_graph(*alone, edge_weight=1.0, vertex_weight=0.0)
    np.testing.assert_allclose(numerics.to_numpy(only), 0.0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    teacher, student = (
        tuple(keras.ops.cast(x, dtype) for x in network) for network in pair(dtype="float32")
    )
    result = losses.InstanceGraph()(teacher, student)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    lifted = [tuple(keras.ops.cast(x, "float32") for x in n) for n in (teacher, student)]
    expected = keras.ops.mean(losses.instance_graph(*lifted))
    assert float(result) == pytest.approx(float(expected), rel=1e-6)


def test_class_restores_and_compiles():
    teacher, student = pair(dtype="float32")
    loss = losses.InstanceGraph(vertex_weight=0.2, gather=True, name="graph")
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert restored.get_config() == loss.get_config() and restored.vertex_weight == 0.2
    tensors = [tuple(keras.ops.convert_to_tensor(x) for x in n) for n in (teacher, student)]
    expected = float(loss(*tensors))
    assert float(restored(*tensors)) == expected
    assert float(numerics.compiled(loss)(*tensors)) == pytest.approx(expected, rel=1e-5)
    weight = np.array([1.0, 0.0, 2.0, 0.5], "float32")
    values = numerics.to_numpy(losses.instance_graph(teacher, student, vertex_weight=0.2))
    weighted = loss(*tensors, sample_weight=weight)
    assert float(weighted) == pytest.approx((weight * values).mean(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_gathered_two_replicas_are_one_device(two_replicas):
    import tensorflow as tf

    teacher, student = pair(batch=8, dtype="float32")

    def run(strategy):
        with strategy.scope():
            variable = tf.Variable([0.7, 1.3])
        loss = losses.InstanceGraph(gather=True)
        dataset = tf.data.Dataset.from_tensor_slices((teacher, student)).batch(8)
        element = next(iter(strategy.experimental_distribute_dataset(dataset)))

        def step(element):
            teacher, (earlier, *others) = element
            with tf.GradientTape() as tape:
                value = loss(tuple(teacher), (earlier * variable, *others))
            return value, tape.gradient(value, variable)

        results = tf.function(lambda element: strategy.run(step, (element,)))(element)
        return [strategy.reduce("SUM", result, axis=None).numpy() for result in results]

    for both, alone in zip(run(two_replicas), run(tf.distribute.OneDeviceStrategy("CPU:0"))):
        np.testing.assert_allclose(both, alone, rtol=1e-5)
        assert np.abs(alone).max() > 1e-3


def test_features_that_do_not_fit_are_named():
    teacher, student = pair(dtype="float32")
    loss = losses.InstanceGraph()
    with pytest.raises(ValueError, match=r"Expected four tensors.*Received: 3.*four paths"):
        loss(teacher[:3], student[:3])
    with pytest.raises(ValueError, match="Expected four tensors.*Received: one tensor"):
        loss(teacher[0], student[0])
    with pytest.raises(ValueError, match="ranks 4, 4, 2 and 2.*student_features of shapes"):
        loss(teacher, (student[2], *student[1:]))
    with pytest.raises(ValueError, match=r"logits of the same shape.*\(4, 3\).*\(4, 2\)"):
        loss(teacher, (*student[:3], student[3][:, :2]))
    with pytest.raises(ValueError, match=r"no larger than the earlier.*\(4, 2, 2, 4\)"):
        loss(teacher, (student[1], student[0], *student[2:]))
    later = np.ones((4, 2, 2, 3), "float32")
    with pytest.raises(ValueError, match=r"as many channels or twice as many.*\(4, 2, 2, 3\)"):
        loss(teacher, (student[0], later, *student[2:]))
