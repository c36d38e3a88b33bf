"""MutualLearner: one step against numpy, heads, outputs, logs, optimizers."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.models import cohorts
from tests.models import nets
from tests.oracles import mutual as oracle

# One step, in numpy.


def one_step(count, rate=0.5, sample_weight=None, **options):
    """`(cohort, logs, what the oracle expects)` after one step of SGD on one batch."""
    students = cohorts.linears(count)
    x, y = nets.vectors(12), nets.class_ids(12)
    before = [cohorts.parameters(student) for student in students]
    names = {"kind": options.get("peers", "each")}
    names |= {k: options[k] for k in ("temperature", "weight", "reduce", "update") if k in options}
    expected = oracle.step(before, x, y, rate, sample_weight=sample_weight, **names)
    cohort = cohorts.compiled(students, nets.sgd(rate), **options)
    logs = cohort.train_on_batch(x, y, sample_weight=sample_weight, return_dict=True)
    return cohort, logs, expected


def assert_as_expected(cohort, logs, expected, weight=1.0):
    after, label_losses, mimicries = expected
    for k, student in enumerate(cohort.students):
        np.testing.assert_allclose(cohorts.parameters(student), after[k], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(logs[f"net_{k}_loss"], label_losses[k], rtol=1e-5)
        np.testing.assert_allclose(logs[f"net_{k}_mimicry"], mimicries[k], rtol=1e-4)
    np.testing.assert_allclose(logs["label_loss"], sum(label_losses), rtol=1e-5)
    total = sum(label_losses) + weight * sum(mimicries)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("peers", ["each", "mean"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_one_step_equals_numpy(count, peers, reduce):
    options = {"peers": peers, "reduce": reduce, "temperature": 2.0, "weight": 0.7}
    assert_as_expected(*one_step(count, **options), weight=0.7)


def test_the_defaults_are_the_paper_s():
    assert_as_expected(*one_step(3))


def test_sample_weights_weigh_both_losses():
    weights = np.linspace(0.0, 2.0, 12).astype("float32")
    assert_as_expected(*one_step(3, sample_weight=weights))


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_each_peer_and_their_mean_have_the_same_gradient(reduce):
    """DML and DML_e differ by their logged loss alone."""
    x, y = nets.vectors(12), nets.class_ids(12)
    students = cohorts.linears(4)
    twins = [nets.copy_of(student) for student in students]
    each = cohorts.compiled(students, peers="each", reduce=reduce)
    mean = cohorts.compiled(twins, peers="mean", reduce=reduce)
    logs, other = (m.train_on_batch(x, y, return_dict=True) for m in (each, mean))
    for student, twin in zip(students, twins):
        nets.assert_same_weights(student, twin, rtol=1e-5, atol=1e-6)
    assert logs["net_0_mimicry"] > 1.1 * other["net_0_mimicry"]  # Jensen.


def test_schedules_of_weight_and_temperature():
    """The first update with the first values, the next with the next."""
    x, y = nets.vectors(12), nets.class_ids(12)
    students = cohorts.linears(2)
    cohort = cohorts.compiled(
        students,
        nets.sgd(0.5),
        weight=kd.schedules.Linear(0.0, 1.0, steps=1),
        temperature=kd.schedules.Linear(1.0, 3.0, steps=1),
    )
    expected = [cohorts.parameters(student) for student in students]
    for temperature, weight in ((1.0, 0.0), (3.0, 1.0)):
        cohort.train_on_batch(x, y)
        expected, _, _ = oracle.step(expected, x, y, 0.5, temperature, weight)
    for student, parameters in zip(students, expected):
        np.testing.assert_allclose(cohorts.parameters(student), parameters, rtol=1e-4, atol=1e-5)


def test_schedules_count_updates_not_accumulated_batches():
    x, y = nets.vectors(8), nets.class_ids(8)
    cohort = cohorts.compiled(
        cohorts.linears(2),
        keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
        weight=kd.schedules.Linear(0.0, 1.0, steps=10),
    )
    cohorts.fit(cohort, x, y, batch_size=2)
    assert float(nets.array(cohort.step)) == 2


def test_regularisers_of_each_student_count_once():
    x, y = nets.images(8), nets.class_ids(8)
    cohort = cohorts.compiled(cohorts.cnns(regularized=True), nets.sgd(0.0))
    logs = cohort.train_on_batch(x, y, return_dict=True)
    parts = sum(logs[f"{name}_loss"] + logs[f"{name}_mimicry"] for name in ("a", "b"))
    for student in cohort.students:
        student(x, training=True)
        parts += sum(float(nets.array(loss)) for loss in student.losses)
    np.testing.assert_allclose(logs["loss"], parts, rtol=1e-4)


def test_without_labels_they_still_mimic():
    cohort = kd.MutualLearner(cohorts.linears(2))
    cohort.compile(nets.sgd(0.5), loss=None)
    history = cohorts.fit(cohort, nets.vectors(), None, epochs=4)
    assert set(history) == {"loss", "net_0_mimicry", "net_1_mimicry"}
    assert history["loss"][-1] < 0.5 * history["loss"][0]


# Heads and outputs.


@pytest.mark.slow
def test_softmax_heads_take_a_loss_of_probabilities():
    x, y = nets.vectors(12), nets.class_ids(12)
    logits = cohorts.linears(2)
    softmax = [cohorts.linear(f"net_{k}", activation="softmax") for k in range(2)]
    for one, other in zip(softmax, logits):
        one.set_weights(other.get_weights())
    cohort = cohorts.compiled(logits, compile_options={"metrics": ["accuracy"]})
    twin = cohorts.compiled(
        softmax,
        loss="sparse_categorical_crossentropy",
        compile_options={"metrics": ["accuracy"]},
    )
    history, other = cohorts.fit(cohort, x, y, epochs=2), cohorts.fit(twin, x, y, epochs=2)
    for name in history:
        np.testing.assert_allclose(history[name], other[name], rtol=1e-4)
    logs = cohort.evaluate(x, y, verbose=0, return_dict=True)
    for name, value in twin.evaluate(x, y, verbose=0, return_dict=True).items():
        np.testing.assert_allclose(value, logs[name], rtol=1e-4)
    predicted, other = cohort.predict(x, verbose=0), twin.predict(x, verbose=0)
    for name in predicted:
        np.testing.assert_allclose(nets.softmax(predicted[name]), other[name], rtol=1e-3)


def test_mixed_heads_are_read_as_logits():
    x, y = nets.vectors(12), nets.class_ids(12)
    students = cohorts.linears(2)
    mixed = [nets.copy_of(students[0]), cohorts.linear("net_1", activation="softmax")]
    mixed[1].set_weights(students[1].get_weights())
    cohort, twin = cohorts.compiled(students), cohorts.compiled(mixed)
    history, other = cohorts.fit(cohort, x, y), cohorts.fit(twin, x, y)
    for name in history:
        np.testing.assert_allclose(history[name], other[name], rtol=1e-5)
    with pytest.raises(ValueError, match="reads logits"):
        twin.compile("sgd", "sparse_categorical_crossentropy")


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "activation"), [(1, None), (1, "sigmoid"), (3, "sigmoid")])
def test_sigmoid_heads_mimic_label_by_label(classes, activation):
    x = nets.vectors(12)
    y = np.random.default_rng(0).integers(0, 2, (12, classes)).astype("float32")
    students = [cohorts.linear(f"net_{k}", classes, activation) for k in range(3)]
    logits = [x @ nets.array(s.get_layer("head").kernel) for s in students]
    loss = keras.losses.BinaryCrossentropy(from_logits=activation is None)
    cohort = cohorts.compiled(students, nets.sgd(0.0), loss, temperature=2.0)
    logs = cohort.train_on_batch(x, y, return_dict=True)
    for k in range(3):
        divergences = [nets.bernoulli_kd(logits[j], logits[k], 2.0) for j in range(3) if j != k]
        np.testing.assert_allclose(logs[f"net_{k}_mimicry"], np.mean(divergences), rtol=1e-4)
    mean = np.mean([nets.sigmoid(z) for z in logits], axis=0)
    predicted = cohort.predict(x, verbose=0)["ensemble"]
    np.testing.assert_allclose(predicted if activation else nets.sigmoid(predicted), mean, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["list", "dict"])
def test_several_outputs_are_summed(kind):
    x = nets.vectors(12)
    labels = {"zebra": nets.class_ids(12), "apple": nets.class_ids(12) % 3}
    y = labels if kind == "dict" else [labels["zebra"], labels["apple"]]
    students = [nets.two_heads(kind, name=name, width=6 + i) for i, name in enumerate("ab")]
    top = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")
    outputs = [keras.tree.flatten(nets.predict(student, x)) for student in students]
    cohort = cohorts.compiled(
        students,
        nets.sgd(0.0),
        {"zebra": nets.cross_entropy(), "apple": nets.cross_entropy()},
        {"metrics": {"zebra": ["accuracy"], "apple": ["accuracy", top]}},
    )
    logs = cohort.train_on_batch(x, y, return_dict=True)
    divergence = sum(nets.kd(b, a, 1.0).mean() for a, b in zip(*outputs))
    np.testing.assert_allclose(logs["a_mimicry"], divergence, rtol=1e-4)
    metrics = {"zebra_accuracy", "apple_accuracy", "apple_top2"}
    expected = {"loss", "label_loss", "a_loss", "b_loss", "a_mimicry", "b_mimicry"}
    expected |= {f"{name}_{metric}" for name in ("a", "b", "ensemble") for metric in metrics}
    assert set(logs) == expected
    alone = students[0]
    alone.compile(loss=[nets.cross_entropy()] * 2 if kind == "list" else cohort._compiled_loss)
    np.testing.assert_allclose(logs["a_loss"], alone.evaluate(x, y, verbose=0)[0], rtol=1e-5)
    evaluated = cohort.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(evaluated["a_zebra_accuracy"], logs["a_zebra_accuracy"])
    assert keras.tree.flatten(cohort.predict(x, verbose=0)["ensemble"])[0].shape[0] == 12


def test_masked_positions_are_left_out():
    ids, y = nets.token_ids(), nets.class_ids((8, 5))
    students = [nets.tagger(5, "a"), nets.tagger(6, "b")]
    a, b = (nets.predict(student, ids) for student in students)
    cohort = cohorts.compiled(students, nets.sgd(0.0), compile_options={"metrics": ["accuracy"]})
    logs = cohort.train_on_batch(ids, y, return_dict=True)
    mask = ids > 0
    np.testing.assert_allclose(logs["a_mimicry"], nets.kd(b, a, 1.0)[mask].mean(), rtol=1e-4)
    np.testing.assert_allclose(logs["a_loss"], nets.ce(y, a)[mask].mean(), rtol=1e-5)
    logs = cohort.evaluate(ids, y, verbose=0, return_dict=True)
    mean = (nets.softmax(a) + nets.softmax(b)) / 2
    np.testing.assert_allclose(
        logs["loss"], -np.log(np.take_along_axis(mean, y[..., None], -1))[mask].mean(), rtol=1e-5
    )
    alone = students[0]
    alone.compile(loss=nets.cross_entropy(), metrics=["accuracy"])
    expected = alone.evaluate(ids, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["a_accuracy"], expected["accuracy"], rtol=1e-5)
    if keras.backend.backend() == "tensorflow":  # Elsewhere Keras's metrics see no masks.
        hits = (np.argmax(mean, -1) == y)[mask].mean()
        np.testing.assert_allclose(logs["ensemble_accuracy"], hits, rtol=1e-5)


def test_unlabelled_samples_are_mimicked_only():
    x, y = nets.vectors(12), nets.class_ids(12)
    y[::3] = -1
    students = cohorts.linears(2)
    a, b = (nets.predict(student, x) for student in students)
    cohort = cohorts.compiled(students, nets.sgd(0.0), compile_options={"metrics": ["accuracy"]})
    logs = cohort.train_on_batch(x, y, return_dict=True)
    known = y >= 0
    np.testing.assert_allclose(
        logs["net_0_loss"], nets.ce(y[known], a[known]).sum() / len(y), rtol=1e-5
    )
    np.testing.assert_allclose(logs["net_0_mimicry"], nets.kd(b, a, 1.0).mean(), rtol=1e-4)
    np.testing.assert_allclose(
        logs["net_0_accuracy"], (np.argmax(a, -1) == y)[known].mean(), rtol=1e-5
    )


def test_students_without_a_graph_are_looked_at():
    x, y = nets.vectors(12), nets.class_ids(12)
    students = [nets.Subclassed(name="a"), nets.Subclassed(name="b", width=5)]
    cohort = cohorts.compiled(students)
    cohorts.fit(cohort, x, y)
    predicted = cohort.predict(x, verbose=0)
    mean = np.mean([nets.softmax(nets.predict(student, x)) for student in students], axis=0)
    np.testing.assert_allclose(nets.softmax(predicted["ensemble"]), mean, rtol=1e-4)
    softmax = [nets.Subclassed("softmax", name="a"), nets.Subclassed("softmax", name="b")]
    with pytest.raises(ValueError, match="reads probabilities"):
        cohorts.fit(cohorts.compiled(softmax), x, y)


def test_students_without_a_graph_need_the_same_classes():
    students = [nets.Subclassed(name="a"), nets.Subclassed(name="b", classes=3)]
    cohort = cohorts.compiled(students)
    with pytest.raises(ValueError, match=r"as many classes each.*a: \(.*4\), b: \(.*3\)"):
        cohorts.fit(cohort, nets.vectors(), nets.class_ids() % 3)


# Optimizers.


def test_one_optimizer_is_copied():
    x, y = nets.vectors(), nets.class_ids()
    students = [nets.mlp(width=5, name="a"), nets.mlp(width=6, name="b")]
    alone = [nets.copy_of(student) for student in students]
    optimizer = keras.optimizers.Adam(0.05, global_clipnorm=0.01)
    cohort = cohorts.compiled(students, optimizer, weight=0.0)
    cohorts.fit(cohort, x, y, epochs=2)
    assert optimizer not in cohort.optimizer.optimizers
    for student, twin in zip(students, alone):
        twin.compile(keras.optimizers.Adam(0.05, global_clipnorm=0.01), nets.cross_entropy())
        cohorts.fit(twin, x, y, epochs=2)
        nets.assert_same_weights(student, twin, rtol=1e-5, atol=1e-6)


def test_one_optimizer_a_student():
    students = cohorts.linears(2)
    before = [nets.snapshot(student) for student in students]
    cohort = cohorts.compiled(students, [nets.sgd(0.0), keras.optimizers.Adam(0.1)])
    cohorts.fit(cohort, nets.vectors(), nets.class_ids())
    nets.assert_untouched(students[0], before[0])
    assert np.abs(students[1].get_weights()[0] - before[1][0][0]).max() > 0.05
    with pytest.raises(ValueError, match="one optimizer a network. Received: 3 optimizers for 2"):
        cohort.compile([nets.sgd(), nets.sgd(), nets.sgd()], nets.cross_entropy())


@pytest.mark.slow
def test_a_frozen_student_teaches():
    students = cohorts.linears(2)
    students[0].trainable = False
    before = nets.snapshot(students[0])
    cohort = cohorts.compiled(students, nets.sgd(0.1), weight=10.0)
    history = cohorts.fit(cohort, nets.vectors(), nets.class_ids(), epochs=5)
    nets.assert_untouched(students[0], before)
    assert history["net_1_mimicry"][-1] < 0.5 * history["net_1_mimicry"][0]
