"""Times a distillation step against its parts and against keras.distillation.

The parts are what any distillation has to do: train the student (`fit`) and run the teacher
(`predict`). Every variant is timed once a round, the rounds are interleaved, and each figure is
the median over rounds of its time divided by the time of the parts in the same round. Lower is
better; 1.00 is the floor of a loop that does the parts one after the other.

    python scripts/benchmark.py --rounds 8 --json results/benchmark.json
    python scripts/benchmark.py --torch        # beside a plain PyTorch loop, where installed
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_distill as kd  # noqa: E402
from keras_distill.backbones import resnet  # noqa: E402

TAPS = ("stage1", "stage2", "stage3")


def label_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def networks(arguments, tag):
    """A fresh teacher and student: the same sizes, weights of their own."""
    teacher = resnet(arguments.teacher_depth, name=f"teacher_{tag}")
    student = resnet(arguments.student_depth, name=f"student_{tag}")
    return teacher, student


def ours(arguments, taps, **options):
    teacher, student = networks(arguments, f"ours_{len(taps)}_{len(options)}")
    terms = [kd.Term(kd.losses.SoftTargets(4.0), weight=0.9)]
    terms += [kd.Term("mse", tap, tap) for tap in taps]
    distiller = kd.Distiller(teacher, student, terms, student_loss_weight=0.1, **options)
    distiller.compile("sgd", label_loss())
    return distiller


def theirs(arguments, taps):
    teacher, student = networks(arguments, f"keras_{len(taps)}")
    losses = [keras.distillation.LogitsDistillation(4.0, loss=keras.losses.KLDivergence())]
    losses += [
        keras.distillation.FeatureDistillation(
            loss="mse", teacher_layer_name=tap, student_layer_name=tap
        )
        for tap in taps
    ]
    distiller = keras.distillation.Distiller(teacher, student, losses, student_loss_weight=0.1)
    distiller.compile("sgd", label_loss())
    return distiller


def variants(arguments):
    """Names of what is timed, and functions that run it once over the data."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images = rng.normal(size=(arguments.images, 32, 32, 3)).astype("float32")
    labels = rng.integers(0, 10, arguments.images)
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    data = data.batch(arguments.batch_size, drop_remainder=True).cache().prefetch(2)
    count = arguments.images // arguments.batch_size * arguments.batch_size

    teacher, student = networks(arguments, "alone")
    teacher.compile()
    student.compile("sgd", label_loss())
    inputs = data.map(lambda x, y: x)
    runs = {
        "student fit": lambda: student.fit(data, shuffle=False, verbose=0),
        "teacher predict": lambda: teacher.predict(inputs, verbose=0),
    }
    made = {
        "ours, logits": ours(arguments, ()),
        "ours, 3 taps": ours(arguments, TAPS),
        "ours, logits, bfloat16 teacher": ours(arguments, (), teacher_dtype="bfloat16"),
        "keras.distillation, logits": theirs(arguments, ()),
        "keras.distillation, 3 taps": theirs(arguments, TAPS),
    }
    for name, distiller in made.items():
        runs[name] = lambda distiller=distiller: distiller.fit(data, shuffle=False, verbose=0)
    if arguments.torch:
        import benchmark_torch

        runs.update(benchmark_torch.variants(arguments, images[:count], labels[:count]))
    return runs, count


def measure(runs, rounds):
    """Seconds of each variant in each round, the order turned by one a round."""
    for run in runs.values():
        run()
        run()
    seconds = {name: [] for name in runs}
    names = list(runs)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
        print(f"round {i + 1} of {rounds}", flush=True)
    return seconds


def table(seconds, images):
    """One row a variant: images a second and the ratio to the parts, median and spread."""
    parts = [a + b for a, b in zip(seconds["student fit"], seconds["teacher predict"])]
    rows = []
    for name, times in seconds.items():
        ratios = sorted(t / p for t, p in zip(times, parts))
        rows.append(
            {
                "variant": name,
                "images_per_second": images / statistics.median(times),
                "ratio": statistics.median(ratios),
                "lowest": ratios[0],
                "highest": ratios[-1],
            }
        )
    return rows


def against(seconds, one, other):
    """Median over rounds of the time of `one` over that of `other`."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--images", type=int, default=1024, help="images a run")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--teacher-depth", type=int, default=20)
    parser.add_argument("--student-depth", type=int, default=8)
    parser.add_argument("--torch", action="store_true", help="time a PyTorch loop as well")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures here")
    arguments = parser.parse_args()
    if arguments.images < arguments.batch_size:
        parser.error("--images must be at least --batch-size")

    runs, images = variants(arguments)
    seconds = measure(runs, arguments.rounds)
    rows = table(seconds, images)
    print(f"\n{'variant':34} {'images/s':>9} {'over parts':>11}   spread")
    for row in rows:
        print(
            f"{row['variant']:34} {row['images_per_second']:9.0f} {row['ratio']:11.3f}   "
            f"{row['lowest']:.2f} to {row['highest']:.2f}"
        )
    compared = {
        "ours over keras.distillation, logits": against(
            seconds, "ours, logits", "keras.distillation, logits"
        ),
        "ours over keras.distillation, 3 taps": against(
            seconds, "ours, 3 taps", "keras.distillation, 3 taps"
        ),
    }
    print()
    for name, ratio in compared.items():
        print(f"{name}: {ratio:.3f}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "settings": {k: str(v) for k, v in vars(arguments).items()},
            "versions": {"keras": keras.__version__, "backend": keras.backend.backend()},
            "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
            "rows": rows,
            "compared": compared,
            "seconds": seconds,
        }
        arguments.json.write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
