"""Training in simulated int8: the rounding, its gradients, its ranges, and the file it becomes."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_distill as kd
from keras_distill import _quantization
from keras_distill import heads
from keras_distill.export._flatbuffer import float_operations

pytestmark = pytest.mark.tensorflow
layers = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def rounded(values, low, high, smallest=0):
    """Numpy: 8 bits between the range's ends, moved so that 0 is one of the values."""
    scale = (high - low) / (255 - smallest)
    zero = np.clip(np.round(smallest - low / scale), smallest, 255)
    steps = np.clip(np.floor(values / scale + 0.5) + zero, smallest, 255)
    return (steps - zero) * scale


def gradient(function, *tensors):
    import tensorflow as tf

    tensors = [tf.constant(tensor, "float32") for tensor in tensors]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = ops.sum(function(*tensors))
    return tape.gradient(value, tensors)


@pytest.mark.parametrize(
    "layer, shape, channels",
    [
        (layers.Conv2D(5, 3), (None, 8, 8, 3), 5),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (None, 8, 8, 3), 6),
        (layers.Dense(4), (None, 7), 4),
    ],
    ids=["convolution", "depthwise", "dense"],
)
def test_each_channel_of_a_kernel_has_its_own_255_values(layer, shape, channels):
    weights = _quantization.Int8Weights(layer)
    weights.build(shape)
    kernel = layer.kernel.numpy().astype("float64")
    flat = kernel.reshape(-1, channels)
    largest = np.abs(flat).max(axis=0)
    expected = np.floor(flat * 127 / largest + 0.5) / 127 * largest
    found = ops.convert_to_numpy(weights.rounded_kernel())
    np.testing.assert_allclose(found, expected.reshape(kernel.shape), atol=1e-6 * largest.max())
    assert len(np.unique(np.round(found.reshape(-1, channels)[:, 0] / largest[0] * 127))) <= 255


def test_the_gradient_of_a_rounded_kernel_passes_straight_through():
    import tensorflow as tf

    weights = _quantization.Int8Weights(layers.Dense(4, activation="relu"))
    x = np.random.default_rng(0).normal(size=(6, 7)).astype("float32")
    weights.build(x.shape)
    with tf.GradientTape() as tape:
        outputs = weights(x)
        value = ops.sum(ops.square(outputs))
    kernel, bias = tape.gradient(value, [weights.layer.kernel.value, weights.layer.bias.value])
    upstream = 2 * outputs.numpy()
    np.testing.assert_allclose(kernel, x.T @ upstream, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bias, upstream.sum(axis=0), rtol=1e-4, atol=1e-5)


def test_activations_are_rounded_in_a_range_that_follows_the_batches():
    layer = _quantization.FakeQuantize(momentum=0.75)
    layer.build((None, 8))
    layer.minimum.assign(-1.0)
    layer.maximum.assign(3.0)
    x = np.random.default_rng(1).uniform(-2.0, 5.0, (16, 8)).astype("float32")
    found = ops.convert_to_numpy(layer(x, training=False))
    np.testing.assert_allclose(found, rounded(x, -1.0, 3.0), atol=1e-5)
    assert (layer.minimum.numpy(), layer.maximum.numpy()) == (-1.0, 3.0)
    (passed,) = gradient(lambda x: layer(x, training=False), x)
    inside = (x >= -1.0 - 4 / 255) & (x <= 3.0 + 4 / 255)
    beside = (np.abs(x + 1) < 8 / 255) | (np.abs(x - 3) < 8 / 255)
    np.testing.assert_array_equal(passed.numpy()[~beside], inside[~beside].astype("float32"))
    layer(x, training=True)
    expected = [0.75 * -1.0 + 0.25 * x.min(), 0.75 * 3.0 + 0.25 * x.max()]
    np.testing.assert_allclose([layer.minimum.numpy(), layer.maximum.numpy()], expected, rtol=1e-6)


def test_a_range_holds_zero_and_is_never_empty():
    layer = _quantization.FakeQuantize(momentum=0.0)
    for values, low, high in (([2.0, 3.0], 0, 3), ([-3.0, -2.0], -3, 0), ([0.0, 0.0], 0, 1e-6)):
        found = ops.convert_to_numpy(layer(np.array([values], "float32"), training=True))
        np.testing.assert_allclose(layer.minimum.numpy(), low)
        np.testing.assert_allclose(layer.maximum.numpy(), high, atol=1e-6)
        np.testing.assert_allclose(found, [values], atol=3 / 255)


@pytest.fixture(scope="module")
def aware(student, digits):
    """The trained student in simulated int8, trained for another epoch in it."""
    model = kd.export.quantization_aware(student, digits[0])
    model.compile(keras.optimizers.Adam(1e-3), LOSS)
    model.fit(digits[0], digits[1], batch_size=64, epochs=1, verbose=0)
    return model


def outputs_of(path, images, to_float=None):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    runner = interpreter.Interpreter(str(path), num_threads=1)
    runner.allocate_tensors()
    given, taken = runner.get_input_details()[0], runner.get_output_details()[0]
    outputs = []
    for image in images:
        if given["dtype"] is np.int8:
            image = (np.round(image * 255) - 128).astype("int8")
        runner.set_tensor(given["index"], image[None])
        runner.invoke()
        outputs.append(runner.get_tensor(taken["index"])[0].copy())
    if to_float is not None:
        outputs = to_float * (np.array(outputs, "float32") + 128)
    return np.array(outputs), runner.get_tensor_details()


def test_the_file_computes_what_the_network_predicts(aware, digits, tmp_path):
    path = kd.export.tflite(aware, tmp_path / "aware.tflite", "int8")
    assert float_operations(path) == []
    expected = aware.predict(digits[2], verbose=0)
    found, tensors = outputs_of(path, digits[2])
    last = aware.layers[-1]
    step = (last.maximum.numpy() - last.minimum.numpy()) / 255
    apart = np.abs(found - expected) / step
    assert apart.max() < 2.5
    assert (apart < 0.5).mean() > 0.8
    assert (found.argmax(axis=-1) == expected.argmax(axis=-1)).mean() > 0.99
    # The trained range, not one measured anew.
    scales = [tensor["quantization_parameters"]["scales"] for tensor in tensors]
    assert any(len(s) == 1 and np.isclose(s[0], step, rtol=1e-5) for s in scales)
    report = kd.export.check_parity(aware, path, digits[2], labels=digits[3])
    assert report.quantization == "int8" and report.agreement > 0.99


def test_the_network_itself_stays_and_the_copy_begins_near_it(student, digits):
    before = [weight.numpy() for weight in student.weights]
    nodes = [len(layer._inbound_nodes) for layer in student.layers]
    copy = kd.export.quantization_aware(student, digits[0], representative_samples=64)
    assert [len(layer._inbound_nodes) for layer in student.layers] == nodes
    for old, weight in zip(before, student.weights, strict=True):
        np.testing.assert_array_equal(old, weight.numpy())
    shared = {id(weight) for weight in student.weights} & {id(weight) for weight in copy.weights}
    assert not shared
    assert {layer.name for layer in student.layers} <= {layer.name for layer in copy.layers}
    ranges = _quantization.ranges_of(copy)
    assert len(copy.weights) == len(student.weights) + 2 * len(ranges)
    # The input, two rectifiers, the depthwise convolution and the head.
    assert len(ranges) == 5
    found, expected = (model.predict(digits[2], verbose=0) for model in (copy, student))
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).mean()
    state = [weight.numpy() for weight in copy.weights]
    copy.compile(loss=LOSS)
    copy.evaluate(digits[2], digits[3], verbose=0)
    for old, weight in zip(state, copy.weights, strict=True):
        np.testing.assert_array_equal(old, weight.numpy())


def test_ranges_begin_with_all_that_the_data_show(student, digits):
    copy = kd.export.quantization_aware(student, digits[0][:50])
    stem = keras.Model(student.input, student.layers[3].output)
    values = stem.predict(digits[0][:50], verbose=0)
    layer = copy.get_layer(f"{student.layers[3].name}_range")
    np.testing.assert_allclose(
        layer.maximum.numpy(), values.max(), rtol=0.02
    )  # kernels are rounded
    assert layer.minimum.numpy() == 0


def nested(head="softmax"):
    """What a mobile network is made of, with a backbone as a model inside."""
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.ZeroPadding2D(1)(inputs)
    x = layers.Conv2D(8, 3, use_bias=False)(x)
    x = start = layers.Activation("silu")(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=1)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.Add()([start, layers.Conv2D(8, 1, name="narrow")(x)])
    x = layers.LeakyReLU(name="stage")(layers.BatchNormalization()(x))
    backbone = keras.Model(inputs, layers.MaxPooling2D()(x), name="backbone")
    image = keras.Input((8, 8, 1), name="image")
    x = backbone(layers.Rescaling(2.0, -1.0)(image))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Multiply()([x, layers.Conv2D(8, 1, activation="sigmoid")(gate)])
    x = layers.Concatenate()([x, layers.AveragePooling2D(1)(x)])
    x = layers.Dropout(0.1)(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(10, activation=head)(x), name="nested")


def test_nested_models_heads_and_files(digits, tmp_path):
    keras.utils.set_random_seed(3)
    student = nested()
    aware = kd.export.quantization_aware(student, digits[0])
    assert heads.head_of(aware) == "softmax"
    assert heads.head_of(kd.export.quantization_aware(nested(None), digits[0])) == "linear"
    assert "backbone/stage" in kd.tap(aware, ["backbone/stage"]).output["features"]
    expected = aware.predict(digits[2][:100], verbose=0)
    aware.save(tmp_path / "aware.keras")
    loaded = keras.models.load_model(tmp_path / "aware.keras")
    np.testing.assert_array_equal(loaded.predict(digits[2][:100], verbose=0), expected)
    path = kd.export.tflite(loaded, tmp_path / "aware.tflite", "int8", io="int8")
    assert float_operations(path) == []
    found, _ = outputs_of(path, digits[2][:100], to_float=1 / 256)
    assert np.abs(found - expected).max() < 2.5 / 256


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_distiller_trains_it_with_features(policy, digits, tmp_path):
    keras.utils.set_random_seed(4)
    teacher = kd.backbones.small_cnn(channels=8)
    keras.config.set_dtype_policy(policy)
    student = kd.backbones.small_cnn(channels=4)
    aware = kd.export.quantization_aware(student, digits[0])
    keras.config.set_dtype_policy("float32")
    terms = [
        kd.losses.SoftTargets(),
        kd.Term(kd.losses.Hint(), teacher="stage1", student="stage1", connector="auto"),
    ]
    distiller = kd.Distiller(teacher, aware, terms)
    distiller.compile(keras.optimizers.Adam(3e-3), LOSS, metrics=["accuracy"])
    first = {layer.name: layer.maximum.numpy() for layer in _quantization.ranges_of(aware)}
    history = distiller.fit(digits[0], digits[1], batch_size=64, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    moved = [layer.maximum.numpy() != first[layer.name] for layer in _quantization.ranges_of(aware)]
    assert sum(moved) >= len(moved) - 1  # images keep within [0, 1]
    path = kd.export.tflite(distiller, tmp_path / "distilled.tflite", "int8")
    report = kd.export.check_parity(distiller, path, digits[2], labels=digits[3])
    assert report.agreement > 0.98


@pytest.mark.slow
def test_normalizations_that_no_convolution_takes_in(tmp_path):
    images = np.random.default_rng(0).random((64, 16, 16, 3)).astype("float32")
    keras.utils.set_random_seed(5)
    student = kd.backbones.wide_resnet(10, 1, input_shape=(16, 16, 3))
    student.compile(keras.optimizers.SGD(0.1), LOSS)
    student.fit(images, np.arange(64) % 10, epochs=3, verbose=0)
    aware = kd.export.quantization_aware(student, images)
    path = kd.export.tflite(aware, tmp_path / "wide.tflite", "int8")
    assert float_operations(path) == []
    expected = aware.predict(images, verbose=0)
    found, _ = outputs_of(path, images)
    last = aware.layers[-1]
    step = (last.maximum.numpy() - last.minimum.numpy()) / 255
    assert np.abs(found - expected).mean() < step


def with_layer(layer):
    inputs = keras.Input((8, 8, 1))
    x = layer(layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))


@pytest.mark.parametrize(
    "model, error",
    [
        (lambda: with_layer(layers.LayerNormalization(name="norm")), r"norm \(LayerNorm"),
        (lambda: with_layer(layers.Activation("mish", name="end")), r"end \(Activation with mish"),
        (lambda: keras.Sequential([layers.Dense(2)]), "with weights"),
    ],
    ids=["layer", "activation", "unbuilt"],
)
def test_what_cannot_be_simulated_is_told_at_once(model, error, digits):
    with pytest.raises(ValueError, match=error):
        kd.export.quantization_aware(model(), digits[0])


def test_bad_arguments(aware, student, digits, tmp_path):
    with pytest.raises(ValueError, match="in simulated int8 already"):
        kd.export.quantization_aware(aware, digits[0])
    with pytest.raises(ValueError, match="momentum=1"):
        kd.export.quantization_aware(student, digits[0], momentum=1)
    with pytest.raises(ValueError, match="`representative_data` to hold arrays of shape"):
        kd.export.quantization_aware(student, digits[0][:, :4])
    for quantize in (None, "float16", "dynamic"):
        with pytest.raises(ValueError, match="trained in simulated int8"):
            kd.export.tflite(aware, tmp_path / "x.tflite", quantize)
    with pytest.raises(TypeError, match="keras.Model"):
        kd.export.quantization_aware("student", digits[0])
