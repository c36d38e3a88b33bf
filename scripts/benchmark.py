r"""Measures speed and memory, and holds them against the bounds that the issues name.

    python scripts/benchmark.py                      # steps: KD, DML and DLB, parts and peers
    python scripts/benchmark.py --all --out run.json # all sets
    python scripts/benchmark.py --losses --only Hint FlowOfSolution --rounds 40
    python scripts/benchmark.py --compare before.json after.json
    python scripts/benchmark.py --growth --out results/benchmark/growth.json \
        --figure docs/figures/growth.png

    KERAS_BACKEND=jax python scripts/benchmark.py --dtype mixed_bfloat16 --jit --images 51200

Networks are ResNet-20 and ResNet-8 on images of 32 x 32, batches of 128. Peers run where they are
installed: keras.distillation, and loops of KD, DML and DLB in PyTorch. On a GPU `fit` takes
milliseconds for the usual number of images: give more.
"""

import argparse
import dataclasses
import importlib
import json
import os
import pathlib
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Two frameworks may share a GPU in one run: neither takes all of its memory.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import benchmark_report  # noqa: E402
import keras  # noqa: E402
from benchmark_measure import Settings  # noqa: E402


class Set(NamedTuple):
    """A set of measurements: its module, what it is, rounds and images where none are given."""

    module: str
    words: str
    rounds: int
    images: int


SETS = {
    "steps": Set("benchmark_steps", "KD, DML and DLB beside parts and peers (default)", 12, 1536),
    "schemes": Set("benchmark_schemes", "the wrappers without teacher", 8, 512),
    "pipelines": Set("benchmark_pipelines", "the batches of DLB, no network", 16, 2048),
    "losses": Set("benchmark_losses", "each term beside the step without", 24, 512),
    "torch": Set("benchmark_formulas", "each loss alone beside its formula in PyTorch", 8, 128),
    "cache": Set("benchmark_cache", "a teacher's cache", 12, 512),
    "angles": Set("benchmark_angles", "RelationalAngle beside the plain formula", 3, 512),
    "memory": Set("benchmark_memory", "peak memory, each training a process", 3, 2048),
    "growth": Set("benchmark_growth", "images/s against classes, students, ...", 5, 512),
}
STANDARD = ("steps",)


def options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="all sets")
    for name, found in SETS.items():
        parser.add_argument(f"--{name}", action="store_true", help=found.words)
    parser.add_argument(
        "--only", nargs="+", default=[], help="figures that have one of these words"
    )
    parser.add_argument("--rounds", type=int, help="rounds; default: each set's own")
    parser.add_argument("--images", type=int, help="images of an epoch; default: each set's own")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--teacher-depth", type=int, default=20)
    parser.add_argument("--student-depth", type=int, default=8)
    parser.add_argument("--dtype", default="float32", help="policy, as mixed_bfloat16")
    parser.add_argument(
        "--jit", action=argparse.BooleanOptionalAction, default="auto", help="compile with XLA"
    )
    parser.add_argument("--out", type=pathlib.Path, help="write the run here, as JSON")
    parser.add_argument("--figure", type=pathlib.Path, help="draw --growth here, as PNG")
    parser.add_argument(
        "--compare", nargs=2, type=pathlib.Path, metavar=("A", "B"), help="two runs side by side"
    )
    return parser


def settings_of(name, arguments):
    """The `Settings` of a set."""
    given = SETS[name]
    return Settings(
        rounds=given.rounds if arguments.rounds is None else arguments.rounds,
        images=given.images if arguments.images is None else arguments.images,
        batch_size=arguments.batch_size,
        teacher_depth=arguments.teacher_depth,
        student_depth=arguments.student_depth,
        dtype=arguments.dtype,
        jit=arguments.jit,
    )


def suite(name, settings):
    """What measures a set: it has `names()` of figures and `measured(settings, words)`."""
    return importlib.import_module(SETS[name].module).suite(settings)


def written(run, path):
    """Writes a run as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1) + "\n")


def measured(names, arguments):
    """The run of these sets; written after each of them, for a suite takes long."""
    run = {
        "machine": benchmark_report.machine(),
        "versions": benchmark_report.versions(),
        "load_average": [benchmark_report.load_average()],
        "settings": {},
        "figures": {},
        "speeds": {},
    }
    for name in names:
        settings = settings_of(name, arguments)
        print(f"{name}: {SETS[name].words}", flush=True)
        found = suite(name, settings).measured(settings, arguments.only)
        run["settings"][name] = dataclasses.asdict(settings)
        run["speeds"][name] = found.pop("speeds")
        for figure, values in found.pop("figures").items():
            run["figures"][figure] = {"set": name, **values}
        run.update(found)
        keras.backend.clear_session()
        run["load_average"].append(benchmark_report.load_average())
        run["bounds"] = benchmark_report.verdicts(run["figures"])
        if arguments.out:
            written(run, arguments.out)
    return run


def main():
    parser = options()
    arguments = parser.parse_args()
    if arguments.compare:
        both = [json.loads(path.read_text()) for path in arguments.compare]
        return print("\n".join(benchmark_report.compared(*both)))
    names = [name for name in SETS if arguments.all or getattr(arguments, name)]
    names = names or list(STANDARD)
    for name in names:
        settings = settings_of(name, arguments)
        if settings.rounds < 1 or settings.images < settings.batch_size:
            parser.error(f"Expected rounds >= 1 and images >= batch-size. Received: {settings}.")
    if arguments.figure and "growth" not in names:
        parser.error("Expected --growth beside --figure. Received: no --growth.")
    keras.config.set_dtype_policy(arguments.dtype)
    run = measured(names, arguments)
    print("\n" + "\n".join(benchmark_report.table(run)))
    if arguments.figure:
        importlib.import_module(SETS["growth"].module).draw(run, arguments.figure)


if __name__ == "__main__":
    main()
