"""What a network or an exported file is worth on a data set."""

import pathlib
import tempfile

import keras
import numpy as np

from keras_distill import _checks
from keras_distill import export
from keras_distill import metrics
from keras_distill.export import _runner
from keras_distill.heads import head_of
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.recipes import networks

BATCH = 256


def open_model(path):
    """A `.keras` file as a model, a `.tflite` file or SavedModel folder as its runner."""
    path = pathlib.Path(path)
    if path.suffix == ".tflite" or path.is_dir():
        return _runner.open_runner(path)
    return networks.load(path)


def image_size(model):
    """(height, width) that a model or runner asks for; None where it is open."""
    if isinstance(model, keras.Model):
        shape = networks.image_shape(model)
    else:
        shapes = list(model.input_shapes.values())
        shape = shapes[0][1:] if len(shapes) == 1 and len(shapes[0]) == 4 else None
    return None if shape is None or None in shape[:2] else tuple(shape[:2])


def probabilities(model, images, temperature=1.0):
    """The classes' probabilities, shape (samples, classes), float64.

    Args:
        model: A `keras.Model`, or what `open_model` gives for an exported file.
        images: Array (samples, height, width, channels); uint8 is scaled to 0..1.
        temperature: Divides the logits; of an `EnsembleTeacher`, the members'.

    Returns:
        Probabilities, of one unit those of both classes. Whether the outputs are logits is
        told by the graph; of files and of models without a graph, by the values.
    """
    images = np.asarray(images)
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    parts = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH].astype("float32") / scale
        parts.append(np.asarray(_outputs(model, batch, temperature), "float64"))
    outputs = np.concatenate(parts)
    if outputs.ndim != 2:
        raise ValueError(
            _checks.message("a network with outputs (samples, classes)", "shape", outputs.shape)
        )
    if _returns_logits(model, outputs):
        outputs = outputs / temperature
        if outputs.shape[-1] == 1:
            outputs = np.concatenate([np.zeros_like(outputs), outputs], axis=-1)
        outputs = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    else:
        if outputs.shape[-1] == 1:
            outputs = np.concatenate([1.0 - outputs, outputs], axis=-1)
        outputs = np.clip(outputs, 0.0, 1.0) ** (1.0 / temperature)
    return outputs / outputs.sum(axis=-1, keepdims=True)


def _outputs(model, batch, temperature):
    if isinstance(model, EnsembleTeacher):
        outputs = model.soft_outputs(keras.ops.convert_to_tensor(batch), temperature)
    elif isinstance(model, keras.Model):
        outputs = model(batch, training=False)
    else:
        names = list(model.input_shapes)
        if len(names) != 1:
            raise ValueError(_checks.message("a file with one input", "inputs", names))
        _check_image_shape(model, batch)
        outputs = list(model.run({names[0]: batch}).values())
    outputs = keras.tree.flatten(outputs)
    if len(outputs) != 1:
        raise ValueError(_checks.message("a network with one output", "outputs", len(outputs)))
    return keras.ops.convert_to_numpy(outputs[0])


def _check_image_shape(runner, batch):
    (shape,) = runner.input_shapes.values()
    if len(shape) != 4 or any(a not in (None, b) for a, b in zip(shape[1:], batch.shape[1:])):
        raise ValueError(
            f"Expected images of shape {tuple(shape[1:])} for the file. Received: images of shape "
            f"{batch.shape[1:]}. Resize them with --image-size."
        )


def _returns_logits(model, outputs):
    if isinstance(model, EnsembleTeacher):
        return True
    head = head_of(model) if isinstance(model, keras.Model) else "unknown"
    head = keras.tree.flatten(head)[0]
    if head != "unknown":
        return head == "linear"
    inside = outputs.min() >= 0 and outputs.max() <= 1 + 1e-3
    sums = outputs.shape[-1] == 1 or np.allclose(outputs.sum(axis=-1), 1.0, atol=0.05)
    return not (inside and sums)


def scores(found, labels, teacher=None):
    """Accuracy, loss, calibration and agreement, all from probabilities.

    Args:
        found: Probabilities (samples, classes).
        labels: int array (samples,).
        teacher: The teacher's probabilities, or None.

    Returns:
        A dict with `accuracy`, `loss` (cross-entropy in nats), `calibration_error` and
        `agreement` (None without teacher).
    """
    if labels.max() >= found.shape[-1]:
        raise ValueError(
            f"Expected a network for the data's {labels.max() + 1} classes. Received: one with "
            f"{found.shape[-1]}."
        )
    agreement = None
    if teacher is not None:
        agreement = metrics.teacher_agreement(teacher, found, from_logits=False)
    own = np.clip(found[np.arange(len(labels)), labels], 1e-12, 1.0)
    return {
        "accuracy": float(np.mean(found.argmax(axis=-1) == labels)),
        "loss": float(-np.mean(np.log(own))),
        "calibration_error": metrics.expected_calibration_error(labels, found, from_logits=False),
        "agreement": agreement,
    }


def parameters(model):
    """Number of a model's parameters; None for an exported file."""
    return int(model.count_params()) if isinstance(model, keras.Model) else None


def size(path):
    """Bytes of a file, or of all the files in a folder."""
    path = pathlib.Path(path)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def latency_ms(path):
    """Milliseconds of one image in an exported file; a network's as a float32 `.tflite` file.

    Args:
        path: A `.keras` or `.tflite` file, or a SavedModel folder.

    Returns:
        The median, or None for a network that TF Lite cannot convert.
    """
    path = pathlib.Path(path)
    if path.suffix != ".keras":
        return export.latency(path).median_ms
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = export.tflite(networks.load(path), pathlib.Path(folder) / "model.tflite")
        except ValueError:
            return None
        return export.latency(file).median_ms
