"""Training in simulated int8: its gradients, fresh copies, regularizers, and what it refuses."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_distill as kd
from keras_distill import _quantization
from keras_distill.models.network import fresh_copy

pytestmark = pytest.mark.tensorflow
layers = keras.layers


@pytest.fixture
def images():
    return np.random.default_rng(0).random((32, 8, 8, 1)).astype("float32")


def small(**settings):
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, name="stem", **settings)(inputs)
    x = layers.BatchNormalization()(layers.MaxPooling2D()(x))
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(layers.ReLU()(x))))


@pytest.mark.parametrize("training", [True, False])
def test_no_gradient_of_tensorflows_own_operation_is_computed(training, images):
    """On a GPU with deterministic operations that gradient is an error."""
    import tensorflow as tf

    aware = kd.export.quantization_aware(small(), images)

    @tf.function
    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = ops.sum(ops.square(aware(x, training=training)))
        variables = [weight.value for weight in aware.trainable_variables]
        return tape.gradient(loss, [x, *variables])

    graph = gradients.get_concrete_function(tf.TensorSpec((4, 8, 8, 1))).graph
    kinds = {operation.type for operation in graph.get_operations()}
    assert "FakeQuantWithMinMaxVars" in kinds
    assert "FakeQuantWithMinMaxVarsPerChannel" in kinds
    assert not {kind for kind in kinds if kind.startswith("FakeQuant") and "Gradient" in kind}


def test_values_and_gradients_are_those_of_tensorflows_operation():
    import tensorflow as tf

    x = tf.constant(np.random.default_rng(2).uniform(-3, 7, (64, 32)).astype("float32"))
    layer = _quantization.FakeQuantize()
    layer.build(x.shape)
    layer.minimum.assign(-1.3)
    layer.maximum.assign(4.1)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        found = layer(x)
        expected = tf.quantization.fake_quant_with_min_max_vars(x, -1.3, 4.1)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(tape.gradient(found, x), tape.gradient(expected, x))


def test_an_empty_range_passes_values_on_until_a_batch_sets_it():
    layer = _quantization.FakeQuantize(momentum=0.99)
    x = np.array([[-2.0, 0.0, 3.0]], "float32")
    np.testing.assert_array_equal(layer(x, training=False), x)
    assert layer.is_empty()
    np.testing.assert_allclose(layer(x, training=True), x, atol=5 / 255)
    assert (layer.minimum.numpy(), layer.maximum.numpy()) == (-2.0, 3.0)
    layer(2 * x, training=True)
    np.testing.assert_allclose([layer.minimum.numpy(), layer.maximum.numpy()], [-2.02, 3.03])


def test_a_network_that_starts_afresh_trains(images, tmp_path):
    copy = fresh_copy(kd.export.quantization_aware(small(), images))
    assert np.ptp(copy.predict(images, verbose=0)) > 0
    with pytest.raises(ValueError, match="empty image_range"):
        kd.export.tflite(copy, tmp_path / "fresh.tflite", "int8")
    before = copy.get_layer("stem").layer.kernel.numpy()
    copy.compile(keras.optimizers.SGD(0.1), "mse")
    copy.fit(images, np.ones((32, 10)), batch_size=8, verbose=0)
    assert np.abs(copy.get_layer("stem").layer.kernel.numpy() - before).max() > 0
    kd.export.tflite(copy, tmp_path / "fresh.tflite", "int8")


def test_the_copy_of_a_compiled_network_is_not_compiled(images):
    def unregistered(y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1)

    model = small()
    model.compile("adam", unregistered, metrics=[unregistered])
    for copy in (kd.export.quantization_aware(model, images), fresh_copy(model)):
        assert not copy.compiled
    assert not kd.backbones.linearized(small()).compiled
    assert model.compiled
    model.fit(images, np.ones((32, 10)), verbose=0)


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_activity_regularizers_stay(activation, images, tmp_path):
    keras.utils.set_random_seed(5)
    model = small(activation=activation, activity_regularizer=keras.regularizers.L2(0.1))
    aware = kd.export.quantization_aware(model, images)
    aware.save(tmp_path / "aware.keras")
    loaded = keras.models.load_model(tmp_path / "aware.keras")
    for network in (model, aware, loaded):
        network(images)
    (expected,) = model.losses
    for network in (aware, loaded):
        (found,) = network.losses
        np.testing.assert_allclose(found, expected, rtol=0.05)


def test_what_has_no_file_is_told_at_once(images, tmp_path):
    inputs = keras.Input((8, 8, 1), dtype="uint8", name="image")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(10)(x))
    with pytest.raises(ValueError, match="input image has dtype uint8"):
        kd.export.quantization_aware(model, (255 * images).astype("uint8"))
    aware = kd.export.quantization_aware(small(), images)
    with pytest.raises(ValueError, match="in simulated int8"):
        kd.export.saved_model(aware, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
