"""What `benchmark.py --pipelines` times: batches of DLB beside plain ones, without a network.

Both are read through and thrown away; the figure is of images emitted a second.
"""

from benchmark_measure import Case
from benchmark_measure import Ratio
from benchmark_measure import Timed
from benchmark_measure import samples

import keras_distill as kd
from keras_distill.data.pipeline import steps_per_epoch

HALVES = (16, 64, 128)


def reading(dataset):
    """A function that reads a data set through."""

    def run():
        for _ in dataset:
            pass

    return run


def suite(settings):
    images, labels = samples(settings)
    cases, ratios = {}, []
    for half in HALVES:
        for name, augment in (("augmented", kd.data.crop_and_flip()), ("as they are", None)):
            own, reference = f"halves of {half}, {name}", f"batches of {2 * half}, {name}"
            cases[own] = Case(
                lambda half=half, augment=augment: reading(
                    kd.data.overlap_batches((images, labels), half, augment, seed=0)
                ),
                2 * half * steps_per_epoch(len(images), half, drop_remainder=True),
            )
            cases[reference] = Case(
                lambda size=2 * half, augment=augment: reading(
                    kd.data.batches(images, labels, size, augment=augment, drop_remainder=True)
                ),
                2 * half * steps_per_epoch(len(images), 2 * half, drop_remainder=True),
            )
            ratios.append(Ratio(own, (reference,), rate=True))
    return Timed(cases, tuple(ratios))
