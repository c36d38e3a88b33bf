"""Losses of feature maps: classes, compiled steps, half precision, terms of a Distiller."""

import inspect

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import losses
from tests.contract import network
from tests.contract import samples
from tests.losses import numerics
from tests.losses.map_cases import ATTENTION
from tests.losses.map_cases import SELECTIVITY
from tests.losses.map_cases import data
from tests.losses.map_cases import each

CASES = ATTENTION + SELECTIVITY
# What computes something of its own, to be compiled.
COMPILED = [
    case
    for case in CASES
    if case.kwargs in ({}, {"mode": "paper"}, {"power": 1, "maps": "max"})
    or case.kwargs.get("kernel") in ("linear", "gaussian")
    or case.kwargs.get("degree") == 3
]
PATHS = ["stem", "features"]
UNEVEN = ((5, 8, 8, 4), (5, 5, 4, 3))


@pytest.mark.parametrize("case", each(CASES))
def test_reductions_weights_and_config_are_those_of_keras(case):
    teacher, student = data(*UNEVEN, dtype="float32")
    values = numerics.to_numpy(case.call(teacher, student))
    assert float(case.loss()(teacher, student)) == pytest.approx(values.mean(), rel=1e-4)
    assert float(case.loss(reduction="sum")(teacher, student)) == pytest.approx(
        values.sum(), rel=1e-4
    )
    weight = np.array([0.0, 1.0, 0.5, 2.0, 3.0], "float32")
    loss = case.loss(name="my_loss")
    weighted = float(loss(teacher, student, sample_weight=weight))
    assert weighted == pytest.approx((weight * values).mean(), rel=1e-4)
    config = loss.get_config()
    arguments = set(inspect.signature(case.cls.__init__).parameters) - {"self", "kwargs"}
    assert arguments | {"name", "reduction"} == set(config)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(restored) is case.cls and restored.get_config() == config
    assert float(restored(teacher, student, sample_weight=weight)) == weighted
    assert case.loss().name == case.name
    assert not (loss.on_logits or loss.shift_invariant or loss.needs_labels or loss.needs_ids)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", each(CASES))
def test_half_precision_is_computed_in_float32(case, dtype):
    """Squares of 1000 are beyond float16."""
    teacher, student = (
        keras.ops.convert_to_tensor((1000.0 * x).astype("float32"), dtype=dtype)
        for x in data(*UNEVEN)
    )
    lifted = [keras.ops.cast(x, "float32") for x in (teacher, student)]
    values = case.call(teacher, student)
    assert keras.backend.standardize_dtype(values.dtype) == "float32"
    expected = numerics.to_numpy(case.call(*lifted))
    np.testing.assert_array_equal(numerics.to_numpy(values), expected)
    result = case.loss()(teacher, student)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    assert float(result) == pytest.approx(expected.mean(), rel=1e-5)
    gradient = numerics.gradient(lambda x: case.call(teacher, x), student)
    numerics.assert_finite(gradient)
    expected = numerics.gradient(lambda x: case.call(lifted[0], x), lifted[1])
    atol = max(2e-2 * np.abs(expected).max(), 1e-7)  # float16 has nothing below 6e-8
    np.testing.assert_allclose(gradient.astype("float32"), expected, rtol=2e-2, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("case", each(COMPILED))
def test_xla_computes_the_same(case):
    """Values and gradients, with zeros, duplicates and constants."""
    teacher, student = data(*UNEVEN, dtype="float32")
    student[0], student[1], teacher[2], student[3, ..., 0] = 0.0, student[4], 0.0, 0.7

    def both(teacher, student):
        gradient = numerics.slope(lambda x: case.call(teacher, x), student)
        return case.call(teacher, student), gradient

    arguments = [keras.ops.convert_to_tensor(x) for x in (teacher, student)]
    for result, plain in zip(numerics.compiled(both)(*arguments), both(*arguments)):
        result, plain = numerics.to_numpy(result), numerics.to_numpy(plain)
        numerics.assert_finite(result)
        np.testing.assert_allclose(result, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


@pytest.mark.tensorflow
@pytest.mark.parametrize("case", each(COMPILED))
def test_sizes_that_are_not_known(case):
    """A batch of unknown size, and maps of unknown sizes that are alike."""
    import tensorflow as tf

    teacher, student = data((5, 6, 4, 4), (5, 6, 4, 3), dtype="float32")
    expected = case.call(teacher, student)
    for shape in ((None, 6, 4), (None, None, None)):
        signature = [tf.TensorSpec((*shape, channels)) for channels in (4, 3)]
        values = tf.function(case.call, input_signature=signature)(teacher, student)
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", each([ATTENTION[0], SELECTIVITY[0]]))
def test_what_does_not_fit_is_told_before_training(case):
    loss = case.loss()
    pair = [(None, 8, 8, 3), (None, 4, 4, 3)], [(None, 4, 8, 2), (None, 4, 4, 1)]
    assert loss.misfit(*pair) is None
    assert loss.misfit(pair[0][0], pair[1][0]) is None
    assert loss.misfit((None, None, None, 3), (None, None, None, 2)) is None
    assert "as many features" in loss.misfit(pair[0], pair[1][:1])
    assert "maps of shape (batch," in loss.misfit((None, 8), (None, 8))
    assert "known height and width" in loss.misfit((None, None, None, 3), (None, 4, 4, 3))
    term = kd.Term(case.loss(), "pool", "features", name="mine")
    with pytest.raises(ValueError) as error:
        kd.Distiller(network("teacher", 5), network("student"), term)
    message = str(error.value)
    assert message.startswith("Expected maps of shape (batch, height, width, channels)")
    assert "'mine'. Received: teacher (None, 5), student (None, 4, 4, 3)." in message


def pooled_network(name, width):
    """As `network`, its features of half the size."""
    layers = keras.layers
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(width, 3, strides=2, padding="same", name="stem")(inputs)
    x = layers.ReLU(name="features")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(4, name="logits")(x), name=name)


def distiller(strategy=None, **options):
    """Both losses, of one map and of two, sizes and channels differing."""
    keras.utils.set_random_seed(3)
    terms = [
        kd.Term(losses.AttentionTransfer(**options), PATHS, PATHS, weight=10.0),
        kd.Term(losses.NeuronSelectivity(), "features", "features", weight=2.0),
        kd.Term(losses.NeuronSelectivity("gaussian"), PATHS, PATHS, weight=0.5),
    ]
    teacher = network("teacher", 5, batch_norm=False)
    model = kd.Distiller(teacher, pooled_network("student", 3), terms, student_loss_weight=0.0)
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model


def weights_of(model):
    return [keras.ops.convert_to_numpy(variable) for variable in model.weights]


@pytest.mark.slow
def test_terms_train_the_student_alone_and_are_saved(tmp_path):
    model = distiller()
    x, y = samples(16)
    maps = [
        [keras.Model(network.input, network.get_layer(path).output)(x) for path in PATHS]
        for network in (model.teacher, model.student)
    ]
    expected = float(keras.ops.mean(losses.attention_transfer(*maps)))
    teacher, student = weights_of(model.teacher), weights_of(model.student)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["attention_transfer"] == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(logs["loss"])
    for before, after in zip(teacher, weights_of(model.teacher)):
        np.testing.assert_array_equal(before, after)
    moved = [np.abs(a - b).max() for a, b in zip(student, weights_of(model.student))]
    # No label loss: the features' weights alone have a gradient.
    assert min(moved[:2]) > 0.0 and max(moved[2:]) == 0.0
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert [term.loss.get_config() for term in loaded.terms] == [
        term.loss.get_config() for term in model.terms
    ]
    again, other = (m.train_on_batch(x, y, return_dict=True) for m in (loaded, model))
    assert again == pytest.approx(other, rel=1e-5)
    model.student.save(tmp_path / "student.keras")
    alone = keras.models.load_model(tmp_path / "student.keras")
    assert len(alone.weights) == 4
    np.testing.assert_allclose(alone.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_two_replicas_take_the_step_of_one(two_replicas):
    import tensorflow as tf

    def moves(strategy):
        with strategy.scope():
            model = distiller(mode="paper")
        before = weights_of(model.student)
        model.fit(*samples(8), batch_size=8, epochs=1, shuffle=False, verbose=0)
        return [after - start for start, after in zip(before, weights_of(model.student))]

    alone = moves(tf.distribute.get_strategy())
    largest = max(np.abs(move).max() for move in alone)
    assert largest > 1e-2
    for one, both in zip(alone, moves(two_replicas), strict=True):
        np.testing.assert_allclose(both, one, rtol=1e-3, atol=1e-4 * largest)
