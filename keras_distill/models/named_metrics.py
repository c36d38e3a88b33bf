"""The compiled metrics once more for further predictions of a wrapper."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.models import labels as label_rules
from keras_distill.models.outputs import Outputs
from keras_distill.models.outputs import as_targets
from keras_distill.models.student import StudentModel


class NamedMetrics:
    """Copies of the compiled metrics, logged under the name of each prediction.

    A plain object, so that Keras tracks and saves them as little as the compiled ones.

    Args:
        kind: The class of Keras's container of compiled metrics.
        metrics, weighted_metrics: What the user gave to `compile`, for one network.
        names: Names of the predictions, one copy each.
    """

    def __init__(self, kind, metrics, weighted_metrics, names):
        self.names = list(names)
        self._compiled = [kind(copies(metrics), copies(weighted_metrics)) for _ in self.names]

    @property
    def metrics(self):
        """The metrics: none before `build`."""
        return [m for compiled in self._compiled if compiled.built for m in compiled.metrics]

    @property
    def containers(self):
        """The containers that hold them: none before `build`."""
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
            predictions: One a name, in the order of the names.
        """
        self.build(labels, predictions[0])
        for compiled, prediction in zip(self._compiled, predictions):
            y, weight, masks = label_rules.leave_out_unlabelled(
                loss, labels, prediction, sample_weight
            )
            label_rules.update_metrics(compiled, y, prediction, weight, masks)


class SeveralPredictions(StudentModel):
    """Base class of the wrappers of one student whose training makes further predictions.

    A subclass gives, beside what `StudentModel` asks for:
        `prediction_names()`: the names under which metrics of them are logged, perhaps none;
        `further_predictions(outputs)`: the predictions, from the `Outputs` of a forward.
    """

    _named_metrics = None

    def prediction_names(self) -> list[str]:
        """The names of the further predictions."""
        raise NotImplementedError(f"{type(self).__name__} gives no `prediction_names`.")

    def further_predictions(self, outputs: Outputs) -> Sequence[Structure]:
        """The further predictions, in the order of their names."""
        raise NotImplementedError(f"{type(self).__name__} gives no `further_predictions`.")

    def compile(
        self, *args: Any, metrics: Any = None, weighted_metrics: Any = None, **kwargs: Any
    ) -> None:
        """As `DistillationModel.compile`; the metrics are copied for each prediction."""
        super().compile(*args, metrics=metrics, weighted_metrics=weighted_metrics, **kwargs)
        self._named_metrics = None
        names = self.prediction_names()
        if self._compile_metrics is not None and names:
            kind = type(self._compile_metrics)
            self._named_metrics = NamedMetrics(kind, metrics, weighted_metrics, names)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return super().metrics + (self._named_metrics.containers if self._named_metrics else [])

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Structure, sample_weight: Structure | None = None
    ) -> dict[str, Tensor]:
        labels, named, silent = as_targets(y).labels, self._named_metrics, set()
        if named is not None and labels is not None:
            if isinstance(y_pred, Outputs):
                predictions = self.further_predictions(y_pred)
                named.update(self._compiled_loss, labels, predictions, sample_weight)
            else:  # `evaluate`; Keras builds its metrics with such a batch too.
                named.build(labels, y_pred)
                silent = {metric.name for metric in named.metrics}
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {name: value for name, value in logs.items() if name not in silent}


def copies(metrics):
    """The metrics of a structure once more; names and functions stay."""

    def copied(metric):
        if not isinstance(metric, keras.metrics.Metric):
            return metric
        try:
            return type(metric).from_config(metric.get_config())
        except TypeError as error:
            raise ValueError(
                "Expected metrics that can be copied for each network from their `get_config`. "
                f"Received: {type(metric).__name__} ({error}). Give it a `get_config`."
            ) from error

    return keras.tree.map_structure(copied, metrics)
