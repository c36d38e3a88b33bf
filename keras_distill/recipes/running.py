"""One recipe with one seed in a run's folder: trained, taken up after a kill, or read."""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import keras

from keras_distill import _checks
from keras_distill import reporting
from keras_distill._files import written_beside
from keras_distill._types import Logs
from keras_distill._types import PathLike
from keras_distill._types import Say
from keras_distill.data.images import ImageData
from keras_distill.data.images import Split
from keras_distill.recipes import evaluation
from keras_distill.recipes import networks
from keras_distill.recipes import results as run_results
from keras_distill.recipes import schemes
from keras_distill.recipes import tasks
from keras_distill.recipes import training
from keras_distill.recipes.schemes import Options
from keras_distill.recipes.schemes import Recipe
from keras_distill.recipes.tasks import Task
from keras_distill.recipes.training import Plan
from keras_distill.reporting.runs import RunFolder
from keras_distill.reporting.runs import read_object

LOOK = "test_accuracy"


def train_recipe(
    recipe: str,
    data: Split,
    options: Options | None = None,
    seed: int = 0,
    out: PathLike = "runs/train",
    restart: bool = False,
    verbose: int | str = 1,
    say: Say = print,
) -> dict[str, Any]:
    """Trains one recipe with one seed: `keras-distill train --recipe`.

    A second call goes on where the first stopped, even one that was killed.

    Args:
        recipe: Name of a recipe, see `recipes.schemes.names()`.
        data: A `kd.data.Split`.
        options: A `recipes.schemes.Options`; its `epochs` are this scheme's own. Defaults to the
            small setting.
        seed: Of the weights, the order of the images and their augmentation.
        out: The run's folder.
        restart: Whether to remove an earlier run in the folder first.
        verbose: Of Keras's `fit`.
        say: Called with each line for the person who waits.

    Returns:
        What `results.json` holds, with the record of the training as `record`.

    Raises:
        ValueError: If there is no such recipe, an argument is out of its range, or the folder
            holds another run.
    """
    recipe = schemes.named(recipe)
    options = (options or schemes.Options()).filled()
    tasks.check_seed(seed)
    check([recipe], data, options, as_given=True)
    run = reporting.RunFolder(out)
    settings = {
        "command": "train",
        "recipe": recipe.name,
        "seed": seed,
        **dataclasses.asdict(options),
        "data": data_entry(data),
    }
    if training.begin(run, settings, restart):
        say(f"Going on with the run in {run.path}: what is finished is not trained again.")
    say(f"{recipe.name}: {recipe.summary} {recipe.reference}")
    files = ("student", "teacher")
    record = carry_out(
        run, recipe, data, options, seed, as_given=True, files=files, verbose=verbose
    )
    path = training.model_path(run, "student")
    models, trained = _models(run, recipe, options, record, data.test)
    results = {
        "title": f"{options.student} by {recipe.name} on {data.train.name}",
        "dataset": run_results.dataset_entry(data),
        "class_names": list(data.test.class_names),
        "models": models,
        "record": record,
    }
    report, missing = run_results.finish(run, results, trained)
    run_results.show(results, say)
    images = record["images"]
    say(
        f"{record['epochs']} epochs, {record['steps']:,} steps, {images['student']:,} images "
        f"forwarded by the student, {sum(images.values()):,} in all, {record['seconds']:.0f} s; "
        f"best of the epochs measured: {100 * record['best_accuracy']:.1f} %."
    )
    say(f"Student: {path}")
    say(f"Report: {report}" if report else f"No report: {missing}")
    return results


def _models(run, recipe, options, record, test):
    """Entries of `results.json` for the student and its teacher, and the networks by name.

    Writes the pictures of both too.
    """
    teacher, said, entries, trained = None, None, [], {}
    if recipe.first:
        path = training.model_path(run, "teacher")
        path = options.teacher if networks.is_file(options.teacher) else path
        teacher = networks.load(path)
        said = evaluation.probabilities(teacher, test.images)
        name, scores = f"{recipe.name}, teacher", [evaluation.scores(said, test.labels)]
        entries.append(run_results.entry(name, teacher, path, scores, role="teacher"))
        trained[name] = teacher
    path = training.model_path(run, "student")
    student = networks.load(path)
    found = evaluation.scores(evaluation.probabilities(student, test.images), test.labels, said)
    scores, role = [{**record, "agreement": found["agreement"]}], "distilled" if trained else None
    entries.append(run_results.entry(recipe.name, student, path, scores, role=role))
    run_results.write_pictures(run, teacher, student, test, None)
    return entries, {**trained, recipe.name: student}


def check(recipes: Iterable[Recipe], data: Split, options: Options, as_given: bool = False) -> None:
    """Builds what the recipes need, so that what is wrong is told before any training.

    Args:
        recipes: A list of `Recipe`s.
        data: A `kd.data.Split`.
        options: An `Options`, filled.
        as_given: As in `Recipe.setting`.

    Raises:
        ValueError: If a network does not fit the data, or a scheme not the network.
    """
    for recipe in recipes:
        task = task_of(recipe, data.train, options, 0, as_given)
        teacher = None
        if recipe.first:
            teacher = _network(options.teacher, data.train, seed=1)
            if not networks.is_file(options.teacher):
                teacher.name = "teacher"
        plan = recipe.plan(task, options, teacher)
        plan.model.compile(**plan.compile)


def task_of(
    recipe: Recipe, images: ImageData, options: Options, seed: int, as_given: bool = False
) -> Task:
    """The `tasks.Task` of a recipe.

    Args:
        recipe: A `Recipe`.
        images: The training `ImageData`.
        options: An `Options`, filled.
        seed: Whole number.
        as_given: As in `Recipe.setting`.
    """
    return tasks.Task(
        lambda seed: _network(options.student, images, seed),
        images,
        recipe.setting(options, as_given),
        seed,
        lambda seed: _network(options.teacher, images, seed),
        options.ensemble,
    )


def _network(name, images, seed):
    return networks.get(name, images.image_shape, images.class_count, seed)


def record_path(run: PathLike, name: str) -> pathlib.Path:
    """Where what was measured of one training of a run lies."""
    return pathlib.Path(run) / "runs" / f"{name}.json"


def carry_out(
    run: RunFolder,
    recipe: Recipe,
    data: Split,
    options: Options,
    seed: int,
    *,
    as_given: bool = False,
    files: tuple[str, str] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | str = 0,
) -> dict[str, Any]:
    """Trains a recipe with one seed, unless it is done, and measures it on the test images.

    Args:
        run: The `RunFolder`.
        recipe: A `Recipe`.
        data: A `kd.data.Split`.
        options: An `Options`, filled.
        seed: Whole number.
        as_given: As in `Recipe.setting`.
        files: Names of the files of the student and of its teacher, without ending. Defaults to
            `RECIPE_seedSEED` and `RECIPE_seedSEED_teacher`.
        callbacks, verbose: As in `training.train`.

    Returns:
        The record: a dict of what was measured, as it stands in `runs/RECIPE_seedSEED.json`.

    Raises:
        ValueError: If the folder holds that record of other settings.
    """
    name, teacher_name = files or (f"{recipe.name}_seed{seed}", f"{recipe.name}_seed{seed}_teacher")
    task = task_of(recipe, data.train, options, seed, as_given)
    settings = {
        **dataclasses.asdict(options),
        "training": dataclasses.asdict(task.setting),
        "data": data_entry(data),
    }
    known = _read(record_path(run, name), settings)
    if known is not None:
        return known
    shared = {"callbacks": callbacks, "verbose": verbose}
    plans, logs, teacher = [], [{"model": recipe.name, "seed": seed}], None
    if recipe.first and networks.is_file(options.teacher):
        teacher = networks.load(options.teacher)
    elif recipe.first:
        plans.append(recipe.first(task))
        logs.append({"model": f"{recipe.name}, teacher", "seed": seed})
        teacher = training.carry_out(run, teacher_name, plans[0], log=logs[1], **shared)
    plan = recipe.plan(task, options, teacher)
    looks = TestAccuracy(plan, data.test, options.looks)
    shared["callbacks"] = [looks, *callbacks]
    network = training.carry_out(run, name, plan, log=logs[0], **shared)
    record = {
        "recipe": recipe.name,
        "seed": seed,
        "settings": settings,
        **_measured(run, logs, plan, network, data.test),
        **_cost(plan, plans),
    }
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    with written_beside(record_path(run, name)) as temporary:
        pathlib.Path(temporary).write_text(text, encoding="utf-8")
    return json.loads(text)


def _measured(run, logs, plan, network, test):
    """Accuracies after the last and the best epoch, and seconds of all its trainings."""
    own, *before = [_lines(run, log) for log in logs]
    found = evaluation.scores(evaluation.probabilities(network, test.images), test.labels)
    earlier = plan.all_epochs - plan.epochs
    seen = {line["epoch"] + 1 - earlier: line[LOOK] for line in own if LOOK in line}
    seen[plan.epochs] = found["accuracy"]
    best = max(seen, key=lambda epoch: (seen[epoch], -epoch))
    return {
        "accuracy": found["accuracy"],
        "best_accuracy": seen[best],
        "best_epoch": best,
        "loss": _finite(found["loss"]),
        "calibration_error": _finite(found["calibration_error"]),
        "parameters": evaluation.parameters(network),
        "seconds": round(sum(line["seconds"] for line in sum(before, own)), 3),
    }


def _finite(value):
    """None where a training went astray: JSON has no other word for it."""
    return value if math.isfinite(value) else None


def _lines(run, log):
    """The lines of `metrics.jsonl` of one training."""
    every = run.read_metrics()
    lines = [line for line in every if all(line.get(key) == log[key] for key in log)]
    for line in lines:
        if not all(map(_checks.is_finite, (line.get("seconds"), line.get(LOOK, 0.0)))):
            raise ValueError(
                _checks.message(f"lines of metrics with `seconds` and `{LOOK}`", "line", line)
                + " Begin anew with --restart."
            )
    return lines


def _cost(plan, before):
    """What the student's training forwards, and what the trainings before it did."""
    forwards = plan.forwards
    return {
        "epochs": plan.epochs,
        "steps": plan.epochs * plan.steps,
        "images": {
            "student": round(plan.epochs * forwards.student),
            "peers": round(plan.epochs * forwards.peers),
            "frozen": round(plan.epochs * forwards.frozen),
            "before": sum(first.epochs * first.forwards.all for first in before),
        },
    }


def data_entry(data: Split) -> dict[str, Any]:
    """What tells one `kd.data.Split` from another."""
    import zlib

    def entry(part):
        sums = [zlib.crc32(array.tobytes()) for array in (part.images, part.labels)]
        return {"name": part.name, "images": len(part), "checksums": sums}

    return {"train": entry(data.train), "test": entry(data.test)}


def _read(path, settings):
    if not path.exists():
        return None
    record = read_object(path)
    there = record.get("settings")
    if not isinstance(there, dict) or not _is_record(record):
        raise ValueError(
            _checks.message("a record that is readable", "path", str(path))
            + " Remove it to train again."
        )
    wanted = json.loads(json.dumps(settings))
    differing = [name for name in wanted if wanted[name] != there.get(name)]
    if differing:
        raise ValueError(
            f"Expected the settings of the training in {str(path)!r}. Received: others for "
            f"{', '.join(differing)}. Choose another folder, or begin anew in it with --restart."
        )
    return record


def _is_record(record):
    """Whether a JSON object has the entries that `carry_out` writes, each of its kind."""
    images = record.get("images")
    counts = [record.get(name) for name in ("best_epoch", "epochs", "steps", "parameters")]
    counts += images.values() if isinstance(images, dict) else [None]
    shares = [record.get(name) for name in ("accuracy", "best_accuracy")]
    others = [record.get(name) for name in ("loss", "calibration_error")]
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and {"student", "peers", "frozen", "before"} == set(images)
        and all(_checks.is_finite(share) and 0 <= share <= 1 for share in shares)
        and all(other is None or _checks.is_finite(other) for other in others)
        and _checks.is_finite(record.get("seconds"))
        and record["seconds"] >= 0
    )


class TestAccuracy(keras.callbacks.Callback):
    """Measures a network on the test images after some of the epochs of its last generation.

    Puts `test_accuracy` into the logs of these, and `seconds`, those of the epoch without the
    measuring, into the logs of each.

    Args:
        plan: The `Plan` of the training.
        test: An `ImageData`.
        looks: After how many epochs, at even distances, the last included.
    """

    __test__ = False  # pytest takes it for a test

    def __init__(self, plan: Plan, test: ImageData, looks: int) -> None:
        super().__init__()
        self.network = plan.network
        self.test = test
        self.epochs = plan.epochs
        self.first = plan.all_epochs - plan.epochs
        self.looks = min(looks, plan.epochs)
        self._start = None

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        logs["seconds"] = round(time.perf_counter() - self._start, 3)
        done = epoch + 1 - self.first
        if done > 0 and done * self.looks // self.epochs > (done - 1) * self.looks // self.epochs:
            found = evaluation.probabilities(self.network, self.test.images)
            logs[LOOK] = float((found.argmax(axis=-1) == self.test.labels).mean())
