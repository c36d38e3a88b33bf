"""What `benchmark.py --cache` times: building a teacher's cache, training from it, verifying it.

Building is held against the teacher's `predict` on the same augmented images, training against the
student's plain `fit` on them. The loop in PyTorch has its teacher beside it and its batches ready.
"""

import atexit
import functools
import pathlib
import shutil
import tempfile
import time

import numpy as np
from benchmark_measure import Case
from benchmark_measure import Ratio
from benchmark_measure import Timed
from benchmark_measure import augmented
from benchmark_measure import compiled
from benchmark_measure import figure
from benchmark_measure import fitting
from benchmark_measure import is_asked
from benchmark_measure import samples
from benchmark_measure import student
from benchmark_measure import teacher
from benchmark_steps import FORMATS
from benchmark_steps import peer

import keras_distill as kd
from keras_distill.data import cache_store

BUILT = 8  # A build traces the teacher once: it has so many times the images of an epoch.
KINDS = {"dense": {}, "k = 5": {"top_k": 5, "temperatures": 4.0}}
VERIFIED = "verification of 1 GB, seconds"
GIGABYTE, RECORD_BYTES = 1e9, 404
VERIFIED_ROUNDS = 3


class Suite(Timed):
    """The timed cases, and the verification of a cache of 1 GB."""

    def names(self):
        return [*super().names(), VERIFIED]

    def measured(self, settings, words=()):
        found = super().measured(settings, words)
        if is_asked(VERIFIED, words):
            found["figures"][VERIFIED] = figure(verified(VERIFIED_ROUNDS))
        return found


def built(settings, path, network, images, labels, kind):
    """A cache of this kind."""
    return kd.data.TeacherCache.build(
        path,
        network,
        images,
        labels,
        augment=kd.data.crop_and_flip(),
        batch_size=settings.batch_size,
        **KINDS[kind],
    )


def distilling(settings, taught_by, name):
    """A compiled Distiller from a teacher or its cache."""
    own = student(settings, name)
    return compiled(settings, kd.Distiller(taught_by, own, kd.losses.SoftTargets(4.0)))


def suite(settings):
    images, labels = samples(settings)
    many = np.tile(images, (BUILT, 1, 1, 1)), np.tile(labels, BUILT)
    folder = functools.cache(temporary)
    network = functools.cache(lambda: teacher(settings))

    def predict():
        inputs = augmented(settings, *many).map(lambda x, y: x)
        return lambda: network().predict(inputs, verbose=0)

    def rebuilding(kind):
        def run():
            shutil.rmtree(folder() / "again", ignore_errors=True)
            built(settings, folder() / "again", network(), *many, kind)

        return run

    def replaying(kind):
        cache = built(settings, folder() / kind, network(), images, labels, kind)
        wrapper = distilling(settings, cache, "student_of_cache")
        return fitting(wrapper, cache.dataset(settings.batch_size))

    def beside():
        return fitting(
            distilling(settings, network(), "student_beside"), augmented(settings, images, labels)
        )

    def alone():
        own = compiled(settings, student(settings, "student_alone"))
        return fitting(own, augmented(settings, images, labels))

    count = settings.count
    cases = {
        "teacher predict": Case(predict, BUILT * count),
        "student fit": Case(alone, count),
        "fit, the teacher beside": Case(beside, count),
    }
    for form in FORMATS:
        cases[f"PyTorch KD{form}"] = peer("KD", form, settings)
    ratios = [Ratio("fit, the teacher beside", ("student fit",), True)]
    for kind in KINDS:
        build, fit = f"build, {kind}", f"fit from a cache, {kind}"
        cases[build] = Case(lambda kind=kind: rebuilding(kind), BUILT * count)
        cases[fit] = Case(lambda kind=kind: replaying(kind), count)
        ratios += [Ratio(build, ("teacher predict",), True), Ratio(fit, ("student fit",), True)]
        ratios += [Ratio(fit, (f"PyTorch KD{form}",), True) for form in FORMATS]
    return Suite(cases, tuple(ratios), "student fit")


def temporary():
    """A folder that goes with the process."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="benchmark-cache-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def verified(rounds, size=GIGABYTE):
    """Seconds in which a cache of this size is verified, so many times: random records."""
    folder = temporary()
    manifest = {
        "samples": int(size / RECORD_BYTES),
        "views": 1,
        "record_bytes": RECORD_BYTES,
        "block": 16384,
        "id": "benchmark",
    }
    store = cache_store.Store(folder, manifest)
    store.allocate(0)
    rng = np.random.default_rng(0)
    for block in range(store.blocks):
        first, end = store.rows(block)
        store.write(0, block, rng.integers(0, 256, (end - first, RECORD_BYTES), dtype="uint8"))
    store.finish()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        store.verify()
        seconds.append(time.perf_counter() - start)
    shutil.rmtree(folder, ignore_errors=True)
    return seconds
