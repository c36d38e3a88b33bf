"""Experiments on mutual learning: two students, a large peer, a trained teacher, and cohorts."""

import dataclasses

import numpy as np

from keras_distill.experiments.claims import ACCURACY
from keras_distill.experiments.claims import Claim
from keras_distill.experiments.claims import Measure
from keras_distill.experiments.claims import every
from keras_distill.experiments.claims import larger
from keras_distill.experiments.claims import recalled
from keras_distill.experiments.claims import smaller
from keras_distill.experiments.definitions import Experiment
from keras_distill.experiments.definitions import Row
from keras_distill.experiments.definitions import Scale
from keras_distill.experiments.definitions import rows
from keras_distill.experiments.definitions import taught_by
from keras_distill.experiments.definitions import trained
from keras_distill.experiments.pages import column
from keras_distill.models.distiller import Distiller
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.mutual import MutualLearner
from keras_distill.recipes import paper
from keras_distill.recipes.schemes import Options
from keras_distill.recipes.tasks import OTHER_SEEDS
from keras_distill.recipes.training import Forwards
from keras_distill.reporting.networks import probabilities

DML = "Zhang et al., 2018, https://arxiv.org/abs/1706.00384"
HERE = "a question of this project"
ENTROPY = Measure("entropy", "nats", 1.0)
ENSEMBLE = Measure("ensemble_accuracy")
EACH = Measure("mean_accuracy")
PEER = Measure("peer_accuracy")
LEAST = 1e-12  # probability
SIZES = (2, 3, 4, 5)  # of cohorts

TINY = Options(student="small-2", teacher="small-3", ensemble=1, epochs=1, batch_size=30, looks=1)
# Each look at 10,000 test images costs as much as three epochs.
SMALL = Options(student="small-8-16-32", teacher="small-32-64-128", ensemble=1, looks=5)
FULL = Options(setting="paper", student="resnet32", teacher="wrn-28-10")


def scales(seeds, minutes, small=SMALL, full=FULL, **more):
    """The three budgets: the digits in one epoch; the regime of the prior study; the papers'.

    Args:
        seeds: Of "small" and "full".
        minutes: Of "small".
        small, full: `Options`.
        **more: As in `Scale`, for "small" and "full".
    """
    return {
        "tiny": Scale("digits", TINY, 1, limit=60, test_limit=40, **more),
        "small": Scale("fashion_mnist", small, seeds, limit=1000, minutes=minutes, **more),
        "full": Scale("cifar10", full, seeds, **more),
    }


def as_large(options):
    """The options of a row that trains the large network by itself."""
    return dataclasses.replace(options, student=options.teacher)


def as_equal(options):
    """The options of a row whose teacher is as large as its student."""
    return dataclasses.replace(options, teacher=options.student)


def networks_of(model):
    """The networks of a wrapper that classify, the one that is kept first."""
    if isinstance(model, MutualLearner):
        return model.students
    if isinstance(model, EnsembleTeacher):
        return model.members
    return [model.student if isinstance(model, Distiller) else model]


def answers(model, test):
    """What the networks of a wrapper say of the test images, each alone and all together.

    Args:
        model: The wrapper.
        test: An `ImageData`.

    Returns:
        A dict of `entropy` (mean, of the first network's predictions, in nats) and, of several
        networks, `mean_accuracy`, `peer_accuracy` (the last one's) and `ensemble_accuracy` (of
        the mean probability).
    """
    found = [probabilities(network, test.images) for network in networks_of(model)]
    said = np.maximum(found[0], LEAST)
    entropy = {"entropy": float(-np.mean(np.sum(said * np.log(said), axis=-1)))}
    if len(found) == 1:
        return entropy
    own = [_accuracy(each, test) for each in found]
    return {
        **entropy,
        "mean_accuracy": float(np.mean(own)),
        "peer_accuracy": own[-1],
        "ensemble_accuracy": _accuracy(np.mean(found, axis=0), test),
    }


def _accuracy(found, test):
    return float(np.mean(found.argmax(axis=-1) == test.labels))


def _with_large_peer(place, task):
    """DML of a student and an untrained large network."""
    pair = [task.build(0, "student1"), task.teacher(task.seed + OTHER_SEEDS)]
    pair[1].name = "student2"
    forwards = Forwards(student=task.count, peers=task.count)
    return task.plan(MutualLearner(pair), pair[0], forwards=forwards)


_from_large = taught_by("large", paper.distillation)


MUTUAL = Experiment(
    name="mutual",
    title="Mutual learning: two students, equal and unequal, and trained teachers",
    question="Do students that learn from each other end up better than alone, or than from a "
    "trained teacher?",
    scales=scales(5, 16),
    measure=rows(
        Row("baseline", "The student alone.", trained("baseline", at_end=answers)),
        Row(
            "large",
            "The large network alone.",
            trained("baseline", change=as_large, at_end=answers),
        ),
        Row("mutual", "Two equal students teach each other.", trained("mutual", at_end=answers)),
        Row(
            "mutual_large",
            "The student and an untrained large network teach each other.",
            trained("mutual", _with_large_peer, at_end=answers),
        ),
        Row(
            "distillation_equal",
            "KD from an equal network, trained before.",
            trained("distillation", change=as_equal, at_end=answers),
        ),
        Row(
            "distillation",
            "KD (temperature 4, weights 0.9 and 0.1) from the large network, trained before.",
            trained("distillation", _from_large, at_end=answers),
            needs=("large",),
        ),
        Row(
            "static_mimicry",
            "The same teacher with DML's own loss (temperature 1, weights 1 and 1).",
            trained(
                "distillation",
                _from_large,
                at_end=answers,
                temperature=1.0,
                weight=1.0,
                label_weight=1.0,
            ),
            needs=("large",),
        ),
    ),
    claims=(
        Claim(
            "Two equal students that teach each other are better than the same network alone.",
            DML,
            larger("mutual", "baseline"),
        ),
        Claim(
            "A student gains from a large peer that learns beside it.",
            DML,
            larger("mutual_large", "baseline"),
        ),
        Claim("The large peer gains too.", DML, larger("mutual_large", "large", PEER, ACCURACY)),
        Claim(
            "A peer that learns beside the student is worth more than the same network as a "
            "teacher trained before, with the same loss.",
            recalled(DML),
            larger("mutual_large", "static_mimicry"),
        ),
        Claim(
            "Such a peer is worth more than that teacher by KD.",
            HERE,
            larger("mutual_large", "distillation"),
        ),
        Claim(
            "Mutual learning of two equal students is better than KD from an equal, trained one.",
            HERE,
            larger("mutual", "distillation_equal"),
        ),
        Claim(
            "Students that teach each other predict with more entropy than one alone.",
            recalled(DML),
            larger("mutual", "baseline", ENTROPY),
        ),
    ),
    notes=(
        "Of two equal students the first is kept, whichever is better.",
        "A pair costs two trainings; a teacher that is trained before costs its own.",
    ),
    columns={
        "entropy, nats": column("entropy", 3),
        "peer %": column("peer_accuracy", scale=100.0),
        "all as an ensemble %": column("ensemble_accuracy", scale=100.0),
    },
)


def _plan_of_cohort(place, task, students, **options):
    """The recipe "mutual" with more of `MutualLearner`'s arguments."""
    cohort = [task.build(k, f"student{k + 1}") for k in range(students)]
    forwards = Forwards(student=task.count, peers=task.count * (students - 1))
    return task.plan(MutualLearner(cohort, **options), cohort[0], forwards=forwards)


def _cohort(size, name=None, what=None, **options):
    what = what or f"{size} students, each taught by each other one."
    measure = trained("mutual", _plan_of_cohort, at_end=answers, students=size, **options)
    return Row(name or f"cohort_{size}", what, measure)


def _independent(place, task, members=4):
    """As many networks as the cohort has, each on the labels alone."""
    group = [task.build(k, f"member{k + 1}") for k in range(members)]
    teacher = EnsembleTeacher(group, name="ensemble")
    forwards = Forwards(student=task.count, peers=task.count * (members - 1))
    return task.plan(teacher, group[0], forwards=forwards)


COHORTS = Experiment(
    name="cohorts",
    title="Mutual learning in cohorts of two to five, DML and DML_e",
    question="Are larger cohorts better, does it matter whether peers teach one by one or as their "
    "mean, and what is a cohort worth as an ensemble?",
    scales=scales(3, 14),
    measure=rows(
        Row("baseline", "The student alone.", trained("baseline", at_end=answers)),
        *(_cohort(size) for size in SIZES),
        _cohort(
            4,
            "cohort_4_mean",
            "Four students, each taught by the mean of the others (DML_e).",
            peers="mean",
        ),
        _cohort(
            4,
            "cohort_4_sum",
            "Four students, the terms of the peers added up, three times as strong.",
            reduce="sum",
        ),
        Row(
            "independent_4",
            "Four networks, each alone.",
            trained("baseline", _independent, at_end=answers),
        ),
    ),
    claims=(
        Claim(
            "The students of larger cohorts are better (mean over the students; five against two).",
            recalled(DML),
            larger("cohort_5", "cohort_2", EACH),
        ),
        Claim(
            "Peers one by one (DML) teach better than their mean (DML_e).",
            DML,
            larger("cohort_4", "cohort_4_mean", EACH),
        ),
        Claim(
            "Taught by the mean of their peers, students predict with less entropy.",
            DML,
            smaller("cohort_4_mean", "cohort_4", ENTROPY),
        ),
        Claim(
            "A cohort's ensemble is better than its students.",
            recalled(DML),
            every(*(larger(f"cohort_{size}", f"cohort_{size}", ENSEMBLE, EACH) for size in SIZES)),
        ),
        Claim(
            "The ensemble of four students that taught each other is better than one of four "
            "that did not.",
            HERE,
            larger("cohort_4", "independent_4", ENSEMBLE),
        ),
    ),
    notes=(
        "At equal weights DML and DML_e have the same gradient: a KL is linear in its target but "
        "for the target's entropy. Differences between these two rows are rounding, amplified by "
        "training. The published gap can come from weights: the authors' code adds the peers' "
        "terms up, which the row cohort_4_sum shows.",
        "A cohort of K costs K trainings.",
    ),
    columns={
        "mean of all %": column("mean_accuracy", scale=100.0),
        "all as an ensemble %": column("ensemble_accuracy", scale=100.0),
        "entropy, nats": column("entropy", 3),
    },
)
