"""The parts of `DLBModel` beside the model: the cache, the halves of a batch, the epoch."""

from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from keras_distill import _keras
from keras_distill import distribution
from keras_distill.models.outputs import Outputs

ELEMENT = "((x_last, x_new), (y_last, y_new), (w_last, w_new))"
MAKE_ONE = "Make the data set with keras_distill.data.overlap_batches(...), or fit on arrays."


class Halves(NamedTuple):
    """What a training forward of both halves gives.

    Attributes:
        prediction: The outputs for all that was forwarded, the repeated half first.
        last_logits: The logits for the repeated half, one tensor an output.
        cached: The logits that the step before gave for the same samples.
        is_cached: Whether there was a step before.
        new_logits: The logits for the new half.
        other_logits: Those for its other view; `None` where there is none.
    """

    prediction: Any
    last_logits: Any
    cached: Any
    is_cached: Any
    new_logits: Any = None
    other_logits: Any = None


def rows_a_replica(halves, replicas):
    """The samples that each of so many replicas has of each half; raises unless all are alike."""
    rows = [keras.tree.flatten(half)[0].shape[0] for half in halves]
    if rows[0] is None or rows[0] != rows[1] or rows[0] % replicas:
        raise ValueError(
            f"Expected halves of one known size that divides by the {replicas} replicas. "
            f"Received: {rows[0]} and {rows[1]} samples. {MAKE_ONE}"
        )
    return rows[0] // replicas


class LogitCache:
    """The logits of the last new half, on each replica its own.

    A plain object, so that Keras neither locks nor saves its variables.

    Args:
        rows: Samples of the half on a replica.
        shapes: The rest of the shape of each output's logits.
    """

    def __init__(self, rows, shapes):
        self.rows = rows
        self.shapes = [tuple(shape) for shape in shapes]
        if any(size is None for shape in self.shapes for size in shape):
            raise ValueError(
                "Expected logits of a known shape, for they are cached. Received: "
                f"{self.shapes}. Give elements of one static shape."
            )
        self.logits = [
            _variable("zeros", (rows, *shape), "float32", f"cached_logits_{i}")
            for i, shape in enumerate(self.shapes)
        ]
        self.is_filled = _variable("zeros", (), "float32", "cache_is_filled")

    @property
    def variables(self):
        """All variables."""
        return [*self.logits, self.is_filled]

    def exchange(self, logits):
        """Returns what is cached and whether there is any, and caches `logits` instead."""
        cached = [ops.copy(variable) for variable in self.logits]
        is_filled = ops.copy(self.is_filled) > 0
        for variable, new in zip(self.logits, logits):
            new = ops.cast(ops.stop_gradient(new), "float32")
            if new.shape[0] not in (None, self.rows):
                raise ValueError(
                    f"Expected halves of {self.rows} samples, as the cache holds. Received: "
                    f"{new.shape[0]}. The halves of a stream are of one size."
                )
            variable.assign(new)
        self.is_filled.assign(ops.ones(()))
        return cached, is_filled

    def empty(self):
        """Forgets the logits."""
        self.is_filled.assign(ops.zeros(()))


def _variable(initializer, shape, dtype, name):
    return keras.Variable(
        initializer,
        shape=shape,
        dtype=dtype,
        trainable=False,
        autocast=False,
        synchronization="on_read",
        aggregation="only_first_replica",
        name=name,
    )


class Clock(keras.callbacks.Callback):
    """The epoch that `fit` is in, for data that is read anew in each.

    Args:
        epoch: The epoch before `fit` says one.
    """

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch
        self.first = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.first = epoch if self.first is None else self.first

    def now(self):
        """`(epoch, whether it is the first of this fit)`."""
        return self.epoch, self.first is None or self.epoch == self.first

    def among(self, callbacks):
        """`callbacks` of `fit` with this one."""
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.append(self)
            return callbacks
        return [self, *keras.tree.flatten(callbacks if callbacks is not None else [])]


def joined(*structures):
    """Several structures of tensors as one, row below row, Keras's masks kept."""

    def concatenated(*parts):
        rows = ops.concatenate(parts, axis=0)
        masks = [_keras.get_keras_mask(part) for part in parts]
        if all(mask is not None for mask in masks):
            _keras.set_keras_mask(rows, ops.concatenate(masks, axis=0))
        return rows

    return keras.tree.map_structure(concatenated, *structures)


def rows_of(structure, start, stop):
    """Rows of each tensor of a structure, Keras's masks kept."""

    def sliced(tensor):
        part = tensor[start:stop]
        mask = _keras.get_keras_mask(tensor)
        if mask is not None:
            _keras.set_keras_mask(part, mask[start:stop])
        return part

    return keras.tree.map_structure(sliced, structure)


def without_absent(outputs, sample_weight):
    """The outputs with Keras's mask over a repeated half that is absent.

    What is masked, Keras leaves out of sums and counts, under every reduction.

    Args:
        outputs: `Outputs` whose terms are `Halves`.
        sample_weight: Weights of both halves, or `None`.
    """
    halves = outputs.terms
    present = halves.is_cached
    if sample_weight is not None:
        weighed = [ops.any(weight != 0) for weight in keras.tree.flatten(sample_weight[0])]
        weighed = ops.cast(ops.any(ops.stack(weighed)), "float32")
        present = ops.logical_and(present, distribution.sum_over_replicas(weighed) > 0)
    rows = ops.shape(halves.last_logits[0])[0]
    prediction = keras.tree.map_structure(
        lambda both: _masked(both, rows, present), halves.prediction
    )
    logits = [_masked(last, rows, present) for last in halves.last_logits]
    return Outputs(outputs.prediction, halves._replace(prediction=prediction, last_logits=logits))


def _masked(tensor, rows, present):
    """A copy of `tensor` whose first `rows` are masked unless `present`."""
    own = _keras.get_keras_mask(tensor)
    shape = ops.shape(tensor)
    shape = shape[:-1] if len(shape) > 1 else shape
    kept = ops.logical_or(present, ops.arange(shape[0]) >= rows)
    kept = ops.reshape(kept, (-1, *([1] * (len(shape) - 1))))
    kept = ops.broadcast_to(kept, shape) if own is None else ops.logical_and(kept, own)
    tensor = ops.copy(tensor)
    _keras.set_keras_mask(tensor, kept)
    return tensor
