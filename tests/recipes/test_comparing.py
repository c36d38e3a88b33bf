"""Recipes side by side: means and deviations, pairs of seeds, budgets, and going on."""

import json
import math

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.recipes import comparing
from keras_distill.recipes import running
from keras_distill.recipes import schemes
from keras_distill.recipes import tasks
from keras_distill.recipes.schemes import Options

OPTIONS = Options(student="small-2", epochs=2, batch_size=16, looks=2)
NAMES = ["baseline", "label_smoothing", "cs_kd"]


@pytest.fixture(scope="module")
def digits():
    return kd.data.load("digits", limit=100, test_limit=60)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, digits):
    """Three recipes with two seeds: `(folder, results, lines)`."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("comparing") / "run"
    lines = []
    results = kd.recipes.compare_recipes(NAMES, digits, 2, OPTIONS, folder, say=lines.append)
    return folder, results, lines


@pytest.mark.slow
@pytest.mark.tensorflow
def test_statistics_are_those_of_the_records(compared):
    folder, results, _ = compared
    by_name = {entry["name"]: entry for entry in results["comparison"]}
    assert list(by_name) == NAMES and results["seeds"] == [0, 1]
    values = {
        name: [
            json.loads((folder / "runs" / f"{name}_seed{seed}.json").read_text())["accuracy"]
            for seed in (0, 1)
        ]
        for name in NAMES
    }
    for name, entry in by_name.items():
        found = entry["accuracy"]
        assert found["values"] == values[name]
        assert found["mean"] == pytest.approx(np.mean(values[name]))
        assert found["deviation"] == pytest.approx(np.std(values[name], ddof=1))
        assert found["error"] == pytest.approx(np.std(values[name], ddof=1) / math.sqrt(2))
        assert entry["best_accuracy"]["mean"] >= found["mean"] - 1e-9
    assert "gain" not in by_name["baseline"]
    differences = np.subtract(values["cs_kd"], values["baseline"])
    gain = by_name["cs_kd"]["gain"]
    assert gain["mean"] == pytest.approx(differences.mean())
    assert gain["error"] == pytest.approx(differences.std(ddof=1) / math.sqrt(2))


@pytest.mark.tensorflow
def test_table_report_and_files(compared):
    folder, results, lines = compared
    text = "\n".join(lines)
    for word in ("last %", "best %", "gain, last", "steps", "images, all", "seconds", *NAMES):
        assert word in text
    assert json.loads((folder / "results.json").read_text()) == results
    page = (folder / "comparison.md").read_text(encoding="utf-8")
    assert "| cs_kd |" in page and "Budgets differ" in page
    assert "label_smoothing" in (folder / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in (folder / "models").iterdir()) == sorted(
        f"{name}_seed{seed}.keras" for name in NAMES for seed in (0, 1)
    )


@pytest.mark.tensorflow
def test_budgets_that_differ_are_told_with_their_numbers(compared):
    _, results, lines = compared
    same, differing = results["remarks"]
    assert "equal" in same and "gradient: 200." in same
    assert differing.startswith("Budgets differ in images forwarded in all")
    assert "baseline 200; cs_kd 400 (2.00 times)." in differing
    assert differing in lines


@pytest.mark.slow
@pytest.mark.tensorflow
def test_same_call_trains_nothing_and_more_seeds_only_the_new_ones(
    compared, digits, monkeypatch, tmp_path
):
    folder, results, _ = compared
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "fit", lambda *args, **kwargs: 1 / 0)
        lines = []
        again = comparing.compare_recipes(NAMES, digits, 2, OPTIONS, folder, say=lines.append)
    assert again == results and lines[0].startswith("Going on with the run")
    fitted = []
    real = keras.Model.fit
    monkeypatch.setattr(
        keras.Model,
        "fit",
        lambda self, *args, **kwargs: fitted.append(1) or real(self, *args, **kwargs),
    )
    names = ["label_smoothing", "baseline"]
    more = comparing.compare_recipes(names, digits, [0, 7], OPTIONS, folder, say=len)
    assert len(fitted) == 2
    assert more["gain"] == {"baseline": "label_smoothing", "model": "baseline"}
    with pytest.raises(ValueError, match="epochs=3.*--restart"):
        comparing.compare_recipes(NAMES, digits, 2, Options(student="small-2", epochs=3), folder)
    other = kd.data.load("digits", limit=99, test_limit=60)
    with pytest.raises(ValueError, match="data="):
        comparing.compare_recipes(NAMES, other, 2, OPTIONS, folder)


@pytest.mark.tensorflow
def test_seeds_are_paired(digits):
    """The same initial weights and the same images in the same order, seed by seed."""
    recipes = [schemes.named(name) for name in ("baseline", "label_smoothing", "ps_kd", "cs_kd")]
    for seed in (0, 4):
        plans = [
            recipe.plan(running.task_of(recipe, digits.train, OPTIONS.filled(), seed), OPTIONS)
            for recipe in recipes
        ]
        weights = [plan.network.get_weights() for plan in plans]
        for other in weights[1:]:
            for a, b in zip(weights[0], other):
                np.testing.assert_array_equal(a, b)
        orders = [
            [np.asarray(keras.tree.flatten(x)[0]) for x, *_ in plan.data(0)] for plan in plans
        ]
        for other in orders[1:]:
            for a, b in zip(orders[0], other, strict=True):
                np.testing.assert_array_equal(a, b)


def record(student, peers=0, frozen=0, before=0, augment=False):
    images = {"student": student, "peers": peers, "frozen": frozen, "before": before}
    return [{"images": images, "settings": {"training": {"augment": augment}}}]


def test_remarks():
    equal = comparing.remarks({"a": record(1000), "b": record(1005)}, Options())
    assert len(equal) == 2 and all("equal" in line for line in equal)
    assert comparing.remarks({"a": record(1000)}, Options()) == []
    found = comparing.remarks(
        {"a": record(1000), "b": record(2000, augment=True), "c": record(1000, before=500)},
        Options("paper"),
    )
    assert found == [
        "Each recipe trains by its own published setting.",
        "Data differ: training images are augmented for b alone.",
        "Budgets differ in images that the student forwards with a gradient: a 1,000; "
        "b 2,000 (2.00 times).",
        "Budgets differ in images forwarded in all, with those of teachers and peers: a 1,000; "
        "b 2,000 (2.00 times); c 1,500 (1.50 times).",
    ]


@pytest.mark.parametrize(
    ("names", "seeds", "said"),
    [
        ([], 2, "one recipe or more"),
        (["baseline", "baseline"], 2, "once"),
        (["baseline", "bas"], 2, "Nearest: baseline"),
        (["baseline"], 0, "seeds"),
        (["baseline"], [], "seeds"),
        (["baseline"], [1, 1], "seeds"),
        (["baseline"], [-1], "seeds"),
        (["baseline"], [tasks.OTHER_SEEDS], "seeds"),
    ],
)
def test_bad_calls_are_told_before_anything_is_written(names, seeds, said, digits, tmp_path):
    with pytest.raises(ValueError, match=said):
        comparing.compare_recipes(names, digits, seeds, OPTIONS, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.tensorflow
def test_data_that_does_not_fit_is_told_before_anything_is_written(digits, tmp_path):
    options = Options(student="small-2", batch_size=250)
    with pytest.raises(ValueError, match="batch_size"):
        comparing.compare_recipes(["baseline", "dlb"], digits, 1, options, tmp_path / "run")
    assert not (tmp_path / "run").exists()
