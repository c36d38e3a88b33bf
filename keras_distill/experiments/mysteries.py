"""Experiments on the three mysteries of Allen-Zhu and Li, on images."""

from keras_distill import backbones
from keras_distill.experiments.claims import ACCURACY
from keras_distill.experiments.claims import larger
from keras_distill.experiments.claims import no_larger
from keras_distill.experiments.definitions import Experiment
from keras_distill.experiments.definitions import Scale
from keras_distill.experiments.mystery_results import AVERAGE
from keras_distill.experiments.mystery_results import BEST_MEMBER
from keras_distill.experiments.mystery_results import PARTS
from keras_distill.experiments.mystery_results import SGD
from keras_distill.experiments.mystery_results import TINY
from keras_distill.experiments.mystery_results import WIDE
from keras_distill.experiments.mystery_results import carried_out
from keras_distill.experiments.mystery_results import claim
from keras_distill.experiments.mystery_results import study_of
from keras_distill.recipes import networks
from keras_distill.recipes.schemes import Options

STATISTICS = 256, 40  # images, and passes over them: 0.9^40 of the first statistics is left


def _deep(place):
    split = place.load()
    name = place.scale.options.filled().student

    def build(seed):
        return networks.build(name, split.train.image_shape, split.train.class_count, seed)

    return carried_out(place, {"": study_of(place, build, split)}, f"networks `{name}`")


def _random(place):
    split, more = place.load(), place.scale.more

    def build(seed):
        shape, classes = split.train.image_shape, split.train.class_count
        return backbones.random_features(shape, classes, more["channels"], seed=seed)

    channels = "-".join(map(str, more["channels"]))
    words = f"`random_features` of {channels} channels"
    return carried_out(place, {"": study_of(place, build, split)}, words)


def _tangent(place):
    split = place.load()
    name = place.scale.options.filled().student
    count, passes = STATISTICS

    def build(seed):
        train = split.train
        network = networks.build(name, train.image_shape, train.class_count, seed)
        images = train.images[:count].astype("float32") / 255.0
        for _ in range(passes):  # moving statistics: nothing is learned
            network(images, training=True)
        return backbones.linearized(network, subtract_initial=True)

    words = f"`{name}` linearised at initialisation, f(x; w0) left out"
    return carried_out(place, {"": study_of(place, build, split)}, words)


DEEP = Experiment(
    name="mysteries",
    title="Three mysteries: the ensemble, the average trained directly, and distillation",
    question="Why is an ensemble of equal networks better than each of them, why does training "
    "their average not do the same, and how much of the ensemble does one student keep?",
    measure=_deep,
    scales={
        "tiny": Scale(
            "digits",
            Options(student="small-2"),
            1,
            limit=32,
            test_limit=40,
            more={**TINY, "pool": 3},
        ),
        "small": Scale(
            "fashion_mnist",
            Options(student="small-8-16-32"),
            5,
            limit=1000,
            minutes=20,
            more={"training": {**SGD, "epochs": 60}, "members": 5, "students": 5, "pool": 30},
        ),
        "full": Scale(
            "cifar10",
            Options(setting="paper", student="wrn-28-10"),
            3,
            more={"training": WIDE, "members": 10, "students": 10},
        ),
    },
    claims=(
        claim("An ensemble is better than its members.", larger("ensemble", "single")),
        claim(
            "An ensemble is better than its best member.",
            larger("ensemble", "single", ACCURACY, BEST_MEMBER),
        ),
        claim(
            "Networks trained on the loss of their average are no better than a single one "
            "(by a point at most).",
            no_larger("average", "single", 1.0),
        ),
        claim(
            "A student of the ensemble is better than a single network.",
            larger("distilled", "single"),
        ),
        claim(
            "A student of one equal network is better than a single network.",
            larger("self_distilled", "single"),
        ),
        claim(
            "The ensemble teaches better than one of its members.",
            larger("distilled", "self_distilled"),
        ),
        claim(
            "Students of the same ensemble gain little as an ensemble (a point at most over one).",
            no_larger("distilled_ensemble", "distilled", 1.0),
        ),
    ),
    notes=(
        "Ensembles average logits, as in the paper. Temperature and weights of its distillation "
        "are not known to us; ours are those of the recipe `distillation`.",
        AVERAGE,
    ),
    **PARTS,
)

RANDOM_FEATURES = Experiment(
    name="mysteries_random_features",
    title="Three mysteries: a linear head on frozen random features",
    question="An ensemble of networks that learn no features helps too. Can it be distilled?",
    measure=_random,
    scales={
        "tiny": Scale(
            "digits",
            Options(student="small-2"),
            1,
            limit=32,
            test_limit=40,
            more={**TINY, "channels": [2]},
        ),
        "small": Scale(
            "fashion_mnist",
            Options(),
            5,
            limit=1000,
            minutes=7,
            more={
                "training": {**SGD, "epochs": 60, "learning_rate": 10.0, "weight_decay": 0.0},
                "channels": [4, 8, 8],
                "members": 5,
                "students": 5,
            },
        ),
        "full": Scale(
            "cifar10",
            Options(setting="paper"),
            3,
            more={
                "training": {**WIDE, "learning_rate": 10.0, "weight_decay": 0.0},
                "channels": [64, 128, 256],
                "members": 10,
                "students": 10,
            },
        ),
    },
    claims=(
        claim("An ensemble is better than its members.", larger("ensemble", "single")),
        claim(
            "A student of the ensemble is no better than a single network (by a point at most).",
            no_larger("distilled", "single", 1.0),
        ),
        claim(
            "The average trained directly is better than the ensemble.",
            larger("average", "ensemble"),
        ),
    ),
    notes=(
        "Learning rate and channels were chosen on training images of another draw, four seeds, "
        "among 1, 3, 10 and 30 and four maps: the learning rate for the single network, the "
        "channels (72 features) so that an ensemble of three gains there. That the effect exists "
        "somewhere is the claim that is tested, not that it is everywhere.",
        "Students train at the rate of the single network, too. It was checked before the runs, on "
        "1,000 other training images, tested on 5,000 more, in four groups: a student of an "
        "ensemble of five reached 73.9 % at 3, 75.0 % at 10 and 74.7 % at 30, a single network "
        "76.5 % at 10. So the rate stays.",
        AVERAGE,
    ),
    **PARTS,
)

TANGENT = Experiment(
    name="mysteries_linearized",
    title="Three mysteries: networks linearised at their initial weights",
    question="What is an ensemble of neural tangent kernels of finite networks worth, and can it "
    "be distilled into one?",
    measure=_tangent,
    scales={
        "tiny": Scale(
            "digits", Options(student="small-2"), 1, limit=32, test_limit=40, more=dict(TINY)
        ),
        "small": Scale(
            "fashion_mnist",
            Options(student="small-8-16-32"),
            3,
            limit=1000,
            minutes=12,
            more={
                "training": {**SGD, "epochs": 30, "learning_rate": 0.3},
                "members": 5,
                "students": 5,
            },
        ),
        "full": Scale(
            "cifar10",
            Options(setting="paper", student="wrn-16-4"),
            3,
            more={"training": {**WIDE, "learning_rate": 0.3}, "members": 10, "students": 10},
        ),
    },
    claims=RANDOM_FEATURES.claims,
    notes=(
        "The networks keep the statistics of their normalization at the first 256 training images "
        "with the initial weights: without them signals shrink from layer to layer.",
        "The learning rate was chosen on training images of another draw, two seeds, among 0.01 "
        "to 1, for single networks. For students it was not checked: those of one network are so "
        "far below it that some may have been too fast for it.",
        AVERAGE,
    ),
    **PARTS,
)
