"""Adaptive early exit: inference that stops where the network is sure, and what it saves."""

import math
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill import _checks
from keras_distill import _graph
from keras_distill.models.network import LOGITS
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import SOFTMAX

# Layers whose weights of several axes multiply nothing, or each value once.
_NO_PRODUCTS = (
    keras.layers.BatchNormalization,
    keras.layers.Embedding,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.PReLU,
)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


class EarlyExit:
    """A network cut at its exits: a sample runs on only until one of them is sure of it.

    Made by `SelfDistiller.early_exit`. The sections share the weights of the network.

    Samples that leave save the rest of the computation: those that stay are gathered until
    they fill a batch, and the next section runs on them alone.

    Args:
        sections: Functional models in order. Each takes the features of the one before and
            returns `{"features": ..., "prediction": ...}`, the last the prediction alone.
        threshold: A sample leaves at the first exit whose confidence is above it. The
            confidence is the largest softmax probability; of sigmoid outputs, the larger of p
            and 1 - p, of the least sure label. At 1 every sample goes to the deepest exit.
        head: What the predictions are: "logits", "softmax" or "sigmoid".
        whole: The network without exits, to whose computation is compared.

    Attributes:
        sections: The sections, which can be exported one by one.
        threshold: The threshold that `predict` uses where it is given none.

    Reference:
        Zhang et al., 2019, https://arxiv.org/abs/1905.08094, which takes any one exit at
        inference.
        Deviation: the choice sample by sample is BranchyNet's (Teerapittayanon et al., 2016),
        which compares the entropy where this compares the confidence.
    """

    def __init__(
        self, sections: Sequence[keras.Model], threshold: float, head: str, whole: keras.Model
    ) -> None:
        self.sections = list(sections)
        self.threshold = _checks.non_negative("threshold", threshold)
        self.head = _checks.one_of("head", head, (LOGITS, SOFTMAX, SIGMOID))
        self.whole = whole

    def predict(
        self, x: Any, threshold: float | None = None, batch_size: int = 32
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predicts, each sample at the first exit that is sure of it.

        Args:
            x: An array of samples, or the structure of arrays that the network takes.
            threshold: See the class. Defaults to that of the constructor.
            batch_size: How many samples run at once.

        Returns:
            `(predictions, exit_indices)`: an array like the network's own predictions, and
            the index of the exit of each sample, from 0 for the shallowest.
        """
        threshold = self.threshold if threshold is None else threshold
        threshold = _checks.non_negative("threshold", threshold)
        batch_size = _checks.positive_integer("batch_size", batch_size)
        count = _count(x)
        predictions, exits = [None] * count, np.zeros(count, "int32")
        waiting = [None] * len(self.sections)

        def run(stage, rows, inputs):
            outputs = self.sections[stage].predict_on_batch(inputs)
            is_last = stage == len(self.sections) - 1
            prediction = outputs if is_last else outputs["prediction"]
            leaves = is_last | (self.confidence(prediction) > threshold)
            for row, values in zip(rows[leaves], prediction[leaves]):
                predictions[row] = values
            exits[rows[leaves]] = stage
            if not leaves.all():
                stays = ~leaves
                queue(stage + 1, rows[stays], np.asarray(outputs["features"])[stays])

        def queue(stage, rows, features):
            if waiting[stage] is not None:
                rows = np.concatenate([waiting[stage][0], rows])
                features = np.concatenate([waiting[stage][1], features])
            waiting[stage] = rows, features
            if len(rows) >= batch_size:
                waiting[stage] = rows[batch_size:], features[batch_size:]
                run(stage, rows[:batch_size], features[:batch_size])

        for rows, inputs in _batches(x, count, batch_size):
            run(0, rows, inputs)
        for stage, left in enumerate(waiting):
            if left is not None and len(waiting[stage][0]):
                run(stage, *waiting[stage])
        return np.stack(predictions), exits

    def accuracy_compute_curve(
        self, x: Any, y: Any, thresholds: Iterable[float], batch_size: int = 32
    ) -> list[dict[str, Any]]:
        """What each threshold gives: accuracy against computation.

        All exits run once on all samples; each threshold is then a matter of counting.

        Args:
            x: Samples, as in `predict`.
            y: Labels: class ids, one-hot rows, or 0 and 1 for sigmoid outputs.
            thresholds: The thresholds.
            batch_size: How many samples run at once.

        Returns:
            A list of dicts, one a threshold: "threshold", "accuracy", "compute" (the mean over
            the samples of their multiply-adds, relative to the network without exits) and
            "shares" (the share of the samples that leaves at each exit).
        """
        thresholds = [_checks.non_negative("thresholds", threshold) for threshold in thresholds]
        count, labels = _count(x), np.asarray(y)
        if len(labels) != count:
            raise ValueError(
                f"Expected one label a sample. Received: {len(labels)} labels, {count} samples."
            )
        hits, confidences = [], []
        for predictions in self._all_exits(x, count, batch_size):
            hits.append(self._hits(predictions, labels))
            confidences.append(self.confidence(predictions))
        cost, rows = np.array(self.compute), []
        for threshold in thresholds:
            sure = np.stack(confidences) > threshold
            sure[-1] = True
            exits = sure.argmax(axis=0)
            shares = np.bincount(exits, minlength=len(self.sections)) / count
            rows.append(
                {
                    "threshold": threshold,
                    "accuracy": float(np.stack(hits)[exits, np.arange(count)].mean()),
                    "compute": float(shares @ cost),
                    "shares": [float(share) for share in shares],
                }
            )
        return rows

    @property
    def compute(self) -> list[float]:
        """Multiply-adds of a sample that leaves at each exit, relative to the whole network.

        The heads of all exits up to there are counted, so that the deepest costs more than 1.
        """
        own = np.cumsum([multiply_adds(section) for section in self.sections])
        return [float(cost) for cost in own / multiply_adds(self.whole)]

    def confidence(self, predictions: np.ndarray) -> np.ndarray:
        """The confidence of each row of predictions, from 0 to 1.

        Args:
            predictions: An array (batch, classes) in the form of the network's own.
        """
        values = np.asarray(predictions).astype("float64")
        if values.shape[-1] == 1 or self.head == SIGMOID:
            if self.head == LOGITS:
                values = 0.5 * (1.0 + np.tanh(0.5 * values))
            return np.maximum(values, 1.0 - values).min(axis=-1)
        if self.head == LOGITS:
            values = np.exp(values - values.max(axis=-1, keepdims=True))
            values = values / values.sum(axis=-1, keepdims=True)
        # A softmax in float32 may round to a little more than 1.
        return np.minimum(values.max(axis=-1), 1.0)

    def _hits(self, predictions, labels):
        """The accuracy of each row, 0 or 1 (of several labels, their mean)."""
        if predictions.shape[-1] == 1 or self.head == SIGMOID:
            found = predictions > (0.0 if self.head == LOGITS else 0.5)
            return (found == labels.reshape(found.shape)).mean(axis=-1)
        if labels.shape == predictions.shape:
            labels = labels.argmax(axis=-1)
        return (predictions.argmax(axis=-1) == labels.reshape(-1)).astype("float64")

    def _all_exits(self, x, count, batch_size):
        """The predictions of every exit for all samples."""
        found = [[] for _ in self.sections]
        for _, features in _batches(x, count, _checks.positive_integer("batch_size", batch_size)):
            for stage, section in enumerate(self.sections):
                outputs = section.predict_on_batch(features)
                is_last = stage == len(self.sections) - 1
                found[stage].append(np.asarray(outputs if is_last else outputs["prediction"]))
                features = None if is_last else outputs["features"]
        return [np.concatenate(predictions) for predictions in found]


def _count(x):
    leaves = keras.tree.flatten(x)
    if not leaves or not all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
        received = type(x).__name__
        raise TypeError(f"Expected `x` to be an array of samples. Received: a {received}.")
    if not leaves[0].shape[0]:
        raise ValueError("Expected `x` to hold samples. Received an empty array.")
    return int(leaves[0].shape[0])


def _batches(x, count, batch_size):
    for start in range(0, count, batch_size):
        rows = np.arange(start, min(start + batch_size, count))
        yield rows, keras.tree.map_structure(lambda leaf, r=rows: leaf[r[0] : r[-1] + 1], x)


def multiply_adds(model):
    """Multiply-adds of one sample's forward pass, counted from the shapes of the layers.

    Keras has no counter, and TensorFlow's is a part of its version 1 profiler that counts
    TensorFlow graphs alone. Here each layer's weights of two or more axes are multiplied once
    a place of its output: exact for dense, convolution, depthwise and separable layers (also
    inside nested models), and for the projections of a block of tokens. What has no such
    weights is not counted: pooling, normalization, activations, the products of attention.

    Args:
        model: A functional or Sequential model of fixed input size.

    Returns:
        The number of multiply-adds, an int.
    """
    total = 0
    for call in _graph.Graph(model).calls:
        layer = call.operation
        if _graph.has_graph(layer):
            total += multiply_adds(layer)
            continue
        if not isinstance(layer, keras.layers.Layer) or isinstance(layer, _NO_PRODUCTS):
            continue
        size = sum(math.prod(w.shape) for w in layer.weights if len(w.shape) > 1)
        if size:
            side = call.inputs if isinstance(layer, _TRANSPOSED) else call.outputs
            places = side[0].shape[1:-1]
            if None in places:
                raise ValueError(
                    _checks.message(
                        "a model of fixed input size, to count its multiply-adds",
                        "model",
                        model.name,
                        f"The layer {call.name!r} returns {tuple(side[0].shape)}.",
                    )
                )
            total += size * math.prod(places)
    return total
