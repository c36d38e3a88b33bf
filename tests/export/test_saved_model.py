import keras
import numpy as np
import pytest

from keras_distill import export

pytestmark = pytest.mark.tensorflow


def load(path):
    import tensorflow as tf

    return tf.saved_model.load(str(path))


def serve(path, data):
    # What is loaded owns the variables, and has to outlive the call.
    loaded = load(path)
    return loaded.serve(data)


def test_serves_what_the_model_predicts(student, digits, tmp_path):
    path = export.saved_model(student, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder"
    served = serve(path, digits[2][:5])
    np.testing.assert_allclose(served, student(digits[2][:5], training=False), atol=1e-5)


def test_signature_has_the_inputs_name_and_an_open_batch(student, tmp_path):
    loaded = load(export.saved_model(student, tmp_path / "s"))
    specs = loaded.signatures["serving_default"].structured_input_signature[1]
    assert list(specs) == ["image"]
    assert specs["image"].shape.as_list() == [None, 8, 8, 1]


def test_auto_named_inputs_do_not_count_up(tmp_path):
    for index in range(2):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        loaded = load(export.saved_model(model, tmp_path / str(index)))
        assert list(loaded.signatures["serving_default"].structured_input_signature[1]) == ["input"]


def test_only_the_inference_model_leaves(wrapper, student, tmp_path):
    loaded = load(export.saved_model(wrapper, tmp_path / "s"))
    assert len(loaded.variables) == len(student.variables)
    assert sum(int(np.prod(v.shape)) for v in loaded.variables) == student.count_params()


def test_from_a_keras_file(student, digits, tmp_path):
    student.save(tmp_path / "student.keras")
    export.saved_model(tmp_path / "student.keras", tmp_path / "s")
    served = serve(tmp_path / "s", digits[2][:3])
    np.testing.assert_allclose(served, student(digits[2][:3], training=False), atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_serves_float32(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    served = serve(export.saved_model(model, tmp_path / "s"), np.ones((3, 4), "float32"))
    assert served.dtype.name == "float32"
    assert model.layers[-1].dtype_policy.name == policy


def test_subclassed_model(tmp_path):
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    model = Plain()
    with pytest.raises(ValueError, match="Expected `model` to be built. Received: model="):
        export.saved_model(model, tmp_path / "s")
    data = np.ones((2, 4), "float32")
    model(data)
    served = serve(export.saved_model(model, tmp_path / "s"), data)
    np.testing.assert_allclose(served, model(data), atol=1e-6)


def test_replaces_an_older_saved_model_only(student, tmp_path):
    path = export.saved_model(student, tmp_path / "s")
    (path / "assets" / "old.txt").parent.mkdir(exist_ok=True)
    (path / "assets" / "old.txt").write_text("old")
    export.saved_model(student, path)
    assert not (path / "assets" / "old.txt").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_leaves_other_folders_and_files_alone(student, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_text("dear")
    for path in (tmp_path / "photos", tmp_path / "photos" / "one.png"):
        with pytest.raises(ValueError, match="an older SavedModel. Received: path="):
            export.saved_model(student, path)
    assert (tmp_path / "photos" / "one.png").read_text() == "dear"


def test_a_failure_leaves_the_old_folder(student, tmp_path, monkeypatch):
    path = export.saved_model(student, tmp_path / "s")
    before = (path / "saved_model.pb").read_bytes()

    def fail(self, filepath, **kwargs):
        with open(filepath, "w") as file:
            file.write("half")
        raise OSError("disk full")

    monkeypatch.setattr(keras.Model, "export", fail)
    with pytest.raises(OSError, match="disk full"):
        export.saved_model(student, path)
    assert (path / "saved_model.pb").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_prints_nothing(student, tmp_path, capfd):
    export.saved_model(student, tmp_path / "s")
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_wrong_models(tmp_path):
    with pytest.raises(TypeError, match="Expected `model` to be a keras.Model.*Received: model=3"):
        export.saved_model(3, tmp_path / "s")
    with pytest.raises(FileNotFoundError, match="existing file. Received: model="):
        export.saved_model(tmp_path / "missing.keras", tmp_path / "s")
    with pytest.raises(ValueError, match="`.keras` file"):
        export.saved_model(tmp_path / "model.h5", tmp_path / "s")
    (tmp_path / "broken.keras").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="that this Keras can load. Received: model="):
        export.saved_model(tmp_path / "broken.keras", tmp_path / "s")
    with pytest.raises(TypeError, match="`path` to be a path"):
        export.saved_model(keras.Sequential([keras.Input((2,))]), None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken.keras"]
