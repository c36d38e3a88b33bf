"""Supervised PKT where some samples are unlabelled (-1): related to themselves alone."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import losses
from tests.losses import numerics
from tests.losses.relation_cases import data
from tests.oracles import finite_differences
from tests.oracles import relation as oracles

MODES = ("code", "paper")
SOME = np.array([0, -1, 0, 2, -1, 1])
FORMS = {
    "none": np.array([0, 1, 0, 2, 2, 1]),
    "some": SOME,
    "one": np.array([0, 0, 1, 1, 2, -1]),
    "all but one": np.array([-1, -1, 0, -1, -1, -1]),
    "all": np.full(6, -1),
}


def both(labels, mode="code", weight=2.0):
    """The loss and the equations, as functions of teacher and student."""
    options = {"mode": mode, "supervised_weight": weight}
    return (
        lambda t, s: losses.probabilistic_transfer(t, s, labels, **options),
        lambda t, s: oracles.probabilistic_transfer(t, s, labels, **options),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("labels", FORMS.values(), ids=FORMS.keys())
def test_value_and_gradient_are_the_equations(labels, mode):
    teacher, student = data(6, 5, 4, seed=2)
    ours, expected = both(labels, mode)
    values = numerics.values(ours, teacher, student)
    np.testing.assert_allclose(values, expected(teacher, student), numerics.RTOL, atol=1e-14)
    weights = np.linspace(0.5, 2.0, 6)
    gradient = numerics.gradient(lambda x: ours(teacher, x), student, weights)
    by_differences = finite_differences.gradient(
        lambda x: np.sum(weights * expected(teacher, x)), student
    )
    np.testing.assert_allclose(gradient, by_differences, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_unlabelled_samples_are_each_a_class_of_their_own(mode):
    """Not one class together, and not class 0: as if each had a label that no other has."""
    teacher, student = data(6)
    values = numerics.values(both(SOME, mode)[0], teacher, student)
    distinct = np.array([0, 7, 0, 2, 8, 1])
    np.testing.assert_array_equal(
        values, numerics.values(both(distinct, mode)[0], teacher, student)
    )
    for wrong in (np.maximum(SOME, 0), np.where(SOME < 0, 9, SOME)):
        others = numerics.values(both(wrong, mode)[0], teacher, student)
        assert np.abs(others - values).max() > 1e-3


def test_by_hand():
    """Three equal features, so that every share of the student's is 1/3."""
    features = np.ones((3, 2))
    values = numerics.values(both(np.array([0, -1, 0]), weight=1.0)[0], features, features)
    # Rows 0 and 2: (1/2, 0, 1/2); row 1: itself alone. The unsupervised part is 0.
    expected = np.array([np.log(3 / 2), np.log(3.0), np.log(3 / 2)]) / 3
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_in_the_paper_form_nothing_is_left_of_an_unlabelled_row():
    """Without the pair of a sample with itself its row is empty: the unsupervised part alone."""
    teacher, student = data(6)
    plain = losses.probabilistic_transfer(teacher, student, mode="paper")
    values = losses.probabilistic_transfer(teacher, student, SOME, "paper", 5.0)
    alone = np.array([False, True, False, True, True, True])  # 2 and 1 have no partner either
    plain, values = numerics.to_numpy(plain), numerics.to_numpy(values)
    np.testing.assert_allclose(values[alone], plain[alone], rtol=1e-6)
    assert np.abs(values - plain)[~alone].min() > 1e-3


@pytest.mark.parametrize("form", ["int8", "int64", "float32", "column"])
def test_labels_of_every_form(form):
    teacher, student = data(6, dtype="float32")
    labels = SOME[:, None] if form == "column" else SOME.astype(form)
    ours, expected = both(labels)[0], both(SOME)[1]
    values = numerics.to_numpy(ours(teacher, student))
    np.testing.assert_allclose(values, expected(teacher, student), rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_and_degenerate_features_are_finite(dtype):
    for student in (np.zeros((6, 4)), np.ones((6, 4)), np.repeat(data(1)[0], 6, axis=0)):
        teacher = keras.ops.cast(data(6)[0].astype("float32"), dtype)
        student = keras.ops.cast(student.astype("float32"), dtype)
        for mode in MODES:
            ours = both(SOME, mode)[0]
            values = ours(teacher, student)
            assert keras.backend.standardize_dtype(values.dtype) == "float32"
            gradient = numerics.slope(lambda x, t=teacher, f=ours: f(t, x), student)
            numerics.assert_finite(*map(numerics.to_numpy, (values, gradient)))


def test_compiled():
    teacher, student = (keras.ops.convert_to_tensor(x) for x in data(6, dtype="float32"))
    ours, expected = both(SOME)
    values = numerics.to_numpy(numerics.compiled(ours)(teacher, student))
    want = expected(numerics.to_numpy(teacher), numerics.to_numpy(student))
    np.testing.assert_allclose(values, want, rtol=1e-4)


# In a wrapper.


def network(seed, width=5):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(width, "tanh", name="pool")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(hidden))


def distiller(weight=0.5, gather=False):
    loss = losses.ProbabilisticTransfer(supervised_weight=weight, gather=gather)
    model = kd.Distiller(network(0), network(1, 6), kd.Term(loss, "pool", "pool", weight=3.0))
    model.compile(
        keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model


def pooled(model, x):
    return numerics.to_numpy(kd.tap(model, "pool")(x)["features"]["pool"]).astype("float64")


INPUTS = np.random.default_rng(5).standard_normal((6, 4)).astype("float32")


@pytest.mark.parametrize("as_column", [False, True])
def test_a_term_gets_the_unlabelled_as_such(as_column):
    """The labelled rows alone count, and in them an unlabelled sample is of no class."""
    model = distiller()
    features = pooled(model.teacher, INPUTS), pooled(model.student, INPUTS)
    expected = oracles.probabilistic_transfer(*features, SOME, supervised_weight=0.5)
    labels = SOME[:, None] if as_column else SOME
    logs = model.train_on_batch(INPUTS, labels, return_dict=True)
    np.testing.assert_allclose(
        logs["probabilistic_transfer"], np.sum(expected[SOME >= 0]) / 6, rtol=1e-4
    )
    assert np.isfinite(logs["loss"])


def test_a_batch_without_labels_leaves_the_student_alone():
    model = distiller()
    before = model.student.get_weights()
    logs = model.train_on_batch(INPUTS, np.full(6, -1), return_dict=True)
    assert logs["loss"] == logs["probabilistic_transfer"] == 0.0
    for one, other in zip(before, model.student.get_weights()):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_gathered_replicas_are_one_device(two_replicas):
    """Samples of one class, and unlabelled ones, on both replicas."""
    import tensorflow as tf

    labels = np.array([0, -1, 1, 0, -1, 1, 0, -1])
    inputs = np.random.default_rng(6).standard_normal((8, 4)).astype("float32")

    def weights_after(strategy):
        with strategy.scope():
            model = distiller(weight=2.0, gather=True)
        model.fit(inputs, labels, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return [v.numpy() for v in model.student.trainable_variables]

    alone = weights_after(tf.distribute.get_strategy())
    start = [v.numpy() for v in network(1, 6).trainable_variables]
    for one, both_, first in zip(alone, weights_after(two_replicas), start):
        np.testing.assert_allclose(both_, one, rtol=1e-4, atol=1e-6)
        assert np.abs(one - first).max() > 1e-3
