"""What `benchmark.py --growth` measures: images/s against classes, students, members and batch.

No bound: a picture. Images are those of the data set, each counted once however many networks
forward it. Bands are the lowest and highest of the rounds. The picture again, from its figures:

    python scripts/benchmark_growth.py results/benchmark/growth.json docs/figures/growth.png
"""

import dataclasses
import json
import pathlib
import shutil
import sys
import textwrap

import benchmark_cache
import keras
from benchmark_measure import compiled
from benchmark_measure import fitting
from benchmark_measure import is_asked
from benchmark_measure import samples
from benchmark_measure import student
from benchmark_measure import summary
from benchmark_measure import teacher
from benchmark_measure import timed

import keras_distill as kd

CLASSES = (10, 100, 1_000, 10_000, 21_841)
STUDENTS = (1, 2, 3, 4, 6, 8)
MEMBERS = (1, 2, 4, 8)
BATCHES = (16, 32, 64, 128, 256, 512)
TOP_K = 5
PLAIN, BESIDE = "student alone", "teacher beside"
DENSE, SPARSE = "cache, dense", f"cache, k = {TOP_K}"
COHORT = "mutual learning"
RATES = ("images_per_second", "images_per_processor_second")

PANEL, LETTERS = (3.6, 4.2), 56  # Inches of a panel, letters of the caption above it.

# Distinct for readers who see colours less well, and in grey (Okabe and Ito's palette).
COLOURS = {
    PLAIN: "#000000",
    BESIDE: "#d55e00",
    DENSE: "#0072b2",
    SPARSE: "#56b4e9",
    COHORT: "#009e73",
}


def line_data(settings, folder, classes=10):
    """Functions that build a case each of one wiring: plain, online, cached."""
    images, labels = samples(settings)
    labels = labels % classes

    def own():
        return student(settings, classes=classes)

    def plain():
        return fitting(compiled(settings, own()), batches(settings, images, labels))

    def beside(network):
        model = kd.Distiller(network, own(), kd.losses.SoftTargets(4.0))
        return fitting(compiled(settings, model), batches(settings, images, labels))

    def cached(network, **options):
        shutil.rmtree(folder, ignore_errors=True)
        cache = kd.data.TeacherCache.build(
            folder, network, images, labels, batch_size=settings.batch_size, **options
        )
        model = kd.Distiller(cache, own(), kd.losses.SoftTargets(4.0))
        return fitting(compiled(settings, model), cache.dataset(settings.batch_size))

    return plain, beside, cached


def batches(settings, images, labels):
    return kd.data.batches(images, labels, settings.batch_size)


def of_classes(settings, folder):
    """One network of so many classes: alone, beside its teacher, from caches."""
    for classes in CLASSES:
        plain, beside, cached = line_data(settings, folder / f"classes_{classes}", classes)
        network = teacher(settings, classes=classes)
        yield classes, PLAIN, settings.count, plain
        yield classes, BESIDE, settings.count, lambda n=network, make=beside: make(n)
        yield classes, DENSE, settings.count, lambda n=network, make=cached: make(n)
        yield (
            classes,
            SPARSE,
            settings.count,
            lambda n=network, make=cached: make(n, top_k=TOP_K, temperatures=4.0),
        )


def of_students(settings, folder):
    """A cohort that learns mutually; of one: the student alone."""
    images, labels = samples(settings)
    data = batches(settings, images, labels)

    def cohort(size):
        pupils = [student(settings, f"student_{i}") for i in range(size)]
        model = pupils[0] if size == 1 else kd.MutualLearner(pupils)
        return fitting(compiled(settings, model), data)

    for size in STUDENTS:
        yield size, COHORT, settings.count, lambda size=size: cohort(size)


def of_members(settings, folder):
    """An ensemble as the teacher, beside the student and from its cache."""
    for size in MEMBERS:
        plain, beside, cached = line_data(settings, folder / f"members_{size}")
        members = [teacher(settings, f"member_{i}") for i in range(size)]
        network = members[0] if size == 1 else kd.EnsembleTeacher(members)
        yield size, PLAIN, settings.count, plain
        yield size, BESIDE, settings.count, lambda n=network, make=beside: make(n)
        # An ensemble is cached at the temperature that it will be asked for.
        yield (
            size,
            SPARSE,
            settings.count,
            lambda n=network, make=cached: make(n, top_k=TOP_K, temperatures=4.0),
        )


def of_batches(settings, folder):
    """Batches of so many images."""
    for size in BATCHES:
        images = max(settings.images, size) // size * size
        own = dataclasses.replace(settings, batch_size=size, images=images)
        plain, beside, cached = line_data(own, folder / f"batch_{size}")
        network = teacher(own)
        yield size, PLAIN, own.count, plain
        yield size, BESIDE, own.count, lambda n=network, make=beside: make(n)
        yield size, DENSE, own.count, lambda n=network, make=cached: make(n)


AXES = {
    "classes": of_classes,
    "students": of_students,
    "ensemble members": of_members,
    "batch": of_batches,
}


class Suite:
    """The lines of four pictures: `{axis: {line: {"at": [...], RATES[0]: [...], ...}}}`."""

    def names(self):
        return []

    def measured(self, settings, words=()):
        growth = {}
        for axis, points in AXES.items():
            if is_asked(axis, words):
                growth[axis] = self._lines(settings, axis, points)
        return {"figures": {}, "speeds": {}, "growth": growth}

    def _lines(self, settings, axis, points):
        folder, lines = benchmark_cache.temporary(), {}
        for at, found in _by_point(points(settings, folder)):
            print(f"  {axis}: {at}", flush=True)
            runs = {line: make() for line, (_, make) in found.items()}
            for line in runs:
                own = lines.setdefault(line, {"at": [], **{rate: [] for rate in RATES}})
                own["at"].append(at)
            for rate, seconds in zip(RATES, timed(runs, settings.rounds)):
                for line, (images, _) in found.items():
                    lines[line][rate].append(summary(images / s for s in seconds[line]))
            keras.backend.clear_session()
        return lines


def _by_point(cases):
    """`(at, {line: (images, make)})` of each point, one after the other."""
    found, last = {}, None
    for at, line, images, make in cases:
        if found and at != last:
            yield last, found
            found = {}
        found[line], last = (images, make), at
    yield last, found


def suite(settings):
    return Suite()


# The picture.


def draw(run, path):
    """Draws the growth of a run (what `benchmark.py --growth --out` wrote) to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    growth = run["growth"]
    size = (PANEL[0] * len(growth), PANEL[1])
    figure, axes = pyplot.subplots(1, len(growth), figsize=size, sharey=True, layout="constrained")
    shown = {}
    for panel, (axis, lines) in zip([axes] if len(growth) == 1 else axes, growth.items()):
        for line, points in lines.items():
            rates, colour = points[RATES[0]], COLOURS[line]
            medians = [r["median"] for r in rates]
            shown[line] = panel.plot(points["at"], medians, "o-", color=colour, ms=4)[0]
            edges = [[r[edge] for r in rates] for edge in ("lowest", "highest")]
            panel.fill_between(points["at"], *edges, color=colour, alpha=0.15, lw=0)
        panel.set(xscale="log", yscale="log", xlabel=axis)
        ticks = next(iter(lines.values()))["at"]
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45, ha="right")
        panel.minorticks_off()
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    first = figure.axes[0]
    first.set_ylabel("images/s")
    low, high = first.get_ylim()
    ticks = [t * 10**n for n in range(6) for t in (1, 2, 5) if low <= t * 10**n <= high]
    first.set_yticks(ticks)
    first.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    figure.legend(
        shown.values(), shown, loc="outside lower center", ncols=len(shown), frameon=False
    )
    width = LETTERS * len(growth)
    figure.suptitle("\n".join(textwrap.wrap(caption(run), width)), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)


def caption(run):
    """Networks, machine and what is shown, in a line."""
    settings, machine = run["settings"]["growth"], run["machine"]
    device = ", ".join(machine["gpus"]) or f"{machine['cores']} cores of {machine['processor']}"
    load = run["load_average"][0]
    return (
        f"Training ResNet-{settings['student_depth']} from ResNet-{settings['teacher_depth']}, "
        f"32 x 32, batch {settings['batch_size']} where it is not the axis: {device}"
        + ("" if load is None else f", load {load} at the start")
        + f"; median, lowest and highest of {settings['rounds']} rounds"
    )


if __name__ == "__main__":
    draw(json.loads(pathlib.Path(sys.argv[1]).read_text()), pathlib.Path(sys.argv[2]))
