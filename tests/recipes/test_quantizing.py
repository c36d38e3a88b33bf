"""`recipes.quantizing`: the float student and its two int8 files side by side."""

import keras
import pytest

import keras_distill as kd
from keras_distill.export._flatbuffer import float_operations
from keras_distill.recipes import evaluation
from keras_distill.recipes import exporting
from keras_distill.recipes import networks
from keras_distill.recipes import quantizing

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A teacher and a student of digits in `.keras` files."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("networks")
    split = kd.data.load("digits")
    x, y = split.train.images.astype("float32") / 255, split.train.labels
    for name, size, epochs in (("teacher", "small-8", 3), ("student", "small-4", 6)):
        network = networks.build(size, (8, 8, 1), 10, seed=1)
        network.compile(keras.optimizers.Adam(1e-2), networks.label_loss(network))
        network.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
        networks.save(network, folder / f"{name}.keras")
    return folder


def settings(files, **changes):
    paths = {name: str(files / f"{name}.keras") for name in ("student", "teacher")}
    return quantizing.Settings(**{**paths, "dataset": "digits", "epochs": 2, **changes})


@pytest.mark.slow
def test_three_files_side_by_side_and_taken_up_again(files, tmp_path):
    said = []
    results = quantizing.quantize(settings(files), tmp_path / "run", verbose=0, say=said.append)
    models = {model["name"]: model for model in results["models"]}
    assert list(models) == ["float", "int8 after training", "int8-aware"]
    for name in ("int8 after training", "int8-aware"):
        assert float_operations(tmp_path / "run" / models[name]["file"]) == []
        assert models[name]["bytes"] < models["float"]["bytes"]
        assert abs(models[name]["accuracy"][0] - models["float"]["accuracy"][0]) < 0.03
    aware = tmp_path / "run" / models["int8-aware"]["file"]
    network = networks.load(aware.with_suffix(".keras"))
    test = kd.data.load("digits").test
    report = kd.export.check_parity(network, aware, test.images.astype("float32") / 255)
    assert report.agreement > 0.99
    assert "int8-aware" in "\n".join(said)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = quantizing.quantize(settings(files), tmp_path / "run", verbose=0, say=said.append)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == lines
    assert again["models"][2]["accuracy"] == models["int8-aware"]["accuracy"]
    with pytest.raises(ValueError, match="learning_rate"):
        quantizing.quantize(settings(files, learning_rate=1.0), tmp_path / "run", verbose=0)


def test_an_aware_network_is_exported_and_timed_without_data(files, tmp_path):
    student = networks.load(files / "student.keras")
    images = kd.data.load("digits").train.images[:64].astype("float32") / 255
    path = tmp_path / "aware.keras"
    networks.save(kd.export.quantization_aware(student, images), path)
    file, report = exporting.write(path, quantize="int8")
    assert float_operations(file) == [] and report is None
    assert evaluation.latency_ms(path) > 0
    with pytest.raises(ValueError, match="--dataset"):
        exporting.write(files / "student.keras", quantize="int8")


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"student": "small-4"}, "a trained `.keras` file"),
        ({"epochs": 0}, "`epochs`"),
        ({"temperature": -1.0}, "`temperature`"),
    ],
)
def test_bad_settings(changes, error):
    given = {"student": "a.keras", "teacher": "b.keras", "dataset": "digits", **changes}
    with pytest.raises(ValueError, match=error):
        quantizing.Settings(**given)
