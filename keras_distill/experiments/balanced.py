"""The experiment on losses on layers at weights that their first gradients give."""

import dataclasses

from keras_distill.experiments.claims import Claim
from keras_distill.experiments.claims import alike
from keras_distill.experiments.claims import larger
from keras_distill.experiments.definitions import Experiment
from keras_distill.experiments.definitions import Row
from keras_distill.experiments.definitions import file_name
from keras_distill.experiments.definitions import rows
from keras_distill.experiments.definitions import trained
from keras_distill.experiments.losses import FULL
from keras_distill.experiments.losses import OF_LAYERS
from keras_distill.experiments.losses import SMALL
from keras_distill.experiments.losses import distilled
from keras_distill.experiments.mutual import HERE
from keras_distill.experiments.mutual import as_large
from keras_distill.experiments.mutual import scales
from keras_distill.experiments.pages import column
from keras_distill.experiments.strengths import slope_of
from keras_distill.recipes import loss_names
from keras_distill.recipes import loss_terms

# Those that stand beside the label loss from the first step on.
BESIDE = tuple(
    name for name in OF_LAYERS if name != "FactorTransfer" and loss_terms.use_of(name).first is None
)
# Of these, the ones that the rule makes weaker than their papers' weights in "small".
WEAKER = tuple(
    name
    for name in BESIDE
    if name not in ("BoundarySupport", "GradientAttention", "VariationalInformation")
)


def balanced_weight(place, loss, seed):
    """The weight at which a loss's first gradient is as large as the label loss's, found once."""

    def found():
        return {"weight": loss_terms.use_of(loss).weight / slope_of(place, loss, seed)}

    return place.stored(f"{file_name(loss, seed)}_weight", found)["weight"]


def _distilled(place, task, loss, use):
    weight = balanced_weight(place, loss, task.seed)
    return distilled(place, task, loss, {**use, "weight": weight})


def _row(name):
    def weight(place, row, seed):
        return {"weight": balanced_weight(place, name, seed)}

    use = dataclasses.asdict(loss_terms.use_of(name))
    measure = trained("distillation", _distilled, after=weight, loss=name, use=use)
    return Row(name, f"{loss_names.summary(name)[0]}.", measure, needs=("teacher",))


BALANCED = Experiment(
    name="losses_balanced",
    title="Losses on layers at weights that their first gradients give",
    question="Do losses on layers help a small student in a short training where none of them is "
    "stronger or weaker than the labels at first?",
    scales=scales(3, 12, SMALL, FULL),
    measure=rows(
        Row("baseline", "The student alone.", trained("baseline")),
        Row("teacher", "The teacher, trained once a seed.", trained("baseline", change=as_large)),
        *(_row(name) for name in BESIDE),
    ),
    claims=(
        Claim(
            "At such weights losses on layers are better than the student alone (their mean).",
            HERE,
            larger(BESIDE, "baseline"),
        ),
        Claim(
            "Where the rule makes a loss weaker than its paper's weight does, the student is as "
            "good as alone (the mean of these, within a point); formulated after the runs.",
            HERE,
            alike(WEAKER, "baseline", 1.0),
        ),
    ),
    notes=(
        "The one rule for all: a weight, for each seed, at which the norm of the loss's gradient "
        "is that of the label loss's on the first batch. It was set before these runs, after those "
        "with the papers' weights; no other was tried. Layers, schedules and teachers are the same "
        "as there.",
        "The rule takes away most of what strong weights do to a student, and brings no gain that "
        "these seeds could show. It is none for losses that begin weak: it makes the weights of "
        "GradientAttention, BoundarySupport and VariationalInformation up to hundreds of times the "
        "papers', and they break the training.",
        "ActivationBoundary and FlowOfSolution, a first stage of their own, and FactorTransfer, "
        "whose paraphraser is trained before, have no such weight.",
    ),
    columns={"weight": column("weight", 4)},
)
