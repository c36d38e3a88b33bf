"""Rows of experiments: what they need of each other, what they draw, what they are called."""

import dataclasses
import functools
import types

import keras
import numpy as np
import pytest

from keras_distill import backbones
from keras_distill import data
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
from keras_distill.experiments.definitions import Row
from keras_distill.experiments.definitions import Scale
from keras_distill.experiments.definitions import rows
from keras_distill.recipes import loss_terms
from keras_distill.recipes import networks
from keras_distill.recipes import paper
from keras_distill.recipes import running
from keras_distill.recipes import schemes
from keras_distill.recipes.schemes import Options
from keras_distill.recipes.settings import Setting
from keras_distill.recipes.tasks import Task
from tests.experiments.test_reproducing import TINY
from tests.experiments.test_reproducing import record

SETTING = Setting(epochs=1, batch_size=10, learning_rate=0.1, augment=False)
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
    """The assistant's student from the assistant; SimKD keeps the teacher's classifier."""
    known = further.FURTHER.scales
    for scale in known.values():
        assert further.ASSISTANTS[scale.options.filled().student]
    asked, models = [], {"large": 3, "assistant": 4}

    def load(path):
        asked.append(path)
        return backbones.small_cnn((8, 8, 1), 10, models[path], name="teacher")

    monkeypatch.setattr(further.networks, "load", load)
    place = types.SimpleNamespace(model=lambda row, seed: row)
    images = data.load("digits", limit=20).train
    task = Task(functools.partial(networks.build, "small-2", (8, 8, 1), 10), images, SETTING)
    plan = further._taught_by("assistant", paper.distillation)(place, task)
    assert asked == ["assistant"]
    assert plan.model.teacher.count_params() == load("assistant").count_params()
    plan = further._taught_by("large", further._reused_classifier)(place, task)
    assert plan.network is plan.model.inference_model
    kept = plan.network.layers[-1].get_weights()[-2:]
    theirs = plan.model.teacher.get_layer("head").get_weights()
    for ours, teachers in zip(kept, theirs, strict=True):
        np.testing.assert_array_equal(ours, teachers)


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
    assert losses._what("DIST").endswith("; temperature 4, weight 2, label loss 1.")
    assert losses._what("JensenShannon").endswith("; temperature 4, weight 0.9, label loss 0.1.")


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
        return losses.slope(place, Row(name, "", None), 0)["slope"]

    options = scale.options.filled()
    task = running.task_of(schemes.named("distillation"), place.load().train, options, 0)
    student = task.build()
    plan = task.plan(student, student)
    images, labels = next(iter(plan.data(0)))[:2]
    with tf.GradientTape(persistent=True) as tape:
        said = student(images, training=True)
        label_loss = plan.compile["loss"](labels, said)
        squares = tf.square(said - teacher(images, training=False))
        term = loss_terms.USES["LogitMSE"].weight * tf.reduce_mean(squares)
    norms = [
        float(tf.linalg.global_norm(tape.gradient(value, student.trainable_variables)))
        for value in (term, label_loss)
    ]
    assert slope("LogitMSE") == pytest.approx(norms[0] / norms[1], rel=1e-3)
    assert slope("FactorTransfer") is None
    assert 0 < slope("FlowOfSolution") < 100


def test_claims_that_are_recalled_say_so():
    """What the project's notes hold as unchecked, or not at all, is not laid to a paper as read."""
    known = reproducing.experiments()
    said = claims.recalled("")
    recalled = {
        name: sum(said in claim.source for claim in made.claims) for name, made in known.items()
    }
    expected = {"mutual": 2, "cohorts": 2, "memory": 2, "dlb_augmentation": 1}
    expected |= {"self_distillation": 2, "mysteries_multi_view": 5, "further_schemes": 6}
    assert {name: count for name, count in recalled.items() if count} == expected
    sources = {claim.source for claim in known["compression"].claims}
    assert sources == {compression.HINTON, mutual.HERE}
    assert mystery_results.PAPER in {claim.source for claim in known["mysteries"].claims}
