"""`keras-distill train`: a teacher, or several, and a student distilled from it."""

import dataclasses
import inspect

from keras_distill import _checks
from keras_distill import data
from keras_distill import losses
from keras_distill import reporting
from keras_distill.models.distiller import Distiller
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.terms import Term
from keras_distill.recipes import evaluation
from keras_distill.recipes import networks
from keras_distill.recipes import results as run_results
from keras_distill.recipes import training

MEMBER_SEEDS = 1000  # above the student's


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `keras-distill train` is told; stands in the run's `settings.json`.

    Attributes:
        dataset, data_dir, image_size, limit: As in `kd.data.load`.
        teacher: A network's name, trained first, or a `.keras` file, taken as it is.
        ensemble: Number of teachers that are trained together and averaged.
        student: A network's name or a `.keras` file to start from.
        loss: A class of `keras_distill.losses` that compares predictions.
        temperature: The loss's; None for its own default.
        weight: Factor of the distillation loss.
        label_weight: Factor of the label loss.
        epochs: Epochs of the student.
        teacher_epochs: Epochs of the teacher; None for as many.
        batch_size, learning_rate, seed: Of every training.
        augment: Whether training images are shifted at random, and mirrored if `flip`.
        flip: Whether augmentation mirrors; digits and letters want False.
        baseline: Whether the same student is trained without teacher too, to compare.
    """

    dataset: str
    teacher: str
    student: str
    data_dir: str | None = None
    image_size: int | None = None
    limit: int | None = None
    ensemble: int = 1
    loss: str = "SoftTargets"
    temperature: float | None = None
    weight: float = 0.9
    label_weight: float = 0.1
    epochs: int = 20
    teacher_epochs: int | None = None
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0
    augment: bool = False
    flip: bool = True
    baseline: bool = False

    def __post_init__(self):
        _checks.positive_integer("ensemble", self.ensemble)
        for name in ("weight", "label_weight"):
            _checks.non_negative(name, getattr(self, name))
        if self.ensemble > 1 and networks.is_file(self.teacher):
            raise ValueError(
                f"Expected --ensemble only with a teacher that is trained here. Received: "
                f"ensemble={self.ensemble}, teacher={self.teacher!r}."
            )

    def training(self, epochs, image_side):
        """The `Training` of one network."""
        augment = None
        if self.augment:
            padding = max(1, image_side // 8)
            augment = data.crop_and_flip(padding=padding, flip=self.flip)
        return training.Training(epochs, self.batch_size, self.learning_rate, self.seed, augment)


def loss_names():
    """The names of the losses that compare predictions and need no arguments."""
    return [
        name
        for name in losses.__all__
        if getattr(getattr(losses, name), "on_logits", False) and not _needed(name)
    ]


def _needed(name):
    """The arguments that a loss cannot do without."""
    return [
        argument
        for argument, parameter in inspect.signature(getattr(losses, name)).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]


def loss_named(name, temperature=None):
    """The loss of that name, with that temperature.

    Args:
        name: A class of `keras_distill.losses` that compares predictions.
        temperature: None for the class's default.

    Raises:
        ValueError: If there is no such loss, it has no temperature, or asks for more than the
            command line can say.
    """
    known = loss_names()
    if name not in known:
        in_python = name in losses.__all__ and inspect.isclass(getattr(losses, name))
        near = _checks.nearest_names(str(name), known)
        hint = f"Nearest: {', '.join(near)}. " if near else ""
        if in_python:
            hint = "That one needs arguments or layers: wire it in Python, with kd.Term. "
        raise ValueError(
            _checks.message("`loss` to be one that `keras-distill losses` lists", "loss", name)
            + f" {hint}".rstrip()
        )
    found = getattr(losses, name)
    if temperature is None:
        return found()
    if "temperature" not in inspect.signature(found).parameters:
        raise ValueError(
            _checks.message(f"no `temperature` for {name}", "temperature", temperature)
            + " It has none: leave the option out."
        )
    return found(temperature=temperature)


def distil(settings, out="runs/train", restart=False, verbose=1, say=print):
    """Trains the teacher where it is a name, distils the student, and reports.

    All that can be wrong is looked at first. A second call goes on where the first stopped.

    Args:
        settings: A `Settings`.
        out: The run's folder.
        restart: Whether to remove an earlier run in the folder first.
        verbose: Of Keras's `fit`.
        say: Called with each line for the person who waits.

    Returns:
        What `results.json` holds.
    """
    loss = loss_named(settings.loss, settings.temperature)
    split = data.load(
        settings.dataset,
        settings.data_dir,
        image_size=settings.image_size,
        limit=settings.limit,
        seed=settings.seed,
    )
    train, test = split.train, split.test
    shape, classes = train.image_shape, train.class_count
    own = settings.training(settings.epochs, min(shape[:2]))
    teachers = settings.training(settings.teacher_epochs or settings.epochs, min(shape[:2]))

    def network(name, seed):
        return networks.get(name, shape, classes, seed)

    # What is wrong with a network or the wiring is told before anything is trained.
    candidates = [network(name, settings.seed) for name in (settings.teacher, settings.student)]
    _distiller(*candidates, loss, settings).compile(loss=networks.label_loss(candidates[1]))

    run = reporting.RunFolder(out)
    if training.begin(run, {"command": "train", **dataclasses.asdict(settings)}, restart):
        say(f"Going on with the run in {run.path}: what is finished is not trained again.")

    def fit(name, file, make, how):
        say(f"{name}: {len(train)} images, epochs: {how.epochs}")
        log = {"model": name, "seed": settings.seed}
        return training.train(run, file, make, train, how, log=log, verbose=verbose)

    def make_teacher():
        seeds = [settings.seed + MEMBER_SEEDS * (k + 1) for k in range(settings.ensemble)]
        members = [network(settings.teacher, seed) for seed in seeds]
        if settings.ensemble == 1:
            return members[0], members[0]
        for k, member in enumerate(members, start=1):
            member.name = f"member{k}"
        teacher = EnsembleTeacher(members, name="teacher")
        return teacher, teacher

    if networks.is_file(settings.teacher):
        teacher, teacher_path = candidates[0], settings.teacher
    else:
        teacher = fit("teacher", "teacher", make_teacher, teachers)
        teacher_path = training.model_path(run, "teacher")

    def make_student():
        student = network(settings.student, settings.seed)
        return _distiller(teacher, student, loss, settings), student

    def make_baseline():
        student = network(settings.student, settings.seed)
        return student, student

    trained = {"student distilled": fit("student distilled", "student", make_student, own)}
    if settings.baseline:
        alone = fit("student alone", "student_alone", make_baseline, own)
        trained = {"student alone": alone, **trained}

    said = evaluation.probabilities(teacher, test.images)
    teacher_scores = [evaluation.scores(said, test.labels)]
    models = [run_results.entry("teacher", teacher, teacher_path, teacher_scores)]
    for name, student in trained.items():
        file = "student_alone" if name == "student alone" else "student"
        found = evaluation.probabilities(student, test.images)
        models.append(
            run_results.entry(
                name,
                student,
                training.model_path(run, file),
                [evaluation.scores(found, test.labels, said)],
            )
        )
    temperature = getattr(loss, "temperature", None)
    run_results.write_pictures(run, teacher, trained["student distilled"], test, temperature)
    results = {
        "title": f"{settings.student} distilled from {settings.teacher} on {settings.dataset}",
        "dataset": run_results.dataset_entry(split),
        "class_names": list(test.class_names),
        "models": models,
    }
    if settings.baseline:
        results["gain"] = {"baseline": "student alone", "model": "student distilled"}
    path, missing = run_results.finish(run, results)
    run_results.show(results, say)
    say(f"Student: {training.model_path(run, 'student')}")
    say(f"Report: {path}" if path else f"No report: {missing}")
    return results


def _distiller(teacher, student, loss, settings):
    term = Term(loss, weight=settings.weight)
    return Distiller(teacher, student, term, student_loss_weight=settings.label_weight)
