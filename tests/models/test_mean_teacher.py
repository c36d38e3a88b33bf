"""Mean teacher: steps and averages against numpy, what is evaluated, what is saved."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_distill as kd
from tests.models import nets
from tests.oracles import finite_differences
from tests.oracles import mean_teacher as oracle

STEPS = 6


def linear(name="linear", activation=None):
    inputs = keras.Input((nets.FEATURES,), name="vector")
    outputs = layers.Dense(nets.CLASSES, activation, name="head")(inputs)
    return keras.Model(inputs, outputs, name=name)


def compiled(wrapper, rate=0.5, loss=None, **kwargs):
    wrapper.compile(nets.sgd(rate), loss or nets.cross_entropy(), jit_compile=False, **kwargs)
    return wrapper


def step(wrapper, x, y, **kwargs):
    return wrapper.train_on_batch(x, y, return_dict=True, **kwargs)


def batches(count=STEPS, size=5):
    return [
        (nets.vectors(size, seed=t), nets.vectors(size, seed=100 + t), nets.class_ids(size, t))
        for t in range(count)
    ]


def values(model):
    return [nets.array(v) for v in model.weights]


# Against the equations.


@pytest.mark.parametrize("consistency", ["mse", "kl"])
def test_gradients_of_the_oracle(consistency):
    student, teacher = np.random.default_rng(0).normal(size=(2, 5, 4))
    value = {"mse": oracle.squared, "kl": oracle.kl}[consistency]
    slope = {"mse": oracle.squared_gradient, "kl": oracle.kl_gradient}[consistency]
    expected = finite_differences.gradient(lambda z: value(z, teacher), student)
    np.testing.assert_allclose(slope(student, teacher), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("views", ["two", "one"])
@pytest.mark.parametrize("activation", [None, "softmax"])
@pytest.mark.parametrize("consistency", ["mse", "kl"])
def test_six_steps_are_those_of_the_equations(consistency, activation, views):
    """Losses, weights and average of each step: the decay's warm-up, then the decay."""
    # Keras clips the probabilities of its cross-entropy: none may come near 0.
    model, rate = linear(activation=activation), 0.1
    if activation is None:
        model, rate = nets.sharpen(model), 0.5
    start = [nets.array(v) for v in model.weights]
    data = batches()
    if views == "one":
        data = [(x, x, y) for x, _, y in data]
    decay, ramp = 0.7, kd.schedules.SigmoidRamp(8.0, steps=4)
    expected = oracle.train(
        *start,
        data,
        rate,
        decay,
        lambda t: 8.0 * np.exp(-5 * (1 - min(t / 4, 1)) ** 2),
        consistency,
    )
    wrapper = kd.MeanTeacher(model, decay, ramp, consistency)
    loss = nets.cross_entropy() if activation is None else sparse_of_probabilities()
    compiled(wrapper, rate, loss)
    for (x, other, y), after in zip(data, expected):
        logs = step(wrapper, (x, other) if views == "two" else x, y)
        for name in ("label_loss", "consistency"):
            np.testing.assert_allclose(logs[name], after[name], rtol=1e-4, atol=1e-7)
        for network in ("student", "averaged"):
            for own, right in zip(getattr(wrapper, network).weights, after[network]):
                np.testing.assert_allclose(nets.array(own), right, rtol=1e-4, atol=1e-5)
    decays = [oracle.decay_at(t, decay) for t in (1, 2, 3, 4)]
    assert decays == pytest.approx([0.5, 2 / 3, 0.7, 0.7])


def sparse_of_probabilities():
    return keras.losses.SparseCategoricalCrossentropy()


def test_the_first_step_has_nothing_to_agree_on():
    x, y = nets.vectors(8), nets.class_ids(8)
    logs = step(compiled(kd.MeanTeacher(nets.mlp(), weight=3.0)), x, y)
    np.testing.assert_allclose(logs["consistency"], 0.0, atol=1e-12)
    np.testing.assert_allclose(logs["loss"], logs["label_loss"], rtol=1e-6)


# The average.


def test_statistics_are_averaged_with_the_weights():
    student = nets.cnn()
    wrapper = compiled(kd.MeanTeacher(student, decay=0.6))
    start, history = values(student), []
    for t in range(4):
        step(wrapper, nets.images(8, seed=t), nets.class_ids(8, t))
        history.append(values(student))
    assert not np.allclose(history[-1][4], start[4])  # a moving mean
    for i, own in enumerate(values(wrapper.averaged)):
        expected = oracle.averages(start[i], [weights[i] for weights in history], 0.6)[-1]
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)


def test_official_mode_keeps_statistics_of_its_own():
    """The averaged network runs in training mode: its statistics are those of its own maps."""
    student = nets.cnn()
    wrapper = compiled(kd.MeanTeacher(student, decay=0.6, teacher_training=True))
    x, other, y = nets.images(8), nets.images(8, seed=1), nets.class_ids(8)
    start = values(student)
    maps = keras.Model(student.input, student.get_layer("conv1").output)(other)
    mean = nets.array(ops.mean(maps, axis=(0, 1, 2)))
    step(wrapper, (x, other), y)
    norm, conv = wrapper.averaged.get_layer("bn1"), wrapper.averaged.get_layer("conv1")
    np.testing.assert_allclose(nets.array(norm.moving_mean), 0.3 * mean, rtol=1e-4, atol=1e-6)
    own = nets.array(student.get_layer("bn1").moving_mean)
    assert not np.allclose(own, nets.array(norm.moving_mean))
    half = 0.5 * (start[0] + nets.array(student.get_layer("conv1").kernel))
    np.testing.assert_allclose(nets.array(conv.kernel), half, rtol=1e-5, atol=1e-6)


def test_official_mode_drops_units_of_its_own():
    """With dropout of a fixed seed both would drop the same units, and agree."""
    model = nets.cnn(dropout=0.5)
    wrapper = compiled(kd.MeanTeacher(model, consistency="kl", teacher_training=True))
    logs = step(wrapper, nets.images(8), nets.class_ids(8))
    assert logs["consistency"] > 1e-4
    before = [nets.array(v) for v in wrapper.averaged.variables]
    wrapper.evaluate(nets.images(8), nets.class_ids(8), verbose=0)
    for value, variable in zip(before, wrapper.averaged.variables):
        np.testing.assert_array_equal(value, nets.array(variable))


def test_accumulating_steps_move_nothing():
    student = linear()
    wrapper = kd.MeanTeacher(student, decay=0.6)
    optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    wrapper.compile(optimizer, nets.cross_entropy())
    start, history = values(student), []
    for t, (x, other, y) in enumerate(batches()):
        before = values(wrapper.averaged)
        step(wrapper, (x, other), y)
        if t % 2 == 0:
            for a, b in zip(before, values(wrapper.averaged)):
                np.testing.assert_array_equal(a, b)
        else:
            history.append(values(student))
    for i, own in enumerate(values(wrapper.averaged)):
        expected = oracle.averages(start[i], [weights[i] for weights in history], 0.6)[-1]
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)


def test_a_step_that_loss_scaling_skips_moves_nothing():
    model = nets.cnn()
    half = keras.models.clone_model(
        model,
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), "dtype": "mixed_float16"}
        ),
    )
    wrapper = kd.MeanTeacher(half, decay=0.6)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=2.0**60)
    wrapper.compile(scaled, nets.cross_entropy())
    x, y = nets.images(8), nets.class_ids(8)
    before = values(wrapper.averaged)
    step(wrapper, x, y)
    for variable, a, b in zip(wrapper.averaged.weights, before, values(wrapper.averaged)):
        if "moving" not in variable.name:
            np.testing.assert_array_equal(a, b)
    assert int(nets.array(wrapper._updates)) == 0
    assert all(v.dtype == "float32" for v in wrapper.averaged.weights)


def test_a_new_optimizer_does_not_begin_the_warm_up_anew():
    student = linear()
    wrapper = compiled(kd.MeanTeacher(student, decay=0.9))
    start, history = values(student), []
    for t, (x, _, y) in enumerate(batches(4)):
        if t == 2:
            compiled(wrapper, rate=0.2)
        step(wrapper, x, y)
        history.append(values(student))
    for i, own in enumerate(values(wrapper.averaged)):
        expected = oracle.averages(start[i], [weights[i] for weights in history], 0.9)[-1]
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_replicas_hold_one_average(two_replicas):
    import tensorflow as tf

    def run(strategy):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            wrapper = compiled(kd.MeanTeacher(nets.mlp(), decay=0.6, weight=5.0))
        data = (nets.vectors(16), nets.vectors(16, seed=1)), nets.class_ids(16)
        wrapper.fit(*data, batch_size=8, epochs=3, shuffle=False, verbose=0)
        return wrapper

    one, both = run(tf.distribute.get_strategy()), run(two_replicas)
    for a, b in zip(one.variables, both.variables, strict=True):
        np.testing.assert_allclose(nets.array(a), nets.array(b), rtol=1e-5, atol=1e-6)
    for variable in both.averaged.weights:
        first, second = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first.numpy(), second.numpy())


# What is trained, evaluated, saved.


def test_the_average_is_not_trained():
    wrapper = compiled(kd.MeanTeacher(nets.cnn(), weight=1e3), rate=0.0)
    before = nets.snapshot(wrapper.averaged)
    wrapper.fit(nets.images(8), nets.class_ids(8), epochs=2, verbose=0)
    own = {id(v) for v in wrapper.trainable_variables}
    assert own == {id(v) for v in wrapper.student.trainable_variables}
    for name, value, old in zip(
        [v.name for v in wrapper.averaged.weights], values(wrapper.averaged), before[0]
    ):
        if "moving" not in name:
            np.testing.assert_array_equal(value, old)
    assert all(layer.trainable for layer in wrapper.averaged.layers)


@pytest.mark.slow
def test_the_average_is_evaluated_with_its_own_regularisers():
    x, y = nets.images(12), nets.class_ids(12)
    wrapper = compiled(kd.MeanTeacher(nets.cnn(regularized=True)), metrics=["accuracy"])
    history = wrapper.fit(x, y, epochs=3, validation_data=(x, y), shuffle=False, verbose=0).history
    assert wrapper.inference_model is wrapper.averaged
    alone = nets.copy_of(wrapper.averaged)
    alone.compile(loss=nets.cross_entropy(), metrics=["accuracy"])
    expected = alone.evaluate(x, y, verbose=0, return_dict=True)
    for name, value in wrapper.evaluate(x, y, verbose=0, return_dict=True).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5)
        np.testing.assert_allclose(history[f"val_{name}"][-1], expected[name], rtol=1e-5)
    np.testing.assert_allclose(
        wrapper.predict(x, verbose=0), nets.predict(wrapper.averaged, x), rtol=1e-5, atol=1e-6
    )


def test_the_loss_holds_the_regularisers_of_the_student_alone():
    x, y = nets.images(8), nets.class_ids(8)
    for official in (False, True):
        student = nets.cnn(regularized=True)
        wrapper = kd.MeanTeacher(student, weight=2.0, teacher_training=official)
        compiled(wrapper, rate=0.0)
        student(x, training=True)
        penalties = float(nets.array(sum(student.losses)))
        logs = step(wrapper, x, y)
        expected = logs["label_loss"] + 2.0 * logs["consistency"] + penalties
        np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_evaluate_terms_adds_the_consistency():
    x, y = nets.vectors(12), nets.class_ids(12)
    wrapper = compiled(kd.MeanTeacher(nets.mlp(), weight=3.0), evaluate_terms=True)
    for batch in batches(3, 12):
        step(wrapper, batch[0], batch[2])
    logs = wrapper.evaluate(x, y, verbose=0, return_dict=True)
    averaged, student = nets.predict(wrapper.averaged, x), nets.predict(wrapper.student, x)
    np.testing.assert_allclose(logs["consistency"], oracle.squared(student, averaged), rtol=1e-4)
    np.testing.assert_allclose(logs["label_loss"], nets.ce(y, averaged).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        logs["loss"], logs["label_loss"] + 3.0 * logs["consistency"], rtol=1e-5
    )


@pytest.mark.parametrize("file", ["weights", "model"])
def test_files_hold_the_average(file, tmp_path):
    wrapper = compiled(kd.MeanTeacher(nets.mlp(), 0.9, kd.schedules.SigmoidRamp(2.0, 5), "kl"))
    for x, other, y in batches(3):
        step(wrapper, (x, other), y)
    if file == "weights":
        wrapper.save_weights(tmp_path / "mean.weights.h5")
        other = compiled(kd.MeanTeacher(nets.mlp(), 0.9, kd.schedules.SigmoidRamp(2.0, 5), "kl"))
        other.load_weights(tmp_path / "mean.weights.h5")
    else:
        wrapper.save(tmp_path / "mean.keras", include_teacher=False)
        other = keras.saving.load_model(tmp_path / "mean.keras")
        assert (other.decay, other.consistency, other.teacher_training) == (0.9, "kl", False)
        assert other.weight.get_config() == wrapper.weight.get_config()
    nets.assert_same_weights(wrapper.averaged, other.averaged)
    assert nets.difference(other.averaged, other.student) > 1e-3
    for x, view, y in batches(3):
        step(wrapper, (x, view), y)
        step(other, (x, view), y)
    nets.assert_same_weights(wrapper.averaged, other.averaged, rtol=1e-6, atol=1e-7)


# Data and networks of every kind.


def test_unlabelled_and_weighted_samples():
    x, other, y = nets.vectors(6), nets.vectors(6, seed=1), nets.class_ids(6)
    y[:2] = -1
    weights = np.linspace(0.5, 2.0, 6).astype("float32")
    wrapper = compiled(kd.MeanTeacher(nets.sharpen(nets.mlp())), rate=0.0)
    student, averaged = nets.predict(wrapper.student, x), nets.predict(wrapper.averaged, other)
    logs = step(wrapper, (x, other), y, sample_weight=weights)
    label = np.sum((weights * nets.ce(np.maximum(y, 0), student))[2:]) / 6
    squares = np.mean((nets.softmax(student) - nets.softmax(averaged)) ** 2, axis=-1)
    np.testing.assert_allclose(logs["label_loss"], label, rtol=1e-5)
    np.testing.assert_allclose(logs["consistency"], np.mean(weights * squares), rtol=1e-4)


def test_masked_tokens_do_not_count():
    ids, other = nets.token_ids(), nets.token_ids(seed=1)
    other = np.where(ids != 0, np.maximum(other, 1), 0)
    y = np.where(ids != 0, nets.class_ids(ids.shape), 0)
    wrapper = compiled(kd.MeanTeacher(nets.sharpen(nets.tagger())), rate=0.0)
    student, averaged = nets.predict(wrapper.student, ids), nets.predict(wrapper.averaged, other)
    logs = step(wrapper, (ids, other), y)
    squares = np.mean((nets.softmax(student) - nets.softmax(averaged)) ** 2, axis=-1)
    np.testing.assert_allclose(logs["consistency"], squares[ids != 0].mean(), rtol=1e-4)


def test_independent_labels_and_several_outputs():
    x, other = nets.vectors(6), nets.vectors(6, seed=1)
    wrapper = kd.MeanTeacher(nets.sharpen(nets.mlp("sigmoid")))
    compiled(wrapper, rate=0.0, loss=keras.losses.BinaryCrossentropy())
    student, averaged = nets.predict(wrapper.student, x), nets.predict(wrapper.averaged, other)
    y = np.ones((6, nets.CLASSES), "float32")
    logs = step(wrapper, (x, other), y)
    np.testing.assert_allclose(
        logs["consistency"], np.mean((student - averaged) ** 2), rtol=1e-3, atol=1e-7
    )
    wrapper = compiled(kd.MeanTeacher(nets.two_heads("dict")), rate=0.0)
    student, averaged = nets.predict(wrapper.student, x), nets.predict(wrapper.averaged, other)
    labels = {"zebra": nets.class_ids(6), "apple": nets.class_ids(6) % 3}
    logs = step(wrapper, (x, other), labels)
    expected = sum(oracle.squared(student[name], averaged[name]) for name in student)
    np.testing.assert_allclose(logs["consistency"], expected, rtol=1e-4)


def test_model_without_a_graph():
    x, other, y = nets.vectors(6), nets.vectors(6, seed=1), nets.class_ids(6)
    for activation in (None, "softmax"):
        student = nets.Subclassed(activation)
        student(x)
        wrapper = kd.MeanTeacher(student, student_from_logits=activation is None)
        nets.assert_same_weights(wrapper.averaged, student)
        loss = nets.cross_entropy() if activation is None else sparse_of_probabilities()
        compiled(wrapper, loss=loss)
        before = values(student)
        student_logits = np.log(nets.softmax(nets.predict(student, x)))
        averaged_logits = np.log(nets.softmax(nets.predict(wrapper.averaged, other)))
        if activation is not None:
            student_logits = np.log(nets.predict(student, x))
            averaged_logits = np.log(nets.predict(wrapper.averaged, other))
        logs = step(wrapper, (x, other), y)
        np.testing.assert_allclose(
            logs["consistency"], oracle.squared(student_logits, averaged_logits), rtol=1e-3
        )
        for old, new, average in zip(before, values(student), values(wrapper.averaged)):
            np.testing.assert_allclose(average, 0.5 * (old + new), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: kd.MeanTeacher(linear(), decay=1.0), r"`decay` to be in \[0, 1\).*decay=1.0"),
        (lambda: kd.MeanTeacher(linear(), decay=-0.1), "`decay`"),
        (lambda: kd.MeanTeacher(linear(), weight=-1.0), "`weight`"),
        (lambda: kd.MeanTeacher(linear(), consistency="cosine"), "`consistency` to be one of"),
        (lambda: kd.MeanTeacher(nets.Subclassed()), "`student` to be built.*Call it on a batch"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match="`teacher_training` to be True or False"):
        kd.MeanTeacher(linear(), teacher_training="yes")
    with pytest.raises(TypeError, match="`student` to be a keras.Model"):
        kd.MeanTeacher("resnet")
