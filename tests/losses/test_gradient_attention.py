"""Gradient attention: the slopes of both networks, their norm, and the gradient through them."""

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
from tests.oracles import finite_differences
from tests.oracles import gradient_attention as oracles

SHAPES = [(4, 3, 5, 2), (1, 6), (2, 4, 3)]
OPTIONS = [{}, {"beta": 3.0}, {"symmetry_weight": 0.5}, {"beta": 0.2, "symmetry_weight": 2.0}]


def slopes(shape, dtype="float64", count=3):
    rng = np.random.default_rng(3)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(count)]


def call(teacher, student, mirrored, **options):
    if options.get("symmetry_weight"):
        student = student, mirrored
    return losses.gradient_attention(teacher, student, **options)


# The function.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_the_equations(shape, options):
    teacher, student, mirrored = slopes(shape)
    if options.get("symmetry_weight") and len(shape) != 4:
        with pytest.raises(ValueError, match=rf"\(batch, height, .*inputs.shape=\({shape[0]}, "):
            call(teacher, student, mirrored, **options)
        return
    values = numerics.values(call, teacher, student, mirrored, **options)
    expected = oracles.gradient_attention(teacher, student, mirrored, **options)
    assert values.shape == shape[:1]
    np.testing.assert_allclose(values, expected, rtol=max(numerics.RTOL, 1e-7))
    gradient = numerics.gradient(lambda x: call(teacher, x, mirrored, **options), student)
    expected = finite_differences.gradient(
        lambda x: oracles.gradient_attention(teacher, x, mirrored, **options).sum(), student
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_the_teacher_is_a_constant():
    teacher, student, _ = slopes((2, 5))
    gradient = numerics.gradient(lambda x: losses.gradient_attention(x, student), teacher)
    np.testing.assert_array_equal(gradient, 0.0)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), exponent=st.floats(-3, 3))
def test_equal_slopes_give_zero_and_the_value_scales(seed, exponent):
    rng = np.random.default_rng(seed)
    teacher, student = rng.standard_normal((2, 3, 4, 4, 2))
    scale = 10.0**exponent
    np.testing.assert_array_equal(losses.gradient_attention(scale * teacher, scale * teacher), 0.0)
    slope = numerics.gradient(lambda x: losses.gradient_attention(teacher, x), teacher)
    np.testing.assert_array_equal(slope, 0.0)
    values = [
        numerics.values(losses.gradient_attention, k * teacher, k * student) for k in (1.0, scale)
    ]
    np.testing.assert_allclose(values[1], scale * values[0], rtol=1e-5)
    # Symmetric slopes have no second term.
    even = student + student[:, :, ::-1]
    both = call(teacher, even, even, symmetry_weight=2.0)
    np.testing.assert_allclose(both, losses.gradient_attention(teacher, even), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_squared_in_float32(dtype):
    teacher = keras.ops.cast(np.zeros((2, 4), "float32"), dtype)
    student = keras.ops.cast(np.full((2, 4), 1000.0, "float32"), dtype)
    values = losses.gradient_attention(teacher, student)
    assert keras.backend.standardize_dtype(values.dtype) == "float32"
    np.testing.assert_allclose(numerics.to_numpy(values), 1000.0)


def test_under_xla():
    teacher, student, mirrored = slopes((3, 4, 5, 2), "float32")

    def value(teacher, student, mirrored):
        return call(teacher, student, mirrored, symmetry_weight=1.0)

    arguments = [keras.ops.convert_to_tensor(x) for x in (teacher, student, mirrored)]
    values = numerics.to_numpy(numerics.compiled(value)(*arguments))
    expected = oracles.gradient_attention(teacher, student, mirrored, symmetry_weight=1.0)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_errors_name_arguments_and_shapes():
    with pytest.raises(ValueError, match="`beta` to be .* Received: beta=-1"):
        losses.GradientAttention(beta=-1)
    with pytest.raises(ValueError, match="`symmetry_weight` to be .*symmetry_weight='yes'"):
        losses.GradientAttention(symmetry_weight="yes")
    received = r"teacher_gradients\.shape=\(2, 3\), student_gradients\.shape=\(2, 4\)"
    with pytest.raises(ValueError, match=f"gradients of the same shape. Received: {received}"):
        losses.gradient_attention(np.ones((2, 3)), np.ones((2, 4)))


def test_the_class_reduces_weighs_and_restores():
    teacher, student, mirrored = slopes((3, 4, 5, 2), "float32")
    loss = losses.GradientAttention(beta=2.0, symmetry_weight=0.5)
    values = oracles.gradient_attention(teacher, student, mirrored, 2.0, 0.5)
    assert float(loss(teacher, (student, mirrored))) == pytest.approx(values.mean(), rel=1e-5)
    weight = np.array([0.0, 1.0, 0.5], "float32")
    weighted = loss(teacher, (student, mirrored), sample_weight=weight)
    assert float(weighted) == pytest.approx((weight * values).mean(), rel=1e-5)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(restored) is losses.GradientAttention
    assert restored.get_config() == loss.get_config()
    assert loss.on_inputs and not loss.on_logits and not loss.needs_ids


# The slopes of networks, on TensorFlow.


def small(hidden, seed, images=(3, 4, 1), classes=3):
    """A network of one hidden layer, and its weights."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(images)
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(hidden, activation="tanh", bias_initializer="normal")(x)
    outputs = keras.layers.Dense(classes, kernel_initializer="normal")(x)
    return keras.Model(inputs, outputs)


def compared(loss, teacher, student, images, labels):
    """The values of a batch by the loss's own way, and the tape's target."""
    teacher_, student_ = (lambda x, m=m: m(x, training=False) for m in (teacher, student))
    images = keras.ops.convert_to_tensor(images)
    return loss.call(*loss.compared(teacher_, student_, (images, images), labels))


def labelled(count=3):
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 3, 4, 1)).astype("float32"), np.array([2, 0, 1])[:count]


@pytest.mark.tensorflow
@pytest.mark.parametrize("symmetry_weight", [0.0, 0.7])
def test_values_and_the_students_gradient_are_those_of_the_chain_rule(symmetry_weight):
    """Double back-propagation against finite differences of the analytic slopes."""
    import tensorflow as tf

    teacher, student = small(5, 1), small(4, 2)
    images, labels = labelled()
    loss = losses.GradientAttention(beta=2.0, symmetry_weight=symmetry_weight)
    with tf.GradientTape() as tape:
        values = compared(loss, teacher, student, images, labels)
        total = tf.reduce_sum(values)
    weights = teacher.get_weights(), student.get_weights()
    expected = oracles.loss(*weights, images, labels, 2.0, symmetry_weight)
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    variables = [v.value for v in student.trainable_variables]
    gradients = tape.gradient(total, variables, unconnected_gradients="zero")
    for i, gradient in enumerate(gradients):

        def value(weight, i=i):
            own = [*weights[1][:i], weight, *weights[1][i + 1 :]]
            return oracles.loss(weights[0], own, images, labels, 2.0, symmetry_weight).sum()

        slope = finite_differences.gradient(value, weights[1][i])
        np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-4 * np.abs(slope).max())
        assert np.abs(slope).max() > 1e-4


@pytest.mark.tensorflow
def test_one_sample_does_not_see_another_and_none_without_a_label_counts():
    teacher, student = small(5, 1), small(4, 2)
    images, labels = labelled()
    loss = losses.GradientAttention()
    values = compared(loss, teacher, student, images, labels)
    alone = compared(loss, teacher, student, images[:1], labels[:1])
    np.testing.assert_allclose(alone, values[:1], rtol=1e-5)
    labels = np.array([2, -1, 1])
    some = numerics.to_numpy(compared(loss, teacher, student, images, labels))
    assert some[1] == 0.0
    np.testing.assert_allclose(some[[0, 2]], numerics.to_numpy(values)[[0, 2]], rtol=1e-6)


@pytest.mark.tensorflow
def test_one_unit_is_the_sigmoid_pair():
    """By hand: z = w x, so that d CE / dx = (sigmoid(z) - y) w."""
    import tensorflow as tf

    def line(w):
        return lambda x: tf.reduce_sum(x * w, axis=-1, keepdims=True)

    images, labels = tf.constant([[1.0, 2.0], [0.5, -1.0]]), np.array([1, 0])
    loss = losses.GradientAttention(beta=2.0)
    kernels = np.array([[1.0, -1.0], [0.5, 2.0]])
    own = loss.compared(*(line(tf.constant(w, tf.float32)) for w in kernels), (images,) * 2, labels)
    for got, w in zip(own, kernels):
        z = images.numpy() @ w
        expected = (1 / (1 + np.exp(-z)) - labels)[:, None] * w
        np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.tensorflow
def test_inputs_and_labels_that_do_not_serve_are_named():
    loss = losses.GradientAttention(name="slopes")
    networks = small(5, 1), small(4, 2)
    images, labels = labelled()
    one, other = (keras.ops.convert_to_tensor(images) for _ in range(2))
    with pytest.raises(ValueError, match=r"inputs .* share for the loss 'slopes'.*\(3, 3, 4, 1\)"):
        loss.compared(*networks, (one, other), labels)
    with pytest.raises(ValueError, match="one tensor of inputs"):
        loss.compared(*networks, ([one, other],) * 2, labels)
    with pytest.raises(ValueError, match="labels for the loss 'slopes'"):
        loss.compared(*networks, (one, one), None)
    with pytest.raises(ValueError, match=r"same classes .*teacher_logits\.shape=\(3, 3\).*3, 4\)"):
        loss.compared(networks[0], small(4, 2, classes=4), (one, one), labels)


# In a Distiller.


def distiller(loss=None, batch_norm=True, **options):
    keras.utils.set_random_seed(5)
    networks = network("teacher", 5, batch_norm), network("student", batch_norm=batch_norm)
    weights = {"student_loss_weight": options.pop("label_weight", 1.0)}
    term = kd.Term(loss or losses.GradientAttention(), weight=options.pop("weight", 1.0))
    model = kd.Distiller(*networks, term, **weights)
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **{"jit_compile": False, **options},
    )
    return model


def fit(model, epochs=1, **options):
    x, y = samples(16)
    return model.fit(x, y, **{"batch_size": 8, "verbose": 0, "shuffle": False, **options}).history


@pytest.mark.tensorflow
def test_one_step_moves_the_student_alone_and_batch_statistics_once():
    model = distiller(label_weight=0.0, weight=10.0)
    alone = keras.models.clone_model(model.student)
    alone.set_weights(model.student.get_weights())
    alone.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [[v.numpy() for v in m.variables] for m in (model.teacher, model.student)]
    fit(model, steps_per_epoch=1)
    x, y = samples(16)
    alone.fit(x[:8], y[:8], batch_size=8, verbose=0)
    for own, variable in zip(before[0], model.teacher.variables):
        np.testing.assert_array_equal(own, variable.numpy())
    moved = [
        variable.path
        for own, variable in zip(before[1], model.student.variables)
        if not np.array_equal(own, variable.numpy())
    ]
    assert {"stem/kernel", "norm/gamma", "logits/kernel", "logits/bias"} <= set(moved)
    for own, other in zip(
        model.student.non_trainable_variables, alone.non_trainable_variables, strict=True
    ):
        np.testing.assert_allclose(own, other, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_compiled_steps_are_the_plain_ones():
    loss = {"symmetry_weight": 1.0}
    histories = []
    for options in ({}, {"jit_compile": True}, {"steps_per_execution": 2}):
        histories.append(fit(distiller(losses.GradientAttention(**loss), **options)))
    assert histories[0]["gradient_attention"][0] > 0
    for history in histories[1:]:
        for name, value in histories[0].items():
            np.testing.assert_allclose(history[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.tensorflow
def test_two_replicas_take_the_step_of_one_device(two_replicas):
    import tensorflow as tf

    def trained(strategy):
        with strategy.scope():
            model = distiller(batch_norm=False)
        history = fit(model)
        return [*model.student.get_weights(), *history.values()]

    alone, together = trained(tf.distribute.get_strategy()), trained(two_replicas)
    for one, both in zip(alone, together):
        np.testing.assert_allclose(both, one, rtol=1e-4, atol=1e-6)


@pytest.mark.tensorflow
def test_saved_and_evaluated_with_its_terms(tmp_path):
    model = distiller(losses.GradientAttention(beta=3.0), evaluate_terms=True)
    fit(model)
    x, y = samples(16)
    y[:4] = -1
    logs = model.evaluate(x, y, return_dict=True, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.terms[0].loss.beta == 3.0
    assert loaded.evaluate(x, y, return_dict=True, verbose=0) == pytest.approx(logs, rel=1e-5)


@pytest.mark.skipif(numerics.BACKEND == "tensorflow", reason="about the other backends")
def test_other_backends_are_told_of_tensorflow():
    with pytest.raises(RuntimeError, match="GradientAttention needs the TensorFlow backend"):
        kd.Term(losses.GradientAttention())
