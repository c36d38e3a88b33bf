"""`head_of` and the logits of `tap`: what the outputs are, and the values before a softmax."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_distill import heads
from keras_distill import taps


def vectors(batch=6, size=4, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, size)).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def ends_in(*tail, shape=(4,)):
    x = inputs = keras.Input(shape)
    for layer in tail:
        x = layer(x)
    return keras.Model(inputs, x)


SOFTMAX_HEADS = {
    "dense": lambda: [layers.Dense(5, activation="softmax")],
    "activation": lambda: [layers.Dense(5), layers.Activation("softmax")],
    "softmax layer": lambda: [layers.Dense(5), layers.Softmax()],
    "keras.ops": lambda: [layers.Dense(5), ops.softmax],
    "keras.activations": lambda: [layers.Dense(5), keras.activations.softmax],
    "einsum": lambda: [layers.EinsumDense("ab,bc->ac", output_shape=5, activation="softmax")],
    "softmax as a layer": lambda: [layers.Dense(5, activation=layers.Softmax())],
    "followed by nothing": lambda: [
        layers.Dense(5, activation="softmax"),
        layers.Identity(),
        layers.Dropout(0.5),
        layers.Activation("linear", dtype="float32"),
    ],
    "reshaped": lambda: [
        layers.Dense(10),
        layers.Reshape((2, 1, 5)),
        layers.Softmax(),
        layers.Permute((2, 1, 3)),
        layers.Reshape((2, 5)),
    ],
    "map": lambda: [
        layers.Reshape((2, 2, 1)),
        layers.Conv2D(5, 1, activation="softmax"),
        layers.Reshape((4, 5)),
    ],
    "nested": lambda: [layers.Dense(3), ends_in(layers.Dense(5, activation="softmax"), shape=(3,))],
    "nested twice": lambda: [
        ends_in(ends_in(layers.Dense(5), layers.Softmax()), layers.Dropout(0.1))
    ],
    "sequential": lambda: [
        keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Activation("softmax")])
    ],
}


@pytest.mark.parametrize("name", SOFTMAX_HEADS)
def test_softmax_heads_and_their_logits(name):
    model = ends_in(*SOFTMAX_HEADS[name]())
    assert heads.head_of(model) == "softmax"
    outputs = taps.tap(model, logits=True)(vectors())
    expected = array(model(vectors()))
    np.testing.assert_array_equal(array(outputs["prediction"]), expected)
    logits = array(outputs["logits"])
    assert logits.shape == expected.shape and logits.dtype == expected.dtype
    assert (logits < 0).any()
    np.testing.assert_allclose(array(ops.softmax(logits)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "tail", [[layers.Dense(1, activation="sigmoid")], [layers.Dense(3), ops.sigmoid]]
)
def test_sigmoid_heads(tail):
    model = ends_in(*tail)
    assert heads.head_of(model) == "sigmoid"
    outputs = taps.tap(model, logits=True)(vectors())
    np.testing.assert_allclose(
        array(ops.sigmoid(outputs["logits"])), array(outputs["prediction"]), atol=1e-6
    )


def test_linear_heads_are_their_own_logits():
    for tail in ([layers.Dense(3)], [layers.Dense(3), layers.Dropout(0.5), layers.Reshape((3,))]):
        model = ends_in(*tail)
        assert heads.head_of(model) == "linear"
        outputs = taps.tap(model, logits=True)(vectors())
        np.testing.assert_array_equal(array(outputs["logits"]), array(outputs["prediction"]))


@pytest.mark.parametrize("merge", [layers.Add, layers.Average])
@pytest.mark.parametrize(("activation", "kind"), [(None, "linear"), ("softmax", "unknown")])
def test_sums_of_logits_are_logits(merge, activation, kind):
    inputs = keras.Input((4,))
    heads_of_both = [layers.Dense(3)(inputs), layers.Dense(3, activation=activation)(inputs)]
    model = keras.Model(inputs, merge()(heads_of_both))
    assert heads.head_of(model) == kind
    outputs = taps.tap(model, logits=True)(vectors())
    np.testing.assert_array_equal(array(outputs["prediction"]), array(model(vectors())))
    assert ("logits" in outputs) == (kind == "linear")


UNKNOWN_HEADS = {
    "relu": lambda: [layers.Dense(3, activation="relu")],
    "tanh": lambda: [layers.Dense(3), layers.Activation("tanh")],
    "other axis": lambda: [layers.Reshape((2, 2)), layers.Dense(3), layers.Softmax(axis=1)],
    "scaled": lambda: [layers.Dense(3, activation="softmax"), layers.Rescaling(2.0)],
    "flattened": lambda: [
        layers.Reshape((2, 2)),
        layers.Dense(3, activation="softmax"),
        layers.Flatten(),
    ],
    "moved": lambda: [
        layers.Reshape((2, 2)),
        layers.Dense(3, activation="softmax"),
        layers.Permute((2, 1)),
    ],
    "lambda": lambda: [layers.Dense(3), layers.Lambda(lambda x: x)],
    "input": lambda: [layers.Identity()],
    "pooled": lambda: [
        layers.Reshape((2, 2)),
        layers.Dense(3, activation="softmax"),
        layers.GlobalAveragePooling1D(),
    ],
}


@pytest.mark.parametrize("name", UNKNOWN_HEADS)
def test_what_the_graph_does_not_tell_is_unknown_and_has_no_logits(name):
    model = ends_in(*UNKNOWN_HEADS[name]())
    assert heads.head_of(model) == "unknown"
    assert "logits" not in taps.tap(model, logits=True)(vectors())


def test_a_dense_subclass_is_not_trusted():
    class Odd(layers.Dense):
        def call(self, x):
            return super().call(x) ** 2

    assert heads.head_of(ends_in(Odd(3, activation="softmax"))) == "unknown"


def test_time_distributed():
    inner = layers.Dense(3, activation="softmax")
    model = ends_in(layers.Reshape((2, 2)), layers.TimeDistributed(inner))
    assert heads.head_of(model) == "softmax"
    assert "logits" not in taps.tap(model, logits=True)(vectors())
    model = ends_in(layers.Reshape((2, 2)), layers.TimeDistributed(layers.Softmax()))
    assert "logits" in taps.tap(model, logits=True)(vectors())


def test_a_subclassed_model_is_unknown():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    assert heads.head_of(Subclassed()) == "unknown"


def test_several_outputs():
    inputs = keras.Input((4,))
    tensors = {
        "probabilities": layers.Dense(3, activation="softmax", name="a")(inputs),
        "logits": layers.Dense(2, name="b")(inputs),
        "other": layers.Dense(2, activation="tanh", name="c")(inputs),
    }
    model = keras.Model(inputs, tensors)
    kinds = {"probabilities": "softmax", "logits": "linear", "other": "unknown"}
    assert heads.head_of(model) == kinds
    assert set(taps.tap(model, logits=True)(vectors())["logits"]) == {"probabilities", "logits"}
    model = keras.Model(inputs, list(tensors.values()))
    assert heads.head_of(model) == ["softmax", "linear", "unknown"]
    logits = taps.tap(model, logits=True)(vectors())["logits"]
    assert {key: tuple(t.shape) for key, t in logits.items()} == {"0": (6, 3), "1": (6, 2)}


def test_a_nested_model_of_several_outputs():
    inputs = keras.Input((4,))
    a = layers.Dense(3, activation="softmax", name="a")(inputs)
    b = layers.Dense(2, activation="sigmoid", name="b")(inputs)
    inner = keras.Model(inputs, [a, b], name="inner")
    outer_inputs = keras.Input((4,))
    a, b = inner(outer_inputs)
    model = keras.Model(outer_inputs, {"b": layers.Identity()(b), "a": a})
    assert heads.head_of(model) == {"a": "softmax", "b": "sigmoid"}
    outputs = taps.tap(model, ["inner/a"], logits=True)(vectors())
    for key, activation in (("a", ops.softmax), ("b", ops.sigmoid)):
        np.testing.assert_allclose(
            array(activation(outputs["logits"][key])), array(outputs["prediction"][key]), atol=1e-6
        )


def test_a_head_called_twice_gives_the_logits_of_the_output():
    inputs = keras.Input((4,))
    head = layers.Dense(4, activation="softmax", name="head")
    model = keras.Model(inputs, head(head(inputs)))
    outputs = taps.tap(model, ["head@0", "head@1"], logits=True)(vectors())
    np.testing.assert_array_equal(array(outputs["prediction"]), array(model(vectors())))
    np.testing.assert_allclose(
        array(ops.softmax(outputs["logits"])), array(outputs["prediction"]), atol=1e-6
    )


@pytest.mark.tensorflow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["dense", "activation", "nested"])
def test_cross_entropy_of_a_saturated_prediction_keeps_its_gradient(name, compiled):
    """Keras's cross-entropy finds the logits of a softmax; the twin's prediction keeps them."""
    import tensorflow as tf

    model = ends_in(*SOFTMAX_HEADS[name]())
    twin = taps.tap(model, logits=True)
    x = tf.constant(1000.0 * vectors())
    y = keras.utils.to_categorical(np.arange(6) % 5, 5)
    loss = keras.losses.CategoricalCrossentropy()

    def gradients(predict):
        def step(x):
            with tf.GradientTape() as tape:
                value = loss(y, predict(x))
            return value, tape.gradient(value, [v.value for v in model.trainable_variables])

        return tf.function(step)(x) if compiled else step(x)

    value, expected = gradients(model)
    twin_value, actual = gradients(lambda x: twin(x)["prediction"])
    assert float(value) > 20  # beyond what a clipped log of 0 gives
    assert float(twin_value) == float(value)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(array(a), array(b), rtol=1e-5, atol=1e-5)


@pytest.mark.tensorflow
def test_the_layer_is_not_touched_by_compiled_and_threaded_calls():
    import threading

    import tensorflow as tf

    head = layers.Dense(3, activation="softmax")
    model = ends_in(head)
    twin = taps.tap(model, logits=True)
    expected = array(model(vectors()))
    run = tf.function(twin, jit_compile=True)
    np.testing.assert_allclose(array(run(vectors())["prediction"]), expected, atol=1e-6)
    failures = []

    def work():
        for _ in range(20):
            difference = np.abs(array(twin(vectors())["prediction"]) - expected).max()
            if difference or head.activation is not keras.activations.softmax:
                failures.append(difference)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.tensorflow
def test_logits_on_two_replicas(two_replicas):
    import tensorflow as tf

    strategy = two_replicas
    with strategy.scope():
        model = ends_in(layers.BatchNormalization(), layers.Dense(3, activation="softmax"))
        twin = taps.tap(model, logits=True)
    run = tf.function(lambda x: strategy.run(lambda x: twin(x, training=True), args=(x,)))
    outputs = run(tf.constant(vectors()))
    for logits, prediction in zip(
        strategy.experimental_local_results(outputs["logits"]),
        strategy.experimental_local_results(outputs["prediction"]),
        strict=True,
    ):
        np.testing.assert_allclose(array(ops.softmax(logits)), array(prediction), atol=1e-6)
