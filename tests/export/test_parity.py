import json
import os
import sys

import keras
import numpy as np
import pytest

from keras_distill import export

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module", params=[1, None], ids=["batch1", "dynamic"])
def exported(request, student, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "student.tflite"
    return export.tflite(student, path, batch_size=request.param)


@pytest.fixture(scope="module")
def int8_file(student, digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "int8.tflite"
    return export.tflite(student, path, "int8", representative_data=digits[0], io="int8")


def disturbed(model, scale=0.3):
    """A clone of `model` with noise in its weights."""
    twin = keras.models.clone_model(model)
    generator = np.random.default_rng(0)
    twin.set_weights(
        [w + scale * np.abs(w) * generator.normal(size=w.shape) for w in model.get_weights()]
    )
    return twin


@pytest.mark.slow
def test_report(student, digits, exported):
    report = export.check_parity(student, exported, digits[2], labels=digits[3])
    assert report.samples == len(digits[2])
    assert report.agreement == 1.0
    assert 0 <= report.mean_difference <= report.largest_difference < 1e-4
    assert report.bytes == os.path.getsize(exported)
    assert 0 < report.latency_p10_ms <= report.latency_ms <= report.latency_p90_ms
    predicted = np.asarray(student(digits[2], training=False)).argmax(-1)
    assert report.accuracy_model == pytest.approx((predicted == digits[3]).mean())
    assert report.accuracy_file == report.accuracy_model
    assert json.loads(json.dumps(report.to_dict()))["quantization"] == "float32"
    lines = report.summary().splitlines()
    assert len(lines) == 2
    assert "student.tflite: float32" in lines[0] and "100.00 %" in lines[0]
    assert "accuracy" in lines[1]
    without = export.check_parity(student, exported, digits[2][:10], latency_runs=1)
    assert without.accuracy_model is None and without.accuracy_file is None
    assert len(without.summary().splitlines()) == 1


def test_numbers_against_the_interpreter_itself(student, digits, int8_file):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(int8_file))
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    measured = []
    for image in digits[2][:100]:
        scale, zero = source["quantization"]
        codes = np.clip(np.round(image / scale) + zero, -128, 127).astype("int8")
        interpreter.set_tensor(source["index"], codes[None])
        interpreter.invoke()
        scale, zero = target["quantization"]
        measured.append((interpreter.get_tensor(target["index"])[0].astype(float) - zero) * scale)
    measured = np.stack(measured)
    expected = np.asarray(student(digits[2][:100], training=False))
    report = export.check_parity(student, int8_file, digits[2][:100], labels=digits[3][:100])
    assert report.quantization == "int8"
    difference = np.abs(measured - expected)
    assert report.largest_difference == pytest.approx(difference.max(), rel=1e-4)
    assert report.mean_difference == pytest.approx(difference.mean(), rel=1e-4)
    agreement = (measured.argmax(-1) == expected.argmax(-1)).mean()
    assert report.agreement == pytest.approx(agreement)
    accuracy = (measured.argmax(-1) == digits[3][:100]).mean()
    assert report.accuracy_file == pytest.approx(accuracy)


def test_a_file_of_other_weights_is_told(student, digits, exported):
    with pytest.raises(export.ParityError) as caught:
        export.check_parity(disturbed(student), exported, digits[2], latency_runs=1)
    text = str(caught.value)
    assert "largest difference" in text and "(at most 0.0001)" in text
    assert "agreement" in text and "(at least 100 %)" in text
    assert "\n" not in text
    assert isinstance(caught.value, RuntimeError)
    assert caught.value.report.agreement < 1
    # The caller's limits hold instead of the defaults.
    report = export.check_parity(
        disturbed(student), exported, digits[2], max_difference=1e9, min_agreement=0
    )
    assert report.agreement == caught.value.report.agreement
    with pytest.raises(export.ParityError, match="agreement"):
        export.check_parity(disturbed(student), exported, digits[2], quantize="float16")


@pytest.mark.slow
def test_lost_accuracy_is_told(student, digits, int8_file, exported):
    arguments = {"labels": digits[3], "min_agreement": 0, "latency_runs": 1}
    bad = disturbed(student, 0.6)
    path = export.tflite(bad, exported.parent / "bad.tflite")
    with pytest.raises(export.ParityError, match="accuracy .* % for .*at most 1 points less"):
        export.check_parity(student, path, digits[2], quantize="int8", **arguments)
    export.check_parity(student, path, digits[2], quantize="int8", max_accuracy_loss=1, **arguments)
    with pytest.raises(ValueError, match="`labels` with `max_accuracy_loss`"):
        export.check_parity(student, path, digits[2], max_accuracy_loss=0.1)


def test_labels_of_every_kind(student, digits, exported):
    x, y = digits[2][:90], digits[3][:90]
    expected = export.check_parity(student, exported, x, labels=y, latency_runs=1).accuracy_model
    for labels in (list(y), y[:, None], np.eye(10)[y]):
        report = export.check_parity(student, exported, x, labels=labels, latency_runs=1)
        assert report.accuracy_model == expected
    half = np.where(np.arange(90) < 45, y, -1)
    report = export.check_parity(student, exported, x, labels=half, latency_runs=1)
    first = export.check_parity(student, exported, x[:45], labels=y[:45], latency_runs=1)
    assert report.accuracy_model == first.accuracy_model


@pytest.mark.parametrize(
    "labels, error",
    [
        (np.zeros(89, int), "as long as `data`"),
        (np.zeros(91, int), "as long as `data`, 90 samples. Received: 91"),
        (np.zeros((90, 7)), "one class for each prediction"),
        (-np.ones(90), "a class of 0 or more"),
    ],
)
def test_wrong_labels(labels, error, student, digits, exported):
    with pytest.raises(ValueError, match=error):
        export.check_parity(student, exported, digits[2][:90], labels=labels, latency_runs=1)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_unit_heads_agree_by_the_side_of_the_threshold(activation, digits, tmp_path):
    def build():
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(1, activation=activation),
            ]
        )

    model, other = build(), build()
    # All logits are within [0, 1] in the one, and all above one half in the other.
    model.set_weights([np.full((64, 1), 0.01, "float32"), np.zeros(1, "float32")])
    other.set_weights([np.full((64, 1), 0.02, "float32"), np.zeros(1, "float32")])
    path = export.tflite(other, tmp_path / "s.tflite", batch_size=None)
    arguments = {"max_difference": 9, "min_agreement": 0, "latency_runs": 1}
    report = export.check_parity(
        model, path, digits[2], labels=np.ones(len(digits[2])), **arguments
    )
    assert report.agreement == 1.0
    assert report.accuracy_model == report.accuracy_file == 1.0
    other.set_weights([np.full((64, 1), -0.02, "float32"), np.zeros(1, "float32")])
    export.tflite(other, path, batch_size=None)
    report = export.check_parity(
        model,
        path,
        digits[2],
        labels=np.ones((len(digits[2]), 1)),
        max_accuracy_loss=1,
        **arguments,
    )
    assert report.agreement == 0.0
    assert (report.accuracy_model, report.accuracy_file) == (1.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [list, dict])
def test_several_outputs_report_the_worst(kind, two_by_two, two_inputs, tmp_path):
    model = two_by_two(kind)
    data = dict(zip(("wide", "narrow"), two_inputs)) if kind is dict else list(two_inputs)
    path = export.tflite(model, tmp_path / "s.tflite", batch_size=None)
    outputs = model(data)
    outputs = outputs if kind is dict else dict(zip(("small", "large"), outputs))
    truth = {name: np.asarray(value).argmax(-1) for name, value in outputs.items()}
    truth["large"][:10] = (truth["large"][:10] + 1) % 5
    labels = truth if kind is dict else [truth["small"], truth["large"]]
    report = export.check_parity(model, path, data, labels=labels, latency_runs=1)
    assert report.accuracy_model == pytest.approx((1.0 + 0.75) / 2)
    twin = disturbed(model)
    twin.get_layer("small").set_weights(model.get_layer("small").get_weights())
    report = export.check_parity(twin, path, data, max_difference=99, min_agreement=0)
    changed = twin(data)
    changed = changed["large"] if kind is dict else changed[1]
    same = np.asarray(changed).argmax(-1) == np.asarray(outputs["large"]).argmax(-1)
    assert report.agreement == pytest.approx(same.mean())
    with pytest.raises(ValueError, match="`labels` to be a dict or list for the outputs"):
        export.check_parity(model, path, data, labels=truth["small"])


def test_a_prediction_for_every_token(tmp_path):
    model = keras.Sequential([keras.Input((6, 4)), keras.layers.Dense(3)])
    data = np.random.default_rng(0).normal(size=(20, 6, 4))
    path = export.tflite(model, tmp_path / "s.tflite")
    truth = np.asarray(model(data)).argmax(-1)
    truth[:, :3] = -1
    truth[0, 3] = (truth[0, 3] + 1) % 3
    report = export.check_parity(model, path, data, labels=truth)
    assert report.accuracy_model == pytest.approx(1 - 1 / 60)


@pytest.mark.slow
def test_integer_inputs(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(11, 4),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(3),
        ]
    )
    data = np.random.default_rng(0).integers(0, 11, (30, 5))
    for quantize in (None, "int8"):
        path = export.tflite(model, tmp_path / "s.tflite", quantize, representative_data=data)
        export.check_parity(model, path, data, min_agreement=0.9, latency_runs=1)


def test_saved_model_folder(student, digits, tmp_path):
    path = export.saved_model(student, tmp_path / "saved")
    report = export.check_parity(student, path, digits[2], labels=digits[3], latency_runs=2)
    assert report.quantization == "float32"
    assert report.bytes == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    with pytest.raises(export.ParityError):
        export.check_parity(disturbed(student), path, digits[2], latency_runs=1)


def test_datasets_wrappers_and_keras_files(student, wrapper, digits, exported, tmp_path):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(digits[2:]).shuffle(1000).batch(100)
    report = export.check_parity(wrapper, exported, dataset, latency_runs=1)
    assert report.samples == len(digits[2])
    student.save(tmp_path / "student.keras")
    export.check_parity(tmp_path / "student.keras", exported, digits[2], latency_runs=1)
    with pytest.raises(ValueError, match="Expected `data` to end"):
        export.check_parity(student, exported, dataset.repeat())


def test_changes_nothing(student, digits, exported):
    before = student.get_weights()
    expected = student.predict(digits[2][:20], verbose=0)
    export.check_parity(student, exported, digits[2][:20], latency_runs=1)
    for old, new in zip(before, student.get_weights()):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(student.predict(digits[2][:20], verbose=0), expected)


@pytest.mark.slow
def test_outputs_that_are_not_finite_are_told(model_with, digits, tmp_path):
    model = model_with(lambda x: keras.ops.log(x - 1e6))
    path = export.tflite(model, tmp_path / "s.tflite")
    for quantize in (None, "int8"):
        with pytest.raises(export.ParityError, match="an output is NaN or infinite"):
            export.check_parity(
                model, path, digits[2][:5], quantize=quantize, min_agreement=0, latency_runs=1
            )


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "zeroed"])
def test_a_damaged_file_is_one_line(damage, student, digits, exported, tmp_path):
    content = exported.read_bytes()
    path = tmp_path / "damaged.tflite"
    path.write_bytes(
        {
            "empty": b"",
            "garbage": b"no flatbuffer at all" * 50,
            "cut": content[: len(content) // 2],
            "zeroed": bytes(len(content)),
        }[damage]
    )
    with pytest.raises(ValueError) as caught:
        export.check_parity(student, path, digits[2])
    assert "Expected a `.tflite` file that LiteRT can run on these inputs. Received: path=" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit(student, digits, exported, two_by_two, two_inputs, tmp_path):
    with pytest.raises(FileNotFoundError, match="Received: path=.*missing.tflite"):
        export.check_parity(student, tmp_path / "missing.tflite", digits[2])
    with pytest.raises(ValueError, match="a folder with a `saved_model.pb`"):
        export.check_parity(student, tmp_path, digits[2])
    with pytest.raises(TypeError, match="`path` to be a path"):
        export.check_parity(student, student, digits[2])
    (tmp_path / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="a SavedModel with a `serving_default` signature"):
        export.check_parity(student, tmp_path, digits[2])
    model = two_by_two(list)
    with pytest.raises(ValueError, match="inputs .'narrow', 'wide'.*Received: .*'image'"):
        export.check_parity(model, exported, list(two_inputs))
    small = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    with pytest.raises(ValueError, match="the model's shape .*3.*Received: shape .*10"):
        export.check_parity(small, exported, digits[2])


@pytest.mark.parametrize("name", ["max_difference", "min_agreement", "max_accuracy_loss"])
def test_limits_are_numbers(name, student, digits, exported):
    for value in (-1, "much", float("nan")):
        with pytest.raises(ValueError, match=f"Expected `{name}` to be a number, 0 or more"):
            export.check_parity(student, exported, digits[2], labels=digits[3], **{name: value})


def test_without_litert_the_extra_is_named(student, digits, exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match=r'pip install "keras-distill\[litert\]"'):
        export.check_parity(student, exported, digits[2])
