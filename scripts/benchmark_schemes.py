"""What `benchmark.py --schemes` and `--memory` time: the wrappers that need no teacher.

Each variant is held against what its work costs in plain Keras: the students' own `fit`, a plain
`fit` on as many forwarded images, a plain model that has the same heads.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
from typing import NamedTuple

import keras
import numpy as np

import keras_distill as kd
from keras_distill.backbones import resnet

EXITS = ("stage1", "stage2")
COHORTS = (2, 4, 8)
MEMORY = ("plain fit", "DLB", "PS-KD", "BYOT")
HALVES = (16, 64, 128)
KIBIBYTES = 1024.0  # in a mebibyte


class Variant(NamedTuple):
    """Something to time.

    Attributes:
        run: Trains for one epoch.
        images: Images that all networks together forward in it.
        reference: The variant that it is held against; `None` for a reference.
        bound: The largest ratio of the times per forwarded image that we allow.
    """

    run: object
    images: int
    reference: str | None = None
    bound: float | None = None


def label_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def student(arguments, name):
    return resnet(arguments.student_depth, name=name)


def samples(arguments):
    rng = np.random.default_rng(0)
    count = arguments.images // arguments.batch_size * arguments.batch_size
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype="uint8")
    return images, rng.integers(0, 10, count)


def compiled(model, **options):
    model.compile("sgd", options.pop("loss", label_loss()), **options)
    return model


def fitting(model, data):
    """A function that trains `model` for one epoch on `data`."""
    return lambda: model.fit(data, shuffle=False, verbose=0)


def plain_data(images, labels, batch_size, **options):
    return kd.data.batches(images, labels, batch_size, augment=kd.data.crop_and_flip(), **options)


def plain(arguments, images, labels):
    model = compiled(student(arguments, "plain"))
    return Variant(fitting(model, plain_data(images, labels, arguments.batch_size)), len(images))


def cohort(arguments, images, labels, size, **options):
    """A cohort of `size` equal students, and the same students one after the other."""
    tag = "_".join(str(value) for value in (size, *options.values()))
    data = plain_data(images, labels, arguments.batch_size)
    students = [student(arguments, f"student_{i}_of_{tag}") for i in range(size)]
    return fitting(compiled(kd.MutualLearner(students, **options)), data)


def alone(arguments, images, labels, size):
    data = plain_data(images, labels, arguments.batch_size)
    students = [compiled(student(arguments, f"alone_{i}_of_{size}")) for i in range(size)]

    def run():
        for model in students:
            model.fit(data, shuffle=False, verbose=0)

    return run


def dlb(arguments, images, labels, **options):
    model = compiled(kd.DLBModel(student(arguments, f"dlb_{len(options)}"), **options))
    data = kd.data.overlap_batches(
        (images, labels), arguments.batch_size // 2, augment=kd.data.crop_and_flip(), seed=0
    )
    return Variant(fitting(model, data), 2 * len(images), "plain fit", 1.08)


def class_wise(arguments, images, labels):
    model = compiled(kd.ClassWiseDistiller(student(arguments, "class_wise")))
    data = kd.data.class_pairs(
        images, labels, arguments.batch_size // 2, augment=kd.data.crop_and_flip()
    )
    return Variant(fitting(model, data), 2 * len(images), "plain fit", 1.05)


def distortion(arguments, images, labels):
    model = compiled(kd.DistortionDistiller(student(arguments, "distortion")))
    data = kd.data.two_views(
        images, labels, arguments.batch_size // 2, augment=kd.data.crop_and_flip()
    )
    return Variant(fitting(model, data), 2 * len(images), "plain fit", 1.05)


def progressive(arguments, images, labels):
    model = kd.ProgressiveDistiller(student(arguments, "progressive"), len(images))
    data = plain_data(images, labels, arguments.batch_size, ids=True)
    return Variant(fitting(compiled(model), data), len(images), "plain fit")


def own_teacher(arguments, images, labels):
    """Be Your Own Teacher."""
    model = kd.SelfDistiller(student(arguments, "own_teacher"), list(EXITS))
    data = plain_data(images, labels, arguments.batch_size)
    return Variant(fitting(compiled(model), data), len(images), "plain with the same heads", 1.05)


def same_heads(arguments, images, labels):
    """A plain model with the exits of `own_teacher`, trained on labels."""
    wrapper = kd.SelfDistiller(student(arguments, "same_heads"), list(EXITS))
    exits = [wrapper.exit(i) for i in range(len(EXITS) + 1)]
    model = keras.Model(exits[-1].inputs, [model.output for model in exits])
    data = plain_data(images, labels, arguments.batch_size)
    data = data.map(lambda x, y: (x, (y,) * (len(EXITS) + 1)))
    losses = [label_loss() for _ in range(len(EXITS) + 1)]
    return Variant(fitting(compiled(model, loss=losses), data), len(images))


def variants(arguments):
    """All variants by name, the references among them."""
    images, labels = samples(arguments)
    count = len(images)
    found = {"plain fit": plain(arguments, images, labels)}
    for size in COHORTS[: arguments.cohorts]:
        total, reference = size * count, f"{size} students alone"
        found[reference] = Variant(alone(arguments, images, labels, size), total)
        run = cohort(arguments, images, labels, size)
        found[f"cohort of {size}"] = Variant(run, total, reference, 1.05)
    if keras.backend.backend() == "tensorflow":
        run = cohort(arguments, images, labels, 2, update="sequential")
        found["cohort of 2, sequential"] = Variant(run, 2 * count, "2 students alone")
    found["DLB"] = dlb(arguments, images, labels)
    found["DLB, two forwards"] = dlb(arguments, images, labels, fused_forward=False)
    found["CS-KD"] = class_wise(arguments, images, labels)
    found["DDGSD"] = distortion(arguments, images, labels)
    found["PS-KD"] = progressive(arguments, images, labels)
    found["plain with the same heads"] = same_heads(arguments, images, labels)
    found["BYOT"] = own_teacher(arguments, images, labels)
    return found


def pipelines(arguments):
    """Batches of DLB beside plain ones of as many images, read and thrown away."""
    images, labels = samples(arguments)
    found = {}
    for half in HALVES:
        for name, augment in (("augmented", kd.data.crop_and_flip()), ("as they are", None)):
            reference = f"plain, 2 x {half}, {name}"
            batches = kd.data.batches(
                images, labels, 2 * half, augment=augment, drop_remainder=True
            )
            halves = kd.data.overlap_batches((images, labels), half, augment, seed=0)
            found[reference] = Variant(reading(batches), 2 * half * len(batches))
            total = 2 * half * len(halves)
            found[f"halves of {half}, {name}"] = Variant(
                reading(halves), total, reference, 1 / 0.95
            )
    return found


def reading(dataset):
    """A function that reads a data set through."""

    def run():
        for _ in dataset:
            pass

    return run


def rows(found, wall, processor):
    """One row a variant that is held against another: medians and spread of the ratios."""
    listed = []
    for name, variant in found.items():
        if variant.reference is None:
            continue
        share = variant.images / found[variant.reference].images
        row = {"variant": name, "reference": variant.reference, "bound": variant.bound}
        for clock, seconds in (("wall", wall), ("processor", processor)):
            pairs = zip(seconds[name], seconds[variant.reference])
            ratios = sorted(time / (reference * share) for time, reference in pairs)
            row[clock] = float(np.median(ratios))
            row[f"{clock}_spread"] = [ratios[0], ratios[-1]]
        listed.append(row)
    return listed


def show(listed):
    """Prints the rows."""
    print(f"\n{'variant':34} {'held against':32} {'bound':>6}    wall            processor")
    for row in listed:
        bound = "" if row["bound"] is None else f"{row['bound']:.2f}"
        cells = [
            f"{row[clock]:.3f} ({row[f'{clock}_spread'][0]:.2f} to {row[f'{clock}_spread'][1]:.2f})"
            for clock in ("wall", "processor")
        ]
        print(f"{row['variant']:34} {row['reference']:32} {bound:>6}    {'  '.join(cells)}")


# Memory.


def peak_memory(arguments):
    """Mebibytes of each variant's process at its highest, and above what it held before `fit`."""
    found = {}
    for name in MEMORY:
        command = [sys.executable, str(pathlib.Path(__file__).parent / "benchmark.py")]
        for option in ("images", "batch_size", "student_depth"):
            command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
        answer = subprocess.run(
            [*command, "--memory-of", name], capture_output=True, text=True, check=True
        )
        found[name] = json.loads(answer.stdout.splitlines()[-1])
    return found


def memory_of(arguments, name):
    """Trains one variant for two epochs; returns `{"peak": MiB, "fit": MiB}` of this process."""
    makers = {"plain fit": plain, "DLB": dlb, "PS-KD": progressive, "BYOT": own_teacher}
    variant = makers[name](arguments, *samples(arguments))
    before = _resident()
    for _ in range(2):
        variant.run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIBIBYTES
    return {"peak": peak, "fit": peak - before}


def _resident():
    """Mebibytes that the process holds now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / KIBIBYTES**2


def show_memory(found):
    """Prints a row a variant."""
    first = next(iter(found.values()))
    print(f"\n{'variant':26} {'peak MiB':>9} {'ratio':>7} {'in fit MiB':>11} {'ratio':>7}")
    for name, figures in found.items():
        print(
            f"{name:26} {figures['peak']:9.0f} {figures['peak'] / first['peak']:7.3f} "
            f"{figures['fit']:11.0f} {figures['fit'] / first['fit']:7.3f}"
        )
