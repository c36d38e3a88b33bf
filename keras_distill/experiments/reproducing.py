"""`scripts/reproduce.py`: experiments by name, from their runs to `results/NAME.json` and pages."""

import json
import os
import pathlib
import platform
from typing import Any
from typing import Literal

import keras
import numpy as np

from keras_distill import _checks
from keras_distill import _version
from keras_distill._files import written_beside
from keras_distill._types import PathLike
from keras_distill._types import Say
from keras_distill.experiments import balanced
from keras_distill.experiments import compression
from keras_distill.experiments import definitions
from keras_distill.experiments import further
from keras_distill.experiments import losses
from keras_distill.experiments import memory
from keras_distill.experiments import mutual
from keras_distill.experiments import mysteries
from keras_distill.experiments import pages
from keras_distill.experiments import self_distillation
from keras_distill.experiments import synthetic
from keras_distill.experiments.definitions import Experiment
from keras_distill.recipes import comparing
from keras_distill.recipes import results as run_results
from keras_distill.reporting import style
from keras_distill.reporting.runs import read_object


def experiments():
    """All `Experiment`s by name, in the order of their importance."""
    every = (
        mysteries.DEEP,
        mutual.MUTUAL,
        self_distillation.SELF,
        compression.COMPRESSION,
        losses.PREDICTIONS,
        losses.LAYERS,
        balanced.BALANCED,
        further.FURTHER,
        self_distillation.NOISE,
        mutual.COHORTS,
        self_distillation.AUGMENTATION,
        memory.MEMORY,
        losses.SECOND,
        mysteries.RANDOM_FEATURES,
        mysteries.TANGENT,
        synthetic.GAUSSIAN,
        synthetic.MULTI_VIEW,
    )
    return {experiment.name: experiment for experiment in every}


def named(name):
    """The `Experiment` of that name.

    Raises:
        ValueError: If there is none; it tells the nearest names.
    """
    known = experiments()
    if name not in known:
        near = _checks.nearest_names(str(name), known) or known
        expected = "an experiment that `scripts/reproduce.py --list` names"
        raise ValueError(_checks.message(expected, "name", name) + f" Nearest: {', '.join(near)}.")
    return known[name]


def listed():
    """The lines of `scripts/reproduce.py --list`."""
    lines = []
    for name, experiment in experiments().items():
        small = experiment.scale("small")
        about = f"{small.seeds} seeds, about {small.minutes:g} minutes at --scale small"
        lines.append(f"{name:24} {experiment.title} ({about})")
    return lines


def reproduce(
    experiment: str | Experiment,
    scale: Literal["tiny", "small", "full"] = "small",
    out: PathLike = "results",
    figures: PathLike | None = None,
    work: PathLike = "runs/reproduce",
    seeds: int | None = None,
    data_dir: PathLike | None = None,
    restart: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Carries an experiment out, judges the claims, and writes JSON, page and figure.

    What is trained is kept in `work`, network by network: a second call goes on where the first
    stopped, and more seeds can be added later.

    Args:
        experiment: An `Experiment`, or the name of one.
        scale: "tiny", "small" or "full".
        out: The folder of `NAME.json` and `NAME.md`.
        figures: The folder of `NAME.png`. Defaults to `out`.
        work: The folder of the runs.
        seeds: Number of seeds from 0; None for the scale's.
        data_dir: As in `kd.data.load`.
        restart: Whether to train all anew, and to replace results of other settings.
        say: Called with each line for the person who waits.

    Returns:
        What `NAME.json` holds: `experiment`, `title`, `question`, `scale`, `command`, `dataset`,
        `settings`, `versions`, `machine`, `seeds`, `comparison` (see `experiments.entry`),
        `claims` (see `claims.Claim.verdict`), `remarks`, and what the experiment adds.

    Raises:
        ValueError: If `work` or `out` holds the experiment with other settings, or `out` with
            seeds that this run has not.
    """
    if isinstance(experiment, str):
        experiment = named(experiment)
    budget = experiment.scale(scale)
    seeds = comparing.seeds_from(0, budget.seeds if seeds is None else seeds)
    path = pathlib.Path(out) / f"{experiment.name}.json"
    if not restart:
        _check(path, scale, budget, seeds)
    run = definitions.begin(experiment, scale, work, restart)
    say(f"{experiment.name}, {scale}: {experiment.question}")
    place = definitions.Place(run, budget, seeds, data_dir, say, out)
    found = experiment.measure(place)
    results = {
        "experiment": experiment.name,
        "title": experiment.title,
        "question": experiment.question,
        "scale": scale,
        "command": _command(experiment.name, scale, None if len(seeds) == budget.seeds else seeds),
        "dataset": found.pop("dataset", None) or run_results.dataset_entry(place.load()),
        "settings": _plain(budget.settings()),
        "versions": versions(),
        "machine": machine(),
        "seeds": seeds,
        **found,
        "claims": [claim.verdict(found["comparison"]) for claim in experiment.claims],
        "remarks": [*experiment.notes, *found.get("remarks", [])],
    }
    definitions.store(path, results)
    write_page(path, figures, experiment, say)
    for claim in results["claims"]:
        say(f"{claim['verdict']}: {claim['claim']}")
    return results


def _command(name, scale, seeds):
    """What makes these results; `seeds` are None where they are the scale's."""
    said = f"python scripts/reproduce.py {name} --scale {scale}"
    return said if seeds is None else f"{said} --seeds {len(seeds)}"


def _check(path, scale, budget, seeds):
    """Raises where the results that are there are of other settings, or of more seeds."""
    if not path.exists():
        return
    there = read_object(path)
    wanted = {"scale": scale, "settings": _plain(budget.settings())}
    differing = [name for name, value in wanted.items() if there.get(name) != value]
    if set(there.get("seeds", [])) - set(seeds):
        differing.append("seeds")
    if differing:
        raise ValueError(
            f"Expected the {', '.join(differing)} of the results in {str(path)!r}. Received: "
            f"others (scale={scale!r}, seeds={seeds}). Choose another --out, or replace them with "
            "--restart, which trains all anew."
        )


def write_page(path, figures=None, experiment=None, say=print):
    """Writes `NAME.md` and `NAME.png` from `NAME.json` alone.

    Args:
        path: The JSON file.
        figures: The folder of the figure. Defaults to the file's own.
        experiment: The `Experiment`. Defaults to the one that the file names.
        say: Called where there is no figure, with the reason.
    """
    path = pathlib.Path(path)
    results = read_object(path)
    experiment = experiment or named(results["experiment"])
    folder = path.parent if figures is None else pathlib.Path(figures)
    picture = folder / f"{experiment.name}.png"
    address = pathlib.PurePath(os.path.relpath(picture, path.parent)).as_posix()
    try:
        drawn = (experiment.figure or pages.figure)(results)
    except ImportError as error:
        say(f"No figure: {error}")
        address = None
    else:
        folder.mkdir(parents=True, exist_ok=True)
        style.save(drawn, picture)
    text = pages.page(results, experiment, address)
    with written_beside(path.with_suffix(".md")) as temporary:
        pathlib.Path(temporary).write_text(text, encoding="utf-8")


def versions():
    """The versions of what computes."""
    backend = keras.backend.backend()
    found = {"Python": platform.python_version(), "keras_distill": _version.__version__}
    found |= {"Keras": keras.__version__, "NumPy": np.__version__}
    if backend == "tensorflow":
        import tensorflow as tf

        return {**found, "TensorFlow": tf.__version__}
    return {**found, "backend": backend}


def machine():
    """What the seconds depend on, without names of the machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {"system": platform.system(), "architecture": platform.machine(), "cores": cores}


def _plain(settings):
    """As JSON gives it back."""
    return json.loads(json.dumps(settings))
