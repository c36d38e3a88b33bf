"""The class twins: Keras's weights, masks and reductions, one-unit heads, configs, errors."""

import copy
import inspect

import keras
import numpy as np
import pytest

from keras_distill import losses
from tests.losses import numerics
from tests.losses.response_cases import CASES
from tests.losses.response_cases import data
from tests.losses.response_cases import each
from tests.oracles import response as oracles

DISTINCT = list({case.cls: case for case in CASES}.values())
# The losses over classes, which take one unit as a pair.
PAIRED = [
    case
    for case in CASES
    if case.name != "logit_mse"
    and case.kwargs.get("activation") != "sigmoid"
    and case.least_classes == 2
]


@pytest.mark.parametrize("case", each())
def test_reductions_are_those_of_keras(case):
    teacher, student, labels = data((4, 3, 5), dtype="float32")
    values = numerics.to_numpy(case.call(teacher, student, labels))
    targets = case.targets(teacher, labels)
    assert float(case.loss()(targets, student)) == pytest.approx(values.mean(), rel=1e-5)
    total = case.loss(reduction="sum")(targets, student)
    assert float(total) == pytest.approx(values.sum(), rel=1e-5)
    alone = case.loss(reduction=None)(targets, student)
    np.testing.assert_allclose(alone, values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", each(DISTINCT))
def test_sample_weight_weighs_predictions(case):
    teacher, student, labels = data((4, 5), dtype="float32")
    values = numerics.to_numpy(case.call(teacher, student, labels))
    weight = np.array([0.0, 1.0, 0.5, 2.0], dtype="float32")
    result = case.loss()(case.targets(teacher, labels), student, sample_weight=weight)
    assert float(result) == pytest.approx((weight * values).mean(), rel=1e-5)


@pytest.mark.parametrize("case", each(DISTINCT))
def test_keras_mask_leaves_tokens_out(case):
    teacher, student, labels = data((2, 3, 5), dtype="float32")
    values = numerics.to_numpy(case.call(teacher, student, labels))
    mask = np.array([[True, True, False], [True, False, False]])
    student = keras.ops.convert_to_tensor(student)
    keras.src.backend.set_keras_mask(student, keras.ops.convert_to_tensor(mask))
    result = case.loss()(case.targets(teacher, labels), student)
    assert float(result) == pytest.approx(values[mask].mean(), rel=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", each(DISTINCT))
def test_called_with_half_precision_it_computes_in_float32(case, dtype):
    teacher, student, labels = data((4, 5))
    teacher, student = (
        keras.ops.cast(keras.ops.convert_to_tensor(x.astype("float32")), dtype)
        for x in (teacher, student)
    )
    result = case.loss()(case.targets(teacher, labels), student)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    expected = case.call(*(keras.ops.cast(x, "float32") for x in (teacher, student)), labels)
    assert float(result) == pytest.approx(float(keras.ops.mean(expected)), rel=1e-6)


@pytest.mark.parametrize("case", each())
def test_config_round_trip(case):
    loss = case.loss(name="my_loss", reduction="sum")
    config = loss.get_config()
    arguments = set(inspect.signature(case.cls.__init__).parameters) - {"self", "kwargs"}
    assert arguments | {"name", "reduction"} == set(config)
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss), custom_objects={}
    )
    assert type(restored) is case.cls
    assert restored.get_config() == config
    teacher, student, labels = data((4, 5), dtype="float32")
    targets = case.targets(teacher, labels)
    assert float(restored(targets, student)) == float(loss(targets, student))


@pytest.mark.parametrize("case", each(DISTINCT))
def test_defaults_of_twins_agree(case):
    """The class's arguments are the function's, with the same defaults, in the same order."""
    of_class = list(inspect.signature(case.cls.__init__).parameters.values())[1:-1]
    of_function = list(inspect.signature(getattr(losses, case.name)).parameters.values())
    of_function = of_function[3 if case.needs_labels else 2 :]
    assert [(p.name, p.default) for p in of_class] == [(p.name, p.default) for p in of_function]


@pytest.mark.parametrize("case", each(DISTINCT))
def test_what_a_loss_tells_the_wrapper(case):
    loss = case.loss()
    assert loss.on_logits
    assert loss.name == case.name
    assert loss.needs_labels == (case.name in ("decoupled_kd", "normalized_kd"))
    assert not loss.needs_ids
    assert isinstance(loss, keras.losses.Loss)


def test_every_public_response_loss_is_among_the_cases():
    public = [getattr(losses, name) for name in losses.__all__]
    classes = {loss for loss in public if inspect.isclass(loss) and loss.on_logits}
    assert classes == {case.cls for case in CASES}
    assert {case.name for case in CASES} <= set(losses.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("case", each([c for c in DISTINCT if hasattr(c.loss(), "temperature")]))
def test_temperature_is_read_at_each_call(case):
    """A wrapper replaces it, on a copy, by a variable that a schedule moves."""
    teacher, student, labels = data((4, 5), dtype="float32")
    targets = case.targets(teacher, labels)
    original = case.loss()
    before = float(original(targets, student))
    scheduled = copy.copy(original)
    scheduled.temperature = keras.Variable(2.0, trainable=False)
    compiled = numerics.compiled(lambda: scheduled(targets, student))
    for temperature in (2.0, 3.5):
        scheduled.temperature.assign(temperature)
        expected = case.call(teacher, student, labels, temperature=temperature)
        expected = float(keras.ops.mean(expected))
        assert float(scheduled(targets, student)) == pytest.approx(expected, rel=1e-5)
        if numerics.BACKEND == "tensorflow":
            assert float(compiled()) == pytest.approx(expected, rel=1e-5)
    assert float(original(targets, student)) == before


@pytest.mark.parametrize("case", each(PAIRED))
def test_one_unit_is_taken_as_the_sigmoid_pair(case):
    teacher, student, _ = data((4, 1), dtype="float32")
    labels = np.array([0, 1, 1, 0])
    pairs = [np.concatenate([np.zeros_like(x), x], axis=-1) for x in (teacher, student)]
    expected = case.expected(*(x.astype("float64") for x in pairs), labels)
    for shape in ((4,), (4, 1)):
        targets = case.targets(teacher, labels.reshape(shape))
        values = case.loss(reduction=None)(targets, student)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)


def test_one_unit_soft_targets_are_the_binary_divergence():
    """By hand: p log(p / q) + (1 - p) log((1 - p) / (1 - q)) at T = 2, times 4."""
    teacher, student = np.array([[2.0 * np.log(3.0)]]), np.array([[0.0]])
    expected = 4.0 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    for activation in ("softmax", "sigmoid"):
        loss = losses.SoftTargets(temperature=2.0, activation=activation)
        assert float(loss(teacher, student)) == pytest.approx(expected, rel=1e-5)
    function = losses.soft_targets(teacher, student, 2.0, activation="sigmoid")
    assert float(function[0]) == pytest.approx(expected, rel=1e-5)


def test_labels_may_be_integers_floats_columns_or_one_hot():
    teacher, student, labels = data((4, 3, 5), dtype="float32")
    one_hot = np.eye(5)[labels]
    smooth = 0.9 * one_hot + 0.02
    for loss in (losses.DecoupledKD(), losses.NormalizedKD()):
        expected = float(loss((teacher, labels), student))
        for form in (
            labels.astype("int32"),
            labels.astype("float32"),
            labels[..., None],
            one_hot.astype("float32"),
            one_hot.astype("int64"),
            smooth.astype("float32"),
        ):
            assert float(loss((teacher, form), student)) == expected


def test_rows_without_a_label_count_zero():
    """Partly labelled data: a label of -1."""
    teacher, student, labels = data((4, 5), dtype="float32")
    labels[1] = -1
    for name in ("decoupled_kd", "normalized_kd"):
        values = numerics.to_numpy(getattr(losses, name)(teacher, student, labels))
        gradient = numerics.gradient(
            lambda x, name=name: getattr(losses, name)(teacher, x, labels), student
        )
        assert values[1] == 0.0 and np.all(values[[0, 2, 3]] > 0.0)
        np.testing.assert_array_equal(gradient[1], 0.0)
        assert np.all(np.abs(gradient[[0, 2, 3]]).max(axis=-1) > 0.0)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("case", each([case for case in DISTINCT if case.by_row]))
def test_two_replicas_take_the_step_of_one(case, two_replicas):
    """A called loss: the gradients of the replicas sum to that of one device."""
    import tensorflow as tf

    teacher, student, labels = data((6, 5), dtype="float32")
    variable_value = np.ones((5,), dtype="float32")

    def gradient_of(strategy):
        with strategy.scope():
            variable = tf.Variable(variable_value)
        loss = case.loss()
        batches = iter(
            strategy.experimental_distribute_dataset(
                tf.data.Dataset.from_tensor_slices((teacher, student, labels)).batch(6)
            )
        )

        def step(batch):
            teacher, student, labels = batch
            with tf.GradientTape() as tape:
                value = loss(case.targets(teacher, labels), student * variable)
            return tape.gradient(value, variable)

        per_replica = tf.function(lambda batch: strategy.run(step, (batch,)))(next(batches))
        return strategy.reduce("SUM", per_replica, axis=None).numpy()

    alone = gradient_of(tf.distribute.OneDeviceStrategy("CPU:0"))
    two = two_replicas
    assert two.num_replicas_in_sync == 2
    np.testing.assert_allclose(gradient_of(two), alone, rtol=1e-5, atol=1e-6)
    assert np.abs(alone).max() > 1e-3


BAD_ARGUMENTS = [
    (losses.SoftTargets, {"temperature": 0}, "temperature=0"),
    (losses.SoftTargets, {"temperature": -1.0}, "temperature=-1.0"),
    (losses.SoftTargets, {"temperature": float("nan")}, "temperature=nan"),
    (losses.SoftTargets, {"temperature": "4"}, "temperature='4'"),
    (losses.SoftTargets, {"activation": "tanh"}, "'softmax', 'sigmoid'"),
    (losses.SoftTargets, {"activation": "sigmoid", "standardize": True}, "standardize=True"),
    (losses.SoftTargets, {"standardize": 1}, "standardize=1"),
    (losses.HardTargets, {"smoothing": 1.0}, "smoothing=1.0"),
    (losses.HardTargets, {"smoothing": "0.1"}, "smoothing='0.1'"),
    (losses.LogitMSE, {"center": "yes"}, "center='yes'"),
    (losses.DecoupledKD, {"alpha": -1}, "alpha=-1"),
    (losses.DecoupledKD, {"beta": float("inf")}, "beta=inf"),
    (losses.DecoupledKD, {"temperature": 0.0}, "temperature=0.0"),
    (losses.NormalizedKD, {"gamma": -0.5}, "gamma=-0.5"),
    (losses.NormalizedKD, {"temperature": 0.0}, "temperature=0.0"),
    (losses.DIST, {"beta": -1}, "beta=-1"),
    (losses.DIST, {"gamma": None}, "gamma=None"),
    (losses.DIST, {"temperature": True}, "temperature=True"),
    (losses.JensenShannon, {"temperature": -2}, "temperature=-2"),
    (losses.MultiLevelKD, {"temperatures": ()}, r"temperatures=\(\)"),
    (losses.MultiLevelKD, {"temperatures": 4.0}, "temperatures=4.0"),
    (losses.MultiLevelKD, {"temperatures": (1.0, -1.0)}, "temperatures=-1.0"),
    (losses.AlphaDivergence, {"alpha": float("nan")}, "alpha=nan"),
    (losses.AlphaDivergence, {"alpha": None}, "alpha=None"),
    (losses.AdaptiveAlphaDivergence, {"alpha_min": 1.0}, "alpha_min=1.0"),
    (losses.AdaptiveAlphaDivergence, {"clip": 0.5}, "clip=0.5"),
    (losses.AdaptiveAlphaDivergence, {"clip": None}, "clip=None"),
    (losses.Hint, {"mode": "sum"}, "mode='sum'"),
]


@pytest.mark.parametrize("cls, kwargs, received", BAD_ARGUMENTS, ids=str)
def test_bad_arguments_are_named_at_construction(cls, kwargs, received):
    with pytest.raises((ValueError, TypeError), match=received) as error:
        cls(**kwargs)
    assert str(error.value).startswith("Expected `")


@pytest.mark.parametrize("case", each())
def test_bad_shapes_are_named(case):
    def call(teacher_shape, student_shape, labels_shape=(4,)):
        labels = np.zeros(labels_shape, dtype="int32")
        case.loss()(case.targets(np.ones(teacher_shape), labels), np.ones(student_shape))

    both = r"teacher_logits\.shape=\(4, 5\), student_logits\.shape=\(4, 3\)"
    with pytest.raises(ValueError, match=f"same classes. Received: {both}.*`class_map`"):
        call((4, 5), (4, 3))
    both = r"teacher_logits\.shape=\(4, 1\), student_logits\.shape=\(4, 3\)"
    with pytest.raises(ValueError, match=f"same classes. Received: {both}"):
        call((4, 1), (4, 3))
    with pytest.raises(ValueError, match=r"same shape.*\(4, 5\).*\(4, 2, 5\)"):
        call((4, 5), (4, 2, 5))
    with pytest.raises(ValueError, match=r"same shape.*\(4, 5\).*\(8, 5\)"):
        call((4, 5), (8, 5))
    with pytest.raises(ValueError, match=r"\(batch, ..., classes\).*\(4,\).*\(batch, 1\)"):
        call((4,), (4,))
    if case.needs_labels:
        for shape in ((8,), (4, 3), (4, 5, 1)):
            with pytest.raises(ValueError, match=r"`labels`.*Received: labels\.shape=\("):
                call((4, 5), (4, 5), shape)


@pytest.mark.parametrize("case", each())
def test_functions_refuse_one_unit_where_they_would_be_silently_zero(case):
    teacher, student, _ = data((4, 1))
    labels = np.zeros((4,), dtype="int32")
    sensible = case.kwargs.get("activation") == "sigmoid" or str(case) == "logit_mse()"
    if sensible:
        assert np.all(numerics.to_numpy(case.call(teacher, student, labels)) > 0.0)
    else:
        least = case.least_classes
        with pytest.raises(ValueError, match=rf"at least {least} classes.*\(4, 1\).*[a-z`]"):
            case.call(teacher, student, labels)


def test_settings_that_leave_one_unit_nothing_are_errors_of_the_class_too():
    one, two = np.ones((4, 1)), np.ones((4, 2))
    with pytest.raises(ValueError, match="at least 3 classes.*standardize=False"):
        losses.SoftTargets(standardize=True)(one, one)
    with pytest.raises(ValueError, match="at least 3 classes.*standardize=False"):
        losses.SoftTargets(standardize=True)(two, two)
    with pytest.raises(ValueError, match="at least 2 classes.*center=False"):
        losses.LogitMSE(center=True)(one, one)


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), "4", None, True])
def test_functions_check_temperatures_that_are_numbers(temperature):
    teacher, student, _ = data((4, 5))
    for function in (losses.soft_targets, losses.jensen_shannon, losses.dist):
        with pytest.raises(ValueError, match="positive finite number. Received: temperature="):
            function(teacher, student, temperature)


def test_float64_is_kept_where_it_is_asked():
    teacher, student, _ = data((4, 5))
    with numerics.float64():
        value = losses.SoftTargets(dtype="float64")(teacher, student)
    assert keras.backend.standardize_dtype(value.dtype) == "float64"
    expected = oracles.soft_targets(teacher, student).mean()
    assert float(value) == pytest.approx(expected, rel=numerics.RTOL)
