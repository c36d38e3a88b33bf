"""The options that several commands of `keras_distill.cli` take."""

from enum import Enum
from typing import Annotated

import typer


class Quantization(str, Enum):
    """Numbers in a `.tflite` file."""

    float16 = "float16"
    dynamic = "dynamic"
    int8 = "int8"


class Format(str, Enum):
    """What a network is exported to."""

    tflite = "tflite"
    saved_model = "saved-model"


class Mixing(str, Enum):
    """How the images of a cache are mixed."""

    mixup = "mixup"
    cutmix = "cutmix"


class Stored(str, Enum):
    """Numbers in a cache."""

    float16 = "float16"
    float32 = "float32"


def maybe(kind, help):
    """An option that can be left out."""
    return Annotated[kind | None, typer.Option(help=help)]


Dataset = Annotated[
    str,
    typer.Option(
        help="digits (scikit-learn's, no network needed), a name of tensorflow-datasets "
        "(mnist, cifar10, ...), or a folder with one sub-folder of images a class, or with "
        "train and test folders of such."
    ),
]
OptionalDataset = maybe(
    str, "As in `train`: training images for the ranges of int8, test images to check on."
)
DataDir = maybe(str, "Folder with data prepared by tensorflow-datasets. [env: TFDS_DATA_DIR]")
ImageSize = maybe(int, "Resize images to this side. Default: as the network asks.")
TestLimit = maybe(int, "Use so many test images.")
Seed = Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")]
Ensemble = maybe(int, "Train so many teachers together and average them.")
Epochs = maybe(int, "Epochs of the student. Default: 20, or the recipe's.")
Setting = maybe(str, "Of a recipe: small (a processor) or paper (as published). Default: small.")
Augment = maybe(bool, "Shift training images at random, by up to an eighth of the side.")
Flip = maybe(bool, "Mirror half of them, with --augment; not for digits, letters.")
Layers = maybe(str, "What a loss of layers compares: paths, as in a,b. Default: by the loss.")
Out = Annotated[str, typer.Option(help="The run's folder.")]
Restart = Annotated[bool, typer.Option("--restart", help="Remove an earlier run in --out first.")]
Teacher = maybe(str, "File whose answers the others are held against.")
OptionalTrainingData = maybe(str, "As in `train`: its training images are what is cached.")
