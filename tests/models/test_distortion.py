"""DDGSD: the loss, the features it compares, replicas, what it trains on."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from tests.models import nets
from tests.oracles import pairs as oracle


def compiled(student, loss="ce", optimizer=None, compile_options=None, **options):
    distiller = kd.DistortionDistiller(student, **options)
    loss = nets.cross_entropy() if loss == "ce" else loss
    distiller.compile(optimizer or nets.sgd(), loss, **(compile_options or {}))
    return distiller


def two_views(count=16):
    return nets.vectors(count), nets.vectors(count, seed=2), nets.class_ids(count)


@pytest.mark.parametrize("detach", [True, False])
def test_logs_and_weights_of_three_steps_equal_the_oracle(detach):
    student = nets.sharpen(nets.mlp())
    x, other, y = two_views()
    weights = student.get_weights()
    distiller = compiled(student, temperature=2.0, weight=1.5, feature_weight=3.0, detach=detach)
    names = ("loss", "label_loss", "distortion_loss", "feature_loss")
    for _ in range(3):

        def losses(moved, constant):
            return oracle.distortion(moved, constant, x, other, y, 2.0, 1.5, 3.0, detach)

        logs = distiller.train_on_batch((x, other), y, return_dict=True)
        distiller.reset_metrics()
        for name, value in zip(names, losses(weights, weights)):
            np.testing.assert_allclose(logs[name], value, rtol=1e-4, err_msg=name)
        weights = oracle.descend(lambda *both: losses(*both)[0], weights, 0.1)
        for own, value in zip(student.get_weights(), weights):
            np.testing.assert_allclose(own, value, rtol=1e-4, atol=2e-6)


def test_equal_views_have_no_terms_and_the_label_loss_twice():
    x, _, y = two_views()
    student = nets.mlp()
    label = nets.ce(y, nets.array(student(x))).mean()
    logs = compiled(student).train_on_batch((x, x), y, return_dict=True)
    np.testing.assert_allclose(logs["distortion_loss"], 0.0, atol=1e-6)
    np.testing.assert_allclose(logs["feature_loss"], 0.0, atol=1e-9)
    np.testing.assert_allclose(logs["loss"], 2 * label, rtol=1e-5)


def test_both_views_share_one_forward_and_its_statistics():
    student = nets.cnn()
    x, other = nets.images(8), nets.images(8, seed=3) + 2.0
    convolution = keras.Model(student.input, student.get_layer("conv1").output)
    mean = nets.array(convolution(np.concatenate([x, other]))).mean(axis=(0, 1, 2))
    compiled(student).train_on_batch((x, other), nets.class_ids(8))
    moving = nets.array(student.get_layer("bn1").moving_mean)
    np.testing.assert_allclose(moving, 0.3 * mean, rtol=1e-4, atol=1e-6)


def test_the_symmetric_divergence_of_independent_labels():
    student = nets.mlp("sigmoid")
    x, other, y = two_views()
    head, hidden = student.get_layer("head"), student.get_layer("hidden")
    inside = keras.Model(student.input, hidden.output)
    a, b = (
        nets.array(inside(view)) @ nets.array(head.kernel) + nets.array(head.bias)
        for view in (x, other)
    )
    expected = (nets.bernoulli_kd(a, b, 3.0) + nets.bernoulli_kd(b, a, 3.0)).mean()
    labels = np.eye(nets.CLASSES)[y]
    for detach in (True, False):
        distiller = compiled(student, "binary_crossentropy", optimizer=nets.sgd(0.0), detach=detach)
        logs = distiller.train_on_batch((x, other), labels, return_dict=True)
        np.testing.assert_allclose(logs["distortion_loss"], expected, rtol=1e-4)


def test_sample_weights_weigh_every_term():
    student = nets.sharpen(nets.mlp())
    x, other, y = two_views()
    weights = np.linspace(0.0, 2.0, 16)
    hidden = keras.Model(student.input, student.get_layer("hidden").output)
    a, b = nets.array(student(x)), nets.array(student(other))
    gap = ((nets.array(hidden(x)) - nets.array(hidden(other))) * weights[:, None]).mean(axis=0)
    expected = {
        "label_loss": np.mean(weights * (nets.ce(y, a) + nets.ce(y, b))),
        "distortion_loss": np.mean(weights * (nets.kd(a, b, 3.0) + nets.kd(b, a, 3.0))),
        "feature_loss": gap @ gap,
    }
    logs = compiled(student).train_on_batch((x, other), y, sample_weight=weights, return_dict=True)
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-4, err_msg=name)


def test_the_discrepancy_is_that_of_the_means():
    a, b = nets.images(6, size=3), nets.images(6, size=3, seed=4)
    a, b = np.repeat(a, 2, axis=-1), np.concatenate([b, 2 * b], axis=-1)
    value = nets.array(kd.models.distortion.discrepancy(a, b))
    expected = oracle.discrepancy(a.mean(axis=(1, 2)), b.mean(axis=(1, 2)))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    permuted = nets.array(kd.models.distortion.discrepancy(a, b[::-1]))
    np.testing.assert_allclose(permuted, expected, rtol=1e-5)


# The features.


def nested():
    inputs = keras.Input((8, 8, 1))
    backbone = nets.cnn(name="backbone")
    backbone = keras.Model(backbone.input, backbone.get_layer("pool").output, name="backbone")
    return keras.Model(inputs, layers.Dense(nets.CLASSES, "softmax")(backbone(inputs)))


def nested_head():
    features = keras.Input((8,), name="features")
    head = keras.Sequential([features, layers.Dense(nets.CLASSES), layers.Softmax()], name="head")
    inputs = keras.Input((nets.FEATURES,))
    return keras.Model(inputs, head(layers.Dense(8, "relu", name="hidden")(inputs)))


def convolutional_head():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(3, 3, name="features")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(nets.CLASSES, 1)(x))
    return keras.Model(inputs, layers.Softmax()(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("create", "path"),
    [
        (nets.mlp, "hidden"),
        (nets.cnn, "pool"),
        (lambda: nets.cnn(dropout=0.5), "dropout"),
        (nested, "backbone"),
        (nested_head, "head/features"),
        (convolutional_head, "features"),
        (lambda: keras.Sequential([keras.Input((6,), name="x"), layers.Dense(4)]), "x"),
    ],
    ids=["mlp", "cnn", "dropout", "nested", "nested head", "convolutional head", "linear"],
)
def test_the_default_features_are_what_the_classifier_takes(create, path):
    student = create()
    assert kd.models.distortion._classifier_input(student) == path
    count = 8
    shape = (count, *student.input_shape[1:])
    x, other = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=student.name in ("mlp", "cnn"))
    loss = None if path == "x" else loss
    logs = compiled(student, loss).train_on_batch((x, other), nets.class_ids(8), return_dict=True)
    assert logs["feature_loss"] > 0


def test_another_layers_features_and_none():
    x, other = nets.images(8), nets.images(8, seed=3)
    student = nets.cnn()
    inside = keras.Model(student.input, student.get_layer("conv1").output)
    a, b = (nets.array(inside(view)).mean(axis=(1, 2)) for view in (x, other))
    distiller = compiled(student, features="conv1")
    logs = distiller.train_on_batch((x, other), nets.class_ids(8), return_dict=True)
    np.testing.assert_allclose(logs["feature_loss"], oracle.discrepancy(a, b), rtol=1e-3)
    without = compiled(nets.Subclassed(), feature_weight=0.0, student_from_logits=True)
    x, other, y = two_views()
    logs = without.train_on_batch((x, other), y, return_dict=True)
    assert set(logs) == {"loss", "label_loss", "distortion_loss"}


def test_several_outputs_need_a_path():
    labels = {"zebra": nets.class_ids(16), "apple": nets.class_ids(16) % 3}
    loss = {name: nets.cross_entropy() for name in labels}
    with pytest.raises(ValueError, match=r"one output. Received: 2 outputs. Pass features="):
        kd.DistortionDistiller(nets.two_heads("dict"))
    student = nets.two_heads("dict")
    x, other, _ = two_views()
    a, b = nets.predict(student, x), nets.predict(student, other)
    distiller = compiled(student, loss, features="hidden")
    logs = distiller.train_on_batch((x, other), labels, return_dict=True)
    expected = sum(
        (nets.kd(a[name], b[name], 3.0) + nets.kd(b[name], a[name], 3.0)).mean() for name in labels
    )
    np.testing.assert_allclose(logs["distortion_loss"], expected, rtol=1e-4)
    label = sum(nets.ce(labels[n], a[n]).mean() + nets.ce(labels[n], b[n]).mean() for n in labels)
    np.testing.assert_allclose(logs["label_loss"], label, rtol=1e-5)


# Replicas, accumulation, masks.


@pytest.mark.slow
@pytest.mark.tensorflow
def test_two_replicas_take_the_means_of_the_global_batch(two_replicas):
    import tensorflow as tf

    x, other, y = two_views(16)
    x[8:] += 3.0  # the replicas' own means differ
    weights = np.linspace(0.5, 1.5, 16).astype("float32")

    def run(strategy):
        with strategy.scope():
            keras.utils.set_random_seed(3)
            options = {"evaluate_terms": True}
            distiller = compiled(
                nets.mlp(), feature_weight=5.0, detach=False, compile_options=options
            )
        arguments = {"sample_weight": weights, "batch_size": 16, "verbose": 0}
        logs = distiller.fit((x, other), y, epochs=2, shuffle=False, **arguments).history
        logs["evaluated"] = list(
            distiller.evaluate((x, other), y, return_dict=True, **arguments).values()
        )
        return distiller.student.get_weights(), logs

    weights_of_one, logs = run(tf.distribute.get_strategy())
    weights_of_two, logs_of_two = run(two_replicas)
    for one, two in zip(weights_of_one, weights_of_two):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    assert logs["feature_loss"][0] > 0.01
    for name, values in logs.items():
        np.testing.assert_allclose(values, logs_of_two[name], rtol=1e-5, err_msg=name)


@pytest.mark.tensorflow
def test_a_replica_without_a_row_adds_nothing_to_the_means(two_replicas):
    x, other, y = two_views(17)  # the last batch of one
    x[16] += 3.0
    with two_replicas.scope():
        distiller = compiled(nets.mlp(), optimizer=nets.sgd(0.0), feature_weight=1.0)
    hidden = keras.Model(distiller.student.input, distiller.student.get_layer("hidden").output)
    parts = [(nets.array(hidden(x[i])), nets.array(hidden(other[i]))) for i in (slice(16), [16])]
    values = [oracle.discrepancy(*part) for part in parts]
    logs = distiller.fit((x, other), y, batch_size=16, shuffle=False, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    # Keras's mean over the rows of the logs.
    np.testing.assert_allclose(logs["feature_loss"], np.dot(values, [16, 1]) / 17, rtol=1e-4)


def test_without_features_accumulated_batches_equal_the_larger_one():
    x, other, y = two_views()
    students = []
    for steps, batch_size in ((2, 8), (None, 16)):
        keras.utils.set_random_seed(3)
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps)
        distiller = compiled(nets.mlp(), optimizer=optimizer, feature_weight=0.0)
        distiller.fit((x, other), y, batch_size=batch_size, shuffle=False, verbose=0)
        students.append(distiller.student)
    nets.assert_same_weights(*students, rtol=1e-5, atol=1e-6)


def test_tokens_under_a_mask():
    student = nets.sharpen(nets.tagger())
    ids, other = nets.token_ids(8), nets.token_ids(8)
    other = np.where(other > 0, 10 - other, 0)  # other tokens under the same mask
    a, b = nets.array(student(ids)), nets.array(student(other))
    known = ids > 0
    features = [nets.array(student.get_layer("embedding")(part)) for part in (ids, other)]
    means = [(part * known[..., None]).mean(axis=1) for part in features]
    logs = compiled(student).train_on_batch(
        (ids, other), nets.class_ids(ids.shape), return_dict=True
    )
    expected = (nets.kd(a, b, 3.0) + nets.kd(b, a, 3.0))[known].mean()
    np.testing.assert_allclose(logs["distortion_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(logs["feature_loss"], oracle.discrepancy(*means), rtol=1e-4)


# Data, settings.


def test_metrics_are_those_of_the_first_view_and_evaluate_takes_plain_data():
    student = nets.sharpen(nets.mlp())
    x, other, y = two_views()
    accuracy = np.mean(nets.array(student(x)).argmax(-1) == y)
    options = {"metrics": ["accuracy"], "evaluate_terms": True}
    distiller = compiled(student, optimizer=nets.sgd(0.0), compile_options=options)
    logs = distiller.train_on_batch((x, other), y, return_dict=True)
    np.testing.assert_allclose(logs["accuracy"], accuracy, rtol=1e-6)
    plain = distiller.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(plain["loss"], nets.ce(y, nets.array(student(x))).mean(), rtol=1e-5)
    views = distiller.evaluate((x, other), y, verbose=0, return_dict=True)
    for name in ("distortion_loss", "feature_loss", "loss"):
        np.testing.assert_allclose(views[name], logs[name], rtol=1e-5)


def test_schedules_and_settings_survive_the_config():
    schedule = kd.schedules.WarmUp(0.5, steps=4)
    distiller = kd.DistortionDistiller(
        nets.mlp(), 2.0, schedule, schedule, features="hidden", detach=False
    )
    clone = kd.DistortionDistiller.from_config(distiller.get_config())
    assert clone.get_config() == distiller.get_config()
    assert clone.weight.get_config() == schedule.get_config()
    assert clone.feature_weight.get_config() == schedule.get_config()
    x, other, y = two_views()
    clone.compile(nets.sgd(0.0), nets.cross_entropy())
    for step in range(2):
        logs = clone.train_on_batch((x, other), y, return_dict=True)
        clone.reset_metrics()
        terms = logs["distortion_loss"] + logs["feature_loss"]
        expected = logs["label_loss"] + 0.125 * (step + 1) * terms
        np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_training_on_plain_data_is_an_error_that_names_the_pipeline():
    x, _, y = two_views()
    with pytest.raises(ValueError, match="for a DistortionDistiller.*data.two_views"):
        compiled(nets.mlp()).fit(x, y, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"student": "net"}, "`student` to be a keras.Model"),
        ({"temperature": -1.0}, "`temperature` to be a positive finite number"),
        ({"feature_weight": -1.0}, "`feature_weight` to be a finite number, 0 or more"),
        ({"features": "hiden"}, "to name a layer.*hiden.*hidden"),
        ({"features": ["hidden"]}, "`features` to be the path of a layer"),
        ({"detach": 1}, "`detach` to be True or False"),
        ({"student": nets.Subclassed()}, "with a graph.*Subclassed.*feature_weight=0"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    with pytest.raises((ValueError, TypeError), match=text):
        kd.DistortionDistiller(**{"student": nets.mlp(), **arguments})


@pytest.mark.tensorflow
def test_it_trains_on_the_pipeline_with_class_weights():
    dataset = kd.data.two_views(
        nets.images(20),
        nets.class_ids(20),
        8,
        kd.data.crop_and_flip(1),
        epochs=2,
        class_weight={0: 2.0},
        ids=True,
    )
    distiller = compiled(nets.cnn())
    history = distiller.fit(dataset, epochs=2, steps_per_epoch=3, shuffle=False, verbose=0).history
    assert len(history["loss"]) == 2
    assert int(distiller.optimizer.iterations) == 6
    assert np.isfinite(history["distortion_loss"]).all()
