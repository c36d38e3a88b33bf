"""Metrics against numbers worked out by hand."""

import keras
import numpy as np
import pytest

from keras_distill.metrics import ExpectedCalibrationError
from keras_distill.metrics import TeacherAgreement
from keras_distill.metrics import calibration_bins
from keras_distill.metrics import expected_calibration_error
from keras_distill.metrics import predictive_kl
from keras_distill.metrics import teacher_agreement

TEACHER = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 0.0, 5.0], [1.0, 0.0, -1.0]])
STUDENT = np.array([[9.0, 1.0, 0.0], [4.0, 2.0, 1.0], [0.0, 0.0, 0.5], [0.0, 1.0, -1.0]])


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_agreement_by_hand():
    assert teacher_agreement(TEACHER, STUDENT) == 0.5  # samples 0 and 2
    assert teacher_agreement(softmax(TEACHER), softmax(STUDENT), from_logits=False) == 0.5
    assert teacher_agreement(TEACHER, TEACHER) == 1.0


def test_agreement_of_one_unit_is_that_of_the_sigmoid():
    # An argmax over one unit would say 1.0 of anything.
    assert teacher_agreement([[1.0], [-2.0], [3.0], [-1.0]], [[2.0], [1.0], [-1.0], [-5.0]]) == 0.5
    outputs = [[0.9], [0.2]], [[0.6], [0.7]]
    assert teacher_agreement(*outputs, from_logits=False) == 0.5


def test_agreement_counts_every_token():
    assert teacher_agreement(TEACHER.reshape(2, 2, 3), STUDENT.reshape(2, 2, 3)) == 0.5


def test_predictive_kl_by_hand():
    teacher, student = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.25, 0.75], [0.9, 0.1]])
    expected = (0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2
    assert predictive_kl(teacher, student, from_logits=False) == pytest.approx(expected)
    assert predictive_kl(np.log(teacher) + 7, np.log(student) - 3) == pytest.approx(expected)
    assert predictive_kl(TEACHER, TEACHER) == 0.0


def test_predictive_kl_of_huge_logits_and_zero_probabilities_is_finite():
    assert predictive_kl([[1e4, 0.0]], [[0.0, 1e4]]) == pytest.approx(1e4)
    assert predictive_kl([[1.0, 0.0]], [[0.0, 1.0]], from_logits=False) == pytest.approx(
        -np.log(1e-12)
    )


def test_calibration_error_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.91, 0.09], [0.4, 0.6], [0.45, 0.55]])
    labels = np.array([0, 1, 1, 0])
    # 10 bins. (0.9, 1]: confidence 0.93, accuracy 0.5. (0.5, 0.6]: 0.575 and 0.5.
    expected = 0.5 * (0.93 - 0.5) + 0.5 * (0.575 - 0.5)
    found = expected_calibration_error(labels, probabilities, bins=10, from_logits=False)
    assert found == pytest.approx(expected)
    assert expected_calibration_error(
        np.eye(2)[labels], np.log(probabilities), bins=10
    ) == pytest.approx(expected)
    counts, confidences, accuracies = calibration_bins(labels, probabilities, 10, False)
    assert counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    np.testing.assert_allclose(confidences[[5, 9]], [0.575, 0.93])
    np.testing.assert_allclose(accuracies[[5, 9]], [0.5, 0.5])


def test_calibration_error_of_perfect_and_hopeless_confidence():
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert expected_calibration_error([0, 1], certain, from_logits=False) == 0.0
    assert expected_calibration_error([1, 0], certain, from_logits=False) == 1.0


def test_unknown_labels_are_left_out():
    probabilities = softmax(TEACHER)
    labels = np.array([0, -1, 2, 1])
    known = labels >= 0
    assert expected_calibration_error(labels, probabilities, from_logits=False) == pytest.approx(
        expected_calibration_error(labels[known], probabilities[known], from_logits=False)
    )


@pytest.mark.parametrize("function", [teacher_agreement, predictive_kl])
def test_scale_against_values_is_an_error(function):
    with pytest.raises(ValueError, match="`teacher_outputs` to be logits.*from_logits=False"):
        function(softmax(TEACHER), STUDENT)
    with pytest.raises(ValueError, match="`student_outputs` to be probabilities.*from_logits=True"):
        function(softmax(TEACHER), STUDENT, from_logits=False)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"teacher's shape \(4, 3\).*\(4, 2\)"):
        teacher_agreement(TEACHER, STUDENT[:, :2])
    with pytest.raises(ValueError, match=r"shape \(samples, classes\).*\(0, 3\)"):
        predictive_kl(TEACHER[:0], STUDENT[:0])
    with pytest.raises(ValueError, match=r"`labels` of shape \(4,\).*\(3,\)"):
        expected_calibration_error([0, 1, 2], TEACHER)
    with pytest.raises(ValueError, match="that is known"):
        expected_calibration_error([-1] * 4, TEACHER)
    with pytest.raises(ValueError, match="`bins` to be a positive whole number"):
        expected_calibration_error([0] * 4, TEACHER, bins=0)
    with pytest.raises(ValueError, match="`student_outputs` to be finite"):
        predictive_kl(TEACHER, STUDENT * np.nan)
    with pytest.raises(ValueError, match="`bins` to be a positive whole number"):
        ExpectedCalibrationError(bins=0)


def test_agreement_metric_runs_over_batches_and_weighs():
    metric = TeacherAgreement()
    metric.update_state(TEACHER[:3], STUDENT[:3])
    metric.update_state(TEACHER[3:], STUDENT[3:])
    assert float(metric.result()) == pytest.approx(0.5)
    metric.reset_state()
    metric.update_state(TEACHER, STUDENT, sample_weight=[1.0, 3.0, 0.0, 0.0])
    assert float(metric.result()) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="two classes or more"):
        metric.update_state([[1.0]], [[2.0]])


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("label_form", ["integers", "column", "one_hot"])
def test_calibration_metric_equals_the_function(label_form, from_logits):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 5)).astype("float32") * 2
    labels = generator.integers(0, 5, 200)
    given = {"integers": labels, "column": labels[:, None], "one_hot": np.eye(5)[labels]}[
        label_form
    ]
    outputs = logits if from_logits else softmax(logits)
    metric = ExpectedCalibrationError(bins=10, from_logits=from_logits)
    for part in (slice(0, 150), slice(150, 200)):
        metric.update_state(given[part], outputs[part])
    expected = expected_calibration_error(labels, logits, bins=10)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_calibration_metric_weighs_and_leaves_unknown_labels_out():
    logits = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
    labels = np.arange(60) % 3
    expected = expected_calibration_error(labels[:40], logits[:40])
    weighed, unknown = (ExpectedCalibrationError(from_logits=True) for _ in range(2))
    weighed.update_state(labels, logits, sample_weight=np.arange(60) < 40)
    unknown.update_state(np.where(np.arange(60) < 40, labels, -1), logits)
    assert float(weighed.result()) == pytest.approx(expected, abs=1e-6)
    assert float(unknown.result()) == pytest.approx(expected, abs=1e-6)


def test_calibration_metric_of_one_unit():
    logits = np.array([[2.0], [-1.0], [0.5]], "float32")
    labels = np.array([[1], [1], [0]])
    metric = ExpectedCalibrationError(from_logits=True)
    metric.update_state(labels, logits)
    assert float(metric.result()) == pytest.approx(expected_calibration_error(labels, logits))


@pytest.mark.slow
def test_metrics_in_compile_and_from_config():
    model = keras.Sequential([keras.layers.Dense(3, activation="softmax")])
    model.compile(
        loss="sparse_categorical_crossentropy", metrics=["accuracy", ExpectedCalibrationError()]
    )
    x = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")
    labels = np.arange(30) % 3
    logs = model.evaluate(x, labels, batch_size=8, return_dict=True, verbose=0)
    expected = expected_calibration_error(labels, model.predict(x, verbose=0), from_logits=False)
    assert logs["expected_calibration_error"] == pytest.approx(expected, abs=1e-5)
    for metric in (ExpectedCalibrationError(bins=7, from_logits=True), TeacherAgreement(name="a")):
        config = keras.saving.serialize_keras_object(metric)
        restored = keras.saving.deserialize_keras_object(config)
        assert type(restored) is type(metric)
        assert restored.get_config() == metric.get_config()
