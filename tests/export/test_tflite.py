import os

import keras
import numpy as np
import pytest

from keras_distill import export
from keras_distill.export._flatbuffer import float_operations
from keras_distill.export._flatbuffer import quantization_of

pytestmark = pytest.mark.tensorflow
MODES = [None, "float16", "dynamic", "int8"]


def interpreter(path):
    module = pytest.importorskip("ai_edge_litert.interpreter")
    loaded = module.Interpreter(model_path=str(path))
    loaded.allocate_tensors()
    return loaded


def weight_dtypes(path):
    """The dtypes of what the file stores in shapes of two dimensions or more."""
    return {
        entry["dtype"]
        for entry in interpreter(path).get_tensor_details()
        if len(entry["shape"]) >= 2 and entry["shape"][0] != 1
    }


@pytest.mark.parametrize("batch_size", [1, None, 4])
@pytest.mark.parametrize("quantize", MODES)
def test_every_mode_runs_and_agrees(quantize, batch_size, student, digits, tmp_path):
    x_train, _, x_test, y_test = digits
    path = export.tflite(
        student,
        tmp_path / "student.tflite",
        quantize,
        representative_data=x_train,
        batch_size=batch_size,
    )
    signature = interpreter(path).get_input_details()[0]["shape_signature"]
    assert signature.tolist() == [-1 if batch_size is None else batch_size, 8, 8, 1]
    report = export.check_parity(student, path, x_test, labels=y_test, latency_runs=3)
    assert report.quantization == (quantize or "float32")
    assert report.samples == len(x_test)


@pytest.mark.slow
def test_stored_dtypes_and_sizes(student, digits, tmp_path):
    sizes = {}
    for quantize in MODES:
        path = tmp_path / f"{quantize}.tflite"
        export.tflite(student, path, quantize, representative_data=digits[0])
        sizes[quantize] = os.path.getsize(path)
        assert quantization_of(path) == (quantize or "float32")
    assert sizes["int8"] < sizes["float16"] < sizes[None]
    assert sizes["dynamic"] < sizes["float16"]
    assert weight_dtypes(tmp_path / "None.tflite") == {np.float32}
    assert np.float16 in weight_dtypes(tmp_path / "float16.tflite")
    assert weight_dtypes(tmp_path / "int8.tflite") == {np.int8}
    assert float_operations(tmp_path / "int8.tflite") == []
    assert "CONV_2D" in float_operations(tmp_path / "None.tflite")


@pytest.mark.slow
@pytest.mark.parametrize("io", ["float32", "int8"])
def test_io_of_int8(io, student, digits, tmp_path):
    path = export.tflite(
        student, tmp_path / "s.tflite", "int8", representative_data=digits[0], io=io
    )
    loaded = interpreter(path)
    assert loaded.get_input_details()[0]["dtype"] == np.dtype(io).type
    assert loaded.get_output_details()[0]["dtype"] == np.dtype(io).type
    report = export.check_parity(student, path, digits[2], labels=digits[3], latency_runs=3)
    assert report.agreement >= 0.98


@pytest.mark.slow
def test_softmax_head(classifier, digits, tmp_path):
    for quantize in (None, "int8"):
        path = export.tflite(
            classifier, tmp_path / "s.tflite", quantize, representative_data=digits[0]
        )
        report = export.check_parity(classifier, path, digits[2], labels=digits[3], latency_runs=3)
        assert report.largest_difference < 0.3


@pytest.mark.slow
def test_only_the_inference_model_leaves(wrapper, student, tmp_path):
    alone = export.tflite(student, tmp_path / "a.tflite").stat().st_size
    wrapped = export.tflite(wrapper, tmp_path / "b.tflite").stat().st_size
    assert wrapped == alone
    assert wrapped < 4 * wrapper.teacher.count_params()


@pytest.mark.slow
def test_from_a_keras_file_and_from_a_saved_model(student, digits, tmp_path):
    student.save(tmp_path / "student.keras")
    export.saved_model(student, tmp_path / "saved")
    for source, quantize, batch_size in [
        ("student.keras", None, 1),
        ("saved", None, None),
        ("saved", "int8", 1),
        ("saved", "int8", None),
    ]:
        path = export.tflite(
            tmp_path / source,
            tmp_path / "s.tflite",
            quantize,
            representative_data=digits[0],
            batch_size=batch_size,
        )
        size = interpreter(path).get_input_details()[0]["shape_signature"][0]
        assert size == (-1 if batch_size is None else 1)
        export.check_parity(student, path, digits[2], labels=digits[3], latency_runs=1)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_half_precision_students(policy, student, student_builder, digits, tmp_path):
    keras.config.set_dtype_policy(policy)
    half = student_builder()
    half.set_weights(student.get_weights())
    keras.config.set_dtype_policy("float32")
    before = half(digits[2][:50], training=False)
    path = export.tflite(half, tmp_path / "s.tflite")
    assert interpreter(path).get_output_details()[0]["dtype"] == np.float32
    assert export.check_parity(half, path, digits[2], latency_runs=1).agreement == 1.0
    after = half(digits[2][:50], training=False)
    assert keras.backend.standardize_dtype(after.dtype) == policy.removeprefix("mixed_")
    np.testing.assert_array_equal(np.asarray(before, "float32"), np.asarray(after, "float32"))
    # The float32 file is close to what the half-precision student says.
    measured = np.asarray(before, "float32").argmax(-1)
    expected = np.asarray(student(digits[2][:50], training=False)).argmax(-1)
    assert (measured == expected).mean() >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("kind", [list, tuple, dict])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_several_inputs_and_outputs(kind, quantize, two_by_two, two_inputs, tmp_path):
    model = two_by_two(kind)
    data = {"wide": two_inputs[0], "narrow": two_inputs[1]}
    data = data if kind is dict else kind(two_inputs)
    for batch_size in (1, None):
        path = export.tflite(
            model,
            tmp_path / "s.tflite",
            quantize,
            representative_data=data,
            batch_size=batch_size,
        )
        signature = interpreter(path).get_signature_list()["serving_default"]
        assert signature["inputs"] == ["narrow", "wide"]
        limit = 1e-5 if quantize is None else 0.15
        report = export.check_parity(
            model, path, data, max_difference=limit, min_agreement=0.85, latency_runs=1
        )
        assert report.samples == 40


@pytest.mark.slow
def test_same_file_twice(student, tmp_path):
    first = export.tflite(student, tmp_path / "a.tflite").read_bytes()
    assert export.tflite(student, tmp_path / "b.tflite").read_bytes() == first


@pytest.mark.slow
def test_representative_data_of_every_kind(student, digits, tmp_path):
    import tensorflow as tf

    x, y = digits[0][:64], digits[1][:64]

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return x[16 * index : 16 * index + 16], y[16 * index : 16 * index + 16]

    kinds = [
        x.astype("float64"),
        (batch for batch in np.split(x, 4)),
        tf.data.Dataset.from_tensor_slices((x, y)).batch(10).repeat(),
        Batches(),
    ]
    files = [
        export.tflite(
            student,
            tmp_path / f"{index}.tflite",
            "int8",
            representative_data=data,
            representative_samples=64,
        ).read_bytes()
        for index, data in enumerate(kinds)
    ]
    # The same 64 images by whatever way: the same ranges, the same file.
    assert all(file == files[0] for file in files)


@pytest.mark.parametrize(
    "data, error",
    [
        (np.zeros((0, 8, 8, 1)), "at least one sample. Received: none"),
        ([], "at least one sample. Received: none"),
        (np.zeros((4, 9, 9, 1)), r"\('samples', 8, 8, 1\).*Received: shape \(4, 9, 9, 1\)"),
        ([np.zeros((8, 8, 1))], "Batch the data set"),
        (np.full((4, 8, 8, 1), np.nan), "`representative_data` to be finite"),
        (np.array(["a", "b"]), "arrays of dtype float32"),
    ],
)
def test_bad_representative_data(data, error, student, tmp_path):
    with pytest.raises(ValueError, match=error):
        export.tflite(student, tmp_path / "s.tflite", "int8", representative_data=data)
    assert list(tmp_path.iterdir()) == []


def test_representative_data_of_no_kind(student, tmp_path):
    for data in (3, "images"):
        with pytest.raises(TypeError, match="Expected `representative_data` to be arrays"):
            export.tflite(student, tmp_path / "s.tflite", "int8", representative_data=data)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"quantize": "int4"}, "Expected `quantize` to be one of .*Received: quantize='int4'"),
        ({"quantize": "int8"}, "Expected `representative_data` with .*training images"),
        ({"io": "int8"}, '`quantize="int8"` with `io="int8"`. Received: quantize=None'),
        ({"io": "uint8"}, "Expected `io` to be one of"),
        ({"batch_size": 0}, "`batch_size` to be a positive whole number"),
        ({"path": "student.bin"}, "ending in `.tflite`. Received: path='student.bin'"),
        ({"model": "nowhere"}, "a `.keras` file or a SavedModel folder. Received: model='nowhere'"),
    ],
)
def test_bad_arguments(arguments, error, student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"model": student, "path": "student.tflite", **arguments}
    with pytest.raises(ValueError, match=error):
        export.tflite(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_saved_model(tmp_path):
    with pytest.raises(ValueError, match="a folder with a `saved_model.pb`. Received: model="):
        export.tflite(tmp_path, tmp_path / "s.tflite")


def test_operations_that_a_phone_lacks_are_an_error(model_with, tmp_path):
    model = model_with(lambda x: keras.ops.erf(x))
    with pytest.raises(ValueError) as caught:
        export.tflite(model, tmp_path / "s.tflite")
    assert "Received: Erf. Replace" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_float_fallback_of_int8_is_an_error_unless_allowed(model_with, digits, tmp_path):
    model = model_with(lambda x: keras.ops.sin(x))
    with pytest.raises(ValueError, match="Received: SIN. Replace"):
        export.tflite(model, tmp_path / "s.tflite", "int8", representative_data=digits[0])
    assert list(tmp_path.iterdir()) == []
    path = export.tflite(
        model,
        tmp_path / "s.tflite",
        "int8",
        representative_data=digits[0],
        float_fallback=True,
    )
    assert float_operations(path) == ["SIN"]


def test_a_failure_leaves_the_old_file(student, tmp_path, monkeypatch):
    path = tmp_path / "student.tflite"
    path.write_bytes(b"old")

    def fail(self, filepath, **kwargs):
        with open(filepath, "wb") as file:
            file.write(b"half")
        raise RuntimeError("\nthe converter gave up\nand wrote much more")

    monkeypatch.setattr(keras.Model, "export", fail)
    with pytest.raises(ValueError, match="quantize=None: the converter gave up$"):
        export.tflite(student, path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["student.tflite"]


def test_prints_nothing(student, digits, tmp_path, capfd):
    path = export.tflite(student, tmp_path / "s.tflite", "int8", representative_data=digits[0][:20])
    export.check_parity(student, path, digits[2][:20], min_agreement=0, latency_runs=1)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_weights_made_under_a_strategy(digits, tmp_path, two_replicas):
    with two_replicas.scope():
        model = keras.Sequential(
            [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
        )
    path = export.tflite(model, tmp_path / "s.tflite")
    export.check_parity(model, path, digits[2], latency_runs=1)
