"""The experiment on compression: accuracy, bytes and latency of a teacher, students, int8 files."""

import dataclasses
import pathlib

import keras
import numpy as np

from keras_distill import export
from keras_distill.experiments.claims import Claim
from keras_distill.experiments.claims import Measure
from keras_distill.experiments.claims import alike
from keras_distill.experiments.claims import larger
from keras_distill.experiments.claims import recalled
from keras_distill.experiments.claims import smaller
from keras_distill.experiments.definitions import Experiment
from keras_distill.experiments.definitions import Row
from keras_distill.experiments.definitions import file_name
from keras_distill.experiments.definitions import rows
from keras_distill.experiments.definitions import taught_by
from keras_distill.experiments.definitions import trained
from keras_distill.experiments.mutual import HERE
from keras_distill.experiments.mutual import as_large
from keras_distill.experiments.mutual import scales
from keras_distill.experiments.pages import column
from keras_distill.losses.response import SoftTargets
from keras_distill.models.distiller import Distiller
from keras_distill.recipes import evaluation
from keras_distill.recipes import networks
from keras_distill.recipes import paper
from keras_distill.recipes import running
from keras_distill.recipes import schemes
from keras_distill.recipes.schemes import Options
from keras_distill.recipes.training import Forwards
from keras_distill.reporting import drawing_rows
from keras_distill.reporting import tables
from keras_distill.reporting.runs import read_object

SCALE = 255.0
TEMPERATURE, LABEL_WEIGHT = 4.0, 0.1
AWARE_RATE, AWARE_SHARE = 5e-4, 6  # Adam's first, as in `recipes.quantizing`; of the epochs
OF_NETWORK = ("best_accuracy", "best_epoch", "loss", "calibration_error")
BYTES = Measure("bytes", "bytes", 1.0)
HINTON = recalled("Hinton et al., 2015, https://arxiv.org/abs/1503.02531")
SMALL = Options(student="small-8-16-32", teacher="small-32-64-128", ensemble=1, looks=5)
FULL = Options(setting="paper", student="resnet20", teacher="resnet56")
# The students beside the one of the options, by setting.
OTHERS = {
    "small": {"small": "small-4-8-16", "large": "small-16-32-64"},
    "paper": {"small": "resnet8", "large": "resnet32"},
}
COMPARED = {"small": "smaller", "large": "larger"}


def file_of(place, network, name, quantize=None, ranges=True):
    """Writes a network's `.tflite` file and measures it: accuracy, bytes and latency.

    Args:
        place: The `Place`.
        network: A `keras.Model`.
        name: Of the file, without ending.
        quantize: None or "int8".
        ranges: Whether int8 ranges are measured on the training images; a network that was
            trained in simulated int8 has its own.
    """
    split = place.load()
    images = split.train.images.astype("float32") / SCALE if quantize and ranges else None
    path = pathlib.Path(place.run) / "files" / f"{name}.tflite"
    path.parent.mkdir(parents=True, exist_ok=True)
    path = export.tflite(network, path, quantize, representative_data=images)
    found = evaluation.probabilities(evaluation.open_model(path), split.test.images)
    return {
        "accuracy": float(np.mean(found.argmax(axis=-1) == split.test.labels)),
        "bytes": evaluation.size(path),
        "latency_ms": evaluation.latency_ms(path),
    }


def _as_file(quantize=None, ranges=False):
    """What a row's network is worth as a file; its accuracy takes the place of the network's."""

    def after(place, row, seed):
        network = networks.load(place.model(row.id, seed))
        return file_of(place, network, file_name(row.id, seed), quantize, ranges)

    return after


_distilled = taught_by("teacher", paper.distillation)


def _further(place, task, aware):
    """The student of the row "distillation", distilled on: in simulated int8, or as it is."""
    teacher = networks.load(place.model("teacher", task.seed))
    student = networks.load(place.model("distillation", task.seed))
    if aware:
        student = export.quantization_aware(student, task.images.images.astype("float32") / SCALE)
    loss = SoftTargets(TEMPERATURE)
    model = Distiller(teacher, student, loss, student_loss_weight=LABEL_WEIGHT)
    plan = task.plan(model, student, forwards=Forwards(student=task.count, frozen=task.count))
    rate = keras.optimizers.schedules.CosineDecay(AWARE_RATE, plan.epochs * plan.steps)
    compile = {**plan.compile, "optimizer": keras.optimizers.Adam(rate)}
    return dataclasses.replace(plan, compile=compile)


def _fewer_epochs(options):
    own = schemes.SMALL if options.setting == "small" else schemes.named("distillation").paper
    epochs = (options.epochs or own.epochs) // AWARE_SHARE
    return dataclasses.replace(options, epochs=max(1, epochs))


def _distilled_on(aware, after):
    return trained("distillation", _further, change=_fewer_epochs, after=after, aware=aware)


def _int8_after(place, row, seed):
    """The record of the row "distillation" as an int8 file, without further training."""
    name = file_name("distillation", seed)
    record = read_object(running.record_path(place.run, name))
    network = networks.load(place.model("distillation", seed))
    found = place.stored(
        file_name(row.id, seed),
        lambda: file_of(place, network, file_name(row.id, seed), "int8"),
    )
    kept = {key: value for key, value in record.items() if key not in OF_NETWORK}
    nothing = {"epochs": 0, "steps": 0, "images": dict.fromkeys(record["images"], 0)}
    return {**kept, **nothing, "seed": seed, "seconds": 0.0, **found}


def _other(size):
    """The options of a row with a smaller or larger student."""

    def change(options):
        return dataclasses.replace(options, student=OTHERS[options.setting][size])

    return change


def _sized(size):
    alone = trained("baseline", change=_other(size), after=_as_file())
    taught = trained("distillation", _distilled, change=_other(size), after=_as_file())
    return (
        Row(f"baseline_{size}", f"A {COMPARED[size]} student alone.", alone, seeds=3),
        Row(
            f"distillation_{size}",
            f"A {COMPARED[size]} student, distilled.",
            taught,
            needs=("teacher",),
            seeds=3,
        ),
    )


def _figure(results):
    return drawing_rows.against_costs(
        [_point(found) for found in results["comparison"]],
        {"bytes": "kB of the file", "latency_ms": "milliseconds an image"},
        "test accuracy in %",
    )


def _point(found):
    mean, error = tables.mean_and_error([100 * value for value in found["accuracy"]["values"]])
    size, latency = (
        tables.mean_and_error([record[key] for record in found["records"]])[0]
        for key in ("bytes", "latency_ms")
    )
    costs = {"bytes": size / 1000, "latency_ms": latency}
    return {"name": found["name"], "mean": mean, "error": error, "costs": costs}


COMPRESSION = Experiment(
    name="compression",
    title="Compression: accuracy, bytes and latency",
    question="What does a student keep of its teacher's accuracy at which size and speed, as a TF "
    "Lite file in float32 and in int8?",
    scales=scales(5, 16, SMALL, FULL),
    measure=rows(
        Row("baseline", "The student alone.", trained("baseline", after=_as_file())),
        Row(
            "teacher",
            "The teacher.",
            trained("baseline", change=as_large, after=_as_file()),
        ),
        Row(
            "distillation",
            "The student, distilled from it.",
            trained("distillation", _distilled, after=_as_file()),
            needs=("teacher",),
        ),
        Row(
            "int8_after",
            "The distilled student as an int8 file, without further training.",
            _int8_after,
            needs=("distillation",),
        ),
        Row(
            "int8_longer",
            "The distilled student, distilled on in float for as many epochs as quantization_aware "
            "and at its rate, as an int8 file.",
            _distilled_on(False, _as_file("int8", ranges=True)),
            needs=("distillation",),
        ),
        Row(
            "quantization_aware",
            "The distilled student, distilled on in simulated int8, as an int8 file.",
            _distilled_on(True, _as_file("int8")),
            needs=("distillation",),
        ),
        *_sized("small"),
        *_sized("large"),
    ),
    claims=(
        Claim(
            "A student distilled from a larger network is better than the same student alone.",
            HINTON,
            larger("distillation", "baseline"),
        ),
        Claim(
            "An int8 file keeps the accuracy of its float file (within a point).",
            HERE,
            alike("int8_after", "distillation", 1.0),
        ),
        Claim(
            "Trained on in simulated int8, a file is better than one trained on as long in float "
            "and quantized after that.",
            HERE,
            larger("quantization_aware", "int8_longer"),
        ),
        Claim(
            "An int8 file is smaller than the float file of the same network.",
            HERE,
            smaller("int8_after", "distillation", BYTES),
        ),
        Claim(
            "A distilled student is as good as a larger one alone (within a point).",
            HERE,
            alike("distillation", "baseline_large", 1.0),
        ),
    ),
    notes=(
        "Accuracy is that of the `.tflite` file. Latency is the median of one image in LiteRT on "
        "one thread of the machine that made the table: compare the rows with each other.",
        "The rows in int8 begin from the row distillation; int8_longer and quantization_aware "
        "train for a sixth of its epochs more, which their images say.",
    ),
    columns={
        "kB": column("bytes", 1, 1e-3),
        "ms an image": column("latency_ms", 3),
    },
    figure=_figure,
)
