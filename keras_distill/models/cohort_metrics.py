"""The metrics that are compiled for one network, for each network of a cohort."""

import keras
import numpy as np

from keras_distill import _checks
from keras_distill.models import labels as label_rules
from keras_distill.models.cohort import ENSEMBLE
from keras_distill.models.named_metrics import copies

SMALLER_IS_BETTER = ("loss", "mimicry", "error", "crossentropy", "divergence", "mse", "mae", "ece")


class GivenMetrics:
    """What the user gave to `compile`; a plain object, so that Keras does not track it.

    Args:
        metrics, weighted_metrics: As in `keras.Model.compile`, for one network.
    """

    def __init__(self, metrics, weighted_metrics):
        self.arguments = {"metrics": metrics, "weighted_metrics": weighted_metrics}
        for metric in keras.tree.flatten([metrics, weighted_metrics]):
            name = metric if isinstance(metric, str) else getattr(metric, "name", None)
            if name in ("loss", "mimicry"):
                raise ValueError(
                    f"Expected metrics with names of their own. Received: {name!r}, under which "
                    "a loss of each student is logged. Give the metric another name."
                )

    def of_each(self, names, keys):
        """Arguments of `compile` for outputs by network: copies under "NAME" or "NAME_output".

        Args:
            names: Names of the students.
            keys: Names of a student's outputs; `None` for a single one.
        """
        return {
            argument: self._by_network(argument, given, [*names, ENSEMBLE], keys)
            for argument, given in self.arguments.items()
        }

    def _by_network(self, argument, given, names, keys):
        if not given:
            return None
        if keys is None:
            by_output = {None: given}
        elif isinstance(given, dict) and set(given) <= set(keys):
            by_output = given
        elif isinstance(given, (list, tuple)) and len(given) == len(keys):
            by_output = dict(zip(keys, given))
        else:
            raise ValueError(
                _checks.message(
                    f"`{argument}` for each output: a dict with keys among {keys}, or a list of "
                    f"{len(keys)}",
                    argument,
                    given,
                )
            )
        return {_joined(name, key): copies(one) for name in names for key, one in by_output.items()}

    def serialized(self):
        """The arguments as a compile config holds them."""
        return {
            argument: keras.saving.serialize_keras_object(given)
            for argument, given in self.arguments.items()
        }


def update(compiled, loss, labels, predictions, sample_weight, cohort):
    """Updates all networks' metrics.

    Args:
        compiled: Keras's `CompileMetrics` of `GivenMetrics.of_each`.
        loss: The compiled loss, which tells whether -1 is a label.
        labels, sample_weight: Of one network.
        predictions: A dict by network's name.
        cohort: The `Cohort`.
    """
    some = predictions[ENSEMBLE]
    count, keys = len(keras.tree.flatten(some)), cohort.output_keys
    labels, sample_weight, masks = label_rules.leave_out_unlabelled(
        loss, labels, some, sample_weight, cohort.output_names
    )
    labels = label_rules.by_output(labels, count, keys)
    weights = label_rules.by_output(sample_weight, count, keys)
    columns = {
        _joined(name, key): column
        for name, prediction in predictions.items()
        for key, *column in zip(
            keys or [None], labels, keras.tree.flatten(prediction), weights, masks
        )
    }
    columns = {name: columns[name] for name in sorted(columns)}  # The order of Keras's trees.
    labels, predictions, weights, masks = (
        {name: column[i] for name, column in columns.items()} for i in range(4)
    )
    if not compiled.built:
        compiled.build(labels, predictions)
        _name(compiled)
    label_rules.update_metrics(compiled, labels, predictions, weights, list(masks.values()))


def _joined(network, output):
    return network if output is None else f"{network}_{output}"


def _name(compiled):
    """Gives the metrics the names that Keras logs them under.

    So that `EarlyStopping` and `ModelCheckpoint` know which way `val_NAME_accuracy` is better:
    Keras itself knows it for the metrics of an only output.
    """
    for group in [*compiled._flat_metrics, *compiled._flat_weighted_metrics]:
        if group is not None and group.output_name is not None:
            for metric in group.metrics:
                metric.name = f"{group.output_name}_{metric.name}"
            group.output_name = None


def last_logs(history):
    """The logs of the last epoch of a `History`; raises where there was none."""
    if history is None:
        raise ValueError(
            "Expected a cohort that `fit` has trained in this session. Received: one without "
            "history. Pass logs=cohort.evaluate(x, y, return_dict=True)."
        )
    return {name: values[-1] for name, values in history.history.items()}


def index_of_best(names, metric, logs, mode):
    """The position of the student with the best value.

    Args:
        names: The students' names.
        metric: What is logged as "NAME_metric", or "val_NAME_metric" for "val_metric".
        logs: Values by name.
        mode: "max", "min", or `None` to tell from the metric's name.
    """
    values = [logs.get(_key(name, metric)) for name in names]
    if any(value is None for value in values):
        raise ValueError(
            _checks.message(
                f"`metric` to be one that is logged for each student: {_logged(names, logs)}",
                "metric",
                metric,
            )
        )
    values = np.asarray(values, dtype="float64")
    if mode == "min" or (mode is None and metric.lower().endswith(SMALLER_IS_BETTER)):
        values = -values
    return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))


def _logged(names, logs):
    """What is logged for each of `names`, as text."""
    start = names[0]
    kinds = [f"val_{n[len(start) + 5 :]}" for n in logs if n.startswith(f"val_{start}_")]
    kinds += [n[len(start) + 1 :] for n in logs if n.startswith(f"{start}_")]
    return ", ".join(kind for kind in kinds if all(_key(n, kind) in logs for n in names)) or "none"


def _key(name, metric):
    """`("a", "val_accuracy")` -> `"val_a_accuracy"`."""
    prefix = "val_" if metric.startswith("val_") else ""
    return f"{prefix}{name}_{metric.removeprefix('val_')}"
