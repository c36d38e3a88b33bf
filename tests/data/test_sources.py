"""`load`: digits, folders of images, tensorflow-datasets, and what it says when it cannot."""

import builtins
import pathlib
import sys

import keras
import numpy as np
import pytest

from keras_distill.data import images as images_module
from keras_distill.data import load
from keras_distill.data.images import choose
from keras_distill.data.images import stratified_split


def make_folder(path, counts=None, size=(6, 5), suffix=".png"):
    """A folder of images whose red channel tells the class and green the file."""
    for label, (name, count) in enumerate((counts or {"cat": 10, "dog": 5}).items()):
        (path / name).mkdir(parents=True)
        for i in range(count):
            image = np.zeros((*size, 3), "uint8")
            image[..., 0], image[..., 1] = 50 * (label + 1), 10 * i
            keras.utils.save_img(path / name / f"{i:02d}{suffix}", image, scale=False)
    return path


def without_package(monkeypatch, package):
    real_import = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return real_import(name, *arguments, **keywords)

    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)


# Digits.


def test_digits_split():
    digits = load("digits")
    assert digits.validation is None
    assert digits.train.images.shape == (400, 8, 8, 1)
    assert digits.test.images.shape == (1397, 8, 8, 1)
    assert digits.train.images.dtype == np.uint8
    assert digits.train.images.min() == 0 and digits.train.images.max() == 255
    assert digits.train.class_names == tuple("0123456789")
    assert digits.train.class_count == 10 and digits.train.image_shape == (8, 8, 1)
    assert (digits.train.name, digits.test.name) == ("digits/train", "digits/test")
    assert np.bincount(digits.train.labels).min() >= 38  # in proportion: 174 to 183 of 1797


def test_no_test_digit_is_seen_in_training():
    digits = load("digits")
    train = {image.tobytes() for image in digits.train.images}
    assert not any(image.tobytes() in train for image in digits.test.images)
    assert len(train) == 400


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    source = load_digits()
    known = {
        (image.astype("uint8").tobytes(), int(label))
        for image, label in zip(source.images, source.target)
    }
    for part in (load("digits").train, load("digits").test):
        for image, label in zip(part.images, part.labels):
            original = np.round(image[..., 0] / 255 * 16).astype("uint8")
            assert (original.tobytes(), int(label)) in known


def test_digits_split_is_the_same_for_every_seed():
    for seed in (0, 5):
        np.testing.assert_array_equal(
            load("digits", seed=seed).test.labels, load("digits", split="test").labels
        )


def test_one_part_and_validation():
    whole = load("digits", split="train")
    split = load("digits", validation=0.25, seed=1)
    assert len(split.train) == 300 and len(split.validation) == 100
    assert split.validation.name == "digits/validation"
    np.testing.assert_allclose(
        np.bincount(split.validation.labels), np.bincount(whole.labels) / 4, atol=1
    )
    parts = [{image.tobytes() for image in part.images} for part in (split.train, split.validation)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {image.tobytes() for image in whole.images}
    alone = load("digits", split="validation", validation=0.25, seed=1)
    np.testing.assert_array_equal(alone.images, split.validation.images)
    other = load("digits", split="validation", validation=0.25, seed=2)
    assert not np.array_equal(other.images, alone.images)


def test_limits_are_deterministic():
    first = load("digits", limit=50, test_limit=70, seed=3)
    assert (len(first.train), len(first.test)) == (50, 70)
    np.testing.assert_array_equal(first.train.images, load("digits", limit=50, seed=3).train.images)
    assert not np.array_equal(first.train.labels, load("digits", limit=50, seed=4).train.labels)
    assert len(load("digits", limit=5000).train) == 400


def test_image_size_resizes():
    digits = load("digits", image_size=16)
    assert digits.train.images.shape == (400, 16, 16, 1)
    assert digits.train.images.dtype == np.uint8
    means = digits.train.images.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, load("digits").train.images.mean(axis=(1, 2, 3)), atol=8)


# Folders.


def test_folder(tmp_path):
    data = load(make_folder(tmp_path / "pets"), seed=1)
    assert (len(data.train), len(data.test)) == (12, 3)
    assert np.bincount(data.train.labels).tolist() == [8, 4]
    assert data.train.class_names == ("cat", "dog")
    assert data.train.images.shape == (12, 6, 5, 3) and data.train.images.dtype == np.uint8
    assert (data.train.name, data.test.name) == ("pets/train", "pets/test")
    seen = set()
    for part in (data.train, data.test):
        for image, label in zip(part.images, part.labels):
            assert (image[..., 0] == 50 * (label + 1)).all()
            seen.add((int(label), int(image[0, 0, 1])))
    assert len(seen) == 15  # each image once
    again = load(str(tmp_path / "pets"), seed=1)
    np.testing.assert_array_equal(again.train.images, data.train.images)


def test_folder_with_train_and_test(tmp_path):
    make_folder(tmp_path / "pets" / "train", {"cat": 4, "dog": 3})
    make_folder(tmp_path / "pets" / "test", {"cat": 2, "dog": 1})
    data = load(tmp_path / "pets", limit=5)
    assert (len(data.train), len(data.test)) == (5, 3)
    assert data.test.labels.tolist() == [0, 0, 1]


def test_folder_of_mixed_sizes_asks_for_a_size(tmp_path):
    make_folder(tmp_path / "pets", {"cat": 3, "dog": 3}, size=(6, 5))
    make_folder(tmp_path / "pets2", {"cat": 1}, size=(8, 8))
    (tmp_path / "pets2" / "cat" / "00.png").rename(tmp_path / "pets" / "cat" / "big.png")
    with pytest.raises(ValueError, match=r"Expected `image_size`.*differ in size.*image_size=None"):
        load(tmp_path / "pets")
    data = load(tmp_path / "pets", image_size=(4, 7))
    assert data.train.images.shape[1:] == (4, 7, 3)
    for image, label in zip(data.train.images, data.train.labels):
        assert (image[..., 0] == 50 * (label + 1)).all() or label == 0


def test_other_files_and_hidden_folders_are_passed_over(tmp_path):
    folder = make_folder(tmp_path / "pets")
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "cat" / ".hidden.png").write_text("no image")
    (folder / ".git").mkdir()
    data = load(folder)
    assert len(data.train) + len(data.test) == 15
    assert data.train.class_names == ("cat", "dog")


def test_images_with_alpha_palette_and_grey_become_rgb(tmp_path):
    from PIL import Image

    folder = make_folder(tmp_path / "pets")
    for mode in ("RGBA", "P", "L", "1", "CMYK"):
        suffix = ".jpg" if mode == "CMYK" else ".png"
        Image.new(mode, (5, 6)).save(folder / "cat" / f"{mode}{suffix}")
    palette = Image.new("P", (5, 6))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(folder / "cat" / "clear.png", transparency=bytes([0, 255]))
    data = load(folder)
    assert len(data.train) + len(data.test) == 21


@pytest.mark.parametrize("image_size", [None, 4])
@pytest.mark.parametrize("damage", ["garbage", "empty", "cut"])
def test_corrupt_image_is_named(tmp_path, damage, image_size):
    folder = make_folder(tmp_path / "pets", suffix=".jpg")
    file = folder / "dog" / "03.jpg"
    whole = file.read_bytes()
    file.write_bytes(
        {"garbage": b"garbage" * 9, "empty": b"", "cut": whole[: len(whole) // 2]}[damage]
    )
    with pytest.raises(ValueError, match=r"Expected an image.*03\.jpg") as caught:
        load(folder, image_size=image_size)
    assert "\n" not in str(caught.value)


def test_deep_images_are_refused(tmp_path):
    from PIL import Image

    folder = make_folder(tmp_path / "pets")
    Image.fromarray(np.full((6, 5), 40000, "uint16")).save(folder / "cat" / "deep.png")
    with pytest.raises(ValueError, match=r"8 bits a channel.*deep\.png.*I;16"):
        load(folder)


def test_folder_errors(tmp_path):
    folder = make_folder(tmp_path / "pets")
    with pytest.raises(FileNotFoundError, match=r"not a folder\. Folders near it: pets"):
        load(tmp_path / "petz")
    with pytest.raises(ValueError, match=r"one sub-folder of images a class.*0 sub-folders"):
        load(folder / "cat")
    (folder / "emu").mkdir()
    with pytest.raises(ValueError, match=r"images .* in each class's folder.*emu.*without any"):
        load(folder)
    make_folder(tmp_path / "two" / "train", {"cat": 1, "dog": 1})
    make_folder(tmp_path / "two" / "test", {"cat": 1, "emu": 1})
    with pytest.raises(ValueError, match=r"same classes.*\['dog', 'emu'\]"):
        load(tmp_path / "two")


# tensorflow-datasets.


def test_unknown_name_lists_the_nearest(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ValueError, match=r"name='fashion_mnits'\. Nearest: fashion_mnist"):
        load("fashion_mnits", data_dir=tmp_path)


def test_unprepared_data_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    text = r"'mnist/3\.0\.1' to be prepared.*tfds build mnist.*download=True"
    with pytest.raises(FileNotFoundError, match=text):
        load("mnist", data_dir=tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=text):
        load("mnist")


def test_what_is_no_set_of_labelled_images_is_refused(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.testing.DummyDataset(data_dir=tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda name, **arguments: builder)
    builder.download_and_prepare()
    with pytest.raises(ValueError, match="8-bit images with one class label.*name='dummy'"):
        load("dummy")


def test_data_set_without_a_test_part(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    class TwoSizes(tfds.core.GeneratorBasedBuilder):
        """Images of two sizes and two classes, in one part."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(None, None, 3)),
                        "label": tfds.features.ClassLabel(names=["dark", "light"]),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(20):
                side, label = 4 + i % 3, i % 2
                yield (
                    i,
                    {"image": np.full((side, side, 3), 100 * label + i, "uint8"), "label": label},
                )

    builder = TwoSizes(data_dir=tmp_path)
    builder.download_and_prepare()
    monkeypatch.setattr(tfds, "builder", lambda name, **arguments: builder)
    with pytest.raises(ValueError, match=r"`image_size`.*differ in size.*image_size=None"):
        load("two_sizes")
    data = load("two_sizes", image_size=5, holdout=0.3)
    assert np.bincount(data.train.labels).tolist() == [7, 7]
    assert np.bincount(data.test.labels).tolist() == [3, 3]
    assert data.train.images.shape == (14, 5, 5, 3)
    shades = []
    for part in (data.train, data.test):
        assert ((part.images[:, 0, 0, 0] >= 100) == part.labels).all()
        shades += part.images[:, 2, 2, 0].tolist()
    assert len(set(shades)) == 20  # no image in both parts
    for file in pathlib.Path(builder.data_dir).glob("*.tfrecord*"):
        file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"files of 'two_sizes'.*to be readable.*Prepare it again"):
        load("two_sizes", image_size=5)


def test_prepared_mnist(data_dir):
    data = load("mnist", data_dir=data_dir, limit=500, test_limit=200, validation=0.2)
    assert (len(data.train), len(data.validation), len(data.test)) == (400, 100, 200)
    assert data.train.images.shape == (400, 28, 28, 1) and data.train.images.dtype == np.uint8
    assert data.train.class_names == tuple("0123456789")
    assert 25 < data.train.images.mean() < 42  # of MNIST: 33.3
    again = load("mnist", data_dir=data_dir, split="test", test_limit=200)
    np.testing.assert_array_equal(again.images, data.test.images)
    assert again.name == "mnist/test"


def test_limited_images_are_those_of_the_whole(data_dir):
    whole = load("mnist", data_dir=data_dir, split="test")
    assert np.bincount(whole.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    part = load("mnist", data_dir=data_dir, split="test", test_limit=300, seed=7)
    indices = choose(10000, 300, 7)
    np.testing.assert_array_equal(part.labels, whole.labels[indices])
    np.testing.assert_array_equal(part.images, whole.images[indices])


def test_prepared_cifar10_resized(data_dir):
    data = load("cifar10", data_dir=data_dir, limit=64, test_limit=32, image_size=(24, 40))
    assert data.train.images.shape == (64, 24, 40, 3)
    assert data.train.class_names[:2] == ("airplane", "automobile")
    assert data.train.images.std() > 20


# What they share.


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "pets")
    for package, name, extra in (
        ("sklearn", "digits", "demo"),
        ("tensorflow_datasets", "mnist", "data"),
        ("PIL", folder, "data"),
    ):
        with monkeypatch.context() as patch:
            without_package(patch, package)
            with pytest.raises(ImportError, match=rf'pip install "keras-distill\[{extra}\]"'):
                load(name)


def test_too_large_for_memory_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "_machine_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"fit into memory.*12 images.*\(6, 5, 3\).*Pass `limit`"):
        load(make_folder(tmp_path / "pets"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": ""}, "`name` to be a data set's name or a folder"),
        ({"name": 3}, "name=3"),
        ({"split": "dev"}, "`split` to be one of None, 'train', 'validation', 'test'"),
        ({"validation": 1.0}, "`validation` to be a share, 0 to below 1.*validation=1.0"),
        ({"split": "validation"}, "`validation` to be a share, above 0"),
        ({"holdout": 0}, "`holdout` to be a share, above 0"),
        ({"limit": 0}, "`limit` to be a positive whole number"),
        ({"image_size": (1, 2, 3)}, r"`image_size` to be a side or \(height, width\)"),
        ({"image_size": 0}, "`image_size` to be a positive whole number"),
        ({"seed": -1}, "`seed` to be a whole number, 0 or more"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        load(**{"name": "digits", **arguments})


@pytest.mark.parametrize("first", [0.5, 0.2, 3, 7])
def test_stratified_split_is_a_partition_in_proportion(first):
    labels = np.repeat([0, 1, 2], [10, 20, 5])
    part, rest = stratified_split(labels, first, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([part, rest])), np.arange(35))
    wanted = first if isinstance(first, int) else round(first * 35)
    assert len(part) == wanted
    counts = np.bincount(labels[part], minlength=3)
    assert (np.abs(counts - np.array([10, 20, 5]) * wanted / 35) <= 1).all()
