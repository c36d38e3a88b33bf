"""Times a distillation step against its parts and against keras.distillation.

The parts are what any distillation has to do: train the student (`fit`) and run the teacher
(`predict`). Every variant is timed once a round, the rounds are interleaved, and each figure is
the median over rounds of its time divided by the time of the parts in the same round. Lower is
better; 1.00 is the floor of a loop that does the parts one after the other.

    python scripts/benchmark.py --rounds 8 --json results/benchmark.json
    python scripts/benchmark.py --torch        # beside a plain PyTorch loop, where installed
    python scripts/benchmark.py --schemes      # mutual learning, DLB, ... beside plain fit
    python scripts/benchmark.py --losses       # a step with one more term, beside one without
    python scripts/benchmark.py --losses --torch   # each alone, beside the formula in PyTorch
    python scripts/benchmark.py --cache        # a teacher's cache: building it, training from it
    python scripts/benchmark.py --pipelines    # DLB's batches beside plain ones, no network
    python scripts/benchmark.py --angles       # RelationalAngle beside the plain formula
    python scripts/benchmark.py --memory       # peak memory of plain fit, DLB, PS-KD and BYOT

Both wall-clock and processor seconds are measured: on a machine that is not quiet the first are
meaningless and the second still tell what the work costs.
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
    """Wall and processor seconds of each variant in each round, the order turned by one a round."""
    for run in runs.values():
        run()
        run()
    wall = {name: [] for name in runs}
    processor = {name: [] for name in runs}
    names = list(runs)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start, start_processor = time.perf_counter(), time.process_time()
            runs[name]()
            wall[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - start_processor)
        print(f"round {i + 1} of {rounds}", flush=True)
    return wall, processor


def ratios(seconds, name):
    """The time of a variant over that of the parts, round by round, sorted."""
    parts = [a + b for a, b in zip(seconds["student fit"], seconds["teacher predict"])]
    return sorted(t / p for t, p in zip(seconds[name], parts))


def table(wall, processor, images):
    """One row a variant: images a second and the ratio to the parts, median and spread."""
    rows = []
    for name, times in wall.items():
        by_wall, by_processor = ratios(wall, name), ratios(processor, name)
        rows.append(
            {
                "variant": name,
                "images_per_second": images / statistics.median(times),
                "ratio": statistics.median(by_wall),
                "lowest": by_wall[0],
                "highest": by_wall[-1],
                "processor_ratio": statistics.median(by_processor),
                "processor_lowest": by_processor[0],
                "processor_highest": by_processor[-1],
            }
        )
    return rows


def against(seconds, one, other):
    """Median over rounds of the time of `one` over that of `other`."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other]))


def record(arguments, **figures):
    """Writes the figures with the settings, the versions and the machine."""
    if not arguments.json:
        return
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    figures = {
        "settings": {k: str(v) for k, v in vars(arguments).items()},
        "versions": {"keras": keras.__version__, "backend": keras.backend.backend()},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        **figures,
    }
    arguments.json.write_text(json.dumps(figures, indent=2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--images", type=int, default=1024, help="images a run")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--teacher-depth", type=int, default=20)
    parser.add_argument("--student-depth", type=int, default=8)
    parser.add_argument("--torch", action="store_true", help="time a PyTorch loop as well")
    parser.add_argument("--schemes", action="store_true", help="time the wrappers without teacher")
    parser.add_argument("--losses", action="store_true", help="time the terms")
    parser.add_argument("--only", nargs="*", help="of --losses, these alone")
    parser.add_argument("--pipelines", action="store_true", help="time the pipelines alone")
    parser.add_argument("--angles", action="store_true", help="measure RelationalAngle")
    parser.add_argument("--cache", action="store_true", help="time a teacher's cache")
    parser.add_argument("--cohorts", type=int, default=3, help="how many of 2, 4, 8")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=pathlib.Path, help="write the figures here")
    arguments = parser.parse_args()
    if arguments.images < arguments.batch_size:
        parser.error("--images must be at least --batch-size")

    if arguments.angles:
        import benchmark_angles

        found = benchmark_angles.compared()
        benchmark_angles.show(found)
        return record(arguments, angles=found)
    if arguments.memory or arguments.memory_of:
        return memory(arguments)
    if arguments.schemes or arguments.losses or arguments.pipelines or arguments.cache:
        return held_against_references(arguments)
    runs, images = variants(arguments)
    wall, processor = measure(runs, arguments.rounds)
    rows = table(wall, processor, images)
    print(f"\n{'':34} {'':>9}   over the parts, wall    over the parts, processor")
    print(f"{'variant':34} {'images/s':>9}   median   spread          median   spread")
    for row in rows:
        print(
            f"{row['variant']:34} {row['images_per_second']:9.0f} {row['ratio']:8.3f}   "
            f"{row['lowest']:.2f} to {row['highest']:.2f} {row['processor_ratio']:13.3f}   "
            f"{row['processor_lowest']:.2f} to {row['processor_highest']:.2f}"
        )
    compared = {}
    for what in ("logits", "3 taps"):
        pair = f"ours, {what}", f"keras.distillation, {what}"
        for clock, seconds in (("wall", wall), ("processor", processor)):
            compared[f"{what}, {clock}"] = against(seconds, *pair)
    print("\nours over keras.distillation, medians over the rounds:")
    for name, ratio in compared.items():
        print(f"  {name}: {ratio:.3f}")
    record(arguments, rows=rows, compared=compared, wall=wall, processor=processor)


def memory(arguments):
    """`--memory`."""
    import benchmark_schemes

    if arguments.memory_of:
        print(json.dumps(benchmark_schemes.memory_of(arguments, arguments.memory_of)))
        return
    found = benchmark_schemes.peak_memory(arguments)
    benchmark_schemes.show_memory(found)
    record(arguments, memory=found)


def held_against_references(arguments):
    """`--schemes`, `--losses`, `--pipelines` and `--cache`."""
    import benchmark_cache
    import benchmark_losses
    import benchmark_schemes

    if arguments.losses and arguments.torch:
        import benchmark_losses_torch

        found = benchmark_losses_torch.variants(arguments)
    elif arguments.losses:
        found = benchmark_losses.variants(arguments)
    elif arguments.cache:
        found = benchmark_cache.variants(arguments)
        print(f"A cache of 1 GB is verified in {benchmark_cache.verified():.2f} s.")
    elif arguments.pipelines:
        found = benchmark_schemes.pipelines(arguments)
    else:
        found = benchmark_schemes.variants(arguments)
    runs = {name: variant.run for name, variant in found.items()}
    wall, processor = measure(runs, arguments.rounds)
    listed = benchmark_schemes.rows(found, wall, processor)
    benchmark_schemes.show(listed)
    record(arguments, rows=listed, wall=wall, processor=processor)


if __name__ == "__main__":
    main()
