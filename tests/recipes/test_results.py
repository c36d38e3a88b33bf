"""What a recipe's run leaves for its report: models with their files and roles, and exits."""

import json

import numpy as np
import pytest

from keras_distill import data
from keras_distill.data.images import ImageData
from keras_distill.recipes import results as run_results
from keras_distill.recipes import running
from keras_distill.recipes.schemes import Options
from keras_distill.reporting import RunFolder


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_network_with_exits_is_kept_with_them_and_their_curve_is_drawn(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (20, 8, 8, 1)).astype("uint8")
    part = ImageData(images, np.arange(20) % 3, ("a", "b", "c"), "noise/train")
    split = data.Split(part, part)
    options = Options(student="small-2", epochs=1, batch_size=20, looks=1)
    results = running.train_recipe(
        "self_distillation", split, options, out=tmp_path, verbose=0, say=len
    )
    files = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert files == ["student.keras", "student_exits.keras"]
    (model,) = results["models"]
    assert (model["file"], model["role"]) == ("models/student.keras", None)
    found = json.loads((tmp_path / "figures" / "early_exits.json").read_text(encoding="utf-8"))
    assert found["exits"][-1]["accuracy"] == pytest.approx(model["accuracy"][0])
    assert "the run has 1 model" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_files_are_named_from_the_run_where_they_are_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run_results.reporting, "report", lambda run, networks: None)
    monkeypatch.chdir(tmp_path)
    run = RunFolder("run")
    models = [
        {"name": "inside", "accuracy": [1.0], "file": "run/models/a.keras"},
        {"name": "outside", "accuracy": [1.0], "file": "other/models/a.keras"},
        {"name": "without", "accuracy": [1.0]},
    ]
    run_results.finish(run, {"models": models})
    inside, outside, without = run.read_results()["models"]
    assert inside["file"] == "models/a.keras" and "file" not in without
    assert outside["file"] == (tmp_path / "other" / "models" / "a.keras").as_posix()
