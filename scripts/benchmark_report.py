"""What `benchmark.py` prints and writes: the machine, one table, two runs side by side."""

import importlib.metadata
import os
import pathlib
import platform

import keras
from benchmark_bounds import BOUNDS
from benchmark_bounds import NOT_MEASURED
from benchmark_measure import Settings

PACKAGES = ("keras", "keras-distill", "numpy", "tensorflow", "jax", "torch")
GIBIBYTE = 2.0**30
LEAST_ROUNDS = 8
NAMES = 70  # Columns.
MEANT = ("batch_size", "teacher_depth", "student_depth", "dtype", "jit")
QUIET = 0.25  # Processes that want a core, of the cores.
HEADER = (
    "Medians over the rounds (lowest to highest) of ratios of one round: of time an image, or of",
    "images/s. The median of the wall clock decides a bound, as the issues mean it; processor time",
    "tells beside it what the work costs where the machine is not quiet. Images/s count each image",
    "that a network forwards; share: of the images/s of the set's plain fit.",
)


# The machine.


def machine():
    """The machine, without names or paths of it."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(pages / GIBIBYTE, 1),
        "gpus": gpus(),
    }


def processor():
    """The processor's model."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def gpus():
    """The models of the GPUs that the backend sees."""
    if keras.backend.backend() == "jax":
        import jax

        return [device.device_kind for device in jax.devices() if device.platform == "gpu"]
    if keras.backend.backend() != "tensorflow":
        return []
    import tensorflow as tf

    details = tf.config.experimental.get_device_details
    devices = tf.config.list_physical_devices("GPU")
    return [details(device).get("device_name", "GPU") for device in devices]


def versions():
    """Versions of Python, the backend's name, and of the packages that are installed."""
    found = {"python": platform.python_version(), "backend": keras.backend.backend()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def load_average():
    """Processes that wanted a core in the last minute; `None` where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


# The table.


def verdicts(figures):
    """What is written of each bound."""
    return [{**bound._asdict(), "verdict": bound.verdict(figures)} for bound in BOUNDS]


def spread(figure):
    """`0.9312 (0.902 to 0.973)`."""
    if figure is None:
        return "-"
    low, high = (f"{figure[edge]:.3g}" for edge in ("lowest", "highest"))
    return f"{figure['median']:.4g} ({low} to {high})"


def row(name, speed=None, figure=None, bound=None, verdict=""):
    speed = speed or {}
    rate, share = speed.get("images_per_second"), speed.get("share_of_plain_fit")
    cells = [
        f"{name:{NAMES}}",
        f"{'' if rate is None else format(rate, ',.0f'):>9}",
        f"{'' if share is None else format(share, '.2f'):>6}",
        f"{'' if figure is None else spread(figure['wall']):>24}",
        f"{median(figure):>10}",
        f"{'' if bound is None else sign(bound) + format(bound['value'], 'g'):>9}",
        verdict,
    ]
    return "  ".join(cells).rstrip()


def median(figure):
    """The median of processor time, as text."""
    if figure is None or figure["processor"] is None:
        return ""
    return f"{figure['processor']['median']:.4g}"


def sign(bound):
    return "<= " if bound["direction"] == "at most" else ">= "


def table(run):
    """The lines of the one table: what was measured, and the bounds that were not."""
    bounds = {bound["figure"]: bound for bound in run["bounds"]}
    lines = [*HEADER, ""]
    head = ("images/s", "share", "wall: median (spread)", "processor", "bound")
    widths = (9, 6, 24, 10, 9)
    lines.append("  ".join([f"{'':{NAMES}}", *(f"{h:>{w}}" for h, w in zip(head, widths))]))
    shown = set()
    for name, speeds in run["speeds"].items():
        settings = run["settings"][name]
        lines.append(f"{name}: {settings['rounds']} rounds of {settings['images']} images")
        lines += [row(f"  {case}", speed) for case, speed in speeds.items()]
        for figure_name, figure in run["figures"].items():
            if figure["set"] != name:
                continue
            bound = bounds.get(figure_name)
            verdict = bound["verdict"] if bound else ""
            lines.append(row(f"  {figure_name}", None, figure, bound, verdict))
            shown.add(figure_name)
    left = [bound for bound in run["bounds"] if bound["figure"] not in shown]
    if left:
        lines.append("not in this run")
        lines += [row(f"  {b['figure']}", bound=b, verdict=NOT_MEASURED) for b in left]
    return [*lines, *notes(run)]


def notes(run):
    """What keeps a run's verdicts from counting: load, few rounds, other settings."""
    lines = []
    load, cores = run["load_average"][0], run["machine"]["cores"]
    if load is not None and load > QUIET * cores:
        lines.append(
            f"Not quiet: {load} processes wanted the {cores} cores when this run began. Its wall "
            "clock says little, and PyTorch's threads spin while they wait: neither clock is fair."
        )
    few = [name for name in timed(run) if run["settings"][name]["rounds"] < LEAST_ROUNDS]
    if few:
        lines.append(f"Fewer than {LEAST_ROUNDS} rounds (issue 2 asks them): {', '.join(few)}.")
    settings = next(iter(run["settings"].values()))
    asked = {name: field.default for name, field in Settings.__dataclass_fields__.items()}
    other = [name for name in MEANT if settings[name] != asked[name]]
    if other:
        said = ", ".join(f"{name} {asked[name]} (here {settings[name]})" for name in other)
        lines.append(f"The bounds are meant for {said}.")
    if run["versions"]["backend"] != "tensorflow" or run["machine"]["gpus"]:
        lines.append("The bounds are meant for TensorFlow on 2 cores without a GPU.")
    return lines


def timed(run):
    """Names of the sets that have cases."""
    return [name for name, speeds in run["speeds"].items() if speeds]


# Two runs.


def moved(one, other):
    """Whether each median lies outside the other's spread, where there is one."""

    def outside(median, figure):
        return not figure["lowest"] <= median <= figure["highest"]

    spreads = all(figure["lowest"] < figure["highest"] for figure in (one, other))
    return spreads and outside(one["median"], other) and outside(other["median"], one)


def compared(one, other):
    """The lines of two runs side by side: figures that both have, the second over the first."""
    lines = []
    for what in ("machine", "versions"):
        for key in sorted({*one[what], *other[what]}):
            if one[what].get(key) != other[what].get(key):
                lines.append(f"{what}, {key}: {one[what].get(key)} / {other[what].get(key)}")
    lines.append(f"{'':{NAMES}}  {'A':>24}  {'B':>24}  {'B / A':>7}  {'processor':>9}")
    for name, first in one["figures"].items():
        second = other["figures"].get(name)
        if second is None:
            lines.append(f"{name:{NAMES}}  {spread(first['wall']):>24}  {'-':>24}")
            continue
        mark = ""
        if moved(first["wall"], second["wall"]):
            up = second["wall"]["median"] > first["wall"]["median"]
            mark = "better" if up == first["more_is_better"] else "worse"
        cells = [f"{name:{NAMES}}", f"{spread(first['wall']):>24}", f"{spread(second['wall']):>24}"]
        cells += [quotient(first, second, "wall", 7), quotient(first, second, "processor", 9), mark]
        lines.append("  ".join(cells).rstrip())
    for name, second in other["figures"].items():
        if name not in one["figures"]:
            lines.append(f"{name:{NAMES}}  {'-':>24}  {spread(second['wall']):>24}")
    lines.append("better, worse: each median lies outside the other run's spread of wall clock.")
    return lines


def quotient(first, second, clock, width):
    """The second's median over the first's, as text."""
    if not first[clock] or not second[clock] or not first[clock]["median"]:
        return f"{'':>{width}}"
    return f"{second[clock]['median'] / first[clock]['median']:{width}.3f}"
