"""`load`: image classification data by name, as arrays in memory."""

import os
import pathlib
from typing import Any

import numpy as np

from keras_distill._checks import is_number
from keras_distill._checks import message
from keras_distill._checks import one_of
from keras_distill._checks import positive_integer
from keras_distill._types import PathLike
from keras_distill.data.folders import load_folder
from keras_distill.data.images import ImageData
from keras_distill.data.images import Split
from keras_distill.data.images import choose
from keras_distill.data.images import resize
from keras_distill.data.images import stratified_split
from keras_distill.data.prepared import load_prepared

DIGITS_TRAIN = 400


def load(
    name: PathLike,
    data_dir: PathLike | None = None,
    split: str | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    validation: float = 0.0,
    limit: int | None = None,
    test_limit: int | None = None,
    holdout: float = 0.2,
    seed: int = 0,
    download: bool | None = None,
) -> Any:
    """Loads an image classification data set into memory.

    Args:
        name: One of
            `"digits"`: scikit-learn's 1,797 handwritten digits, 8x8x1, without a network;
            always the same 400 for training and 1,397 for the test, classes in proportion.
            The path of a folder with one sub-folder of images a class, or with `train` and
            `test` folders of such: any folder that exists (no `data_dir` given), and any
            name that starts with `.`, `~` or the path separator.
            The name of a data set of tensorflow-datasets: `"mnist"`, `"cifar10"`.
        data_dir: Folder with data prepared by tensorflow-datasets. Default: the
            environment's `TFDS_DATA_DIR`, else tensorflow-datasets' own.
        split: None for all parts, or `"train"`, `"validation"` or `"test"` for one.
        image_size: None, a side, or (height, width) to resize to. Needed where the
            images differ in size.
        validation: Share of the training images put aside, from 0 to below 1, with the
            classes in proportion.
        limit: Keep so many training images, chosen by `seed` (before `validation`).
        test_limit: Keep so many test images, chosen by `seed`.
        holdout: Share of the images held out as the test part where there is none.
        seed: Whole number, 0 or more, for every choice above.
        download: Whether tensorflow-datasets may download and prepare what is missing.
            Default: only where neither `data_dir` nor `TFDS_DATA_DIR` is set.

    Returns:
        A `Split`, or the one `ImageData` that `split` names.

    Raises:
        FileNotFoundError: If the folder or the prepared data is missing.
        ImportError: If the package that the data needs is missing; it names the extra.
        ValueError: If the name is unknown, the folder or an image is not usable, an
            argument is out of its range, or the images would not fit into memory.

    Example:
        >>> digits = load("digits")
        >>> digits.train.images.shape, len(digits.test)
        ((400, 8, 8, 1), 1397)
    """
    if not isinstance(name, (str, os.PathLike)) or not str(name):
        raise ValueError(message("`name` to be a data set's name or a folder", "name", name))
    one_of("split", split, (None, "train", "validation", "test"))
    image_size = _check_image_size(image_size)
    _check_share("validation", validation, zero_allowed=split != "validation")
    _check_share("holdout", holdout, zero_allowed=False)
    limits = (
        None if limit is None else positive_integer("limit", limit),
        None if test_limit is None else positive_integer("test_limit", test_limit),
    )
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(message("`seed` to be a whole number, 0 or more", "seed", seed))

    if name == "digits":
        train, test = _load_digits(name, image_size, limits, seed)
    elif _is_folder(name, data_dir):
        train, test = load_folder(pathlib.Path(name), image_size, limits, holdout, seed)
    else:
        parts = {None: ("train", "test"), "test": ("test",)}.get(split, ("train",))
        loaded = load_prepared(name, parts, data_dir, image_size, limits, holdout, seed, download)
        train, test = loaded.get("train"), loaded.get("test")

    held_out = None
    if validation and train is not None:
        if len(train) < 2:
            raise ValueError(message("two training images or more", "images", len(train)))
        kept, aside = stratified_split(train.labels, 1.0 - validation, seed)
        held_out = train.subset(aside, train.name.removesuffix("train") + "validation")
        train = train.subset(kept)
    parts = Split(train, test, held_out)
    return parts if split is None else getattr(parts, split)


def _load_digits(name, image_size, limits, seed):
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            f'The data set {name!r} needs scikit-learn: pip install "keras-distill[demo]"'
        ) from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype("uint8")[..., np.newaxis]
    labels = digits.target.astype("int64")
    names = tuple(str(name) for name in digits.target_names)
    data = ImageData(resize(images, image_size), labels, names, name)
    # The split is the same for every seed: results of different runs are comparable.
    indices = stratified_split(labels, DIGITS_TRAIN, seed=0)
    return [
        data.subset(part[choose(len(part), limit, seed)], f"{name}/{part_name}")
        for part, limit, part_name in zip(indices, limits, ("train", "test"))
    ]


def _is_folder(name, data_dir):
    """Whether `name` is meant as a folder; `cifar10/3.0.2` is a data set's name."""
    text = os.fspath(name)
    if not isinstance(name, str) or text.startswith((".", "~", os.sep)) or os.path.isabs(text):
        return True
    return data_dir is None and os.path.isdir(text)


def _check_image_size(image_size):
    if image_size is None:
        return None
    sides = (image_size, image_size) if np.ndim(image_size) == 0 else tuple(image_size)
    if len(sides) != 2:
        raise ValueError(
            message("`image_size` to be a side or (height, width)", "image_size", image_size)
        )
    return tuple(positive_integer("image_size", side) for side in sides)


def _check_share(name, value, zero_allowed):
    if not is_number(value) or not (0 <= value < 1) or (value == 0 and not zero_allowed):
        lowest = "0" if zero_allowed else "above 0"
        raise ValueError(message(f"`{name}` to be a share, {lowest} to below 1", name, value))
