"""Learning on real data: no scheme is worse than the student alone, seed by seed.

Fashion-MNIST in tensorflow-datasets' prepared form, found through `TFDS_DATA_DIR`: 1,000 training
images, the small setting of the recipes, five seeds. A scheme that forwards each image twice gets
half the epochs, DDGSD apart: it is held against its baseline at equal epochs, as in its paper,
and both see augmented images. `make test-learning` runs it, for minutes.
"""

import math
import os

import pytest

import keras_distill as kd
from keras_distill.recipes import schemes

SEEDS = 5
MOST_ERROR = 0.005  # of the mean difference, as a share: half a point
SCHEMES = [r.name for r in schemes.RECIPES if r.name != "baseline" and r.first is None]


@pytest.fixture(scope="session")
def fashion_mnist():
    if not os.environ.get("TFDS_DATA_DIR"):
        pytest.skip("needs Fashion-MNIST, prepared by tensorflow-datasets, in TFDS_DATA_DIR")
    pytest.importorskip("tensorflow_datasets")
    try:
        return kd.data.load("fashion_mnist", limit=1000)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """One a process: the student alone is trained once for all schemes."""
    return tmp_path_factory.mktemp("learning")


@pytest.mark.tensorflow
@pytest.mark.slow
@pytest.mark.learning
@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_is_not_worse_than_the_student_alone(name, fashion_mnist, folder):
    augments = schemes.named(name).augments
    options = schemes.Options(
        augment=augments or None,
        flip=augments or None,
        budget="epochs" if augments else "images",
        looks=1,
    )
    results = kd.recipes.compare_recipes(
        ["baseline", name],
        fashion_mnist,
        SEEDS,
        options,
        folder / ("augmented" if augments else "plain"),
        say=lambda line: None,
    )
    gain = results["comparison"][1]["gain"]
    print(f"{name}: {100 * gain['mean']:+.2f} +- {100 * gain['error']:.2f} points")
    assert math.isfinite(gain["mean"])
    assert gain["error"] <= MOST_ERROR
    assert gain["mean"] >= -2 * gain["error"]
