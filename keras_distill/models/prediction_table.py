"""A table of what the student last said about each training sample (PS-KD)."""

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import distribution
from keras_distill._ops import at_least_float32
from keras_distill._rows import read_rows
from keras_distill._rows import write_rows

FULL = ("float32", "float16")


class PredictionTable(keras.layers.Layer):
    """One row of probabilities a sample, read and written by the ids of the samples.

    Its variables are state of the training, never trained and saved with it. A write on
    several replicas writes the rows of all of them into every replica's copy.

    Args:
        samples: Number of rows N; ids run from 0 to N - 1.
        shape: Shape of one sample's prediction, `(classes,)` or `(..., classes)`.
        storage: "float32" or "float16" for whole rows, of N * classes * 4 or 2 bytes; or a
            number k: the k largest probabilities in float16 and their classes in 2 bytes each
            (4 above 65536 classes), N * k * 4 bytes. What the k leave of the probability is
            spread evenly over the other classes when a row is read.
        name: Name of the layer.
    """

    def __init__(self, samples, shape, storage="float32", name=None):
        super().__init__(name=name, autocast=False)
        self.samples = samples
        self.units = shape[-1]
        self.top = None if storage in FULL else storage
        self.classes = None
        if self.top is not None:
            shape = (*shape[:-1], self.top)
            wide = self.units > 2**16
            # TensorFlow has no kernel on GPUs that writes rows of int32.
            self.classes = self._rows(shape, "uint32" if wide else "uint16", 0, "classes")
        dtype = "float16" if self.top is not None else storage
        # A probability below 0 marks a row that was never written.
        self.probabilities = self._rows(shape, dtype, -1, "probabilities")
        self.built = True

    def _rows(self, shape, dtype, value, name):
        return self.add_weight(
            shape=(self.samples, *shape),
            dtype=dtype,
            initializer=keras.initializers.Constant(value),
            trainable=False,
            name=name,
        )

    def read(self, ids):
        """The rows of some samples.

        Args:
            ids: Integer tensor `(batch,)`.

        Returns:
            `(probabilities, written)`: float32 `(batch, ..., classes)` and a boolean
            `(batch, ..., 1)` that is `False` where a row was never written, whose
            probabilities mean nothing. An id outside the table gives NaN, which no loss
            survives, where the backend does not raise by itself.
        """
        ids = ops.cast(ids, "int32")
        rows = at_least_float32(read_rows(self.probabilities, ids))
        inside = ops.logical_and(ids >= 0, ids < self.samples)
        inside = ops.reshape(inside, (-1,) + (1,) * (len(rows.shape) - 1))
        rows = ops.where(inside, rows, float("nan"))
        written = ops.logical_not(rows[..., :1] < 0)
        if self.top is not None:
            classes = ops.cast(read_rows(self.classes, ids), "int32")
            rest = ops.maximum(1.0 - ops.sum(rows, axis=-1, keepdims=True), 0.0)
            rest = rest / (self.units - self.top)
            places = ops.one_hot(classes, self.units, dtype=rows.dtype)
            rows = rest + ops.sum(places * ops.expand_dims(rows - rest, -1), axis=-2)
        return ops.stop_gradient(rows), written

    def write(self, ids, probabilities):
        """Keeps the probabilities `(batch, ..., classes)` of some samples."""
        ids = distribution.of_all_replicas(ops.cast(ids, "int32"))
        rows = distribution.of_all_replicas(ops.stop_gradient(probabilities))
        if self.top is not None:
            rows, classes = ops.top_k(rows, self.top)
            write_rows(self.classes, ids, classes)
        write_rows(self.probabilities, ids, rows)


def check_storage(value, units=None):
    """Returns `value`; raises unless it says how a table of `units` classes is kept."""
    if isinstance(value, str) or isinstance(value, bool) or value is None:
        if value not in FULL:
            raise ValueError(
                _checks.message(
                    "`table` to be 'float32', 'float16' or a number of classes to keep",
                    "table",
                    value,
                )
            )
        return value
    value = _checks.positive_integer("table", value)
    if units is not None and value >= units:
        raise ValueError(
            _checks.message(
                f"`table` to keep fewer than the {units} classes",
                "table",
                value,
                "Pass table='float16' to keep all.",
            )
        )
    return value
