"""What an experiment of `scripts/reproduce.py` is, and how its rows are trained and measured.

An experiment is an `Experiment` in a module of its subject (`mutual`, ...), listed in
`reproducing.experiments()`. It has a question, `Claim`s, and for each of the `SCALES` a `Scale`:
data, networks, epochs and seeds, all fixed before anything runs.

Most experiments are `Row`s, each a variation of a recipe that is trained once a seed:

    EXPERIMENT = Experiment(
        name="smoothing",
        title="Label smoothing",
        question="Does label smoothing help a small network?",
        scales={"tiny": Scale("mnist", Options(...), seeds=1), "small": ..., "full": ...},
        measure=rows(
            Row("baseline", "The student alone.", trained("baseline")),
            Row("label_smoothing", "On smoothed labels.", trained("label_smoothing")),
        ),
        claims=(Claim("It helps.", "Szegedy et al., 2016", larger("label_smoothing", "baseline")),),
    )

An experiment of another kind gives a `measure` of its own: a function of a `Place` that returns a
dict with `comparison`, a list of what `entry` makes of records, run through `with_gains`, and
whatever else its `figure` and its `tables` show. A record is a dict with `seed`, `accuracy` (a
share), `seconds`, and any other plain numbers. Where the data is none that `kd.data.load` knows,
`dataset` says what it is (`name`, `train`, `test`, `image_shape`); where the networks are not the
scale's student and teacher, `networks` says in a phrase what is trained and how. What is trained
belongs into `place.run`, so that a second call finds it.
"""

import dataclasses
import functools
import json
import pathlib
import re
import shutil
from collections.abc import Callable

import keras

from keras_distill import _checks
from keras_distill import data
from keras_distill import reporting
from keras_distill._files import written_beside
from keras_distill.callbacks.non_finite import NonFiniteLoss
from keras_distill.experiments.entries import budgets
from keras_distill.experiments.entries import entry
from keras_distill.experiments.entries import with_gains
from keras_distill.recipes import networks
from keras_distill.recipes import running
from keras_distill.recipes import schemes
from keras_distill.recipes import training
from keras_distill.recipes.schemes import Options
from keras_distill.reporting.runs import read_object

SCALES = ("tiny", "small", "full")


@dataclasses.dataclass(frozen=True)
class Scale:
    """The budget of an experiment, fixed before it runs.

    Attributes:
        dataset: As in `kd.data.load`.
        options: The `recipes.schemes.Options` of all its rows.
        seeds: Number of seeds, from 0.
        limit, test_limit: Number of training and test images; None for all.
        minutes: About how long it takes on two cores; None for a scale that wants a GPU.
        more: What only this experiment reads, of plain values.
    """

    dataset: str
    options: Options = Options()
    seeds: int = 5
    limit: int | None = None
    test_limit: int | None = None
    minutes: float | None = None
    more: dict = dataclasses.field(default_factory=dict)

    def settings(self):
        """What tells one scale from another, but for the seeds, which can be added to."""
        known = dataclasses.asdict(self)
        del known["minutes"], known["seeds"]
        return {**known, "options": dataclasses.asdict(self.options.filled())}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A question, the claims on it, and how it is measured. See the head of this module.

    Attributes:
        name: What the command line calls it; names its files.
        title, question: In words, for the page.
        measure: A function of a `Place` that returns a dict with `comparison`, see there.
        scales: A dict of one of `SCALES` -> `Scale`.
        claims: The `claims.Claim`s.
        notes: Sentences that belong beside the figures: what is ours, what the papers do.
        columns: A dict of head -> function of an entry that gives a cell: more columns of the
            table. One that is `MISSING` in all rows is left out.
        figure: A function of the results that returns a matplotlib figure. Defaults to each
            row's accuracies.
        tables: A function of the results that returns more `kd.reporting.Table`s.
    """

    name: str
    title: str
    question: str
    measure: Callable
    scales: dict
    claims: tuple = ()
    notes: tuple = ()
    columns: dict = dataclasses.field(default_factory=dict)
    figure: Callable | None = None
    tables: Callable | None = None

    def __post_init__(self):
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise ValueError(_checks.message("a name of a-z, 0-9 and _", "name", self.name))
        if set(self.scales) != set(SCALES):
            raise ValueError(
                _checks.message(f"`scales` of {', '.join(SCALES)}", "scales", sorted(self.scales))
            )

    def scale(self, name):
        """The `Scale` of that name."""
        return self.scales[_checks.one_of("scale", name, SCALES)]


class Place:
    """Where an experiment runs, and on what.

    Args:
        run: The `RunFolder` of what is trained.
        scale: The `Scale`.
        seeds: The seeds.
        data_dir: As in `kd.data.load`.
        say: Called with each line for the person who waits.
        out: The folder of the results of all experiments.
    """

    def __init__(self, run, scale, seeds, data_dir=None, say=print, out="results"):
        self.run = run
        self.scale = scale
        self.seeds = list(seeds)
        self.data_dir = data_dir
        self.say = say
        self.out = pathlib.Path(out)
        self._loaded = functools.cache(self._load)

    def load(self, noise=0.0, seed=0):
        """The `Split`, loaded once; with a share of wrong training labels, the seed's own."""
        return self._loaded(noise, seed if noise else 0)

    def _load(self, noise, seed):
        scale = self.scale
        if noise:
            return data.label_noise(self.load(), noise, seed=seed)
        return data.load(
            scale.dataset, self.data_dir, limit=scale.limit, test_limit=scale.test_limit
        )

    def model(self, row, seed):
        """The file of what the row with this id trained."""
        return training.model_path(self.run, file_name(row, seed))

    def check(self, name, settings):
        """Raises where a training of that name was begun with other settings; else stores them."""
        settings = json.loads(json.dumps(settings))
        there = self.stored(f"{name}_settings", lambda: settings)
        if there != settings:
            raise ValueError(
                f"Expected the settings that {name} was begun with: {there}. Received: {settings}. "
                "Choose another --work, or begin anew with --restart."
            )

    def stored(self, name, measure):
        """What `measure()` returned, a dict of plain values, read where it was stored before.

        Args:
            name: Of the file, without ending.
            measure: A function without arguments.
        """
        path = pathlib.Path(self.run) / "measured" / f"{name}.json"
        if not path.exists():
            store(path, measure())
        return read_object(path)


def store(path, found):
    """Writes a dict as JSON, whole or not at all."""
    with written_beside(path) as temporary:
        text = json.dumps(found, indent=2, allow_nan=False) + "\n"
        pathlib.Path(temporary).write_text(text, encoding="utf-8")


def file_name(row, seed):
    """How the files of one training are called, from the row's id."""
    return f"{re.sub('[^a-z0-9]+', '_', row.lower()).strip('_')}_seed{seed}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a comparison.

    Attributes:
        name: In tables; a recipe's or a loss's own name where it is one, by which the pages of
            the methods find it.
        what: A sentence.
        measure: A function of `(place, row, seed)` that returns a record, such as `trained`.
        group: Rows are compared with the first of their group.
        needs: Ids of the rows that are trained before with the same seed and used here. The
            images that they, and what they need, forwarded count among those `before`, once
            each, and their seconds among the `seconds`.
        seeds: At most so many seeds; None for all.
    """

    name: str
    what: str
    measure: Callable
    group: str = ""
    needs: tuple = ()
    seeds: int | None = None

    @property
    def id(self):
        """What tells the row from all others of the experiment: `GROUP/NAME`, or the name."""
        return f"{self.group}/{self.name}" if self.group else self.name


def rows(*every):
    """The `measure` of an experiment that trains rows, seed by seed.

    Args:
        *every: `Row`s; those that others need come first.
    """
    needed = {}  # row's id -> all that it needs, and what these need
    for row in every:
        if row.id in needed or not set(row.needs) <= set(needed):
            expected = "rows with names of their own, those that others need first"
            raise ValueError(_checks.message(expected, "rows", [row.id for row in every]))
        needed[row.id] = {*row.needs}.union(*(needed[other] for other in row.needs))

    def measure(place):
        records, remarks = {row.id: [] for row in every}, []
        for place_of_seed, seed in enumerate(place.seeds):
            costs = {}  # row's id -> images and seconds of its own
            for row in every:
                if row.seeds is not None and place_of_seed >= row.seeds:
                    continue
                missing = [other for other in row.needs if other not in costs]
                if missing:
                    has = f"has no seed {seed}, as it needs {', '.join(missing)}"
                    remarks.append(f"{row.id} {has}, of which there is none.")
                    place.say(remarks[-1])
                    continue
                try:
                    record = row.measure(place, row, seed)
                except NonFiniteLoss as error:
                    remarks.append(f"{row.id} diverged with seed {seed}: {error}")
                    place.say(remarks[-1])
                    continue
                costs[row.id] = sum(record["images"].values()), record["seconds"]
                records[row.id].append(record)
                place.say(
                    f"{row.id}, seed {seed}: {100 * record['accuracy']:.2f} %, "
                    f"{record['seconds']:.0f} s"
                )
                before = [costs[other] for other in sorted(needed[row.id])]
                record["images"]["before"] += sum(images for images, _ in before)
                seconds = record["seconds"] + sum(seconds for _, seconds in before)
                record["seconds"] = round(seconds, 3)
                keras.backend.clear_session(free_memory=False)  # many graphs stay otherwise
        kept = [row for row in every if records[row.id]]
        entries = [entry(row.name, row.what, records[row.id], row.group) for row in kept]
        return {
            "comparison": with_gains(entries),
            "remarks": remarks + budgets(entries, place.scale),
        }

    return measure


def taught_by(row, make):
    """`make`, a function of `(task, teacher)` and more, as `trained` takes it.

    Args:
        row: Id of the row whose network of the same seed teaches.
        make: Such as `recipes.paper.distillation`.
    """

    def plan(place, task, **arguments):
        return make(task, networks.load(place.model(row, task.seed)), **arguments)

    return plan


def trained(
    base,
    make=None,
    *,
    noise=0.0,
    augments=None,
    change=None,
    at_end=None,
    after=None,
    **arguments,
):
    """The `measure` of a row that trains a variation of a recipe.

    Args:
        base: Name of the recipe, whose setting is used.
        make: A function of `(place, task)` and the recipe's own keyword arguments that returns a
            `Plan`. Defaults to the recipe's.
        noise: Share of wrong training labels, drawn by the seed.
        augments: As in `Recipe`; None for the recipe's own.
        change: A function of the scale's `Options`, filled, that returns this row's.
        at_end: A function of `(model, images)`, the wrapper and the test `ImageData`, that
            returns a dict which is added to the record. Called after the last epoch.
        after: The same of `(place, row, seed)`, called when the training is done.
        **arguments: Of the recipe, such as `students=3`; plain values.

    Returns:
        A function of `(place, row, seed)` that returns the record of `running.carry_out`, with
        what `at_end` and `after` found.
    """
    scheme = schemes.named(base)

    def measure(place, row, seed):
        recipe = dataclasses.replace(
            scheme,
            name=row.id,
            make=functools.partial(scheme.make, **arguments),
            small_options={**scheme.small_options, **arguments},
            augments=scheme.augments if augments is None else augments,
        )
        if make is not None:
            own = functools.partial(make, place, **arguments)
            recipe = dataclasses.replace(recipe, make=own, first=None)
        options = place.scale.options.filled()
        options = change(options).filled() if change else options
        name, split = file_name(row.id, seed), place.load(noise, seed)
        place.check(name, {"recipe": base, "noise": noise, "arguments": arguments})
        extras = pathlib.Path(place.run) / "measured" / f"{name}.json"
        looks = [AtTheEnd(at_end, split.test, extras)] if at_end else []
        files = name, f"{name}_teacher"
        record = running.carry_out(
            place.run, recipe, split, options, seed, files=files, callbacks=looks
        )
        record = {**record, "seed": seed, "arguments": arguments, "noise": noise}
        if at_end:
            record |= read_object(extras)
        if after:
            record |= place.stored(f"{name}_after", lambda: after(place, row, seed))
        return record

    return measure


class AtTheEnd(keras.callbacks.Callback):
    """Measures a wrapper after its last epoch, before that epoch's backup, and stores it.

    Args:
        function: As `at_end` of `trained`.
        test: The test `ImageData`.
        path: The JSON file to write.
    """

    def __init__(self, function, test, path):
        super().__init__()
        self.function = function
        self.test = test
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.params["epochs"]:
            store(self.path, self.function(self.model, self.test))


def begin(experiment, scale, work, restart=False):
    """The `RunFolder` of an experiment at a scale, begun or gone on with.

    Args:
        experiment: An `Experiment`.
        scale: One of `SCALES`.
        work: The folder of all experiments' runs.
        restart: Whether to remove an earlier run first.

    Raises:
        ValueError: If the folder was begun with other settings.
    """
    folder = pathlib.Path(work) / f"{experiment.name}_{scale}"
    settings = {"experiment": experiment.name, "scale": scale, **experiment.scale(scale).settings()}
    if restart and (folder / "settings.json").exists():  # else it is none of ours
        earlier = reporting.RunFolder(folder)
        earlier.hold()  # else another process works in it
        shutil.rmtree(folder)
    run = reporting.RunFolder(folder)
    training.begin(run, settings)
    return run
