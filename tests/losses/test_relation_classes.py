"""The classes of the relation losses: reductions, configs, replicas, errors."""

import inspect

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import losses
from keras_distill.losses._relation import RelationLoss
from tests.contract import network
from tests.contract import samples
from tests.losses import numerics
from tests.losses.relation_cases import CASES
from tests.losses.relation_cases import DISTINCT
from tests.losses.relation_cases import data
from tests.losses.relation_cases import each

VECTORS_ONLY = [case for case in CASES if not case.takes_maps]
# Running on replicas takes seconds: each loss once, and what gathers something of its own.
GATHERED = DISTINCT + [
    case
    for case in CASES
    if case.kwargs in ({"mode": "neighbors"}, {"mode": "paper", "supervised_weight": 2.0})
]


@pytest.mark.slow
@pytest.mark.parametrize("case", each())
def test_reductions_and_weights_are_those_of_keras(case):
    teacher, student = data(5, 4, 4, dtype="float32")
    values = numerics.to_numpy(case.call(teacher, student))
    targets = case.targets(teacher)
    assert float(case.loss()(targets, student)) == pytest.approx(values.mean(), rel=1e-5)
    total = case.loss(reduction="sum")(targets, student)
    assert float(total) == pytest.approx(values.sum(), rel=1e-5)
    weight = np.array([0.0, 1.0, 0.5, 2.0, 3.0], "float32")
    weighted = case.loss()(targets, student, sample_weight=weight)
    assert float(weighted) == pytest.approx((weight * values).mean(), rel=1e-5)


@pytest.mark.parametrize("case", each())
def test_config_round_trip(case):
    loss = case.loss(name="my_loss", reduction="sum", gather=True)
    config = loss.get_config()
    arguments = set(inspect.signature(case.cls.__init__).parameters) - {"self", "kwargs"}
    assert arguments | {"name", "reduction"} == set(config)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(restored) is case.cls and restored.get_config() == config
    teacher, student = data(5, 4, 4, dtype="float32")
    targets = case.targets(teacher)
    assert float(restored(targets, student)) == float(loss(targets, student))


@pytest.mark.parametrize("case", each())
def test_what_a_loss_tells_the_wrapper(case):
    loss = case.loss()
    assert loss.name == case.name
    assert not loss.on_logits and not loss.shift_invariant and not loss.needs_ids
    assert loss.needs_labels == case.needs_labels


def test_every_public_relation_loss_is_among_the_cases():
    public = [getattr(losses, name) for name in losses.__all__]
    classes = {cls for cls in public if inspect.isclass(cls) and issubclass(cls, RelationLoss)}
    assert classes - {losses.InstanceGraph} == {case.cls for case in CASES}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", each(DISTINCT))
def test_called_with_half_precision_it_computes_in_float32(case, dtype):
    teacher, student = (keras.ops.cast(x.astype("float32"), dtype) for x in data(5, 4, 4))
    result = case.loss()(case.targets(teacher), student)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    expected = case.call(*(keras.ops.cast(x, "float32") for x in (teacher, student)))
    assert float(result) == pytest.approx(float(keras.ops.mean(expected)), rel=1e-6)


def gradient_on(strategy, case, gather, batch=6):
    """The gradient of a variable of the student's features, summed over the replicas."""
    import tensorflow as tf

    teacher, student = data(batch, 5, 4 if case.takes_other_sizes else 5, dtype="float32")
    labels = (np.arange(batch) % 2).astype("int32")
    with strategy.scope():
        variable = tf.Variable(np.linspace(0.5, 1.5, student.shape[1]).astype("float32"))
    loss = case.loss(gather=gather)
    dataset = tf.data.Dataset.from_tensor_slices((teacher, student, labels)).batch(batch)
    element = next(iter(strategy.experimental_distribute_dataset(dataset)))

    def step(element):
        teacher, student, labels = element
        targets = (teacher, labels) if case.needs_labels else teacher
        with tf.GradientTape() as tape:
            value = loss(targets, student * variable)
        return value, tape.gradient(value, variable)

    results = tf.function(lambda element: strategy.run(step, (element,)))(element)
    return [strategy.reduce("SUM", result, axis=None).numpy() for result in results]


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("case", each(GATHERED))
def test_gathered_two_replicas_are_one_device(case, two_replicas):
    """Value and gradient, with `gather=True`; one number of a batch shared unevenly too."""
    import tensorflow as tf

    batch = 9 if case.one_number else 8
    alone = gradient_on(tf.distribute.OneDeviceStrategy("CPU:0"), case, True, batch)
    together = gradient_on(two_replicas, case, True, batch)
    assert two_replicas.num_replicas_in_sync == 2
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together[1], alone[1], rtol=1e-4, atol=1e-5)
    assert np.abs(alone[1]).max() > 1e-4


@pytest.mark.tensorflow
@pytest.mark.parametrize("case", each([DISTINCT[0], DISTINCT[-1]]))
def test_by_default_each_replica_relates_its_own_batch(case, two_replicas):
    teacher, student = data(8, 5, 4, dtype="float32")
    value, _ = gradient_on(two_replicas, case, False, batch=8)
    halves = [
        numerics.to_numpy(case.call(teacher[part], student[part] * np.linspace(0.5, 1.5, 4)))
        for part in (slice(4), slice(4, 8))
    ]
    assert value == pytest.approx(np.mean(halves), rel=1e-4)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_gathered_terms_of_a_distiller_train_as_on_one_device(two_replicas):
    """`fit` itself, with labels for the one that asks for them."""
    import tensorflow as tf

    def weights_after(strategy):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            terms = [
                kd.Term(loss, "pool", "pool", weight=10.0)
                for loss in (
                    losses.ProbabilisticTransfer(supervised_weight=0.5, gather=True),
                    losses.RelationalAngle(gather=True),
                    losses.KernelAlignment(gather=True),
                )
            ]
            teacher = network("teacher", 5, batch_norm=False)
            model = kd.Distiller(teacher, network("student", batch_norm=False), terms)
            model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        before = [v.numpy() for v in model.student.trainable_variables]
        model.fit(*samples(24), batch_size=8, epochs=1, shuffle=False, verbose=0)
        return before, [v.numpy() for v in model.student.trainable_variables]

    before, alone = weights_after(tf.distribute.get_strategy())
    _, together = weights_after(two_replicas)
    for start, one, both in zip(before, alone, together):
        assert np.abs(one - start).max() > 1e-4
        np.testing.assert_allclose(both, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", each())
def test_features_of_wrong_shapes_are_named(case):
    loss = case.loss()

    def call(teacher_shape, student_shape):
        labels = np.zeros(teacher_shape[0], "int32")
        targets = np.ones(teacher_shape, "float32")
        targets = (targets, labels) if case.needs_labels else targets
        loss(targets, np.ones(student_shape, "float32"))

    shapes = r"teacher_features\.shape=\(4, 5\), student_features\.shape=\(8, 5\)"
    with pytest.raises(ValueError, match=rf"of the same batch\. Received: {shapes}"):
        call((4, 5), (8, 5))
    with pytest.raises(ValueError, match=r"features of shape \(batch, .*features\).*\(4,\)"):
        call((4,), (4,))


@pytest.mark.parametrize("case", each(VECTORS_ONLY))
def test_maps_where_vectors_are_asked(case):
    received = r"teacher_features\.shape=\(4, 5\), student_features\.shape=\(4, 2, 2, 5\)"
    teacher, student = np.ones((4, 5), "float32"), np.ones((4, 2, 2, 5), "float32")
    with pytest.raises(ValueError, match=rf"\(batch, features\)\. Received: {received}.*pool"):
        case.loss()(case.targets(teacher), student)


def test_neighbors_need_equal_sizes():
    received = r"teacher_features\.shape=\(4, 5\), student_features\.shape=\(4, 3\)"
    loss = losses.CorrelationCongruence(mode="neighbors")
    with pytest.raises(ValueError, match=rf'same shape\. Received: {received}.*connector="auto"'):
        loss(np.ones((4, 5), "float32"), np.ones((4, 3), "float32"))


BAD_ARGUMENTS = [
    (losses.ProbabilisticTransfer, {"mode": "sum"}, "mode='sum'"),
    (losses.ProbabilisticTransfer, {"supervised_weight": -1}, "supervised_weight=-1"),
    (losses.RelationalDistance, {"normalize": 1}, "normalize=1"),
    (losses.RelationalAngle, {"gather": "yes"}, "gather='yes'"),
    (losses.CorrelationCongruence, {"gamma": 0}, "gamma=0"),
    (losses.CorrelationCongruence, {"order": 1.5}, "order=1.5"),
    (losses.CorrelationCongruence, {"mode": "author"}, "mode='author'"),
    (losses.CorrelationCongruence, {"kernel": "rbf"}, "kernel='rbf'"),
    (losses.RepresentationalSimilarity, {"distance": "l2"}, "distance='l2'"),
    (losses.RepresentationalSimilarity, {"compare": "rank"}, "compare='rank'"),
    (losses.KernelAlignment, {"kernel": "gaussian"}, "kernel='gaussian'"),
    (losses.KernelAlignment, {"bandwidth": 0.0}, "bandwidth=0.0"),
    (losses.KernelAlignment, {"unbiased": None}, "unbiased=None"),
    (losses.InstanceGraph, {"edge_weight": -1.0}, "edge_weight=-1.0"),
]


@pytest.mark.parametrize("cls, kwargs, received", BAD_ARGUMENTS, ids=str)
def test_bad_arguments_are_named_at_construction(cls, kwargs, received):
    with pytest.raises((ValueError, TypeError), match=received) as error:
        cls(**kwargs)
    assert str(error.value).startswith("Expected `")
