"""Claims of papers, held against measured differences: each agrees, does not, or is left open.

A `Claim` has words, a source and a `judge`, a function of the entries of a comparison that returns
a verdict; `larger`, `smaller`, `alike`, `no_larger` and `every` make such functions. Differences
are taken seed by seed. One counts where it exceeds Student's two-sided 95 % limit for its number of
seeds, which is the smallest difference that these seeds could show: 2.8 standard errors for five
seeds, 4.3 for three.
"""

import dataclasses
import statistics
from collections.abc import Callable

from keras_distill import _checks
from keras_distill.reporting import tables

AGREES, CONTRADICTS, OPEN = "agrees", "does not agree", "cannot be told"
# Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says, in words, and how a comparison decides on it.

    Attributes:
        words: The claim, as a statement of direction, without figures of other data.
        source: Authors, year and address.
        judge: A function of a dict of id -> entry of a comparison that returns a verdict: a dict of
            `verdict` (`AGREES`, `CONTRADICTS` or `OPEN`) and `differences`, see `difference`.
    """

    words: str
    source: str
    judge: Callable

    def verdict(self, entries):
        """The claim with its verdict, as JSON holds it.

        Args:
            entries: The list `comparison` of the results.
        """
        found = self.judge({entry["id"]: entry for entry in entries})
        return {"claim": self.words, "source": self.source, **found}


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of each record.

    Attributes:
        key: Its name in the records.
        unit: In words.
        scale: What it is multiplied with for that unit.
    """

    key: str = "accuracy"
    unit: str = "points"
    scale: float = 100.0


def recalled(source):
    """A claim's source where we remember the claim, and have not read it there again."""
    return f"{source}, as recalled, not checked here"


ACCURACY = Measure()
BEST = Measure("best_accuracy")


def limit(seeds):
    """How many standard errors a mean difference has to exceed: Student's two-sided 95 % limit.

    Args:
        seeds: Number of seeds, two or more.
    """
    if _checks.positive_integer("seeds", seeds) < 2:
        raise ValueError(_checks.message("two `seeds` or more", "seeds", seeds))
    degrees = seeds - 1
    if degrees <= len(STUDENT):
        return STUDENT[degrees - 1]
    z = statistics.NormalDist().inv_cdf(0.975)  # Cornish and Fisher's expansion
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def difference(entries, row, than, measure=ACCURACY, other_measure=None):
    """How much more one row has than another, seed by seed.

    Args:
        entries: A dict of id -> entry.
        row, than: Ids of rows, or tuples of ids, of which the mean is taken.
        measure: What is compared.
        other_measure: The number of `than`, where it is another one than `row`'s.

    Returns:
        A dict of `row`, `than`, `key` (and `than_key` where it is another one), `mean` and `error`
        (standard error; None for one seed) in `unit`, `seeds` (how many), and `smallest`, the
        smallest difference that these seeds could show (None for one seed). Without a seed at
        which both have the number, `mean` is None too.
    """
    other_measure = other_measure or measure
    own, its = _by_seed(entries, row, measure), _by_seed(entries, than, other_measure)
    seeds = sorted(own.keys() & its.keys())
    found = {"row": _named(row), "than": _named(than), "key": measure.key}
    if other_measure.key != measure.key:
        found["than_key"] = other_measure.key
    found |= {"mean": None, "error": None, "unit": measure.unit, "seeds": len(seeds)}
    if not seeds:
        return {**found, "smallest": None}
    gain = tables.paired_gain([its[seed] for seed in seeds], [own[seed] for seed in seeds])
    found["mean"] = measure.scale * gain.mean
    if gain.error is None:
        return {**found, "smallest": None}
    error = measure.scale * gain.error
    return {**found, "error": error, "smallest": limit(len(seeds)) * error}


def _by_seed(entries, row, measure):
    """Seed -> number; of several rows their mean, at the seeds that all have."""
    rows = [row] if isinstance(row, str) else row
    every = [
        {
            record["seed"]: record[measure.key]
            for record in entries.get(name, {"records": []})["records"]
            if record.get(measure.key) is not None
        }
        for name in rows
    ]
    shared = set.intersection(*map(set, every))
    return {seed: sum(own[seed] for own in every) / len(every) for seed in shared}


def _named(row):
    return row if isinstance(row, str) else f"mean of {len(row)} rows"


def larger(row, than, measure=ACCURACY, other_measure=None):
    """A judge of "`row` has more than `than`"; the arguments are those of `difference`."""
    return _directed(row, than, measure, other_measure, 1)


def smaller(row, than, measure=ACCURACY, other_measure=None):
    """A judge of "`row` has less than `than`"; the arguments are those of `difference`."""
    return _directed(row, than, measure, other_measure, -1)


def _directed(row, than, measure, other_measure, sign):
    def judge(entries):
        found = difference(entries, row, than, measure, other_measure)
        verdict = OPEN
        if found["smallest"] is not None and abs(found["mean"]) > found["smallest"]:
            verdict = AGREES if sign * found["mean"] > 0 else CONTRADICTS
        return {"verdict": verdict, "differences": [found]}

    return judge


def alike(row, than, within, measure=ACCURACY):
    """A judge of "`row` and `than` differ by less than `within`".

    Agrees where the whole 95 % interval of the difference lies within, does not agree where it
    lies outside, and cannot be told otherwise.

    Args:
        row, than, measure: As in `difference`.
        within: In the measure's unit, such as 1.0 for a point.
    """
    _checks.positive("within", within)

    def judge(entries):
        found = {**difference(entries, row, than, measure), "within": within}
        verdict = OPEN
        if found["smallest"] is not None:
            mean, smallest = abs(found["mean"]), found["smallest"]
            verdict = AGREES if mean + smallest < within else verdict
            verdict = CONTRADICTS if mean - smallest > within else verdict
        return {"verdict": verdict, "differences": [found]}

    return judge


def no_larger(row, than, within, measure=ACCURACY):
    """A judge of "`row` has at most `within` more than `than`", the 95 % interval counted.

    Args:
        row, than, within, measure: As in `alike`, of which this is one side.
    """
    _checks.positive("within", within)

    def judge(entries):
        found = {**difference(entries, row, than, measure), "within": within}
        verdict = OPEN
        if found["smallest"] is not None and found["mean"] + found["smallest"] < within:
            verdict = AGREES
        elif found["smallest"] is not None and found["mean"] - found["smallest"] > within:
            verdict = CONTRADICTS
        return {"verdict": verdict, "differences": [found]}

    return judge


def every(*judges):
    """A judge of a claim of several parts: agrees where all do, does not where one does not."""

    def judge(entries):
        found = [each(entries) for each in judges]
        verdicts = {each["verdict"] for each in found}
        verdict = CONTRADICTS if CONTRADICTS in verdicts else OPEN
        verdict = AGREES if verdicts == {AGREES} else verdict
        return {
            "verdict": verdict,
            "differences": [one for each in found for one in each["differences"]],
        }

    return judge


def said(found):
    """A difference as text, such as "mutual - baseline: +1.85 ± 0.40 points (5 seeds)"."""
    names = [found["row"], found["than"]]
    if "than_key" in found:
        keys = found["key"], found["than_key"]
        names = [f"{name}'s {key.replace('_', ' ')}" for name, key in zip(names, keys)]
    if found["mean"] is None:
        return f"{' - '.join(names)}: not measured"
    digits = 2 if found["unit"] == "points" else 3
    text = f"{' - '.join(names)}: {found['mean']:+.{digits}f}"
    if found["error"] is None:
        return f"{text} {found['unit']} (one seed tells nothing of its error)"
    smallest = f"{found['smallest']:.{digits}f}"
    return (
        f"{text} ± {found['error']:.{digits}f} {found['unit']} "
        f"({found['seeds']} seeds, which could show {smallest})"
    )
