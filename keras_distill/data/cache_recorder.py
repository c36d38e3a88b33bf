"""What a `TeacherCache` stores of a teacher: one forward, then the likeliest or all classes."""

import hashlib

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill import taps
from keras_distill.data.cache_records import FEATURE
from keras_distill.data.cache_records import StoredOutputs
from keras_distill.heads import head_of


class Recorder(keras.Model):
    """A teacher as a model that returns the fields of a record, run for inference.

    Args:
        teacher: A functional `keras.Model` with one output that ends in a softmax, a sigmoid or
            logits; or a `keras_distill.EnsembleTeacher`, then without `features`.
        top_k, residual, temperatures, dtype: See `StoredOutputs`.
        features: Paths of layers whose pooled vectors are stored.

    Raises:
        ValueError: If the teacher is not one of these, or the settings do not fit it.
    """

    def __init__(self, teacher, top_k, residual, temperatures, features, dtype):
        super().__init__(name="recorder", dtype="float32", autocast=False)
        _checks.instance("teacher", teacher, keras.Model, "a keras.Model or an EnsembleTeacher")
        features = [features] if isinstance(features, str) else list(features)
        self.teacher = teacher
        self.of_ensemble = hasattr(teacher, "soft_outputs")
        if self.of_ensemble:
            head, classes, sizes = self._read_ensemble(temperatures, features)
        else:
            head, classes, sizes = self._read_network(features)
        self.stored = StoredOutputs(classes, head, top_k, residual, temperatures, sizes, dtype)

    def _read_ensemble(self, temperatures, features):
        teacher = self.teacher
        if features:
            raise ValueError(
                f"Expected no `features` with an ensemble. Received: features={features!r}. Cache "
                "the member whose layers are to be stored."
            )
        if temperatures is None and getattr(teacher, "average", "logits") != "logits":
            raise ValueError(
                "Expected `temperatures` for an ensemble that averages probabilities: what it says "
                "at one temperature does not tell what it says at another. Received: "
                "temperatures=None. Name that of the loss, such as temperatures=4.0."
            )
        heads = {head for member in teacher.members for head in _heads(member)}
        shapes = [tuple(member.output_shape) for member in teacher.members if _has_one(member)]
        if len(shapes) != len(teacher.members):
            raise _several(teacher)
        return "sigmoid" if heads == {"sigmoid"} else "linear", shapes[0][-1], {}

    def _read_network(self, features):
        teacher = self.teacher
        heads = _heads(teacher)
        if heads == ["unknown"]:
            raise ValueError(
                f"Expected a teacher whose graph tells its logits. Received: {teacher.name!r}, "
                "whose head is unknown. Make it a functional model that ends in Dense, softmax "
                "or sigmoid."
            )
        if not _has_one(teacher):
            raise _several(teacher)
        twin = taps.tap(teacher, features, fold_batch_norm=True, logits=True)
        tensors = twin.output["features"]
        sizes = {path: tuple(tensors[path].shape)[-1] for path in features}
        for path in features:
            if None in tuple(tensors[path].shape)[-1:] or len(tensors[path].shape) < 2:
                raise ValueError(
                    f"Expected a feature of known size. Received: {path!r} of shape "
                    f"{tuple(tensors[path].shape)}."
                )
        self.twin = twin
        return heads[0], tuple(teacher.output_shape)[-1], sizes

    def call(self, inputs):
        stored, values = self.stored, {}
        if self.of_ensemble:
            outputs = {}

            def logits_at(temperature):
                return self.teacher.soft_outputs(inputs, temperature)

        else:
            outputs = self.twin(inputs, training=False)

            def logits_at(temperature):
                return outputs["logits"]

        for name, temperature in zip(stored.prediction_names, stored.temperatures or [1.0]):
            logits = ops.cast(logits_at(temperature), "float32")
            if stored.top_k is None:
                values[name] = logits
                continue
            probabilities, classes = ops.top_k(ops.softmax(logits / temperature), stored.top_k)
            values[name], values[f"{name}_classes"] = probabilities, classes
        for i, path in enumerate(stored.features):
            values[f"{FEATURE}{i}"] = pooled(outputs["features"][path])
        return values


def pooled(feature):
    """`(batch, ..., size)` -> `(batch, size)`: the mean over what lies between, in float32."""
    feature = ops.cast(feature, "float32")
    axes = tuple(range(1, len(feature.shape) - 1))
    return ops.mean(feature, axis=axes) if axes else feature


def weights_fingerprint(model):
    """A SHA-256 of a model's weights, their shapes and dtypes."""
    digest = hashlib.sha256()
    for variable in model.weights:
        value = np.asarray(ops.convert_to_numpy(variable))
        digest.update(f"{value.shape} {value.dtype}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def array_fingerprint(array):
    """A SHA-256 of an array, its shape and dtype."""
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    digest.update(array.view("uint8") if array.ndim and array.size else b"")
    return digest.hexdigest()


def _heads(model):
    return keras.tree.flatten(head_of(model))


def _has_one(model):
    return len(keras.tree.flatten(model.outputs)) == 1 and len(model.output_shape) == 2


def _several(teacher):
    return ValueError(
        f"Expected a teacher with one output of shape (batch, classes). Received: "
        f"{teacher.name!r}. Give a model of that output alone."
    )
