import keras
import pytest

from keras_distill import export


@pytest.mark.parametrize("function", [export.saved_model, export.tflite])
def test_other_backends_are_told_to_use_tensorflow(function, tmp_path, monkeypatch):
    if keras.backend.backend() == "tensorflow":
        monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(RuntimeError, match="Expected Keras on TensorFlow .*KERAS_BACKEND"):
        function(model, tmp_path / "student.tflite")
    assert list(tmp_path.iterdir()) == []
