"""Distiller: the total loss, one step, logs, evaluation, saving, inputs."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_distill as kd
from tests.models import nets

SOFT = kd.losses.SoftTargets


def compiled(distiller, optimizer=None, loss="ce", **kwargs):
    loss = nets.cross_entropy() if loss == "ce" else loss
    distiller.compile(optimizer or nets.sgd(), loss, jit_compile=False, **kwargs)
    return distiller


def vector_distiller(terms=None, **kwargs):
    teacher = nets.sharpen(nets.mlp(width=12, name="teacher"))
    return kd.Distiller(teacher, nets.mlp(name="student"), terms or SOFT(3.0), **kwargs)


def fit(model, x, y=None, **kwargs):
    kwargs = {"batch_size": 8, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(x, y, **kwargs).history


# The total and one step.


@pytest.mark.tensorflow
def test_total_terms_and_update_equal_a_hand_written_loop():
    import tensorflow as tf

    teacher, student = nets.cnn(6, "teacher"), nets.cnn(4, "student", regularized=True)
    terms = [
        kd.Term(SOFT(3.0), weight=2.0),
        kd.Term(kd.losses.Hint(), "stage1", "stage1", weight=0.5, connector="auto"),
    ]
    distiller = compiled(kd.Distiller(teacher, student, terms, student_loss_weight=0.3))
    x, y = nets.images(8), nets.class_ids(8)

    alone = nets.copy_of(student)
    projection = distiller.terms[1].connectors[0]
    connector = nets.copy_of(projection)
    features = keras.Model(
        alone.input,
        [alone.output, alone.get_layer("stage1").output, alone.get_layer("stage2").output],
    )
    teacher_logits, teacher_map = keras.Model(
        teacher.input, [teacher.output, teacher.get_layer("stage1").output]
    )(x, training=False)
    trained = alone.trainable_variables + connector.trainable_variables
    with tf.GradientTape() as tape:
        logits, stage1, stage2 = features(x, training=True)
        label = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        p = tf.nn.log_softmax(teacher_logits / 3.0)
        q = tf.nn.log_softmax(logits / 3.0)
        soft = 9.0 * tf.reduce_mean(tf.reduce_sum(tf.exp(p) * (p - q), -1))
        hint = tf.reduce_mean(tf.square(connector(stage1) - teacher_map))
        penalty = 0.05 * tf.reduce_sum(tf.square(alone.get_layer("conv1").kernel))
        activity = 0.01 * tf.reduce_sum(tf.square(stage2)) / len(x)
        total = 0.3 * label + 2.0 * soft + 0.5 * hint + penalty + activity
    for variable, gradient in zip(trained, tape.gradient(total, [v.value for v in trained])):
        variable.assign_sub(0.1 * gradient)

    logs = distiller.train_on_batch(x, y, return_dict=True)
    expected = {"loss": total, "label_loss": label, "soft_targets": soft, "hint": hint}
    assert set(logs) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], float(value), rtol=1e-5, err_msg=name)
    nets.assert_same_weights(student, alone, rtol=1e-4, atol=1e-6)
    nets.assert_same_weights(projection, connector, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_with_weight_zero_it_is_plain_fit_exactly(optimizer):
    student = nets.cnn(4, "student", regularized=True, dropout=0.4)
    alone = nets.copy_of(student)
    terms = [
        kd.Term(SOFT(2.0), weight=0.0),
        kd.Term(kd.losses.Hint(), "stage1", "stage1", weight=0.0, connector="auto"),
    ]
    distiller = compiled(
        kd.Distiller(nets.cnn(6, "teacher"), student, terms), optimizer, metrics=["accuracy"]
    )
    compiled(alone, optimizer, metrics=["accuracy"])
    x, y = nets.images(20), nets.class_ids(20)
    ours, plain = fit(distiller, x, y, epochs=2), fit(alone, x, y, epochs=2)
    assert nets.difference(student, alone) == 0.0
    assert ours["loss"] == plain["loss"]
    assert ours["accuracy"] == plain["accuracy"]
    assert distiller.evaluate(x, y, verbose=0, return_dict=True) == alone.evaluate(
        x, y, verbose=0, return_dict=True
    )


def test_student_loss_weight_scales_the_label_loss_alone():
    student = nets.mlp(name="student", regularizer=keras.regularizers.L2(0.1))
    distiller = kd.Distiller(
        nets.mlp(name="teacher"), student, kd.Term(SOFT(1.0), weight=3.0), student_loss_weight=0.25
    )
    x, y = nets.vectors(8), nets.class_ids(8)
    penalty = 0.1 * np.sum(np.square(nets.array(student.get_layer("hidden").kernel)))
    logs = compiled(distiller).train_on_batch(x, y, return_dict=True)
    expected = 0.25 * logs["label_loss"] + 3.0 * logs["soft_targets"] + penalty
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


def test_only_the_students_trainable_variables_train():
    teacher, student = nets.cnn(6, "teacher"), nets.cnn(4, "student")
    student.get_layer("conv1").trainable = False
    distiller = compiled(kd.Distiller(teacher, student, SOFT()))
    trained = {id(v) for v in distiller.trainable_variables}
    assert trained == {id(v) for v in student.trainable_variables}
    assert {id(v) for v in distiller.trainable_weights} == trained
    frozen = {id(v) for v in distiller.non_trainable_variables}
    assert {id(v) for v in teacher.variables} <= frozen
    assert not trained & frozen
    assert len(trained) + len(frozen) == len(distiller.variables)
    kernel = nets.array(student.get_layer("conv1").kernel)
    fit(distiller, nets.images(8), nets.class_ids(8))
    np.testing.assert_array_equal(nets.array(student.get_layer("conv1").kernel), kernel)


def test_a_frozen_student_is_only_watched():
    distiller = vector_distiller()
    distiller.student.trainable = False
    compiled(distiller)
    before = nets.snapshot(distiller.student)
    logs = distiller.train_on_batch(nets.vectors(8), nets.class_ids(8), return_dict=True)
    assert logs["loss"] > 0
    nets.assert_untouched(distiller.student, before)


# Logs.


def test_logged_loss_is_the_weighted_sum_of_its_parts_on_a_ragged_last_batch():
    distiller = compiled(
        vector_distiller(
            [kd.Term(SOFT(3.0), weight=2.0), kd.Term(kd.losses.LogitMSE(), weight=0.5)]
        )
    )
    distiller.optimizer.learning_rate = 0.0
    x, y = nets.vectors(19), nets.class_ids(19)
    logs = {name: values[0] for name, values in fit(distiller, x, y).items()}
    parts = logs["label_loss"] + 2.0 * logs["soft_targets"] + 0.5 * logs["logit_mse"]
    np.testing.assert_allclose(logs["loss"], parts, rtol=1e-6)
    teacher, student = nets.predict(distiller.teacher, x), nets.predict(distiller.student, x)
    np.testing.assert_allclose(logs["label_loss"], nets.ce(y, student).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        logs["soft_targets"], nets.kd(teacher, student, 3.0).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(logs["logit_mse"], np.mean((teacher - student) ** 2), rtol=1e-5)


# Weights of samples and classes, masks.


@pytest.mark.parametrize("how", ["sample_weight", "class_weight"])
def test_weights_reach_labels_and_terms(how):
    distiller, x, y = compiled(vector_distiller()), nets.vectors(12), nets.class_ids(12)
    by_class = {0: 2.0, 1: 0.0, 2: 1.0, 3: 0.5}
    weights = np.array([by_class[label] for label in y], "float32")
    teacher, student = nets.predict(distiller.teacher, x), nets.predict(distiller.student, x)
    given = {"sample_weight": weights} if how == "sample_weight" else {"class_weight": by_class}
    logs = distiller.train_on_batch(x, y, return_dict=True, **given)
    np.testing.assert_allclose(
        logs["label_loss"], np.mean(weights * nets.ce(y, student)), rtol=1e-5
    )
    np.testing.assert_allclose(
        logs["soft_targets"], np.mean(weights * nets.kd(teacher, student, 3.0)), rtol=1e-5
    )


def test_keras_mask_reaches_labels_and_terms():
    teacher, student = nets.tagger(7, "teacher"), nets.tagger(5, "student")
    nets.sharpen(teacher)
    terms = [
        kd.Term(SOFT(2.0)),
        kd.Term(kd.losses.Hint(), "embedding", "embedding", 0.5, None, "auto"),
    ]
    distiller = compiled(kd.Distiller(teacher, student, terms), metrics=["accuracy"])
    alone = compiled(nets.copy_of(student), metrics=["accuracy"])
    x, y = nets.token_ids(), nets.class_ids((8, 5))
    known = x > 0
    values = nets.kd(nets.predict(teacher, x), nets.predict(student, x), 2.0)
    connector = distiller.terms[1].connectors[0]
    feature = nets.predict(student.get_layer("embedding"), x) * known[..., None]
    target = nets.predict(teacher.get_layer("embedding"), x) * known[..., None]
    hint = np.mean((nets.predict(connector, feature) - target) ** 2)
    assert distiller.evaluate(x, y, verbose=0) == alone.evaluate(x, y, verbose=0)
    plain = alone.train_on_batch(x, y, return_dict=True)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["soft_targets"], values[known].mean(), rtol=1e-4)
    np.testing.assert_allclose(logs["hint"], hint, rtol=1e-5)
    np.testing.assert_allclose(logs["label_loss"], plain["loss"], rtol=1e-6)
    np.testing.assert_allclose(logs["accuracy"], plain["accuracy"], rtol=1e-6)


def test_padding_moves_nothing():
    teacher, student = nets.tagger(7, "teacher"), nets.tagger(5, "student")
    distiller = compiled(kd.Distiller(teacher, student, SOFT(2.0)), nets.sgd(0.0))
    x, y = nets.token_ids(), nets.class_ids((8, 5))
    short = distiller.train_on_batch(x, y, return_dict=True)
    padded = np.pad(x, ((0, 0), (0, 6))), np.pad(y, ((0, 0), (0, 6)))
    distiller.reset_metrics()
    long = distiller.train_on_batch(*padded, return_dict=True)
    for name in short:
        np.testing.assert_allclose(long[name], short[name], rtol=1e-5, err_msg=name)


def test_token_weights_reach_the_terms():
    teacher, student = nets.tagger(7, "teacher"), nets.tagger(5, "student")
    distiller = compiled(kd.Distiller(teacher, student, SOFT(2.0)))
    x, y = nets.token_ids(), nets.class_ids((8, 5))
    weights = np.random.default_rng(2).uniform(size=x.shape).astype("float32")
    values = nets.kd(nets.predict(teacher, x), nets.predict(student, x), 2.0)
    logs = distiller.train_on_batch(x, y, weights, return_dict=True)
    known = x > 0
    np.testing.assert_allclose(
        logs["soft_targets"], np.sum(values * weights * known) / known.sum(), rtol=1e-4
    )


# Several outputs.

TWO_LOSSES = {
    "list": [nets.cross_entropy(), "mse"],
    "dict": {"zebra": nets.cross_entropy(), "apple": "mse"},
    "names of a list": {"apple": "mse", "zebra": nets.cross_entropy()},
}
TWO_WEIGHTS = {
    "list": [2.0, 0.5],
    "dict": {"zebra": 2.0, "apple": 0.5},
    "names of a list": {"apple": 0.5, "zebra": 2.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(TWO_LOSSES))
def test_several_outputs_train_as_in_keras_and_each_is_distilled(kind):
    structure = "dict" if kind == "dict" else "list"
    teacher = nets.two_heads(structure, "teacher", width=12)
    student = nets.two_heads(structure, "student")
    x, zebra = nets.vectors(12), nets.class_ids(12)
    apple = np.random.default_rng(3).normal(size=(12, 3)).astype("float32")
    y = [zebra, apple] if structure == "list" else {"zebra": zebra, "apple": apple}
    settings = {"loss": TWO_LOSSES[kind], "loss_weights": TWO_WEIGHTS[kind]}
    settings["metrics"] = {"zebra": ["accuracy"], "apple": ["mae"]}
    settings["weighted_metrics"] = {"zebra": [], "apple": ["mse"]}
    alone = compiled(nets.copy_of(student), **settings)
    t, s = (keras.tree.flatten(nets.predict(net, x)) for net in (teacher, student))
    expected = sum(nets.kd(a, b, 2.0).mean() for a, b in zip(t, s))

    distiller = compiled(kd.Distiller(teacher, student, SOFT(2.0)), **settings)
    weights = np.linspace(0.5, 1.5, 12).astype("float32")
    plain = fit(alone, x, y, sample_weight=weights, batch_size=12)
    idle = compiled(
        kd.Distiller(teacher, nets.copy_of(student), kd.Term(SOFT(2.0), weight=0.0)), **settings
    )
    logs = fit(idle, x, y, sample_weight=weights, batch_size=12)
    assert {name: logs[name] for name in plain} == plain
    assert nets.difference(idle.student, alone) == 0.0
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["soft_targets"], expected, rtol=1e-5)


def test_one_label_structure_for_two_outputs_and_a_loss_for_one_of_them():
    student = nets.two_heads("dict", "student")
    distiller = compiled(
        kd.Distiller(nets.two_heads("dict", "teacher"), student, SOFT(2.0)),
        loss={"zebra": nets.cross_entropy(), "apple": None},
    )
    x, y = nets.vectors(12), nets.class_ids(12)
    logits = nets.predict(student, x)["zebra"]
    logs = distiller.train_on_batch(x, {"zebra": y, "apple": np.zeros((12, 3))}, return_dict=True)
    np.testing.assert_allclose(logs["label_loss"], nets.ce(y, logits).mean(), rtol=1e-5)


# Losses that the student adds itself.


@keras.saving.register_keras_serializable(package="tests")
class Penalty(layers.Layer):
    def call(self, inputs):
        self.add_loss(0.01 * ops.sum(ops.square(inputs)))
        return inputs


@pytest.mark.slow
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_add_loss_of_the_student_counts_once_a_step(run_eagerly):
    inputs = keras.Input((nets.FEATURES,))
    x = Penalty()(layers.Dense(8, name="hidden")(inputs))
    student = keras.Model(inputs, layers.Dense(nets.CLASSES)(x))
    alone = compiled(nets.copy_of(student), run_eagerly=run_eagerly)
    distiller = kd.Distiller(nets.mlp(), student, kd.Term(SOFT(), weight=0.0))
    compiled(distiller, run_eagerly=run_eagerly)
    x, y = nets.vectors(16), nets.class_ids(16)
    for _ in range(2):
        ours, plain = fit(distiller, x, y), fit(alone, x, y)
        np.testing.assert_allclose(ours["loss"], plain["loss"], rtol=1e-6)
    np.testing.assert_allclose(
        distiller.evaluate(x, y, verbose=0), alone.evaluate(x, y, verbose=0), rtol=1e-6
    )


# Labels may be missing.


def test_label_free_training_from_x_alone_and_from_a_dataset():
    x = nets.vectors(16)
    distiller = compiled(vector_distiller(kd.Term(SOFT(3.0), weight=2.0)), loss=None)
    t, s = nets.predict(distiller.teacher, x), nets.predict(distiller.student, x)
    expected = 2.0 * nets.kd(t, s, 3.0).mean()
    logs = distiller.evaluate(x, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    logs = fit(distiller, x, batch_size=16)
    assert set(logs) == {"loss", "soft_targets"}
    np.testing.assert_allclose(logs["loss"][0], expected, rtol=1e-5)
    assert fit(distiller, x, epochs=20)["loss"][-1] < logs["loss"][0]


@pytest.mark.tensorflow
def test_label_free_training_from_a_dataset_of_inputs():
    import tensorflow as tf

    distiller = compiled(vector_distiller(), loss=None)
    dataset = tf.data.Dataset.from_tensor_slices(nets.vectors(16)).batch(8)
    logs = distiller.fit(dataset, validation_data=dataset, shuffle=False, verbose=0).history
    assert set(logs) == {"loss", "soft_targets", "val_loss", "val_soft_targets"}


def test_compiled_again_it_forgets_the_loss_and_metrics_of_before():
    distiller = compiled(vector_distiller(), metrics=["accuracy"])
    x, y = nets.vectors(8), nets.class_ids(8)
    distiller.train_on_batch(x, y)
    compiled(distiller, loss=None)
    assert set(distiller.train_on_batch(x, return_dict=True)) == {"loss", "soft_targets"}
    compiled(distiller)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert set(logs) == {"loss", "label_loss", "soft_targets"}


# Evaluation and prediction.


def test_evaluate_and_predict_are_the_students_and_change_nothing():
    teacher = nets.cnn(6, "teacher")
    student = nets.cnn(4, "student", regularized=True, dropout=0.3)
    distiller = compiled(
        kd.Distiller(teacher, student, SOFT()), metrics=["accuracy"], weighted_metrics=["accuracy"]
    )
    alone = compiled(nets.copy_of(student), metrics=["accuracy"], weighted_metrics=["accuracy"])
    x, y = nets.images(12), nets.class_ids(12)
    weights = np.linspace(0, 1, 12).astype("float32")
    before = nets.snapshot(distiller)
    ours = distiller.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    assert ours == alone.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), alone.predict(x, verbose=0))
    nets.assert_untouched(distiller, before)
    distiller.compile(nets.sgd(), nets.cross_entropy(), evaluate_terms=True, jit_compile=False)
    distiller.evaluate(x, y, verbose=0)
    nets.assert_untouched(distiller, before)


@pytest.mark.parametrize("evaluate_terms, calls", [(False, 0), (True, 1), (None, 0)])
def test_evaluate_runs_the_teacher_only_for_the_terms(evaluate_terms, calls):
    teacher = nets.Subclassed()
    counted = []

    def call(inputs, training=None):
        counted.append(training)
        return nets.Subclassed.call(teacher, inputs)

    teacher(nets.vectors(2))
    distiller = kd.Distiller(teacher, nets.mlp(), SOFT(2.0), teacher_from_logits=True)
    compiled(distiller, run_eagerly=True, evaluate_terms=evaluate_terms)
    x, y = nets.vectors(8), nets.class_ids(8)
    teacher.call = call
    logs = distiller.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    distiller.predict(x, verbose=0)
    assert counted == [False] * calls
    teacher.call = lambda inputs, training=None: nets.Subclassed.call(teacher, inputs)
    t, s = nets.predict(teacher, x), nets.predict(distiller.student, x)
    label, soft = nets.ce(y, s).mean(), nets.kd(t, s, 2.0).mean()
    np.testing.assert_allclose(logs["loss"], label + calls * soft, rtol=1e-5)
    assert ("soft_targets" in logs) == bool(calls)


def test_validation_is_plain_and_keeps_the_training_state():
    distiller = compiled(vector_distiller(), metrics=["accuracy"])
    x, y = nets.vectors(16), nets.class_ids(16)
    logs = fit(distiller, x, y, validation_data=(x, y, np.ones(16)))
    assert set(logs) == {
        "loss", "label_loss", "soft_targets", "accuracy", "val_loss", "val_accuracy",
    }  # fmt: skip
    np.testing.assert_allclose(
        logs["val_loss"][0], nets.ce(y, nets.predict(distiller.student, x)).mean(), rtol=1e-5
    )


# Inputs and precision that differ between the networks.


def test_inputs_of_their_own_for_teacher_and_student():
    teacher, student = nets.cnn(6, "teacher", size=8), nets.mlp(name="student")
    distiller = compiled(kd.Distiller(teacher, student, SOFT(2.0)))
    x, y = {"teacher": nets.images(8), "student": nets.vectors(8)}, nets.class_ids(8)
    t, s = nets.predict(teacher, x["teacher"]), nets.predict(student, x["student"])
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["soft_targets"], nets.kd(t, s, 2.0).mean(), rtol=1e-5)
    assert distiller.predict(x, verbose=0).shape == (8, nets.CLASSES)
    assert distiller.evaluate(x, y, verbose=0) > 0


def test_teacher_behind_an_adapter_with_taps_through_it():
    inner, student = nets.cnn(6, "inner", size=12), nets.cnn(4, "student")
    teacher = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Resizing(12, 12), layers.Rescaling(2.0, 1.0), inner],
        name="adapted",
    )
    terms = [
        SOFT(2.0),
        kd.Term(kd.losses.Hint(), "inner/stage1", "stage1", connector="auto"),
    ]
    distiller = compiled(kd.Distiller(teacher, student, terms))
    x, y = nets.images(8), nets.class_ids(8)
    s = nets.predict(student, x, training=True)
    seen = layers.Rescaling(2.0, 1.0)(layers.Resizing(12, 12)(x))
    stage1 = keras.Model(inner.input, inner.get_layer("stage1").output)
    mine = keras.Model(student.input, student.get_layer("stage1").output)
    hint = np.mean(
        (
            nets.predict(distiller.terms[1].connectors[0], mine(x, training=True))
            - nets.predict(stage1, seen)
        )
        ** 2
    )
    logs = distiller.train_on_batch(x, y, return_dict=True)
    expected = nets.kd(nets.predict(inner, seen), s, 2.0).mean()
    np.testing.assert_allclose(logs["soft_targets"], expected, rtol=1e-4)
    np.testing.assert_allclose(logs["hint"], hint, rtol=1e-4)


@pytest.mark.parametrize(
    "teacher_policy, student_policy", [("float32", "mixed_float16"), ("mixed_float16", "float32")]
)
def test_policies_of_their_own(teacher_policy, student_policy):
    models = {}
    for name, policy in (("teacher", teacher_policy), ("student", student_policy)):
        keras.config.set_dtype_policy(policy)
        models[name] = nets.cnn(4, name)
    keras.config.set_dtype_policy("float32")
    distiller = kd.Distiller(**models, distillation_losses=[
        SOFT(2.0), kd.Term(kd.losses.Hint(), "stage1", "stage1")
    ])  # fmt: skip
    compiled(distiller)
    scaled = type(distiller.optimizer).__name__ == "LossScaleOptimizer"
    assert scaled == (student_policy == "mixed_float16")
    x, y = nets.images(8), nets.class_ids(8)
    t = nets.predict(models["teacher"], x)
    s = nets.predict(models["student"], x, training=True)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["soft_targets"], nets.kd(t, s, 2.0).mean(), rtol=0.05)
    assert np.isfinite(list(logs.values())).all()
    for name, policy in (("teacher", teacher_policy), ("student", student_policy)):
        assert {layer.dtype_policy.name for layer in models[name].layers[1:]} == {policy}


def test_teacher_dtype_runs_the_teacher_lower_and_leaves_it_as_it_was():
    teacher, student = nets.sharpen(nets.cnn(6, "teacher")), nets.cnn(4, "student")
    before = nets.snapshot(teacher)
    terms = [SOFT(2.0), kd.Term(kd.losses.Hint(), "stage1", "stage1", connector="auto")]
    low = compiled(kd.Distiller(teacher, student, terms, teacher_dtype="bfloat16"), nets.sgd(0.0))
    x, y = nets.images(8), nets.class_ids(8)
    t, s = nets.predict(teacher, x), nets.predict(student, x, training=True)
    logs = low.train_on_batch(x, y, return_dict=True)
    full = nets.kd(t, s, 2.0).mean()
    np.testing.assert_allclose(logs["soft_targets"], full, rtol=0.05)
    assert abs(logs["soft_targets"] / full - 1) > 1e-6  # it did run lower
    assert {layer.dtype_policy.name for layer in teacher._flatten_layers()} == {"float32"}
    assert {v.dtype for v in teacher.variables} == {"float32"}
    nets.assert_untouched(teacher, before)
    np.testing.assert_array_equal(nets.predict(teacher, x), t)


# The networks.


def test_unbuilt_and_subclassed_models_train():
    teacher, student = nets.Subclassed(width=12), nets.Subclassed()
    distiller = compiled(kd.Distiller(teacher, student, SOFT(2.0)), "adam")
    x, y = nets.vectors(16), nets.class_ids(16)
    logs = fit(distiller, x, y, epochs=8)
    assert logs["loss"][-1] < logs["loss"][0]
    assert {id(v) for v in distiller.trainable_variables} == {
        id(v) for v in student.trainable_variables
    }


def test_a_trained_distiller_serves_as_teacher():
    first = compiled(vector_distiller())
    x, y = nets.vectors(16), nets.class_ids(16)
    fit(first, x, y)
    second = compiled(kd.Distiller(first, nets.mlp(name="second"), SOFT(2.0)))
    before = nets.snapshot(first)
    logs = second.train_on_batch(x, y, return_dict=True)
    assert logs["soft_targets"] > 0
    nets.assert_untouched(first, before)
