"""The commands that make a network ready for a phone: `keras-distill export | quantize`."""

import sys
from typing import Annotated

import typer

from keras_distill.cli_options import Augment
from keras_distill.cli_options import DataDir
from keras_distill.cli_options import Dataset
from keras_distill.cli_options import Flip
from keras_distill.cli_options import Format
from keras_distill.cli_options import ImageSize
from keras_distill.cli_options import OptionalDataset
from keras_distill.cli_options import Out
from keras_distill.cli_options import Quantization
from keras_distill.cli_options import Restart
from keras_distill.cli_options import Seed
from keras_distill.cli_options import TestLimit
from keras_distill.cli_options import maybe
from keras_distill.cli_start import start


def export(
    model: Annotated[str, typer.Argument(help="A .keras file, or for tflite a SavedModel folder.")],
    out: maybe(str, "What to write. Default: beside the model, by its name.") = None,
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.tflite,
    quantize: Annotated[
        Quantization | None, typer.Option(help="Smaller numbers. Default: float32.")
    ] = None,
    int8_io: Annotated[
        bool, typer.Option("--int8-io", help="With int8: inputs and outputs are int8 too.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Fixed batch; 0 leaves it open.", min=0)] = 1,
    dataset: OptionalDataset = None,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    limit: TestLimit = None,
):
    """Write a network as a .tflite file or a SavedModel, and check it on a data set.

    The check runs the file and raises an error (status 1) where it strays from the network:
    float32 by more than 1e-4, float16 in 1 %, int8 in 2 % of its answers.

    \b
    keras-distill export student.keras
    keras-distill export student.keras --quantize int8 --dataset digits
    keras-distill export student.keras --format saved-model
    """  # noqa: D301
    start()
    from keras_distill.recipes.exporting import write

    path, report = write(
        model,
        out,
        format.value,
        quantize.value if quantize else None,
        int8_io,
        batch_size or None,
        dataset,
        data_dir,
        image_size,
        limit,
    )
    print(f"Written: {path}")
    print(report.summary() if report else "Not checked: name a data set with --dataset.")


def quantize(
    student: Annotated[str, typer.Argument(help="A trained .keras file.")],
    teacher: Annotated[str, typer.Option(help="A trained .keras file.")],
    dataset: Dataset,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    limit: maybe(int, "Use so many training images.") = None,
    test_limit: TestLimit = None,
    epochs: maybe(int, "Epochs in simulated int8. Default: 10.") = None,
    batch_size: maybe(int, "Images in a batch. Default: 64.") = None,
    learning_rate: maybe(float, "Adam's first; it falls to 0. Default: 5e-4.") = None,
    temperature: maybe(float, "Of the soft targets. Default: 4.") = None,
    seed: Seed = 0,
    augment: Augment = None,
    flip: Flip = None,
    out: Out = "runs/quantize",
    restart: Restart = False,
):
    """Distil a trained student again in simulated int8, and compare the files.

    Shows side by side the float student, its int8 file made after the training, and the int8
    file of the student that was trained as that file computes. The same command goes on where an
    earlier one stopped.

    \b
    keras-distill quantize student.keras --teacher big.keras --dataset cifar10
    """  # noqa: D301
    given = {name: value for name, value in locals().items() if value is not None}
    start(deterministic=True)
    from keras_distill.recipes import quantizing

    out, restart = given.pop("out"), given.pop("restart")
    verbose = 1 if sys.stdout.isatty() else 2
    quantizing.quantize(quantizing.Settings(**given), out, restart, verbose)
