"""Recipes side by side on one data set: several seeds, means and deviations, and the budgets."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from keras_distill import _checks
from keras_distill import reporting
from keras_distill._files import written_beside
from keras_distill._types import PathLike
from keras_distill._types import Say
from keras_distill.data.images import Split
from keras_distill.recipes import networks
from keras_distill.recipes import results as run_results
from keras_distill.recipes import running
from keras_distill.recipes import schemes
from keras_distill.recipes import tasks
from keras_distill.recipes import training
from keras_distill.recipes.schemes import Options
from keras_distill.recipes.schemes import Recipe
from keras_distill.reporting import tables
from keras_distill.reporting.tables import Table

TOLERANCE = 0.01  # budgets nearer than this are called equal


def compare_recipes(
    names: Sequence[str],
    data: Split,
    seeds: int | Sequence[int] = 5,
    options: Options | None = None,
    out: PathLike = "runs/compare",
    restart: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Trains recipes with the same seeds and says what each gains over the first, at what cost.

    With the same seed, students begin with the same weights and see the images in the same order
    where the scheme allows it, so that differences are taken seed by seed. Each training is
    stored when it is done, and resumed within it after a kill; more recipes and seeds can be
    added to a folder later, other settings are an error.

    Args:
        names: Names of recipes, see `recipes.schemes.names()`; the first is compared with.
        data: A `kd.data.Split`; its training images train all networks, its test images measure
            them.
        seeds: Number of seeds from 0, or the seeds.
        options: A `recipes.schemes.Options`. Defaults to the small setting.
        out: The run's folder.
        restart: Whether to remove an earlier run in the folder first.
        say: Called with each line for the person who waits.

    Returns:
        What `results.json` holds: that of `kd.reporting.report`, and
        `comparison`: a list, one entry a recipe, of `name`, `records` (one a seed, as in
        `runs/*.json`), `accuracy` and `best_accuracy` (`mean`, `deviation`, `error`, and
        `values` by seed), and, but for the first, `gain` and `best_gain` (`mean` and `error` of
        the paired differences, in shares: 0.01 is a point);
        `seeds`; `remarks`: sentences on budgets and data that differ.

    Raises:
        ValueError: If a name is unknown, an argument out of its range, or the folder holds a run
            with other settings.

    Example:
    ```python
    split = kd.data.load("fashion_mnist", limit=1000)
    results = kd.recipes.compare_recipes(["baseline", "label_smoothing"], split, seeds=5)
    ```
    """
    recipes = check_names(names)
    seeds = _checked_seeds(seeds)
    options = (options or schemes.Options()).filled()
    running.check(recipes, data, options)
    run = reporting.RunFolder(out)
    settings = {
        "command": "compare",
        **dataclasses.asdict(options),
        "data": running.data_entry(data),
    }
    if training.begin(run, settings, restart):
        say(f"Going on with the run in {run.path}: what is finished is not trained again.")
    say(f"{len(recipes)} recipes with {len(seeds)} seeds, {len(data.train)} images to train on.")
    records = {recipe.name: [] for recipe in recipes}
    for seed in seeds:
        for recipe in recipes:
            record = running.carry_out(run, recipe, data, options, seed)
            records[recipe.name].append(record)
            say(
                f"{recipe.name}, seed {seed}: {100 * record['accuracy']:.2f} % after "
                f"{record['epochs']} epochs, best {100 * record['best_accuracy']:.2f} %, "
                f"{record['seconds']:.0f} s"
            )
    results, shown = _results(records, seeds, options, data, run)
    table = comparison_table(results)
    run_results.write_pictures(run, None, None, data.test, None)
    path, missing = run_results.finish(run, results, shown)
    with written_beside(run.path / "comparison.md") as temporary:
        text = "\n\n".join([f"# {results['title']}", table.title, table.markdown()])
        text = "\n\n".join([text, *results["remarks"]]) + "\n"
        pathlib.Path(temporary).write_text(text, encoding="utf-8")
    say(run_results.draw(table))
    for remark in results["remarks"]:
        say(remark)
    say(f"Report: {path}" if path else f"No report: {missing}")
    return results


def check_names(names: Sequence[str]) -> list[Recipe]:
    """The `Recipe`s of these names; raises where one is unknown or stands twice."""
    names = list(names)
    if not names:
        raise ValueError(_checks.message("one recipe or more", "names", names))
    if len(set(names)) < len(names):
        raise ValueError(_checks.message("each recipe once", "names", names))
    return [schemes.named(name) for name in names]


def seeds_from(first: int, count: int) -> list[int]:
    """So many seeds, from the first on."""
    return _checked_seeds(range(first, first + _checked_count(count)))


def _checked_count(seeds):
    if _checks.positive_integer("seeds", seeds) > tasks.OTHER_SEEDS:
        raise ValueError(_checks.message(f"at most {tasks.OTHER_SEEDS} seeds", "seeds", seeds))
    return seeds


def _checked_seeds(seeds):
    if isinstance(seeds, int):
        seeds = range(_checked_count(seeds))
    seeds = list(seeds)
    last = tasks.OTHER_SEEDS - 1
    whole = all(isinstance(seed, int) and 0 <= seed <= last for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise ValueError(
            _checks.message(
                f"`seeds` to be a number of seeds, or different ones from 0 to {last}",
                "seeds",
                seeds,
            )
        )
    return seeds


def _results(records, seeds, options, data, run):
    """What `results.json` holds, and the network of the first seed of each recipe."""
    first = next(iter(records))
    compared, models, shown = [], [], {}
    for name, mine in records.items():
        entry = {"name": name, "records": mine}
        for key, gain in (("accuracy", "gain"), ("best_accuracy", "best_gain")):
            values = [record[key] for record in mine]
            mean, error = tables.mean_and_error(values)
            deviation = None if error is None else error * math.sqrt(len(values))
            entry[key] = {"mean": mean, "deviation": deviation, "error": error, "values": values}
            if name != first:
                found = tables.paired_gain([record[key] for record in records[first]], values)
                entry[gain] = {"mean": found.mean, "error": found.error}
        compared.append(entry)
        path = training.model_path(run, f"{name}_seed{seeds[0]}")
        scores = [{"agreement": None, **record} for record in mine]
        shown[name] = networks.load(path)
        models.append(run_results.entry(name, shown[name], path, scores))
    results = {
        "title": f"{' and '.join(records)} on {data.train.name}"
        if len(records) < 3
        else f"{len(records)} recipes on {data.train.name}",
        "dataset": run_results.dataset_entry(data),
        "class_names": list(data.test.class_names),
        "models": models,
        "comparison": compared,
        "seeds": seeds,
        "remarks": remarks(records, options),
    }
    if len(records) == 2:
        results["gain"] = {"baseline": first, "model": list(records)[1]}
    return results, shown


def remarks(records: Mapping[str, Sequence[Mapping[str, Any]]], options: Options) -> list[str]:
    """Sentences on what differs between the recipes beside the scheme.

    Args:
        records: A dict of recipe name -> its records.
        options: The `Options`.
    """
    costs = {name: mine[0] for name, mine in records.items()}
    first, *others = costs
    lines = []
    if options.setting == "paper":
        lines.append("Each recipe trains by its own published setting.")
    augments = {name: cost["settings"]["training"]["augment"] for name, cost in costs.items()}
    if len(set(augments.values())) == 2:
        augmenting = ", ".join(name for name, augments_it in augments.items() if augments_it)
        lines.append(f"Data differ: training images are augmented for {augmenting} alone.")
    base = costs[first]["images"]
    for what, count in (
        ("images that the student forwards with a gradient", lambda images: images["student"]),
        ("images forwarded in all, with those of teachers and peers", _all),
    ):
        differing = [
            f"{name} {_times(count(costs[name]['images']), count(base))}"
            for name in others
            if abs(count(costs[name]["images"]) - count(base)) > TOLERANCE * count(base)
        ]
        if differing:
            lines.append(
                f"Budgets differ in {what}: {first} {count(base):,}; {'; '.join(differing)}."
            )
        elif others:
            lines.append(f"Budgets are equal in {what}: {count(base):,}.")
    return lines


def _all(images):
    return sum(images.values())


def _times(count, base):
    return f"{count:,} ({count / base:.2f} times)"


def comparison_table(results: Mapping[str, Any]) -> Table:
    """A `kd.reporting.Table`: accuracies, gains, budgets and time of each recipe.

    Args:
        results: What `compare_recipes` returns.
    """
    columns = ["recipe", "last %", "best %", "gain, last", "gain, best"]
    columns += ["epochs", "steps", "images, student", "images, all", "seconds"]
    rows = []
    for entry in results["comparison"]:
        record = entry["records"][0]
        seconds = tables.mean_and_error([mine["seconds"] for mine in entry["records"]])[0]
        rows.append(
            (
                entry["name"],
                _spread(entry["accuracy"]),
                _spread(entry["best_accuracy"]),
                _points(entry.get("gain")),
                _points(entry.get("best_gain")),
                tables.whole(record["epochs"]),
                tables.whole(record["steps"]),
                tables.whole(record["images"]["student"]),
                tables.whole(_all(record["images"])),
                f"{seconds:.1f}",
            )
        )
    seeds = len(results["seeds"])
    title = (
        f"Accuracy on {results['dataset']['test']:,} test images, mean ± standard deviation "
        f"(standard error) over {seeds} seeds; gains in points over {rows[0][0]}, seed by seed, "
        f"± standard error; best: of the looks at the test images"
    )
    return reporting.Table(title, tuple(columns), tuple(rows))


def _spread(found):
    text = f"{100 * found['mean']:.2f}"
    if found["error"] is None:
        return text
    return f"{text} ± {100 * found['deviation']:.2f} ({100 * found['error']:.2f})"


def _points(gain):
    if gain is None:
        return tables.MISSING
    text = f"{100 * gain['mean']:+.2f}"
    return text if gain["error"] is None else f"{text} ± {100 * gain['error']:.2f}"
