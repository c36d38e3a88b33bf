"""The experiment on what no other one trains: generations, branches, averages, other teachers."""

import dataclasses

from keras_distill.experiments.claims import Claim
from keras_distill.experiments.claims import larger
from keras_distill.experiments.claims import recalled
from keras_distill.experiments.definitions import Experiment
from keras_distill.experiments.definitions import Row
from keras_distill.experiments.definitions import rows
from keras_distill.experiments.definitions import taught_by
from keras_distill.experiments.definitions import trained
from keras_distill.experiments.mutual import as_large
from keras_distill.experiments.mutual import scales
from keras_distill.experiments.pages import column
from keras_distill.models.reused_classifier import ReusedClassifierDistiller
from keras_distill.recipes import paper
from keras_distill.recipes.training import Forwards

ASSISTANTS = {"small-2": "small-3", "small-8-16-32": "small-16-32-64", "resnet32": "resnet110"}
MEMBERS = 3  # of the ensemble that teaches


def as_assistant(options):
    """The options of a row that trains a network between the student's size and the teacher's."""
    return dataclasses.replace(options, student=ASSISTANTS[options.student])


def as_several(options):
    """The options of a row whose teacher is an ensemble."""
    return dataclasses.replace(options, ensemble=MEMBERS)


def _reused_classifier(task, teacher):
    """SimKD: the student's body learns the teacher's last map, and keeps its classifier."""
    model = ReusedClassifierDistiller(teacher, task.build())
    forwards = Forwards(student=task.count, frozen=task.count)
    return task.plan(model, model.inference_model, forwards=forwards)


def _from(row, name, what, make=paper.distillation, base="distillation", **options):
    return Row(name, what, trained(base, taught_by(row, make), **options), needs=(row,))


FURTHER = Experiment(
    name="further_schemes",
    title="Generations, branches, averages of weights, and other teachers",
    question="What do born-again networks, ONE and mean teacher gain, and does a student learn "
    "more from an ensemble, an assistant, mixed images or a classifier that it takes over than "
    "by KD from one teacher?",
    scales=scales(5, 27),
    measure=rows(
        Row("baseline", "The student alone.", trained("baseline")),
        Row("large", "The large network alone.", trained("baseline", change=as_large)),
        Row(
            "born_again",
            "Two further generations, each taught by the one before, without labels.",
            trained("born_again"),
        ),
        Row(
            "one",
            "Three branches on a shared stem, taught by their gated ensemble; the first is kept.",
            trained("one"),
        ),
        Row(
            "mean_teacher",
            "Agrees with the moving average of its weights, which is kept; same images for both.",
            trained("mean_teacher"),
        ),
        _from("large", "distillation", "KD (temperature 4, weights 0.9 and 0.1), one teacher."),
        Row(
            "ensemble_teacher",
            f"KD from {MEMBERS} large networks, their probabilities averaged.",
            trained("distillation", change=as_several),
        ),
        _from("large", "assistant", "A network of middle size, by KD.", change=as_assistant),
        _from("assistant", "teacher_assistant", "KD from the assistant."),
        _from(
            "large",
            "function_matching",
            "KL at temperature 1 on images mixed by MixUp, without labels.",
            paper.function_matching,
            "function_matching",
            augments=False,
        ),
        _from(
            "large",
            "ReusedClassifierDistiller",
            "SimKD: the teacher's classifier behind the student's body and a projector.",
            _reused_classifier,
        ),
    ),
    claims=(
        Claim(
            "A network taught by an earlier generation of itself is better.",
            "Furlanello et al., 2018, https://arxiv.org/abs/1805.04770",
            larger("born_again", "baseline"),
        ),
        Claim(
            "A branch of ONE is better than the same network alone.",
            recalled("Lan et al., 2018, https://arxiv.org/abs/1806.04606"),
            larger("one", "baseline"),
        ),
        Claim(
            "An average of weights that the student agrees with is better than plain training.",
            recalled("Tarvainen and Valpola, 2017, https://arxiv.org/abs/1703.01780"),
            larger("mean_teacher", "baseline"),
        ),
        Claim(
            "A student learns more from an ensemble than from one of its members' kind.",
            recalled("Hinton et al., 2015, https://arxiv.org/abs/1503.02531"),
            larger("ensemble_teacher", "distillation"),
        ),
        Claim(
            "A student learns more from an assistant than from the large teacher itself.",
            recalled("Mirzadeh et al., 2020, https://arxiv.org/abs/1902.03393"),
            larger("teacher_assistant", "distillation"),
        ),
        Claim(
            "Matching the teacher on mixed images, without labels, is better than KD.",
            recalled("Beyer et al., 2022, https://arxiv.org/abs/2106.05237"),
            larger("function_matching", "distillation"),
        ),
        Claim(
            "A student with its teacher's classifier is better than one by KD.",
            recalled("Chen et al., 2022, https://arxiv.org/abs/2203.14001"),
            larger("ReusedClassifierDistiller", "distillation"),
        ),
    ),
    notes=(
        "Settings are those of `keras-distill recipes` at its small setting: epochs, batches and "
        "rate are the same for all. 60 epochs are short for function_matching, whose paper asks "
        "for patience; the images that it mixes are not shifted here, like those of the others.",
        "SimKD's network has the projector and the teacher's classifier too: see the parameters. "
        "Its claim is on accuracy alone.",
        "Mean teacher was made for few labels among many images; here all images have labels. "
        "Its decay (0.99) and weight (10) are those of short trainings.",
    ),
    columns={"parameters": column("parameters", 0)},
)
