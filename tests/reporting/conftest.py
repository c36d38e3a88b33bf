"""A whole run, as small as can be: an ensemble, a student alone, a distilled one, with exits."""

import json
import shutil

import keras
import pytest

import keras_distill as kd
from keras_distill.recipes import distillation


@pytest.fixture(scope="package")
def whole_run(tmp_path_factory):
    """The folder of a run that has all that a report shows, and its report; to look at only."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("whole") / "run"
    settings = distillation.Settings(
        "digits", "small-3", "small-2", limit=40, ensemble=2, epochs=2, batch_size=20, baseline=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kd.reporting, "report", lambda run, networks: None)  # later, with the rest
        distillation.distil(settings, folder, verbose=0, say=lambda line: None)
    student = keras.models.load_model(folder / "models" / "student.keras", compile=False)
    kd.SelfDistiller(student, ["stem"]).save(folder / "models" / "student_exits.keras")
    run = kd.reporting.RunFolder(folder)
    results = run.read_results()
    for model in results["models"]:
        model["latency_ms"] = 0.5 if model["role"] == "teacher" else 0.1
    run.write_results(results)
    kd.reporting.report(folder)
    return folder


@pytest.fixture
def own_run(whole_run, tmp_path):
    """A copy of `whole_run` without its report, to change."""
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder, ignore=shutil.ignore_patterns("figures", "report.html"))
    return folder


@pytest.fixture
def change(own_run):
    """A function that changes entries of a JSON file in `own_run`."""

    def change(name, **entries):
        path = own_run / name
        value = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**value, **entries}), encoding="utf-8")

    return change
