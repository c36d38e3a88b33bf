"""Training in simulated int8: the names, dtypes and layers of the copy, and the file's fusions."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import _quantization
from keras_distill.export._flatbuffer import float_operations

pytestmark = pytest.mark.tensorflow
layers = keras.layers


@pytest.fixture
def images():
    return np.random.default_rng(0).random((32, 8, 8, 1)).astype("float32")


def network(*middle, head=None):
    """An image through the given layers and a small head."""
    inputs = x = keras.Input((8, 8, 1), name="image")
    for layer in middle:
        x = layer(x)
    return keras.Model(inputs, layers.Dense(10, activation=head, name="head")(layers.Flatten()(x)))


def assert_file_agrees(aware, images, path):
    """The int8 file holds integers only, and its outputs are a few steps apart at most."""
    kd.export.tflite(aware, path, "int8")
    assert float_operations(path) == []
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    runner = interpreter.Interpreter(str(path), num_threads=1)
    runner.allocate_tensors()
    (given,), (taken,) = runner.get_input_details(), runner.get_output_details()
    found = []
    for image in images:
        runner.set_tensor(given["index"], image[None])
        runner.invoke()
        found.append(runner.get_tensor(taken["index"])[0])
    expected = aware.predict(images, verbose=0)
    last = _quantization.ranges_of(aware)[-1]
    step = (last.maximum.numpy() - last.minimum.numpy()) / 255
    apart = np.abs(np.array(found) - expected) / step
    assert apart.max() < 3.5 and apart.mean() < 0.7  # an average is rounded twice


def test_activations_and_offsets_keep_the_dtype_of_their_layer(images):
    model = network(
        layers.Rescaling(2.0, -1.0, name="scale", dtype="mixed_bfloat16"),
        layers.Conv2D(4, 3, activation="silu", name="stage", dtype="mixed_bfloat16"),
        layers.Activation("linear", dtype="float32"),
        head="softmax",
    )
    keras.config.set_dtype_policy("float16")
    try:
        aware = kd.export.quantization_aware(model, images)
    finally:
        keras.config.set_dtype_policy("float32")
    for name in ("scale", "scale_product", "stage", "stage_linear"):
        assert aware.get_layer(name).dtype_policy.name == "mixed_bfloat16", name
    assert aware.output.dtype == model.output.dtype == "float32"


def test_a_tap_reads_what_it_read_before(images):
    keras.utils.set_random_seed(1)
    model = network(
        layers.Rescaling(2.0, -1.0, name="scale"),
        layers.Rescaling(0.5, name="half"),
        layers.Conv2D(4, 3, activation="silu", name="stage"),
    )
    aware = kd.export.quantization_aware(model, images)
    paths = ["scale", "half", "stage"]
    old, new = (kd.tap(m, paths)(images)["features"] for m in (model, aware))
    for name in paths:
        width = np.ptp(old[name])
        np.testing.assert_allclose(new[name], old[name], atol=0.03 * width, err_msg=name)


def test_outputs_keep_their_names(images, tmp_path):
    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(inputs))
    digit = layers.Dense(10, name="digit")(x)
    parity = layers.Dense(1, activation="sigmoid", name="parity")(x)
    size = layers.Dense(2, activation="silu", name="size")(x)
    model = keras.Model(inputs, [digit, parity, size])
    aware = kd.export.quantization_aware(model, images)
    assert aware.output_names == model.output_names == ["digit", "parity", "size"]
    aware.save(tmp_path / "aware.keras")
    loaded = keras.models.load_model(tmp_path / "aware.keras")
    assert loaded.output_names == model.output_names
    labels = {"digit": np.zeros((32, 10)), "parity": np.ones((32, 1)), "size": np.ones((32, 2))}
    loaded.compile(
        loss={"digit": "mse", "parity": "binary_crossentropy", "size": "mse"},
        metrics={"digit": ["mae"]},
    )
    logs = loaded.evaluate(images, labels, verbose=0, return_dict=True)
    assert "digit_mae" in logs


def test_a_shared_layer_is_one_layer_in_the_copy(images, tmp_path):
    keras.utils.set_random_seed(2)
    inputs = keras.Input((8, 8, 1))
    scale = layers.Rescaling(2.0, -1.0, name="scale")
    shared = layers.Conv2D(1, 3, padding="same", activation="silu", name="shared")
    x = shared(scale(shared(scale(inputs))))
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))
    aware = kd.export.quantization_aware(model, images)
    weighted = [x.name for x in aware.layers if isinstance(x, _quantization.Int8Weights)]
    assert weighted == ["shared_linear", aware.layers[-2].name]
    names = {layer.name for layer in _quantization.ranges_of(aware)}
    assert {"shared_0_range", "shared_1_range", "shared_0_linear_range"} <= names
    assert_file_agrees(aware, images, tmp_path / "shared.tflite")


@pytest.mark.slow
@pytest.mark.parametrize(
    "middle",
    [
        lambda: (layers.GlobalAveragePooling2D(keepdims=True), layers.ReLU()),
        lambda: (layers.GlobalMaxPooling2D(keepdims=True), layers.ReLU()),
        lambda: (layers.AveragePooling2D(2), layers.ReLU()),
        lambda: (layers.LeakyReLU(), layers.ReLU(6)),
        lambda: (layers.Conv2D(4, 3, activation="relu"), layers.ReLU(6)),
        lambda: (layers.Conv2D(4, 3, activation="silu"), layers.ReLU()),
        lambda: (layers.Rescaling(2.0, -0.1), layers.ReLU()),
        lambda: (layers.BatchNormalization(), layers.BatchNormalization(), layers.ReLU()),
        lambda: (layers.MaxPooling2D(2), layers.ReLU()),
        lambda: (layers.BatchNormalization(axis=1), layers.ReLU()),
    ],
    ids=["mean", "max", "average", "leaky", "twice", "silu", "scale", "norm", "pool", "axis"],
)
def test_a_rectifier_behind_anything_becomes_a_file(middle, images, tmp_path):
    keras.utils.set_random_seed(3)
    model = network(layers.Conv2D(4, 3, padding="same"), *middle())
    aware = kd.export.quantization_aware(model, images)
    assert_file_agrees(aware, images, tmp_path / "rectifier.tflite")


@pytest.mark.slow
def test_a_rectifier_behind_a_concatenation_becomes_a_file(images, tmp_path):
    keras.utils.set_random_seed(4)
    inputs = keras.Input((8, 8, 1))
    x = layers.Concatenate()([layers.Conv2D(4, 3)(inputs), layers.Conv2D(2, 3)(inputs)])
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(layers.ReLU()(x))))
    aware = kd.export.quantization_aware(model, images)
    assert_file_agrees(aware, images, tmp_path / "rectifier.tflite")
