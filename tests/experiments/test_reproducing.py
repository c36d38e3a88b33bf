"""Experiments: claims on hand-made records, going on, never mixing settings, pages from JSON."""

import dataclasses
import importlib.util
import json
import pathlib

import keras
import pytest

from keras_distill.experiments import claims
from keras_distill.experiments import definitions
from keras_distill.experiments import losses
from keras_distill.experiments import pages
from keras_distill.experiments import reproducing
from keras_distill.experiments.definitions import Experiment
from keras_distill.experiments.definitions import Row
from keras_distill.experiments.definitions import Scale
from keras_distill.experiments.definitions import rows
from keras_distill.experiments.definitions import trained
from keras_distill.recipes import loss_names
from keras_distill.recipes.schemes import Options
from keras_distill.reporting import drawing_rows
from keras_distill.reporting import style

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = Options(student="small-2", epochs=1, batch_size=30, looks=1)
FORWARDS = {"student": 10, "peers": 0, "frozen": 0, "before": 0}
TRAINING = {"augment": False, "cosine": True, "epochs": 1, "batch_size": 4}
TRAINING |= {"learning_rate": 0.1, "weight_decay": 0.0}


def record(seed, accuracy, **more):
    """A record as `running.carry_out` returns it, of what the pages read."""
    known = {"seed": seed, "accuracy": accuracy, "best_accuracy": accuracy, "seconds": 1.0}
    return {**known, "images": FORWARDS, "settings": {"training": TRAINING}, **more}


def entries(**accuracies):
    """Id -> entry, of accuracies by seed."""
    return {
        name: definitions.entry(name, "", [record(i, value) for i, value in enumerate(values)])
        for name, values in accuracies.items()
    }


def test_limits_are_students():
    """Against scipy, in the table and beyond it; the issue's 2.8 standard errors for five seeds."""
    stats = pytest.importorskip("scipy.stats")
    for seeds in (2, 3, 5, 11, 12, 20, 100):
        assert claims.limit(seeds) == pytest.approx(stats.t.ppf(0.975, seeds - 1), rel=1e-3)
    with pytest.raises(ValueError, match="two `seeds` or more"):
        claims.limit(1)


BASE = [0.70, 0.71, 0.72]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.010, 0.012, 0.011], claims.AGREES),
        ([-0.010, -0.012, -0.011], claims.CONTRADICTS),
        ([0.030, -0.010, 0.010], claims.OPEN),
        ([0.010, 0.020, 0.015], claims.AGREES),  # 5.2 standard errors, above the 4.3 of 3 seeds
        ([0.010, 0.024, 0.016], claims.OPEN),  # 4.1: twice its error, and yet too few seeds
        ([0.0, 0.0, 0.0], claims.OPEN),
        ([0.010], claims.OPEN),  # one seed tells nothing of its error
        ([], claims.OPEN),
    ],
)
def test_a_claim_is_judged_seed_by_seed(differences, expected):
    known = entries(student=[b + d for b, d in zip(BASE, differences)], alone=BASE)
    found = claims.larger("student", "alone")(known)
    assert found["verdict"] == expected
    opposite = {claims.AGREES: claims.CONTRADICTS, claims.CONTRADICTS: claims.AGREES}
    assert claims.smaller("student", "alone")(known)["verdict"] == opposite.get(expected, expected)
    (measured,) = found["differences"]
    assert measured["seeds"] == len(differences)
    if len(differences) == 3:
        assert measured["mean"] == pytest.approx(100 * sum(differences) / 3)
        assert measured["smallest"] == pytest.approx(4.303 * measured["error"])
        assert claims.said(measured).startswith(f"student - alone: {measured['mean']:+.2f} ± ")
    else:
        assert measured["smallest"] is None
        assert ("one seed" if differences else "not measured") in claims.said(measured)


def test_claims_of_likeness_of_several_parts_and_of_other_numbers():
    known = entries(a=BASE, near=[0.701, 0.711, 0.7205], far=[0.75, 0.76, 0.775])
    assert claims.alike("near", "a", 1.0)(known)["verdict"] == claims.AGREES
    assert claims.alike("far", "a", 1.0)(known)["verdict"] == claims.CONTRADICTS
    wide = entries(a=BASE, b=[0.68, 0.71, 0.74])
    assert claims.alike("b", "a", 1.0)(wide)["verdict"] == claims.OPEN

    better, worse = claims.larger("far", "a"), claims.larger("a", "far")
    unknown = claims.larger("a", "missing")
    assert claims.every(better, better)(known)["verdict"] == claims.AGREES
    assert claims.every(better, unknown)(known)["verdict"] == claims.OPEN
    assert claims.every(better, unknown, worse)(known)["verdict"] == claims.CONTRADICTS
    assert len(claims.every(better, worse)(known)["differences"]) == 2

    # The mean of rows, at the seeds that all of them have.
    mean = claims.difference({**known, **entries(short=[0.60, 0.61])}, ("far", "short"), "a")
    assert mean["row"] == "mean of 2 rows" and mean["seeds"] == 2
    assert mean["mean"] == pytest.approx(100 * (0.675 - 0.70))

    peers = [record(i, value, peer=value + 0.02) for i, value in enumerate(BASE)]
    known["pair"] = definitions.entry("pair", "", peers)
    peer = claims.Measure("peer", "shares", 1.0)
    found = claims.difference(known, "pair", "pair", peer, claims.ACCURACY)
    assert found["mean"] == pytest.approx(0.02) and found["than_key"] == "accuracy"
    assert claims.said(found).startswith("pair's peer - pair's accuracy: +0.020")


def test_gains_are_of_a_group_and_of_shared_seeds():
    groups = [
        definitions.entry("alone", "", [record(0, 0.5), record(1, 0.6)], "one"),
        definitions.entry("dlb", "", [record(1, 0.65)], "one"),
        definitions.entry("alone", "", [record(0, 0.9)], "two"),
        definitions.entry("dlb", "", [record(0, 0.8)], "two"),
    ]
    alone, first, _, second = definitions.with_gains(groups)
    assert [entry["id"] for entry in groups][:2] == ["one/alone", "one/dlb"]
    assert "gain" not in alone
    assert first["gain"] == {"mean": pytest.approx(0.05), "error": None, "seeds": 1}
    assert second["gain"]["mean"] == pytest.approx(-0.1)
    assert alone["accuracy"]["deviation"] == pytest.approx(0.1 / 2**0.5)


def experiment(**changes):
    """Two rows of hand-made records; `trained` counts what is measured."""
    known = []

    def measured(accuracy):
        def measure(place, row, seed):
            known.append((row.id, seed))
            if row.name == "diverging":
                raise definitions.NonFiniteLoss("Received: loss=nan.")
            images = {**FORWARDS, "student": 10 + len(row.needs)}
            return record(seed, accuracy + 0.01 * seed, images=images)

        return measure

    scale = Scale("digits", TINY, 3, limit=20, test_limit=10, minutes=1)
    lines = [
        Row("baseline", "Alone.", measured(0.5)),
        Row("better", "With a | in its text.", measured(0.6), needs=("baseline",)),
        Row("seldom", "Two seeds.", measured(0.4), seeds=2),
        *changes.pop("more", ()),
    ]
    settings = {
        "name": "made_up",
        "title": "Made up",
        "question": "Does it help?",
        "measure": rows(*lines),
        "scales": {name: scale for name in definitions.SCALES},
        "claims": (claims.Claim("It helps.", "A paper", claims.larger("better", "baseline")),),
        "figure": lambda results: style.figure(1, 1),  # quick to draw
        **changes,
    }
    made = Experiment(**settings)
    return made, known, measured


def reproduced(made, folder, *options, **more):
    said = []
    results = reproducing.reproduce(
        made, *options, out=folder / "out", work=folder / "work", say=said.append, **more
    )
    return results, said


def test_results_page_and_figure(tmp_path):
    made, measured, _ = experiment(figure=None)
    results, said = reproduced(made, tmp_path, "small")
    path = tmp_path / "out" / "made_up.json"
    assert json.loads(path.read_text()) == results
    assert results["seeds"] == [0, 1, 2] and results["scale"] == "small"
    assert results["command"] == "python scripts/reproduce.py made_up --scale small"
    assert {"Keras", "NumPy", "Python", "keras_distill"} <= set(results["versions"])
    assert results["dataset"]["train"] == 20
    baseline, better, seldom = results["comparison"]
    assert [r["seed"] for r in seldom["records"]] == [0, 1]
    # What a row needs counts among the images forwarded before.
    assert better["records"][0]["images"] == {**FORWARDS, "student": 11, "before": 10}
    assert [r["seconds"] for r in better["records"]] == [2.0] * 3
    assert better["gain"]["mean"] == pytest.approx(0.1)
    assert results["claims"][0]["verdict"] == claims.AGREES
    assert f"{claims.AGREES}: It helps." in said
    assert any("Budgets differ" in line for line in results["remarks"])
    assert str(tmp_path) not in path.read_text()

    page = (tmp_path / "out" / "made_up.md").read_text()
    assert "# Made up\n\nDoes it help?" in page
    assert "| better | 61.00 ± 1.00 | 61.00 ± 1.00 | +10.00 ± 0.00 |" in page
    assert "| It helps. | A paper | agrees | better - baseline: +10.00 ± 0.00 points" in page
    assert "3 seeds; scale `small`" in page
    shown = "3 seeds can show a difference of 2.0 points, 2 seeds (seldom) a difference of 7.2"
    assert shown in page and "All seeds train on the same images" in page
    assert "![Figure: Made up](made_up.png)" in page
    assert (tmp_path / "out" / "made_up.png").read_bytes().startswith(b"\x89PNG")

    # Table and figure from the JSON alone.
    count = len(measured)
    (tmp_path / "out" / "made_up.md").unlink()
    reproducing.write_page(path, tmp_path / "figures", made)
    again = (tmp_path / "out" / "made_up.md").read_text()
    assert again == page.replace("(made_up.png)", "(../figures/made_up.png)")
    assert (tmp_path / "figures" / "made_up.png").exists()
    assert len(measured) == count


def test_settings_are_never_mixed(tmp_path):
    made, _, _ = experiment()
    results, _ = reproduced(made, tmp_path, "small", seeds=2)
    assert results["command"].endswith("reproduce.py made_up --scale small --seeds 2")
    with pytest.raises(ValueError, match="scale of the results in .*made_up.json"):
        reproduced(made, tmp_path, "tiny")
    with pytest.raises(ValueError, match="seeds of the results"):
        reproduced(made, tmp_path, "small", seeds=1)
    results, _ = reproduced(made, tmp_path, "small", seeds=3)
    assert results["seeds"] == [0, 1, 2] and "--seeds" not in results["command"]

    other = dataclasses.replace(made.scale("small"), limit=30)
    changed = dataclasses.replace(made, scales={**made.scales, "small": other})
    with pytest.raises(ValueError, match="settings of the results"):
        reproduced(changed, tmp_path, "small")
    (tmp_path / "out" / "made_up.json").unlink()
    with pytest.raises(ValueError, match="limit=30 .there: 20."):
        reproduced(changed, tmp_path, "small")
    kept = tmp_path / "work" / "made_up_small" / "measured"
    kept.mkdir()
    results, _ = reproduced(changed, tmp_path, "small", restart=True)
    assert not kept.exists()
    assert results["settings"]["limit"] == 30

    place = definitions.Place(tmp_path, other, [0])
    place.check("row_seed0", {"students": 3})
    place.check("row_seed0", {"students": 3})
    with pytest.raises(ValueError, match="students.: 3.*Received: .*students.: 4"):
        place.check("row_seed0", {"students": 4})


def test_a_row_that_diverges_is_told_and_the_others_go_on(tmp_path):
    _, _, measured = experiment()
    made, _, _ = experiment(more=[Row("diverging", "", measured(0.1))], claims=())
    results, _ = reproduced(made, tmp_path, "small")
    assert [entry["name"] for entry in results["comparison"]] == ["baseline", "better", "seldom"]
    assert results["remarks"][0] == "diverging diverged with seed 0: Received: loss=nan."


def test_wrong_definitions_are_told():
    made, _, measured = experiment()
    with pytest.raises(ValueError, match="`scales` of tiny, small, full"):
        dataclasses.replace(made, scales={})
    with pytest.raises(ValueError, match="a name of a-z"):
        dataclasses.replace(made, name="Made up")
    with pytest.raises(ValueError, match="rows with names of their own"):
        rows(Row("a", "", measured(0.1)), Row("a", "", measured(0.1)))
    with pytest.raises(ValueError, match="Nearest: mutual"):
        reproducing.named("mutal")


def test_budgets_of_the_committed_scale():
    """Half an hour each, four hours in all; three seeds at least, real data, no name twice."""
    known = reproducing.experiments()
    small = {name: made.scale("small") for name, made in known.items()}
    assert all(scale.minutes <= 30 and scale.seeds >= 3 for scale in small.values())
    assert sum(scale.minutes for scale in small.values()) <= 240
    assert all(made.claims and made.question for made in known.values())
    assert len(reproducing.listed()) == len(known)
    assert "mutual" in "\n".join(reproducing.listed())


def test_every_loss_has_its_row():
    every = [*losses.RESPONSE, *losses.OF_LAYERS]
    assert sorted(every) == sorted(loss_names.names())
    assert set(losses.COMPARED) <= set(losses.OF_LAYERS)


def test_what_nothing_beats():
    points = [(3.0, 80.0), (1.0, 70.0), (2.0, 69.0), (1.0, 60.0), (4.0, 80.0)]
    assert drawing_rows.front(points) == [(1.0, 70.0), (3.0, 80.0)]
    assert pages.spread([0.5, None]) == "–"
    assert pages.spread([0.5, 0.7], 1, 100.0) == "60.0 ± 14.1"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "scripts" / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_failure_leaves_the_others_to_go_on(capsys, tmp_path, script, monkeypatch):
    done = []

    def reproduce(experiment, *options):
        done.append(experiment.name)
        if experiment.name == "mutual":
            raise definitions.NonFiniteLoss("Received: loss=nan.")

    monkeypatch.setattr(script.reproducing, "reproduce", reproduce)
    assert script.main(["mutual", "memory", "--out", str(tmp_path)]) == 1
    assert done == ["mutual", "memory"]
    assert capsys.readouterr().err == "Error: mutual: Received: loss=nan.\nFailed: mutual\n"
    assert script.main(["memory", "--out", str(tmp_path)]) == 0
    # A name that is none is told before anything is trained.
    assert script.main(["memory", "nonsense", "--out", str(tmp_path)]) == 1
    assert done[2:] == ["memory"]


def test_script_lists_and_tells_errors(capsys, tmp_path, script):
    assert script.main(["--list"]) == 0
    assert "label_noise" in capsys.readouterr().out
    assert script.main(["nonsense", "--out", str(tmp_path)]) == 1
    assert "Expected an experiment that" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main([])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


# The second pair comes after the losses whose results it reads.
OWN = ["mutual", "cohorts", "self_distillation", "dlb_augmentation", "label_noise"]
OWN += [
    "further_schemes",
    "compression",
    "memory",
    "losses_predictions",
    "losses_layers",
    "losses_second_pair",
]


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore:.*run_functions_eagerly:UserWarning")
@pytest.mark.parametrize("name", OWN)
def test_each_experiment_at_its_tiniest(name, folder, monkeypatch):
    """One seed, eagerly; a second call trains nothing and finds the same."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    options = {"out": folder, "work": folder / "work", "say": lambda line: None}
    results = reproducing.reproduce(name, "tiny", **options)
    assert (folder / f"{name}.md").exists() and (folder / f"{name}.png").exists()
    assert [entry["records"][0]["seed"] for entry in results["comparison"]] == [0] * len(
        results["comparison"]
    )
    assert {claim["verdict"] for claim in results["claims"]} == {claims.OPEN}
    assert not [line for line in results["remarks"] if "diverged" in line]
    measured = {found["row"] for claim in results["claims"] for found in claim["differences"]}
    assert name == "memory" or measured & {entry["id"] for entry in results["comparison"]}

    def fit(*args, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(keras.Model, "fit", fit)
    assert reproducing.reproduce(name, "tiny", **options) == results


@pytest.mark.slow
@pytest.mark.tensorflow
def test_killed_between_rows(tmp_path, monkeypatch):
    """What was trained before is not trained again, and what is measured at the end is kept."""
    made = Experiment(
        name="two",
        title="Two",
        question="?",
        measure=rows(
            Row("baseline", "", trained("baseline", at_end=lambda model, test: {"own": 7.0})),
            Row("label_smoothing", "", trained("label_smoothing", smoothing=0.2)),
        ),
        scales={n: Scale("digits", TINY, 1, 30, 10, minutes=1) for n in definitions.SCALES},
    )
    trainings = []
    carry_out = definitions.running.carry_out

    def counted(run, recipe, *args, **options):
        if recipe.name == "label_smoothing" and not trainings:
            trainings.append("killed")
            raise KeyboardInterrupt
        return carry_out(run, recipe, *args, **options)

    monkeypatch.setattr(definitions.running, "carry_out", counted)
    with pytest.raises(KeyboardInterrupt):
        reproduced(made, tmp_path, "tiny")
    before = (tmp_path / "work" / "two_tiny" / "models" / "baseline_seed0.keras").read_bytes()
    results, _ = reproduced(made, tmp_path, "tiny")
    after = (tmp_path / "work" / "two_tiny" / "models" / "baseline_seed0.keras").read_bytes()
    assert before == after
    baseline, smoothed = results["comparison"]
    assert baseline["records"][0]["own"] == 7.0
    assert smoothed["records"][0]["arguments"] == {"smoothing": 0.2}
