"""A `Study` of mysteries, and its networks: trained one by one, each stored when it is done."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from keras_distill import _checks
from keras_distill import data
from keras_distill._files import written_beside
from keras_distill.data.synthetic import MultiViewSplit
from keras_distill.losses.response import SoftTargets
from keras_distill.models.distiller import Distiller
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.terms import Term
from keras_distill.recipes import networks
from keras_distill.recipes import running
from keras_distill.recipes import training
from keras_distill.recipes.settings import Setting
from keras_distill.recipes.tasks import Task
from keras_distill.recipes.training import Forwards
from keras_distill.reporting.networks import probabilities
from keras_distill.reporting.runs import read_object

# Row -> what it is.
ROWS = {
    "single": "One network, trained on the labels; the mean of the group's.",
    "ensemble": "The mean of the logits of the group's networks.",
    "average": "The same mean, of networks trained together on the label loss of the mean.",
    "distilled": "One network, taught by the group's ensemble; the mean of those that there are.",
    "self_distilled": "One network, taught by one of the group's.",
    "distilled_ensemble": "The mean of the logits of networks that the group's ensemble taught.",
}
STUDENTS = 500  # seeds of the networks that are taught begin here
TINIEST = 1e-300


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared, on what data, and how it is trained.

    A *group* is a repetition: `members` networks that no other group has, and what is made of
    them. Network i has the initial weights of seed i and sees the images in the order of seed i;
    group g has the networks from `g * members` on. Students have seeds from 500 on.

    Attributes:
        build: A function of a seed that builds a network, which returns logits.
        data: A `kd.data.Split`. Of a `MultiViewSplit` the single-view samples are a second test
            part.
        setting: The `Setting` of all trainings.
        members: Networks of a group, two or more.
        groups: The groups' numbers, such as `(0, 1, 2)`. Others can be added to a folder later.
        pool: How many single networks there are at least, from seed 0 on, for the accuracy by
            size of the ensemble. Defaults to those of the groups.
        students: Networks that each group's ensemble teaches; of one alone there is no row
            "distilled_ensemble".
        temperature, weight, label_weight: Of the distillation: `weight * T^2 KL + label_weight *
            label loss`.
        rows: The rows that are wanted, of `ROWS`; "single", which the others are compared with,
            is always there.
    """

    build: Callable
    data: data.Split
    setting: Setting
    members: int = 5
    groups: tuple = (0, 1, 2, 3, 4)
    pool: int = 0
    students: int = 5
    temperature: float = 4.0
    weight: float = 0.9
    label_weight: float = 0.1
    rows: tuple = tuple(ROWS)

    def __post_init__(self):
        for name in ("members", "students"):
            _checks.positive_integer(name, getattr(self, name))
        if self.members < 2:
            raise ValueError(_checks.message("two `members` or more", "members", self.members))
        whole = all(isinstance(number, int) and number >= 0 for number in self.groups)
        if not self.groups or not whole or len(set(self.groups)) < len(self.groups):
            expected = "`groups` to be different whole numbers, one or more"
            raise ValueError(_checks.message(expected, "groups", self.groups))
        if self.pool < 0 or max(self.networks) >= STUDENTS:
            expected = f"at most {STUDENTS} single networks"
            raise ValueError(_checks.message(expected, "pool, groups", (self.pool, self.groups)))
        for row in self.rows:
            _checks.one_of("rows", row, tuple(ROWS))

    @property
    def wanted(self):
        """The rows that there will be, in the order of `ROWS`."""
        left_out = {"distilled_ensemble"} if self.students == 1 else set()
        return [row for row in ROWS if row in {"single", *self.rows} - left_out]

    @property
    def networks(self):
        """Seeds of the single networks."""
        ours = {seed for number in self.groups for seed in self.group(number)}
        return sorted(ours | set(range(self.pool)))

    @property
    def tests(self):
        """A dict of name -> test `ImageData`."""
        parts = {"test": self.data.test}
        if isinstance(self.data, MultiViewSplit):
            parts["single_view"] = self.data.single_view
        return parts

    def group(self, number):
        """Seeds of the networks of a group."""
        return list(range(number * self.members, (number + 1) * self.members))

    def pupils(self, number):
        """Seeds of the students of a group."""
        first = STUDENTS + number * self.students
        return list(range(first, first + self.students))

    def task(self, seed):
        """The `Task` of a network with this seed."""
        return Task(self.build, self.data.train, self.setting, seed)

    def settings(self):
        """What tells this study from another: all but groups, pool and rows, which can grow."""
        network = self.build(0)
        given = ("members", "students", "temperature", "weight", "label_weight")
        return {
            "command": "mysteries",
            **{name: getattr(self, name) for name in given},
            "setting": dataclasses.asdict(self.setting),
            "network": [network.name, network.count_params()],
            "data": running.data_entry(self.data),
        }


class Answers(NamedTuple):
    """What one trained network says of the test images.

    Attributes:
        of: A dict of name of the test part -> log-probabilities (samples, classes), float32: the
            logits but for a shift of each sample.
        seconds: Of its training, without that of its teachers.
        parameters: Of the network.
    """

    of: dict
    seconds: float
    parameters: int


class StudyNetworks:
    """The networks of a study, trained or read; each method returns `Answers`.

    Args:
        run: The `RunFolder`.
        study: The `Study`.
        say: Called with a line for each network that is trained.
        verbose: Of Keras's `fit`.
    """

    def __init__(self, run, study, say, verbose):
        self.run, self.study, self.say, self.verbose = run, study, say, verbose

    def single(self, seed):
        """Network `seed`, trained on the labels."""

        def plan():
            task = self.study.task(seed)
            network = task.build(name=f"network{seed}")
            return task.plan(network, network)

        return self._answers(f"single_{seed}", plan)

    def average(self, number):
        """Networks trained together on the label loss of their mean logits.

        A member gets a share of the gradient, so the learning rate is that of a single network
        times the members, and the weight decay is divided by them: each takes steps of its own
        size. The mean would learn as many times more slowly otherwise.
        """

        def plan():
            seeds = self.study.group(number)
            setting = self.study.setting
            setting = setting.changed(
                learning_rate=setting.learning_rate * len(seeds),
                weight_decay=setting.weight_decay / len(seeds),
            )
            task = dataclasses.replace(self.study.task(seeds[0]), setting=setting)
            model = _ensemble([self.study.build(seed) for seed in seeds], objective="average")
            forwards = Forwards(student=task.count * len(seeds))
            return task.plan(model, model, forwards=forwards)

        return self._answers(f"average_{number}", plan)

    def distilled(self, number, place):
        """Student `place` of the ensemble of group `number`."""
        seed = self.study.pupils(number)[place]
        name = f"ensemble_{number}"
        return self._taught(f"distilled_{number}_{place}", seed, name, self.study.group(number))

    def self_distilled(self, number):
        """A student of the first network of group `number`."""
        seed, first = self.study.pupils(number)[0], self.study.group(number)[0]
        return self._taught(f"self_distilled_{number}", seed, f"network_{first}", [first])

    def _taught(self, name, seed, teacher_name, seeds):
        def plan():
            paths = [training.model_path(self.run, f"single_{own}") for own in seeds]
            members = [networks.load(path) for path in paths]
            teacher = members[0] if len(members) == 1 else _ensemble(members)
            return self._lesson(self.study.task(seed), teacher, teacher_name)

        return self._answers(name, plan)

    def _lesson(self, task, teacher, teacher_name):
        """The `Plan` of a distillation. What a teacher says of images that stay is kept."""
        study, student = self.study, task.build()
        term = Term(SoftTargets(study.temperature), weight=study.weight)
        frozen = task.count * len(getattr(teacher, "members", [teacher]))
        options, label_weight = {}, study.label_weight
        if not task.setting.augment:
            images = task.images
            teacher = data.TeacherCache.build(
                self.run.path / "caches" / teacher_name,
                teacher,
                images.images,
                images.labels,
                dtype="float32",
                verbose=0,
            )
            options["pipeline"] = _pipeline(teacher)
        model = Distiller(teacher, student, term, student_loss_weight=label_weight)
        forwards = Forwards(student=task.count, frozen=frozen)
        return task.plan(model, student, forwards=forwards, **options)

    def _answers(self, name, plan):
        record_path = running.record_path(self.run, name)
        answers_path = self.run.path / "answers" / f"{name}.npz"
        if not record_path.exists():
            network = self._train(name, plan)
            found = {
                part: np.log(np.maximum(probabilities(network, test.images), TINIEST))
                for part, test in self.study.tests.items()
            }
            lines = [line for line in self.run.read_metrics() if line["model"] == name]
            record = {
                "name": name,
                "accuracy": {
                    part: accuracy(found[part], test.labels)
                    for part, test in self.study.tests.items()
                },
                "seconds": round(sum(line["seconds"] for line in lines), 3),
                "parameters": int(network.count_params()),
            }
            with written_beside(answers_path) as temporary:
                np.savez(temporary, **{part: a.astype("float32") for part, a in found.items()})
            with written_beside(record_path) as temporary:
                text = json.dumps(record, indent=2, allow_nan=False) + "\n"
                pathlib.Path(temporary).write_text(text, encoding="utf-8")
            shown = ", ".join(f"{100 * value:.2f} %" for value in record["accuracy"].values())
            self.say(f"{name}: {shown}, {record['seconds']:.0f} s")
        record = read_object(record_path)
        with np.load(answers_path, allow_pickle=False) as arrays:
            answers = {part: arrays[part] for part in self.study.tests}
        return Answers(answers, record["seconds"], record["parameters"])

    def _train(self, name, plan):
        path = training.model_path(self.run, name)
        if path.exists():  # killed between the last epoch and the record
            return networks.load(path)
        plan = plan()
        seconds = running.TestAccuracy(plan, self.study.data.test, looks=0)
        options = {"log": {"model": name}, "callbacks": [seconds], "verbose": self.verbose}
        network = training.carry_out(self.run, name, plan, **options)
        keras.backend.clear_session(free_memory=False)  # hundreds of graphs stay otherwise
        return network


def _ensemble(members, objective="independent"):
    for place, member in enumerate(members, start=1):
        member.name = f"member{place}"
    return EnsembleTeacher(members, average="logits", objective=objective, name="ensemble")


def _pipeline(cache):
    """`kd.data.batches` of what is cached: the same images in the same order."""

    def batches(images, labels, batch_size, *, augment, **options):
        return cache.dataset(batch_size, **options)

    return batches


def accuracy(answers, labels):
    """The share of answers (samples, classes) whose largest entry is the label's."""
    return float(np.mean(answers.argmax(axis=-1) == labels))
