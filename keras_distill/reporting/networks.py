"""The networks of a run: opened from their files, and asked for probabilities and layers."""

import math
import pathlib

import keras
import numpy as np

from keras_distill import _checks
from keras_distill import _graph
from keras_distill import taps
from keras_distill.heads import head_of
from keras_distill.models.base import DistillationModel
from keras_distill.models.ensemble import EnsembleTeacher

BATCH = 256  # images of 32 x 32 x 3; of larger ones fewer
LEAST_BATCH = 8
MOST_VALUES = 32_768  # of one layer and image; larger maps are averaged over squares
# Layers that change little or only the form: the layer after them stands for them.
PASSED_OVER = (
    keras.layers.InputLayer,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Rescaling,
    keras.layers.Reshape,
    keras.layers.ZeroPadding2D,
)


def open_network(path):
    """Loads a `.keras` file; of a saved wrapper, the network that is exported.

    Args:
        path: The file. An `EnsembleTeacher` is taken as it is.

    Raises:
        Whatever Keras raises where it cannot load it.
    """
    model = keras.models.load_model(pathlib.Path(path), compile=False)
    if isinstance(model, DistillationModel) and not isinstance(model, EnsembleTeacher):
        return model.inference_model
    return model


def probabilities(model, images, temperature=1.0):
    """The classes' probabilities, shape (samples, classes), float64.

    Args:
        model: A `keras.Model`, or the runner of an exported file, with `input_shapes` and `run`.
        images: Array (samples, height, width, channels); uint8 is scaled to 0..1.
        temperature: Divides the logits; of an `EnsembleTeacher`, the members'.

    Returns:
        Probabilities, of one unit those of both classes. Whether the outputs are logits is
        told by the graph; of files and of models without a graph, by the values.
    """
    parts = [
        np.asarray(_outputs(model, batch, temperature), "float64") for batch in _batches(images)
    ]
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


def layers_of(model):
    """The layers of a network that stand for its stages, in the order in which they run.

    Args:
        model: A functional or Sequential model.

    Returns:
        A dict of path, as in `kd.tap`, -> shape without the batch. Inputs, normalisations and
        what only changes the form are passed over, and a layer that feeds nothing but a
        normalisation or an activation: that one stands for it.
    """
    shapes = {
        path: shape[1:]
        for path, shape in taps.list_taps(model).items()
        if isinstance(shape, tuple) and len(shape) >= 2
    }
    kept = [path for path in _stations(model) if path in shapes]
    return {path: shapes[path] for path in kept or shapes}


def features(model, paths, images):
    """What layers of a network return for images.

    Args:
        model: A functional or Sequential model.
        paths: Paths of layers.
        images: Array (samples, height, width, channels).

    Returns:
        A dict of path -> float32 array (samples, ...). Maps of more than 32,768 values are
        averaged over squares of 2 x 2, 4 x 4 ... places to no more.
    """
    twin = taps.tap(model, list(paths))
    parts = {path: [] for path in paths}
    for batch in _batches(images):
        outputs = twin(batch, training=False)["features"]
        for path in paths:
            parts[path].append(_shrunk(keras.ops.convert_to_numpy(outputs[path])))
    return {path: np.concatenate(found).astype("float32") for path, found in parts.items()}


def batch_size(images):
    """How many of these images a network is asked at once."""
    values = max(1, math.prod(images.shape[1:]))
    return min(BATCH, max(LEAST_BATCH, BATCH * 3072 // values))


def _batches(images):
    images = np.asarray(images)
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    count = batch_size(images)
    for start in range(0, len(images), count):
        yield images[start : start + count].astype("float32") / scale


def _shrunk(maps):
    while maps.ndim == 4 and maps[0].size > MOST_VALUES and min(maps.shape[1:3]) > 1:
        height, width = (side // 2 * 2 for side in maps.shape[1:3])
        maps = maps[:, :height, :width]
        maps = maps.reshape(len(maps), height // 2, 2, width // 2, 2, -1).mean(axis=(2, 4))
    return maps


def _stations(model):
    """Paths of the layers that stand for the stages."""
    graph = _graph.Graph(model)
    users = {}
    for call in graph.calls:
        for tensor in call.inputs:
            users.setdefault(id(tensor), []).append(call.operation)
    for call in graph.calls:
        following = [user for tensor in call.outputs for user in users.get(id(tensor), ())]
        if _graph.has_graph(call.operation):
            yield from (f"{call.name}/{path}" for path in _stations(call.operation))
        elif call.is_input or isinstance(call.operation, PASSED_OVER):
            continue
        elif not following or not all(
            isinstance(user, (keras.layers.BatchNormalization, keras.layers.Activation))
            for user in following
        ):
            yield call.name


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
