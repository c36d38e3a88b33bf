"""Labels: partly missing, heads of every kind, label sets that differ."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.models import labels as rules
from tests.models import nets

SOFT = kd.losses.SoftTargets


def compiled(distiller, loss, **kwargs):
    distiller.compile(nets.sgd(), loss, jit_compile=False, **kwargs)
    return distiller


def step(distiller, x, y=None, **kwargs):
    return distiller.train_on_batch(x, y, return_dict=True, **kwargs)


# Partly labelled data.


def partly_labelled(count=12):
    y = nets.class_ids(count)
    y[::3] = -1
    return y


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["(batch,)", "(batch, 1)"])
@pytest.mark.parametrize("weighted", [False, True])
def test_unlabelled_samples_count_in_the_terms_alone(shape, weighted):
    teacher, student = nets.sharpen(nets.mlp(width=12)), nets.mlp(name="student")
    terms = [SOFT(2.0), kd.losses.DecoupledKD()]
    distiller = compiled(
        kd.Distiller(teacher, student, terms),
        nets.cross_entropy(),
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")],
    )
    x, y = nets.vectors(12), partly_labelled()
    t, s = nets.predict(teacher, x), nets.predict(student, x)
    weights = np.linspace(0.5, 1.5, 12).astype("float32") if weighted else None
    w = np.ones(12) if weights is None else weights
    known = y >= 0
    given = y if shape == "(batch,)" else y[:, None]
    logs = step(distiller, x, given, sample_weight=weights)
    label = np.sum((w * nets.ce(np.maximum(y, 0), s))[known]) / 12
    np.testing.assert_allclose(logs["label_loss"], label, rtol=1e-5)
    np.testing.assert_allclose(logs["soft_targets"], np.mean(w * nets.kd(t, s, 2.0)), rtol=1e-4)
    decoupled = kd.losses.decoupled_kd(t[known], s[known], y[known])
    np.testing.assert_allclose(
        logs["decoupled_kd"], np.sum(w[known] * nets.array(decoupled)) / 12, rtol=1e-4
    )
    right = s.argmax(-1)[known] == y[known]
    np.testing.assert_allclose(logs["accuracy"], right.mean(), rtol=1e-6)
    np.testing.assert_allclose(logs["weighted"], np.average(right, weights=w[known]), rtol=1e-6)


def test_all_samples_unlabelled():
    distiller = compiled(
        kd.Distiller(
            nets.mlp(width=12), nets.mlp(name="student"), [SOFT(), kd.losses.DecoupledKD()]
        ),
        nets.cross_entropy(),
        metrics=["accuracy"],
    )
    logs = step(distiller, nets.vectors(8), np.full(8, -1))
    assert logs["label_loss"] == logs["decoupled_kd"] == 0.0
    assert logs["soft_targets"] > 0
    assert np.isfinite(list(logs.values())).all()


def test_labelled_part_trains_as_it_would_with_weight_zero():
    student = nets.mlp(name="student")
    teacher = nets.mlp(width=12)
    x, y = nets.vectors(12), partly_labelled()
    alone = compiled(nets.copy_of(student), nets.cross_entropy())
    distiller = compiled(
        kd.Distiller(teacher, student, kd.Term(SOFT(), weight=0.0)), nets.cross_entropy()
    )
    step(distiller, x, y)
    alone.train_on_batch(x, np.maximum(y, 0), (y >= 0).astype("float32"))
    nets.assert_same_weights(student, alone, rtol=1e-6, atol=1e-8)


def test_evaluate_leaves_unlabelled_samples_out():
    student = nets.mlp(name="student")
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)]
    distiller = compiled(
        kd.Distiller(nets.mlp(width=12), student, SOFT()), nets.cross_entropy(), metrics=metrics
    )
    x, y = nets.vectors(12), partly_labelled()
    s, known = nets.predict(student, x), y >= 0
    logs = distiller.evaluate(x, y, batch_size=5, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["accuracy"], np.mean(s.argmax(-1)[known] == y[known]))
    top = np.argsort(-s, -1)[:, :2]
    np.testing.assert_allclose(
        logs["sparse_top_k_categorical_accuracy"],
        np.mean([label in row for label, row in zip(y[known], top[known])]),
    )


def test_unlabelled_binary_samples():
    student = nets.mlp(name="student", classes=1)
    metrics = [
        keras.metrics.BinaryAccuracy(threshold=0.0),
        keras.metrics.AUC(from_logits=True, name="auc"),
    ]
    distiller = compiled(
        kd.Distiller(nets.mlp(width=12, classes=1), student, SOFT(2.0)),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=metrics,
    )
    x = nets.vectors(40)
    y = (nets.class_ids(40) > 1).astype("int32")
    y[::3] = -1
    z, known = nets.predict(student, x)[:, 0], y >= 0
    logs = step(distiller, x, y[:, None])
    loss = np.logaddexp(0, z) - z * y
    np.testing.assert_allclose(logs["label_loss"], np.sum(loss[known]) / 40, rtol=1e-5)
    np.testing.assert_allclose(
        logs["binary_accuracy"], np.mean((z > 0)[known] == y[known]), rtol=1e-6
    )
    reference = keras.metrics.AUC(from_logits=True)
    reference.update_state(y[known], z[known])
    np.testing.assert_allclose(logs["auc"], float(reference.result()), atol=1e-6)


def test_unlabelled_tokens():
    teacher, student = nets.tagger(7, "teacher"), nets.tagger(5, "student")
    distiller = compiled(
        kd.Distiller(teacher, student, SOFT(2.0)), nets.cross_entropy(), metrics=["accuracy"]
    )
    x, y = nets.token_ids(), nets.class_ids((8, 5))
    y[:, ::2] = -1
    s, valid = nets.predict(student, x), x > 0
    both = valid & (y >= 0)
    logs = step(distiller, x, y)
    expected = np.sum(nets.ce(np.maximum(y, 0), s)[both]) / valid.sum()
    np.testing.assert_allclose(logs["label_loss"], expected, rtol=1e-4)
    if keras.backend.backend() == "jax":
        both = y >= 0  # Keras's metrics see no mask on JAX.
    np.testing.assert_allclose(logs["accuracy"], np.mean(s.argmax(-1)[both] == y[both]), rtol=1e-5)


@pytest.mark.parametrize("kind", ["list", "dict", "dict of labels for a list"])
def test_unlabelled_samples_of_one_of_two_outputs(kind):
    structure = "dict" if kind == "dict" else "list"
    student = nets.two_heads(structure, "student")
    loss = {"zebra": nets.cross_entropy(), "apple": "mse"}
    teacher = nets.two_heads(structure, "teacher", width=12)
    distiller = compiled(kd.Distiller(teacher, student, SOFT()), loss)
    x, zebra = nets.vectors(12), partly_labelled()
    apple = np.full((12, 3), -1.0, "float32")
    zebra_logits, apple_values = (
        nets.predict(student, x)
        if structure == "list"
        else [nets.predict(student, x)[name] for name in ("zebra", "apple")]
    )
    y = [zebra, apple] if kind == "list" else {"zebra": zebra, "apple": apple}
    logs = step(distiller, x, y)
    expected = np.sum(nets.ce(np.maximum(zebra, 0), zebra_logits)[zebra >= 0]) / 12
    expected += np.mean((apple_values + 1) ** 2)  # -1 is a value like any other there
    np.testing.assert_allclose(logs["label_loss"], expected, rtol=1e-5)


def test_metrics_of_two_outputs_leave_out_the_unlabelled_of_each():
    student = nets.two_heads("dict", "student")
    both = {"zebra": nets.cross_entropy(), "apple": nets.cross_entropy()}
    metrics = {"zebra": ["accuracy"], "apple": ["accuracy"]}
    distiller = kd.Distiller(nets.two_heads("dict", "teacher"), student, SOFT())
    compiled(distiller, both, metrics=metrics, weighted_metrics=metrics)
    x, zebra, apple = nets.vectors(12), partly_labelled(), nets.class_ids(12) % 3
    logits = nets.predict(student, x)
    logs = step(distiller, x, {"zebra": zebra, "apple": apple})
    known = zebra >= 0
    expected = np.mean((logits["zebra"].argmax(-1) == zebra)[known])
    np.testing.assert_allclose(logs["zebra_accuracy"], expected, rtol=1e-6)
    np.testing.assert_allclose(logs["zebra_weighted_accuracy"], expected, rtol=1e-6)
    expected = np.mean(logits["apple"].argmax(-1) == apple)
    np.testing.assert_allclose(logs["apple_accuracy"], expected, rtol=1e-6)


def test_labels_of_a_term_on_several_outputs_are_those_of_the_output():
    teacher, student = nets.two_heads("list", "teacher"), nets.two_heads("list", "student")
    loss = {"zebra": nets.cross_entropy(), "apple": nets.cross_entropy()}
    distiller = compiled(kd.Distiller(teacher, student, kd.losses.DecoupledKD()), loss)
    x, zebra = nets.vectors(12), nets.class_ids(12)
    apple = nets.class_ids(12, seed=9) % 3
    t, s = nets.predict(teacher, x), nets.predict(student, x)
    expected = sum(
        np.mean(nets.array(kd.losses.decoupled_kd(a, b, y)))
        for a, b, y in zip(t, s, (zebra, apple))
    )
    logs = step(distiller, x, {"apple": apple, "zebra": zebra})
    np.testing.assert_allclose(logs["decoupled_kd"], expected, rtol=1e-4)


@pytest.mark.tensorflow
@pytest.mark.parametrize("how", ["arrays", "dataset", "one-hot dataset", "dataset of Targets"])
def test_class_weight_with_unlabelled_samples(how):
    import tensorflow as tf

    loss = nets.cross_entropy()
    if how == "one-hot dataset":
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    distiller = compiled(
        kd.Distiller(nets.mlp(width=12), nets.mlp(name="student"), SOFT(2.0)), loss
    )
    x, y = nets.vectors(12), partly_labelled()
    by_class = {0: 2.0, 1: 0.5, 3: 3.0}
    t, s = nets.predict(distiller.teacher, x), nets.predict(distiller.student, x)
    given, data = np.maximum(y, 0) if how == "one-hot dataset" else y, (x, y)
    if how == "one-hot dataset":
        data = (x, np.eye(nets.CLASSES, dtype="float32")[given])
    elif how == "dataset of Targets":
        data = (x, kd.data.Targets(labels=y))
    if how == "arrays":
        settings = {"x": x, "y": y, "batch_size": 12}
    else:
        settings = {"x": tf.data.Dataset.from_tensor_slices(data).batch(12), "shuffle": False}
    logs = distiller.fit(**settings, class_weight=by_class, verbose=0).history
    weights = np.array([by_class.get(label, 1.0) for label in given])
    values = weights * nets.ce(np.maximum(given, 0), s)
    expected = np.sum(values[given >= 0]) / 12
    np.testing.assert_allclose(logs["label_loss"][0], expected, rtol=1e-5)
    soft = np.mean(weights * nets.kd(t, s, 2.0))
    np.testing.assert_allclose(logs["soft_targets"][0], soft, rtol=1e-4)


def test_targets_carry_labels_to_the_loss():
    distiller = compiled(
        kd.Distiller(nets.mlp(width=12), nets.mlp(name="student"), SOFT()),
        nets.cross_entropy(),
        metrics=["accuracy"],
    )
    x, y = nets.vectors(12), nets.class_ids(12)
    expected = nets.ce(y, nets.predict(distiller.student, x)).mean()
    targets = kd.data.Targets(labels=y, ids=np.arange(12))
    logs = distiller.fit(x, targets, batch_size=12, verbose=0).history
    np.testing.assert_allclose(logs["label_loss"][0], expected, rtol=1e-5)


# Heads.

HEADS = {
    "logits": lambda x: layers.Dense(nets.CLASSES, name="head")(x),
    "dense": lambda x: layers.Dense(nets.CLASSES, "softmax", name="head")(x),
    "activation": lambda x: layers.Activation("softmax")(
        layers.Dense(nets.CLASSES, name="head")(x)
    ),
    "softmax": lambda x: layers.Softmax()(layers.Dense(nets.CLASSES, name="head")(x)),
}


def headed(kind, name, width=8):
    inputs = keras.Input((nets.FEATURES,))
    hidden = layers.Dense(width, "tanh", name="hidden")(inputs)
    return keras.Model(inputs, HEADS[kind](hidden), name=name)


def as_logits(model, x):
    hidden = nets.predict(keras.Model(model.input, model.get_layer("hidden").output), x)
    head = model.get_layer("head")
    return hidden @ nets.array(head.kernel) + nets.array(head.bias)


@pytest.mark.parametrize("teacher_head", HEADS)
@pytest.mark.parametrize("student_head", ["logits", "dense", "softmax"])
def test_losses_see_the_logits_whatever_the_heads(teacher_head, student_head):
    teacher, student = headed(teacher_head, "teacher", 12), headed(student_head, "student")
    teacher.get_layer("head").kernel.assign(60.0 * teacher.get_layer("head").kernel)
    from_logits = student_head == "logits"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    terms = [SOFT(3.0), kd.losses.LogitMSE()]
    distiller = compiled(kd.Distiller(teacher, student, terms), loss, metrics=["accuracy"])
    x, y = nets.vectors(12), nets.class_ids(12)
    t, s = as_logits(teacher, x), as_logits(student, x)
    assert nets.softmax(t).max(-1).mean() > 0.999  # a saturated softmax, whose log is lost
    logs = step(distiller, x, y)
    np.testing.assert_allclose(logs["soft_targets"], nets.kd(t, s, 3.0).mean(), rtol=1e-4)
    np.testing.assert_allclose(logs["logit_mse"], np.mean((t - s) ** 2), rtol=1e-4)
    np.testing.assert_allclose(logs["label_loss"], nets.ce(y, s).mean(), rtol=1e-4)
    np.testing.assert_allclose(logs["accuracy"], np.mean(s.argmax(-1) == y), rtol=1e-5)
    expected = s if from_logits else nets.softmax(s)
    assert distiller.predict(x, verbose=0).shape == expected.shape


@pytest.mark.parametrize("teacher_head", [None, "sigmoid"])
@pytest.mark.parametrize("student_head", [None, "sigmoid"])
def test_one_unit_heads_give_the_binary_divergence(teacher_head, student_head):
    teacher = nets.sharpen(nets.mlp(teacher_head, 1, 12))
    student = nets.mlp(student_head, 1, name="student")
    loss = keras.losses.BinaryCrossentropy(from_logits=student_head is None)
    distiller = compiled(kd.Distiller(teacher, student, SOFT(3.0)), loss)
    x, y = nets.vectors(12), nets.class_ids((12, 1)) % 2
    expected = nets.bernoulli_kd(as_logits(teacher, x), as_logits(student, x), 3.0).mean()
    logs = step(distiller, x, y)
    np.testing.assert_allclose(logs["soft_targets"], expected, rtol=1e-4)


@pytest.mark.parametrize("teacher_head", [None, "sigmoid"])
def test_multi_label_heads(teacher_head):
    teacher, student = nets.sharpen(nets.mlp(teacher_head, width=12)), nets.mlp("sigmoid", name="s")
    distiller = compiled(
        kd.Distiller(teacher, student, SOFT(2.0, activation="sigmoid")), "binary_crossentropy"
    )
    x = nets.vectors(12)
    y = (np.random.default_rng(0).uniform(size=(12, nets.CLASSES)) > 0.5).astype("float32")
    expected = nets.bernoulli_kd(as_logits(teacher, x), as_logits(student, x), 2.0).mean()
    logs = step(distiller, x, y)
    np.testing.assert_allclose(logs["soft_targets"], expected, rtol=1e-4)


# Models without a graph.


@pytest.mark.parametrize("student_head", [None, "softmax"])
@pytest.mark.parametrize("teacher_head", [None, "softmax"])
def test_the_first_batch_tells_logits_from_probabilities(teacher_head, student_head):
    teacher, student = nets.Subclassed(teacher_head, width=12), nets.Subclassed(student_head)
    x, y = nets.vectors(12), nets.class_ids(12)
    teacher(x), student(x)
    nets.sharpen(teacher)
    t, s = nets.predict(teacher, x), nets.predict(student, x)
    t = np.log(t) if teacher_head else t
    s = np.log(s) if student_head else s
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=student_head is None)
    distiller = compiled(kd.Distiller(teacher, student, SOFT(3.0)), loss)
    logs = step(distiller, x, y)
    np.testing.assert_allclose(logs["soft_targets"], nets.kd(t, s, 3.0).mean(), rtol=1e-4)


@pytest.mark.tensorflow
@pytest.mark.parametrize("how", ["dataset", "PyDataset"])
def test_the_first_batch_of_a_data_set_tells(how):
    import tensorflow as tf

    x, y = nets.vectors(16), nets.class_ids(16)
    teacher, student = nets.Subclassed("softmax"), nets.mlp(name="student")
    distiller = compiled(kd.Distiller(teacher, student, SOFT(3.0)), nets.cross_entropy())

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return x[8 * index : 8 * index + 8], y[8 * index : 8 * index + 8]

    data = Batches() if how == "PyDataset" else tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    shuffle = {"shuffle": False}
    distiller.optimizer.learning_rate = 0.0
    logs = distiller.fit(data, verbose=0, **shuffle).history
    t, s = np.log(nets.predict(teacher, x)), nets.predict(student, x)
    np.testing.assert_allclose(logs["soft_targets"][0], nets.kd(t, s, 3.0).mean(), rtol=1e-4)


def test_a_flag_settles_what_the_graph_does_not_tell():
    teacher = nets.Subclassed("softmax", width=12)
    x, y = nets.vectors(12), nets.class_ids(12)
    teacher(x)
    distiller = kd.Distiller(
        teacher, nets.mlp(name="student"), SOFT(3.0), teacher_from_logits=False
    )
    compiled(distiller, nets.cross_entropy())
    t, s = np.log(nets.predict(teacher, x)), nets.predict(distiller.student, x)
    logs = step(distiller, x, y)
    np.testing.assert_allclose(logs["soft_targets"], nets.kd(t, s, 3.0).mean(), rtol=1e-4)


# Label sets that differ.


@pytest.mark.parametrize("class_map", [[2, -1, 0, 5], {0: 2, 2: 0, 3: 5}])
@pytest.mark.parametrize("loss", [SOFT(2.0), kd.losses.DecoupledKD()])
def test_class_map_compares_the_classes_that_both_know(class_map, loss):
    teacher, student = nets.mlp(classes=6, width=12), nets.mlp(name="student")
    distiller = compiled(
        kd.Distiller(teacher, student, loss, class_map=class_map), nets.cross_entropy()
    )
    x, y = nets.vectors(12), nets.class_ids(12)
    t = nets.predict(teacher, x)[:, [2, 0, 5]]
    s = nets.predict(student, x)[:, [0, 2, 3]]
    if loss.needs_labels:
        shared = np.array([0, -1, 1, 2])[y]
        values = nets.array(kd.losses.decoupled_kd(t, s, shared))
        expected = np.sum(values) / 12
    else:
        expected = nets.kd(t, s, 2.0).mean()
    logs = step(distiller, x, y)
    np.testing.assert_allclose(logs[loss.name], expected, rtol=1e-4)
    copy = kd.Distiller.from_config(distiller.get_config())
    assert copy.class_map == [2, -1, 0, 5]


def test_class_map_with_one_hot_labels():
    teacher, student = nets.mlp(classes=6, width=12), nets.mlp(name="student")
    distiller = compiled(
        kd.Distiller(teacher, student, kd.losses.DecoupledKD(), class_map=[2, -1, 0, 5]),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    x, y = nets.vectors(12), nets.class_ids(12)
    t = nets.predict(teacher, x)[:, [2, 0, 5]]
    s = nets.predict(student, x)[:, [0, 2, 3]]
    expected = np.mean(nets.array(kd.losses.decoupled_kd(t, s, np.array([0, -1, 1, 2])[y])))
    logs = step(distiller, x, np.eye(nets.CLASSES, dtype="float32")[y])
    np.testing.assert_allclose(logs["decoupled_kd"], expected, rtol=1e-4)


# The rules on their own.


@pytest.mark.parametrize(
    "loss, expected",
    [
        ("sparse_categorical_crossentropy", False),
        ("SparseCategoricalCrossentropy", False),
        ("binary_crossentropy", False),
        (keras.losses.sparse_categorical_crossentropy, False),
        (keras.losses.categorical_crossentropy, False),
        (keras.losses.CategoricalCrossentropy(), False),
        (keras.losses.BinaryCrossentropy(from_logits=True), True),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), True),
        (keras.losses.BinaryFocalCrossentropy(from_logits=True), True),
        ("mse", None),
        (keras.losses.MeanSquaredError(), None),
        (lambda y, p: p, None),
    ],
)
def test_from_logits_of(loss, expected):
    assert rules.from_logits_of(loss) is expected


def test_labels_by_output():
    assert rules.by_output("mse", 2) == ["mse", "mse"]
    assert rules.by_output({"a": 1, "b": 2}, 2, ["b", "a"]) == [2, 1]
    assert rules.by_output({"a": 1}, 2, ["b", "a"]) == [None, 1]
    assert rules.by_output(["mse"], 2) == ["mse", "mse"]
    assert rules.by_output(None, 2) == [None, None]
    assert rules.output_keys({"z": 0, "a": 1}) == ["a", "z"]
    assert rules.output_keys([0, 1], ["z", "a"]) == ["z", "a"]
    assert rules.output_keys(0, ["z"]) is None
