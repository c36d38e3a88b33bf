"""Export to TF Lite (LiteRT): float32, float16, dynamic range and full int8."""

import os
import pathlib
import re
import tempfile
import warnings
from typing import Any

import keras

from keras_distill import _checks
from keras_distill import _files
from keras_distill import _memory
from keras_distill import _quantization
from keras_distill import _terminal
from keras_distill._types import PathLike
from keras_distill.export import _network
from keras_distill.export import _output
from keras_distill.export import _samples
from keras_distill.export._flatbuffer import float_operations
from keras_distill.export.saved_model import is_saved_model

__all__ = ["tflite"]

QUANTIZE = (None, "float16", "dynamic", "int8")


def tflite(
    model: keras.Model | PathLike,
    path: PathLike,
    quantize: str | None = None,
    representative_data: Any = None,
    io: str = "float32",
    batch_size: int | None = 1,
    representative_samples: int = 256,
    float_fallback: bool = False,
) -> pathlib.Path:
    """Writes the inference model as a `.tflite` file.

    Only the inference model leaves. It computes in float32 (or int8) whatever the dtype policy
    of the network was. Only TF Lite's own operations are allowed, and with `"int8"` only its
    integer kernels: what a phone's interpreter could not run is an error here, not there. The
    file appears whole or not at all.

    Args:
        model: A built `keras.Model`, a wrapper of this library (its `inference_model` is
            taken), the path of a `.keras` file, or the folder of a SavedModel (its
            `serving_default` signature is taken). A network from `quantization_aware` is
            written with the ranges that it was trained with, and with `"int8"` alone.
        path: The file to write, ending in `.tflite`; missing parents are made.
        quantize: None keeps float32. `"float16"` stores weights in float16 and computes in
            float32. `"dynamic"` stores large weights in int8 and quantises activations while
            running. `"int8"` makes weights and activations int8.
        representative_data: What `"int8"` measures the ranges of activations on: an array
            (or the structure of arrays that the model takes), or an iterable of batches of `x`
            or `(x, y)`, such as a `tf.data.Dataset`. Labels are dropped. Use training images.
            The other modes do not read it, and a network from `quantization_aware` needs none.
        io: `"float32"`, or `"int8"` to make the inputs and outputs of an int8 file int8 too.
        batch_size: The batch that the file is fixed to, 1 on phones; None leaves it open.
        representative_samples: At most so many samples are measured: evenly spaced ones of an
            array, the first ones of a stream.
        float_fallback: Whether an int8 file may compute in float32 where TF Lite has no int8
            kernel (layer normalization is such a case). Processors run such a file,
            integer-only accelerators do not.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ValueError: If an argument is wrong, or TF Lite has no kernel for an operation.
        RuntimeError: If Keras does not run on TensorFlow.

    Example:
    ```python
    kd.export.tflite(distiller, "student.tflite", "int8", representative_data=x_train)
    kd.export.check_parity(distiller, "student.tflite", x_test, labels=y_test)
    ```
    """
    _network.require_tensorflow("tflite")
    path = _output.output_path(path, "Name the `.tflite` file to write.")
    if path.suffix != ".tflite" or path.is_dir():
        raise ValueError(
            _checks.message("`path` to be a file ending in `.tflite`", "path", str(path))
        )
    _checks.one_of("quantize", quantize, QUANTIZE)
    _checks.one_of("io", io, ("float32", "int8"))
    if io == "int8" and quantize != "int8":
        raise ValueError(
            _checks.message('`quantize="int8"` with `io="int8"`', "quantize", quantize)
        )
    if batch_size is not None:
        _checks.positive_integer("batch_size", batch_size)
    _checks.positive_integer("representative_samples", representative_samples)

    if isinstance(model, (str, os.PathLike)) and pathlib.Path(model).is_dir():
        source = _SavedModelSource(pathlib.Path(model))
    else:
        source = _ModelSource(_network.inference_model(model))
    settings = _converter_settings(quantize, io)
    if source.has_ranges:
        _require_int8(quantize)
        # The converter takes ranges in the graph for int8 only beside its other kernels.
        settings["target_spec"] = _converter_settings(None, io)["target_spec"]
    elif quantize == "int8":
        _require_data(representative_data)
        samples = _samples.take(
            source.inputs, representative_data, "representative_data", representative_samples
        )
        settings["representative_dataset"] = _representative_dataset(
            source.inputs, samples, batch_size or 1
        )
    with _files.written_beside(path) as written:
        try:
            with _terminal.native_output_held_back(), warnings.catch_warnings():
                # The converter's own use of it, when several inputs are calibrated by name.
                warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
                source.convert(pathlib.Path(written), batch_size, settings)
        except Exception as error:
            if _files.lacks_room(error) or _memory.is_out_of_memory(error):
                raise
            raise ValueError(_reason(error, quantize)) from None
        if quantize == "int8" and not float_fallback:
            _require_integers_only(written)
    return path


def _require_int8(quantize):
    if quantize != "int8":
        raise ValueError(
            _checks.message(
                '`quantize="int8"` for a network that was trained in simulated int8',
                "quantize",
                quantize,
                "Pass the float network that it was made from.",
            )
        )


def _require_data(representative_data):
    if representative_data is None:
        raise ValueError(
            _checks.message(
                '`representative_data` with `quantize="int8"`',
                "representative_data",
                None,
                "Pass some training images: the ranges of activations are measured on them.",
            )
        )


def _converter_settings(quantize, io):
    """Attributes of `tf.lite.TFLiteConverter`, in the form that `model.export` takes."""
    import tensorflow as tf

    # Without this, Keras also allows TensorFlow operations that need the Flex delegate.
    builtins = [tf.lite.OpsSet.TFLITE_BUILTINS]
    settings = {"target_spec": {"supported_ops": builtins}}
    if quantize is not None:
        settings["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        settings["target_spec"]["supported_types"] = [tf.float16]
    elif quantize == "int8":
        settings["target_spec"]["supported_ops"] = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        settings["inference_input_type"] = tf.dtypes.as_dtype(io)
        settings["inference_output_type"] = tf.dtypes.as_dtype(io)
    return settings


def _representative_dataset(inputs, samples, batch_size):
    """The converter's generator: one entry a batch, the last batch filled up from the front.

    Several inputs go by name, since the converter orders them in its own way.
    """

    def generate():
        count = len(samples[0])
        for start in range(0, count, batch_size):
            chosen = [index % count for index in range(start, start + batch_size)]
            arrays = [array[chosen] for array in samples]
            names = [item.name for item in inputs.items]
            yield arrays if len(arrays) == 1 else dict(zip(names, arrays, strict=True))

    return generate


class _ModelSource:
    """A Keras model, converted by Keras's own `export(format="litert")`."""

    def __init__(self, network):
        self._network = network
        self.inputs = _network.inputs_of(network)
        ranges = _quantization.ranges_of(network)
        self.has_ranges = bool(ranges)
        empty = [layer.name for layer in ranges if layer.is_empty()]
        if empty:
            raise ValueError(
                "Expected ranges that a training has set. "
                f"Received: model={network.name!r} with empty {', '.join(empty)}. Train it first, "
                "or take the weights of the copy that `quantization_aware` returned."
            )

    def convert(self, path, batch_size, settings):
        with (
            _network.float32_computation(self._network),
            _quantization.for_the_converter(self._network),
        ):
            self._network.export(
                str(path),
                format="litert",
                verbose=False,
                input_signature=self.inputs.signature(batch_size),
                **settings,
            )


class _SavedModelSource:
    """A SavedModel folder, converted by TensorFlow: Keras's route starts from a model only."""

    has_ranges = False

    def __init__(self, folder):
        import tensorflow as tf

        if not is_saved_model(folder):
            raise ValueError(
                _checks.message(
                    "a `.keras` file or a folder with a `saved_model.pb`", "model", str(folder)
                )
            )
        try:
            self._loaded = tf.saved_model.load(str(folder))
            self._serve = self._loaded.signatures["serving_default"]
        except Exception as error:
            raise ValueError(
                "Expected a SavedModel with a `serving_default` signature. "
                f"Received: model={str(folder)!r} ({_network.first_line(error)})"
            ) from None
        self._folder = folder
        self._specs = self._serve.structured_input_signature[1]
        items = [
            _network.Input(name, name, tuple(spec.shape.as_list()), spec.dtype.name)
            for name, spec in self._specs.items()
        ]
        self.inputs = _network.Inputs(tuple(items), None if len(items) == 1 else dict)

    def convert(self, path, batch_size, settings):
        import tensorflow as tf

        with tempfile.TemporaryDirectory() as scratch:
            folder = str(self._folder)
            if batch_size is not None:
                folder = self._with_batch(scratch, batch_size)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            for name, value in settings.items():
                if name == "target_spec":
                    for key, entry in value.items():
                        setattr(converter.target_spec, key, entry)
                else:
                    setattr(converter, name, value)
            path.write_bytes(converter.convert())

    def _with_batch(self, folder, batch_size):
        """The same SavedModel with a fixed batch: the converter cannot fix it afterwards."""
        import tensorflow as tf

        specs = {
            name: tf.TensorSpec((batch_size, *spec.shape[1:]), spec.dtype, name)
            for name, spec in self._specs.items()
        }

        @tf.function(input_signature=[specs], autograph=False)
        def serve(features):
            return self._serve(**features)

        fixed = tf.Module()
        fixed.loaded = self._loaded
        fixed.serve = serve
        tf.saved_model.save(fixed, folder, signatures=serve)
        return folder


def _require_integers_only(path):
    """Raises where the converter kept float operations, which `TFLITE_BUILTINS_INT8` allows."""
    operations = float_operations(path)
    if operations:
        raise ValueError(
            "Expected a model whose operations all have an int8 kernel in TF Lite. "
            f"Received: {', '.join(operations)}. Replace them in the student, or let them compute "
            "in float32 with `float_fallback=True`."
        )


def _reason(error, quantize):
    """The converter's long report as one line that names the operations without a kernel."""
    text = str(error)
    lacking = re.findall(r"(?:TF Select|Custom) ops: ([^\n]+)", text)
    if lacking:
        return (
            "Expected a model whose operations TF Lite has. "
            f"Received: {', '.join(dict.fromkeys(lacking))}. Replace them in the student."
        )
    return (
        f"TF Lite's converter failed with quantize={quantize!r}: {_network.first_line(error, 300)}"
    )
