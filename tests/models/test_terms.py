"""Term: what may be a loss, weights and temperatures that move, names, connectors."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_distill as kd
from tests.models import nets

SOFT = kd.losses.SoftTargets


def distiller_of(terms, loss="ce", rate=0.1, teacher=None, student=None, **kwargs):
    teacher = teacher or nets.sharpen(nets.mlp(width=12, name="teacher"))
    distiller = kd.Distiller(teacher, student or nets.mlp(name="student"), terms)
    loss = nets.cross_entropy() if loss == "ce" else loss
    distiller.compile(nets.sgd(rate), loss, jit_compile=False, **kwargs)
    return distiller


def one_step(terms, **kwargs):
    """Teacher's and student's outputs before a step of 8 samples, and the step's logs."""
    distiller = distiller_of(terms, **kwargs)
    x, y = nets.vectors(8), nets.class_ids(8)
    t, s = nets.predict(distiller.teacher, x), nets.predict(distiller.student, x)
    return t, s, distiller.train_on_batch(x, y, return_dict=True)


# Any loss.


def squared(teacher, student):
    return ops.mean(ops.square(teacher - student), axis=-1)


def squared_mean(teacher, student):
    return ops.mean(ops.square(teacher - student))


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss, name",
    [
        ("mse", "mean_squared_error"),
        ("mean_squared_error", "mean_squared_error"),
        (keras.losses.MeanSquaredError(), "mean_squared_error"),
        (keras.losses.MeanSquaredError(name="mine"), "mine"),
        (keras.losses.mean_squared_error, "mean_squared_error"),
        (squared, "squared"),
        (squared_mean, "squared_mean"),
        (lambda teacher, student: squared(teacher, student), "function_loss"),
        (kd.losses.LogitMSE(), "logit_mse"),
    ],
)
def test_any_loss_is_the_mean_over_the_batch(loss, name):
    t, s, logs = one_step(kd.Term(loss, weight=3.0))
    np.testing.assert_allclose(logs[name], np.mean((t - s) ** 2), rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], logs["label_loss"] + 3.0 * logs[name], rtol=1e-6)


@pytest.mark.parametrize("weights", [None, np.linspace(0, 2, 8).astype("float32")])
@pytest.mark.parametrize("reduction, reduce", [("sum", np.sum), (None, np.mean), ("none", np.mean)])
def test_reduction_of_the_loss(reduction, reduce, weights):
    distiller = distiller_of(SOFT(2.0, reduction=reduction))
    x, y = nets.vectors(8), nets.class_ids(8)
    values = nets.kd(nets.predict(distiller.teacher, x), nets.predict(distiller.student, x), 2.0)
    logs = distiller.train_on_batch(x, y, weights, return_dict=True)
    expected = reduce(values if weights is None else values * weights)
    np.testing.assert_allclose(logs["soft_targets"], expected, rtol=1e-5)


def test_names_in_the_logs_are_unique():
    terms = [SOFT(2.0), SOFT(4.0), kd.Term(SOFT(1.0), name="mine"), kd.Term("mse", name="loss")]
    distiller = distiller_of(terms)
    names = [term.name for term in distiller.terms]
    assert names == ["soft_targets", "soft_targets_1", "mine", "loss_1"]
    logs = distiller.train_on_batch(nets.vectors(8), nets.class_ids(8), return_dict=True)
    assert set(logs) == {"loss", "label_loss", *names}
    assert logs["soft_targets"] != logs["soft_targets_1"]


@keras.saving.register_keras_serializable(package="tests")
class Scaled(kd.losses.DistillationLoss, layers.Layer):
    """A loss with a weight of its own."""

    def __init__(self, **kwargs):
        kd.losses.DistillationLoss.__init__(self, **kwargs)
        layers.Layer.__init__(self, name="scaled", dtype="float32")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.built = True

    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - self.scale * y_pred), axis=-1)

    def get_config(self):
        return {}


# Weights and temperatures.


class Counted(kd.losses.DistillationLoss):
    """Counts how often it is traced."""

    on_logits = True

    def __init__(self, temperature=1.0):
        super().__init__(name="counted")
        self.temperature = temperature
        self.traces = []

    def call(self, y_true, y_pred):
        self.traces.append(1)
        return kd.losses.soft_targets(y_true, y_pred, self.temperature)


@pytest.mark.tensorflow
def test_weight_and_temperature_of_a_callback_act_at_once_without_a_retrace():
    loss = Counted()
    distiller = distiller_of(kd.Term(loss, weight=1.0, temperature=2.0), rate=0.0)
    x, y = nets.vectors(8), nets.class_ids(8)
    t, s = nets.predict(distiller.teacher, x), nets.predict(distiller.student, x)
    label = nets.ce(y, s).mean()
    seen = []

    class Change(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            term = self.model.terms[0]
            term.weight.assign(float(batch))
            term.temperature.assign(1.0 + batch)
            self.model.reset_metrics()

        def on_train_batch_end(self, batch, logs=None):
            seen.append((float(logs["counted"]), float(logs["loss"])))

    data = np.tile(x, (4, 1)), np.tile(y, 4)
    distiller.fit(*data, batch_size=8, shuffle=False, verbose=0, callbacks=[Change()])
    traced = len(loss.traces)
    for batch, (term, total) in enumerate(seen):
        expected = nets.kd(t, s, 1.0 + batch).mean()
        np.testing.assert_allclose(term, expected, rtol=1e-4)
        np.testing.assert_allclose(total, label + batch * expected, rtol=1e-4)
    distiller.terms[0].weight.assign(9.0)
    distiller.fit(*data, batch_size=8, verbose=0)
    assert len(loss.traces) == traced


@pytest.mark.parametrize("which", ["weight", "temperature"])
def test_schedules_follow_the_optimizers_iterations(which):
    schedule = kd.schedules.Linear(1.0, 5.0, 4)
    distiller = distiller_of(kd.Term(SOFT(2.0), **{which: schedule}), loss=None, rate=0.0)
    x = nets.vectors(8)
    t, s = nets.predict(distiller.teacher, x), nets.predict(distiller.student, x)
    for step in range(3):
        distiller.reset_metrics()
        logs = distiller.train_on_batch(x, return_dict=True)
        value = 1.0 + step
        temperature = value if which == "temperature" else 2.0
        expected = nets.kd(t, s, temperature).mean()
        np.testing.assert_allclose(logs["soft_targets"], expected, rtol=1e-4)
        factor = value if which == "weight" else 1.0
        np.testing.assert_allclose(logs["loss"], factor * expected, rtol=1e-4)


def test_keras_schedules_serve():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [2.0, 0.5])
    distiller = distiller_of(kd.Term(SOFT(2.0), weight=schedule), loss=None, rate=0.0)
    losses = []
    for _ in range(4):
        distiller.reset_metrics()
        logs = distiller.train_on_batch(nets.vectors(8), return_dict=True)
        losses.append(logs["loss"] / logs["soft_targets"])
    np.testing.assert_allclose(losses, [2.0, 2.0, 0.5, 0.5], rtol=1e-5)


def test_the_wrapper_copies_the_term():
    term = kd.Term(SOFT(2.0), weight=1.0)
    first, second = distiller_of(term), distiller_of(term)
    first.terms[0].weight.assign(5.0)
    assert float(second.terms[0].weight) == 1.0
    assert term.weight == 1.0
    again = distiller_of(kd.Term(SOFT(7.0), temperature=3.0))
    assert float(again.terms[0].temperature) == 3.0
    assert again.terms[0].loss.temperature == 7.0


def test_temperature_is_the_losss_own_unless_given():
    loss = SOFT(2.0)
    t, s, logs = one_step([kd.Term(loss), kd.Term(loss, temperature=5.0, name="hot")])
    np.testing.assert_allclose(logs["soft_targets"], nets.kd(t, s, 2.0).mean(), rtol=1e-4)
    np.testing.assert_allclose(logs["hot"], nets.kd(t, s, 5.0).mean(), rtol=1e-4)
    assert loss.temperature == 2.0


def test_config_round_trip():
    terms = [
        kd.Term(SOFT(3.0), weight=kd.schedules.WarmUp(2.0, 5), temperature=2.0, name="a"),
        kd.Term(kd.losses.Hint(), ["x", "y"], ["u", "v"], connector=["auto", None]),
        kd.Term("mse", "x", "u", connector=layers.Dense(3, name="given")),
    ]
    for term in terms:
        copy = kd.Term.from_config(term.get_config())
        for name in ("name", "teacher", "student", "temperature"):
            assert getattr(copy, name) == getattr(term, name)
        assert copy.loss.get_config() == term.loss.get_config()
        assert repr(copy)
    assert kd.Term.from_config(terms[0].get_config()).weight.steps == 5
    assert kd.Term.from_config(terms[1].get_config()).connector == ["auto", None]
    assert kd.Term.from_config(terms[2].get_config()).connector.units == 3


# Features.


def feature(model, path, x, training=False):
    inner = keras.Model(model.input, model.get_layer(path).output)
    return nets.predict(inner, x, training=training)


def test_several_paths_reach_the_loss_as_tuples():
    def both(teacher, student):
        assert isinstance(teacher, (tuple, list)) and isinstance(student, (tuple, list))
        return sum(
            ops.mean(ops.square(t - s), axis=tuple(range(1, len(t.shape))))
            for t, s in zip(teacher, student)
        )

    teacher, student = nets.cnn(6, "teacher"), nets.cnn(4, "student")
    paths = ["stage1", "stage2"]
    term = kd.Term(both, paths, paths, connector="auto")
    distiller = distiller_of(term, teacher=teacher, student=student)
    x, y = nets.images(8), nets.class_ids(8)
    expected = 0.0
    for path, connector in zip(paths, distiller.terms[0].connectors):
        fitted = nets.predict(connector, feature(student, path, x, training=True))
        expected += np.mean((feature(teacher, path, x) - fitted) ** 2)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["both"], expected, rtol=1e-4)


def test_connectors_train_and_are_saved_and_leave_the_student_alone(tmp_path):
    given = layers.Conv2D(6, 1, name="given")
    terms = [
        kd.Term(kd.losses.Hint(), "stage1", "stage1", connector=given),
        kd.Term(kd.losses.Hint(), "pool", "stage2", connector="auto", name="vector"),
    ]
    teacher, student = nets.cnn(6, "teacher"), nets.cnn(4, "student")
    variables = len(student.variables)
    distiller = distiller_of(terms, teacher=teacher, student=student)
    before = nets.array(given.kernel)
    x, y = nets.images(8), nets.class_ids(8)
    distiller.fit(x, y, verbose=0)
    assert np.any(nets.array(given.kernel) != before)
    assert len(student.variables) == variables
    connectors = [c for term in distiller.terms for c in term.connectors]
    assert connectors[0] is given
    trained = {id(v) for v in distiller.trainable_variables}
    assert {id(v) for c in connectors for v in c.trainable_variables} <= trained
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    for old, new in zip(distiller.terms, loaded.terms):
        nets.assert_same_weights(old.connectors[0], new.connectors[0])


def test_tokens_are_fitted_to_maps_and_back():
    def vit(name, size, width):
        inputs = keras.Input((8, 8, 1))
        x = layers.Conv2D(width, 8 // size, strides=8 // size, name="patch")(inputs)
        x = layers.Reshape((size * size, width), name="tokens")(x)
        x = layers.GlobalAveragePooling1D(name="pool")(x)
        return keras.Model(inputs, layers.Dense(nets.CLASSES, name="head")(x), name=name)

    terms = [kd.Term(kd.losses.Hint(), "stage1", "tokens", connector="auto")]
    distiller = distiller_of(terms, teacher=nets.cnn(6, "t"), student=vit("s", 4, 5))
    logs = distiller.train_on_batch(nets.images(4), nets.class_ids(4), return_dict=True)
    assert np.isfinite(logs["hint"])
    terms = [kd.Term(kd.losses.Hint(), "tokens", "stage1", connector="auto")]
    distiller = distiller_of(terms, teacher=vit("t", 4, 5), student=nets.cnn(6, "s"))
    logs = distiller.train_on_batch(nets.images(4), nets.class_ids(4), return_dict=True)
    assert np.isfinite(logs["hint"])


def test_feature_terms_weigh_samples():
    teacher, student = nets.cnn(4, "teacher"), nets.cnn(4, "student")
    term = kd.Term(kd.losses.Hint(), "stage1", "stage1")
    distiller = distiller_of(term, teacher=teacher, student=student)
    x, y = nets.images(8), nets.class_ids(8)
    weights = np.linspace(0, 2, 8).astype("float32")
    mine = feature(student, "stage1", x, training=True)
    squares = (feature(teacher, "stage1", x) - mine) ** 2
    logs = distiller.train_on_batch(x, y, weights, return_dict=True)
    expected = np.mean(weights * squares.mean((1, 2, 3)))
    np.testing.assert_allclose(logs["hint"], expected, rtol=1e-4)


def test_a_loss_with_weights_of_its_own_is_trained_and_saved(tmp_path):
    loss = Scaled()
    distiller = distiller_of(kd.Term(loss, "hidden", "hidden"), teacher=nets.mlp(name="teacher"))
    assert any(v is loss.scale for v in distiller.trainable_variables)
    distiller.fit(nets.vectors(8), nets.class_ids(8), verbose=0)
    moved = float(nets.array(loss.scale))
    assert moved != 1.0
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert float(nets.array(loaded.terms[0].loss.scale)) == moved
    assert len(loaded.student.variables) == 4


def test_a_temperature_given_to_a_loss_with_weights_keeps_them_shared():
    class Tempered(Scaled):
        def __init__(self):
            super().__init__()
            self.temperature = 1.0

        def call(self, y_true, y_pred):
            return super().call(y_true / self.temperature, y_pred / self.temperature)

    loss = Tempered()
    term = kd.Term(loss, "hidden", "hidden", temperature=2.0)
    distiller = distiller_of(term, teacher=nets.mlp(name="teacher"))
    distiller.fit(nets.vectors(8), nets.class_ids(8), verbose=0)
    assert float(nets.array(loss.scale)) != 1.0
    assert loss.temperature == 1.0


# Ids, and losses that look at the inputs.


def crd_distiller(samples=8):
    loss = kd.losses.ContrastiveRepresentation(samples, dimension=3, negatives=2, seed=0)
    teacher, student = nets.mlp(name="teacher"), nets.mlp(width=5, name="student")
    distiller = kd.Distiller(teacher, student, kd.Term(loss, "hidden", "hidden"))
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return distiller


def test_ids_without_a_row_are_named_before_training():
    x, y = nets.vectors(8), nets.class_ids(8)
    distiller = crd_distiller()
    before = [v.numpy() if hasattr(v, "numpy") else np.asarray(v) for v in distiller.weights]
    with pytest.raises(ValueError, match="Targets with `ids`, for the term"):
        distiller.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="ids from 0 to 7 .* Received: ids from 1 to 8"):
        distiller.fit(x, kd.data.Targets(labels=y, ids=np.arange(1, 9)), verbose=0)
    after = [v.numpy() if hasattr(v, "numpy") else np.asarray(v) for v in distiller.weights]
    assert all(np.array_equal(a, b) for a, b in zip(before, after))
    logs = distiller.fit(x, kd.data.Targets(labels=y, ids=np.arange(8)), verbose=0).history
    assert np.isfinite(logs["loss"]).all()


@pytest.mark.tensorflow
def test_term_on_inputs_refuses_a_class_map_and_takes_a_temperature():
    teacher, student = nets.mlp(name="teacher"), nets.mlp(width=5, name="student")
    with pytest.raises(ValueError, match="looks at the inputs. Received: a `class_map`"):
        kd.Distiller(teacher, student, kd.losses.GradientAttention(), class_map=[1, 0, 2, 3])
    term = kd.Term(kd.losses.BoundarySupport(seed=0), temperature=1.5)
    distiller = kd.Distiller(teacher, student, term)
    bound = distiller.terms[0]
    assert bound._loss_at(0) is not bound.loss
    assert float(bound._loss_at(0).temperature) == 1.5


@pytest.mark.slow
@pytest.mark.tensorflow
def test_evaluating_a_term_on_inputs_changes_no_state():
    teacher, student = nets.mlp(name="teacher"), nets.mlp(width=5, name="student")
    distiller = kd.Distiller(teacher, student, kd.losses.BoundarySupport(seed=0))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("sgd", loss, evaluate_terms=True)
    x, y = nets.vectors(8), nets.class_ids(8)
    own = [v for v in distiller.variables if "metric" not in v.path]
    before = [v.numpy() for v in own]
    one, other = (distiller.evaluate(x, y, verbose=0) for _ in range(2))
    assert one == other
    for old, variable in zip(before, own):
        np.testing.assert_array_equal(old, variable.numpy())
