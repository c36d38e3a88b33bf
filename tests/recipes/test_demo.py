"""The demo, whole but short: its folder, its tables, its exports, and going on with it."""

import json

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import export
from keras_distill.recipes import demo as recipe
from keras_distill.recipes import evaluation
from keras_distill.recipes import training

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A demo of one seed and one epoch: `(folder, results, lines)`."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("demo") / "run"
    lines = []
    results, _ = recipe.demo(folder, seeds=1, epochs=1, say=lines.append)
    return folder, results, lines


@pytest.mark.slow
def test_run_folder_is_complete(finished):
    folder, results, _ = finished
    for name in ("settings.json", "metrics.jsonl", "results.json", "report.html"):
        assert (folder / name).stat().st_size > 0
    assert json.loads((folder / "settings.json").read_text())["seeds"] == 1
    assert json.loads((folder / "results.json").read_text())["models"] == results["models"]
    assert {path.name for path in (folder / "figures").iterdir()} >= {
        "accuracies.png",
        "training_curves.png",
        "dark_knowledge.png",
    }
    assert list((folder / "backups").iterdir()) == []
    assert "student distilled" in (folder / "report.html").read_text(encoding="utf-8")


def test_table_says_what_design_asks(finished):
    folder, results, lines = finished
    text = "\n".join(lines)
    for word in ("accuracy", "agrees with teacher", "parameters", "size", "ms an image"):
        assert word in text
    assert "student distilled against student alone" in text
    assert f"Report: {folder / 'report.html'}" in text
    teacher, alone, distilled = results["models"]
    assert alone["parameters"] == distilled["parameters"] < teacher["parameters"]
    for model in results["models"]:
        assert model["bytes"] > 0 and model["latency_ms"] > 0
        assert 0 <= model["accuracy"][0] <= 1
    assert teacher["agreement"] is None and 0 <= distilled["agreement"][0] <= 1


def test_exports_run(finished):
    folder, results, _ = finished
    files = [entry["file"] for entry in results["exports"]]
    assert files == [
        "models/student_saved_model",
        "models/student_float32.tflite",
        "models/student_float16.tflite",
        "models/student_dynamic.tflite",
        "models/student_int8.tflite",
    ]
    assert results["exports"][-1]["quantization"] == "int8"
    student = keras.models.load_model(folder / "models" / "student.keras")
    test = kd.data.load("digits").test
    report = export.check_parity(
        student, folder / files[1], test.images[:50].astype("float32") / 255
    )
    assert report.agreement == 1.0


def test_students_start_alike(finished, monkeypatch):
    """Alone and distilled: the same weights before, the same number of lines in the metrics."""
    folder, _, _ = finished
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["model"] for record in records] == [
        recipe.TEACHER,
        recipe.ALONE,
        recipe.DISTILLED,
    ]
    begun = []

    monkeypatch.setattr(training, "train", lambda *args, **kwargs: _record(begun, *args, **kwargs))
    monkeypatch.setattr(recipe, "_measure", lambda *args: ({}, []))
    monkeypatch.setattr(recipe.run_results, "finish", lambda *args: (None, ""))
    monkeypatch.setattr(recipe.run_results, "show", lambda *args: None)
    recipe.demo(folder, seeds=1, epochs=1, say=lambda line: None)
    (_, alone, how), (_, distilled, other) = begun[1:]
    for one, two in zip(alone, distilled):
        np.testing.assert_array_equal(one, two)
    assert how == other  # the same seed, so the same order of batches


def _record(begun, run, file, make, images, how, **kwargs):
    model = make()[1]
    begun.append((file, model.get_weights(), how))
    return model


def test_no_test_image_is_trained_on(finished):
    digits = kd.data.load("digits")
    train = {image.tobytes() for image in digits.train.images}
    assert len(digits.train) == 400 and len(digits.test) == 1397
    assert not [image for image in digits.test.images if image.tobytes() in train]


@pytest.mark.slow
def test_second_call_trains_nothing(finished, monkeypatch):
    folder, results, _ = finished
    before = {p.name: p.stat().st_mtime_ns for p in (folder / "models").glob("*_seed0.keras")}
    metrics = (folder / "metrics.jsonl").read_text()

    def fit(*args, **kwargs):
        raise AssertionError("a finished model is trained again")

    monkeypatch.setattr(keras.Model, "fit", fit)
    monkeypatch.setattr(recipe, "_export", lambda *args: (results["exports"], []))
    lines = []
    again, _ = recipe.demo(folder, seeds=1, epochs=1, say=lines.append)
    assert lines[0].startswith("Going on with the run")
    assert [m["accuracy"] for m in again["models"]] == [m["accuracy"] for m in results["models"]]
    after = {p.name: p.stat().st_mtime_ns for p in (folder / "models").glob("*_seed0.keras")}
    assert after == before
    assert (folder / "metrics.jsonl").read_text() == metrics


def test_other_settings_in_the_same_folder_are_an_error(finished):
    folder, _, _ = finished
    with pytest.raises(ValueError, match="epochs=2 .*Choose another folder.*--restart"):
        recipe.demo(folder, seeds=1, epochs=2)


@pytest.mark.slow
def test_stray_export_is_reported_not_hidden(finished, monkeypatch):
    """A file beyond the limits stands in the table, and in a sentence."""
    folder, results, _ = finished
    real = export.check_parity

    def strays(model, path, data, **kwargs):
        report = real(model, path, data[:20], latency_runs=1)
        if "int8" in str(path):
            raise export.ParityError(f"{path} strays", report)
        return report

    monkeypatch.setattr(export, "check_parity", strays)
    again, sentences = recipe.demo(folder, seeds=1, epochs=1, say=lambda line: None)
    assert len(again["exports"]) == 5
    assert len(sentences) == 1 and "int8" in sentences[0]


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"epochs": -1}, {"seed": "one"}])
def test_bad_arguments_leave_no_folder(tmp_path, wrong):
    with pytest.raises((ValueError, TypeError), match="Expected"):
        recipe.demo(tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()


def test_soft_targets_are_the_ensembles(finished):
    """The pictures' soft targets: the mean of the members' tempered probabilities."""
    folder, _, _ = finished
    teacher = keras.models.load_model(folder / "models" / "teacher.keras")
    images = kd.data.load("digits").test.images[:16]
    x = images.astype("float32") / 255
    members = [keras.ops.softmax(member(x) / recipe.TEMPERATURE) for member in teacher.members]
    np.testing.assert_allclose(
        evaluation.probabilities(teacher, images, recipe.TEMPERATURE),
        np.mean([keras.ops.convert_to_numpy(member) for member in members], axis=0),
        atol=1e-5,
    )
