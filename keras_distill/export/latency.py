"""How long one sample takes in an exported file."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_distill import _checks
from keras_distill._types import PathLike
from keras_distill.export import _runner

__all__ = ["Latency", "latency"]


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds of one pass: the median and the 10th and 90th percentile of `runs`."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict of plain numbers."""
        return dataclasses.asdict(self)

    def __str__(self):
        return f"{self.median_ms:.3f} ms ({self.p10_ms:.3f} to {self.p90_ms:.3f})"


def latency(
    path: PathLike,
    *,
    runs: int = 50,
    warmup: int = 10,
    threads: int = 1,
    sample: Mapping[str, np.ndarray] | None = None,
) -> Latency:
    """Times an exported file on one sample, on this machine.

    A `.tflite` file runs in LiteRT's interpreter, on the processor, and the time is that of its
    `invoke` alone; a SavedModel folder runs its `serving_default` signature. A file fixed to
    another batch than 1 is timed with that batch.

    Args:
        path: The `.tflite` file or SavedModel folder.
        runs: The number of timed passes.
        warmup: The number of passes before them.
        threads: The interpreter's threads (TensorFlow's own setting rules a SavedModel).
        sample: The inputs, a dict of arrays with a batch axis by the names in the file; by
            default uniform noise of a fixed seed. Needed where the file leaves sizes other
            than the batch open.

    Returns:
        A `Latency`.

    Example:
    ```python
    print(kd.export.latency("student.tflite"))
    ```
    """
    _checks.positive_integer("runs", runs)
    _checks.positive_integer("threads", threads)
    if _checks.non_negative("warmup", warmup) != int(warmup):
        raise ValueError(_checks.message("`warmup` to be a whole number", "warmup", warmup))
    runner = _runner.open_runner(path, threads)
    runner.prepare(_noise(runner, path) if sample is None else _checked(runner, sample))
    times = []
    for index in range(int(warmup) + runs):
        start = time.perf_counter()
        runner.invoke()
        if index >= warmup:
            times.append((time.perf_counter() - start) * 1e3)
    low, median, high = (float(value) for value in np.percentile(times, [10, 50, 90]))
    return Latency(median, low, high, runs, threads)


def _noise(runner, path):
    generator = np.random.default_rng(0)
    feed = {}
    for name, shape in runner.input_shapes.items():
        if None in shape[1:]:
            raise ValueError(
                f"Expected `sample` for the file {str(path)!r}, whose input {name!r} has open "
                f"sizes. Received: sample=None. Its shape is {shape}."
            )
        shape = (shape[0] or 1, *shape[1:])
        dtype = np.dtype(runner.input_dtypes[name])
        if dtype.kind == "f":
            feed[name] = generator.uniform(size=shape).astype(dtype)
        else:
            feed[name] = np.zeros(shape, dtype)
    return feed


def _checked(runner, sample):
    if not isinstance(sample, dict) or set(sample) != set(runner.input_shapes):
        raise ValueError(
            f"Expected `sample` to be a dict with the inputs {sorted(runner.input_shapes)}. "
            f"Received: {sorted(sample) if isinstance(sample, dict) else type(sample).__name__}."
        )
    feed = {}
    for name, shape in runner.input_shapes.items():
        array = np.asarray(sample[name])
        fits = len(array.shape) == len(shape) and math.prod(array.shape) > 0
        if not fits or any(a not in (None, b) for a, b in zip(shape, array.shape, strict=True)):
            raise ValueError(
                f"Expected `sample[{name!r}]` of shape {shape}. Received: shape {array.shape}."
            )
        feed[name] = array
    return feed
