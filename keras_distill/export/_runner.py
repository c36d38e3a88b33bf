"""Running an exported file: a `.tflite` in LiteRT's interpreter, a SavedModel in TensorFlow.

Both runners take and give dicts of NumPy arrays by the names in the file's signature:
`prepare`, `invoke` and `outputs` are one pass (so that `invoke` alone can be timed), `run` is
a whole batch of any size.
"""

import os
import pathlib

import numpy as np

from keras_distill import _checks
from keras_distill import _terminal
from keras_distill.export import _network
from keras_distill.export.saved_model import is_saved_model


def open_runner(path, threads=1):
    """The runner for the exported file or folder at `path`."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(_checks.message("`path` to be a path", "path", path))
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(
            _checks.message("`path` to be an exported file or folder", "path", str(path))
        )
    if path.is_dir():
        if not is_saved_model(path):
            raise ValueError(_checks.message("a folder with a `saved_model.pb`", "path", str(path)))
        return SavedModelRunner(path)
    return LiteRunner(path, threads)


class _Runner:
    """What both runners share.

    Attributes:
        input_shapes: Shape by input name, None where a size is open.
        output_names: Names of the outputs, in order.
    """

    @property
    def batch_size(self):
        """The batch that the file is fixed to, or None."""
        sizes = {shape[0] for shape in self.input_shapes.values() if shape}
        return sizes.pop() if len(sizes) == 1 else None

    def run(self, feed):
        """Outputs for a batch of any size; a fixed batch is filled up by repeating a sample."""
        count = len(next(iter(feed.values())))
        step = self.batch_size or count
        passes = []
        for start in range(0, count, step):
            chosen = np.minimum(np.arange(start, start + step), count - 1)
            self.prepare({name: array[chosen] for name, array in feed.items()})
            self.invoke()
            passes.append(self.outputs())
        return {
            name: np.concatenate([one[name] for one in passes])[:count]
            for name in self.output_names
        }


class LiteRunner(_Runner):
    """A `.tflite` file in LiteRT's interpreter, float32 outside whatever the file's dtypes."""

    def __init__(self, path, threads=1):
        interpreter_class = _interpreter_class()
        self._path, self._allocated = path, False
        try:
            with _terminal.native_output_held_back():
                self._interpreter = interpreter_class(model_path=str(path), num_threads=threads)
        except (RuntimeError, ValueError) as error:
            raise self._in_one_line(error) from None
        self._inputs, self._outputs = self._named_details()
        self._shapes = {name: tuple(entry["shape"]) for name, entry in self._inputs.items()}
        self.input_shapes = {
            name: tuple(None if size < 0 else int(size) for size in _signature_shape(entry))
            for name, entry in self._inputs.items()
        }
        self.input_dtypes = {name: entry["dtype"] for name, entry in self._inputs.items()}
        self.output_names = list(self._outputs)

    def _named_details(self):
        """Tensor details by name in the signature; by tensor name in files without one."""
        if self._interpreter.get_signature_list():
            runner = self._interpreter.get_signature_runner()
            return runner.get_input_details(), runner.get_output_details()
        return (
            {entry["name"]: entry for entry in self._interpreter.get_input_details()},
            {entry["name"]: entry for entry in self._interpreter.get_output_details()},
        )

    def prepare(self, feed):
        for name, array in feed.items():
            if self._shapes[name] != array.shape:
                self._interpreter.resize_tensor_input(self._inputs[name]["index"], array.shape)
                self._shapes[name] = array.shape
                self._allocated = False
        if not self._allocated:
            # Not before the sizes that the file leaves open are known.
            try:
                with _terminal.native_output_held_back():
                    self._interpreter.allocate_tensors()
            except (RuntimeError, ValueError) as error:
                raise self._in_one_line(error) from None
            self._allocated = True
        for name, array in feed.items():
            entry = self._inputs[name]
            self._interpreter.set_tensor(entry["index"], _quantized(array, entry))

    def invoke(self):
        try:
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise self._in_one_line(error) from None

    def _in_one_line(self, error):
        return ValueError(
            "Expected a `.tflite` file that LiteRT can run on these inputs. "
            f"Received: path={str(self._path)!r} ({_network.first_line(error)})"
        )

    def outputs(self):
        return {
            name: _dequantized(self._interpreter.get_tensor(entry["index"]), entry)
            for name, entry in self._outputs.items()
        }


class SavedModelRunner(_Runner):
    """The `serving_default` signature of a SavedModel folder."""

    def __init__(self, path):
        try:
            import tensorflow as tf
        except ImportError:
            raise ImportError(
                "Running a SavedModel needs TensorFlow. Install it: pip install keras-distill"
            ) from None
        try:
            with _terminal.native_output_held_back():
                self._loaded = tf.saved_model.load(str(path))
            self._serve = self._loaded.signatures["serving_default"]
        except Exception as error:
            raise ValueError(
                "Expected a SavedModel with a `serving_default` signature. "
                f"Received: path={str(path)!r} ({_network.first_line(error)})"
            ) from None
        self._tf = tf
        specs = self._serve.structured_input_signature[1]
        self.input_shapes = {name: tuple(spec.shape.as_list()) for name, spec in specs.items()}
        self.input_dtypes = {name: spec.dtype.as_numpy_dtype for name, spec in specs.items()}
        self.output_names = sorted(self._serve.structured_outputs)

    def prepare(self, feed):
        self._feed = {
            name: self._tf.constant(array, dtype=self.input_dtypes[name])
            for name, array in feed.items()
        }

    def invoke(self):
        self._results = self._serve(**self._feed)

    def outputs(self):
        return {name: np.asarray(value) for name, value in self._results.items()}


def _interpreter_class():
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise ImportError(
            "Running a `.tflite` file needs LiteRT's interpreter. Install it: "
            'pip install "keras-distill[litert]"'
        ) from None
    return Interpreter


def _signature_shape(entry):
    signature = entry["shape_signature"]
    return signature if len(signature) else entry["shape"]


def _quantized(array, entry):
    """The codes of `array` in the tensor's dtype: q = round(x / scale) + zero point, clipped."""
    scale, zero_point = entry["quantization"]
    dtype = np.dtype(entry["dtype"])
    if dtype.kind in "iu" and scale and array.dtype.kind == "f":
        limits = np.iinfo(dtype)
        array = np.clip(np.round(array / scale) + zero_point, limits.min, limits.max)
    return array.astype(dtype, copy=False)


def _dequantized(array, entry):
    """The value of the codes q: x = (q - zero point) * scale."""
    scale, zero_point = entry["quantization"]
    if array.dtype.kind in "iu" and scale:
        return (array.astype("float32") - zero_point) * np.float32(scale)
    return array
