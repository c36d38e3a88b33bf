"""Bad input: an error of one or two lines, before any training, that says what to do."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from tests.models import nets

SOFT = kd.losses.SoftTargets
MODELS = {}


def model(kind="mlp"):
    """A shared model: these tests train nothing."""
    if kind not in MODELS:
        MODELS[kind] = {
            "mlp": lambda: nets.mlp(name="student"),
            "teacher": lambda: nets.mlp(width=12, name="teacher"),
            "five": lambda: nets.mlp(classes=5, name="five"),
            "softmax": lambda: nets.mlp("softmax", name="soft"),
            "sigmoid": lambda: nets.mlp("sigmoid", name="sigmoid"),
            "one": lambda: nets.mlp(classes=1, name="one"),
            "cnn": lambda: nets.cnn(4),
            "wide": lambda: nets.cnn(6, "wide"),
            "two": lambda: nets.two_heads(),
            "subclassed": lambda: nets.Subclassed(),
        }[kind]()
    return MODELS[kind]


def distiller(terms=None, teacher="teacher", student="mlp", **kwargs):
    return kd.Distiller(model(teacher), model(student), terms or SOFT(), **kwargs)


def fresh(terms=None):
    """With models of its own: a `fit` that fails on JAX leaves them without values."""
    return kd.Distiller(nets.mlp(width=12, name="teacher"), nets.mlp(), terms or SOFT())


def compiled(wrapper, loss="ce", **kwargs):
    loss = nets.cross_entropy() if loss == "ce" else loss
    wrapper.compile("sgd", loss, jit_compile=False, **kwargs)
    return wrapper


def assert_helpful(error, *parts):
    """One or two lines of the library's own, with what was expected and received."""
    text = str(error.value)
    assert text.startswith("Expected"), text
    assert "Received" in text, text
    assert text.count("\n") <= 1 and len(text) < 500, text
    for part in parts:
        assert part in text, text


# Losses, weights, temperatures.


@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf"), "4", None, True])
def test_temperatures(value):
    with pytest.raises((ValueError, TypeError)) as error:
        SOFT(temperature=value)
    assert_helpful(error, "temperature")
    if value is not None:
        with pytest.raises((ValueError, TypeError)) as error:
            kd.Term(SOFT(), temperature=value)
        assert_helpful(error, "temperature")


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", None, True])
def test_weights(value):
    with pytest.raises((ValueError, TypeError)) as error:
        kd.Term(SOFT(), weight=value)
    assert_helpful(error, "weight", repr(value))
    with pytest.raises((ValueError, TypeError)) as error:
        distiller(student_loss_weight=value)
    assert_helpful(error, "student_loss_weight", repr(value))


@pytest.mark.parametrize(
    "argument, schedule",
    [
        ("temperature", kd.schedules.Linear(4.0, 0.0, 10)),
        ("temperature", kd.schedules.Stop(4.0, 10)),
        ("weight", kd.schedules.Linear(1.0, -1.0, 10)),
        ("weight", kd.schedules.Constant(-1.0)),
    ],
)
def test_schedules_that_leave_the_range(argument, schedule):
    with pytest.raises(ValueError) as error:
        kd.Term(SOFT(), **{argument: schedule})
    assert_helpful(error, argument, "schedule")


@pytest.mark.parametrize("losses", [None, [], [None], [SOFT(), None]])
def test_no_losses(losses):
    with pytest.raises(ValueError) as error:
        kd.Distiller(model("teacher"), model(), losses)
    assert_helpful(error, "distillation_losses", "SoftTargets")


@pytest.mark.parametrize("loss", ["no_such_loss", 3, SOFT, kd])
def test_what_is_no_loss(loss):
    with pytest.raises((ValueError, TypeError)) as error:
        kd.Term(loss)
    assert_helpful(error, "`loss`", "loss=")


def test_keras_losses_of_probabilities_on_logits():
    for loss in ("kl_divergence", keras.losses.KLDivergence(), "categorical_crossentropy"):
        with pytest.raises(ValueError) as error:
            distiller(loss)
        assert_helpful(error, "probabilities from the teacher", "SoftTargets")
    with pytest.raises(ValueError) as error:
        distiller("kl_divergence", teacher="softmax")
    assert_helpful(error, "probabilities from the student")


def test_keras_cross_entropy_from_logits_of_the_student_serves():
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    wrapper = compiled(kd.Distiller(nets.mlp("softmax"), nets.mlp(), loss))
    x, y = nets.vectors(8), nets.class_ids(8)
    p, s = nets.predict(wrapper.teacher, x), nets.predict(wrapper.student, x)
    logs = wrapper.train_on_batch(x, y, return_dict=True)
    expected = -np.mean(np.sum(p * nets.log_softmax(s), -1))
    np.testing.assert_allclose(logs["categorical_crossentropy"], expected, rtol=1e-5)
    with pytest.raises(ValueError) as error:
        distiller(loss, teacher="softmax", student="sigmoid")
    assert_helpful(error, "logits from the student")


def test_keras_losses_that_would_compare_probabilities_with_logits():
    for teacher, student in (("softmax", "mlp"), ("mlp", "softmax"), ("sigmoid", "mlp")):
        with pytest.raises(ValueError) as error:
            distiller("mse", teacher, student)
        assert_helpful(error, "logits from both", "LogitMSE")


# Teacher and student.


def test_a_teacher_that_is_the_student():
    with pytest.raises(ValueError) as error:
        distiller(teacher="mlp", student="mlp")
    assert_helpful(error, "`teacher` and `student`", "same model", "clone_model")


def test_a_teacher_that_shares_variables_with_the_student():
    teacher = model("teacher")
    student = keras.Model(teacher.input, layers.Dense(4)(teacher.get_layer("hidden").output))
    with pytest.raises(ValueError) as error:
        kd.Distiller(teacher, student, SOFT())
    assert_helpful(error, "share no variables", "kernel", "Clone")


@pytest.mark.parametrize("which", ["teacher", "student"])
@pytest.mark.parametrize("value", ["a string", lambda x: x, [1]])
def test_what_is_no_model(which, value):
    models = {"teacher": model("teacher"), "student": model(), which: value}
    with pytest.raises(TypeError) as error:
        kd.Distiller(**models, distillation_losses=SOFT())
    assert_helpful(error, f"`{which}`", "keras.Model")


def test_class_counts_that_differ():
    with pytest.raises(ValueError) as error:
        distiller(teacher="five")
    assert_helpful(error, "classes", "teacher 5", "student 4", "class_map")


def test_output_counts_that_differ():
    with pytest.raises(ValueError) as error:
        distiller(teacher="two")
    assert_helpful(error, "number of outputs", "teacher 2", "student 1")


def test_outputs_by_name_against_outputs_by_position():
    teacher, student = nets.two_heads("dict", "t"), nets.two_heads("list", "s")
    for one, other in ((teacher, student), (student, teacher)):
        with pytest.raises(ValueError) as error:
            kd.Distiller(one, other, SOFT())
        assert_helpful(error, "['apple', 'zebra']", "a list")


@pytest.mark.parametrize(
    "class_map, part",
    [
        ([0, 0, 1, 2], "different"),
        ([0, -1, -1, -1], "two"),
        ([0, -2, 1, 2], "-1"),
        ([0, 1, 2, 9], "below the teacher's 5"),
        ([0, 1, 2, 3, 4], "student's 4"),
        ({7: 1, 0: 2}, "student's 4"),
        ({}, "two"),
    ],
)
def test_class_maps(class_map, part):
    with pytest.raises(ValueError) as error:
        distiller(teacher="five", class_map=class_map)
    assert_helpful(error, "class_map", part)


@pytest.mark.parametrize("value", ["float64", "int8", "mixed_bfloat16", 16])
def test_teacher_dtype(value):
    with pytest.raises(ValueError) as error:
        distiller(teacher_dtype=value)
    assert_helpful(error, "teacher_dtype", repr(value), "bfloat16")


def test_heads_against_the_kind_of_labels():
    with pytest.raises(ValueError) as error:
        distiller(SOFT(activation="sigmoid"), teacher="softmax")
    assert_helpful(error, "teacher", "softmax head")
    with pytest.raises(ValueError) as error:
        distiller(SOFT(), teacher="mlp", student="sigmoid")
    assert_helpful(error, "student", "sigmoid head", "activation='sigmoid'")


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("head, flag", [("softmax", True), ("mlp", False)])
def test_flags_that_contradict_the_graph(role, head, flag):
    other = "teacher" if role == "student" else "student"
    models = {role: model(head), other: nets.mlp(name="other")}
    with pytest.raises(ValueError) as error:
        kd.Distiller(**models, distillation_losses=SOFT(), **{f"{role}_from_logits": flag})
    assert_helpful(error, f"{role}_from_logits={flag}")


# Paths and features.


def test_unknown_layers():
    term = kd.Term(kd.losses.Hint(), "stage9", "stage1")
    with pytest.raises(ValueError) as error:
        distiller(term, "wide", "cnn")
    assert_helpful(error, "stage9", "wide", "stage1")
    term = kd.Term(kd.losses.Hint(), "stage1", "backbone/stage1")
    with pytest.raises(ValueError) as error:
        distiller(term, "wide", "cnn")
    assert_helpful(error, "backbone/stage1", "cnn")


def test_paths_in_a_model_without_a_graph():
    term = kd.Term(kd.losses.Hint(), "hidden", "hidden")
    with pytest.raises(ValueError) as error:
        distiller(term, "subclassed", "mlp")
    assert_helpful(error, "graph", "functional")


@pytest.mark.parametrize(
    "wiring",
    [
        {"teacher": "a"},
        {"student": "a"},
        {"teacher": ["a", "b"], "student": "a"},
        {"connector": "auto"},
        {"teacher": "a", "student": "a", "connector": "best"},
        {"teacher": "a", "student": "a", "connector": 3},
        {"teacher": 3, "student": "a"},
    ],
)
def test_wiring(wiring):
    with pytest.raises((ValueError, TypeError)) as error:
        kd.Term(kd.losses.Hint(), **wiring)
    assert_helpful(error)


@pytest.mark.parametrize("loss", [kd.losses.Hint(), "mse", keras.losses.MeanAbsoluteError()])
@pytest.mark.parametrize("connector", [None, layers.Conv2D(5, 1)])
def test_features_of_different_shapes(loss, connector):
    with pytest.raises(ValueError) as error:
        distiller(kd.Term(loss, "stage1", "stage1", connector=connector), "wide", "cnn")
    assert_helpful(error, "same shape", "connector='auto'", "8, 8, 6")


def test_as_many_connectors_as_paths():
    paths = ["stage1", "stage2"]
    term = kd.Term(kd.losses.Hint(), paths, paths, connector=["auto"] * 3)
    with pytest.raises(ValueError) as error:
        distiller(term, "wide", "cnn")
    assert_helpful(error, "one for each of the 2 layers", "3 connectors")


@pytest.mark.parametrize("temperature", [2.0, kd.schedules.Constant(2.0)])
def test_a_temperature_for_a_loss_without_one(temperature):
    with pytest.raises(ValueError) as error:
        kd.Term(kd.losses.LogitMSE(), temperature=temperature)
    assert_helpful(error, "no `temperature` for LogitMSE")


# The compiled loss against the head.


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        "SparseCategoricalCrossentropy",
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.sparse_categorical_crossentropy,
        "categorical_crossentropy",
        "binary_crossentropy",
        keras.losses.BinaryCrossentropy(),
        keras.losses.CategoricalFocalCrossentropy(),
        ["sparse_categorical_crossentropy"],
    ],
)
def test_a_loss_of_probabilities_on_a_student_that_returns_logits(loss):
    with pytest.raises(ValueError) as error:
        compiled(distiller(), loss)
    assert_helpful(error, "student", "from_logits=True")


@pytest.mark.parametrize(
    "loss, head",
    [
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), "softmax"),
        (keras.losses.CategoricalCrossentropy(from_logits=True), "softmax"),
        (keras.losses.BinaryCrossentropy(from_logits=True), "sigmoid"),
    ],
)
def test_a_loss_of_logits_on_a_student_that_returns_probabilities(loss, head):
    activation = "sigmoid" if head == "sigmoid" else "softmax"
    with pytest.raises(ValueError) as error:
        compiled(distiller(SOFT(activation=activation), student=head), loss)
    assert_helpful(error, "student", head, "from_logits=False")


def test_the_wrong_one_of_two_losses():
    wrapper = kd.Distiller(nets.two_heads("list", "t"), model("two"), SOFT())
    right = {"apple": nets.cross_entropy(), "zebra": nets.cross_entropy()}
    compiled(wrapper, right)
    for name in right:
        with pytest.raises(ValueError) as error:
            compiled(wrapper, {**right, name: "sparse_categorical_crossentropy"})
        assert_helpful(error, "from_logits=True")


def test_a_subclassed_student_against_its_loss_is_an_error_before_training():
    student = nets.Subclassed("softmax")
    wrapper = compiled(kd.Distiller(model("teacher"), student, SOFT()))
    with pytest.raises(ValueError) as error:
        wrapper.fit(nets.vectors(8), nets.class_ids(8), verbose=0)
    assert_helpful(error, "student", "probabilities")
    assert int(nets.array(wrapper.optimizer.iterations)) == 0


def test_an_ensemble_against_its_loss():
    ensemble = kd.EnsembleTeacher([nets.mlp("softmax", name="a"), nets.mlp("softmax", name="b")])
    with pytest.raises(ValueError) as error:
        compiled(ensemble, "sparse_categorical_crossentropy")
    assert_helpful(error, "ensemble", "from_logits=True")


# Data.


def test_outputs_that_do_not_tell_logits_from_probabilities():
    class Unclear(keras.Model):
        def call(self, inputs):
            return keras.ops.sigmoid(inputs[:, :4])

    wrapper = compiled(kd.Distiller(Unclear(), model(), SOFT()))
    with pytest.raises(ValueError) as error:
        wrapper.fit(nets.vectors(8), nets.class_ids(8), verbose=0)
    assert_helpful(error, "teacher_from_logits=True", "teacher_from_logits=False")


def test_a_generator_cannot_be_looked_at():
    wrapper = compiled(kd.Distiller(nets.Subclassed("softmax"), model(), SOFT()))

    def batches():
        yield nets.vectors(8), nets.class_ids(8)

    with pytest.raises(ValueError) as error:
        wrapper.fit(batches(), shuffle=False, verbose=0)
    assert_helpful(error, "teacher_from_logits", "generator")


@pytest.mark.parametrize("how", ["fit", "evaluate", "train_on_batch"])
def test_an_empty_data_set(how):
    wrapper = compiled(distiller(), evaluate_terms=True)
    with pytest.raises(ValueError) as error:
        getattr(wrapper, how)(nets.vectors(0), nets.class_ids(0))
    assert_helpful(error, "empty")


@pytest.mark.tensorflow
def test_an_empty_dataset_object():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((nets.vectors(4), nets.class_ids(4))).take(0).batch(2)
    wrapper = compiled(distiller())
    for call in (wrapper.fit, compiled(kd.EnsembleTeacher([model("teacher"), model()])).fit):
        with pytest.raises(ValueError) as error:
            call(data, shuffle=False, verbose=0)
        assert_helpful(error, "empty")


@pytest.mark.parametrize("value", [4, 100, -2])
def test_labels_that_are_no_class(value):
    y = nets.class_ids(8)
    y[3] = value
    with pytest.raises(ValueError) as error:
        compiled(distiller()).fit(nets.vectors(8), y, verbose=0)
    assert_helpful(error, "0 to 3", str(value))


@pytest.mark.parametrize("shape", ["(batch, classes)", "(batch + 1,)"])
def test_labels_of_a_wrong_shape(shape):
    x = nets.vectors(8)
    y = np.eye(4, dtype="float32")[nets.class_ids(8)] if "classes" in shape else nets.class_ids(9)
    wrapper = compiled(fresh())
    with pytest.raises(ValueError):
        wrapper.fit(x, y, verbose=0)
    assert int(nets.array(wrapper.optimizer.iterations)) == 0


def test_missing_labels():
    with pytest.raises(ValueError) as error:
        compiled(fresh()).fit(nets.vectors(8), verbose=0)
    assert "y=None" in str(error.value) and "loss=None" in str(error.value)
    with pytest.raises(ValueError) as error:
        compiled(fresh(kd.losses.DecoupledKD()), None).fit(nets.vectors(8), verbose=0)
    assert "y=None" in str(error.value) and "decoupled_kd" in str(error.value)
    with pytest.raises(ValueError) as error:
        compiled(fresh(), None, metrics=["accuracy"]).fit(nets.vectors(8), verbose=0)
    assert "y=None" in str(error.value) and "metrics" in str(error.value)


@pytest.mark.parametrize("how", ["arrays", "dataset"])
def test_inputs_of_a_wrong_shape(how):
    wrappers = [
        compiled(distiller()),
        compiled(distiller(student="mlp", teacher="cnn")),
        compiled(kd.EnsembleTeacher([model("teacher"), model()])),
    ]
    data = np.zeros((8, 9), "float32"), nets.class_ids(8)
    if how == "dataset":
        tf = pytest.importorskip("tensorflow")
        data = (tf.data.Dataset.from_tensor_slices(data).batch(4),)
    for wrapper in wrappers:
        with pytest.raises(ValueError) as error:
            wrapper.fit(*data, shuffle=False, verbose=0)
        assert_helpful(error, "`x`", ", 9)")
        assert int(nets.array(wrapper.optimizer.iterations)) == 0


def test_inputs_of_a_shape_that_keras_adapts():
    inputs = keras.Input((1,))
    small = keras.Model(inputs, layers.Dense(nets.CLASSES)(inputs))
    wrapper = compiled(kd.Distiller(nets.copy_of(small), small, SOFT()))
    wrapper.fit(np.zeros(8, "float32"), nets.class_ids(8), verbose=0)
    assert int(nets.array(wrapper.optimizer.iterations)) == 1


@pytest.mark.parametrize("name", ["soft_targets", "label_loss"])
def test_metrics_that_take_the_name_of_a_loss(name):
    for metric in (keras.metrics.SparseCategoricalAccuracy(name=name), [name]):
        with pytest.raises(ValueError) as error:
            compiled(distiller(), metrics=[metric])
        assert_helpful(error, repr(name), "another name")


def test_no_teacher():
    with pytest.raises(TypeError) as error:
        kd.Distiller(None, model(), SOFT())
    assert_helpful(error, "`teacher`", "teacher=None")


# Ensembles.


@pytest.mark.parametrize(
    "members, settings, part",
    [
        (["mlp"], {}, "at least two"),
        (["mlp", "mlp"], {}, "same model twice"),
        (["mlp", "five"], {}, "same outputs"),
        (["mlp", "two"], {}, "same outputs"),
        (["mlp", "teacher"], {"average": "median"}, "average"),
        (["mlp", "teacher"], {"objective": "joint"}, "objective"),
        (["mlp", "teacher"], {"activation": "relu"}, "activation"),
        (["mlp", "teacher"], {"weights": [1.0]}, "2 members"),
        (["mlp", "teacher"], {"weights": [1.0, -1.0]}, "weights"),
        (["mlp", "teacher"], {"weights": [0.0, 0.0]}, "weights"),
        (["mlp", "teacher"], {"weights": [1.0, float("nan")]}, "weights"),
        (["mlp", "teacher"], {"weights": "equal"}, "weights"),
    ],
)
def test_ensembles(members, settings, part):
    with pytest.raises((ValueError, TypeError)) as error:
        kd.EnsembleTeacher([model(kind) for kind in members], **settings)
    assert_helpful(error, part)


def test_members_that_are_no_models():
    with pytest.raises(TypeError) as error:
        kd.EnsembleTeacher([model(), "net"])
    assert_helpful(error, "members")


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_optimizers_as_members(count):
    ensemble = kd.EnsembleTeacher([model(), model("teacher")])
    with pytest.raises(ValueError) as error:
        ensemble.compile(["sgd"] * count, nets.cross_entropy())
    assert_helpful(error, "optimizer", f"{count} optimizers", "2 networks")


def test_taps_in_an_ensemble_name_the_member():
    teacher = kd.EnsembleTeacher([nets.cnn(4, "first"), nets.cnn(5, "second")])
    for path in ("stage1", "third/stage1", "first"):
        term = kd.Term(kd.losses.Hint(), path, "stage1", connector="auto")
        with pytest.raises(ValueError) as error:
            kd.Distiller(teacher, model("cnn"), term)
        assert_helpful(error, "first, second", repr(path))


# Files.


def test_a_path_that_is_no_keras_file(tmp_path):
    with pytest.raises(ValueError) as error:
        distiller().save(tmp_path / "model.h5")
    assert_helpful(error, "filepath", ".keras")
    assert list(tmp_path.iterdir()) == []


def test_a_weights_path_with_a_wrong_ending(tmp_path):
    with pytest.raises(ValueError, match="weights.h5") as error:
        distiller().save_weights(tmp_path / "model.bin")
    assert ".writing" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["text", "cut", "folder", "missing", "another model"])
def test_a_foreign_checkpoint(tmp_path, how):
    path = tmp_path / "w.weights.h5"
    if how == "text":
        path.write_text("not a checkpoint")
    elif how == "cut":
        distiller().save_weights(path)
        path.write_bytes(path.read_bytes()[:500])
    elif how == "folder":
        path.mkdir()
    elif how == "another model":
        nets.cnn(4).save_weights(path)
    wrapper = distiller()
    before = nets.snapshot(wrapper)
    with pytest.raises((ValueError, OSError)) as error:
        wrapper.load_weights(path)
    assert_helpful(error, "w.weights.h5")
    nets.assert_untouched(wrapper, before)


def test_a_wrapper_without_its_teacher_does_not_train():
    config = distiller().get_config()
    wrapper = compiled(kd.Distiller.from_config({**config, "teacher": None}))
    with pytest.raises(ValueError) as error:
        wrapper.fit(nets.vectors(8), nets.class_ids(8), verbose=0)
    assert_helpful(error, "teacher", "set_teacher")
    with pytest.raises(TypeError) as error:
        wrapper.set_teacher("teacher")
    assert_helpful(error, "teacher")


def test_a_teacher_set_later_must_fit_the_connectors():
    term = kd.Term(kd.losses.Hint(), "hidden", "hidden", connector="auto")
    wrapper = distiller(term)
    with pytest.raises(ValueError) as error:
        wrapper.set_teacher(nets.mlp(width=20))
    assert_helpful(error, "(None, 20)", "(None, 12) after the connector")
