"""MutualLearner, one student after the other: Algorithm 1, batch statistics, dropout."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.models import cohorts
from tests.models import nets
from tests.models.test_mutual import assert_as_expected
from tests.models.test_mutual import one_step

pytestmark = pytest.mark.tensorflow


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("peers", ["each", "mean"])
def test_one_step_equals_numpy(count, peers):
    options = {"peers": peers, "temperature": 2.0, "weight": 0.7, "update": "sequential"}
    assert_as_expected(*one_step(count, **options), weight=0.7)


def test_sample_weights_and_the_sum_over_peers():
    weights = np.linspace(0.0, 2.0, 12).astype("float32")
    options = {"sample_weight": weights, "reduce": "sum", "update": "sequential"}
    assert_as_expected(*one_step(3, **options))


def test_the_orders_differ_but_for_the_first_student():
    x, y = nets.vectors(12), nets.class_ids(12)
    students = cohorts.linears(3)
    twins = [nets.copy_of(student) for student in students]
    cohorts.compiled(students).train_on_batch(x, y)
    cohorts.compiled(twins, update="sequential").train_on_batch(x, y)
    nets.assert_same_weights(students[0], twins[0], rtol=1e-6)
    assert nets.difference(students[1], twins[1]) > 1e-4
    assert nets.difference(students[2], twins[2]) > 1e-4


def fit_both(students, x, y, optimizer, **options):
    """The same students trained in both orders; `(cohort, logs)` of each."""
    runs = []
    for update in ("simultaneous", "sequential"):
        twins = [nets.copy_of(student, student.name) for student in students]
        cohort = cohorts.compiled(twins, optimizer(), update=update, **options)
        runs.append((cohort, cohorts.fit(cohort, x, y)))
    return runs


def test_a_step_of_length_zero_equals_the_simultaneous_one():
    """Batch statistics move once a step, activity losses count once, nothing else moves."""
    x, y = nets.images(12), nets.class_ids(12)
    students = cohorts.cnns(regularized=True)
    before = [nets.array(student.get_layer("bn1").moving_mean) for student in students]
    (one, logs), (other, logs_of_other) = fit_both(students, x, y, lambda: nets.sgd(0.0))
    for a, b in zip(cohorts.states(one), cohorts.states(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    for k, student in enumerate(other.students):
        assert np.abs(nets.array(student.get_layer("bn1").moving_mean) - before[k]).max() > 1e-3
    for name in logs:
        np.testing.assert_allclose(logs[name], logs_of_other[name], rtol=1e-5)


def test_the_second_forward_uses_batch_statistics():
    """The next student is drawn to what the stepped one predicts in training mode."""
    x, y = nets.images(8), nets.class_ids(8)
    a, b = cohorts.cnns()
    first = nets.copy_of(a)
    cohort = cohorts.compiled([a, b], [nets.sgd(0.5), nets.sgd(0.0)], update="sequential")
    own = nets.predict(nets.copy_of(b), x, training=True)
    logs = cohort.train_on_batch(x, y, return_dict=True)
    stepped = nets.copy_of(a)
    expected = nets.kd(nets.predict(stepped, x, training=True), own, 1.0).mean()
    np.testing.assert_allclose(logs["b_mimicry"], expected, rtol=1e-3)
    still = nets.kd(nets.predict(first, x, training=True), own, 1.0).mean()
    inference = nets.kd(nets.predict(nets.copy_of(a), x, training=False), own, 1.0).mean()
    assert abs(logs["b_mimicry"] - still) > 0.01 * still
    assert abs(logs["b_mimicry"] - inference) > 0.01 * inference


@pytest.mark.slow
def test_each_forward_draws_dropout_of_its_own():
    """Keras draws from a state that moves on by one a draw: twice but for the last student."""
    x, y = nets.images(12), nets.class_ids(12)
    students = [nets.cnn(4, name, dropout=0.5, seed=k) for k, name in enumerate("abc")]
    before = [nets.array(s.get_layer("dropout").seed_generator.state) for s in students]
    runs = fit_both(students, x, y, lambda: nets.sgd(0.1))
    draws = [
        [
            int(nets.array(s.get_layer("dropout").seed_generator.state)[1]) - int(old[1])
            for s, old in zip(cohort.students, before)
        ]
        for cohort, _ in runs
    ]
    assert draws == [[3, 3, 3], [6, 6, 3]]


def test_forwards_of_a_step():
    """K forwards, and one more for each student that has stepped but the last: 2K - 1."""
    calls = []

    @keras.saving.register_keras_serializable(package="tests")
    class Counted(keras.layers.Layer):
        def call(self, inputs, training=None):
            if training:
                calls.append(self.name)
            return inputs

    def student(name):
        inputs = keras.Input((nets.FEATURES,))
        hidden = Counted(name=name)(inputs)
        return keras.Model(inputs, keras.layers.Dense(nets.CLASSES)(hidden), name=f"net_{name}")

    eager = {"run_eagerly": True}
    for update, expected in (("simultaneous", "abc"), ("sequential", "abcab")):
        students = [student(name) for name in "abc"]
        cohort = cohorts.compiled(students, compile_options=eager, update=update)
        x, y = nets.vectors(4), nets.class_ids(4)
        cohort.train_on_batch(x, y)
        calls.clear()
        cohort.train_on_batch(x, y)
        assert "".join(calls) == expected


def test_accumulated_gradients_would_lose_the_order():
    cohort = kd.MutualLearner(cohorts.linears(2), update="sequential")
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="step at every batch with update='sequential'"):
        cohort.compile(optimizer, nets.cross_entropy())


@pytest.mark.slow
def test_a_frozen_student_teaches():
    students = cohorts.linears(3)
    students[1].trainable = False
    before = nets.snapshot(students[1])
    cohort = cohorts.compiled(students, nets.sgd(0.1), update="sequential", weight=10.0)
    history = cohorts.fit(cohort, nets.vectors(), nets.class_ids(), epochs=5)
    nets.assert_untouched(students[1], before)
    assert history["net_2_mimicry"][-1] < 0.5 * history["net_2_mimicry"][0]
