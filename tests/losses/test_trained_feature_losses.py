"""VID, FT and ReviewKD: classes, compiled steps, half precision, terms of a Distiller."""

import dataclasses
import inspect
from typing import Any

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import losses
from tests.losses import numerics


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss with its arguments, and the layers of `network` that it compares."""

    cls: Any
    teacher: Any
    student: Any
    kwargs: dict = dataclasses.field(default_factory=dict)

    def term(self):
        return kd.Term(self.cls(**self.kwargs), self.teacher, self.student, weight=0.5)

    def shapes(self, batch=None):
        sizes = {"large": (6, 6, 1), "small": (3, 3, 2), "pool": (2,)}
        found = []
        for width, paths in ((4, self.teacher), (3, self.student)):
            shapes = [
                (batch, *sizes[path][:-1], width * sizes[path][-1])
                for path in ([paths] if isinstance(paths, str) else paths)
            ]
            found.append(shapes[0] if isinstance(paths, str) else shapes)
        return found

    def __str__(self):
        settings = ",".join(f"{key}={value}" for key, value in self.kwargs.items())
        return f"{self.cls.__name__}({settings}):{self.student}".replace(" ", "").replace("'", "")


LEVELS = ["large", "small", "pool"]
CASES = [
    Case(losses.VariationalInformation, "small", "large"),
    Case(losses.VariationalInformation, "pool", "pool", {"batch_normalization": True, "width": 5}),
    Case(losses.FactorTransfer, "small", "small"),
    Case(losses.FactorTransfer, "large", "small", {"mode": "attention", "power": 2}),
    Case(losses.FactorTransfer, "small", "small", {"batch_normalization": True}),
    Case(losses.ReviewKD, LEVELS, LEVELS),
    Case(losses.ReviewKD, "large", "small", {"mid_channels": 2}),
]
if numerics.BACKEND != "tensorflow":  # JAX runs each operation by itself.
    CASES = [CASES[1], CASES[3], CASES[5]]
EACH = [pytest.param(case, id=str(case)) for case in CASES]
# Each class once.
DISTINCT = list({case.values[0].cls: case for case in reversed(EACH)}.values())


def network(name, width, dtype=None):
    """A classifier with the layers "large" (6 x 6), "small" (3 x 3) and "pool"."""
    layers = keras.layers
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(width, 3, padding="same", name="large", dtype=dtype)(inputs)
    x = layers.ReLU(dtype=dtype)(x)
    x = layers.Conv2D(2 * width, 3, 2, padding="same", name="small", dtype=dtype)(x)
    x = layers.GlobalAveragePooling2D(name="pool", dtype=dtype)(x)
    return keras.Model(inputs, layers.Dense(3, name="logits", dtype="float32")(x), name=name)


def distiller(case, dtype=None, **options):
    keras.utils.set_random_seed(5)
    teacher, student = network("teacher", 4), network("student", 3, dtype)
    model = kd.Distiller(teacher, student, case.term())
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    return model


def samples(batch=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, 6, 6, 2)).astype("float32"), np.arange(batch) % 3


def mapped(function, structure):
    if isinstance(structure, list):
        return [function(x) for x in structure]
    return function(structure)


def features(case, batch=5, dtype="float32", seed=1):
    rng = np.random.default_rng(seed)
    return [
        mapped(lambda shape: rng.standard_normal(shape).astype(dtype), shapes)
        for shapes in case.shapes(batch)
    ]


def built(case, **options):
    keras.utils.set_random_seed(5)
    loss = case.cls(**case.kwargs, **options)
    loss.build_for(*case.shapes())
    return loss


def arrays(variables):
    return [numerics.to_numpy(v) for v in variables]


@pytest.mark.parametrize("case", EACH)
def test_reductions_weights_and_config_are_those_of_keras(case):
    teacher, student = features(case)
    loss = built(case, name="my_loss")
    values = numerics.to_numpy(loss.call(teacher, student, training=False))
    assert values.shape == (5,)
    assert float(loss(teacher, student, training=False)) == pytest.approx(values.mean(), rel=1e-5)
    weight = np.array([0.0, 1.0, 0.5, 2.0, 3.0], "float32")
    weighted = float(loss(teacher, student, weight, training=False))
    assert weighted == pytest.approx((weight * values).mean(), rel=1e-5)
    config = loss.get_config()
    arguments = set(inspect.signature(case.cls.__init__).parameters) - {"self", "kwargs"}
    assert arguments | {"name", "reduction"} == set(config)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(restored) is case.cls and restored.get_config() == config
    for own, other in zip(restored.variables, loss.variables, strict=True):
        own.assign(other)
    again = float(restored(teacher, student, weight, training=False))
    assert again == pytest.approx(weighted, rel=1e-6)
    assert not (loss.on_logits or loss.shift_invariant or loss.needs_labels or loss.needs_ids)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", EACH)
def test_half_precision_is_computed_in_float32(case, dtype):
    """Squares of 1000 are beyond float16."""
    loss = built(case)
    halves = [
        mapped(lambda x: keras.ops.cast(1000.0 * x, dtype), network) for network in features(case)
    ]
    lifted = [mapped(lambda x: keras.ops.cast(x, "float32"), network) for network in halves]
    values = [loss(*pair, training=False) for pair in (halves, lifted)]
    assert keras.backend.standardize_dtype(values[0].dtype) == "float32"
    assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-6)
    assert np.isfinite(float(values[0]))
    assert {v.dtype for v in loss.trainable_variables} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("case", EACH)
def test_xla_computes_the_same(case):
    """Values and gradients, with a map of zeros, a duplicate and a constant."""
    loss = built(case)
    teacher, student = features(case)
    for x in student if isinstance(student, list) else [student]:
        x[0], x[1], x[2] = 0.0, 3.0, x[3]
    position = 0 if isinstance(student, list) else None

    def both(teacher, student):
        with keras.StatelessScope():  # The moving averages are no part of it.
            return value_and_gradient(teacher, student)

    def value_and_gradient(teacher, student):
        def value(x):
            own = [x, *student[1:]] if position is not None else x
            return loss.call(teacher, own, training=True)

        deepest = student[0] if position is not None else student
        return loss.call(teacher, student, training=True), numerics.slope(value, deepest)

    arguments = [mapped(keras.ops.convert_to_tensor, network) for network in (teacher, student)]
    plain = both(*arguments)
    compiled = numerics.compiled(both)(*arguments)
    for result, expected in zip(compiled, plain):
        result, expected = numerics.to_numpy(result), numerics.to_numpy(expected)
        numerics.assert_finite(result, expected)
        np.testing.assert_allclose(result, expected, 1e-3, 1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("case", EACH)
def test_batch_of_unknown_size(case):
    import tensorflow as tf

    loss = built(case)
    teacher, student = features(case)
    specs = [mapped(lambda x: tf.TensorSpec((None, *x.shape[1:])), n) for n in (teacher, student)]
    function = tf.function(lambda t, s: loss(t, s, training=False), input_signature=specs)
    for batch in (5, 1):
        pair = [mapped(lambda x, batch=batch: x[:batch], n) for n in (teacher, student)]
        expected = float(loss(*pair, training=False))
        assert float(function(*pair)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", EACH)
def test_a_term_trains_student_and_helpers_alone(case, tmp_path):
    model = distiller(case)
    loss = model.terms[0].loss
    x, y = samples()
    teacher, frozen = arrays(model.teacher.variables), arrays(loss.frozen_variables)
    trained = model.terms[0].trainable_variables
    own, student = arrays(trained), arrays(model.student.variables)
    logs = model.fit(x, y, batch_size=8, verbose=0).history
    assert np.isfinite(logs["loss"][0]) and loss.name in logs
    for before, variables in ((teacher, model.teacher), (frozen, None)):
        after = loss.frozen_variables if variables is None else variables.variables
        for a, b in zip(before, arrays(after), strict=True):
            np.testing.assert_array_equal(a, b)
    for before, variables in ((own, trained), (student, model.student.variables)):
        changed = [np.abs(a - b).max() > 0.0 for a, b in zip(before, arrays(variables))]
        # What a batch normalization follows has no gradient by its bias.
        assert changed and sum(changed) >= len(changed) - 3

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(arrays(loaded.terms[0].variables), arrays(model.terms[0].variables)):
        np.testing.assert_array_equal(a, b)
    both = [m.train_on_batch(x, y, return_dict=True) for m in (model, loaded)]
    assert both[0] == pytest.approx(both[1], rel=1e-5)
    model.student.save(tmp_path / "student.keras")
    alone = keras.models.load_model(tmp_path / "student.keras")
    assert len(alone.weights) == len(student) == 6
    np.testing.assert_allclose(alone.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)


@pytest.mark.parametrize("case", DISTINCT)
def test_evaluation_moves_nothing(case):
    model = distiller(case, evaluate_terms=True)
    before = arrays(model.terms[0].loss.variables)
    logs = model.evaluate(*samples(), verbose=0, return_dict=True)
    assert np.isfinite(logs[model.terms[0].loss.name])
    for a, b in zip(before, arrays(model.terms[0].loss.variables), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("case", DISTINCT)
def test_two_replicas_take_the_step_of_one_device(case, two_replicas):
    """Batch normalization sees a replica's own batch: both get the same one."""
    import tensorflow as tf

    x, y = samples(4)
    x, y = np.concatenate([x, x]), np.concatenate([y, y])

    def trained(strategy):
        with strategy.scope():
            model = distiller(case)
        logs = model.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
        return logs["loss"][0], arrays(model.student.variables + model.terms[0].variables)

    loss, alone = trained(tf.distribute.get_strategy())
    other_loss, together = trained(two_replicas)
    assert two_replicas.num_replicas_in_sync == 2
    assert other_loss == pytest.approx(loss, rel=1e-5)
    for own, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("case", DISTINCT)
def test_mixed_precision_trains(case):
    model = distiller(case, dtype="mixed_float16")
    before = arrays(model.terms[0].loss.trainable_variables)
    logs = model.fit(*samples(), batch_size=8, verbose=0).history
    assert np.isfinite(logs["loss"][0])
    after = arrays(model.terms[0].loss.trainable_variables)
    assert any(np.abs(a - b).max() > 0.0 for a, b in zip(before, after))
    numerics.assert_finite(*after)


@pytest.mark.tensorflow
@pytest.mark.parametrize("case", DISTINCT)
def test_an_export_holds_no_helper(case, tmp_path):
    import tensorflow as tf

    model = distiller(case)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    x, _ = samples()
    np.testing.assert_allclose(exported.serve(x), model.predict(x, verbose=0), rtol=1e-4, atol=1e-6)
    sizes = sorted(tuple(v.shape) for v in exported.variables)
    assert sizes == sorted(tuple(v.shape) for v in model.student.variables)


def test_a_term_that_does_not_fit_names_itself_and_both_shapes():
    teacher, student = network("teacher", 4), network("student", 3)
    for loss, paths, expected in (
        (losses.VariationalInformation(), ("small", "pool"), "a map from both or a vector"),
        (losses.FactorTransfer(), ("pool", "pool"), "maps of shape"),
        (losses.ReviewKD(), (LEVELS, LEVELS[::-1]), "layers from shallow to deep"),
    ):
        with pytest.raises(ValueError, match=rf"Expected {expected}.* for the term 'mine'. Rec"):
            kd.Distiller(teacher, student, kd.Term(loss, *paths, name="mine"))
