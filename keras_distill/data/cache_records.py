"""The records of a `TeacherCache`: of each sample and view one, all of one size."""

import numpy as np

from keras_distill import _checks
from keras_distill._checks import message

DENSE = "float16", "float32"
RESIDUALS = "spread", "renormalise"
FEATURE = "feature_"


class StoredOutputs:
    """What a cache holds of a teacher, for a Distiller that reads it.

    Args:
        classes: Number of classes, or units of the head.
        head: The teacher's head: "linear", "softmax" or "sigmoid".
        top_k: Number of the classes stored, the likeliest; `None` for all.
        residual: What the others get of `top_k`: "spread", an equal share of what is left of
            1, or "renormalise", nothing: the stored are scaled to sum to 1.
        temperatures: The temperatures at which the outputs are stored; `None` for logits,
            which serve any.
        features: Dict of path of a layer -> size of its pooled vector. They are stored in the
            order of their paths.
        dtype: "float16" or "float32", of logits and features. Probabilities are float16.
    """

    def __init__(
        self,
        classes,
        head="linear",
        top_k=None,
        residual="spread",
        temperatures=None,
        features=None,
        dtype="float16",
    ):
        self.classes = _checks.positive_integer("classes", classes)
        self.head = _checks.one_of("head", head, ("linear", "softmax", "sigmoid"))
        self.top_k = top_k if top_k is None else _checks.positive_integer("top_k", top_k)
        self.residual = _checks.one_of("residual", residual, RESIDUALS)
        self.dtype = _checks.one_of("dtype", dtype, DENSE)
        self.features = {
            path: _checks.positive_integer(f"size of the feature {path!r}", size)
            for path, size in sorted((features or {}).items())
        }
        self.temperatures = checked_temperatures(temperatures)
        if self.top_k is None:
            return
        if self.head == "sigmoid":
            raise ValueError(
                "Expected a teacher of classes for `top_k`. Received: a sigmoid head (independent "
                "labels). Store all logits: top_k=None."
            )
        if self.top_k > self.classes:
            raise ValueError(
                message(f"`top_k` to be at most the teacher's {classes} classes", "top_k", top_k)
            )
        if self.temperatures is None:
            raise ValueError(
                "Expected `temperatures` with `top_k`, for the likeliest probabilities at one "
                "temperature do not tell those at another. Received: temperatures=None. Name that "
                "of the loss, such as temperatures=4.0."
            )

    @property
    def prediction_names(self):
        """Names of the stored predictions, one a temperature."""
        count = 1 if self.temperatures is None else len(self.temperatures)
        return [f"prediction_{i}" for i in range(count)]

    @property
    def fields(self):
        """The fields `(name, dtype, shape)` of a record, predictions before features."""
        fields = []
        for name in self.prediction_names:
            if self.top_k is None:
                fields.append((name, _stored(self.dtype), (self.classes,)))
            else:
                ids = "<u2" if self.classes <= 2**16 else "<i4"
                fields.append((f"{name}_classes", ids, (self.top_k,)))
                fields.append((name, "<f2", (self.top_k,)))
        for i, size in enumerate(self.features.values()):
            fields.append((f"{FEATURE}{i}", _stored(self.dtype), (size,)))
        return fields

    def get_config(self):
        return {
            "classes": self.classes,
            "head": self.head,
            "top_k": self.top_k,
            "residual": self.residual,
            "temperatures": self.temperatures,
            "features": dict(self.features),
            "dtype": self.dtype,
        }


class Records:
    """The layout of a record, packed, little-endian: its seed, its partner, what is stored.

    Args:
        outputs: `StoredOutputs`.
        mixes: Whether each view mixes two samples.
    """

    def __init__(self, outputs, mixes=False):
        self.outputs = outputs
        view = [("seed", "<i4", ())]
        if mixes:
            view += [("partner", "<i4", ()), ("partner_seed", "<i4", ()), ("amount", "<f4", ())]
        self.fields = [*view, *outputs.fields]
        self.dtype = np.dtype([(name, kind, shape) for name, kind, shape in self.fields])

    def packed(self, values):
        """Records, a structured array, of a dict of arrays, batch first.

        Raises:
            ValueError: If a value does not fit into float16, or is not finite.
        """
        count = len(next(iter(values.values())))
        records = np.zeros(count, self.dtype)
        for name, kind, _ in self.fields:
            value = np.asarray(values[name])
            with np.errstate(over="ignore"):
                records[name] = value
            if kind[1] == "f" and not np.isfinite(records[name]).all():
                limit = np.finfo(kind).max
                raise ValueError(
                    f"Expected the teacher's outputs to be finite, at most {limit:g} in size for "
                    f"{np.dtype(kind).name}. Received: {name} up to {np.abs(value).max():g}. "
                    'Store them as dtype="float32", or mend the teacher.'
                )
        return records

    def unpacked(self, records):
        """The fields of raw records: uint8 `(batch, bytes)` of `tf.data` -> dict of tensors."""
        import tensorflow as tf

        values = {}
        for name, kind, shape in self.fields:
            dtype, start = self.dtype.fields[name][:2]
            part = records[:, start : start + dtype.itemsize]
            size = np.dtype(kind).itemsize
            part = tf.reshape(part, [-1, *shape, size])
            values[name] = tf.bitcast(part, tf.as_dtype(np.dtype(kind).newbyteorder("=")))
        return values


def checked_temperatures(temperatures):
    """A list of distinct temperatures, or `None`."""
    if temperatures is None:
        return None
    several = isinstance(temperatures, (list, tuple))
    found = [
        _checks.positive("temperatures", t) for t in (temperatures if several else [temperatures])
    ]
    if not found or len(set(found)) != len(found):
        raise ValueError(message("distinct temperatures", "temperatures", temperatures))
    return found


def _stored(dtype):
    return {"float16": "<f2", "float32": "<f4"}[dtype]
