"""A teacher whose outputs come with the data, from a `TeacherCache`."""

import keras
from keras import ops

from keras_distill import _keras
from keras_distill._ops import at_least_float32
from keras_distill.data.cache_records import FEATURE
from keras_distill.data.cache_records import StoredOutputs
from keras_distill.data.targets import Targets
from keras_distill.data.teacher_cache import TeacherCache
from keras_distill.models.network import LOGITS
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import SOFTMAX
from keras_distill.models.network import NetworkOutputs

# The log of a probability that is 0: its exponential is 0, and 0 times it is 0.
LOG_OF_NOTHING = -1e4


@keras.saving.register_keras_serializable(package="keras_distill")
class CachedTeacher(keras.Model):
    """Stands for the teacher in a `Distiller` that trains from a cache. It cannot be called.

    Args:
        stored: `StoredOutputs`, or its config.
        name: Name of the model.
    """

    def __init__(self, stored, name="cached_teacher", **kwargs):
        super().__init__(name=name, **kwargs)
        self.stored = stored if isinstance(stored, StoredOutputs) else StoredOutputs(**stored)
        self.built = True

    def call(self, inputs):
        raise ValueError(
            "Expected the teacher's outputs with the data. Received: a call of a teacher that is "
            "known by its cache alone. Train on cache.dataset(...)."
        )

    def get_config(self):
        return {"name": self.name, "stored": self.stored.get_config()}


def as_teacher(teacher):
    """`teacher`, or what stands for it where it is a `TeacherCache`."""
    return CachedTeacher(teacher.outputs) if isinstance(teacher, TeacherCache) else teacher


class CachedNetwork:
    """The stored outputs as the frozen network of a Distiller: see `Network`.

    Args:
        model: A `CachedTeacher`.
        role: "teacher", for messages.
        paths: Paths of the layers whose pooled outputs are asked.
    """

    is_open = False

    def __init__(self, model, role, paths=()):
        self.model = model
        self.role = role
        self.stored = model.stored
        self.paths = list(dict.fromkeys(paths))
        self._asked = {}
        self.heads = [{"softmax": SOFTMAX, "sigmoid": SIGMOID}.get(self.stored.head, LOGITS)]
        self.output_shapes = [(None, self.stored.classes)]
        for path in self.paths:
            if path not in self.stored.features:
                raise ValueError(
                    f"Expected the cache to hold the layer {path!r}. Received: features of "
                    f"{list(self.stored.features) or 'no layer'}. Build it with "
                    f"features=[{path!r}]."
                )

    def settle(self, inputs):
        """Nothing is open: see `Network.settle`."""

    def ask(self, term):
        """Takes note of a term on predictions; raises where the cache does not serve it."""
        check_cached(term, self.stored)
        self._asked[term.name] = term.softmax_temperature

    def asked(self, term):
        """The temperature at which a term reads the teacher, a float or `None`."""
        return self._asked[term.name]

    def check_asked(self, term):
        """Raises where the temperature of a term was moved since it was bound."""
        if self.stored.temperatures is not None and term.name in self._asked:
            check_cached(term, self.stored)
            if term.softmax_temperature != self._asked[term.name]:
                raise ValueError(
                    f"Expected the term {term.name!r} to keep its temperature "
                    f"{self._asked[term.name]:g}, at which the cache is read. Received: "
                    f"{term.softmax_temperature:g}. Make another Distiller."
                )

    def feature_shape(self, path):
        """Static shape of a stored feature."""
        return (None, self.stored.features[path])

    def read(self, targets):
        """What the data brings: `NetworkOutputs` whose scores are the stored fields.

        Args:
            targets: The `Targets` of a batch.
        """
        check_targets(targets)
        values = targets["teacher"]
        wanted = {name for name, _, _ in self.stored.fields}
        if set(values) != wanted:
            raise ValueError(
                f"Expected the stored outputs {sorted(wanted)} of the Distiller's cache. Received: "
                f"{sorted(values)}. Train on the data set of that cache."
            )
        names = list(self.stored.features)
        features = [values[f"{FEATURE}{names.index(path)}"] for path in self.paths]
        prediction = None
        if self.stored.top_k is None and self.stored.temperatures is None:
            prediction = at_least_float32(values["prediction_0"])
            if self.stored.head != "linear":
                activation = ops.softmax if self.stored.head == "softmax" else ops.sigmoid
                prediction = activation(prediction)
        return NetworkOutputs(prediction, [values], features)

    def logits(self, outputs, index, loss, temperature):
        """Logits whose softmax, at the fixed temperature of the loss, is the stored one."""
        stored, values = self.stored, outputs.scores[index]
        position = 0
        if stored.temperatures is not None:
            position = stored.temperatures.index(temperature)
        name = stored.prediction_names[position]
        if stored.top_k is None:
            return at_least_float32(values[name])
        log_p = spread(values[name], values[f"{name}_classes"], stored.classes, stored.residual)
        return stored.temperatures[position] * log_p


def spread(probabilities, classes, class_count, residual):
    """The log of a distribution over all classes, from its likeliest.

    Args:
        probabilities: Tensor `(batch, k)`.
        classes: int tensor `(batch, k)`, the classes.
        class_count: Number of all classes.
        residual: "spread" or "renormalise", see `StoredOutputs`.

    Returns:
        Tensor `(batch, classes)`, float32. Where nothing is left for a class, -1e4.
    """
    probabilities = at_least_float32(probabilities)
    total = ops.sum(probabilities, axis=-1, keepdims=True)
    k = probabilities.shape[-1]
    if residual == "spread" and k < class_count:
        rest = ops.maximum(1.0 - total, 0.0) / (class_count - k)
    else:
        rest = ops.zeros_like(total)
        probabilities = probabilities / ops.maximum(total, 1e-30)
    dense = ops.broadcast_to(rest, (ops.shape(total)[0], class_count))
    rows = ops.broadcast_to(ops.arange(ops.shape(total)[0])[:, None], ops.shape(classes))
    places = ops.stack([ops.reshape(ops.cast(i, "int32"), (-1,)) for i in (rows, classes)], axis=1)
    dense = ops.scatter_update(dense, places, ops.reshape(probabilities, (-1,)))
    present = dense > 0
    log_p = ops.log(ops.where(present, dense, ops.ones_like(dense)))
    return ops.where(present, log_p, ops.full_like(dense, LOG_OF_NOTHING))


def check_cached(term, stored):
    """Raises where a term needs more of the teacher than a cache holds.

    Args:
        term: A `BoundTerm`.
        stored: `StoredOutputs`.
    """
    if term.on_inputs:
        raise ValueError(
            f"Expected a term that compares outputs. Received: {term.name!r}, which runs the "
            "teacher itself, with a cache. Give the Distiller the teacher."
        )
    if term.on_features or stored.temperatures is None:
        return
    what = "the likeliest classes" if stored.top_k is not None else "an ensemble's outputs"
    names = ", ".join(f"{t:g}" for t in stored.temperatures)
    wanted = term.softmax_temperature
    if wanted is None:
        raise ValueError(
            f"Expected a loss that reads the teacher's softmax at one fixed temperature alone, for "
            f"the cache holds {what} at temperature {names}. Received: the term {term.name!r} "
            f"({type(term.loss).__name__}), which reads more. Cache all logits (top_k=None)."
        )
    if wanted not in stored.temperatures:
        raise ValueError(
            f"Expected the temperature {names} of the cache, which holds {what}. Received: "
            f"temperature={wanted:g} of the term {term.name!r}. Build the cache with "
            f"temperatures={wanted:g}, or cache all logits (top_k=None)."
        )


def check_teacher_data(x, y):
    """Raises unless the data of `fit` brings the teacher's outputs. Of a generator: later."""
    if hasattr(x, "element_spec"):
        y = _keras.unpack_x_y_sample_weight(x.element_spec)[1]
    elif isinstance(x, keras.utils.PyDataset):
        y = _keras.unpack_x_y_sample_weight(x[0])[1]
    elif y is None:
        return
    check_targets(y)


def check_targets(y):
    """Raises unless the data brings the teacher's outputs."""
    if not isinstance(y, Targets) or "teacher" not in y:
        received = sorted(y) if isinstance(y, Targets) else type(y).__name__
        raise ValueError(
            "Expected data with the teacher's outputs, for the Distiller's teacher is a cache. "
            f"Received: y={received}. Train on cache.dataset(batch_size, epochs=...)."
        )
