"""ActivationBoundary (AB): values, gradients, what makes it 0, pre-activation taps, training."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

import keras_distill as kd
from keras_distill import losses
from tests.contract import network
from tests.contract import samples
from tests.losses import numerics
from tests.oracles import activation_boundary as oracles
from tests.oracles import finite_differences

EXAMPLES = 10 if numerics.BACKEND == "tensorflow" else 3
LABELS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SHAPES = [(4, 6), (1, 3, 2, 5), (2, 5, 4), (3, 4, 8, 2)]
OPTIONS = [{}, {"margin": 2.0, "mode": "mean"}, {"margin": 0.5}]


def data(shape, dtype="float64", seed=3):
    rng = np.random.default_rng(seed)
    return [1.5 * rng.standard_normal(shape).astype(dtype) for _ in range(2)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_equations(shape, options):
    teacher, student = data(shape)
    expected = oracles.activation_boundary(teacher, student, **options)
    values = numerics.values(losses.activation_boundary, teacher, student, **options)
    assert values.shape == shape[:1]
    np.testing.assert_allclose(values, expected, rtol=numerics.RTOL)
    single = [x.astype("float32") for x in (teacher, student)]
    values = numerics.values(losses.activation_boundary, *single, **options)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_gradient_is_that_of_the_equations(shape, options):
    teacher, student = data(shape)
    function = losses.activation_boundary
    gradient = numerics.gradient(lambda x: function(teacher, x, **options), student)
    expected = finite_differences.gradient(
        lambda x: oracles.activation_boundary(teacher, x, **options).sum(), student
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)
    other = numerics.gradient(lambda x: function(x, student, **options), teacher)
    np.testing.assert_array_equal(other, 0.0)


def test_by_hand():
    """Each branch, and both ends of the margin: the teacher's exact zero is inactive."""
    teacher = np.array([[-2.0, 0.0, 0.0, 3.0, 3.0, 3.0, -1.0]])
    student = np.array([[0.5, -0.5, -1.0, 0.25, 1.0, -1.0, -4.0]])
    # (0.5 + 1)^2, (-0.5 + 1)^2, 0, (0.25 - 1)^2, 0, (-1 - 1)^2, 0
    assert numerics.values(losses.activation_boundary, teacher, student)[0] == 7.0625
    gradient = numerics.gradient(lambda x: losses.activation_boundary(teacher, x), student)
    np.testing.assert_array_equal(gradient, [[3.0, 1.0, 0.0, -1.5, 0.0, -4.0, 0.0]])
    mean = numerics.values(losses.activation_boundary, teacher, student, mode="mean")
    assert mean[0] == pytest.approx(7.0625 / 7, rel=1e-6)


def test_deeper_taps_count_twice_as_much():
    pairs = [data(shape, seed=i) for i, shape in enumerate([(2, 8, 6, 3), (2, 4, 3, 4), (2, 5)])]
    teacher, student = zip(*pairs)
    values = numerics.values(losses.activation_boundary, teacher, student, 0.7)
    np.testing.assert_allclose(values, oracles.of_taps(teacher, student, 0.7), rtol=numerics.RTOL)
    parts = [oracles.activation_boundary(t, s, 0.7) for t, s in pairs]
    expected = 0.25 * parts[0] + 0.5 * parts[1] + parts[2]
    np.testing.assert_allclose(values, expected, rtol=numerics.RTOL)


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**16), margin=st.floats(0.1, 3), scale=st.floats(1e-3, 1e3))
def test_it_is_zero_only_where_signs_agree_beyond_the_margin(seed, margin, scale):
    """Not at s = t; only the teacher's sign counts."""
    teacher, _ = data((3, 2, 4), seed=seed)
    value = losses.activation_boundary
    agreeing = np.where(teacher > 0, 1.0, -1.0) * (margin + np.abs(teacher)) * 1.001
    np.testing.assert_array_equal(numerics.values(value, teacher, agreeing, margin), 0.0)
    too_near = agreeing.copy()
    too_near[1, 0, 0] = np.sign(agreeing[1, 0, 0]) * margin * 0.9
    values = numerics.values(value, teacher, too_near, margin)
    assert values[1] > 0 and values[0] == values[2] == 0
    inside = 0.9 * margin * teacher / np.abs(teacher).max()
    assert np.all(numerics.values(value, inside, inside, margin) > 0)
    _, student = data((3, 2, 4), seed=seed)
    plain = numerics.values(value, teacher, student, margin)
    np.testing.assert_array_equal(numerics.values(value, scale * teacher, student, margin), plain)


def test_of_the_teacher_a_relu_keeps_all_that_counts():
    teacher, student = data((3, 4, 4, 2))
    plain = numerics.values(losses.activation_boundary, teacher, student)
    behind = numerics.values(losses.activation_boundary, np.maximum(teacher, 0), student)
    np.testing.assert_array_equal(behind, plain)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("kind", ["constant", "duplicates", "one sample"])
def test_finite_everywhere(kind, scale):
    teacher, student = data((1 if kind == "one sample" else 4, 3, 3, 2), "float32")
    if kind == "constant":
        teacher, student = np.ones_like(teacher), -np.ones_like(student)
    elif kind == "duplicates":
        teacher[1], student[1] = teacher[0], student[0]
    teacher, student = scale * teacher, scale * student
    values = numerics.values(losses.activation_boundary, teacher, student)
    gradient = numerics.gradient(lambda x: losses.activation_boundary(teacher, x), student)
    numerics.assert_finite(values, gradient)
    expected = oracles.activation_boundary(teacher, student)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    if kind == "duplicates":
        assert values[0] == values[1]
        np.testing.assert_array_equal(gradient[0], gradient[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    """Squares of 1000 are beyond float16."""
    teacher = keras.ops.cast(np.ones((2, 3), "float32"), dtype)
    student = keras.ops.cast(np.full((2, 3), -1000.0, "float32"), dtype)
    values = losses.activation_boundary(teacher, student)
    assert keras.backend.standardize_dtype(values.dtype) == "float32"
    np.testing.assert_allclose(numerics.to_numpy(values), 3 * 1001.0**2, rtol=1e-6)
    gradient = numerics.gradient(lambda x: losses.activation_boundary(teacher, x), student)
    np.testing.assert_allclose(gradient.astype("float32"), -2002.0, rtol=1e-2)


def test_compiled_by_xla():
    pairs = [data((4, 3, 2), "float32"), data((4, 6), "float32", seed=1)]
    teacher, student = ([keras.ops.convert_to_tensor(x) for x in own] for own in zip(*pairs))
    compiled = numerics.compiled(losses.activation_boundary)(teacher, student)
    plain = numerics.to_numpy(losses.activation_boundary(teacher, student))
    np.testing.assert_allclose(numerics.to_numpy(compiled), plain, rtol=1e-5)


def test_class_reduces_weighs_and_restores():
    teacher, student = data((4, 3, 2), "float32")
    values = oracles.activation_boundary(teacher, student, 2.0, "mean")
    loss = losses.ActivationBoundary(margin=2.0, mode="mean")
    assert float(loss(teacher, student)) == pytest.approx(values.mean(), rel=1e-5)
    weight = np.array([0.0, 1.0, 2.0, 0.5], "float32")
    weighted = loss(teacher, student, sample_weight=weight)
    assert float(weighted) == pytest.approx((weight * values).mean(), rel=1e-5)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(restored) is losses.ActivationBoundary
    assert restored.get_config() == loss.get_config()
    assert float(restored(teacher, student)) == float(loss(teacher, student))
    assert (losses.ActivationBoundary().margin, losses.ActivationBoundary().mode) == (1.0, "paper")


@pytest.mark.parametrize("kwargs", [{"margin": 0}, {"margin": -1.0}, {"mode": "sum"}], ids=str)
def test_bad_arguments_are_named(kwargs):
    (name, value), *_ = kwargs.items()
    with pytest.raises(ValueError, match=rf"Expected `{name}`.*Received: {name}={value!r}"):
        losses.ActivationBoundary(**kwargs)


def test_features_that_do_not_fit_are_named():
    function, ones = losses.activation_boundary, np.ones
    received = r"teacher_features\.shape=\(2, 8, 8, 3\), student_features\.shape=\(2, 4, 4, 3\)"
    with pytest.raises(ValueError, match=rf'same shape. Received: {received}.*connector="auto"'):
        function(ones((2, 8, 8, 3)), ones((2, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"as many features from both.*\[\(2, 3\)\].*\(2, 3\), "):
        function([ones((2, 3))], [ones((2, 3)), ones((2, 3))])
    term = kd.Term(losses.ActivationBoundary(), "norm", "norm")
    with pytest.raises(ValueError, match=r"'activation_boundary'.*teacher.* 5\), student.* 3\)"):
        kd.Distiller(network("teacher", 5), network("student", 3), term)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_the_pre_activation_taps_of_a_backbone():
    """`stage2_pre` of a CIFAR ResNet is what its ReLU reads, negative in places."""
    shape = (8, 8, 3)
    teacher = kd.backbones.resnet(8, 4, shape, width=4, name="teacher")
    student = kd.backbones.resnet(8, 4, shape, width=(2, 3, 4, 5), name="student")
    taps = ["stage1_pre", "stage2_pre", "stage3_pre"]
    features = kd.tap(teacher, [*taps, "stage2"])(samples_of(shape)[0])["features"]
    before, behind = (numerics.to_numpy(features[name]) for name in ("stage2_pre", "stage2"))
    assert before.min() < 0
    np.testing.assert_array_equal(np.maximum(before, 0), behind)
    connectors = [
        kd.regressors.ConvBatchNorm(features[name].shape[-1], name=f"fit_{name}") for name in taps
    ]
    term = kd.Term(losses.ActivationBoundary(), taps, taps, weight=3e-2, connector=connectors)
    distiller = kd.Distiller(teacher, student, term)
    distiller.compile(keras.optimizers.SGD(0.1), LABELS)
    mine = kd.tap(student, taps)(samples_of(shape)[0], training=True)["features"]
    fitted = [connector(mine[name], training=True) for name, connector in zip(taps, connectors)]
    expected = oracles.of_taps(
        *([numerics.to_numpy(x) for x in own] for own in ([features[n] for n in taps], fitted))
    )
    history = distiller.fit(*samples_of(shape), batch_size=16, epochs=10, verbose=0).history
    values = history["activation_boundary"]
    assert values[0] == pytest.approx(expected.mean(), rel=1e-4)
    assert values[-1] < 0.9 * values[0]


def samples_of(shape, count=16):
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, *shape)).astype("float32"), rng.integers(0, 4, count)


def distiller():
    """One term on the values before the ReLU."""
    keras.utils.set_random_seed(5)
    connector = kd.regressors.ConvBatchNorm(5, name="fit")
    term = kd.Term(losses.ActivationBoundary(), "norm", "norm", weight=0.1, connector=connector)
    teacher, student = network("teacher", 5), network("student", 3)
    model = kd.Distiller(teacher, student, term)
    model.compile(keras.optimizers.SGD(0.1), LABELS)
    return model


def test_a_term_trains_the_student_and_its_connector_and_is_saved(tmp_path):
    model = distiller()
    x, y = samples(8)
    names = [v.path for v in model.trainable_variables]
    before = [numerics.to_numpy(v) for v in model.trainable_variables]
    frozen = [numerics.to_numpy(v) for v in model.teacher.variables]
    model.fit(x, y, batch_size=8, epochs=1, verbose=0)
    moved = {
        name
        for name, old, v in zip(names, before, model.trainable_variables)
        if not np.array_equal(old, numerics.to_numpy(v))
    }
    assert moved == set(names)
    assert [name for name in names if "fit/conv" in name] and model.teacher.name not in str(names)
    for old, v in zip(frozen, model.teacher.variables):
        np.testing.assert_array_equal(numerics.to_numpy(v), old)
    model.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    connector, own = loaded.terms[0].connectors[0], model.terms[0].connectors[0]
    assert (
        type(connector) is kd.regressors.ConvBatchNorm and connector.get_config()["channels"] == 5
    )
    for a, b in zip(connector.weights, own.weights, strict=True):
        np.testing.assert_array_equal(numerics.to_numpy(a), numerics.to_numpy(b))
    model.student.save(tmp_path / "s.keras")
    alone = keras.saving.load_model(tmp_path / "s.keras")
    assert len(alone.weights) == len(network("student", 3).weights)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_two_replicas_take_the_step_of_one(two_replicas):
    import tensorflow as tf

    def weights_after(strategy):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            term = kd.Term(losses.ActivationBoundary(), "stem", "stem", weight=0.1)
            teacher, student = (network(n, 3, batch_norm=False) for n in ("teacher", "student"))
            model = kd.Distiller(teacher, student, term)
            model.compile(keras.optimizers.SGD(0.1), LABELS)
        before = [v.numpy() for v in model.student.trainable_variables]
        model.fit(*samples(8), batch_size=8, epochs=1, shuffle=False, verbose=0)
        return before, [v.numpy() for v in model.student.trainable_variables]

    before, alone = weights_after(tf.distribute.get_strategy())
    _, together = weights_after(two_replicas)
    assert np.abs(alone[0] - before[0]).max() > 1e-3
    for one, both in zip(alone, together):
        np.testing.assert_allclose(both, one, rtol=1e-4, atol=1e-6)
