"""What `keras-distill train`, `compare` and `cache` do with their options."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_distill import data
from keras_distill._types import PathLike
from keras_distill._types import Say
from keras_distill.recipes import caching
from keras_distill.recipes import comparing
from keras_distill.recipes import distillation
from keras_distill.recipes import evaluation
from keras_distill.recipes import results
from keras_distill.recipes import running
from keras_distill.recipes import schemes

OF_DATA = ("dataset", "data_dir", "image_size", "limit", "test_limit")
OF_RECIPES = tuple(field.name for field in dataclasses.fields(schemes.Options))


def train(
    given: Mapping[str, Any],
    out: PathLike,
    restart: bool = False,
    verbose: int | str = 1,
    say: Say = print,
) -> None:
    """Trains by a recipe, or distils a student from a teacher.

    Args:
        given: A dict of the options by name; None stands for an option that was not given.
        out, restart, verbose, say: As in `distillation.distil`.

    Raises:
        ValueError: If options are missing or do not go together.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if "recipe" in given:
        recipe, seed = schemes.named(given.pop("recipe")).name, given.pop("seed")
        options = _options(given)
        running.train_recipe(recipe, _load(given), options, seed, out, restart, verbose, say)
        return
    if "teacher" not in given or "student" not in given:
        raise ValueError(
            "Expected --teacher and --student, or --recipe. Received: none of them, or one alone. "
            "`keras-distill recipes` lists the recipes."
        )
    if "setting" in given:
        raise ValueError("Expected --setting only with --recipe. Received: no --recipe.")
    distillation.distil(distillation.Settings(**given), out, restart, verbose, say)


def compare(
    given: Mapping[str, Any], out: PathLike, restart: bool = False, say: Say = print
) -> None:
    """Compares files on the test images, or recipes that are trained here.

    Args:
        given: A dict of the options by name, with `models` and `recipes`; None or an empty list
            stands for one that was not given.
        out: The folder of a comparison of recipes.
        restart, say: As in `recipes.compare_recipes`.

    Raises:
        ValueError: If options are missing or do not go together.
    """
    given = {name: value for name, value in given.items() if value not in (None, [])}
    models, recipes = given.pop("models", []), given.pop("recipes", [])
    if bool(models) == bool(recipes):
        received = "both" if models else "neither"
        raise ValueError(
            f"Expected files to compare, or --recipe once or more. Received: {received}. "
            "`keras-distill recipes` lists the recipes."
        )
    if recipes:
        count, first = given.pop("seeds", 5), given.pop("seed", 0)
        options = _options(given)
        comparing.check_names(recipes)
        seeds = comparing.seeds_from(first, count)
        comparing.compare_recipes(recipes, _load(given), seeds, options, out, restart, say)
        return
    teacher = given.pop("teacher", None)
    strange = sorted(set(given) - {"dataset", "data_dir", "image_size", "limit"})
    if strange:
        raise ValueError(f"Expected {_flags(strange)} only with --recipe. Received: no --recipe.")
    entries, test = evaluation.compare(models, teacher=teacher, **given)
    say(results.draw(evaluation.comparison_table(entries, test)))


def cache(given: Mapping[str, Any], verbose: int | str = 1, say: Say = print) -> None:
    """Builds a cache of a teacher's outputs, or describes one.

    Args:
        given: A dict of the options by name; None or an empty list stands for one that was not
            given.
        verbose: 1 for a progress bar.
        say: A function of a line.

    Raises:
        ValueError: If options are missing or do not go together.
        CacheError: If the cache does not fit, or is not whole or corrupt.
    """
    given = {name: value for name, value in given.items() if value not in (None, [])}
    path, verify = given.pop("path"), given.pop("verify")
    if ("teacher" in given) != ("dataset" in given):
        raise ValueError(
            "Expected --teacher and --dataset to build a cache, or neither to describe one. "
            "Received: one of them."
        )
    if "teacher" in given:
        given["worker"], given["workers"] = _worker(given["worker"])
        names = {"temperature": "temperatures", "feature": "features"}
        given = {names.get(name, name): getattr(v, "value", v) for name, v in given.items()}
        caching.build(path, **given, verbose=verbose)
    for line in caching.described(path, verify):
        say(line)


def _worker(text):
    """`(worker, workers)` of "0/2"."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"Expected --worker as in 0/2, the first of two. Received: {text!r}.")
    return int(parts[0]), int(parts[1])


def _options(given):
    """The `Options` among the options of a command; raises where others go without a recipe."""
    strange = sorted(set(given) - {*OF_DATA, *OF_RECIPES})
    if strange:
        raise ValueError(
            f"Expected no {_flags(strange)} with --recipe. Received: both. A recipe has its own; "
            "leave the option out."
        )
    return schemes.Options(**{name: given[name] for name in OF_RECIPES if name in given})


def _load(given):
    """The data set; which images `limit` keeps does not depend on the seed of a training."""
    names = {"dataset": "name"}
    return data.load(**{names.get(name, name): given[name] for name in OF_DATA if name in given})


def _flags(names):
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
