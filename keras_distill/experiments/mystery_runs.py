"""Allen-Zhu and Li's comparison: one network, ensembles of it, and what is distilled from them.

`carry_out(folder, study)` trains what a `mystery_networks.Study` asks, network by network, each
stored when it is done, and returns plain numbers: six rows, and the accuracy by ensemble size.
"""

import numpy as np

from keras_distill import reporting
from keras_distill.experiments.mystery_networks import ROWS
from keras_distill.experiments.mystery_networks import Study
from keras_distill.experiments.mystery_networks import StudyNetworks
from keras_distill.experiments.mystery_networks import accuracy
from keras_distill.recipes import training

__all__ = ["ROWS", "Study", "accuracy_by_size", "carry_out"]

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
        `rows`: a list of dicts with `name`, `what`, `trained` (how many networks' training one
        such result takes), `run` (how many networks answer), and `records`: for each test part
        (`test`, and `single_view` of a `MultiViewSplit`) a list of dicts, one a group, of `seed`
        (the group's number), `accuracy` (a share) and `seconds` (of all trainings that one such
        result takes); those of "single" have `best_member` too, the best network's accuracy;
        `by_size`: for each test part what `accuracy_by_size` gives for all single networks;
        `parameters` of a network.

    Raises:
        ValueError: If the folder holds a study with other settings.
    """
    run = reporting.RunFolder(folder)
    training.begin(run, study.settings())
    trained = StudyNetworks(run, study, say, verbose)
    singles = {seed: trained.single(seed) for seed in study.networks}
    rows = [
        {"name": row, "what": ROWS[row], **_cost(row, study), "records": _each(list, study)}
        for row in study.wanted
    ]
    for number in study.groups:
        members = [singles[seed] for seed in study.group(number)]
        answers, seconds = _group(trained, study, number, members)
        for row in rows:
            for part, test in study.tests.items():
                own = [each.of[part] for each in answers[row["name"]]]
                record = {
                    "seed": number,
                    "accuracy": _joined(row["name"], own, test.labels),
                    "seconds": round(seconds[row["name"]], 3),
                }
                if row["name"] == "single":
                    record["best_member"] = max(accuracy(each, test.labels) for each in own)
                row["records"][part].append(record)
    return {
        "rows": rows,
        "by_size": {
            part: accuracy_by_size([each.of[part] for each in singles.values()], test.labels)
            for part, test in study.tests.items()
        },
        "parameters": next(iter(singles.values())).parameters,
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
        `largest`. Of size 1 each network counts once.
    """
    answers = np.asarray(answers)
    generator = np.random.default_rng(seed)
    count = len(answers)
    found = np.empty((orders, count))
    for order in found:
        total = np.zeros(answers.shape[1:])
        for size, place in enumerate(generator.permutation(count)):
            total += answers[place]
            order[size] = accuracy(total, labels)
    columns = [np.array([accuracy(own, labels) for own in answers]), *found.T[1:]]
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


def _group(trained, study, number, members):
    """Two dicts by row: a group's `Answers`, and the seconds that one such result takes."""
    teachers = sum(each.seconds for each in members)
    answers = {"single": members, "ensemble": members}
    seconds = {"single": teachers / len(members), "ensemble": teachers}
    if "average" in study.wanted:
        answers["average"] = [trained.average(number)]
        seconds["average"] = answers["average"][0].seconds
    if {"distilled", "distilled_ensemble"} & set(study.wanted):
        taught = [trained.distilled(number, place) for place in range(study.students)]
        own = sum(each.seconds for each in taught)
        answers |= {"distilled": taught, "distilled_ensemble": taught}
        seconds |= {
            "distilled": teachers + own / len(taught),
            "distilled_ensemble": teachers + own,
        }
    if "self_distilled" in study.wanted:
        answers["self_distilled"] = [trained.self_distilled(number)]
        seconds["self_distilled"] = members[0].seconds + answers["self_distilled"][0].seconds
    return answers, seconds


def _joined(row, answers, labels):
    """The accuracy of the mean of answers, for an ensemble; else the mean of accuracies."""
    if row.endswith("ensemble"):
        return accuracy(np.mean(answers, axis=0), labels)
    return float(np.mean([accuracy(each, labels) for each in answers]))


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


def _each(make, study):
    return {part: make() for part in study.tests}
