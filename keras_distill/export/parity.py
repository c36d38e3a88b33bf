"""Does the exported file do what the network does?"""

import dataclasses
import os
import pathlib
from typing import Any

import keras
import numpy as np

from keras_distill import _checks
from keras_distill._types import PathLike
from keras_distill.export import _network
from keras_distill.export import _runner
from keras_distill.export import _samples
from keras_distill.export._comparison import comparisons_of
from keras_distill.export._comparison import named_outputs
from keras_distill.export._flatbuffer import quantization_of
from keras_distill.export.latency import latency

__all__ = ["ParityError", "ParityReport", "check_parity"]

# By quantization: the largest difference of an output, the smallest share of equal decisions,
# the largest loss of accuracy.
LIMITS = {
    "float32": {"max_difference": 1e-4, "min_agreement": 1.0, "max_accuracy_loss": 0.0},
    "float16": {"max_difference": np.inf, "min_agreement": 0.99, "max_accuracy_loss": 0.01},
    "dynamic": {"max_difference": np.inf, "min_agreement": 0.98, "max_accuracy_loss": 0.01},
    "int8": {"max_difference": np.inf, "min_agreement": 0.98, "max_accuracy_loss": 0.01},
}


class ParityError(RuntimeError):
    """An exported file strays from its network beyond the limits; `report` has the numbers."""

    def __init__(self, message: str, report: "ParityReport") -> None:
        super().__init__(message)
        self.report = report


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """What `check_parity` measured.

    Attributes:
        path: The exported file or folder.
        quantization: `"float32"`, `"float16"`, `"dynamic"` or `"int8"`, read from the file.
        samples: The number of samples compared.
        agreement: The share of predictions with the same class (one unit: the same side of the
            threshold); of several outputs, the worst one's.
        largest_difference: The largest absolute difference of an output value.
        mean_difference: The mean absolute difference of the output values.
        bytes: The size of the file, or of all files in the folder.
        latency_ms: The median time of one sample; see `kd.export.latency`.
        latency_p10_ms: Its 10th percentile.
        latency_p90_ms: Its 90th percentile.
        accuracy_model: The network's accuracy, None without labels; of several outputs, the
            mean.
        accuracy_file: The file's accuracy.
    """

    path: str
    quantization: str
    samples: int
    agreement: float
    largest_difference: float
    mean_difference: float
    bytes: int
    latency_ms: float
    latency_p10_ms: float
    latency_p90_ms: float
    accuracy_model: float | None = None
    accuracy_file: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict that JSON takes."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """One or two lines for a person."""
        text = (
            f"{pathlib.Path(self.path).name}: {self.quantization}, {self.bytes:,} bytes, "
            f"{self.latency_ms:.3f} ms; agrees on {100 * self.agreement:.2f} % of "
            f"{self.samples:,} samples, largest difference {self.largest_difference:.2g}"
        )
        if self.accuracy_model is None:
            return text
        return (
            f"{text}\naccuracy {100 * self.accuracy_file:.2f} % in the file, "
            f"{100 * self.accuracy_model:.2f} % in the model"
        )


def check_parity(
    model: keras.Model | PathLike,
    path: PathLike,
    data: Any,
    *,
    labels: Any = None,
    quantize: str | None = None,
    max_difference: float | None = None,
    min_agreement: float | None = None,
    max_accuracy_loss: float | None = None,
    latency_runs: int = 30,
) -> ParityReport:
    """Runs an exported file beside its network and raises where they differ too much.

    A `.tflite` file runs in LiteRT's interpreter, a SavedModel folder in TensorFlow. The
    network computes in float32 here, as its export does, whatever its dtype policy.

    Limits left at None follow the file's quantization: float32 allows a difference of 1e-4 and
    demands that every decision agrees; float16 99 %, dynamic and int8 98 % of them. With
    labels, float32 may lose no accuracy and the others one point (0.01).

    Args:
        model: The exported network: a `keras.Model`, a wrapper of this library, or the path of
            a `.keras` file.
        path: The `.tflite` file or SavedModel folder.
        data: The samples, all of which are used: an array (or the structure of arrays that the
            model takes), or a finite iterable of batches of `x` or `(x, y)`; `y` is dropped.
        labels: The true classes in the order of `data`, as whole numbers or one-hot rows; for
            several outputs, a dict or list of them. Negative classes count as unlabelled.
        quantize: Holds the file to the limits of this quantization (`"float32"`, `"float16"`,
            `"dynamic"`, `"int8"`) instead of the detected one's.
        max_difference: The largest absolute difference of an output value.
        min_agreement: The smallest share of equal decisions.
        max_accuracy_loss: The largest drop in accuracy, a share; needs `labels`.
        latency_runs: The number of timed passes.

    Returns:
        A `ParityReport`.

    Raises:
        ParityError: If a limit is passed, or an output is not finite.
        ValueError: If the file cannot be read, or data, labels and file do not fit the model.

    Example:
    ```python
    report = kd.export.check_parity(student, "student.tflite", x_test, labels=y_test)
    print(report.summary())
    ```
    """
    if quantize is not None:
        _checks.one_of("quantize", quantize, tuple(LIMITS))
    given = {
        "max_difference": max_difference,
        "min_agreement": min_agreement,
        "max_accuracy_loss": max_accuracy_loss,
    }
    for name, value in given.items():
        if value is not None and not (_checks.is_number(value) and value >= 0):
            raise ValueError(_checks.message(f"`{name}` to be a number, 0 or more", name, value))
    if max_accuracy_loss is not None and labels is None:
        raise ValueError(_checks.message("`labels` with `max_accuracy_loss`", "labels", None))

    _samples.require_finite(data, "data")
    network = _network.inference_model(model)
    inputs = _network.inputs_of(network)
    runner = _runner.open_runner(path)
    names = _input_names(inputs, runner, path)
    comparisons, samples, first = _compare(network, inputs, runner, names, data, labels)
    timed = latency(path, runs=latency_runs, warmup=5, sample=first)
    accuracies = [one.accuracies() for one in comparisons if one.labels is not None]
    report = ParityReport(
        path=str(path),
        quantization=quantization_of(path),
        samples=samples,
        agreement=min(one.agreement for one in comparisons),
        largest_difference=float(np.max([one.largest for one in comparisons])),
        mean_difference=float(
            sum(one.total for one in comparisons) / sum(one.values for one in comparisons)
        ),
        bytes=_size(pathlib.Path(path)),
        latency_ms=timed.median_ms,
        latency_p10_ms=timed.p10_ms,
        latency_p90_ms=timed.p90_ms,
        accuracy_model=float(np.mean([one[0] for one in accuracies])) if accuracies else None,
        accuracy_file=float(np.mean([one[1] for one in accuracies])) if accuracies else None,
    )
    limits = LIMITS[quantize or report.quantization]
    limits = {name: limits[name] if given[name] is None else given[name] for name in given}
    _raise_beyond(limits, report)
    return report


def _compare(network, inputs, runner, names, data, labels):
    comparisons, samples, first, batch_size = None, 0, None, runner.batch_size or 1
    with _network.float32_computation(network):
        for arrays in _samples.batches(inputs, data, "data"):
            reference = network(inputs.pack(arrays), training=False)
            feed = dict(zip(names, arrays, strict=True))
            measured = runner.run(feed)
            outputs = named_outputs(reference, runner.output_names)
            if comparisons is None:
                first = {
                    name: np.resize(array[:batch_size], (batch_size, *array.shape[1:]))
                    for name, array in feed.items()
                }
                comparisons = comparisons_of(network, reference, outputs, labels)
            for name, comparison in comparisons.items():
                comparison.add(np.asarray(outputs[name]), measured[name])
            samples += len(arrays[0])
    for comparison in comparisons.values():
        comparison.finish()
    return list(comparisons.values()), samples, first


def _input_names(inputs, runner, path):
    """For each input of the network, its name in the file."""
    names, found = [item.name for item in inputs.items], list(runner.input_shapes)
    if set(names) == set(found):
        return names
    if len(names) == len(found) == 1:
        return found
    raise ValueError(
        f"Expected a file with the model's inputs {sorted(names)}. "
        f"Received: {str(path)!r} with {sorted(found)}."
    )


def _size(path):
    if path.is_file():
        return path.stat().st_size
    return sum(
        (pathlib.Path(folder) / name).stat().st_size
        for folder, _, names in os.walk(path)
        for name in names
    )


def _raise_beyond(limits, report):
    """Written as `not (... <= ...)`, so that NaN is beyond every limit."""
    beyond = []
    if not np.isfinite(report.largest_difference):
        beyond.append("an output is NaN or infinite")
    elif not report.largest_difference <= limits["max_difference"]:
        beyond.append(
            f"largest difference {report.largest_difference:.3g} "
            f"(at most {limits['max_difference']:g})"
        )
    if not report.agreement >= limits["min_agreement"]:
        beyond.append(
            f"agreement {100 * report.agreement:.2f} % "
            f"(at least {100 * limits['min_agreement']:g} %)"
        )
    if report.accuracy_model is not None:
        loss = report.accuracy_model - report.accuracy_file
        if not loss <= limits["max_accuracy_loss"] + 1e-9:
            beyond.append(
                f"accuracy {100 * report.accuracy_file:.2f} % for "
                f"{100 * report.accuracy_model:.2f} % (at most "
                f"{100 * limits['max_accuracy_loss']:g} points less)"
            )
    if beyond:
        raise ParityError(
            f"The {report.quantization} file {report.path!r} strays from its model on "
            f"{report.samples} samples: {'; '.join(beyond)}.",
            report,
        )
