import keras
import numpy as np
import pytest

from keras_distill import export

pytestmark = pytest.mark.tensorflow


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, None, 3])
def test_times_a_file(batch_size, student, tmp_path):
    path = export.tflite(student, tmp_path / "s.tflite", batch_size=batch_size)
    measured = export.latency(path, runs=7, warmup=2, threads=2)
    assert 0 < measured.p10_ms <= measured.median_ms <= measured.p90_ms
    assert (measured.runs, measured.threads) == (7, 2)
    assert measured.to_dict()["median_ms"] == measured.median_ms
    assert str(measured).startswith(f"{measured.median_ms:.3f} ms (")


def test_times_int8_and_saved_models(student, digits, tmp_path):
    path = export.tflite(
        student, tmp_path / "s.tflite", "int8", representative_data=digits[0][:50], io="int8"
    )
    assert export.latency(path, runs=3, warmup=0).median_ms > 0
    path = export.saved_model(student, tmp_path / "saved")
    assert export.latency(path, runs=3).median_ms > 0


def test_open_sizes_need_a_sample(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((None, None, 3), name="photo"),
            keras.layers.Conv2D(4, 3),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    path = export.tflite(model, tmp_path / "s.tflite")
    with pytest.raises(ValueError, match="Expected `sample` for .* has open sizes"):
        export.latency(path)
    assert export.latency(path, runs=2, sample={"photo": np.ones((1, 9, 12, 3), "float32")})
    with pytest.raises(ValueError, match="of shape .*, 3.. Received: shape .1, 9, 12, 4."):
        export.latency(path, sample={"photo": np.ones((1, 9, 12, 4))})
    with pytest.raises(ValueError, match="a dict with the inputs .'photo'.. Received: .'other'."):
        export.latency(path, sample={"other": 1})
    photos = np.random.default_rng(0).uniform(size=(4, 20, 10, 3))
    export.check_parity(model, path, photos, latency_runs=1)


@pytest.mark.parametrize(
    "arguments", [{"runs": 0}, {"runs": 1.5}, {"threads": 0}, {"warmup": -1}, {"warmup": 0.5}]
)
def test_bad_arguments(arguments, tmp_path):
    name = next(iter(arguments))
    with pytest.raises(ValueError, match=f"Expected `{name}` to be .* Received: {name}="):
        export.latency(tmp_path / "s.tflite", **arguments)
