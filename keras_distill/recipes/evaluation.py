"""What a network or an exported file is worth on a data set."""

import pathlib
import tempfile
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill import _quantization
from keras_distill import data
from keras_distill import export
from keras_distill import metrics
from keras_distill import reporting
from keras_distill._types import PathLike
from keras_distill.data.images import ImageData
from keras_distill.export import _runner
from keras_distill.recipes import networks
from keras_distill.reporting import tables
from keras_distill.reporting.networks import probabilities
from keras_distill.reporting.tables import Table


def open_model(path: PathLike) -> Any:
    """A `.keras` file as a model, a `.tflite` file or SavedModel folder as its runner."""
    path = pathlib.Path(path)
    if path.suffix == ".tflite" or path.is_dir():
        return _runner.open_runner(path)
    return networks.load(path)


def asked_size(model: Any) -> tuple[int, int] | None:
    """(height, width) that a model or runner asks for; None where it is open."""
    if isinstance(model, keras.Model):
        shape = networks.image_shape(model)
    else:
        shapes = list(model.input_shapes.values())
        shape = shapes[0][1:] if len(shapes) == 1 and len(shapes[0]) == 4 else None
    return None if shape is None or None in shape[:2] else tuple(shape[:2])


def scores(
    found: np.ndarray, labels: np.ndarray, teacher: np.ndarray | None = None
) -> dict[str, Any]:
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


def parameters(model: Any) -> int | None:
    """Number of a model's parameters; None for an exported file."""
    return int(model.count_params()) if isinstance(model, keras.Model) else None


def size(path: PathLike) -> int:
    """Bytes of a file, or of all the files in a folder."""
    path = pathlib.Path(path)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def latency_ms(path: PathLike) -> float | None:
    """Milliseconds of one image in an exported file; a network's as a `.tflite` file.

    That file is float32, or int8 for a network that was trained in simulated int8.

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
            network = networks.load(path)
            quantize = "int8" if _quantization.ranges_of(network) else None
            file = export.tflite(network, pathlib.Path(folder) / "model.tflite", quantize)
        except ValueError:
            return None
        return export.latency(file).median_ms


def compare(
    paths: Sequence[PathLike],
    dataset: PathLike,
    data_dir: PathLike | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    teacher: PathLike | None = None,
) -> tuple[list[dict[str, Any]], ImageData]:
    """Several networks and exported files, side by side on the test part of a data set.

    Args:
        paths: `.keras` and `.tflite` files and SavedModel folders.
        dataset, data_dir: As in `kd.data.load`.
        image_size: Side of the images; None for what the networks ask for.
        limit: At most so many test images.
        teacher: The file whose answers the others are held against; None for none.

    Returns:
        `(entries, test)`: for each path a dict with `file`, `parameters`, `bytes`,
        `latency_ms` and what `scores` gives; and the test `ImageData`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read or does not fit the data.
    """
    opened = {str(path): open_model(path) for path in [*paths, *([teacher] if teacher else [])]}
    sizes = [found for model in opened.values() if (found := asked_size(model))]
    test = data.load(
        dataset,
        data_dir,
        "test",
        image_size=image_size or next(iter(sizes), None),
        test_limit=limit,
    )
    found = {}
    for path, model in opened.items():
        if isinstance(model, keras.Model):
            networks.check_fits(model, test.image_shape, test.class_count, path)
        found[path] = probabilities(model, test.images)
    said = found[str(teacher)] if teacher else None
    entries = [
        {
            "file": path,
            "parameters": parameters(opened[path]),
            "bytes": size(path),
            "latency_ms": latency_ms(path),
            **scores(found[path], test.labels, said),
        }
        for path in map(str, paths)
    ]
    return entries, test


def comparison_table(entries: Sequence[Mapping[str, Any]], test: ImageData) -> Table:
    """What `compare` found as a `kd.reporting.Table`."""
    columns = {
        "accuracy %": lambda entry: tables.percent(entry["accuracy"]),
        "loss": lambda entry: f"{entry['loss']:.4f}",
        "calibration error %": lambda entry: tables.percent(entry["calibration_error"]),
        "agrees with teacher %": lambda entry: tables.percent(entry["agreement"]),
        "parameters": lambda entry: tables.whole(entry["parameters"]),
        "size": lambda entry: tables.size(entry["bytes"]),
        "ms an image": lambda entry: tables.milliseconds(entry["latency_ms"]),
    }
    kept = {
        name: cells
        for name, cell in columns.items()
        if set(cells := [cell(entry) for entry in entries]) != {tables.MISSING}
    }
    rows = zip([entry["file"] for entry in entries], *kept.values())
    title = f"{test.name}, {len(test):,} images"
    return reporting.Table(title, ("file", *kept), tuple(rows))
