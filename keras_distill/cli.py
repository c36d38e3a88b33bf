"""The command line: `keras-distill demo | train | evaluate | compare | cache | ...`.

What a command does is in `keras_distill.recipes`; here are its options, its help and its errors.
"""

import os
import sys
from typing import Annotated

import typer

from keras_distill import _terminal
from keras_distill import cli_errors
from keras_distill._version import __version__
from keras_distill.cli_deploy import export
from keras_distill.cli_deploy import quantize
from keras_distill.cli_options import Augment
from keras_distill.cli_options import DataDir
from keras_distill.cli_options import Dataset
from keras_distill.cli_options import Ensemble
from keras_distill.cli_options import Epochs
from keras_distill.cli_options import Flip
from keras_distill.cli_options import ImageSize
from keras_distill.cli_options import Layers
from keras_distill.cli_options import Mixing
from keras_distill.cli_options import OptionalTrainingData
from keras_distill.cli_options import Out
from keras_distill.cli_options import Restart
from keras_distill.cli_options import Seed
from keras_distill.cli_options import Setting
from keras_distill.cli_options import Stored
from keras_distill.cli_options import Teacher
from keras_distill.cli_options import TestLimit
from keras_distill.cli_options import maybe
from keras_distill.cli_start import start

# What TensorFlow's C++ tells a user who debugs TensorFlow. Set before anything runs on it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _version(wanted):
    if wanted:
        print(f"keras-distill {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Goes anywhere.")
    ] = False,
):
    """Knowledge distillation for Keras 3: train a small model that knows what a large one knows.

    \b
    keras-distill demo             the whole path, on real digits, in minutes
    keras-distill train --dataset cifar10 --teacher resnet56 --student resnet20
    keras-distill evaluate student.keras --dataset cifar10
    keras-distill export student.keras --quantize int8 --dataset cifar10
    keras-distill COMMAND --help   options and examples of a command
    """  # noqa: D301


@app.command(short_help="The whole path on real digits: distil, export, report.")
def demo(
    out: Out = "runs/demo",
    seeds: Annotated[int, typer.Option(help="Students of each kind.")] = 5,
    epochs: Annotated[int, typer.Option(help="Epochs of every training.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed of the first student.")] = 0,
    restart: Restart = False,
):
    """Distil on real handwritten digits, compare, export to TF Lite, and report.

    Trains an ensemble of five CNNs on 400 images, then a student of 622 parameters alone and
    distilled, for several seeds. The same command goes on where an earlier one stopped.

    \b
    keras-distill demo
    keras-distill demo --seeds 2 --epochs 10 --out runs/quick
    """  # noqa: D301
    start(deterministic=True)
    from keras_distill.recipes.demo import demo as run

    _, strays = run(out, seeds, epochs, seed, restart)
    for sentence in strays:
        print(sentence, file=sys.stderr)
    if strays:
        raise typer.Exit(cli_errors.STRAYED)


@app.command(short_help="Train a teacher and distil a student, or follow a recipe.")
def train(
    dataset: Dataset,
    recipe: maybe(str, "One that `keras-distill recipes` lists.") = None,
    setting: Setting = None,
    teacher: maybe(
        str,
        "A network's name, trained first, or a .keras file, taken as it is. Names: "
        "small-CHANNELS, small-A-B-C, resnetDEPTH, resnetDEPTHx4, wrn-DEPTH-WIDTH; such as "
        "small-32, resnet20, resnet56, resnet32x4, wrn-16-2.",
    ) = None,
    student: maybe(str, "A network's name, or a .keras file to start from.") = None,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    limit: maybe(int, "Use so many training images.") = None,
    ensemble: Ensemble = None,
    loss: maybe(str, "A loss that `keras-distill losses` lists. Default: SoftTargets.") = None,
    temperature: maybe(
        float, "The loss's temperature. Default: the loss's own; 4 for DIST, JensenShannon."
    ) = None,
    weight: maybe(float, "Factor of the distillation loss. Default: the papers'.") = None,
    label_weight: maybe(float, "Factor of the label loss. Default: the papers'.") = None,
    teacher_layer: Layers = None,
    student_layer: Layers = None,
    epochs: Epochs = None,
    teacher_epochs: maybe(int, "Epochs of the teacher. Default: as many.") = None,
    batch_size: maybe(int, "Images in a batch. Default: 64, or the recipe's.") = None,
    learning_rate: maybe(float, "Default: 1e-3, Adam's, or the recipe's first.") = None,
    seed: Seed = 0,
    augment: Augment = None,
    flip: Flip = None,
    baseline: Annotated[
        bool | None,
        typer.Option("--baseline", help="Train the same student without teacher too, to compare."),
    ] = None,
    out: Out = "runs/train",
    restart: Restart = False,
):
    """Train by a recipe, or train a teacher (unless it is a file) and distil a student from it.

    Images reach the networks as float32 in 0..1. The run's folder holds settings.json,
    metrics.jsonl, results.json, report.html and the models. The same command goes on where an
    earlier one stopped, even one that was killed, and ends with the same weights.

    \b
    keras-distill train --dataset digits --teacher small-32 --student small-4
    keras-distill train --dataset cifar10 --teacher resnet56 --ensemble 3 \\
        --student resnet20 --augment
    keras-distill train --dataset digits --teacher small-32 --student small-4 \\
        --loss Hint
    keras-distill train --dataset photos/ --image-size 64 --teacher big.keras \\
        --student small-16
    keras-distill train --dataset fashion_mnist --limit 1000 --recipe mutual
    keras-distill train --dataset cifar100 --recipe dlb --setting paper
    """  # noqa: D301
    given = dict(locals())
    start(deterministic=True)
    from keras_distill.recipes import commands

    verbose = 1 if sys.stdout.isatty() else 2  # Keras's bar moves on a terminal alone
    commands.train(given, given.pop("out"), given.pop("restart"), verbose)


@app.command(short_help="Measure a network or an exported file on test images.")
def evaluate(
    model: Annotated[str, typer.Argument(help="A .keras or .tflite file, or a SavedModel folder.")],
    dataset: Dataset,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    limit: TestLimit = None,
    teacher: Teacher = None,
):
    """Measure a network on the test images of a data set: accuracy, loss, calibration.

    \b
    keras-distill evaluate student.keras --dataset digits
    keras-distill evaluate int8.tflite --dataset digits --teacher teacher.keras
    """  # noqa: D301
    given = dict(locals())
    _compare({"models": [given.pop("model")], **given})


@app.command(short_help="Show networks side by side, or train recipes and compare.")
def compare(
    dataset: Dataset,
    models: Annotated[
        list[str] | None, typer.Argument(help=".keras or .tflite files, or SavedModel folders.")
    ] = None,
    recipes: Annotated[
        list[str] | None,
        typer.Option("--recipe", help="Train this; give it again for each. The first is the base."),
    ] = None,
    seeds: maybe(int, "Trainings of each recipe. Default: 5.") = None,
    seed: maybe(int, "The first seed. Default: 0.") = None,
    setting: Setting = None,
    budget: maybe(
        str,
        "images: recipes that forward each image twice get half the epochs; epochs: all get "
        "as many. Default: images.",
    ) = None,
    student: maybe(str, "Of recipes: a network's name.") = None,
    teacher: maybe(str, "File whose answers files are held against; a recipe's teacher.") = None,
    ensemble: Ensemble = None,
    epochs: Epochs = None,
    augment: Augment = None,
    flip: Flip = None,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    limit: maybe(int, "Use so many test images; of recipes, training images.") = None,
    test_limit: maybe(int, "Of recipes: test images.") = None,
    out: Out = "runs/compare",
    restart: Restart = False,
):
    """Show networks side by side, or train recipes with several seeds and compare them.

    Of files: accuracy, agreement, parameters, bytes, and the speed of TF Lite's interpreter (for
    a .keras file of its float32 conversion). Of recipes: mean and deviation over seeds, last and
    best epoch, gains over the first, and what each forwards; the same command goes on where an
    earlier one stopped.

    \b
    keras-distill compare a.keras b.keras --dataset digits --teacher big.keras
    keras-distill compare student.keras student_int8.tflite --dataset digits
    keras-distill compare --recipe baseline --recipe dlb --dataset digits
    """  # noqa: D301
    given = dict(locals())
    _compare(given, given.pop("out"), given.pop("restart"))


app.command(short_help="Write a .tflite file or a SavedModel, and check it.")(export)
app.command(short_help="Distil on in simulated int8, and compare the files.")(quantize)


@app.command(short_help="Run a teacher once and keep what it says; or verify that.")
def cache(
    path: Annotated[str, typer.Argument(help="The folder of the cache.")],
    teacher: maybe(str, "A .keras file: build the cache, or go on with it.") = None,
    dataset: OptionalTrainingData = None,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    limit: maybe(int, "Use so many training images.") = None,
    views: Annotated[int, typer.Option(help="Augmented views of each image.")] = 1,
    augment: Annotated[
        bool, typer.Option("--augment", help="Shift images at random, and mirror half of them.")
    ] = False,
    flip: maybe(bool, "With --augment: --no-flip for digits and letters.") = None,
    mix: Annotated[Mixing | None, typer.Option(help="Mix images by pairs.")] = None,
    top_k: maybe(int, "Store the likeliest classes alone. Default: all logits.") = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="With --top-k: of the loss; again for each.")
    ] = None,
    feature: Annotated[
        list[str] | None, typer.Option(help="Path of a layer to store, pooled; again for each.")
    ] = None,
    dtype: Annotated[Stored, typer.Option(help="Of logits and features.")] = Stored.float16,
    batch_size: Annotated[int, typer.Option(help="Images in a forward of the teacher.")] = 128,
    seed: Seed = 0,
    worker: Annotated[str, typer.Option(help="Which of how many processes: 0/2, 1/2.")] = "0/1",
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every byte with its checksum.")
    ] = False,
):
    """Run a teacher over a data set once and keep what it says; or show and verify a cache.

    With --teacher and --dataset the cache is built; the same command goes on where a killed one
    stopped. Without, it is described. `kd.data.TeacherCache` reads it.

    \b
    keras-distill cache runs/cache --teacher big.keras --dataset cifar10 \\
        --views 10 --augment
    keras-distill cache runs/cache --teacher big.keras --dataset cifar10 \\
        --top-k 5 --temperature 4
    keras-distill cache runs/cache --verify
    """  # noqa: D301
    given = dict(locals())
    start()
    from keras_distill.recipes import commands

    commands.cache(given, 1 if sys.stdout.isatty() else 0)


@app.command(short_help="List all losses with their papers.")
def losses():
    """List all losses, family by family, each with its paper; `train --loss` takes them."""
    from keras_distill.recipes.loss_names import listed

    for line in listed():
        print(_terminal.wrapped(line, sys.stdout, indent=29))


@app.command(short_help="List the recipes with their papers.")
def recipes():
    """List the recipes for `train --recipe` and `compare --recipe`, each with its paper."""
    from keras_distill.recipes.schemes import RECIPES

    for recipe in RECIPES:
        line = f"{recipe.name:20} {recipe.summary} {recipe.reference}"
        print(_terminal.wrapped(line, sys.stdout, indent=21))


def _compare(given, out=None, restart=False):
    start(deterministic=bool(given.get("recipes")))
    from keras_distill.recipes import commands

    commands.compare(given, out, restart)


def main(arguments=None):
    """Runs the command line.

    Args:
        arguments: A list of strings; `sys.argv[1:]` by default.

    Returns:
        The exit status: 0, 1 for an exported file that strays from its network, 2 for what the
        user can mend, 130 after Ctrl-C, each said in one line.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    with _terminal.interrupts_noted() as noted:
        try:
            status = app(arguments, prog_name="keras-distill", standalone_mode=False) or 0
        except (KeyboardInterrupt, typer.Abort):
            status = cli_errors.INTERRUPTED
        except Exception as error:
            if not noted:
                return cli_errors.told(error, debug)
            status = cli_errors.INTERRUPTED  # taken by native code, which failed of it
    if status == cli_errors.INTERRUPTED:  # typer itself turns Ctrl-C into it
        return cli_errors.interrupted(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
