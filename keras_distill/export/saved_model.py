"""Export to a TensorFlow SavedModel folder."""

import os
import pathlib

import keras

from keras_distill import _checks
from keras_distill import _files
from keras_distill import _quantization
from keras_distill import _terminal
from keras_distill._types import PathLike
from keras_distill.export import _network
from keras_distill.export import _output

__all__ = ["saved_model"]


def saved_model(model: keras.Model | PathLike, path: PathLike) -> pathlib.Path:
    """Writes the inference model as a SavedModel folder with an open batch.

    Only the inference model leaves: no teacher, connectors, exits or optimizer. It computes in
    float32 whatever the dtype policy of the network was, and its inputs have the names of the
    network's inputs. The folder appears whole or not at all: an existing SavedModel is replaced
    only once the new one is complete.

    Args:
        model: A built `keras.Model`, a wrapper of this library (its `inference_model` is
            taken), or the path of a `.keras` file.
        path: The folder to write; missing parents are made. A folder that is there must be a
            SavedModel or empty.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ValueError: If the model is not built or was trained in simulated int8, or `path` is
            something else than a SavedModel.
        RuntimeError: If Keras does not run on TensorFlow.

    Example:
    ```python
    kd.export.saved_model(distiller, "runs/student_saved_model")
    student = tf.saved_model.load("runs/student_saved_model")
    logits = student.serve(images)
    ```
    """
    _network.require_tensorflow("saved_model")
    path = _output.output_path(path, "Name the folder to write.")
    if path.exists() and not _is_replaceable(path):
        raise ValueError(
            _checks.message(
                "`path` to be new, an empty folder or an older SavedModel",
                "path",
                str(path),
                "It holds something else, which is left alone: choose another path.",
            )
        )
    network = _network.inference_model(model)
    if _quantization.ranges_of(network):
        raise ValueError(
            _checks.message(
                "a float `model`",
                "model",
                f"{network.name}, in simulated int8",
                'Its ranges are for a `.tflite` file: kd.export.tflite(model, path, "int8").',
            )
        )
    signature = _network.inputs_of(network).signature(batch_size=None)
    with _files.written_beside(path) as written:
        with _network.float32_computation(network), _terminal.native_output_held_back():
            network.export(
                written, format="tf_saved_model", verbose=False, input_signature=signature
            )
    return path


def _is_replaceable(path):
    return path.is_dir() and (is_saved_model(path) or not os.listdir(path))


def is_saved_model(path):
    """Whether `path` is a folder that holds a SavedModel."""
    return path.is_dir() and (path / "saved_model.pb").is_file()
