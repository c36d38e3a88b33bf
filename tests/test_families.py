"""Distilling between families of networks, with taps on both sides."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import backbones
from keras_distill.heads import head_of
from keras_distill.taps import list_taps

SHAPE = (32, 32, 3)
CLASSES = 5


def cv_resnet():
    pytest.importorskip("keras_cv")
    return backbones.cv_resnet(CLASSES, SHAPE, filters=(64, 8), blocks=(1, 1), strides=(1, 2))


def cv_mobilenet():
    pytest.importorskip("keras_cv")
    return backbones.cv_mobilenet_v3(CLASSES, SHAPE, alpha=0.25)


def hub_classifier():
    hub = pytest.importorskip("keras_hub")
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=SHAPE,
    )
    return hub.models.ImageClassifier(backbone=backbone, num_classes=CLASSES)


def hub_vit():
    pytest.importorskip("keras_hub")
    return backbones.hub_vit(
        CLASSES, SHAPE, patch_size=8, layers=1, heads=2, channels=8, dropout_rate=0.0
    )


def applications(name):
    kind = getattr(keras.applications, name)
    return kind(weights=None, input_shape=SHAPE, classes=CLASSES, alpha=0.35)


FAMILIES = {
    "keras-cv ResNet to keras-cv MobileNetV3": (cv_resnet, cv_mobilenet),
    "keras-hub classifier to CIFAR ResNet": (
        hub_classifier,
        lambda: backbones.resnet(8, CLASSES, input_shape=SHAPE, width=4),
    ),
    "keras-hub ViT to small CNN": (
        hub_vit,
        lambda: backbones.small_cnn(SHAPE, CLASSES, channels=4),
    ),
    "keras.applications MobileNetV2 to keras-hub classifier": (
        lambda: applications("MobileNetV2"),
        hub_classifier,
    ),
}


def a_feature(model):
    """The deepest tap of the model that is a map or tokens, so that a connector has work."""
    shapes = list_taps(model)
    inner = [
        path
        for path, shape in shapes.items()
        if isinstance(shape, tuple) and len(shape) in (3, 4) and None not in shape[1:]
    ]
    return inner[-1]


@pytest.mark.slow
@pytest.mark.parametrize("pair", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_step_with_taps_on_both_sides_trains_the_student_alone(pair):
    teacher, student = (build() for build in pair)
    terms = [
        kd.losses.SoftTargets(4.0),
        kd.Term(kd.losses.Hint(), a_feature(teacher), a_feature(student), connector="auto"),
    ]
    distiller = kd.Distiller(teacher, student, terms)
    softmax = head_of(student) == "softmax"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    distiller.compile(keras.optimizers.SGD(0.01), loss, metrics=["accuracy"])
    before = [v.numpy() for v in teacher.variables], [v.numpy() for v in student.weights]
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(4, *SHAPE)).astype("float32")
    logs = distiller.train_on_batch(images, rng.integers(0, CLASSES, 4), return_dict=True)
    assert all(np.isfinite(value) for value in logs.values())
    for value, variable in zip(before[0], teacher.variables):
        np.testing.assert_array_equal(value, variable.numpy())
    moved = [np.abs(v.numpy() - old).max() > 0 for v, old in zip(student.weights, before[1])]
    assert np.mean(moved) > 0.5
    np.testing.assert_allclose(
        distiller.predict(images, verbose=0), student.predict(images, verbose=0), rtol=1e-5
    )


@pytest.mark.slow
def test_connectors_stay_out_of_the_student():
    teacher, student = (build() for build in FAMILIES["keras-hub classifier to CIFAR ResNet"])
    count = student.count_params()
    distiller = kd.Distiller(
        teacher,
        student,
        kd.Term(kd.losses.Hint(), a_feature(teacher), a_feature(student), connector="auto"),
    )
    connectors = [layer for term in distiller.terms for layer in term.connectors]
    assert sum(connector.count_params() for connector in connectors) > 0
    assert distiller.inference_model.count_params() == count
