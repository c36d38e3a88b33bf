"""MutualLearner: logs by student, the best one, the ensemble, saving, bad input."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.models import cohorts
from tests.models import nets


def trained(epochs=2, metrics=("accuracy",), names=("net", "net", "other"), **options):
    x, y = nets.vectors(), nets.class_ids()
    students = [nets.sharpen(cohorts.linear(name), 2.0) for name in names]
    cohort = cohorts.compiled(students, compile_options={"metrics": list(metrics)}, **options)
    cohorts.fit(cohort, x, y, epochs=epochs, validation_data=(x, y))
    return cohort


# Logs.


def test_logs_bear_the_students_names_made_unique():
    cohort = trained()
    assert cohort.student_names == ["net", "net_1", "other"]
    kinds = {"loss", "accuracy"}
    students = {f"{name}_{kind}" for name in cohort.student_names for kind in kinds}
    mimicry = {f"{name}_mimicry" for name in cohort.student_names}
    evaluated = {"loss", "ensemble_accuracy"} | students
    expected = evaluated | mimicry | {"label_loss"} | {f"val_{name}" for name in evaluated}
    assert set(cohort.history.history) == expected


def test_names_that_the_logs_use_are_left_to_them():
    cohort = trained(names=("ensemble", "label"))
    assert cohort.student_names == ["ensemble_1", "label_1"]
    assert "ensemble_1_accuracy" in cohort.history.history


@pytest.mark.slow
def test_each_student_logs_what_it_would_alone():
    x, y = nets.vectors(), nets.class_ids()
    cohort = trained(metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, "top")])
    logs = cohort.evaluate(x, y, verbose=0, return_dict=True)
    for student, name in zip(cohort.students, cohort.student_names):
        top = keras.metrics.SparseTopKCategoricalAccuracy(2, "top")
        student.compile(loss=nets.cross_entropy(), metrics=["accuracy", top])
        for kind, value in student.evaluate(x, y, verbose=0, return_dict=True).items():
            np.testing.assert_allclose(logs[f"{name}_{kind}"], value, rtol=1e-5)


def test_weighted_metrics_see_the_weights():
    x, y = nets.vectors(12), nets.class_ids(12)
    student, other = cohorts.linears(2)
    cohort = cohorts.compiled(
        [student, other],
        nets.sgd(0.0),
        compile_options={"metrics": ["accuracy"], "weighted_metrics": ["accuracy"]},
    )
    weights = np.arange(12.0)
    hits = np.argmax(nets.predict(student, x), -1) == y
    for logs in (
        cohort.train_on_batch(x, y, sample_weight=weights, return_dict=True),
        cohort.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True),
    ):
        np.testing.assert_allclose(logs["net_0_accuracy"], hits.mean(), rtol=1e-5)
        weighted = logs["weighted_net_0_accuracy"]
        np.testing.assert_allclose(weighted, np.average(hits, weights=weights), rtol=1e-5)


def test_metrics_are_copied():
    given = keras.metrics.SparseCategoricalAccuracy(name="hits")
    cohort = trained(metrics=[given])
    assert given.name == "hits"
    assert float(nets.array(given.count)) == 0
    assert {"other_hits", "ensemble_hits"} <= set(cohort.history.history)

    class Bare(keras.metrics.Mean):
        def __init__(self, needed, **kwargs):
            super().__init__(**kwargs)

    with pytest.raises(ValueError, match="can be copied.*Received: Bare"):
        cohort.compile("sgd", nets.cross_entropy(), metrics=[Bare(3)])


@pytest.mark.slow
def test_callbacks_know_which_way_is_better():
    """Keras tells it from the metric's name, and fails where it cannot."""
    stop = keras.callbacks.EarlyStopping("val_ensemble_accuracy", patience=9)
    cohort = trained(epochs=1)
    x, y = nets.vectors(), nets.class_ids()
    cohorts.fit(cohort, x, y, validation_data=(x, y), callbacks=[stop])
    assert stop.monitor_op(2.0, 1.0)
    assert float(stop.best) == cohort.history.history["val_ensemble_accuracy"][0]


def test_evaluated_terms_are_what_training_minimises():
    x, y = nets.vectors(8), nets.class_ids(8)
    options = {"metrics": ["accuracy"], "evaluate_terms": True}
    cohort = cohorts.compiled(cohorts.linears(3), nets.sgd(0.0), compile_options=options)
    logs = cohort.train_on_batch(x, y, return_dict=True)
    evaluated = cohort.evaluate(x, y, verbose=0, return_dict=True)
    assert evaluated.keys() == logs.keys()
    for name in logs:
        np.testing.assert_allclose(evaluated[name], logs[name], rtol=1e-5)


# One student, or all.


@pytest.mark.slow
def test_best_student_is_that_of_the_last_epoch():
    cohort = trained()
    a, b, c = cohort.students
    cohort.history.history.update(
        {
            "val_net_accuracy": [0.9, 0.5],
            "val_net_1_accuracy": [0.1, 0.7],
            "val_other_accuracy": [0.2, 0.6],
            "net_mimicry": [0.1, 0.3],
            "net_1_mimicry": [0.1, 0.2],
            "other_mimicry": [0.1, float("nan")],
        }
    )
    assert cohort.best_student() is b
    assert cohort.best_student("val_accuracy", mode="min") is a
    assert cohort.best_student("mimicry") is b
    assert cohort.best_student("mimicry", mode="max") is a
    logs = {"net_accuracy": 0.1, "net_1_accuracy": 0.1, "other_accuracy": 0.2, "loss": 1.0}
    assert cohort.best_student(logs=logs) is c
    assert cohort.best_student("accuracy", "min", logs) is a
    losses = {"net_loss": 0.3, "net_1_loss": 0.2, "other_loss": 0.1}
    assert cohort.best_student("val_loss", logs=losses) is c


@pytest.mark.slow
def test_best_student_by_evaluate():
    cohort = trained()
    x, y = nets.vectors(), nets.class_ids()
    logs = cohort.evaluate(x, y, verbose=0, return_dict=True)
    losses = [logs[f"{name}_loss"] for name in cohort.student_names]
    assert cohort.best_student("loss", logs=logs) is cohort.students[int(np.argmin(losses))]


def test_best_student_by_what_was_not_logged():
    cohort = trained(epochs=1)
    match = r"logged for each student: .*val_accuracy.*mimicry.*Received: metric='auc'"
    with pytest.raises(ValueError, match=match):
        cohort.best_student("auc")
    with pytest.raises(ValueError, match="`mode` to be one of"):
        cohort.best_student(mode="best")
    with pytest.raises(ValueError, match="without history.*logs=cohort.evaluate"):
        cohorts.compiled(cohorts.linears(2)).best_student()


def test_the_cohort_as_an_ensemble():
    x = nets.vectors()
    cohort = trained(metrics=[])
    teacher = cohort.cohort_as_ensemble()
    assert isinstance(teacher, kd.EnsembleTeacher)
    assert all(a is b for a, b in zip(teacher.members, cohort.students))
    predicted = cohort.predict(x, verbose=0)
    assert list(predicted) == [*cohort.student_names, "ensemble"]
    np.testing.assert_allclose(
        predicted["ensemble"], teacher.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )
    for student, name in zip(cohort.students, cohort.student_names):
        np.testing.assert_allclose(predicted[name], nets.predict(student, x), rtol=1e-5, atol=1e-6)
    distiller = kd.Distiller(teacher, nets.mlp(), kd.losses.SoftTargets(2.0))
    distiller.compile("adam", nets.cross_entropy())
    assert np.isfinite(cohorts.fit(distiller, x, nets.class_ids())["loss"]).all()


def test_a_student_leaves_alone(tmp_path):
    x = nets.vectors()
    student = trained(epochs=1).best_student()
    student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    np.testing.assert_allclose(nets.predict(loaded, x), nets.predict(student, x), rtol=1e-6)
    assert len(loaded.weights) == 2


# Saving.


def test_config_round_trip():
    weight = kd.schedules.WarmUp(0.5, steps=10)
    options = {"temperature": 2.0, "weight": weight, "peers": "mean", "reduce": "sum"}
    cohort = kd.MutualLearner(cohorts.linears(2), **options, name="pair")
    copy = kd.MutualLearner.from_config(cohort.get_config())
    assert copy.name == "pair"
    assert copy.student_names == ["net_0", "net_1"]
    assert (copy.temperature, copy.peers, copy.reduce) == (2.0, "mean", "sum")
    assert (copy.update, copy.devices) == ("simultaneous", None)
    assert copy.weight.get_config() == weight.get_config()


@pytest.mark.slow
def test_a_loaded_cohort_knows_its_metrics(tmp_path):
    x, y = nets.vectors(), nets.class_ids()
    top = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top")
    cohort = trained(metrics=["accuracy", top])
    cohort.save(tmp_path / "cohort.keras")
    loaded = keras.saving.load_model(tmp_path / "cohort.keras")
    logs, other = (m.evaluate(x, y, verbose=0, return_dict=True) for m in (cohort, loaded))
    assert logs.keys() == other.keys()
    assert "ensemble_top" in logs
    for name in logs:
        np.testing.assert_allclose(logs[name], other[name], rtol=1e-6)


# Bad input.


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda a, b: [a], ValueError, r"at least two `students`. Received: students=\["),
        (lambda a, b: a, TypeError, "`students` to be a list of keras.Model"),
        (lambda a, b: [a, "b"], TypeError, "a list of keras.Model. Received: students='b'"),
        (lambda a, b: [a, b, a], ValueError, "no variables. Received: a and a_1: the same model"),
        (
            lambda a, b: [b, keras.Model(a.input, b(a.input), name="c")],
            ValueError,
            "share no variables. Received: b and c: both hold",
        ),
        (
            lambda a, b: [a, b, cohorts.linear("c", classes=7)],
            ValueError,
            r"as many classes each. Received: .* a: \(None, 4\), b: \(None, 4\), c: \(None, 7\)",
        ),
        (lambda a, b: [a, nets.two_heads()], ValueError, "with the same outputs"),
        (
            lambda a, b: [
                cohorts.linear("d", activation="softmax"),
                cohorts.linear("e", activation="sigmoid"),
            ],
            ValueError,
            "heads of one kind. Received: for output 0, softmax, sigmoid",
        ),
    ],
)
def test_students_that_cannot_learn_from_each_other(make, error, match):
    with pytest.raises(error, match=match):
        kd.MutualLearner(make(cohorts.linear("a"), cohorts.linear("b")))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": 0.0}, "`temperature` to be a positive finite number. Received:"),
        ({"temperature": "hot"}, "`temperature` to be a positive finite number"),
        ({"weight": -1.0}, "`weight` to be a finite number, 0 or more"),
        ({"peers": "all"}, "`peers` to be one of 'each', 'mean'. Received: peers='all'"),
        ({"reduce": "none"}, "`reduce` to be one of 'mean', 'sum'"),
        ({"update": "alternating"}, "`update` to be one of 'simultaneous', 'sequential'"),
    ],
)
def test_options_that_do_not_exist(options, match):
    with pytest.raises(ValueError, match=match):
        kd.MutualLearner(cohorts.linears(2), **options)


@pytest.mark.slow
def test_bad_input_to_compile_and_fit():
    cohort = kd.MutualLearner(cohorts.linears(2))
    with pytest.raises(ValueError, match="`loss` that reads logits, for the student ends"):
        cohort.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="names of their own. Received: 'mimicry'"):
        cohort.compile("sgd", metrics=[keras.metrics.Mean(name="mimicry")])
    with pytest.raises(ValueError, match="scaling of the loss to the wrapper"):
        cohort.compile(keras.optimizers.LossScaleOptimizer(nets.sgd()), nets.cross_entropy())
    cohort.compile("sgd", nets.cross_entropy(), metrics=["accuracy"])
    with pytest.raises(ValueError, match="fit the student net_0"):
        cohorts.fit(cohort, nets.vectors()[:, :3], nets.class_ids())
    with pytest.raises(ValueError, match="labels from 0 to 3"):
        cohorts.fit(cohort, nets.vectors(), nets.class_ids() + 3)
    several = kd.MutualLearner([nets.two_heads(name="a"), nets.two_heads(name="b")])
    with pytest.raises(ValueError, match="`metrics` for each output: .*'zebra', 'apple'"):
        several.compile("sgd", nets.cross_entropy(), metrics=["accuracy"])
