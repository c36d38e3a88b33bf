"""`keras-distill quantize`: a distilled student trained on in simulated int8, held against itself.

Three files side by side: the float student, its int8 file as the converter makes it after the
training, and that of the student that was distilled in simulated int8.
"""

import dataclasses
import pathlib

import keras

from keras_distill import _checks
from keras_distill import data
from keras_distill import export
from keras_distill import losses
from keras_distill import reporting
from keras_distill.models.distiller import Distiller
from keras_distill.recipes import evaluation
from keras_distill.recipes import networks
from keras_distill.recipes import results as run_results
from keras_distill.recipes import training
from keras_distill.recipes.settings import shifts

SCALE = 255.0
LABEL_WEIGHT = 0.1
FLOAT, AFTER, AWARE = "float", "int8 after training", "int8-aware"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `keras-distill quantize` is told; stands in the run's `settings.json`.

    Attributes:
        student, teacher: `.keras` files, both trained.
        dataset, data_dir, image_size, limit, test_limit: As in `kd.data.load`.
        temperature: Of the soft targets.
        epochs: Epochs in simulated int8.
        batch_size: Images in a batch.
        learning_rate: Adam's first; it falls to 0 along half a cosine.
        seed: Of the order of the images and their augmentation.
        augment, flip: Whether training images are shifted at random, and mirrored.
    """

    student: str
    teacher: str
    dataset: str
    data_dir: str | None = None
    image_size: int | None = None
    limit: int | None = None
    test_limit: int | None = None
    temperature: float = 4.0
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 5e-4
    seed: int = 0
    augment: bool = False
    flip: bool = True

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            _checks.positive_integer(name, getattr(self, name))
        for name in ("temperature", "learning_rate"):
            _checks.positive(name, getattr(self, name))
        for name in ("student", "teacher"):
            if not networks.is_file(getattr(self, name)):
                raise ValueError(
                    _checks.message("a trained `.keras` file", name, getattr(self, name))
                )


def quantize(settings, out="runs/quantize", restart=False, verbose=1, say=print):
    """Distils a trained student again in simulated int8, writes both int8 files, and compares.

    A second call goes on where the first stopped.

    Args:
        settings: A `Settings`.
        out: The run's folder: `models/student_int8.tflite` and `student_int8_after.tflite`.
        restart: Whether to remove an earlier run in the folder first.
        verbose: Of Keras's `fit`.
        say: Called with each line for the person who waits.

    Returns:
        What `results.json` holds: that of `kd.reporting.report`, its three `models` "float",
        "int8 after training" and "int8-aware".

    Raises:
        ValueError: If a file does not fit the data, or the student has a layer whose int8 kernel
            is not simulated.
    """
    student, teacher = (networks.load(path) for path in (settings.student, settings.teacher))
    split = data.load(
        settings.dataset,
        settings.data_dir,
        image_size=settings.image_size or evaluation.asked_size(student),
        limit=settings.limit,
        test_limit=settings.test_limit,
    )
    train, test = split.train, split.test
    for path, network in ((settings.student, student), (settings.teacher, teacher)):
        networks.check_fits(network, train.image_shape, train.class_count, path)
    images = train.images.astype("float32") / SCALE
    plan = _plan(settings, teacher, export.quantization_aware(student, images), train)
    plan.model.compile(**plan.compile)
    run = reporting.RunFolder(out)
    if training.begin(run, {"command": "quantize", **dataclasses.asdict(settings)}, restart):
        say(f"Going on with the run in {run.path}: what is finished is not trained again.")
    say(f"In simulated int8: {len(train):,} images, epochs: {settings.epochs}")
    log = {"model": AWARE, "seed": settings.seed}
    aware = training.carry_out(run, "student_int8", plan, log=log, verbose=verbose)
    folder = training.model_path(run, "student_int8").parent
    files = {
        FLOAT: pathlib.Path(settings.student),
        AFTER: export.tflite(
            student, folder / "student_int8_after.tflite", "int8", representative_data=images
        ),
        AWARE: export.tflite(aware, folder / "student_int8.tflite", "int8"),
    }
    said = evaluation.probabilities(teacher, test.images)
    models = []
    for name, path in files.items():
        opened = evaluation.open_model(path)
        found = evaluation.probabilities(opened, test.images)
        scores = [evaluation.scores(found, test.labels, said)]
        models.append(run_results.entry(name, opened, path, scores, evaluation.latency_ms(path)))
    results = {
        "title": f"{pathlib.Path(settings.student).stem} in int8 on {train.name}",
        "dataset": run_results.dataset_entry(split),
        "class_names": list(test.class_names),
        "models": models,
    }
    path, missing = run_results.finish(run, results)
    run_results.show(results, say)
    say(f"Int8 student: {files[AWARE]}")
    say(f"Report: {path}" if path else f"No report: {missing}")
    return results


def _plan(settings, teacher, aware, train):
    """The `training.Plan` of the training in simulated int8."""

    def batches(start_epoch):
        side = min(train.image_shape[:2])
        return data.batches(
            train.images,
            train.labels,
            settings.batch_size,
            epochs=settings.epochs,
            start_epoch=start_epoch,
            augment=shifts((side, side), settings.flip) if settings.augment else None,
            seed=settings.seed,
        )

    distiller = Distiller(
        teacher, aware, losses.SoftTargets(settings.temperature), student_loss_weight=LABEL_WEIGHT
    )
    steps = data.steps_per_epoch(len(train), settings.batch_size)
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.epochs * steps)
    compile = {
        "optimizer": keras.optimizers.Adam(rate),
        "loss": networks.label_loss(aware),
        "metrics": ["accuracy"],
    }
    forwards = training.Forwards(student=len(train), frozen=len(train))
    return training.Plan(distiller, aware, batches, compile, settings.epochs, steps, forwards)
