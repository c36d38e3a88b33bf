"""EnsembleTeacher: averages, independent training, saving, and service as a teacher."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_distill as kd
from tests.models import nets


def members(count=3, heads=(None, None, None), classes=nets.CLASSES, width=8):
    return [
        nets.sharpen(nets.mlp(heads[i], classes, width + i, name=f"member_{i}"))
        for i in range(count)
    ]


def as_logits(model, x):
    inner = keras.Model(model.input, model.get_layer("hidden").output)
    head = model.get_layer("head")
    return nets.predict(inner, x) @ nets.array(head.kernel) + nets.array(head.bias)


def average(logits, weights=None, kind="probabilities", temperature=1.0, activation="softmax"):
    """The ensemble in numpy: T log mean softmax(z / T), or mean z. `logits`: (K, batch, classes)"""
    logits = np.asarray(logits, "float64")
    weights = np.ones(len(logits)) if weights is None else np.asarray(weights, "float64")
    weights = weights / weights.sum(0)
    weights = weights.reshape(weights.shape + (1,) * (logits.ndim - weights.ndim))
    if kind == "logits":
        return np.sum(weights * logits, 0)
    if activation == "sigmoid":
        p = np.sum(weights * nets.sigmoid(logits / temperature), 0)
        return temperature * (np.log(p) - np.log(1 - p))
    return temperature * np.log(np.sum(weights * nets.softmax(logits / temperature), 0))


def compiled(model, optimizer="adam", loss=None, **kwargs):
    model.compile(optimizer, loss or nets.cross_entropy(), jit_compile=False, **kwargs)
    return model


def fit(model, x, y, **kwargs):
    kwargs = {"batch_size": 8, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(x, y, **kwargs).history


# What it answers.


@pytest.mark.slow
@pytest.mark.parametrize("heads", [(None, None, None), (None, "softmax", "softmax")])
@pytest.mark.parametrize("kind", ["probabilities", "logits"])
@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.0]])
def test_answers_with_the_average(heads, kind, weights):
    parts = members(heads=heads)
    ensemble = kd.EnsembleTeacher(parts, average=kind, weights=weights)
    x = nets.vectors(10)
    logits = [as_logits(part, x) for part in parts]
    ours = nets.predict(ensemble, x)
    assert ours.dtype == "float32"
    np.testing.assert_allclose(ours, average(logits, weights, kind), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ensemble.predict(x, verbose=0), ours, rtol=1e-5, atol=1e-6)
    for temperature in (1.0, 4.0):
        np.testing.assert_allclose(
            nets.array(ensemble.soft_outputs(x, temperature)),
            average(logits, weights, kind, temperature),
            rtol=1e-4,
            atol=1e-5,
        )


def test_saturated_members_stay_finite():
    parts = members()
    for part in parts:
        part.get_layer("head").kernel.assign(1000.0 * part.get_layer("head").kernel)
    outputs = nets.predict(kd.EnsembleTeacher(parts), nets.vectors(10))
    assert np.isfinite(outputs).all()


@keras.saving.register_keras_serializable(package="tests")
def by_first_feature(x):
    return ops.stack([ops.exp(x[:, 0]), ops.exp(-x[:, 0]), ops.ones_like(x[:, 0])], axis=-1)


@pytest.mark.parametrize("kind", ["probabilities", "logits"])
def test_weights_of_each_sample(kind, tmp_path):
    parts = members()
    x = nets.vectors(10)
    logits = [as_logits(part, x) for part in parts]
    weights = np.stack([np.exp(x[:, 0]), np.exp(-x[:, 0]), np.ones(10)])
    ensemble = kd.EnsembleTeacher(parts, weights=by_first_feature, average=kind)
    expected = average(logits, weights, kind)
    np.testing.assert_allclose(nets.predict(ensemble, x), expected, rtol=1e-4, atol=1e-5)
    ensemble.save(tmp_path / "e.keras")
    loaded = keras.saving.load_model(tmp_path / "e.keras")
    np.testing.assert_allclose(nets.predict(loaded, x), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_a_layer_and_of_a_function_for_all_samples():
    parts = members()
    x = nets.vectors(10)
    logits = [as_logits(part, x) for part in parts]
    router = keras.Sequential([keras.Input((nets.FEATURES,)), layers.Dense(3, "softmax")])
    ensemble = kd.EnsembleTeacher(parts, weights=router)
    expected = average(logits, nets.predict(router, x).T)
    np.testing.assert_allclose(nets.predict(ensemble, x), expected, rtol=1e-4, atol=1e-5)
    ensemble = kd.EnsembleTeacher(parts, weights=lambda x: ops.convert_to_tensor([1.0, 2.0, 3.0]))
    expected = average(logits, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(nets.predict(ensemble, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [(None, "sigmoid", None), ("sigmoid",) * 3])
@pytest.mark.parametrize("classes", [1, nets.CLASSES])
def test_sigmoid_heads(heads, classes):
    parts = members(heads=heads, classes=classes)
    ensemble = kd.EnsembleTeacher(parts)
    x = nets.vectors(10)
    logits = [as_logits(part, x) for part in parts]
    for temperature in (1.0, 3.0):
        np.testing.assert_allclose(
            nets.array(ensemble.soft_outputs(x, temperature)),
            average(logits, temperature=temperature, activation="sigmoid"),
            rtol=1e-4,
            atol=1e-4,
        )


def test_linear_multi_label_heads_need_the_activation():
    parts = members()
    x = nets.vectors(10)
    ensemble = kd.EnsembleTeacher(parts, activation="sigmoid")
    expected = average([as_logits(part, x) for part in parts], activation="sigmoid")
    np.testing.assert_allclose(nets.predict(ensemble, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_several_outputs(kind):
    parts = [nets.two_heads(kind, f"m{i}", width=8 + i) for i in range(2)]
    ensemble = kd.EnsembleTeacher(parts)
    x = nets.vectors(10)
    ours = nets.predict(ensemble, x)
    each = [nets.predict(part, x) for part in parts]
    for key in (0, 1) if kind == "list" else ("zebra", "apple"):
        expected = average([one[key] for one in each])
        np.testing.assert_allclose(ours[key], expected, rtol=1e-4, atol=1e-5)


def test_tokens_and_their_mask():
    parts = [nets.tagger(5 + i, f"m{i}") for i in range(2)]
    x = nets.token_ids()
    ours = nets.predict(kd.EnsembleTeacher(parts), x)
    expected = average([nets.predict(part, x) for part in parts])
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_masks_reach_the_losses_of_members_and_ensemble():
    parts = [nets.tagger(5 + i, f"m{i}") for i in range(2)]
    alone = [nets.copy_of(part) for part in parts]
    x, y = nets.token_ids(), nets.class_ids((8, 5))
    known = x > 0
    ensemble = compiled(kd.EnsembleTeacher(parts), nets.sgd())
    expected = average([nets.predict(part, x) for part in parts])
    values = nets.ce(y, expected)[known]
    np.testing.assert_allclose(ensemble.evaluate(x, y, verbose=0), values.mean(), rtol=1e-5)
    fit(ensemble, x, y)
    for part, one in zip(parts, alone):
        fit(compiled(one, nets.sgd()), x, y)
        nets.assert_same_weights(part, one, rtol=1e-5, atol=1e-7)
    joint = kd.EnsembleTeacher(parts, objective="average")
    compiled(joint, nets.sgd(0.0))
    expected = average([nets.predict(part, x) for part in parts])
    loss = joint.train_on_batch(x, y, return_dict=True)["loss"]
    np.testing.assert_allclose(loss, nets.ce(y, expected)[known].mean(), rtol=1e-5)


def test_subclassed_members_with_softmax_are_understood_before_they_answer():
    parts = [nets.Subclassed("softmax", width=8 + i, name=f"m{i}") for i in range(2)]
    x, y = nets.vectors(10), nets.class_ids(10)
    probabilities = [nets.predict(part, x) for part in parts]
    expected = np.log(np.mean(probabilities, 0))
    ensemble = kd.EnsembleTeacher(parts)
    np.testing.assert_allclose(ensemble.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)
    ensemble = compiled(kd.EnsembleTeacher(parts))
    np.testing.assert_allclose(
        ensemble.evaluate(x, y, verbose=0), nets.ce(y, expected).mean(), rtol=1e-4
    )
    ensemble = kd.EnsembleTeacher(parts)
    np.testing.assert_allclose(nets.predict(ensemble, x), expected, rtol=1e-4, atol=1e-5)
    ensemble = kd.EnsembleTeacher(parts, members_from_logits=False)
    np.testing.assert_allclose(nets.predict(ensemble, x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="members_from_logits"):
        kd.EnsembleTeacher(parts)(keras.Input((nets.FEATURES,)))
    with pytest.raises(ValueError, match="members_from_logits"):
        compiled(kd.EnsembleTeacher(parts)).fit(iter([(x, y)]), shuffle=False)


# Training.

OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "global_clipnorm": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1),
    "momentum and decay": lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01),
    "moving average": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), use_ema=True
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_independent_members_are_as_if_trained_alone(name):
    parts = [nets.cnn(3 + i, f"m{i}", regularized=True, dropout=0.4, seed=10 + i) for i in range(2)]
    alone = [nets.copy_of(part) for part in parts]
    ensemble = compiled(kd.EnsembleTeacher(parts), OPTIMIZERS[name](), metrics=["accuracy"])
    x, y = nets.images(20), nets.class_ids(20)
    weights = np.linspace(0, 2, 20).astype("float32")
    logs = fit(ensemble, x, y, epochs=2, sample_weight=weights)
    total = np.zeros(2)
    for part, one in zip(parts, alone):
        compiled(one, OPTIMIZERS[name]())
        total += fit(one, x, y, epochs=2, sample_weight=weights)["loss"]
        nets.assert_same_weights(part, one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)
    assert {"m0_loss", "m1_loss", "accuracy"} <= set(logs)


def test_logs_of_independent_training():
    parts = members()
    ensemble = compiled(kd.EnsembleTeacher(parts), nets.sgd(0.0), metrics=["accuracy"])
    x, y = nets.vectors(19), nets.class_ids(19)
    each = [as_logits(part, x) for part in parts]
    logs = {name: values[0] for name, values in fit(ensemble, x, y).items()}
    for i, logits in enumerate(each):
        np.testing.assert_allclose(logs[f"member_{i}_loss"], nets.ce(y, logits).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        logs["loss"], sum(logs[f"member_{i}_loss"] for i in range(3)), rtol=1e-5
    )
    expected = np.mean(average(each).argmax(-1) == y)
    np.testing.assert_allclose(logs["accuracy"], expected, rtol=1e-6)
    logs = ensemble.evaluate(x, y, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "accuracy"}
    np.testing.assert_allclose(logs["loss"], nets.ce(y, average(each)).mean(), rtol=1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_average_objective_trains_the_average(kind):
    import tensorflow as tf

    parts = members(2)
    copies = [nets.copy_of(part) for part in parts]
    ensemble = kd.EnsembleTeacher(parts, average=kind, objective="average")
    compiled(ensemble, nets.sgd(0.5))
    x, y = nets.vectors(8), nets.class_ids(8)
    variables = [v for copy in copies for v in copy.trainable_variables]
    with tf.GradientTape() as tape:
        logits = [copy(x) for copy in copies]
        if kind == "logits":
            mean = (logits[0] + logits[1]) / 2
        else:
            mean = tf.math.log((tf.nn.softmax(logits[0]) + tf.nn.softmax(logits[1])) / 2)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, mean))
    for v, gradient in zip(variables, tape.gradient(loss, [v.value for v in variables])):
        v.assign_sub(0.5 * gradient)
    logs = ensemble.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["loss"], float(loss), rtol=1e-5)
    for part, copy in zip(parts, copies):
        nets.assert_same_weights(part, copy, rtol=1e-4, atol=1e-6)


def test_an_optimizer_for_each_member():
    parts = members(2)
    alone = [nets.copy_of(part) for part in parts]
    optimizers = [keras.optimizers.SGD(0.5), keras.optimizers.Adam(0.02)]
    ensemble = compiled(kd.EnsembleTeacher(parts), optimizers)
    x, y = nets.vectors(16), nets.class_ids(16)
    fit(ensemble, x, y, epochs=2)
    fresh = [keras.optimizers.SGD(0.5), keras.optimizers.Adam(0.02)]
    for part, one, optimizer in zip(parts, alone, fresh):
        fit(compiled(one, optimizer), x, y, epochs=2)
        nets.assert_same_weights(part, one, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_learning_rate_callbacks_reach_all_members():
    parts = members(2)
    alone = [nets.copy_of(part) for part in parts]
    ensemble = compiled(kd.EnsembleTeacher(parts), keras.optimizers.Adam(0.5))
    x, y = nets.vectors(16), nets.class_ids(16)

    def callbacks(monitor="loss"):
        return [
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 / (epoch + 1)),
            keras.callbacks.ReduceLROnPlateau(monitor, min_delta=1e9, patience=1, factor=0.5),
        ]

    fit(ensemble, x, y, epochs=3, callbacks=callbacks())
    rates = [float(nets.array(o.learning_rate)) for o in ensemble.optimizer.optimizers]
    assert rates[0] == rates[1] == float(nets.array(ensemble.optimizer.learning_rate))
    for part, one in zip(parts, alone):
        fit(compiled(one, keras.optimizers.Adam(0.5)), x, y, epochs=3, callbacks=callbacks())
        nets.assert_same_weights(part, one, rtol=1e-5, atol=1e-6)
        assert rates[0] == pytest.approx(float(nets.array(one.optimizer.learning_rate)))
    ensemble.optimizer.learning_rate = 0.25
    assert all(float(nets.array(o.learning_rate)) == 0.25 for o in ensemble.optimizer.optimizers)


def test_members_with_softmax_heads_train_on_logits():
    parts = members(2, heads=("softmax", None, None))
    alone = [nets.copy_of(part) for part in parts]
    ensemble = compiled(kd.EnsembleTeacher(parts), nets.sgd())
    x, y = nets.vectors(16), nets.class_ids(16)
    fit(ensemble, x, y)
    for part, one, from_logits in zip(parts, alone, (False, True)):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        fit(compiled(one, nets.sgd(), loss), x, y)
        nets.assert_same_weights(part, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("flag", [None, True])
def test_members_that_are_not_built_yet_train_too(flag):
    parts = [
        keras.Sequential([layers.Dense(8), layers.Dense(nets.CLASSES)], name=f"m{i}")
        for i in range(2)
    ]
    ensemble = compiled(kd.EnsembleTeacher(parts, members_from_logits=flag), nets.sgd())
    x, y = nets.vectors(16), nets.class_ids(16)
    ensemble.fit(x, y, verbose=0)
    before = [np.array(w) for w in ensemble.get_weights()]
    ensemble.fit(x, y, verbose=0)
    assert all(np.any(a != b) for a, b in zip(before, ensemble.get_weights()))


# Saving and export.


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["independent", "average"])
def test_saved_in_the_middle_goes_on(tmp_path, objective):
    ensemble = kd.EnsembleTeacher(
        members(2), objective=objective, weights=[1.0, 2.0], average="logits"
    )
    compiled(ensemble, "adam", metrics=["accuracy"])
    x, y = nets.vectors(16), nets.class_ids(16)
    fit(ensemble, x, y)
    ensemble.optimizer.learning_rate = 0.02
    ensemble.save(tmp_path / "e.keras")
    loaded = keras.saving.load_model(tmp_path / "e.keras")
    for name in ("average", "objective", "weights_by_member", "member_names"):
        assert getattr(loaded, name) == getattr(ensemble, name)
    assert nets.difference(loaded, ensemble) == 0.0
    assert int(nets.array(loaded.optimizer.iterations)) == 2
    ours, theirs = fit(loaded, x, y), fit(ensemble, x, y)
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)
    nets.assert_same_weights(loaded, ensemble, rtol=1e-5, atol=1e-7)


def test_weights_files_hold_optimizers_too(tmp_path):
    ensemble = compiled(kd.EnsembleTeacher(members(2)))
    x, y = nets.vectors(16), nets.class_ids(16)
    fit(ensemble, x, y)
    ensemble.save_weights(tmp_path / "e.weights.h5")
    other = compiled(kd.EnsembleTeacher.from_config(ensemble.get_config()))
    other.load_weights(tmp_path / "e.weights.h5")
    fit(ensemble, x, y)
    fit(other, x, y)
    nets.assert_same_weights(other, ensemble, rtol=1e-5, atol=1e-7)


def test_inference_model_is_the_ensemble():
    parts = members()
    ensemble = kd.EnsembleTeacher(parts)
    x = nets.vectors(10)
    model = ensemble.inference_model
    np.testing.assert_allclose(nets.predict(model, x), nets.predict(ensemble, x), rtol=1e-6)
    assert {id(v) for v in model.trainable_variables} == {
        id(v) for part in parts for v in part.trainable_variables
    }


@pytest.mark.tensorflow
def test_exported(tmp_path):
    import tensorflow as tf

    ensemble = kd.EnsembleTeacher(members(2))
    x = nets.vectors(10)
    ensemble.export(tmp_path / "served", verbose=False)
    artifact = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(artifact.serve(x), nets.predict(ensemble, x), rtol=1e-5, atol=1e-6)


# As a teacher.


@pytest.mark.parametrize("kind", ["probabilities", "logits"])
def test_each_loss_gets_the_ensemble_at_its_temperature(kind):
    parts = members(heads=(None, "softmax", None))
    teacher = kd.EnsembleTeacher(parts, average=kind, weights=[1.0, 2.0, 1.0])
    student = nets.mlp(name="student")
    terms = [
        kd.losses.SoftTargets(4.0),
        kd.Term(kd.losses.SoftTargets(1.0), name="cold"),
        kd.Term(kd.losses.SoftTargets(1.0), temperature=2.0, name="warm"),
    ]
    distiller = compiled(kd.Distiller(teacher, student, terms), nets.sgd())
    before = nets.snapshot(teacher)
    x, y = nets.vectors(10), nets.class_ids(10)
    logits, s = [as_logits(part, x) for part in parts], nets.predict(student, x)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    for name, temperature in (("soft_targets", 4.0), ("cold", 1.0), ("warm", 2.0)):
        target = average(logits, [1.0, 2.0, 1.0], kind, temperature)
        expected = nets.kd(target, s, temperature).mean()
        np.testing.assert_allclose(logs[name], expected, rtol=1e-4, err_msg=name)
    nets.assert_untouched(teacher, before)


def test_members_run_once_a_step_and_for_inference():
    calls = []

    class Counting(layers.Layer):
        def call(self, inputs, training=None):
            calls.append(training)
            return inputs

    parts = []
    for i in range(2):
        inputs = keras.Input((nets.FEATURES,))
        outputs = layers.Dense(nets.CLASSES)(Counting()(inputs))
        parts.append(keras.Model(inputs, outputs, name=f"m{i}"))
    teacher = kd.EnsembleTeacher(parts)
    terms = [kd.losses.SoftTargets(4.0), kd.losses.SoftTargets(1.0), kd.losses.DecoupledKD()]
    distiller = compiled(kd.Distiller(teacher, nets.mlp(), terms), nets.sgd(), run_eagerly=True)
    x, y = nets.vectors(8), nets.class_ids(8)
    distiller.train_on_batch(x, y)
    calls.clear()
    distiller.train_on_batch(x, y)
    assert len(calls) == 2 and not any(calls)


def test_features_of_members():
    parts = [nets.cnn(6, "first"), nets.cnn(5, "second")]
    student = nets.cnn(4, "student")
    terms = [
        kd.losses.SoftTargets(2.0),
        kd.Term(kd.losses.Hint(), "second/stage1", "stage1", connector="auto"),
    ]
    distiller = compiled(kd.Distiller(kd.EnsembleTeacher(parts), student, terms), nets.sgd())
    x, y = nets.images(8), nets.class_ids(8)
    stage1 = keras.Model(parts[1].input, parts[1].get_layer("stage1").output)
    mine = keras.Model(student.input, student.get_layer("stage1").output)
    connector = distiller.terms[1].connectors[0]
    fitted = nets.predict(connector, nets.predict(mine, x, training=True))
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(
        logs["hint"], np.mean((nets.predict(stage1, x) - fitted) ** 2), rtol=1e-4
    )


def test_multi_label_and_one_unit_ensembles_teach():
    for classes, activation in ((1, "softmax"), (nets.CLASSES, "sigmoid")):
        parts = members(2, ("sigmoid", None, None), classes)
        teacher = kd.EnsembleTeacher(parts)
        student = nets.mlp("sigmoid", classes, name="student")
        loss = kd.losses.SoftTargets(3.0, activation=activation)
        distiller = compiled(kd.Distiller(teacher, student, loss), "sgd", "binary_crossentropy")
        x = nets.vectors(10)
        y = np.zeros((10, classes), "float32")
        target = average(
            [as_logits(part, x) for part in parts], temperature=3.0, activation="sigmoid"
        )
        expected = nets.bernoulli_kd(target, as_logits(student, x), 3.0).mean()
        logs = distiller.train_on_batch(x, y, return_dict=True)
        np.testing.assert_allclose(logs["soft_targets"], expected, rtol=1e-3)


def test_subclassed_members_teach():
    parts = [nets.Subclassed("softmax", width=8 + i, name=f"m{i}") for i in range(2)]
    x, y = nets.vectors(10), nets.class_ids(10)
    log_p = [np.log(nets.predict(part, x)) for part in parts]
    student = nets.mlp(name="student")
    s = nets.predict(student, x)
    distiller = kd.Distiller(kd.EnsembleTeacher(parts), student, kd.losses.SoftTargets(3.0))
    logs = compiled(distiller, nets.sgd()).train_on_batch(x, y, return_dict=True)
    expected = nets.kd(average(log_p, temperature=3.0), s, 3.0).mean()
    np.testing.assert_allclose(logs["soft_targets"], expected, rtol=1e-4)


def test_a_distiller_with_an_ensemble_is_saved_and_goes_on(tmp_path):
    teacher = kd.EnsembleTeacher(members(2), weights=[1.0, 2.0])
    distiller = kd.Distiller(teacher, nets.mlp(name="student"), kd.losses.SoftTargets(3.0))
    compiled(distiller)
    x, y = nets.vectors(16), nets.class_ids(16)
    fit(distiller, x, y)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert isinstance(loaded.teacher, kd.EnsembleTeacher)
    np.testing.assert_allclose(
        fit(loaded, x, y)["soft_targets"], fit(distiller, x, y)["soft_targets"], rtol=1e-5
    )


def test_members_of_the_same_name_are_told_apart():
    parts = [nets.mlp(name="net"), nets.mlp(name="net")]
    ensemble = compiled(kd.EnsembleTeacher(parts))
    assert ensemble.member_names == ["net", "net_1"]
    assert {"net_loss", "net_1_loss"} <= set(fit(ensemble, nets.vectors(8), nets.class_ids(8)))
