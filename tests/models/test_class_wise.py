"""CS-KD: the loss, what has a gradient, what it trains on."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.models import nets
from tests.oracles import pairs as oracle


def compiled(student, loss="ce", optimizer=None, compile_options=None, **options):
    distiller = kd.ClassWiseDistiller(student, **options)
    loss = nets.cross_entropy() if loss == "ce" else loss
    distiller.compile(optimizer or nets.sgd(), loss, **(compile_options or {}))
    return distiller


def vectors_of_pairs(count=16):
    return nets.vectors(count), nets.vectors(count, seed=2), nets.class_ids(count)


def test_logs_and_weights_of_three_steps_equal_the_oracle():
    student = nets.sharpen(nets.mlp())
    x, x_pair, y = vectors_of_pairs()
    weights = student.get_weights()
    distiller = compiled(student, temperature=3.0, weight=2.0)
    for _ in range(3):
        expected = oracle.class_wise(weights, weights, x, x_pair, y, 3.0, 2.0)
        logs = distiller.train_on_batch((x, x_pair), y, return_dict=True)
        for name, value in zip(("loss", "label_loss", "class_wise_loss"), expected):
            np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)
            distiller.reset_metrics()

        def loss(moved, constant):
            return oracle.class_wise(moved, constant, x, x_pair, y, 3.0, 2.0)[0]

        weights = oracle.descend(loss, weights, 0.1)
        for own, value in zip(student.get_weights(), weights):
            np.testing.assert_allclose(own, value, rtol=1e-4, atol=1e-6)


def test_equal_images_have_no_soft_term_and_weight_zero_is_plain_fit():
    x, _, y = vectors_of_pairs()
    student = nets.mlp()
    alone = nets.copy_of(student)
    distiller = compiled(student, weight=0.0)
    alone.compile(nets.sgd(), nets.cross_entropy())
    logs = distiller.fit((x, x), y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    alone.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(logs["class_wise_loss"], 0.0, atol=1e-6)
    nets.assert_same_weights(student, alone)


@pytest.mark.tensorflow
def test_the_pair_is_forwarded_and_has_no_backward():
    import tensorflow as tf

    calls = {"forward": 0, "backward": 0}

    class Counted(keras.layers.Layer):
        def call(self, inputs):
            @tf.custom_gradient
            def identity(x):
                calls["forward"] += 1

                def gradient(upstream):
                    calls["backward"] += 1
                    return upstream

                return tf.identity(x), gradient

            return identity(inputs)

    inputs = keras.Input((nets.FEATURES,))
    hidden = keras.layers.Dense(4)(inputs)
    student = keras.Model(inputs, keras.layers.Dense(nets.CLASSES)(Counted()(hidden)))
    x, x_pair, y = vectors_of_pairs()
    distiller = compiled(student, compile_options={"run_eagerly": True})
    calls.update(forward=0, backward=0)
    distiller.train_on_batch((x, x_pair), y)
    assert calls["backward"] == 1
    assert calls["forward"] >= 2


def test_moving_statistics_follow_the_images_and_then_their_pairs():
    student = nets.cnn()
    x, x_pair = nets.images(8), nets.images(8, seed=3) + 2.0
    convolution = keras.Model(student.input, student.get_layer("conv1").output)
    means = [nets.array(convolution(part)).mean(axis=(0, 1, 2)) for part in (x, x_pair)]
    compiled(student).train_on_batch((x, x_pair), nets.class_ids(8))
    expected = 0.7 * (0.3 * means[0]) + 0.3 * means[1]
    moving = nets.array(student.get_layer("bn1").moving_mean)
    np.testing.assert_allclose(moving, expected, rtol=1e-4, atol=1e-6)


def test_regularisers_of_activities_are_those_of_the_images_alone():
    student = nets.cnn(regularized=True)
    x, x_pair, y = nets.images(8), nets.images(8, seed=3) + 2.0, nets.class_ids(8)
    stage2 = keras.Model(student.input, student.get_layer("stage2").output)
    kernel = nets.array(student.get_layer("conv1").kernel)
    activity = 0.01 * np.sum(nets.array(stage2(x, training=True)) ** 2) / len(x)
    student.get_layer("bn1").moving_mean.assign(np.zeros(4))  # as before the forward above
    logs = compiled(student).train_on_batch((x, x_pair), y, return_dict=True)
    expected = logs["label_loss"] + logs["class_wise_loss"] + 0.05 * np.sum(kernel**2) + activity
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_tokens_under_a_mask_and_sample_weights():
    student = nets.sharpen(nets.tagger())
    ids, pair_ids = nets.token_ids(8), nets.token_ids(8, seed=1)
    labels, weights = nets.class_ids(ids.shape), np.linspace(0.0, 2.0, 40).reshape(8, 5)
    target, logits = nets.array(student(pair_ids)), nets.array(student(ids))
    known = ids > 0
    kl = nets.kd(target, logits, 4.0) * weights
    logs = compiled(student).train_on_batch(
        (ids, pair_ids), labels, sample_weight=weights, return_dict=True
    )
    np.testing.assert_allclose(logs["class_wise_loss"], kl[known].sum() / known.sum(), rtol=1e-4)


def test_unlabelled_images_keep_the_soft_term():
    student = nets.mlp()
    x, x_pair, y = vectors_of_pairs()
    unlabelled = np.where(np.arange(16) < 8, -1, y)
    logits, target = nets.array(student(x)), nets.array(student(x_pair))
    logs = compiled(student).train_on_batch((x, x_pair), unlabelled, return_dict=True)
    np.testing.assert_allclose(logs["label_loss"], nets.ce(y, logits)[8:].sum() / 16, rtol=1e-5)
    expected = nets.kd(target, logits, 4.0).mean()
    np.testing.assert_allclose(logs["class_wise_loss"], expected, rtol=1e-4)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_heads_with_an_activation_are_compared_before_it(activation):
    student = nets.mlp(activation)
    x, x_pair, y = vectors_of_pairs()
    head = student.get_layer("head")
    hidden = keras.Model(student.input, student.get_layer("hidden").output)
    target, logits = (
        nets.array(hidden(part)) @ nets.array(head.kernel) + nets.array(head.bias)
        for part in (x_pair, x)
    )
    formula = nets.kd if activation == "softmax" else nets.bernoulli_kd
    labels = y if activation == "softmax" else np.eye(nets.CLASSES)[y]
    loss = "sparse_categorical_crossentropy" if activation == "softmax" else "binary_crossentropy"
    logs = compiled(student, loss).train_on_batch((x, x_pair), labels, return_dict=True)
    expected = formula(target, logits, 4.0).mean()
    np.testing.assert_allclose(logs["class_wise_loss"], expected, rtol=1e-4)


def test_several_outputs_are_summed():
    student = nets.two_heads("dict")
    x, x_pair, _ = vectors_of_pairs()
    labels = {"zebra": nets.class_ids(16), "apple": nets.class_ids(16) % 3}
    before = [nets.predict(student, part) for part in (x_pair, x)]
    expected = sum(nets.kd(before[0][name], before[1][name], 4.0).mean() for name in labels)
    loss = {name: nets.cross_entropy() for name in labels}
    logs = compiled(student, loss).train_on_batch((x, x_pair), labels, return_dict=True)
    np.testing.assert_allclose(logs["class_wise_loss"], expected, rtol=1e-4)


def test_metrics_are_those_of_the_images():
    student = nets.sharpen(nets.mlp())
    x, x_pair, y = vectors_of_pairs()
    accuracy = np.mean(nets.array(student(x)).argmax(-1) == y)
    options = {"metrics": ["accuracy"]}
    logs = compiled(student, compile_options=options).train_on_batch(
        (x, x_pair), y, return_dict=True
    )
    np.testing.assert_allclose(logs["accuracy"], accuracy, rtol=1e-6)


def test_schedules_of_weight_and_temperature():
    student = nets.mlp()
    x, x_pair, y = vectors_of_pairs()
    weight, temperature = kd.schedules.Linear(0.0, 1.0, 2), kd.schedules.Linear(2.0, 4.0, 2)
    distiller = compiled(student, optimizer=nets.sgd(0.0), weight=weight, temperature=temperature)
    target, logits = nets.array(student(x_pair)), nets.array(student(x))
    for step in range(3):
        logs = distiller.train_on_batch((x, x_pair), y, return_dict=True)
        distiller.reset_metrics()
        soft = nets.kd(target, logits, 2.0 + step).mean()
        np.testing.assert_allclose(logs["class_wise_loss"], soft, rtol=1e-4)
        expected = logs["label_loss"] + step / 2 * soft
        np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    clone = kd.ClassWiseDistiller.from_config(distiller.get_config())
    assert clone.weight.get_config() == weight.get_config()
    assert clone.temperature.get_config() == temperature.get_config()


def test_evaluate_takes_plain_data_and_of_pairs_the_images():
    student = nets.mlp()
    x, x_pair, y = vectors_of_pairs()
    distiller = compiled(student, compile_options={"metrics": ["accuracy"]})
    plain = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert set(plain) == {"loss", "accuracy"}
    paired = distiller.evaluate((x, x_pair), y, verbose=0, return_dict=True)
    assert paired == pytest.approx(plain, rel=1e-6)
    np.testing.assert_array_equal(
        distiller.predict(x, verbose=0), distiller.predict((x, x_pair), verbose=0)
    )
    with_terms = compiled(student, compile_options={"evaluate_terms": True})
    logs = with_terms.evaluate((x, x_pair), y, verbose=0, return_dict=True)
    expected = nets.kd(nets.array(student(x_pair)), nets.array(student(x)), 4.0).mean()
    np.testing.assert_allclose(logs["class_wise_loss"], expected, rtol=1e-4)
    logs = with_terms.evaluate(x, y, verbose=0, return_dict=True)
    assert "class_wise_loss" not in logs


@pytest.mark.tensorflow
def test_training_on_plain_data_is_an_error_that_names_the_pipeline():
    import tensorflow as tf

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return x, y

    x, _, y = vectors_of_pairs()
    distiller = compiled(nets.mlp())
    before = distiller.student.get_weights()
    text = r"\(\(x, other\), y\) for a ClassWiseDistiller.*\(\w+, 6\).*data.class_pairs"
    for data in [(x, y), (tf.data.Dataset.from_tensor_slices((x, y)).batch(8),)]:
        with pytest.raises(ValueError, match=text):
            distiller.fit(*data, verbose=0)
    with pytest.raises(ValueError, match=text):
        distiller.train_on_batch(x, y)
    with pytest.raises(ValueError, match=text):
        distiller.fit(Batches(), verbose=0)
    for own, value in zip(distiller.student.get_weights(), before):
        np.testing.assert_array_equal(own, value)
    assert int(distiller.optimizer.iterations) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"student": "net"}, "`student` to be a keras.Model"),
        ({"temperature": 0.0}, "`temperature` to be a positive finite number"),
        ({"weight": -1.0}, "`weight` to be a finite number, 0 or more"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    with pytest.raises((ValueError, TypeError), match=text):
        kd.ClassWiseDistiller(**{"student": nets.mlp(), **arguments})


@pytest.mark.slow
@pytest.mark.tensorflow
def test_it_trains_on_the_pipeline_with_class_weights():
    images = nets.images(20)
    labels = nets.class_ids(20)
    dataset = kd.data.class_pairs(
        images, labels, 8, epochs=2, class_weight={0: 2.0}, exclude_self=True, ids=True
    )
    distiller = compiled(nets.cnn())
    history = distiller.fit(dataset, epochs=2, steps_per_epoch=3, shuffle=False, verbose=0).history
    assert len(history["loss"]) == 2
    assert int(distiller.optimizer.iterations) == 6
    assert np.isfinite(history["class_wise_loss"]).all()
