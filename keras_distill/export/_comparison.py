"""Comparing the outputs of a network and of its exported file, batch by batch."""

import numpy as np

from keras_distill.heads import head_of


def named_outputs(reference, names):
    """The network's outputs by the file's `names` for them."""
    if isinstance(reference, dict):
        outputs = dict(reference)
    elif isinstance(reference, (list, tuple)):
        outputs = {f"output_{index}": value for index, value in enumerate(reference)}
    else:
        outputs = {"output_0": reference}
    if set(outputs) != set(names):
        if not len(outputs) == len(names) == 1:
            raise ValueError(
                f"Expected a file with the model's outputs {sorted(outputs)}. "
                f"Received: {sorted(names)}."
            )
        outputs = {names[0]: next(iter(outputs.values()))}
    return outputs


def comparisons_of(network, reference, outputs, labels):
    """One `Comparison` an output, by its name in the file.

    Args:
        network: The network, whose heads tell the thresholds of one-unit outputs.
        reference: What it returned for the first batch, in its own structure.
        outputs: The same by name, see `named_outputs`.
        labels: The caller's labels, None or in the structure of `reference`.
    """
    if len(outputs) == 1:
        if isinstance(labels, dict):
            labels = next(iter(labels.values()), None)
        chosen = dict.fromkeys(outputs, labels)
    elif labels is None:
        chosen = dict.fromkeys(outputs)
    elif isinstance(labels, dict) and isinstance(reference, dict):
        chosen = {name: labels.get(name) for name in outputs}
    elif isinstance(labels, (list, tuple)) and len(labels) == len(outputs):
        chosen = dict(zip(outputs, labels, strict=True))
    else:
        raise ValueError(
            f"Expected `labels` to be a dict or list for the outputs {sorted(outputs)}. "
            f"Received: a {type(labels).__name__}."
        )
    thresholds = _thresholds(network, outputs)
    return {name: Comparison(name, chosen[name], thresholds[name]) for name in outputs}


def _thresholds(network, outputs):
    """0.5 for a sigmoid head, 0 for a linear one, by value where the graph does not tell."""
    kinds = head_of(network)
    if isinstance(kinds, str):
        kinds = dict.fromkeys(outputs, kinds)
    else:
        kinds = named_outputs(kinds, list(outputs))
    thresholds = {}
    for name, value in outputs.items():
        value = np.asarray(value)
        within = value.min() >= 0 and value.max() <= 1
        by_value = 0.5 if within else 0.0
        thresholds[name] = {"sigmoid": 0.5, "linear": 0.0}.get(kinds[name], by_value)
    return thresholds


class Comparison:
    """Sums over the batches for one output."""

    def __init__(self, name, labels, threshold):
        self.name = name
        self.labels = None if labels is None else np.asarray(labels)
        self.threshold = threshold
        self.samples = self.predictions = self.agreeing = self.values = 0
        self.largest = self.total = 0.0
        self.labelled = self.right_model = self.right_file = 0

    def add(self, reference, measured):
        if reference.shape != measured.shape:
            raise ValueError(
                f"Expected the file's output {self.name!r} to have the model's shape "
                f"{reference.shape}. Received: shape {measured.shape}."
            )
        difference = np.abs(reference.astype("float64") - measured.astype("float64"))
        self.largest = float(np.maximum(self.largest, difference.max()))
        self.total += float(difference.sum())
        self.values += difference.size
        decided_model, decided_file = self._decide(reference), self._decide(measured)
        self.predictions += decided_model.size
        self.agreeing += int((decided_model == decided_file).sum())
        if self.labels is not None:
            truth = self._truth(reference.shape, decided_model.shape)
            counts = truth >= 0
            self.labelled += int(counts.sum())
            self.right_model += int(((decided_model == truth) & counts).sum())
            self.right_file += int(((decided_file == truth) & counts).sum())
        self.samples += len(reference)

    def _decide(self, values):
        """The predicted class: shape `(batch, ...)` without the last axis."""
        if values.ndim == 1:
            return (values > self.threshold).astype(int)
        if values.shape[-1] == 1:
            return (values[..., 0] > self.threshold).astype(int)
        return np.argmax(values, axis=-1)

    def _truth(self, output_shape, decision_shape):
        """This batch's labels as classes, of the decisions' shape."""
        labels = self.labels[self.samples : self.samples + output_shape[0]]
        if labels.shape == output_shape and output_shape != decision_shape:
            return labels[..., 0] if output_shape[-1] == 1 else np.argmax(labels, axis=-1)
        if labels.shape == (*decision_shape, 1):
            labels = labels[..., 0]
        if labels.shape != decision_shape:
            raise ValueError(
                f"Expected `labels` to hold one class for each prediction, shape "
                f"{('samples', *decision_shape[1:])} and as long as `data`. "
                f"Received: shape {self.labels.shape}."
            )
        return labels

    def finish(self):
        if self.labels is not None and len(self.labels) != self.samples:
            raise ValueError(
                f"Expected `labels` to be as long as `data`, {self.samples} samples. "
                f"Received: {len(self.labels)}."
            )
        if self.labels is not None and not self.labelled:
            raise ValueError("Expected `labels` to hold a class of 0 or more. Received: none.")

    @property
    def agreement(self):
        return self.agreeing / self.predictions

    def accuracies(self):
        return self.right_model / self.labelled, self.right_file / self.labelled
