"""The compiled metrics once more for each exit of a network."""

import keras

from keras_distill.models import labels as label_rules


class ExitMetrics:
    """Copies of the compiled metrics, logged under the name of each exit.

    A plain object, so that Keras tracks and saves them as little as the compiled ones.

    Args:
        kind: The class of Keras's container of compiled metrics.
        metrics, weighted_metrics: What the user gave to `compile`, for one network.
        names: Names of the exits, one copy each.
    """

    def __init__(self, kind, metrics, weighted_metrics, names):
        self.names = list(names)
        self._compiled = [kind(_copies(metrics), _copies(weighted_metrics)) for _ in self.names]

    @property
    def built(self):
        """The containers that hold metrics: none before `build`."""
        return [compiled for compiled in self._compiled if compiled.built]

    def build(self, labels, prediction):
        """Makes the metrics that names such as "accuracy" mean for such labels."""
        for name, compiled in zip(self.names, self._compiled):
            if not compiled.built:
                compiled.build(labels, prediction)
                # Under the names that are logged, `EarlyStopping` finds which way is better.
                for metric, own in zip(compiled.metrics, list(compiled.result())):
                    metric.name = f"{name}_{own}"

    def update(self, loss, labels, predictions, sample_weight):
        """Adds a batch.

        Args:
            loss: The compiled loss, which tells whether -1 is a label.
            labels, sample_weight: As in `keras.Model.compute_metrics`.
            predictions: One an exit, in the order of the names.
        """
        self.build(labels, predictions[0])
        for compiled, prediction in zip(self._compiled, predictions):
            y, weight, masks = label_rules.leave_out_unlabelled(
                loss, labels, prediction, sample_weight
            )
            label_rules.update_metrics(compiled, y, prediction, weight, masks)


def _copies(metrics):
    def copy(metric):
        if isinstance(metric, keras.metrics.Metric):
            return type(metric).from_config(metric.get_config())
        return metric

    return keras.tree.map_structure(copy, metrics)
