"""From what the caller has to the network that leaves: its inputs, its float32 computation."""

import dataclasses
import os
import pathlib
import re

import keras

from keras_distill import _checks
from keras_distill._precision import HALF_PRECISION
from keras_distill._precision import computing_in


def require_tensorflow(function):
    """Raises unless Keras runs on TensorFlow, whose converter and SavedModel are used."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise RuntimeError(
            f"Expected Keras on TensorFlow for `kd.export.{function}`. "
            f"Received: keras.backend.backend()={backend!r}. Save the student as a `.keras` file, "
            "then export that file in a process started with KERAS_BACKEND=tensorflow."
        )


def inference_model(model):
    """The network that leaves: a model's own, a wrapper's `inference_model`, or a file's.

    Args:
        model: A `keras.Model`, a wrapper of this library, or the path of a `.keras` file.

    Returns:
        A built `keras.Model`.
    """
    if isinstance(model, (str, os.PathLike)):
        model = _load(pathlib.Path(model))
    network = getattr(model, "inference_model", model)
    _checks.instance(
        "model",
        network,
        keras.Model,
        "a keras.Model, a keras_distill wrapper or the path of a `.keras` file",
    )
    if not network.built:
        raise ValueError(
            _checks.message(
                "`model` to be built", "model", network.name, "Call it on one batch first."
            )
        )
    return network


def _load(path):
    if path.suffix != ".keras":
        raise ValueError(
            _checks.message("a `.keras` file or a SavedModel folder", "model", str(path))
        )
    if not path.is_file():
        raise FileNotFoundError(
            _checks.message("`model` to be an existing file", "model", str(path))
        )
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(
            f"Expected a `.keras` file that this Keras can load. Received: model={str(path)!r} "
            f"({first_line(error)})"
        ) from None


def first_line(error, length=200):
    """The first line of an error's text that says something, cut at `length` characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= length else text[: length - 3] + "..."


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of a network: its key in the caller's data, its name in the exported file."""

    key: object
    name: str
    shape: tuple
    dtype: str


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A network's inputs in order, and the structure (`kind`) in which the network takes them.

    `kind` is None for a bare tensor, else `list`, `tuple` or `dict`.
    """

    items: tuple
    kind: type

    def pack(self, values):
        """Flat `values`, one an input, as the structure that the network takes."""
        if self.kind is None:
            return values[0]
        if self.kind is dict:
            return {item.key: value for item, value in zip(self.items, values, strict=True)}
        return self.kind(values)

    def signature(self, batch_size):
        """Keras's `input_signature` with the batch fixed, or open where it is None."""
        specs = [
            keras.layers.InputSpec(
                shape=(batch_size, *item.shape[1:]), dtype=item.dtype, name=item.name
            )
            for item in self.items
        ]
        return [self.pack(specs)]


def inputs_of(network):
    """The `Inputs` of a built network, from its graph or from the shapes of its first call."""
    if getattr(network, "inputs", None):
        is_sequential = isinstance(network, keras.Sequential)
        structure = network.inputs[0] if is_sequential else network.input
    else:
        structure = _recorded_shapes(network)
    if isinstance(structure, dict):
        kind, keys, leaves = dict, list(structure), list(structure.values())
    elif isinstance(structure, (list, tuple)):
        kind, leaves = type(structure), list(structure)
        keys = list(range(len(leaves)))
    else:
        kind, keys, leaves = None, [0], [structure]
    if any(isinstance(leaf, (dict, list, tuple)) for leaf in leaves):
        raise ValueError(
            _checks.message(
                "`model` to take one tensor, or one list, tuple or dict of tensors",
                "model",
                network.name,
            )
        )
    names = _names(keys if kind is dict else [leaf.name for leaf in leaves])
    items = [
        Input(key, name, tuple(leaf.shape), _exported_dtype(leaf.dtype))
        for key, name, leaf in zip(keys, names, leaves, strict=True)
    ]
    return Inputs(tuple(items), kind)


def _recorded_shapes(network):
    shapes = (network.get_build_config() or {}).get("input_shape")
    if shapes is None:
        raise ValueError(
            _checks.message(
                "`model` to have a graph, or to have been called with all its inputs in its "
                "first argument",
                "model",
                network.name,
                "Call it on one batch first.",
            )
        )

    def tensors(shape):
        if isinstance(shape, dict):
            return {key: tensors(value) for key, value in shape.items()}
        if all(size is None or isinstance(size, int) for size in shape):
            return keras.KerasTensor((None, *shape[1:]), dtype=network.input_dtype)
        return type(shape)(tensors(value) for value in shape)

    return tensors(shapes)


def _exported_dtype(dtype):
    dtype = keras.backend.standardize_dtype(dtype)
    return "float32" if dtype in HALF_PRECISION else dtype


def _names(names):
    """Names that a SavedModel signature keeps as they are, each once.

    A name that Keras counted up ("keras_tensor_31") would differ from run to run.
    """
    chosen = []
    for index, name in enumerate(names):
        name = re.sub(r"\W", "_", str(name), flags=re.ASCII)
        if re.fullmatch(r"keras_tensor(_\d+)?", name):
            name = "input" if len(names) == 1 else f"input_{index}"
        if not name[:1].isalpha():
            name = f"input_{name}"
        while name in chosen:
            name += f"_{index}"
        chosen.append(name)
    return chosen


def float32_computation(network):
    """Inside the block, the layers of `network` that compute in half precision use float32.

    TF Lite's float kernels are float32: a mixed_float16 network would be exported with
    float16 outputs, or not at all.
    """
    return computing_in(network, "float32", of=HALF_PRECISION)
