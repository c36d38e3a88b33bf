"""Allen-Zhu and Li's comparison: one network, ensembles of it, and what is distilled from them.

`carry_out(folder, study)` trains what a `studies.Study` asks, network by network, each stored when
it is done, and returns plain numbers: six rows, and the accuracy by size of the ensemble.
"""

import math

import numpy as np

from keras_distill import reporting
from keras_distill.recipes import training
from keras_distill.recipes.studies import ROWS
from keras_distill.recipes.studies import Study
from keras_distill.recipes.studies import StudyNetworks
from keras_distill.recipes.studies import accuracy
from keras_distill.reporting import tables

__all__ = ["ROWS", "Study", "accuracy_by_size", "carry_out", "comparison_table"]

ORDERS = 50  # of the networks, in the mean of `accuracy_by_size`


def carry_out(folder, study, *, say=print, verbose=0):
    """Trains what a study asks, unless it is done, and compares.

    Each network lies in `models/NAME.keras` of the folder, what it says of the test images in
    `answers/NAME.npz`, what it cost in `runs/NAME.json`; a killed training is taken up within it.
    Names: `single_3`, `average_0`, `distilled_0_2` (group, student), `self_distilled_0`.

    Args:
        folder: The run's folder, made where it is missing.
        study: A `Study`.
        say: Called with each line for the person who waits.
        verbose: Of Keras's `fit`.

    Returns:
        A dict that JSON holds:
        `rows`: a list of dicts with `name`, `what`, `trained` (networks whose training one such
        result takes), `run` (networks that answer), and for each test part (`test`, and
        `single_view`) `accuracy`: `values` (shares, one a group), `mean`, `deviation`, `error`,
        and `gain` over "single", paired by group: `mean`, `error`;
        `by_size`: for each test part what `accuracy_by_size` gives for the whole pool;
        `best_single`: for each test part the largest accuracy of a single network of each group;
        `parameters` of a network, `networks` trained, and `seconds` of all trainings.

    Raises:
        ValueError: If the folder holds a study with other settings.
    """
    run = reporting.RunFolder(folder)
    training.begin(run, study.settings())
    trained = StudyNetworks(run, study, say, verbose)
    singles = {seed: trained.single(seed) for seed in range(study.networks)}
    found = {row: [] for row in study.wanted}
    best = []
    for number in range(study.groups):
        mine = [singles[seed] for seed in study.group(number)]
        answers = _answers_of_group(trained, study, number, mine)
        for row, networks_of_row in answers.items():
            found[row].append(_accuracies(row, networks_of_row, study.tests))
        best.append(
            {
                part: max(accuracy(own[part], test.labels) for own in mine)
                for part, test in study.tests.items()
            }
        )
    rows = [_row(row, found[row], found["single"], study) for row in found]
    every = list(singles.values())
    return {
        "rows": rows,
        "by_size": _each(
            lambda part, test: accuracy_by_size([a[part] for a in every], test.labels), study
        ),
        "best_single": _each(lambda part, test: [group[part] for group in best], study),
        "parameters": trained.parameters,
        "networks": trained.count,
        "seconds": round(trained.seconds, 1),
    }


def accuracy_by_size(answers, labels, orders=ORDERS, seed=0):
    """Accuracy of ensembles of 1, 2, ... of some networks: running means of their answers.

    Args:
        answers: Logits or log-probabilities of each network, (networks, samples, classes).
        labels: Class ids (samples,).
        orders: Over how many random orders of the networks the accuracy is averaged. Ensembles
            of different orders share networks: their deviation is no error of the mean, and 0 for
            all networks.
        seed: Of the orders.

    Returns:
        A list of dicts, one a size: `size`, `mean`, `deviation` (over the orders), `least` and
        `largest`. Of one network all are taken, once each.
    """
    answers = np.asarray(answers)
    generator = np.random.default_rng(seed)
    count = len(answers)
    found = np.empty((orders, count))
    for order in found:
        total = np.zeros(answers.shape[1:])
        for size, place in enumerate(generator.permutation(count)):
            total += answers[place]
            order[size] = np.mean(total.argmax(axis=-1) == labels)
    columns = list(found.T)
    columns[0] = np.array([np.mean(own.argmax(axis=-1) == labels) for own in answers])
    return [
        {
            "size": size,
            "mean": float(column.mean()),
            "deviation": float(column.std(ddof=1)) if len(column) > 1 else 0.0,
            "least": float(column.min()),
            "largest": float(column.max()),
        }
        for size, column in enumerate(columns, start=1)
    ]


def comparison_table(found, title, part="test"):
    """What `carry_out` returned, as a `kd.reporting.Table`.

    Args:
        found: The dict.
        title: What was compared, on what.
        part: Name of the test part.
    """
    rows = []
    for row in found["rows"]:
        found_here, gain = row[part]["accuracy"], row[part]["gain"]
        deviation = found_here["deviation"]
        spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
        cells = [row["name"].replace("_", " "), f"{100 * found_here['mean']:.2f}{spread}"]
        if gain is None:
            cells.append(tables.MISSING)
        else:
            error = "" if gain["error"] is None else f" ± {100 * gain['error']:.2f}"
            cells.append(f"{100 * gain['mean']:+.2f}{error}")
        rows.append((*cells, tables.whole(row["trained"]), tables.whole(row["run"])))
    columns = ("row", "accuracy %", "gain, points", "networks trained", "networks run")
    groups = len(found["rows"][0][part]["accuracy"]["values"])
    title = (
        f"{title}: mean ± standard deviation over {groups} groups; gains over a single network, "
        "group by group, ± standard error"
    )
    return reporting.Table(title, columns, tuple(rows))


def _answers_of_group(trained, study, number, mine):
    """Row -> list of networks' answers, for the rows that are wanted."""
    found = {"single": mine, "ensemble": mine}
    if "average" in study.wanted:
        found["average"] = [trained.average(number)]
    if {"distilled", "distilled_ensemble"} & set(study.wanted):
        taught = [trained.distilled(number, place) for place in range(study.students)]
        found |= {"distilled": taught, "distilled_ensemble": taught}
    if "self_distilled" in study.wanted:
        found["self_distilled"] = [trained.self_distilled(number)]
    return {row: found[row] for row in study.wanted}


def _accuracies(row, answers, tests):
    """The accuracy of a row by test part: of the mean of answers, or the mean of accuracies."""
    joined = row.endswith("ensemble")
    return {
        part: accuracy(np.mean([a[part] for a in answers], axis=0), test.labels)
        if joined
        else float(np.mean([accuracy(a[part], test.labels) for a in answers]))
        for part, test in tests.items()
    }


def _each(function, study):
    return {part: function(part, test) for part, test in study.tests.items()}


def _row(row, found, single, study):
    entry = {"name": row, "what": ROWS[row], **_cost(row, study)}
    for part in study.tests:
        values = [accuracies[part] for accuracies in found]
        mean, error = tables.mean_and_error(values)
        deviation = None if error is None else error * math.sqrt(len(values))
        spread = {"values": values, "mean": mean, "deviation": deviation, "error": error}
        gain = None
        if row != "single":
            paired = tables.paired_gain([accuracies[part] for accuracies in single], values)
            gain = {"mean": paired.mean, "error": paired.error}
        entry[part] = {"accuracy": spread, "gain": gain}
    return entry


def _cost(row, study):
    """How many networks one result of a row takes to train, and to answer."""
    members, students = study.members, study.students
    trained, run = {
        "single": (1, 1),
        "ensemble": (members, members),
        "average": (members, members),
        "distilled": (members + 1, 1),
        "self_distilled": (2, 1),
        "distilled_ensemble": (members + students, students),
    }[row]
    return {"trained": trained, "run": run}
