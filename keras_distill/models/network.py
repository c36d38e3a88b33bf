"""One network of a wrapper: one forward that gives predictions, logits and features."""

from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill._graph import has_graph
from keras_distill._graph import uncompiled_clone
from keras_distill._ops import at_least_float32
from keras_distill._precision import computing_in
from keras_distill.heads import head_of
from keras_distill.taps import tap

LOGITS = "logits"
SOFTMAX = "softmax"
SIGMOID = "sigmoid"
PROBABILITIES = "probabilities"
OPEN = "open"


class NetworkOutputs(NamedTuple):
    """What one forward of a network gives.

    Attributes:
        prediction: The model's own output structure.
        scores: A list with one entry an output: logits where there are any, else the
            probabilities that the model returns.
        features: A list with one entry a tapped path.
    """

    prediction: Any
    scores: Any
    features: Any


class Network:
    """A model with its head understood and its taps drawn.

    A plain object, so that Keras neither tracks nor saves it: the wrapper holds the model.

    Args:
        model: A `keras.Model`. With a graph (functional, or sequential and built), taps and
            pre-activations of softmax heads come from a twin that shares its layers.
        role: "teacher" or "student", for messages.
        paths: Paths of the layers whose outputs are asked.
        from_logits: What the model returns, where its graph does not tell: `True` for logits,
            `False` for probabilities, `None` to look at the graph, then at the first batch.
        frozen: Always run for inference, fold batch normalization into convolutions, and
            keep the model's losses out of the wrapper's.
        compute_dtype: Run the layers in this dtype ("bfloat16"); `None` leaves their policies.
    """

    def __init__(self, model, role, paths=(), from_logits=None, frozen=False, compute_dtype=None):
        self.model = model
        self.role = role
        self.paths = list(dict.fromkeys(paths))
        self.frozen = frozen
        self.compute_dtype = compute_dtype
        self._twin = None
        graph = has_graph(model)
        if self.paths and not graph:
            tap(model, self.paths)  # raises the error that says what to do
        if graph:
            heads = keras.tree.flatten(head_of(model))
            self.heads = [_settled_head(head, from_logits, role) for head in heads]
            self._twin = tap(model, self.paths, fold_batch_norm=frozen, logits=True)
            self.output_shapes = [tuple(t.shape) for t in keras.tree.flatten(model.outputs)]
        else:
            head = {None: OPEN, True: LOGITS, False: PROBABILITIES}[from_logits]
            self.heads = [head]
            self.output_shapes = None

    @property
    def is_open(self):
        """Whether it is still unknown if the model returns logits or probabilities."""
        return OPEN in self.heads

    def settle(self, inputs):
        """Learns from one batch what the graph did not tell. Runs the model for inference."""
        if not self.is_open:
            return
        prediction = self.model(inputs, training=False)
        self._clear_losses()
        arrays = [np.asarray(ops.convert_to_numpy(p)) for p in keras.tree.flatten(prediction)]
        if len(self.heads) != len(arrays):
            self.heads = [OPEN] * len(arrays)
        self.heads = [
            _head_from_values(array.astype("float64"), self.role) if head == OPEN else head
            for head, array in zip(self.heads, arrays)
        ]

    def __call__(self, inputs, training=False):
        training = bool(training) and not self.frozen
        with computing_in(self.model, self.compute_dtype):
            if self._twin is None:
                prediction = self.model(inputs, training=training)
                scores, features = keras.tree.flatten(prediction), []
            else:
                outputs = self._twin(inputs, training=training)
                prediction = outputs["prediction"]
                features = [outputs["features"][path] for path in self.paths]
                scores = _scores(prediction, outputs.get("logits"))
        if self.frozen:
            self._clear_losses()
            prediction, scores, features = keras.tree.map_structure(
                _constant, (prediction, scores, features)
            )
        return NetworkOutputs(prediction, list(scores), list(features))

    def logits(self, outputs, index, loss, temperature):
        """The logits of output `index` that `loss` compares at `temperature`."""
        activation = getattr(loss, "activation", SOFTMAX)
        return logits_from(outputs.scores[index], self.heads[index], activation)

    def class_scores(self, inputs):
        """The logits of an only output, for inference, differentiable by inputs and weights."""
        if len(self.heads) != 1:
            raise ValueError(
                f"Expected a {self.role} with one output. Received: {len(self.heads)} outputs."
            )
        with computing_in(self.model, self.compute_dtype):
            if self._twin is None:
                scores = self.model(inputs, training=False)
            else:
                outputs = self._twin(inputs, training=False)
                scores = _scores(outputs["prediction"], outputs.get("logits"))[0]
        self._clear_losses()
        return logits_from(scores, self.heads[0])

    def _clear_losses(self):
        self.model._clear_losses()
        if self._twin is not None:
            self._twin._clear_losses()

    def feature_shape(self, path):
        """Static shape of a tapped path."""
        features = self._twin.output["features"] if self._twin is not None else {}
        return tuple(features[path].shape)


def logits_from(scores, head, activation=SOFTMAX):
    """Logits from a network's `scores` of one output.

    Args:
        scores: Logits, or probabilities where `head` is "probabilities".
        head: The network's head for this output.
        activation: "softmax" for classes, "sigmoid" for independent labels.

    Returns:
        The scores, where they are logits. Of probabilities over classes their log, which
        differs from the logits by a shift; of a single probability, or of independent labels,
        `log(p / (1 - p))`, which is exact.
    """
    if head != PROBABILITIES:
        return scores
    probabilities = at_least_float32(scores)
    tiny = 1e-37
    log_p = ops.log(ops.maximum(probabilities, tiny))
    if probabilities.shape[-1] == 1 or activation == SIGMOID:
        return log_p - ops.log(ops.maximum(1.0 - probabilities, tiny))
    return log_p


def _settled_head(head, from_logits, role):
    known = {"linear": LOGITS, "softmax": SOFTMAX, "sigmoid": SIGMOID}.get(head, OPEN)
    argument = f"{role}_from_logits"
    if known == OPEN:
        return {None: OPEN, True: LOGITS, False: PROBABILITIES}[from_logits]
    if from_logits is True and known in (SOFTMAX, SIGMOID):
        raise ValueError(
            f"Expected `{argument}` to agree with the {role}'s graph, which ends in a {known}. "
            f"Received: {argument}=True. Leave the argument out: the {known} is found and the "
            "logits before it are used."
        )
    if from_logits is False and known == LOGITS:
        raise ValueError(
            f"Expected `{argument}` to agree with the {role}'s graph, which ends in a layer "
            f"without activation, so in logits. Received: {argument}=False. Leave it out, or "
            "end the model in a softmax."
        )
    return known


def _head_from_values(values, role):
    inside = values.size and np.all(values >= 0) and np.all(values <= 1)
    if not inside:
        return LOGITS
    if values.shape[-1] > 1 and np.allclose(values.sum(-1), 1.0, atol=1e-3):
        return PROBABILITIES
    raise ValueError(
        f"Expected to tell from the {role}'s first outputs whether they are logits or "
        f"probabilities, but all lie in [0, 1] and the rows do not sum to 1. Received: outputs "
        f"of shape {values.shape}. Pass {role}_from_logits=True or {role}_from_logits=False."
    )


def _scores(prediction, logits):
    """A twin's logits of each output in order, the output itself where there are none."""
    if not keras.tree.is_nested(prediction):
        return [prediction if logits is None else logits]
    return [
        (logits or {}).get("/".join(str(part) for part in path), value)
        for path, value in keras.tree.flatten_with_path(prediction)
    ]


def _constant(value):
    """The value as a constant of the gradient, its Keras mask kept."""
    if value is None:
        return None
    return keep_mask(ops.stop_gradient(value), value)


def keep_mask(value, source):
    """`value`, with the Keras mask of `source` where that has one."""
    mask = _keras.get_keras_mask(source)
    if mask is not None:
        _keras.set_keras_mask(value, mask)
    return value


def check_compute_dtype(name, value):
    """Returns `value`; raises unless it is `None` or a dtype that a teacher can run in."""
    return _checks.one_of(name, value, (None, "float32", "bfloat16", "float16"))


def fresh_copy(student):
    """A network like the student, with variables of its own at its initializers.

    Raises:
        ValueError: If the student has no weights yet.
    """
    if not student.built:
        raise ValueError(
            f"Expected `student` to be built, for it is copied. Received: {student.name!r} "
            "without weights. Call it on a batch first."
        )
    if has_graph(student):
        return uncompiled_clone(student)
    copy = type(student).from_config(student.get_config())
    copy.build_from_config(student.get_build_config())
    return copy
