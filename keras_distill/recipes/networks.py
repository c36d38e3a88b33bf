"""Networks by name or from a file, as the command line knows them."""

import os
import pathlib
import re
from collections.abc import Sequence

import keras

from keras_distill import _checks
from keras_distill import backbones
from keras_distill._files import written_beside
from keras_distill._types import PathLike
from keras_distill.export._network import first_line
from keras_distill.heads import head_of
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.reporting.networks import open_network

# A name is a family with its numbers; the examples are what an error and `--help` list.
FAMILIES = {
    r"small-([0-9]+)": lambda shape, classes, n: backbones.small_cnn(shape, classes, n),
    r"small-([0-9]+)-([0-9]+)-([0-9]+)": lambda shape, classes, *widths: backbones.small_cnn(
        shape, classes, widths
    ),
    r"resnet([0-9]+)": lambda shape, classes, n: backbones.resnet(n, classes, shape),
    r"resnet([0-9]+)x4": lambda shape, classes, n: backbones.resnet_x4(n, classes, shape),
    r"wrn-([0-9]+)-([0-9]+)": lambda shape, classes, n, k: backbones.wide_resnet(
        n, k, classes, shape
    ),
}
EXAMPLES = (
    "small-4",
    "small-32",
    "small-8-16-32",
    "resnet8",
    "resnet20",
    "resnet56",
    "resnet8x4",
    "wrn-16-2",
)
MOST = 2048  # channels, layers: what is above it was typed by mistake


def build(
    name: str, input_shape: Sequence[int], classes: int, seed: int | None = None
) -> keras.Model:
    """Builds a network of the library by name.

    Args:
        name: "small-CHANNELS", "small-STEM-STAGE1-STAGE2", "resnetDEPTH", "resnetDEPTHx4" or
            "wrn-DEPTH-WIDTH".
        input_shape: Shape of an image, (height, width, channels).
        classes: Number of classes.
        seed: Whole number for the initial weights; `None` leaves Keras's random state alone.

    Returns:
        A functional `keras.Model` that returns logits.

    Raises:
        ValueError: If there is no such network.
    """
    for pattern, builder in FAMILIES.items():
        match = re.fullmatch(pattern, str(name))
        if match:
            if any(len(text) > len(str(MOST)) or int(text) > MOST for text in match.groups()):
                expected = f"a network's name with numbers up to {MOST}"
                raise ValueError(f"Expected {expected}. Received: {str(name)[:60]!r}.")
            if seed is not None:
                keras.utils.set_random_seed(seed)
            return builder(tuple(input_shape), classes, *map(int, match.groups()))
    near = _checks.nearest_names(str(name), EXAMPLES) or EXAMPLES
    raise ValueError(
        f"Expected a network's name or a `.keras` file that exists. Received: {str(name)!r}. "
        f"Names: {', '.join(near)}; see `keras-distill train --help`."
    )


def is_file(name: PathLike) -> bool:
    """Whether `name` means a file rather than a network of the library."""
    return str(name).endswith(".keras") or os.sep in str(name)


def load(path: PathLike) -> keras.Model:
    """Loads a network from a `.keras` file, for inference or further training.

    Args:
        path: The file. Of a saved wrapper, the network that is exported is taken (of a
            `Distiller`, the student); an `EnsembleTeacher` is taken as it is.

    Returns:
        A `keras.Model` that is not compiled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a file that Keras can load.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            _checks.message("a `.keras` file that exists", "path", str(path))
            + " `keras-distill train` writes such files; so does `model.save('x.keras')`."
        )
    try:
        return open_network(path)
    except Exception as error:  # a damaged archive, a missing class, another Keras
        raise ValueError(
            f"Expected a `.keras` file that this Keras can load. Received: {str(path)!r} "
            f"({first_line(error)})"
        ) from error


def get(
    name: PathLike, input_shape: Sequence[int], classes: int, seed: int | None = None
) -> keras.Model:
    """`load` for a file, else `build`; checks that the network fits the data.

    Args:
        name: A network's name or the path of a `.keras` file.
        input_shape: Shape of an image.
        classes: Number of classes.
        seed: For the initial weights of a network by name.

    Returns:
        A `keras.Model`.
    """
    if not is_file(name):
        return build(name, input_shape, classes, seed)
    model = load(name)
    check_fits(model, input_shape, classes, name)
    return model


def check_fits(
    model: keras.Model, input_shape: Sequence[int], classes: int, name: PathLike
) -> None:
    """Raises `ValueError` where a model's input or its number of classes is not the data's."""
    expected = image_shape(model)
    if expected is not None and len(expected) == len(input_shape):
        if any(a is not None and a != b for a, b in zip(expected, input_shape)):
            raise ValueError(
                f"Expected images of shape {expected} for {str(name)!r}. Received: images of "
                f"shape {tuple(input_shape)}. Resize them with --image-size, or choose another "
                "network."
            )
    found = class_count(model)
    if found is not None and found != classes and not (found == 1 and classes == 2):
        raise ValueError(
            f"Expected a network with the data's {classes} classes. Received: {str(name)!r} with "
            f"{found}."
        )


def image_shape(model: keras.Model) -> tuple[int | None, ...] | None:
    """(height, width, channels) of a model with one input; None entries, or None, if open."""
    shape = getattr(_with_shapes(model), "input_shape", None)
    return tuple(shape[1:]) if isinstance(shape, tuple) and len(shape) == 4 else None


def class_count(model: keras.Model) -> int | None:
    """Units of a model's one output; None where it does not tell."""
    shape = getattr(_with_shapes(model), "output_shape", None)
    return shape[-1] if isinstance(shape, tuple) else None


def _with_shapes(model):
    return model.members[0] if isinstance(model, EnsembleTeacher) else model


def label_loss(model: keras.Model) -> keras.losses.Loss:
    """The cross-entropy that fits a model's head, for labels that are class numbers."""
    heads = keras.tree.flatten(head_of(model))
    if isinstance(model, EnsembleTeacher):
        heads = ["linear"]
    elif heads == ["unknown"]:
        raise ValueError(
            f"Expected a network whose graph tells whether it returns logits. Received: "
            f"{model.name!r}, which does not. Train it in Python, with `student_from_logits`."
        )
    if len(heads) != 1:
        raise ValueError(f"Expected a network with one output. Received: {len(heads)} outputs.")
    if class_count(model) == 1:
        return keras.losses.BinaryCrossentropy(from_logits=heads[0] == "linear")
    return keras.losses.SparseCategoricalCrossentropy(from_logits=heads[0] == "linear")


def save(model: keras.Model, path: PathLike) -> keras.Model:
    """Saves a network without what training left on it (optimizer, compiled loss).

    Args:
        model: A `keras.Model`.
        path: A path that ends in `.keras`; written beside and renamed.

    Returns:
        The network as it was read back, not compiled.
    """
    with written_beside(path) as temporary:
        model.save(temporary)
        if model.compiled:
            keras.models.load_model(temporary, compile=False).save(temporary)
    return load(path)
