"""What the sets of `benchmark.py` share: what is timed, how, and the figures made of it.

A set is timed in rounds. Each round runs every case once, the order turned by one from round to
round, and a figure is the median over the rounds of a ratio of times of the same round: what
slows the machine for seconds slows both.
"""

import dataclasses
import importlib.util
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

import keras_distill as kd
from keras_distill.backbones import resnet

WARM_UP = 2  # Runs before the first round: they trace, and fill what is cached.
KIBIBYTES = 1024.0  # In a mebibyte.
DIGITS = 5  # Significant, of what is written.


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the sets are measured with.

    Attributes:
        rounds: How often each case is timed.
        images: Images of an epoch; a remainder of less than a batch is left out.
        batch_size: Images of a batch.
        teacher_depth: Depth of the teacher, a CIFAR ResNet.
        student_depth: Depth of the student, another.
        dtype: The policy of Keras, which the PyTorch loops follow.
        jit: Whether XLA compiles the steps: True, False, or "auto" as Keras decides it.
    """

    rounds: int
    images: int
    batch_size: int = 128
    teacher_depth: int = 20
    student_depth: int = 8
    dtype: str = "float32"
    jit: bool | str = "auto"

    @property
    def count(self):
        """Images of whole batches."""
        return self.images // self.batch_size * self.batch_size


class Took(NamedTuple):
    """What a run returns that was timed where it ran."""

    wall: float
    processor: float
    value: float = 0.0


class Case(NamedTuple):
    """Something to time.

    Attributes:
        make: Builds it; returns the function that runs it once.
        images: Images that all networks together forward in a run.
        needs: "torch" or "tensorflow" (as the backend): the case is left out without.
    """

    make: Callable
    images: int
    needs: tuple = ()


class Ratio(NamedTuple):
    """Two cases held against each other.

    Attributes:
        case: Name of the one.
        over: Names of the references; their times are summed.
        rate: Whether the figure is of images/s (more is better) instead of time an image.
        reference: What the references together are called. Defaults to the name of the one.
    """

    case: str
    over: tuple
    rate: bool = False
    reference: str | None = None

    @property
    def name(self):
        unit = ", images/s" if self.rate else ""
        return f"{self.case} / {self.reference or ' + '.join(self.over)}{unit}"


@dataclasses.dataclass(frozen=True)
class Timed:
    """A set whose cases are timed.

    Attributes:
        cases: `Case`s by name.
        ratios: The `Ratio`s that are figures.
        plain: The case whose images/s the others' are a share of.
    """

    cases: dict
    ratios: tuple
    plain: str | None = None

    def names(self):
        """Names of its figures."""
        return [ratio.name for ratio in self.ratios]

    def measured(self, settings, words=()):
        """`{"figures": ..., "speeds": ...}` of what can run here and has one of `words`."""
        here = {name for name, case in self.cases.items() if all(map(is_here, case.needs))}
        ratios = [
            ratio
            for ratio in self.ratios
            if {ratio.case, *ratio.over} <= here and is_asked(ratio.name, words)
        ]
        wanted = here
        if words:
            wanted = {name for ratio in ratios for name in (ratio.case, *ratio.over)}
        runs = {name: case.make() for name, case in self.cases.items() if name in wanted}
        wall, processor = timed(runs, settings.rounds)
        figures = {
            ratio.name: {
                "wall": summary(self._ratios(ratio, wall)),
                "processor": summary(self._ratios(ratio, processor)),
                "case": ratio.case,
                "more_is_better": ratio.rate,
            }
            for ratio in ratios
        }
        return {"figures": figures, "speeds": self._speeds(wall)}

    def _each(self, name, seconds):
        """Seconds an image, in each round."""
        return np.array(seconds[name]) / self.cases[name].images

    def _ratios(self, ratio, seconds):
        found = self._each(ratio.case, seconds)
        found = found / sum(self._each(name, seconds) for name in ratio.over)
        return 1.0 / found if ratio.rate else found

    def _speeds(self, wall):
        found = {}
        for name in wall:
            each = self._each(name, wall)
            found[name] = {"images_per_second": rounded(1.0 / statistics.median(each))}
            if self.plain in wall:
                shares = self._each(self.plain, wall) / each
                found[name]["share_of_plain_fit"] = rounded(statistics.median(shares))
        return found


def is_here(need):
    """Whether a backend or a package is there."""
    if need == "tensorflow":
        return keras.backend.backend() == "tensorflow"
    return importlib.util.find_spec(need) is not None


def is_asked(name, words):
    """Whether a name has one of the words in it; every name has where there are none."""
    return not words or any(word.lower() in name.lower() for word in words)


def timed(runs, rounds):
    """Wall and processor seconds of each run in each round, the order turned by one a round."""
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    wall = {name: [] for name in runs}
    processor = {name: [] for name in runs}
    names = list(runs)
    for i in range(rounds if names else 0):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            took = timed_once(runs[name])
            wall[name].append(took.wall)
            processor[name].append(took.processor)
        print(f"  round {i + 1} of {rounds}", flush=True)
    return wall, processor


def timed_once(run):
    """What a run `Took`."""
    start, start_processor = time.perf_counter(), time.process_time()
    own = run()
    if isinstance(own, Took):
        return own
    return Took(time.perf_counter() - start, time.process_time() - start_processor)


def summary(values):
    """Median, spread and every round of a figure."""
    values = [rounded(value) for value in values]
    return {
        "median": rounded(statistics.median(values)),
        "lowest": min(values),
        "highest": max(values),
        "rounds": values,
    }


def figure(wall, processor=None, more_is_better=False):
    """A figure that is no ratio of cases: of the rounds' values by the clock or the scale."""
    processor = None if processor is None else summary(processor)
    return {"wall": summary(wall), "processor": processor, "more_is_better": more_is_better}


def peak_memory():
    """Mebibytes that this process held at its highest.

    Not `ru_maxrss`: on Linux a process begins with that of the one that started it.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / KIBIBYTES


def rounded(value):
    """A float of five significant digits."""
    return float(f"{float(value):.{DIGITS}g}")


# Networks and data.


def label_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def teacher(settings, name="teacher", **options):
    return resnet(settings.teacher_depth, name=name, **options)


def student(settings, name="student", **options):
    return resnet(settings.student_depth, name=name, **options)


def compiled(settings, model, loss=None):
    """The model, compiled with plain SGD."""
    model.compile("sgd", label_loss() if loss is None else loss, jit_compile=settings.jit)
    return model


def samples(settings, dtype="uint8"):
    """Random images and labels; float32 ones are normal."""
    rng = np.random.default_rng(0)
    shape = (settings.count, 32, 32, 3)
    if dtype == "uint8":
        images = rng.integers(0, 256, shape, dtype="uint8")
    else:
        images = rng.normal(size=shape).astype(dtype)
    return images, rng.integers(0, 10, settings.count)


def augmented(settings, images, labels, **options):
    """Shuffled batches with crops and flips."""
    augment = kd.data.crop_and_flip()
    return kd.data.batches(images, labels, settings.batch_size, augment=augment, **options)


def fitting(model, dataset):
    """A function that trains a model for an epoch and waits for its last update."""

    def run():
        model.fit(dataset, shuffle=False, verbose=0)
        wait(model)

    return run


def wait(model):
    """Returns when the model's variables have the values of all steps that were dispatched."""
    if keras.backend.backend() == "jax":
        import jax

        jax.block_until_ready([variable.value for variable in model.trainable_variables])
    elif model.trainable_variables:
        keras.ops.convert_to_numpy(model.trainable_variables[-1])
