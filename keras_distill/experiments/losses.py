"""Experiments on the distillation losses: each on one pair, the best ones on a second pair."""

import dataclasses
import math
import types

import keras
import numpy as np
from keras import ops

from keras_distill.experiments import claims
from keras_distill.experiments.claims import Claim
from keras_distill.experiments.claims import larger
from keras_distill.experiments.definitions import Experiment
from keras_distill.experiments.definitions import Row
from keras_distill.experiments.definitions import Scale
from keras_distill.experiments.definitions import rows
from keras_distill.experiments.definitions import trained
from keras_distill.experiments.mutual import HERE
from keras_distill.experiments.mutual import TINY
from keras_distill.experiments.mutual import as_large
from keras_distill.experiments.mutual import scales
from keras_distill.experiments.pages import column
from keras_distill.recipes import loss_names
from keras_distill.recipes import loss_terms
from keras_distill.recipes import networks
from keras_distill.recipes import running
from keras_distill.recipes import schemes
from keras_distill.recipes.schemes import Options
from keras_distill.recipes.training import Forwards
from keras_distill.reporting.runs import read_object

KD = "SoftTargets"
BEST_COUNT = 5
ALPHA = 0.5
SHARE = 4  # official: 64 of 256 images of a batch are attacked
CRD = "Tian et al., 2020, https://arxiv.org/abs/1910.10699"
# As in RepDistiller: SGD from 0.05. Fewer epochs than elsewhere: there are thirty losses.
SMALL = Options(
    student="small-8-16-32",
    teacher="small-32-64-128",
    ensemble=1,
    learning_rate=0.05,
    epochs=40,
    looks=4,
)
FULL = Options(setting="paper", student="resnet20", teacher="resnet56")
# The arguments that the command line cannot know, or that a batch of 64 wants in proportion.
ARGUMENTS = {
    "AlphaDivergence": lambda task: {"alpha": ALPHA},
    "BoundarySupport": lambda task: {"attack_size": max(1, task.setting.batch_size // SHARE)},
}


def wiring(name, teacher, student, task):
    """The `loss_terms.Wiring` of a loss: the papers' layers and weights.

    Args:
        name: The loss.
        teacher, student: The networks.
        task: The `Task`.
    """
    more = ARGUMENTS.get(name, lambda task: {})(task)
    if loss_names.unknown_arguments(name):
        return loss_terms.Wiring(name, more, loss_terms.USES.get(name, loss_terms.OF_RESPONSE))
    said = dict.fromkeys(
        ("temperature", "weight", "label_weight", "teacher_layer", "student_layer")
    )
    settings = types.SimpleNamespace(loss=name, ensemble=1, seed=task.seed, **said)
    found = loss_terms.wired(settings, teacher, student, task.images)
    return dataclasses.replace(found, arguments={**found.arguments, **more})


def distilled(place, task, loss):
    """The `Plan` of a student that learns from the row "teacher" by a loss."""
    teacher = networks.load(place.model("teacher", task.seed))
    student = task.build()
    wired = wiring(loss, teacher, student, task)
    setting = task.setting

    def optimizer(epochs):
        return setting.changed(epochs=epochs).optimizer(task.steps)

    keras.utils.set_random_seed(task.seed)  # for connectors and losses with layers
    model = wired.distiller(teacher, student, setting.epochs, task.steps, optimizer)
    epochs = sum(wired.epochs(setting.epochs))
    task = dataclasses.replace(task, setting=setting.changed(epochs=epochs))
    forwards = Forwards(student=task.count, frozen=task.count)
    return task.plan(model, student, forwards=forwards, ids=bool(wired.needs_ids))


def slope(place, row, seed):
    """How strong a row's loss is where training begins: `{"slope": ...}`.

    The norm of the gradient of the weighted loss, at the weight of its schedule that is farthest
    from 0, over that of the label loss: on the first batch, by all of the student's weights. None
    for `FactorTransfer`, whose paraphraser has learned nothing then.
    """
    task = running.task_of(
        schemes.named("distillation"), place.load().train, place.scale.options.filled(), seed
    )
    teacher = networks.load(place.model("teacher", seed))
    wired = wiring(row.name, teacher, task.build(), task)
    if wired.paraphrases:
        return {"slope": None}
    use = dataclasses.replace(wired.use, rises=None, falls=None, first=None, label_weight=0.0)
    wired = dataclasses.replace(wired, use=use)
    student, alone = task.build(), task.build()
    keras.utils.set_random_seed(seed)
    model = wired.distiller(teacher, student, 1, task.steps)
    moved = _moved(task.plan(model, student, ids=bool(wired.needs_ids)))
    return {"slope": moved / _moved(task.plan(alone, alone))}


def _moved(plan):
    """The norm of the gradient on the first batch: of what a step of SGD at rate 1 changes."""
    before = [ops.convert_to_numpy(v) for v in plan.network.trainable_variables]
    plan.model.compile(keras.optimizers.SGD(1.0), plan.compile["loss"], run_eagerly=True)
    plan.model.fit(plan.data(0).take(1), shuffle=False, verbose=0)
    after = [ops.convert_to_numpy(v) for v in plan.network.trainable_variables]
    return math.sqrt(sum(float(np.square(a - b).sum()) for a, b in zip(after, before)))


def _rows(names):
    own = [
        Row(name, _what(name), trained("distillation", distilled, after=slope, loss=name))
        for name in names
    ]
    return (
        Row("baseline", "The student alone.", trained("baseline")),
        Row("teacher", "The teacher, trained once a seed.", trained("baseline", change=as_large)),
        *(dataclasses.replace(row, needs=("teacher",)) for row in own),
    )


def _what(name):
    use = loss_terms.USES.get(name, loss_terms.Use())
    if loss_names.family(name) == "response" and name not in loss_terms.USES:
        use = loss_terms.OF_RESPONSE
    at = "" if use.temperature is None else f"temperature {use.temperature:g}, "
    weights = f"weight {use.weight:g}, label loss {use.label_weight:g}"
    return f"{loss_names.summary(name)[0]}; {at}{weights}."


def _of_family(*families):
    return [name for name in loss_names.names() if loss_names.family(name) in families]


RESPONSE = _of_family("response")
OF_LAYERS = _of_family("feature", "relation", "contrastive and boundary")
# Those that Tian et al. compare with KD.
COMPARED = (
    "Hint",
    "AttentionTransfer",
    "SimilarityPreserving",
    "CorrelationCongruence",
    "VariationalInformation",
    "RelationalDistance",
    "RelationalAngle",
    "ProbabilisticTransfer",
    "FactorTransfer",
    "NeuronSelectivity",
    "ActivationBoundary",
    "FlowOfSolution",
)
NOTES = (
    "One teacher a seed teaches by all losses. None was tuned here: weights, temperatures and "
    "layers are those of `recipes.loss_terms.USES`, the papers' or their codes' where these have "
    "any. Losses on layers stand alone beside the label loss, without KD.",
    "With this many rows some differ from KD by chance: read the order of near rows as undecided.",
)
OURS_ON_PREDICTIONS = (
    "JensenShannon, AlphaDivergence and MultiLevelKD have KD's weights, 0.9 and 0.1, and "
    "JensenShannon its temperature, 4: our choices, as are 0.5 and 0.5 of HardTargets."
)
OURS_ON_LAYERS = (
    "GradientAttention, KernelAlignment and RepresentationalSimilarity have a weight of 1, our "
    "choice; that of CorrelationCongruence is a third party's. ActivationBoundary and "
    "FlowOfSolution are a first stage of their own, a ninth of the epochs, and the labels alone "
    "train the student after it, as published."
)


STRENGTH = {"gradient at first": column("slope", 3)}
ON_STRENGTH = (
    "Gradient at first: the norm of the weighted loss's gradient by the student's weights, over "
    "that of the label loss with weight 1, on the first batch."
)
ON_WEIGHTS = (
    "The weights of losses on layers were chosen for larger networks and hundreds of epochs. A "
    "gradient far above 1 leaves little room for the labels in so short a training; one far below "
    "1 does nothing."
)


def _beats_kd(name, words, source):
    return Claim(words, source, larger(name, KD))


PREDICTIONS = Experiment(
    name="losses_predictions",
    title="Losses on predictions: one teacher, one student, equal budgets",
    question="Which loss on a teacher's predictions teaches a small student best?",
    scales=scales(5, 16, SMALL, FULL),
    measure=rows(*_rows(RESPONSE)),
    claims=(
        Claim(
            "A student learns more from a teacher's soft targets than from labels alone.",
            "Hinton et al., 2015, https://arxiv.org/abs/1503.02531",
            larger(KD, "baseline"),
        ),
        _beats_kd(
            "DecoupledKD",
            "Decoupled KD is better than KD.",
            "Zhao et al., 2022, https://arxiv.org/abs/2203.08679",
        ),
        _beats_kd(
            "DIST",
            "DIST is better than KD.",
            "Huang et al., 2022, https://arxiv.org/abs/2205.10536",
        ),
        _beats_kd(
            "NormalizedKD",
            "Normalized KD is better than KD.",
            "Yang et al., 2023, https://arxiv.org/abs/2303.13005",
        ),
        Claim(
            "Soft targets teach more than the teacher's hard ones.",
            HERE,
            larger(KD, "HardTargets"),
        ),
    ),
    notes=(
        *NOTES,
        ON_STRENGTH,
        OURS_ON_PREDICTIONS,
        f"AlphaDivergence has alpha = {ALPHA}, our choice.",
    ),
    columns=STRENGTH,
)

LAYERS = Experiment(
    name="losses_layers",
    title="Losses on layers, relations and inputs: one teacher, one student, equal epochs",
    question="Which loss on a teacher's layers teaches a small student best, and is any better "
    "than KD on predictions?",
    scales=scales(3, 26, SMALL, FULL),
    measure=rows(*_rows([KD, *OF_LAYERS])),
    claims=(
        Claim(
            "KD is better than most losses on layers (than their mean).",
            CRD,
            larger(KD, COMPARED),
        ),
        _beats_kd(
            "ContrastiveRepresentation", "Contrastive representations are better than KD.", CRD
        ),
        _beats_kd(
            "ReviewKD",
            "Reviewing earlier stages is better than KD.",
            "Chen et al., 2021, https://arxiv.org/abs/2104.09044",
        ),
        Claim(
            "A student that mimics attention maps is better than one alone.",
            "Zagoruyko and Komodakis, 2017, https://arxiv.org/abs/1612.03928",
            larger("AttentionTransfer", "baseline"),
        ),
        Claim(
            "A student that keeps the relations of its teacher's images is better than one alone.",
            "Park et al., 2019, https://arxiv.org/abs/1904.05068",
            claims.every(
                larger("RelationalDistance", "baseline"), larger("RelationalAngle", "baseline")
            ),
        ),
    ),
    notes=(
        *NOTES,
        ON_STRENGTH,
        ON_WEIGHTS,
        OURS_ON_LAYERS,
        "FactorTransfer trains its paraphraser for 6 epochs more, in which the student learns "
        "nothing. BoundarySupport attacks a quarter of a batch, as its code does, which the images "
        "forwarded do not count. GradientAttention goes back through the student twice.",
    ),
    columns=STRENGTH,
)


def best_losses(results):
    """The losses with the largest mean gain of the last epoch, KD left out, the best one first.

    Gains are of the seeds that all results have; a loss that lacks one of these is left out.

    Args:
        results: A list of results of `PREDICTIONS` and `LAYERS`.
    """
    every = [
        {
            entry["name"]: {record["seed"]: record["accuracy"] for record in entry["records"]}
            for entry in found["comparison"]
        }
        for found in results
    ]
    shared = set.intersection(*(set(rows["baseline"]) for rows in every))
    gains = {
        name: sum(own[seed] - rows["baseline"][seed] for seed in shared)
        for rows in every
        for name, own in rows.items()
        if name in loss_names.names() and name != KD and shared <= own.keys()
    }
    return sorted(gains, key=lambda name: (-gains[name], name))[:BEST_COUNT]


def _second(place):
    """The best five of the first pair, as `PREDICTIONS` and `LAYERS` found them, and KD."""
    paths = [place.out / f"{first.name}.json" for first in (PREDICTIONS, LAYERS)]
    missing = [path.stem for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"Expected the results of the first pair in {str(place.out)!r}. Received: none of "
            f"{', '.join(missing)}. Carry these experiments out first."
        )
    first = [read_object(path) for path in paths]
    scale = read_object(place.run.path / "settings.json")["scale"]
    if any(each["scale"] != scale for each in first):
        there = ", ".join(each["scale"] for each in first)
        raise ValueError(
            f"Expected the results of the first pair in {str(place.out)!r} at the scale of the "
            f"second: {scale}. Received: {there}. Carry these experiments out at that scale first."
        )
    chosen = best_losses(first)
    # Otherwise a later change of the first results would add rows of other choices.
    place.check("chosen_losses", {"losses": chosen})
    found = rows(*_rows([KD, *chosen]))(place)
    best = ", ".join(chosen)
    found["remarks"].insert(
        0,
        "The best five of the first pair, by the last epoch at the seeds that both of its "
        f"experiments have: {best}.",
    )
    return found


def _mean_gain(entries):
    chosen = tuple(name for name in entries if name in loss_names.names() and name != KD)
    return larger(chosen, KD)(entries)


SECOND = Experiment(
    name="losses_second_pair",
    title="The best five losses and KD on a second pair",
    question="Are the losses that were best on one pair better than KD on other data and networks?",
    scales={
        "tiny": Scale("digits", dataclasses.replace(TINY, student="small-3"), 1, 60, 40),
        "small": Scale(
            "cifar10",
            dataclasses.replace(SMALL, student="small-16-32-64"),
            3,
            limit=1000,
            minutes=10,
        ),
        "full": Scale(
            "cifar10",
            dataclasses.replace(FULL, student=schemes.STUDENTS["paper"], teacher="wrn-40-2"),
            3,
        ),
    },
    measure=_second,
    claims=(
        Claim(
            "KD is better than the student alone on this pair too.",
            HERE,
            larger(KD, "baseline"),
        ),
        Claim(
            "What was best on the first pair is better than KD on the second (mean of the five).",
            HERE,
            _mean_gain,
        ),
    ),
    notes=(NOTES[0], ON_STRENGTH, OURS_ON_PREDICTIONS, OURS_ON_LAYERS),
    columns=STRENGTH,
)
