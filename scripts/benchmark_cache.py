"""What `benchmark.py --cache` times: building a teacher's cache, and training from one.

Building is held against the teacher's `predict` on the same augmented images, training against the
student's plain `fit` on them.
"""

import pathlib
import shutil
import tempfile
import time

import numpy as np
from benchmark_schemes import Variant
from benchmark_schemes import compiled
from benchmark_schemes import label_loss
from benchmark_schemes import samples
from benchmark_schemes import student

import keras_distill as kd
from keras_distill.backbones import resnet

# What is stored: all logits, or the likeliest five of ten.
# A build traces the teacher once: it has so many times the images of an epoch.
BUILT = 8
KINDS = {"dense": {}, "k = 5": {"top_k": 5, "temperatures": 4.0}}


def variants(arguments):
    """Names of what is timed, each a `Variant`; batches of one size, images augmented."""
    images, labels = samples(arguments)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="benchmark-cache-"))
    augment, batch = kd.data.crop_and_flip(), arguments.batch_size
    teacher = resnet(arguments.teacher_depth, name="teacher")
    plain = kd.data.batches(images, labels, batch, augment=augment)
    alone = compiled(student(arguments, "alone"))
    many = np.tile(images, (BUILT, 1, 1, 1)), np.tile(labels, BUILT)
    inputs = kd.data.batches(*many, batch, augment=augment).map(lambda x, y: x)
    found = {
        "teacher predict": Variant(lambda: teacher.predict(inputs, verbose=0), len(many[0])),
        "student fit": Variant(fitting(alone, plain), len(images)),
    }
    for name, options in KINDS.items():

        def build(path, data, options=options):
            return kd.data.TeacherCache.build(
                path, teacher, *data, augment=augment, batch_size=batch, **options
            )

        def rebuild(build=build):
            shutil.rmtree(folder / "again", ignore_errors=True)
            build(folder / "again", many)

        cache = build(folder / name, (images, labels))
        wrapper = kd.Distiller(cache, student(arguments, "student"), kd.losses.SoftTargets(4.0))
        wrapper.compile("sgd", label_loss())
        found[f"build, {name}"] = Variant(rebuild, len(many[0]), "teacher predict", 1 / 0.95)
        found[f"fit, {name}"] = Variant(
            fitting(wrapper, cache.dataset(batch)), len(images), "student fit", 1 / 0.95
        )
    live = kd.Distiller(teacher, student(arguments, "live"), kd.losses.SoftTargets(4.0))
    live.compile("sgd", label_loss())
    found["fit, the teacher beside"] = Variant(fitting(live, plain), len(images), "student fit")
    return found


def fitting(model, dataset):
    """A function that trains a model for an epoch."""
    return lambda: model.fit(dataset, shuffle=False, verbose=0)


def verified(gigabytes=1.0):
    """Seconds in which a cache of this size is verified: random records."""
    from keras_distill.data import cache_store

    folder = pathlib.Path(tempfile.mkdtemp(prefix="benchmark-cache-"))
    samples, record_bytes = int(gigabytes * 1e9 / 404), 404
    manifest = {
        "samples": samples,
        "views": 1,
        "record_bytes": record_bytes,
        "block": 16384,
        "id": "benchmark",
    }
    try:
        store = cache_store.Store(folder, manifest)
        store.allocate(0)
        rng = np.random.default_rng(0)
        for block in range(store.blocks):
            first, end = store.rows(block)
            store.write(0, block, rng.integers(0, 256, (end - first, record_bytes), dtype="uint8"))
        store.finish()
        start = time.perf_counter()
        store.verify()
        return time.perf_counter() - start
    finally:
        shutil.rmtree(folder, ignore_errors=True)
