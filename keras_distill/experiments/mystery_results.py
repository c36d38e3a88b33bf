"""What the experiments on the three mysteries share: from a `Study` to results, figure and tables.

A seed of such an experiment is a group of the study: networks that no other group has, and what is
made of them.
"""

import re

from keras_distill.experiments import mystery_runs
from keras_distill.experiments.claims import Claim
from keras_distill.experiments.claims import Measure
from keras_distill.experiments.definitions import entry
from keras_distill.experiments.definitions import with_gains
from keras_distill.experiments.pages import column
from keras_distill.recipes import results as run_results
from keras_distill.recipes.settings import Setting
from keras_distill.reporting import drawing_rows
from keras_distill.reporting import tables

PAPER = "Allen-Zhu and Li, 2020, https://arxiv.org/abs/2012.09816"
BEST_MEMBER = Measure("best_member")
SIZES = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30)
SINGLE_VIEW = "single-view samples"
AVERAGE = (
    "The average is trained with the learning rate times the members, as each gets a share of the "
    "gradient, and the weight decay divided by them: members take steps as large as alone."
)

SGD = {"batch_size": 64, "learning_rate": 0.1, "cosine": True, "augment": False}
WIDE = {  # Zagoruyko and Komodakis's training of wide residual networks on CIFAR
    "epochs": 200,
    "batch_size": 128,
    "learning_rate": 0.1,
    "drops": (60, 120, 160),
    "factor": 0.2,
}
TINY = {"training": {**SGD, "epochs": 1, "batch_size": 16}, "members": 2, "students": 1}


def claim(words, judge, source=PAPER):
    """A `Claim` of the paper."""
    return Claim(words, source, judge)


def study_of(place, build, split):
    """The `Study` of a place: its groups are the place's seeds.

    Args:
        place: A `Place`, whose scale's `more` has `training`, the arguments of a `Setting`, and
            those of a `Study`.
        build: A function of a seed that builds a network.
        split: A `kd.data.Split`.
    """
    known = {name: value for name, value in place.scale.more.items() if name in _ARGUMENTS}
    setting = Setting(**place.scale.more["training"])
    return mystery_runs.Study(build, split, setting, groups=tuple(place.seeds), **known)


_ARGUMENTS = ("members", "students", "pool", "temperature", "weight", "label_weight", "rows")


def carried_out(place, studies, words):
    """What an experiment returns, of one study or several.

    Args:
        place: The `Place`.
        studies: A dict of title -> `Study`; of one alone the title may be empty.
        words: A sentence on networks and training, for the page.
    """
    comparison, by_size, remarks = [], {}, []
    for title, study in studies.items():
        folder = place.run.path / "networks" / (re.sub("[^a-z]+", "_", title.lower()) or "all")
        found = mystery_runs.carry_out(folder, study, say=place.say)
        for part in study.tests:
            group = ", ".join(filter(None, [title, SINGLE_VIEW if part == "single_view" else ""]))
            by_size[group] = found["by_size"][part]
            comparison += [_entry(row, part, group) for row in found["rows"]]
    first = next(iter(studies.values()))
    remarks.append(
        f"A seed is a group of {first.members} networks that no other seed has, and what is made "
        "of them. Budgets differ: the columns say how many networks one result takes to train, "
        "and how many answer; all are trained equally long."
    )
    return {
        "comparison": with_gains(comparison),
        "by_size": by_size,
        "dataset": run_results.dataset_entry(first.data),
        "networks": f"{words}; {found['parameters']:,} parameters; {_training(first)}",
        "remarks": remarks,
    }


def _entry(row, part, group):
    costs = {"trained": row["trained"], "run": row["run"]}
    records = [{**record, **costs} for record in row["records"][part]]
    return entry(row["name"], row["what"], records, group)


def _training(study):
    setting = study.setting
    rate = "falling to 0 along half a cosine" if setting.cosine else "constant"
    rate = "falling in steps" if setting.drops else rate
    taught = (
        f"students taught at temperature {study.temperature:g}, weights {study.weight:g} of the "
        f"teacher and {study.label_weight:g} of the labels"
    )
    epochs = f"{setting.epochs} epoch{'s' if setting.epochs > 1 else ''}"
    return (
        f"{epochs} of batch {setting.batch_size}, SGD from {setting.learning_rate:g}, {rate}, "
        f"momentum {setting.momentum:g}, weight decay {setting.weight_decay:g}, "
        f"{'with' if setting.augment else 'without'} augmentation; {taught}"
    )


def figure(results):
    """Accuracy over the number of networks that answer: the ensembles' curve, and the rows.

    Raises:
        ImportError: If matplotlib is missing; it names the extra.
    """
    panels = []
    for group, sizes in results["by_size"].items():
        sizes = [each for each in sizes if each["size"] <= SIZES[-1]]  # the table has them all
        lines = [
            {
                "name": "independent networks",
                "x": [each["size"] for each in sizes],
                "y": [100 * each["mean"] for each in sizes],
                "error": None,
            }
        ]
        for made in results["comparison"]:
            if made["group"] != group or made["name"] in ("single", "ensemble"):
                continue
            error = made["accuracy"]["error"]
            lines.append(
                {
                    "name": made["name"].replace("_", " "),
                    "x": [made["records"][0]["run"]],
                    "y": [100 * made["accuracy"]["mean"]],
                    "error": None if error is None else [100 * error],
                    "line": False,
                }
            )
        panels.append({"title": group, "lines": lines})
    drawn = drawing_rows.curves(panels, "networks that answer", "test accuracy in %")
    for axis in drawn.axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    return drawn


def size_tables(results):
    """A table of the accuracy by size of the ensemble for each group of the comparison."""
    columns = ("networks", "accuracy %", "deviation", "least", "largest")
    made = []
    for group, sizes in results["by_size"].items():
        rows = [
            (str(each["size"]), *(f"{100 * each[key]:.2f}" for key in _SPREAD))
            for each in sizes
            if each["size"] in SIZES or each is sizes[-1]
        ]
        title = (
            f"{group + ': e' if group else 'E'}nsembles of all independent networks, by size: "
            f"mean, deviation and bounds over {mystery_runs.ORDERS} random orders of the same "
            "networks, which is no error of the mean"
        )
        made.append(tables.Table(title, columns, tuple(rows)))
    return made


_SPREAD = ("mean", "deviation", "least", "largest")
COLUMNS = {
    "networks trained": lambda made: tables.whole(made["records"][0].get("trained")),
    "networks run": lambda made: tables.whole(made["records"][0].get("run")),
    "best of the group %": column("best_member", scale=100.0),
}
PARTS = {"figure": figure, "tables": size_tables, "columns": COLUMNS}
