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
# Losses of maps, for which a transformer's tokens are none.
OF_MAPS = set()
REFUSED = {("ViT to CNN", name) for name in OF_MAPS}


@functools.cache
def networks(pair):
    keras.utils.set_random_seed(1)
    return [build() for build in PAIRS[pair]]


@functools.cache
def data():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(SAMPLES, *SHAPE)).astype("float32")
    labels = np.arange(SAMPLES) % CLASSES
    names = [str(i) for i in range(CLASSES)]
    return kd.data.ImageData((images * 255).astype("uint8"), labels, names, "noise"), images


def wired(name, pair):
    settings = types.SimpleNamespace(
        loss=name,
        temperature=None,
        weight=1.0,
        label_weight=0.0,
        teacher_layer=None,
        student_layer=None,
        ensemble=1,
        seed=0,
    )
    return loss_terms.wired(settings, *networks(pair), data()[0])


def arrays(variables):
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def moved(before, variables):
    return [bool(np.any(old != new)) for old, new in zip(before, arrays(variables), strict=True)]


@pytest.mark.tensorflow
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_step_of_a_loss_trains_the_student_and_the_helpers(name, pair):
    if (pair, name) in REFUSED:
        with pytest.raises(ValueError, match="Expected"):
            wired(name, pair)
        return
    teacher, student = networks(pair)
    wiring = wired(name, pair)
    distiller = wiring.distiller(teacher, student, epochs=1, steps=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=head_of(student) == "linear")
    distiller.compile(keras.optimizers.SGD(1e-3), loss, run_eagerly=True)
    images, labels = data()[1], data()[0].labels
    y = kd.data.Targets(labels=labels, ids=np.arange(SAMPLES)) if wiring.needs_ids else labels
    if distiller.stages is not None:
        distiller.begin_stage(len(distiller.stages) - 1)
    helpers = [
        v for term in distiller._parts.current.terms for v in term.trainable_variables
    ]
    frozen, own, of_terms = arrays(teacher.variables), arrays(student.trainable_variables), arrays(helpers)
    logs = distiller.train_on_batch(images, y, return_dict=True)
    assert all(np.isfinite(value) for value in logs.values())
    assert not any(moved(frozen, teacher.variables))
    assert any(moved(own, student.trainable_variables))
    assert all(np.isfinite(array).all() for array in arrays(student.weights))
    expected = [v for v in helpers if v.path not in unused(distiller)]
    assert all(moved(of_terms, helpers)) or not expected


def unused(distiller):
    return set()
