"""Regressors: the papers' kernels, starts and constraints, against numpy; saving, errors."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import regressors
from tests.contract import network
from tests.contract import samples

LABELS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def convolved(x, kernel, strides=(1, 1), pad=(0, 0)):
    """A convolution, place by place: kernel (h, w, in, out)."""
    x = np.pad(x, [(0, 0), (pad[0],) * 2, (pad[1],) * 2, (0, 0)])
    sizes = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:3], kernel.shape, strides)]
    out = np.zeros((len(x), *sizes, kernel.shape[-1]))
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            top, left = i * strides[0], j * strides[1]
            patch = x[:, top : top + kernel.shape[0], left : left + kernel.shape[1]]
            out[:, i, j] = np.einsum("bhwc,hwco->bo", patch, kernel)
    return out


def spread(x, kernel, strides, pad):
    """A transposed convolution: each place adds its kernel (h, w, out, in) times its value."""
    sizes = [(n - 1) * s + k for n, k, s in zip(x.shape[1:3], kernel.shape, strides)]
    out = np.zeros((len(x), *sizes, kernel.shape[2]))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            top, left = i * strides[0], j * strides[1]
            part = np.einsum("bc,hwoc->bhwo", x[:, i, j], kernel)
            out[:, top : top + kernel.shape[0], left : left + kernel.shape[1]] += part
    return out[:, pad[0] : sizes[0] - pad[0], pad[1] : sizes[1] - pad[1]]


def normalized(x):
    """Batch normalization as it starts, in training mode."""
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5)


@pytest.mark.parametrize(
    "student, target, kernel",
    [
        ((8, 8, 3), (8, 8, 5), (1, 1)),
        ((8, 8, 3), (5, 5, 5), (4, 4)),
        ((8, 5, 3), (4, 5, 2), (5, 1)),
        ((4, 6, 2), (1, 1, 7), (4, 6)),
    ],
)
@pytest.mark.parametrize("activation", ["relu", None])
def test_hint_regressor_is_the_papers_convolution(student, target, kernel, activation):
    layer = regressors.HintRegressor(target, activation)
    x = random(3, *student)
    outputs = to_numpy(layer(x))
    assert outputs.shape == (3, *target) == layer.compute_output_shape(x.shape)
    weights, bias = (to_numpy(w) for w in layer.weights)
    assert weights.shape == (*kernel, student[-1], target[-1])
    assert np.abs(weights).max() <= 0.05 and np.abs(weights).max() > 0.04
    np.testing.assert_array_equal(bias, 0.0)
    expected = convolved(x, weights)
    expected = np.maximum(expected, 0) if activation else expected
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_norm", [0.9, None])
def test_hint_regressor_holds_each_channels_norm_in_training(max_norm):
    teacher, student = network("teacher", 5), network("student", 3)
    target = teacher.get_layer("stem").output.shape[1:]
    fit = regressors.HintRegressor(target, activation=None, max_norm=max_norm)
    term = kd.Term(kd.losses.Hint(), "stem", "stem", connector=fit)
    model = kd.Distiller(teacher, student, term)
    model.compile(keras.optimizers.SGD(10.0), LABELS)
    model.fit(*samples(8), batch_size=8, verbose=0)
    norms = np.sqrt(np.sum(to_numpy(fit.conv.kernel) ** 2, axis=(0, 1, 2)))
    assert norms.max() == pytest.approx(0.9, rel=1e-3) if max_norm else norms.max() > 1.0


DOWN, UP = {"strides": (2, 2), "pad": (1, 1)}, {"strides": (2, 2), "pad": (1, 1)}


@pytest.mark.parametrize(
    "student, target, kernel, options",
    [
        ((8, 8, 3), (4, 4, 5), (3, 3), DOWN),
        ((6, 4, 3), (3, 2, 2), (3, 3), DOWN),
        ((8, 7, 3), (4, 5, 2), (3, 3), {"strides": (2, 1), "pad": (1, 0)}),
        ((8, 8, 3), (5, 6, 2), (4, 3), {}),
        ((4, 4, 3), (4, 4, 2), (1, 1), {}),
        ((4, 4, 3), (8, 8, 5), (4, 4), UP),
        ((3, 5, 2), (6, 5, 4), (4, 1), {"strides": (2, 1), "pad": (1, 0)}),
    ],
)
@pytest.mark.parametrize("activation", ["relu", None])
def test_conv_regressor_chooses_by_the_sizes(student, target, kernel, options, activation):
    layer = regressors.ConvRegressor(target, activation)
    x = random(3, *student)
    outputs = to_numpy(layer(x, training=True))
    assert outputs.shape == (3, *target) == layer.compute_output_shape(x.shape)
    weights = to_numpy(layer.conv.kernel)
    assert weights.shape[:2] == kernel and not layer.conv.use_bias
    grows = target[0] > student[0]
    expected = spread(x, weights, **options) if grows else convolved(x, weights, **options)
    expected = normalized(expected)
    expected = np.maximum(expected, 0) if activation else expected
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4)
    # PyTorch's start: uniform within 1 / sqrt(fan_in).
    fan_in = np.prod(kernel) * weights.shape[2]
    assert np.abs(weights).max() <= 1 / np.sqrt(fan_in)
    assert np.abs(weights).max() > 0.6 / np.sqrt(fan_in)


@pytest.mark.parametrize("shape", [(6, 5, 3), (7, 3), (3,)], ids=["map", "tokens", "vector"])
def test_conv_batch_norm_is_the_papers_connector(shape):
    layer = regressors.ConvBatchNorm(200)
    x = random(4, *shape)
    outputs = to_numpy(layer(x, training=True))
    assert outputs.shape == (4, *shape[:-1], 200) == layer.compute_output_shape(x.shape)
    weights = to_numpy(layer.conv.kernel)
    assert len(layer.trainable_weights) == 3  # no bias
    assert weights.std() == pytest.approx(np.sqrt(2 / 200), rel=0.15)
    np.testing.assert_allclose(outputs, normalized(x @ weights), rtol=1e-2, atol=1e-3)
    # In inference the averages: after one batch, a tenth of it.
    moving = to_numpy(layer.norm.moving_mean)
    axes = tuple(range(x.ndim - 1))
    np.testing.assert_allclose(moving, 0.1 * (x @ weights).mean(axes), rtol=1e-3, atol=1e-5)


LAYERS = [
    (regressors.HintRegressor, {"target_shape": [3, 2, 4], "activation": "tanh", "max_norm": 0.5}),
    (regressors.ConvRegressor, {"target_shape": [3, 2, 4], "activation": "relu"}),
    (regressors.ConvBatchNorm, {"channels": 4}),
]


@pytest.mark.parametrize("cls, arguments", LAYERS, ids=lambda value: getattr(value, "__name__", ""))
def test_saved_alone_and_copied_from_its_config(cls, arguments, tmp_path):
    layer = cls(**arguments, name="fit")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    config = copy.get_config()
    assert config == layer.get_config() and {k: config[k] for k in arguments} == arguments
    model = keras.Sequential([keras.Input((6, 5, 3)), layer])
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    x = random(2, 6, 5, 3)
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(model(x)))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("cls, arguments", LAYERS, ids=lambda value: getattr(value, "__name__", ""))
def test_they_stay_in_float32(cls, arguments, policy):
    keras.config.set_dtype_policy(policy)
    layer = cls(**arguments)
    half = keras.ops.cast(random(2, 6, 5, 3), policy.removeprefix("mixed_"))
    outputs = layer(half, training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    assert {keras.backend.standardize_dtype(w.dtype) for w in layer.weights} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("cls, arguments", LAYERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrapper_trains_and_saves_them_and_the_student_leaves_without(cls, arguments, tmp_path):
    teacher, student = network("teacher", 5), network("student", 3)
    if "target_shape" in arguments:
        arguments = {**arguments, "target_shape": teacher.get_layer("features").output.shape[1:]}
    else:
        arguments = {"channels": 5}
    fit = cls(**arguments, name="fit")
    term = kd.Term(kd.losses.Hint(), "features", "features", connector=fit)
    model = kd.Distiller(teacher, student, term)
    model.compile("sgd", LABELS)
    assert fit.built
    before = [to_numpy(v) for v in fit.trainable_variables]
    model.fit(*samples(8), batch_size=8, verbose=0)
    trained = {id(v) for v in model.trainable_variables}
    assert trained == {id(v) for v in student.trainable_variables + fit.trainable_variables}
    for old, variable in zip(before, fit.trainable_variables, strict=True):
        assert np.any(old != to_numpy(variable))
    model.save(tmp_path / "w.keras")
    loaded = keras.saving.load_model(tmp_path / "w.keras").terms[0].connectors[0]
    assert type(loaded) is cls
    for old, new in zip(fit.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(old), to_numpy(new))
    student.save(tmp_path / "s.keras")
    alone = keras.saving.load_model(tmp_path / "s.keras")
    assert [v.path for v in alone.weights] == [v.path for v in network("student", 3).weights]


BAD_MAPS = [
    (regressors.HintRegressor, (None, 4, 8, 3), "as large as the teacher's"),
    (regressors.HintRegressor, (None, 12), "a student's map of known"),
    (regressors.HintRegressor, (None, None, 8, 3), "a student's map of known"),
    (regressors.ConvRegressor, (None, 4, 4, 3), "half the teacher's"),
    (regressors.ConvRegressor, (None, 3, 9, 3), "smaller one way and larger the other"),
]


@pytest.mark.parametrize("cls, shape, expected", BAD_MAPS)
def test_maps_that_they_cannot_bring_there_are_named(cls, shape, expected):
    with pytest.raises(ValueError, match=expected) as error:
        cls((6, 6, 5)).build(shape)
    received = f"for {cls.__name__}. Received: input_shape={shape}, target_shape=(6, 6, 5)."
    assert received in str(error.value)


@pytest.mark.parametrize(
    "make, received",
    [
        (lambda: regressors.HintRegressor((None, 6, 6, 5)), r"target_shape=\(None, 6, 6, 5\)"),
        (lambda: regressors.ConvRegressor((6, 0, 5)), "target_shape=0"),
        (lambda: regressors.HintRegressor((6, 6, 5), max_norm=0), "max_norm=0"),
        (lambda: regressors.ConvBatchNorm(1.5), "channels=1.5"),
    ],
)
def test_bad_arguments_are_named(make, received):
    with pytest.raises(ValueError, match=f"Expected `.*Received: {received}"):
        make()


@pytest.mark.slow
@pytest.mark.tensorflow
def test_two_replicas_train_a_regressor_as_one_device(two_replicas):
    """The constraint too, which holds after each step."""
    import tensorflow as tf

    def weights_after(strategy):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            teacher, student = (
                network(name, width, batch_norm=False)
                for name, width in (("teacher", 5), ("student", 3))
            )
            target = teacher.get_layer("stem").output.shape[1:]
            fit = regressors.HintRegressor(target, activation=None, max_norm=0.05)
            term = kd.Term(kd.losses.Hint(), "stem", "stem", connector=fit)
            model = kd.Distiller(teacher, student, term)
            model.compile(keras.optimizers.SGD(0.5), LABELS)
        model.fit(*samples(16), batch_size=8, epochs=1, shuffle=False, verbose=0)
        return [to_numpy(v) for v in model.trainable_variables], to_numpy(fit.conv.kernel)

    alone, kernel = weights_after(tf.distribute.get_strategy())
    together, _ = weights_after(two_replicas)
    norms = np.sqrt(np.sum(kernel**2, axis=(0, 1, 2)))
    assert norms.max() == pytest.approx(0.05, rel=1e-3)
    for one, both in zip(alone, together, strict=True):
        np.testing.assert_allclose(both, one, rtol=1e-4, atol=1e-6)
