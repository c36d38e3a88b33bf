"""Experiments on the distillation losses: each on one pair, the best ones on a second pair."""

import dataclasses

import keras

from keras_distill.experiments import claims
from keras_distill.experiments.claims import Claim
from keras_distill.experiments.claims import larger
from keras_distill.experiments.claims import recalled
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
from keras_distill.experiments.strengths import ALPHA
from keras_distill.experiments.strengths import slope
from keras_distill.experiments.strengths import wiring
from keras_distill.recipes import loss_names
from keras_distill.recipes import loss_terms
from keras_distill.recipes import networks
from keras_distill.recipes import schemes
from keras_distill.recipes.schemes import Options
from keras_distill.recipes.training import Forwards
from keras_distill.reporting.runs import read_object

KD = "SoftTargets"
BEST_COUNT = 5
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


def distilled(place, task, loss, use):
    """The `Plan` of a student that learns from the row "teacher" by a loss.

    `use` has the arguments of its `loss_terms.Use`: trainings of another use are no part of it.
    """
    teacher = networks.load(place.model("teacher", task.seed))
    student = task.build()
    use = loss_terms.Use(**use)
    wired = dataclasses.replace(wiring(loss, teacher, student, task), use=use)
    setting = task.setting

    def optimizer(epochs):
        return setting.changed(epochs=epochs).optimizer(task.steps)

    keras.utils.set_random_seed(task.seed)  # for connectors and losses with layers
    model = wired.distiller(teacher, student, setting.epochs, task.steps, optimizer)
    first, then = wired.epochs(setting.epochs)
    epochs = first + then
    # Means over the epochs: the student learns nothing while a paraphraser does, and after a
    # first stage of its own the teacher is not asked.
    learns = then if wired.paraphrases else epochs
    asked = first if wired.use.first else epochs
    forwards = Forwards(
        student=task.count * learns / epochs,
        frozen=task.count * (asked + epochs - learns) / epochs,
    )
    task = dataclasses.replace(task, setting=setting.changed(epochs=epochs))
    return task.plan(model, student, forwards=forwards, ids=bool(wired.needs_ids))


def _rows(names):
    own = [
        Row(
            name,
            _what(name),
            trained(
                "distillation",
                distilled,
                after=slope,
                loss=name,
                use=dataclasses.asdict(loss_terms.use_of(name)),
            ),
        )
        for name in names
    ]
    return (
        Row("baseline", "The student alone.", trained("baseline")),
        Row("teacher", "The teacher, trained once a seed.", trained("baseline", change=as_large)),
        *(dataclasses.replace(row, needs=("teacher",)) for row in own),
    )


def _what(name):
    how = str(loss_terms.use_of(name))
    return f"{loss_names.summary(name)[0]}; {how}."


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
    "choice; that of CorrelationCongruence is a third party's. Norm and reduction of "
    "GradientAttention are our reading of its paper. BoundarySupport stands beside KD in its "
    "paper. FlowOfSolution is compared by the mean over pairs of channels, as in RepDistiller: by "
    "the paper's sum, hundreds of times as strong, the training ended in NaN with each seed. "
    "ActivationBoundary and FlowOfSolution are a first stage of their own, a ninth of the epochs, "
    "and the labels alone train the student after it, as published."
)


STRENGTH = {"gradient at first": column("slope", 3)}
ON_STRENGTH = (
    "Gradient at first: the norm of the weighted loss's gradient by the student's weights, over "
    "that of the label loss with weight 1, on the first batch."
)
ON_WEIGHTS = (
    "Most weights were chosen for larger networks and hundreds of epochs, and no other was tried "
    "here. Most rows with gradients many times the label loss's lie far below the student alone, "
    "and the one of a five-hundredth does as it does; but GradientAttention and BoundarySupport "
    "begin weak and end low too, so that is not all there is to it."
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
            recalled("Hinton et al., 2015, https://arxiv.org/abs/1503.02531"),
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
            recalled("Chen et al., 2021, https://arxiv.org/abs/2104.09044"),
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
    notes=(
        NOTES[0],
        ON_STRENGTH,
        "Which weights are our own choice stands beside the results of the first pair.",
    ),
    columns=STRENGTH,
)
