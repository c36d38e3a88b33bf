"""Every loss between several families of networks: one step, gradient where it belongs."""

import functools
import types

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import backbones
from keras_distill import losses
from keras_distill.heads import head_of
from keras_distill.recipes import loss_terms

SHAPE = (32, 32, 3)
CLASSES = 5
SAMPLES = 8
LOSSES = sorted(name for name in losses.__all__ if name[0].isupper() and name != "DistillationLoss")


def resnet(width):
    return backbones.resnet(8, CLASSES, input_shape=SHAPE, width=width)


def wide_resnet(width):
    return backbones.wide_resnet(10, width, CLASSES, input_shape=SHAPE)


def mobilenet():
    pytest.importorskip("keras_cv")
    return backbones.cv_mobilenet_v3(CLASSES, SHAPE, alpha=0.25)


def vision_transformer():
    pytest.importorskip("keras_hub")
    return backbones.hub_vit(
        CLASSES, SHAPE, patch_size=8, layers=2, heads=2, channels=8, dropout_rate=0.0
    )


PAIRS = {
    "ResNet to ResNet": (lambda: resnet(6), lambda: resnet(4)),
    "ResNet to MobileNet": (lambda: resnet(6), mobilenet),
    "WRN to WRN": (lambda: wide_resnet(2), lambda: wide_resnet(1)),
    "ViT to CNN": (vision_transformer, lambda: resnet(4)),
}
# What stands for the stages of a transformer: its tokens.
TOKENS = {"ViT to CNN": ("backbone", "stage3")}
# Losses of maps, which tokens are not.
OF_MAPS = (
    "AttentionTransfer",
    "FactorTransfer",
    "FlowOfSolution",
    "InstanceGraph",
    "NeuronSelectivity",
    "ReviewKD",
    "VariationalInformation",
)
REFUSED = {("ViT to CNN", name) for name in OF_MAPS}
OF_STAGES = ("ActivationBoundary", "Hint", "SimilarityPreserving")


@functools.cache
def made(pair):
    keras.utils.set_random_seed(1)
    models = [build() for build in PAIRS[pair]]
    for model in models:
        # Both lean to class 0: BoundarySupport attacks what both classify right.
        bias = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)][-1].bias
        bias.assign(3.0 * np.eye(CLASSES)[0])
    return [(model, model.get_weights()) for model in models]


def networks(pair):
    """Teacher and student as they were made, whatever an earlier test did."""
    for model, weights in made(pair):
        model.set_weights(weights)
    return [model for model, _ in made(pair)]


@functools.cache
def data():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(SAMPLES, *SHAPE)).astype("float32")
    labels = np.arange(SAMPLES) % CLASSES
    names = [str(i) for i in range(CLASSES)]
    return kd.data.ImageData((images * 255).astype("uint8"), labels, names, "noise"), images


def distiller_of(name, pair):
    teacher, student = networks(pair)
    if name == "AlphaDivergence":  # its alpha has no default
        return kd.Distiller(teacher, student, losses.AlphaDivergence(0.5)), False
    wiring = wired(name, pair)
    return wiring.distiller(teacher, student, epochs=1, steps=1), wiring.needs_ids


def of_a_first_stage(name):
    """Whether the loss trains the student before the labels do."""
    return loss_terms.use_of(name).first is not None


def wired(name, pair):
    layers = TOKENS.get(pair, (None, None)) if name in OF_STAGES else (None, None)
    settings = types.SimpleNamespace(
        loss=name,
        temperature=None,
        weight=1.0,
        label_weight=1.0 if of_a_first_stage(name) else 0.0,
        teacher_layer=layers[0],
        student_layer=layers[1],
        ensemble=1,
        seed=0,
    )
    return loss_terms.wired(settings, *networks(pair), data()[0])


def arrays(variables):
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def moved(before, variables):
    return [bool(np.any(old != new)) for old, new in zip(before, arrays(variables), strict=True)]


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "pair",
    ["ResNet to ResNet"] + [pytest.param(p, marks=pytest.mark.slow) for p in list(PAIRS)[1:]],
)
@pytest.mark.parametrize("name", LOSSES)
def test_a_step_trains_the_student_and_the_helpers(name, pair):
    if (pair, name) in REFUSED:
        with pytest.raises(ValueError, match="Expected"):
            wired(name, pair)
        return
    teacher, student = networks(pair)
    distiller, needs_ids = distiller_of(name, pair)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=head_of(student) == "linear")
    distiller.compile(keras.optimizers.SGD(1e-3), loss, run_eagerly=True)
    if distiller.stages is not None:  # the one that has the loss
        distiller.begin_stage(0 if of_a_first_stage(name) else len(distiller.stages) - 1)
    images, labels = data()[1], data()[0].labels
    y = kd.data.Targets(labels=labels, ids=np.arange(SAMPLES)) if needs_ids else labels
    helpers = [v for v in distiller.updated_variables if not of(student, v)]
    before = [arrays(group) for group in (teacher.variables, student.trainable_variables, helpers)]
    logs = distiller.train_on_batch(images, y, return_dict=True)
    assert all(np.isfinite(value) for value in logs.values())
    assert all(np.isfinite(array).all() for array in arrays([*student.weights, *helpers]))
    assert not any(moved(before[0], teacher.variables))
    assert any(moved(before[1], student.trainable_variables))
    assert any(moved(before[2], helpers)) or not helpers


def of(model, variable):
    return id(variable) in {id(own) for own in model.variables}
