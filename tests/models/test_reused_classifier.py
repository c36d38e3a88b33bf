"""SimKD: value by hand, the projector, what is trained, exported and refused."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.models.exits import find_deepest
from tests.contract import samples

CLASSES = 4
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(name, width, stride=1, shape=(6, 6, 2), flat=False):
    inputs = keras.Input(shape)
    x = layers.Conv2D(width, 3, strides=stride, padding="same", name="body")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="map")(x)
    x = layers.Flatten(name="flat")(x) if flat else layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="head")(x), name=name)


def wrapper_of(teacher_stride=1, student_stride=1, **options):
    keras.utils.set_random_seed(3)
    teacher, student = net("teacher", 6, teacher_stride), net("student", 3, student_stride)
    wrapper = kd.ReusedClassifierDistiller(teacher, student, **options)
    wrapper.compile(keras.optimizers.SGD(0.1), CE, metrics=["accuracy"])
    return wrapper


def array(x):
    return keras.ops.convert_to_numpy(x).astype("float64")


def pooled(maps, size):
    """The adaptive average in numpy, for sizes that divide."""
    b, h, w, c = maps.shape
    return maps.reshape(b, size, h // size, size, w // size, c).mean((2, 4))


@pytest.mark.slow
@pytest.mark.parametrize(("teacher_stride", "student_stride"), [(1, 1), (2, 1), (1, 2)])
def test_loss_is_the_mean_square_of_the_projected_map(teacher_stride, student_stride):
    wrapper = wrapper_of(teacher_stride, student_stride)
    x, y = samples(8)
    teacher_map = kd.tap(wrapper.teacher, ["map"])(x, training=False)["features"]["map"]
    projected = wrapper.projector(wrapper.body(x, training=True), training=True)
    size = min(teacher_map.shape[1], projected.shape[1])
    difference = pooled(array(teacher_map), size) - pooled(array(projected), size)
    logs = wrapper_of(teacher_stride, student_stride).train_on_batch(x, y, return_dict=True)
    assert float(logs["feature_loss"]) == pytest.approx(np.mean(difference**2), rel=1e-5)
    assert float(logs["loss"]) == pytest.approx(float(logs["feature_loss"]), rel=1e-5)


def test_projector_is_that_of_the_paper():
    wrapper = wrapper_of(teacher_stride=2)
    shapes = [tuple(v.shape) for v in wrapper.projector.weights if len(v.shape) == 4]
    assert shapes == [(1, 1, 3, 3), (3, 3, 3, 3), (1, 1, 3, 6)]
    assert tuple(wrapper.projector.output.shape) == (None, 3, 3, 6)


def test_body_and_projector_alone_are_trained():
    wrapper = wrapper_of()
    trained = {id(v) for v in wrapper.trainable_variables}
    own = [*wrapper.body.trainable_variables, *wrapper.projector.trainable_variables]
    assert trained == {id(v) for v in own}
    before = [array(v) for v in wrapper.teacher.weights]
    x, y = samples(16)
    wrapper.fit(x, y, batch_size=8, verbose=0)
    for old, new in zip(before, wrapper.teacher.weights):
        np.testing.assert_array_equal(old, array(new))


@pytest.mark.slow
def test_inference_model_is_body_projector_and_teachers_classifier(tmp_path):
    wrapper = wrapper_of(teacher_stride=2)
    x, y = samples(16)
    wrapper.fit(x, y, batch_size=8, verbose=0)
    features = wrapper.projector(wrapper.body(x, training=False), training=False)
    pooled_features = array(features).mean((1, 2))
    kernel, bias = (array(w) for w in wrapper.teacher.get_layer("head").weights)
    expected = pooled_features @ kernel + bias
    np.testing.assert_allclose(wrapper.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)
    path = tmp_path / "student.keras"
    wrapper.inference_model.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)


def test_it_learns_the_map():
    wrapper = wrapper_of()
    x, y = samples(32)
    history = wrapper.fit(x, y, batch_size=8, epochs=8, verbose=0).history["feature_loss"]
    assert history[-1] < 0.7 * history[0]


def test_layers_inside_a_nested_backbone_are_found():
    inputs = keras.Input((6, 6, 2))
    inner = net("inner", 6)
    backbone = keras.Model(inner.input, inner.get_layer("map").output, name="backbone")
    x = layers.GlobalAveragePooling2D()(backbone(inputs))
    teacher = keras.Model(inputs, layers.Dense(CLASSES)(x), name="teacher")
    assert find_deepest(teacher).map_path == "backbone"
    wrapper = kd.ReusedClassifierDistiller(teacher, net("student", 3), "backbone/map")
    assert wrapper.inference_model.output_shape == (None, CLASSES)


def test_label_loss_comes_through_the_teachers_classifier():
    wrapper = wrapper_of(weight=0.0, student_loss_weight=1.0)
    before = [array(v) for v in wrapper.body.trainable_variables]
    x, y = samples(8)
    wrapper.train_on_batch(x, y)
    after = [array(v) for v in wrapper.body.trainable_variables]
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, after) if b.ndim == 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kd.ReusedClassifierDistiller(net("t", 4), net("s", 3), "head"), "`teacher_layer`"),
        (
            lambda: kd.ReusedClassifierDistiller(net("t", 4), net("s", 3), student_layer="pool"),
            "`student_layer` to return one map",
        ),
        (
            lambda: kd.ReusedClassifierDistiller(net("t", 4), net("s", 3), "nowhere"),
            "nowhere",
        ),
        (
            lambda: kd.ReusedClassifierDistiller(net("t", 4, flat=True), net("s", 3, stride=2)),
            "to take a map of shape",
        ),
        (lambda: wrapper_of(reduction=0), "`reduction`"),
        (lambda: wrapper_of().save("x.keras", include_teacher=False), "teacher to be saved"),
    ],
)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
