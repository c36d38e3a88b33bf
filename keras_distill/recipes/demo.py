"""The demo: real digits, a teacher ensemble, a small student alone and distilled, TF Lite files.

Setting: 400 training and 1,397 test images of scikit-learn's handwritten digits; five CNNs of
32 channels, trained together; a CNN of 4 channels. Students with the same seed have the same
initial weights and the same order of batches, so that their difference is the teacher's doing.

The students' learning rate was chosen on images held out of the 400, 300 to train on and 100 to
choose by, over ten splits (`scripts/choose_demo_settings.py --seeds 10`); no test image took part.
The student alone chooses, and the distilled one follows: the smallest rate within one standard
error of the best. Held-out accuracy in percent, with its standard error:

| rate | 0.005 | 0.01 | 0.02 | 0.04 | 0.08 |
| --- | --- | --- | --- | --- | --- |
| alone | 85.1 +- 1.1 | 85.4 +- 1.4 | 83.7 +- 2.6 | 84.5 +- 2.3 | 86.0 +- 2.1 |
| distilled | 88.7 +- 0.9 | 89.2 +- 1.1 | 90.4 +- 0.8 | 89.5 +- 1.0 | 91.3 +- 1.0 |
"""

import contextlib
from typing import Any

import keras

from keras_distill import _checks
from keras_distill import data
from keras_distill import export
from keras_distill import reporting
from keras_distill._types import PathLike
from keras_distill._types import Say
from keras_distill.backbones import small_cnn
from keras_distill.losses import SoftTargets
from keras_distill.models.distiller import Distiller
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.terms import Term
from keras_distill.recipes import evaluation
from keras_distill.recipes import networks
from keras_distill.recipes import results as run_results
from keras_distill.recipes import tasks
from keras_distill.recipes import training

MEMBERS = 5
TEACHER_CHANNELS = 32
STUDENT_CHANNELS = 4
BATCH_SIZE = 25
TEACHER_RATE = 1e-3
STUDENT_RATE = 5e-3
TEMPERATURE = 4.0
SOFT_WEIGHT = 0.9
LABEL_WEIGHT = 0.1
MEMBER_SEEDS = 1000  # above the students'
TEACHER = f"teacher, {MEMBERS} CNNs"
ALONE = "student alone"
DISTILLED = "student distilled"
QUANTIZATIONS = (None, "float16", "dynamic", "int8")


def demo(
    out: PathLike = "runs/demo",
    seeds: int = 5,
    epochs: int = 40,
    seed: int = 0,
    restart: bool = False,
    say: Say = print,
) -> tuple[dict[str, Any], list[str]]:
    """Trains, compares, exports and reports; a second call goes on where the first stopped.

    Args:
        out: The run's folder.
        seeds: Number of students of each kind.
        epochs: Epochs of every training.
        seed: The first student's seed; the teacher's members follow from it too.
        restart: Whether to remove an earlier run in the folder first.
        say: Called with each line for the person who waits.

    Returns:
        `(results, strays)`: what `results.json` holds, and a sentence for each exported file
        that strays from its network beyond the limits of `kd.export.check_parity`.

    Raises:
        ImportError: If scikit-learn or the LiteRT interpreter is missing.
        ValueError: If an argument is out of its range, or the folder holds another run.
    """
    _checks.positive_integer("seeds", seeds)
    _checks.positive_integer("epochs", epochs)
    tasks.check_seed(seed)
    digits = data.load("digits")
    run = reporting.RunFolder(out)
    settings = {"command": "demo", "seeds": seeds, "epochs": epochs, "seed": seed}
    if training.begin(run, settings, restart):
        say(f"Going on with the run in {run.path}: what is finished is not trained again.")
    with _progress() as progress:
        teacher, alone, distilled = _train_all(run, digits.train, settings, progress)
    say("Measuring, and exporting the distilled student of the first seed.")
    results, strays = _measure(run, digits, settings, teacher, alone, distilled)
    shown = {TEACHER: teacher, ALONE: alone[0], DISTILLED: distilled[0]}
    path, missing = run_results.finish(run, results, shown)
    run_results.show(results, say)
    say(f"Report: {path}" if path else f"No report: {missing}")
    return results, strays


def _train_all(run, train, settings, progress):
    """The teacher, and the lists of students alone and distilled."""
    epochs, first = settings["epochs"], settings["seed"]

    def trained(name, file, make, rate, seed):
        task = progress.add_task(name, total=epochs, note="")
        network = training.train(
            run,
            file,
            make,
            train,
            training.Training(epochs, BATCH_SIZE, rate, seed),
            log={"model": name.partition(", seed")[0], "seed": seed},
            callbacks=[run_results.Progress(progress, task)],
        )
        progress.update(task, completed=epochs)
        return network

    def ensemble():
        members = []
        for k in range(MEMBERS):
            keras.utils.set_random_seed(MEMBER_SEEDS * (k + 1) + first)
            members.append(small_cnn(channels=TEACHER_CHANNELS, name=f"member{k + 1}"))
        teacher = EnsembleTeacher(members, name="teacher")
        return teacher, teacher

    teacher = trained(TEACHER, "teacher", ensemble, TEACHER_RATE, first)

    def student(seed):
        keras.utils.set_random_seed(seed)
        return small_cnn(channels=STUDENT_CHANNELS, name="student")

    def alone(seed):
        model = student(seed)
        return model, model

    def distilled(seed):
        model = student(seed)
        term = Term(SoftTargets(TEMPERATURE), weight=SOFT_WEIGHT)
        return Distiller(teacher, model, term, student_loss_weight=LABEL_WEIGHT), model

    students = {ALONE: [], DISTILLED: []}
    for seed in range(first, first + settings["seeds"]):
        for name, make in ((ALONE, alone), (DISTILLED, distilled)):
            file = f"{name.replace(' ', '_')}_seed{seed}"
            students[name].append(
                trained(
                    f"{name}, seed {seed}", file, lambda m=make, s=seed: m(s), STUDENT_RATE, seed
                )
            )
    return teacher, students[ALONE], students[DISTILLED]


def _measure(run, digits, settings, teacher, alone, distilled):
    """`(results, strays)` of the trained networks."""
    test, first = digits.test, settings["seed"]
    said = evaluation.probabilities(teacher, test.images)

    def scores(trained, reference=said):
        found = [evaluation.probabilities(network, test.images) for network in trained]
        return [evaluation.scores(one, test.labels, reference) for one in found]

    student = distilled[0]
    exports, strays = _export(run, digits, student)
    teacher_file = export.tflite(teacher, run.path / "models" / "teacher.tflite")
    teacher_ms = evaluation.latency_ms(teacher_file)
    student_ms = exports[1]["latency_ms"]  # float32; both students are the same network
    files = {name: f"{name.replace(' ', '_')}_seed{first}" for name in (ALONE, DISTILLED)}
    models = [
        run_results.entry(
            TEACHER,
            teacher,
            training.model_path(run, "teacher"),
            scores([teacher], None),
            teacher_ms,
            "teacher",
        )
    ]
    for name, students, role in ((ALONE, alone, "alone"), (DISTILLED, distilled, "distilled")):
        path = training.model_path(run, files[name])
        found = scores(students)
        models.append(run_results.entry(name, student, path, found, student_ms, role))
    run_results.write_pictures(run, teacher, student, test, TEMPERATURE)
    results = {
        "title": "Knowledge distillation on handwritten digits",
        "command": "keras-distill demo "
        + " ".join(f"--{name} {settings[name]}" for name in ("seeds", "epochs", "seed")),
        "dataset": run_results.dataset_entry(digits),
        "class_names": list(test.class_names),
        "models": models,
        "gain": {"baseline": ALONE, "model": DISTILLED},
        "exports": exports,
        "exported": f"{DISTILLED}, seed {first}: the first seed, whatever its accuracy",
    }
    return results, strays


def _export(run, digits, student):
    """SavedModel and `.tflite` files of the student, each held against the network."""
    scale = 255.0
    train, test = (part.images.astype("float32") / scale for part in (digits.train, digits.test))
    folder = run.path / "models"
    networks.save(student, folder / "student.keras")
    paths = [export.saved_model(student, folder / "student_saved_model")]
    for quantize in QUANTIZATIONS:
        path = folder / f"student_{quantize or 'float32'}.tflite"
        paths.append(export.tflite(student, path, quantize, representative_data=train))
    entries, strays = [], []
    for path in paths:
        try:
            found = export.check_parity(student, path, test, labels=digits.test.labels)
        except export.ParityError as error:
            found = error.report
            strays.append(str(error))
        entries.append(
            {
                "file": f"models/{path.name}",
                "quantization": found.quantization,
                "bytes": found.bytes,
                "latency_ms": found.latency_ms,
                "accuracy": found.accuracy_file,
                "agreement": found.agreement,
                "largest_difference": found.largest_difference,
            }
        )
    return entries, strays


@contextlib.contextmanager
def _progress():
    """A bar for each training, with its time; without a terminal, one picture at the end."""
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.completed}/{task.total} epochs"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[note]}"),
    )
    with progress.Progress(*columns) as bars:
        yield bars
