"""`keras-distill train`: a teacher, or several, and a student distilled from it."""

import dataclasses
from typing import Any

import keras

from keras_distill import _checks
from keras_distill import data
from keras_distill import reporting
from keras_distill._types import PathLike
from keras_distill._types import Say
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.recipes import evaluation
from keras_distill.recipes import loss_names
from keras_distill.recipes import loss_terms
from keras_distill.recipes import networks
from keras_distill.recipes import results as run_results
from keras_distill.recipes import tasks
from keras_distill.recipes import training
from keras_distill.recipes.settings import shifts

MEMBER_SEEDS = 1000  # above the student's


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `keras-distill train` is told; stands in the run's `settings.json`.

    Attributes:
        dataset, data_dir, image_size, limit: As in `kd.data.load`.
        teacher: A network's name, trained first, or a `.keras` file, taken as it is.
        ensemble: Number of teachers that are trained together and averaged.
        student: A network's name or a `.keras` file to start from.
        loss: A class of `keras_distill.losses`.
        temperature: The loss's; None for that of `loss_terms.USES`, or else its own default.
        weight: Factor of the distillation loss; None for the papers' (`loss_terms.USES`).
        label_weight: Factor of the label loss; None for the papers' beside that loss.
        teacher_layer, student_layer: Paths of the layers that the loss compares, separated by
            commas; None for those in `loss_terms.USES`.
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
    weight: float | None = None
    label_weight: float | None = None
    teacher_layer: str | None = None
    student_layer: str | None = None
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
        tasks.check_seed(self.seed)
        for name in ("weight", "label_weight"):
            if getattr(self, name) is not None:
                _checks.non_negative(name, getattr(self, name))
        if self.ensemble > 1 and networks.is_file(self.teacher):
            raise ValueError(
                f"Expected --ensemble only with a teacher that is trained here. Received: "
                f"ensemble={self.ensemble}, teacher={self.teacher!r}."
            )

    def training(self, epochs: int, image_side: int) -> training.Training:
        """The `Training` of one network."""
        augment = None
        if self.augment:
            augment = shifts((image_side, image_side), self.flip)
        return training.Training(epochs, self.batch_size, self.learning_rate, self.seed, augment)


def distil(
    settings: Settings,
    out: PathLike = "runs/train",
    restart: bool = False,
    verbose: int | str = 1,
    say: Say = print,
) -> dict[str, Any]:
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
    loss_names.check(settings.loss, settings.temperature)
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
    wiring = loss_terms.wired(settings, *candidates, train)
    steps = data.steps_per_epoch(len(train), own.batch_size)

    def distiller(teacher, student):
        keras.utils.set_random_seed(settings.seed)  # for connectors and losses with layers
        return wiring.distiller(teacher, student, own.epochs, steps)

    distiller(*candidates).compile(loss=networks.label_loss(candidates[1]))

    run = reporting.RunFolder(out)
    told = {"command": "train", **dataclasses.asdict(settings), **wiring.settings()}
    if training.begin(run, told, restart):
        say(f"Going on with the run in {run.path}: what is finished is not trained again.")

    say(str(wiring))

    def fit(name, file, make, how, **options):
        say(f"{name}: {len(train)} images, epochs: {how.epochs}")
        log = {"model": name, "seed": settings.seed}
        return training.train(run, file, make, train, how, log=log, verbose=verbose, **options)

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
        return distiller(teacher, student), student

    def make_baseline():
        student = network(settings.student, settings.seed)
        return student, student

    staged = dataclasses.replace(own, epochs=sum(wiring.epochs(own.epochs)))
    distilled = fit("student distilled", "student", make_student, staged, ids=wiring.needs_ids)
    trained = {"student distilled": distilled}
    if settings.baseline:
        alone = fit("student alone", "student_alone", make_baseline, own)
        trained = {"student alone": alone, **trained}

    said = evaluation.probabilities(teacher, test.images)
    teacher_scores = [evaluation.scores(said, test.labels)]
    models = [run_results.entry("teacher", teacher, teacher_path, teacher_scores, role="teacher")]
    for name, student in trained.items():
        file = "student_alone" if name == "student alone" else "student"
        found = evaluation.probabilities(student, test.images)
        models.append(
            run_results.entry(
                name,
                student,
                training.model_path(run, file),
                [evaluation.scores(found, test.labels, said)],
                role="alone" if name == "student alone" else "distilled",
            )
        )
    temperature = getattr(wiring.loss(), "temperature", None)
    run_results.write_pictures(run, teacher, trained["student distilled"], test, temperature)
    results = {
        "title": f"{settings.student} distilled from {settings.teacher} on {settings.dataset}",
        "dataset": run_results.dataset_entry(split),
        "class_names": list(test.class_names),
        "models": models,
    }
    if settings.baseline:
        results["gain"] = {"baseline": "student alone", "model": "student distilled"}
    path, missing = run_results.finish(run, results, {"teacher": teacher, **trained})
    run_results.show(results, say)
    say(f"Student: {training.model_path(run, 'student')}")
    say(f"Report: {path}" if path else f"No report: {missing}")
    return results
