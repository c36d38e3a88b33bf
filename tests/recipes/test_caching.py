"""`keras-distill cache`: what does not fit is one line, and the cache that is there stays whole."""

import keras
import pytest

from keras_distill import cli
from keras_distill.backbones import small_cnn
from keras_distill.recipes import caching

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a cache of 40 digits, its teacher, and two other teachers."""
    folder = tmp_path_factory.mktemp("caching")
    for name, classes, seed in (("own", 10, 0), ("other", 10, 1), ("fewer", 3, 0)):
        keras.utils.set_random_seed(seed)
        small_cnn((8, 8, 1), classes, 2).save(folder / f"{name}.keras")
    assert cli.main(command(folder)) == 0
    return folder


def command(folder, teacher="own", **options):
    options = {"limit": 40, "views": 2, **options}
    words = ["cache", folder / "cache", "--teacher", folder / f"{teacher}.keras"]
    words += ["--dataset", "digits", "--augment"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", value]
    return [str(word) for word in words]


def test_alpha_is_1_as_in_the_papers():
    """Of one number as `factor` Keras draws CutMix's alpha between 0 and it."""
    assert caching.mixing("cutmix").factor == (1.0, 1.0)
    assert caching.mixing("mixup").alpha == 1.0
    assert caching.mixing(None) is None


def contents(folder):
    return {file.name: file.read_bytes() for file in (folder / "cache").iterdir()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": "other"}, "the same settings: teacher="),
        ({"teacher": "fewer"}, "a network with the data's 10 classes"),
        ({"limit": 41}, "the same data: "),
        ({"views": 3}, "the same settings: views=3"),
        ({"seed": 1}, "the same settings: seed=1"),
        ({"mix": "mixup"}, "the same augmentation: mix="),
        ({"dtype": "float32"}, "the same settings: outputs: dtype="),
        ({"top_k": 11, "temperature": 4}, "`top_k` to be at most the teacher's 10 classes"),
        ({"top_k": 3}, "`temperatures` with `top_k`"),
        ({"feature": "nowhere"}, "nowhere"),
        ({"image_size": 16}, "--image-size"),
        ({"worker": "2/2"}, "`worker` below `workers`"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_and_nothing_is_lost(built, capsys, change, said):
    before = contents(built)
    capsys.readouterr()
    assert cli.main(command(built, **change)) == 2
    error = capsys.readouterr().err
    assert error.startswith("keras-distill: Expected ") and error.count("\n") == 1
    assert said in error and len(error) < 700
    assert contents(built) == before
    assert cli.main(["cache", str(built / "cache"), "--verify"]) == 0


def test_other_augmentation_is_named_and_nothing_is_lost(built, capsys):
    before = contents(built)
    words = command(built)
    words.remove("--augment")
    for changed in (words, [*words, "--augment", "--no-flip"]):
        assert cli.main(changed) == 2
        error = capsys.readouterr().err
        assert "augmentation that the cache was built with" in error and error.count("\n") == 1
    assert contents(built) == before
