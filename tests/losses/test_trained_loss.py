"""`TrainedLoss`: losses that hold layers of their own, built, trained and saved."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_distill as kd
from keras_distill.losses import misfit
from keras_distill.losses.trained import TrainedLoss
from tests.contract import network
from tests.contract import samples
from tests.losses import numerics


@keras.saving.register_keras_serializable(package="test_trained_loss")
class Fitted(TrainedLoss):
    """The squared difference after a dense layer, a batch normalisation and a scale."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def misfit(self, teacher_shapes, student_shapes):
        return misfit.of_vectors(teacher_shapes, student_shapes)

    def make(self, teacher_shapes, student_shapes):
        size = teacher_shapes[-1]
        self.dense = layers.Dense(size, name="dense", dtype=self.dtype)
        self.dense.build(student_shapes)
        self.norm = layers.BatchNormalization(name="norm", dtype=self.dtype)
        self.norm.build((None, size))
        self.scale = self.add_weight(shape=(size,), initializer="ones", name="scale")

    def call(self, y_true, y_pred, training=True):
        fitted = self.scale * self.norm(self.dense(y_pred), training=training)
        return self.factor * ops.mean(ops.square(fitted - ops.stop_gradient(y_true)), axis=-1)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="test_trained_loss")
class Extras(TrainedLoss):
    """Asks for labels and ids, and weighs several maps."""

    needs_labels = True
    needs_ids = True

    def make(self, teacher_shapes, student_shapes):
        self.seen = teacher_shapes, student_shapes
        self.scale = self.add_weight(shape=(len(teacher_shapes),), initializer="ones")

    def call(self, y_true, y_pred, training=True):
        features, labels, ids = y_true
        sums = [
            ops.mean(t, axis=(1, 2, 3)) - ops.mean(s, axis=(1, 2, 3))
            for t, s in zip(features, y_pred)
        ]
        total = sum(self.scale[i] * value for i, value in enumerate(sums))
        return total + ops.cast(labels, "float32") + 10.0 * ops.cast(ids, "float32")


def arrays(variables):
    return [numerics.to_numpy(variable) for variable in variables]


def assert_same(variables, others):
    for one, other in zip(arrays(variables), arrays(others), strict=True):
        np.testing.assert_array_equal(one, other)


def features(batch=6, teacher=5, student=3, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((batch, size)).astype("float32") for size in (teacher, student)]


def distiller(loss, student=None, **options):
    term = kd.Term(loss, "pool", "pool", weight=0.5)
    teacher = network("teacher", 5, batch_norm=False)
    model = kd.Distiller(teacher, student or network("student", batch_norm=False), term)
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    return model


# Building.


def test_built_by_shapes_or_at_the_first_call():
    teacher, student = features()
    built, called = Fitted(), Fitted()
    assert built.variables == [] and built.get_build_config() is None
    built.build_for((None, 5), (None, 3))
    called(teacher, student)
    for loss in (built, called):
        assert loss.built
        assert [tuple(v.shape) for v in loss.trainable_variables] == [
            (5,),
            (3, 5),
            (5,),
            (5,),
            (5,),
        ]
        assert len(loss.non_trainable_variables) >= 2
        assert loss.get_build_config() == {"shapes": [[5], [3]]}
    variables = [id(v) for v in built.variables]
    built.build_for((8, 5), (8, 3))  # of the batch nothing is held
    built(teacher[:2], student[:2])
    assert [id(v) for v in built.variables] == variables


def test_values_are_reduced_and_weighed_by_keras():
    teacher, student = features()
    loss = Fitted()
    loss.build_for((None, 5), (None, 3))
    values = numerics.to_numpy(loss.call(teacher, student, training=False))
    assert values.shape == (6,)
    assert float(loss(teacher, student, training=False)) == pytest.approx(values.mean(), rel=1e-5)
    weight = np.arange(6, dtype="float32")
    weighted = float(loss(teacher, student, weight, training=False))
    assert weighted == pytest.approx((weight * values).mean(), rel=1e-5)
    total = Fitted(reduction="sum")
    total.build_for((None, 5), (None, 3))
    for own, other in zip(total.variables, loss.variables):
        own.assign(other)
    assert float(total(teacher, student, training=False)) == pytest.approx(values.sum(), rel=1e-5)


def test_a_called_loss_trains_unless_told():
    teacher, student = features()
    loss = Fitted()
    loss.build_for((None, 5), (None, 3))
    before = numerics.to_numpy(loss.norm.moving_mean)
    loss(teacher, student, training=False)
    np.testing.assert_array_equal(numerics.to_numpy(loss.norm.moving_mean), before)
    loss(teacher, student)
    assert np.abs(numerics.to_numpy(loss.norm.moving_mean) - before).max() > 0.0


def test_other_shapes_are_an_error():
    loss = Fitted(name="mine")
    loss.build_for((None, 5), (None, 3))
    received = r"built for, \[\[5\], \[3\]\]. Received: shapes=\[\[5\], \[4\]\]. Make one loss"
    with pytest.raises(ValueError, match=f"Expected 'mine' to see features of .*{received}"):
        loss.build_for((None, 5), (None, 4))
    shared = Fitted()
    terms = [kd.Term(shared, "pool", "pool"), kd.Term(shared, "pool", "logits")]
    with pytest.raises(ValueError, match="Make one loss for each term"):
        kd.Distiller(network("teacher", 5), network("student"), terms)


def test_features_that_it_cannot_compare_are_an_error():
    expected = r"Expected vectors of shape \(batch, size\) from both"
    with pytest.raises(ValueError, match=rf"{expected}. Received: .*\(None, 5\), \(None, 4, 3\)"):
        Fitted().build_for((None, 5), (None, 4, 3))
    with pytest.raises(ValueError, match=rf"{expected}. Received: .*\(2, 5\), \(2, 4, 3\)"):
        Fitted()(np.ones((2, 5), "float32"), np.ones((2, 4, 3), "float32"))
    term = kd.Term(Fitted(), "features", "pool", name="mine")
    received = r"Received: teacher \(None, 4, 4, 5\), student \(None, 3\)"
    with pytest.raises(ValueError, match=rf"{expected} for the term 'mine'. {received}"):
        kd.Distiller(network("teacher", 5), network("student"), term)


def test_a_loss_without_layers_says_so():
    class Nothing(TrainedLoss):
        pass

    with pytest.raises(NotImplementedError, match="Nothing gives no `make`"):
        Nothing().build_for((None, 5), (None, 3))


def test_labels_ids_and_several_maps():
    """Built at the first call from the features alone; labels stay integers."""
    maps = [np.full((2, 4, 4, 1), 3.0, "float32"), np.full((2, 2, 2, 1), 5.0, "float32")]
    zeros = [np.zeros_like(x) for x in maps]
    loss = Extras(reduction=None)
    ids = np.array([0, 2**24 + 1])
    values = loss((maps, np.array([1, 2]), ids), zeros)
    np.testing.assert_allclose(values, [9.0, 10.0 + 10.0 * (2**24 + 1)], rtol=1e-6)
    assert loss.seen == ([(2, 4, 4, 1), (2, 2, 2, 1)],) * 2
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert restored.seen == ([(None, 4, 4, 1), (None, 2, 2, 1)],) * 2


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float32"])
def test_layers_and_weights_are_float32_under_any_policy(policy):
    keras.config.set_dtype_policy(policy)
    loss = Fitted()
    loss.build_for((None, 5), (None, 3))
    assert {v.dtype for v in loss.variables if "seed" not in v.name} == {"float32"}
    teacher, student = (ops.cast(x, "bfloat16") for x in features())
    value = loss(teacher, student)
    assert keras.backend.standardize_dtype(value.dtype) == "float32" and np.isfinite(float(value))


@pytest.mark.tensorflow
def test_a_loss_of_float64_has_weights_of_float64():
    loss = Fitted(dtype="float64")
    teacher, student = (x.astype("float64") for x in features())
    assert keras.backend.standardize_dtype(loss(teacher, student).dtype) == "float64"
    assert {v.dtype for v in loss.variables} == {"float64"}
    assert Fitted.from_config(loss.get_config()).dtype == "float64"


# Config.


@pytest.mark.parametrize("is_built", [False, True])
def test_config_and_build_config_round_trip(is_built):
    loss = Fitted(factor=3.0, name="mine", reduction="sum")
    if is_built:
        loss.build_for((None, 5), (None, 3))
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(restored) is Fitted
    assert restored.get_config() == loss.get_config()
    assert loss.get_config() == {"name": "mine", "reduction": "sum", "factor": 3.0}
    assert restored.get_build_config() == loss.get_build_config()
    assert restored.built == is_built
    assert [v.shape for v in restored.variables] == [v.shape for v in loss.variables]
    for own, other in zip(restored.variables, loss.variables):
        own.assign(other)
    if is_built:
        teacher, student = features()
        values = [float(one(teacher, student, training=False)) for one in (loss, restored)]
        assert values[0] == values[1]


# In a wrapper.


def test_a_wrapper_builds_it_trains_it_and_saves_it(tmp_path):
    loss = Fitted()
    model = distiller(loss)
    assert loss.built and loss.get_build_config() == {"shapes": [[5], [3]]}
    tracked = {id(v) for v in model.trainable_variables}
    assert {id(v) for v in loss.trainable_variables} <= tracked
    x, y = samples(16)
    before = arrays(loss.trainable_variables), arrays(loss.non_trainable_variables)
    model.fit(x, y, batch_size=8, epochs=1, verbose=0)
    moved = arrays(loss.trainable_variables)
    # The bias before a batch normalisation has no gradient.
    changed = [np.abs(a - b).max() > 1e-6 for a, b in zip(before[0], moved)]
    assert sum(changed) >= len(changed) - 1 and changed[1]
    assert np.abs(numerics.to_numpy(loss.norm.moving_mean)).max() > 0.0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.terms[0].loss) is Fitted
    assert_same(loaded.terms[0].loss.variables, loss.variables)
    assert_same(loaded.weights, model.weights)
    logs = [m.train_on_batch(x, y, return_dict=True) for m in (model, loaded)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)
    for one, other in zip(arrays(loss.variables), arrays(loaded.terms[0].loss.variables)):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_saved_without_teacher_it_keeps_its_weights(tmp_path):
    model = distiller(Fitted())
    x, y = samples(16)
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras", include_teacher=False)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(loaded.terms[0].loss.variables, model.terms[0].loss.variables)
    other = network("other", 6, batch_norm=False)
    with pytest.raises(ValueError, match=r"built for, \[\[5\], \[3\]\]. Received: shapes=\[\[6\]"):
        loaded.set_teacher(other)
    loaded.set_teacher(model.teacher)
    assert np.isfinite(loaded.train_on_batch(x, y, return_dict=True)["fitted"])


def test_weights_files_hold_it(tmp_path):
    model, fresh = distiller(Fitted()), distiller(Fitted())
    model.fit(*samples(16), verbose=0)
    model.save_weights(tmp_path / "some.weights.h5")
    fresh.load_weights(tmp_path / "some.weights.h5")
    assert_same(fresh.terms[0].loss.variables, model.terms[0].loss.variables)


def test_evaluate_leaves_its_statistics_alone():
    """`training` reaches the layers: `evaluate` reads the moving statistics, `fit` moves them."""
    loss = Fitted()
    model = distiller(loss, evaluate_terms=True)
    x, y = samples(16)
    model.fit(x, y, verbose=0)
    before = arrays(model.variables)
    logs = model.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    for one, other in zip(before, arrays(model.variables)):
        if np.issubdtype(one.dtype, np.floating) and one.shape:
            np.testing.assert_array_equal(one, other)
    pooled = [
        keras.Model(m.input, m.get_layer("pool").output)(x) for m in (model.teacher, model.student)
    ]
    assert logs["fitted"] == pytest.approx(float(loss(*pooled, training=False)), rel=1e-4)
    batch_statistics = float(loss(*pooled, training=True))
    assert abs(logs["fitted"] - batch_statistics) > 1e-3 * batch_statistics


def test_no_export_of_the_student_holds_it(tmp_path):
    model = distiller(Fitted())
    x, y = samples(8)
    model.fit(x, y, verbose=0)
    own = {id(v) for v in model.terms[0].loss.variables}
    assert own and not own & {id(v) for v in model.student.variables}
    assert model.inference_model is model.student
    model.student.save(tmp_path / "student.keras")
    alone = keras.models.load_model(tmp_path / "student.keras")
    assert len(alone.weights) == 4
    np.testing.assert_allclose(alone.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)


@pytest.mark.tensorflow
def test_an_exported_student_holds_no_variable_of_it(tmp_path):
    import tensorflow as tf

    model = distiller(Fitted())
    x, _ = samples(8)
    kd.export.saved_model(model, tmp_path / "saved")
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    shapes = {tuple(v.shape) for v in loaded.variables}
    assert shapes <= {tuple(v.shape) for v in model.student.variables}
    assert (3, 5) not in shapes  # its dense layer
    np.testing.assert_allclose(loaded.serve(x), model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)


def test_a_connector_comes_before_it():
    loss = Fitted()
    connector = layers.Dense(7, name="given")
    term = kd.Term(loss, "pool", "pool", connector=connector)
    kd.Distiller(network("teacher", 5), network("student"), term)
    assert loss.get_build_config() == {"shapes": [[5], [7]]}
    assert tuple(loss.dense.kernel.shape) == (7, 5)


def test_a_clone_has_layers_of_its_own():
    model = distiller(Fitted(factor=2.0))
    clone = kd.Distiller.from_config(model.get_config())
    loss = clone.terms[0].loss
    assert loss.built and loss.factor == 2.0
    assert not {id(v) for v in loss.variables} & {id(v) for v in model.variables}


@pytest.mark.slow
@pytest.mark.tensorflow
def test_two_replicas_take_the_step_of_one(two_replicas):
    """Statistics of a batch would be each replica's own: this one has none."""
    import tensorflow as tf

    class Plain(Fitted):
        def make(self, teacher_shapes, student_shapes):
            super().make(teacher_shapes, student_shapes)
            self.norm.trainable = False

        def call(self, y_true, y_pred, training=True):
            return ops.mean(ops.square(self.scale * self.dense(y_pred) - y_true), axis=-1)

    def moves(strategy):
        keras.utils.set_random_seed(5)
        with strategy.scope():
            model = distiller(Plain())
        loss = model.terms[0].loss
        before = arrays([loss.scale, *loss.dense.variables, *model.student.weights])
        model.fit(*samples(8), batch_size=8, shuffle=False, verbose=0)
        after = arrays([loss.scale, *loss.dense.variables, *model.student.weights])
        return [b - a for a, b in zip(before, after)]

    alone, together = moves(tf.distribute.get_strategy()), moves(two_replicas)
    assert min(np.abs(move).max() for move in alone) > 1e-4
    for one, both in zip(alone, together):
        np.testing.assert_allclose(both, one, rtol=1e-3, atol=1e-5)
