"""Scores of networks and of exported files, whatever their head."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import export
from keras_distill.backbones import small_cnn
from keras_distill.recipes import evaluation

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1)).astype("uint8")
X = IMAGES.astype("float32") / 255


def softmax(logits):
    exponentials = np.exp(np.asarray(logits, "float64"))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def test_softmax_head_and_logits_give_the_same_probabilities():
    logits = small_cnn(classes=3, channels=2)
    outputs = keras.layers.Softmax()(logits.output)
    model = keras.Model(logits.input, outputs)
    for temperature in (1.0, 4.0):
        expected = softmax(keras.ops.convert_to_numpy(logits(X)) / temperature)
        for one in (logits, model):
            found = evaluation.probabilities(one, IMAGES, temperature)
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_one_unit_is_two_classes():
    model = small_cnn(classes=1, channels=2, classifier_activation="sigmoid")
    found = evaluation.probabilities(model, IMAGES)
    assert found.shape == (12, 2)
    np.testing.assert_allclose(found[:, 1], keras.ops.convert_to_numpy(model(X))[:, 0], atol=1e-6)


def test_float_images_are_taken_as_they_are():
    model = small_cnn(classes=3, channels=2)
    np.testing.assert_allclose(
        evaluation.probabilities(model, X), evaluation.probabilities(model, IMAGES), atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.tensorflow
def test_tflite_file_gives_what_the_network_gives(tmp_path):
    model = small_cnn(classes=3, channels=2)
    path = export.tflite(model, tmp_path / "model.tflite")
    found = evaluation.probabilities(evaluation.open_model(path), IMAGES)
    np.testing.assert_allclose(found, evaluation.probabilities(model, IMAGES), atol=1e-5)
    with pytest.raises(ValueError, match="--image-size"):
        evaluation.probabilities(evaluation.open_model(path), np.zeros((2, 9, 9, 1)))


def test_scores_by_hand():
    found = np.array([[0.7, 0.3], [0.4, 0.6], [0.2, 0.8]])
    teacher = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
    scores = evaluation.scores(found, np.array([0, 1, 0]), teacher)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["agreement"] == pytest.approx(2 / 3)
    assert scores["loss"] == pytest.approx(-np.mean(np.log([0.7, 0.6, 0.2])))
    assert scores["calibration_error"] == pytest.approx((0.3 + 0.4 + 0.8) / 3)
    with pytest.raises(ValueError, match="3 classes"):
        evaluation.scores(found, np.array([0, 1, 2]))


def test_agreement_is_only_told_with_a_teacher():
    found = np.array([[0.7, 0.3]])
    assert evaluation.scores(found, np.array([0]))["agreement"] is None


def test_latency_of_what_tflite_cannot_convert_is_none(tmp_path, monkeypatch):
    model = small_cnn(classes=3, channels=2)
    model.save(tmp_path / "model.keras")

    def refuses(*args, **kwargs):
        raise ValueError("no kernel")

    monkeypatch.setattr(export, "tflite", refuses)
    assert evaluation.latency_ms(tmp_path / "model.keras") is None


def test_size_of_files_and_folders(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"123")
    assert evaluation.size(tmp_path / "a") == 5
    assert evaluation.size(tmp_path) == 8


def test_comparison_table_leaves_out_what_is_unknown():
    test = kd.data.load("digits", split="test", test_limit=5)
    entry = {
        "file": "a.tflite",
        "parameters": None,
        "bytes": 1500,
        "latency_ms": 0.5,
        "accuracy": 0.5,
        "loss": 1.0,
        "calibration_error": 0.1,
        "agreement": None,
    }
    table = evaluation.comparison_table([entry], test)
    assert "parameters" not in table.columns and "agrees with teacher %" not in table.columns
    assert "1.5 kB" in table.text()
