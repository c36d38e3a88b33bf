"""The entries of an experiment's comparison: records of a row, their statistics and their gains."""

import math

from keras_distill.recipes import comparing
from keras_distill.reporting import tables

LAST, BEST = ("accuracy", "gain"), ("best_accuracy", "best_gain")


def entry(name, what, records, group=""):
    """One of `comparison`: a row's records and the statistics of their accuracies.

    Args:
        name, what, group: As in `Row`.
        records: Dicts with `seed` and `accuracy`, and with `best_accuracy` where it is known.

    Returns:
        A dict of `id`, `name`, `group`, `what`, `records`, and for each of the two accuracies
        `mean`, `deviation`, `error` (of the mean) and `values`.
    """
    made = {"id": f"{group}/{name}" if group else name, "name": name, "group": group}
    made |= {"what": what, "records": records}
    for key, _ in (LAST, BEST):
        values = [record[key] for record in records if key in record]
        if values:
            mean, error = tables.mean_and_error(values)
            deviation = None if error is None else error * math.sqrt(len(values))
            made[key] = {"mean": mean, "deviation": deviation, "error": error, "values": values}
    return made


def with_gains(entries):
    """Adds `gain` and `best_gain` over the first entry of each group, at the seeds of both.

    Each is `mean`, `error` (None for one seed) and `seeds`.
    """
    first = {}
    for made in entries:
        base = first.setdefault(made["group"], made)
        own, its = ({record["seed"]: record for record in e["records"]} for e in (made, base))
        seeds = [seed for seed in own if seed in its]
        for key, gain in (LAST, BEST):
            if made is not base and seeds and key in made and key in base:
                sides = ([records[seed][key] for seed in seeds] for records in (its, own))
                found = tables.paired_gain(*sides)
                made[gain] = {"mean": found.mean, "error": found.error, "seeds": found.seeds}
    return entries


def budgets(entries, scale):
    """Sentences on what differs between the rows of each group beside the scheme."""
    groups = {}
    for made in entries:
        groups.setdefault(made["group"], {})[made["name"]] = made["records"]
    lines = []
    for group, records in groups.items():
        start = f"{group}: " if group else ""
        lines += [start + line for line in comparing.remarks(records, scale.options)]
    return lines
