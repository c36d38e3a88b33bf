"""Rows of experiments: what they need of each other, what they draw, what they are called."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest

from keras_distill import backbones
from keras_distill import data
from keras_distill.experiments import balanced
from keras_distill.experiments import claims
from keras_distill.experiments import compression
from keras_distill.experiments import definitions
from keras_distill.experiments import further
from keras_distill.experiments import losses
from keras_distill.experiments import mutual
from keras_distill.experiments import mystery_results
from keras_distill.experiments import pages
from keras_distill.experiments import reproducing
from keras_distill.experiments import self_distillation
from keras_distill.experiments import strengths
from keras_distill.experiments.definitions import Row
from keras_distill.experiments.definitions import Scale
from keras_distill.experiments.definitions import rows
from keras_distill.losses import decoupled_kd
from keras_distill.recipes import loss_terms
from keras_distill.recipes import networks
from keras_distill.recipes import running
from keras_distill.recipes import schemes
from keras_distill.recipes.schemes import Options
from tests.experiments.test_reproducing import TINY
from tests.experiments.test_reproducing import record

SCALE = Scale("digits", TINY, 2, limit=60, test_limit=10)


def row(name, images, seconds, needs=(), diverges=()):
    """A row whose own training forwards so many images in so many seconds."""

    def measure(place, own, seed):
        if seed in diverges:
            raise definitions.NonFiniteLoss("Received: loss=nan.")
        forwards = {"student": images, "peers": 0, "frozen": 0, "before": 0}
        return record(seed, 0.5, seconds=seconds, images=forwards)

    return Row(name, "", measure, needs=needs)


def measured(folder, *every):
    place = definitions.Place(folder, SCALE, [0, 1], say=lambda line: None)
    found = rows(*every)(place)
    return {entry["id"]: entry["records"] for entry in found["comparison"]}, found["remarks"]


def test_what_a_row_needs_counts_once_and_in_turn(tmp_path):
    found, _ = measured(
        tmp_path,
        row("teacher", 100, 8.0),
        row("distillation", 10, 1.0, ("teacher",)),
        row("quantized", 1, 0.5, ("distillation",)),
        row("both", 1, 0.5, ("distillation", "teacher")),
    )
    for name, before, seconds in (
        ("teacher", 0, 8.0),
        ("distillation", 100, 9.0),
        ("quantized", 110, 9.5),
        ("both", 110, 9.5),
    ):
        assert [each["images"]["before"] for each in found[name]] == [before] * 2, name
        assert [each["seconds"] for each in found[name]] == [seconds] * 2, name
    with pytest.raises(ValueError, match="those that others need first"):
        rows(row("student", 1, 1.0, ("teacher",)), row("teacher", 1, 1.0))


def test_rows_that_need_one_that_diverged_are_left_out(tmp_path):
    found, remarks = measured(
        tmp_path,
        row("baseline", 10, 1.0),
        row("teacher", 10, 1.0, diverges=(1,)),
        row("distillation", 10, 1.0, ("teacher",)),
        row("quantized", 10, 1.0, ("distillation",)),
    )
    assert [each["seed"] for each in found["baseline"]] == [0, 1]
    assert [each["seed"] for each in found["quantized"]] == [0]
    assert remarks[:3] == [
        "teacher diverged with seed 1: Received: loss=nan.",
        "distillation has no seed 1, as it needs teacher, of which there is none.",
        "quantized has no seed 1, as it needs distillation, of which there is none.",
    ]


def test_each_seed_has_wrong_labels_of_its_own(tmp_path):
    place = definitions.Place(tmp_path, SCALE, [0, 1])
    right = place.load()
    assert place.load(seed=1) is right and place.load(0.4, 1) is place.load(0.4, 1)
    wrong = [place.load(0.4, seed) for seed in (0, 1)]
    places = [np.flatnonzero(each.train.labels != right.train.labels) for each in wrong]
    assert [len(each) for each in places] == [24, 24]
    assert not np.array_equal(*places)
    assert all((each.test.labels == right.test.labels).all() for each in wrong)


def test_pages_say_what_the_seeds_draw():
    entry = definitions.entry("baseline", "Alone.", [record(0, 0.5), record(1, 0.6)])
    results = {"seeds": [0, 1], "comparison": [entry]}
    assert "Planned before" in pages._planned(results)[0]
    assert pages._planned({**results, "networks": "networks of their own"}) == []
    assert "initial weights and order, not" in pages._legend(results)[0]
    entry["records"][0]["noise"] = 0.4
    assert "order and, where labels are wrong, of which ones are, not" in pages._legend(results)[0]


def augmented(wrap, name):
    """What a wrapped recipe hands to the pipeline, of ten white images."""
    images = data.ImageData(
        np.full((10, 28, 28, 1), 255, "uint8"), np.arange(10), tuple("abcdefghij"), "white"
    )
    options = Options(student="small-2", batch_size=10).filled()
    task = running.task_of(schemes.named("baseline"), images, options, 0)
    return wrap(lambda task: task.pipeline_options[name])(None, task)


@pytest.mark.tensorflow
def test_cutout_erases_every_image():
    import tensorflow as tf

    white = tf.ones((64, 28, 28, 1))
    seeds = tf.constant([[0, i] for i in range(64)], tf.int32)
    found = augmented(self_distillation._cutout, "augment")(white, seeds).numpy()
    assert set(np.unique(found)) == {0.0, 1.0}
    erased = 1.0 - found.mean(axis=(1, 2, 3))
    assert 0.01 < erased.min() and erased.max() < 0.36
    mix = augmented(self_distillation._cutmix, "mix")
    assert isinstance(mix, keras.layers.CutMix) and mix.factor == (1.0, 1.0)


def results_of(scale="tiny", seeds=2, **accuracies):
    found = {"baseline": [0.5] * seeds, **accuracies}
    return {
        "scale": scale,
        "comparison": [
            definitions.entry(name, "", [record(seed, value) for seed, value in enumerate(values)])
            for name, values in found.items()
        ],
    }


def test_further_schemes_learn_from_the_teachers_that_their_words_name(tmp_path, monkeypatch):
    """Each row loads what the row that it needs trained; SimKD keeps the teacher's classifier."""
    for scale in further.FURTHER.scales.values():
        assert further.ASSISTANTS[scale.options.filled().student]
    asked, plans = {}, {}
    taught = {
        "distillation": "large",
        "assistant": "large",
        "teacher_assistant": "assistant",
        "function_matching": "large",
        "ReusedClassifierDistiller": "large",
    }

    def carry_out(run, recipe, split, options, seed, **others):
        def load(path):
            asked[recipe.name] = pathlib.Path(path).name
            return backbones.small_cnn((8, 8, 1), 10, 3, name="teacher")

        if recipe.name in taught:
            monkeypatch.setattr(definitions.networks, "load", load)
            task = running.task_of(recipe, split.train, options, seed)
            plans[recipe.name] = recipe.plan(task, options), task
        forwards = {"student": 1, "peers": 0, "frozen": 0, "before": 0}
        return record(seed, 0.5, seconds=1.0, images=forwards)

    monkeypatch.setattr(definitions.running, "carry_out", carry_out)
    place = definitions.Place(tmp_path, further.FURTHER.scale("tiny"), [0], say=lambda line: None)
    further.FURTHER.measure(place)
    assert asked == {name: f"{needed}_seed0.keras" for name, needed in taught.items()}
    assert not any(task.setting.augment for _, task in plans.values())
    assert plans["function_matching"][0].model.terms[0].loss.temperature == 1.0
    plan, _ = plans["ReusedClassifierDistiller"]
    assert plan.network is plan.model.inference_model
    kept = plan.network.layers[-1].get_weights()[-2:]
    theirs = plan.model.teacher.get_layer("head").get_weights()
    for ours, teachers in zip(kept, theirs, strict=True):
        np.testing.assert_array_equal(ours, teachers)


def test_images_of_stages_are_those_that_are_forwarded(tmp_path, monkeypatch):
    """After a first stage of its own no teacher is asked; a paraphraser teaches no student."""
    scale = Scale("digits", dataclasses.replace(TINY, epochs=9), 1, limit=60, test_limit=10)
    place = definitions.Place(tmp_path, scale, [0], say=lambda line: None)
    monkeypatch.setattr(
        losses.networks, "load", lambda path: networks.build("small-3", (8, 8, 1), 10, seed=1)
    )
    task = running.task_of(
        schemes.named("distillation"), place.load().train, scale.options.filled(), 0
    )
    for name, epochs, student, frozen in (
        ("LogitMSE", 9, 9, 9),
        ("FlowOfSolution", 9, 9, 1),
        ("FactorTransfer", 15, 9, 21),
    ):
        use = dataclasses.asdict(loss_terms.use_of(name))
        plan = losses.distilled(place, task, name, use)
        cost = running._cost(plan, [])
        assert cost["epochs"] == epochs
        assert cost["images"]["student"] == student * len(task.images)
        assert cost["images"]["frozen"] == frozen * len(task.images)


def test_the_best_losses_are_those_of_the_seeds_that_both_have():
    """The third seed, which one experiment has, would put Hint first; a diverged loss is out."""
    first = results_of(seeds=3, DIST=[0.6, 0.6, 0.6], LogitMSE=[0.51, 0.51, 0.9])
    first["comparison"][0]["records"][2]["accuracy"] = 0.1
    second = results_of(
        SoftTargets=[0.9, 0.9],
        teacher=[0.95, 0.95],
        Hint=[0.59, 0.59],
        ReviewKD=[0.9],
        FactorTransfer=[0.52, 0.54],
    )
    assert losses.best_losses([first, second]) == ["DIST", "Hint", "FactorTransfer", "LogitMSE"]
    many = {name: [0.5 + 0.01 * i] * 2 for i, name in enumerate(losses.RESPONSE)}
    assert len(losses.best_losses([results_of(**many), second])) == losses.BEST_COUNT


def test_the_second_pair_trusts_no_results_of_another_scale_or_choice(tmp_path, monkeypatch):
    asked = []

    def _rows(names):
        asked.append(names)
        return (row("baseline", 10, 1.0),)

    monkeypatch.setattr(losses, "_rows", _rows)
    run = definitions.begin(losses.SECOND, "tiny", tmp_path / "work")
    out = tmp_path / "out"
    place = definitions.Place(run, losses.SECOND.scale("tiny"), [0], say=len, out=out)
    with pytest.raises(FileNotFoundError, match="Carry these experiments out first"):
        losses.SECOND.measure(place)
    definitions.store(out / "losses_layers.json", results_of(Hint=[0.6, 0.6]))
    definitions.store(out / "losses_predictions.json", results_of("small", DIST=[0.7, 0.7]))
    with pytest.raises(ValueError, match="scale of the second: tiny. Received: small, tiny"):
        losses.SECOND.measure(place)
    definitions.store(out / "losses_predictions.json", results_of(DIST=[0.7, 0.7]))
    found = losses.SECOND.measure(place)
    assert asked == [["SoftTargets", "DIST", "Hint"]]
    assert found["remarks"][0].endswith("have: DIST, Hint.")
    definitions.store(out / "losses_predictions.json", results_of(DIST=[0.55, 0.55]))
    with pytest.raises(ValueError, match="chosen_losses was begun with"):
        losses.SECOND.measure(place)


def test_rows_of_predictions_run_at_the_temperature_of_their_weights():
    assert losses._what("DIST").endswith("; temperature 4, weight 2; label loss: weight 1.")
    assert losses._what("JensenShannon").endswith(
        "; temperature 4, weight 0.9; label loss: weight 0.1."
    )


@pytest.mark.tensorflow
def test_slopes_are_gradients_of_the_loss_over_those_of_the_labels(tmp_path):
    """LogitMSE's against GradientTape, on the first batch; a paraphraser's stage has none."""
    import tensorflow as tf

    scale = Scale("digits", dataclasses.replace(TINY, batch_size=20), 1, limit=60, test_limit=10)
    place = definitions.Place(tmp_path, scale, [0], say=lambda line: None)
    teacher = networks.build("small-3", (8, 8, 1), 10, seed=7)
    path = place.model("teacher", 0)
    path.parent.mkdir(parents=True)
    teacher.save(path)

    def slope(name):
        return strengths.slope(place, Row(name, "", None), 0)["slope"]

    options = scale.options.filled()
    task = running.task_of(schemes.named("distillation"), place.load().train, options, 0)
    student = task.build()
    plan = task.plan(student, student)
    images, labels = next(iter(plan.data(0)))[:2]
    with tf.GradientTape(persistent=True) as tape:
        said = student(images, training=True)
        label_loss = plan.compile["loss"](labels, said)
        squares = tf.square(said - teacher(images, training=False))
        terms = {
            "LogitMSE": loss_terms.USES["LogitMSE"].weight * tf.reduce_mean(squares),
            "DecoupledKD": tf.reduce_mean(
                decoupled_kd(teacher(images, training=False), said, labels)
            ),
        }
    labels_alone, *norms = [
        float(tf.linalg.global_norm(tape.gradient(value, student.trainable_variables)))
        for value in (label_loss, *terms.values())
    ]
    for name, norm in zip(terms, norms):  # DecoupledKD's weight rises: here it is the last one
        assert slope(name) == pytest.approx(norm / labels_alone, rel=1e-3)
    assert slope("FactorTransfer") is None
    even = loss_terms.USES["LogitMSE"].weight * labels_alone / norms[0]
    assert balanced.balanced_weight(place, "LogitMSE", 0) == pytest.approx(even, rel=1e-3)
    assert set(balanced.BESIDE) == set(losses.OF_LAYERS) - {
        "ActivationBoundary",
        "FactorTransfer",
        "FlowOfSolution",
    }


def test_claims_that_are_recalled_say_so():
    """What the project's notes hold as unchecked, or not at all, is not laid to a paper as read."""
    known = reproducing.experiments()
    said = claims.recalled("")
    recalled = {
        name: sum(said in claim.source for claim in made.claims) for name, made in known.items()
    }
    expected = {"mutual": 2, "cohorts": 2, "memory": 2, "dlb_augmentation": 1, "compression": 1}
    expected |= {"self_distillation": 2, "mysteries_multi_view": 5, "further_schemes": 6}
    expected |= {"losses_predictions": 1, "losses_layers": 1}
    assert {name: count for name, count in recalled.items() if count} == expected
    sources = {claim.source for claim in known["compression"].claims}
    assert sources == {compression.HINTON, mutual.HERE}
    assert mystery_results.PAPER in {claim.source for claim in known["mysteries"].claims}
