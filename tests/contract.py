"""The descriptors of the contract test: one line a wrapper."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

import keras_distill as kd

CLASSES = 4
SHAPE = (6, 6, 2)
MOST_SAMPLES = 40  # of a training


def network(name, width=3, batch_norm=True, dropout=0.0, softmax=False, dtype=None):
    """A small convolutional classifier with the layers "stem", "features" and "logits"."""
    layers = keras.layers
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(width, 3, use_bias=not batch_norm, name="stem", dtype=dtype)(inputs)
    if batch_norm:
        x = layers.BatchNormalization(name="norm", dtype=dtype)(x)
    x = layers.ReLU(name="features", dtype=dtype)(x)
    x = layers.GlobalAveragePooling2D(name="pool", dtype=dtype)(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout", dtype=dtype)(x)
    activation = "softmax" if softmax else None
    outputs = layers.Dense(CLASSES, activation=activation, name="logits", dtype="float32")(x)
    return keras.Model(inputs, outputs, name=name)


def distiller(**options):
    """Logits, a feature with a connector, and a loss that reads labels."""
    terms = [
        kd.Term(kd.losses.SoftTargets(4.0), weight=0.9),
        kd.Term(kd.losses.Hint(), "features", "features", weight=0.5, connector="auto"),
        kd.Term(kd.losses.DecoupledKD(), weight=kd.schedules.WarmUp(0.2, steps=4)),
    ]
    teacher = network("teacher", 5, **{**options, "softmax": True})
    return kd.Distiller(teacher, network("student", **options), terms, student_loss_weight=0.1)


def two_heads(name, width=3, **options):
    """`network` with a second head beside its own; it returns the mean of the two."""
    model = network(name, width, **options)
    second = keras.layers.Dense(CLASSES, name="distillation_head", dtype="float32")
    pooled = model.get_layer("pool").output
    mean = keras.layers.Average(dtype="float32")([model.output, second(pooled)])
    return keras.Model(model.input, mean, name=name)


def two_head_distiller(**options):
    """DeiT's losses on a convolutional student."""
    teacher = network("teacher", 5, **options)
    return kd.TwoHeadDistiller(teacher, two_heads("student", **options), label_head="logits")


def distiller_in_stages(**options):
    """A hint in the first epoch alone, an optimizer and soft targets of its own behind it."""
    hint = kd.Term(kd.losses.Hint(), "features", "features", connector="auto")
    soft = kd.losses.SoftTargets(4.0)
    momentum = keras.optimizers.SGD(0.05, momentum=0.9)
    stages = [
        kd.Stage("hint", 1, [hint, soft], trainable="features"),
        kd.Stage("distillation", 9, soft, optimizer=momentum),
    ]
    teacher = network("teacher", 5, **options)
    return kd.Distiller(teacher, network("student", **options), stages=stages)


def distiller_of_ensemble(**options):
    """A Distiller whose teacher is an ensemble, with a tap into a member."""
    terms = [
        kd.losses.SoftTargets(2.0),
        kd.Term(kd.losses.Hint(), "b/features", "features", connector="auto"),
    ]
    teacher = kd.EnsembleTeacher([network("a", 4, **options), network("b", 5, **options)])
    return kd.Distiller(teacher, network("student", **options), terms)


def independent_ensemble(**options):
    """Members trained alone, heads mixed."""
    members = [network("a", 3, **options), network("b", 4, **{**options, "softmax": True})]
    return kd.EnsembleTeacher(members, weights=[2.0, 1.0])


def average_ensemble(**options):
    """The control experiment: the average trained directly."""
    members = [network("a", 3, **options), network("b", 4, **options)]
    return kd.EnsembleTeacher(members, average="logits", objective="average")


def in_pairs(images, labels):
    """`((x, other), y)`: beside each image another one, which stands for its partner."""
    return (images, images[::-1].copy()), labels


def class_wise_distiller(**options):
    """Pairs of one class."""
    return kd.ClassWiseDistiller(network("student", **options), weight=2.0)


def distortion_distiller(**options):
    """Two views, the features' weight high enough to be seen."""
    return kd.DistortionDistiller(network("student", **options), feature_weight=0.5)


def dlb_model(**options):
    """`fit` on plain arrays, which it lets overlap."""
    return kd.DLBModel(network("student", **options), weight=2.0)


def mutual_learner(**options):
    """Three students that differ."""
    students = [network(name, width, **options) for name, width in zip("abc", (3, 4, 5))]
    return kd.MutualLearner(students, temperature=2.0, weight=0.5)


def logs_of_the_ensemble(logs):
    """`evaluate`'s logs of a cohort without the students'."""
    return {"loss": logs["loss"], "accuracy": logs["ensemble_accuracy"]}


def reused_classifier(**options):
    """SimKD with a label loss beside it."""
    teacher, student = network("teacher", 5, **options), network("student", **options)
    batch_norm = options.get("batch_norm", True)
    return kd.ReusedClassifierDistiller(
        teacher, student, student_loss_weight=0.5, batch_norm=batch_norm
    )


def with_ids(images, labels):
    """Labels with the positions of the samples."""
    return images, kd.data.Targets(labels=labels, ids=np.arange(len(labels)))


def progressive_distiller(**options):
    """A table of the past predictions."""
    return kd.ProgressiveDistiller(network("student", **options), samples=MOST_SAMPLES)


def self_taught(**options):
    """Two trainings, the first one's network the second's teacher."""
    return kd.TeacherFreeDistiller(network("student", **options), temperature=4.0, seed=3)


def virtually_taught(**options):
    """A teacher made of the labels."""
    return kd.TeacherFreeDistiller(network("student", **options), mode="virtual", alpha=0.5)


def born_again(**options):
    """Three generations, with labels."""
    return kd.BornAgain(network("student", **options), 2, label_weight=0.5, seed=3)


def mean_teacher(**options):
    """Two views, a ramp of the weight, the averaged network run for inference."""
    ramp = kd.schedules.SigmoidRamp(5.0, steps=6)
    return kd.MeanTeacher(network("student", **options), decay=0.8, weight=ramp)


def official_mean_teacher(**options):
    """The averaged network in training mode, with statistics of its own."""
    student = network("student", **options)
    return kd.MeanTeacher(student, 0.8, weight=2.0, consistency="kl", teacher_training=True)


def native_ensemble(batch_norm=True, **options):
    """Three branches; their gate normalises by batch statistics where the networks do."""
    gate = None
    if not batch_norm:
        gate = keras.Sequential(
            [
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(3, activation="softmax", dtype="float32"),
            ]
        )
    model = network("student", batch_norm=batch_norm, **options)
    return kd.NativeEnsemble(model, "features", gate=gate)


def self_distiller(batch_norm=True, **options):
    """Two exits, whose heads normalise by batch statistics where the network does."""
    model = network("student", batch_norm=batch_norm, **options)
    return kd.SelfDistiller(model, ["stem", "features"], feature_weight=0.5, batch_norm=batch_norm)


@dataclasses.dataclass
class Wrapper:
    """A wrapper under contract.

    Attributes:
        create: Makes a fresh one; takes the options of `network`.
        element: Makes `(x, y)` for training from `(images, labels)`.
        rounds: How many trainings, of `epochs` epochs each, one `fit` is.
        splits: Whether a batch's loss is the mean of its halves', no statistic of the batch.
        prediction: What the inference model returns, out of what `predict` does.
        logs: What the inference model logs, out of what `evaluate` does.
        fit: Arguments of `fit`.
        several_processes: Whether it trains in several processes.
    """

    create: Callable
    element: Callable = lambda images, labels: (images, labels)
    rounds: int = 1
    splits: bool = True
    prediction: Callable = lambda outputs: outputs
    logs: Callable = lambda logs: logs
    fit: dict = dataclasses.field(default_factory=dict)
    several_processes: bool = True

    def compiled(self, seed=7, loss=True, **options):
        """A fresh wrapper from `seed`, compiled; `compile` holds arguments of compile."""
        compile_arguments = options.pop("compile", {})
        keras.utils.set_random_seed(seed)
        wrapper = self.create(**options)
        arguments = {"optimizer": keras.optimizers.SGD(0.05, momentum=0.9), "metrics": ["accuracy"]}
        if loss:
            arguments["loss"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        wrapper.compile(**{**arguments, **compile_arguments})
        return wrapper


WRAPPERS = {
    "BornAgain": Wrapper(born_again, rounds=3),
    "ClassWiseDistiller": Wrapper(class_wise_distiller, in_pairs),
    # With `carry=True` a resumed run differs by the half that the cache was of.
    "DLBModel": Wrapper(dlb_model, splits=False, fit={"carry": False}, several_processes=False),
    "Distiller": Wrapper(distiller),
    "DistortionDistiller": Wrapper(distortion_distiller, in_pairs, splits=False),
    "Distiller of an ensemble": Wrapper(distiller_of_ensemble),
    "Distiller in stages": Wrapper(distiller_in_stages),
    "EnsembleTeacher, independent": Wrapper(independent_ensemble),
    "EnsembleTeacher, average": Wrapper(average_ensemble),
    "ProgressiveDistiller": Wrapper(progressive_distiller, with_ids),
    "TeacherFreeDistiller, self": Wrapper(self_taught, rounds=2),
    "TeacherFreeDistiller, virtual": Wrapper(virtually_taught),
    "MutualLearner": Wrapper(
        mutual_learner,
        prediction=lambda outputs: outputs["ensemble"],
        logs=logs_of_the_ensemble,
    ),
    "MeanTeacher": Wrapper(mean_teacher, in_pairs),
    "MeanTeacher, official mode": Wrapper(official_mean_teacher),
    "NativeEnsemble": Wrapper(native_ensemble),
    "ReusedClassifierDistiller": Wrapper(reused_classifier),
    "SelfDistiller": Wrapper(self_distiller),
    "TwoHeadDistiller": Wrapper(two_head_distiller),
}


def samples(count=32, seed=0):
    """Images whose mean tells the label, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    images = rng.normal(size=(count, *SHAPE)).astype("float32") + labels[:, None, None, None]
    return images, labels


def state(model):
    """All weights of a wrapper and the seeds of what it trains, as arrays by position.

    A frozen teacher's dropout seeds are left out: nothing draws from them.
    """
    weights = {id(variable) for variable in model.weights}
    frozen = {id(variable) for variable in model.frozen_variables} - weights
    return [keras.ops.convert_to_numpy(v) for v in model.variables if id(v) not in frozen]
