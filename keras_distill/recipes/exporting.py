"""`keras-distill export`: a network as SavedModel or `.tflite`, held against itself."""

import pathlib
from typing import Any

import keras

from keras_distill import _quantization
from keras_distill import data
from keras_distill import export
from keras_distill._types import PathLike
from keras_distill.recipes import evaluation
from keras_distill.recipes import networks

SCALE = 255.0
FORMATS = ("tflite", "saved-model")


def write(
    source: PathLike,
    out: PathLike | None = None,
    format: str = "tflite",
    quantize: str | None = None,
    int8_io: bool = False,
    batch_size: int | None = 1,
    dataset: PathLike | None = None,
    data_dir: PathLike | None = None,
    image_size: int | None = None,
    limit: int | None = None,
) -> tuple[pathlib.Path, Any]:
    """Exports a network and, where a data set is named, checks the file on its test images.

    Args:
        source: A `.keras` file, or (for "tflite") the folder of a SavedModel.
        out: The file or folder to write; None for the source's name with another ending.
        format: "tflite" or "saved-model".
        quantize: None, "float16", "dynamic" or "int8" (which needs `dataset`, except for a
            network that was trained in simulated int8).
        int8_io: Whether inputs and outputs are int8 too.
        batch_size: The batch that the file is fixed to; None leaves it open.
        dataset, data_dir: As in `kd.data.load`: training images to measure ranges on, test
            images to check the file on.
        image_size: Side of the images; None for what the network asks for.
        limit: At most so many test images.

    Returns:
        `(path, report)`, the report None where nothing was checked.

    Raises:
        ParityError: If the file strays from the network beyond the limits.
        ValueError: If an argument is wrong, or the network cannot be exported so.
    """
    source = pathlib.Path(source)
    if format not in FORMATS:
        raise ValueError(f"Expected --format tflite or saved-model. Received: {format!r}.")
    if format == "saved-model" and (quantize or int8_io):
        raise ValueError("Expected --quantize only with --format tflite. Received: saved-model.")
    if quantize == "int8" and dataset is None and not _has_ranges(source):
        raise ValueError(
            "Expected --dataset with --quantize int8: the ranges of activations are measured on "
            "its training images. Received: none."
        )
    if out is None:
        name = f"{source.stem}_{quantize}" if quantize else source.stem
        ending = ".tflite" if format == "tflite" else "_saved_model"
        out = source.parent / (name + ending)
    network = source if source.is_dir() else networks.load(source)
    images = None
    if dataset is not None:
        asked = evaluation.asked_size(evaluation.open_model(source))
        split = data.load(dataset, data_dir, image_size=image_size or asked, test_limit=limit)
        if isinstance(network, keras.Model):
            shape, classes = split.test.image_shape, split.test.class_count
            networks.check_fits(network, shape, classes, source)
        images = split.train.images.astype("float32") / SCALE
    if format == "saved-model":
        path = export.saved_model(network, out)
    else:
        path = export.tflite(
            network,
            out,
            quantize,
            representative_data=images,
            io="int8" if int8_io else "float32",
            batch_size=batch_size,
        )
    if dataset is None or not isinstance(network, keras.Model):
        return path, None
    test = split.test.images.astype("float32") / SCALE
    return path, export.check_parity(network, path, test, labels=split.test.labels)


def _has_ranges(source):
    """Whether a file holds a network in simulated int8, which needs no data."""
    return source.is_file() and bool(_quantization.ranges_of(networks.load(source)))
