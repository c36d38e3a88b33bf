"""Decoupled KD: the identities that tell its parts apart."""

import numpy as np

from keras_distill import losses
from tests.losses import numerics
from tests.losses.response_cases import data
from tests.oracles import response as oracles


def parts(teacher, student, labels, temperature):
    """TCKD and NCKD, with T^2."""
    target = numerics.values(losses.decoupled_kd, teacher, student, labels, 1.0, 0.0, temperature)
    rest = numerics.values(losses.decoupled_kd, teacher, student, labels, 0.0, 1.0, temperature)
    return target, rest


def test_plain_distillation_is_the_target_part_and_the_hidden_rest():
    """KD = TCKD + (1 - p_teacher(y)) NCKD, per sample."""
    for temperature in (1.0, 4.0):
        teacher, student, labels = data((6, 5))
        target, rest = parts(teacher, student, labels, temperature)
        probabilities = oracles.softmax(teacher, temperature)
        target_probability = np.take_along_axis(probabilities, labels[:, None], axis=-1)[:, 0]
        plain = numerics.values(losses.soft_targets, teacher, student, temperature)
        np.testing.assert_allclose(
            target + (1.0 - target_probability) * rest, plain, rtol=max(1e-10, numerics.RTOL)
        )


def test_two_classes_have_no_rest():
    teacher, student, labels = data((4, 2), scale=20.0)
    target, rest = parts(teacher, student, labels, 1.0)
    np.testing.assert_array_equal(rest, 0.0)
    assert np.all(target > 0.0)
    gradient = numerics.gradient(
        lambda x: losses.decoupled_kd(teacher, x, labels, alpha=0.0), student
    )
    np.testing.assert_array_equal(gradient, 0.0)


def test_the_rest_of_a_dominant_target_keeps_its_digits():
    """In float32, a target 1e4 above the rest: NCKD compares the rest as if alone."""
    rest_of_teacher, rest_of_student, _ = data((3, 4), dtype="float32")
    dominant = np.full((3, 1), 1e4, dtype="float32")
    teacher = np.concatenate([rest_of_teacher, dominant], axis=-1)
    student = np.concatenate([rest_of_student, dominant], axis=-1)
    labels = np.full((3,), 4)
    _, rest = parts(teacher, student, labels, 1.0)
    expected = oracles.soft_targets(rest_of_teacher, rest_of_student, 1.0)
    np.testing.assert_allclose(rest, expected, rtol=1e-4)


def test_a_student_sure_of_another_class_gets_a_gradient():
    """A log of 1 - p would be the log of 0 here."""
    teacher = np.array([[0.0, 1.0, 2.0]], dtype="float32")
    student = np.array([[200.0, 0.0, 0.0]], dtype="float32")
    for label in range(3):
        labels = np.array([label])
        value = numerics.to_numpy(losses.decoupled_kd(teacher, student, labels, temperature=1.0))
        gradient = numerics.gradient(
            lambda x, labels=labels: losses.decoupled_kd(teacher, x, labels, temperature=1.0),
            student,
        )
        numerics.assert_finite(value, gradient)
        expected = oracles.decoupled_kd(teacher, student, labels, temperature=1.0)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert np.abs(gradient).max() > 0.1


def test_normalized_target_part_holds_the_teacher_constant():
    """d/dz of -p(y) log q(y) is p(y) (q - onehot)."""
    teacher, student, labels = data((4, 5))
    gradient = numerics.gradient(
        lambda x: losses.normalized_kd(teacher, x, labels, gamma=0.0), student
    )
    p = np.take_along_axis(oracles.softmax(teacher), labels[:, None], axis=-1)
    np.testing.assert_allclose(
        gradient, p * (oracles.softmax(student) - np.eye(5)[labels]), rtol=1e-6, atol=1e-9
    )
