"""Image classification data from a folder with one sub-folder of images a class."""

import contextlib
import os
import pathlib

import numpy as np

from keras_distill._checks import message
from keras_distill._checks import nearest_names
from keras_distill.data.images import ImageData
from keras_distill.data.images import choose
from keras_distill.data.images import empty_images
from keras_distill.data.images import stratified_split

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "validation", "valid", "val")


def load_folder(path, image_size, limits, holdout, seed):
    """Reads the training and the test part of a folder of images, in RGB.

    The classes are the sub-folders in alphabetical order. Where the folder holds a
    training and a test folder instead, these are the parts. Files are found at any depth
    by their suffix; hidden ones are passed over. Pixels are taken as they are stored,
    without turning them by the camera's orientation, as Keras does.

    Args:
        path: `pathlib.Path`.
        image_size: (height, width), or None for images that all have one size.
        limits: Largest number of (training, test) images; None for all.
        holdout: Share held out as the test part where there is no folder for it.
        seed: Whole number.

    Returns:
        Two `ImageData`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no classes, a class has no images, an image cannot be read,
            or the images differ in size and `image_size` is None.
    """
    path = path.expanduser()
    _check_folder(path)
    folders = {folder.name.lower(): folder for folder in _sub_folders(path)}
    train = next((folders[name] for name in TRAIN_FOLDERS if name in folders), None)
    test = next((folders[name] for name in TEST_FOLDERS if name in folders), None)
    if train is not None and test is not None:
        names, files, labels = _list_images(train)
        test_names, test_files, test_labels = _list_images(test)
        if test_names != names:
            odd = sorted(set(names) ^ set(test_names))
            raise ValueError(
                message(f"{str(train)!r} and {str(test)!r} to have the same classes", "odd", odd)
            )
        listed = [(files, labels), (test_files, test_labels)]
    else:
        names, files, labels = _list_images(path)
        indices = stratified_split(labels, 1.0 - holdout, seed)
        listed = [([files[i] for i in part], labels[part]) for part in indices]

    kept = []
    for (files, labels), limit in zip(listed, limits):
        indices = choose(len(files), limit, seed)
        kept.append(([files[i] for i in indices], labels[indices]))
    if image_size is None:
        image_size = _common_size(path, kept[0][0] + kept[1][0])
    return [
        ImageData(
            _read_images(files, image_size, path), labels, names, f"{_readable(path.name)}/{part}"
        )
        for part, (files, labels) in zip(("train", "test"), kept)
    ]


def _check_folder(path):
    if path.is_dir():
        return
    near = []
    if path.parent.is_dir():
        near = nearest_names(path.name, [folder.name for folder in _sub_folders(path.parent)])
    raise FileNotFoundError(
        "Expected a folder with one sub-folder of images a class. "
        f"Received: name={str(path)!r}, which is not a folder."
        + (f" Folders near it: {', '.join(near)}." if near else "")
    )


def _sub_folders(path):
    return sorted(
        entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _list_images(path):
    """Class names, files and labels of a folder with one sub-folder a class."""
    folders = _sub_folders(path)
    if len(folders) < 2:
        raise ValueError(
            f"Expected {str(path)!r} to hold one sub-folder of images a class, two or more. "
            f"Received: {len(folders)} sub-folder{'' if len(folders) == 1 else 's'}."
        )
    files, labels = [], []
    for label, folder in enumerate(folders):
        found = sorted(
            file
            for file in folder.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES
            and not file.name.startswith(".")
            and not file.is_fifo()  # to read one waits for ever
        )
        if not found:
            raise ValueError(
                f"Expected images ({', '.join(IMAGE_SUFFIXES)}) in each class's folder. "
                f"Received: {str(folder)!r} without any. Fill it or remove it."
            )
        files += found
        labels += [label] * len(found)
    return tuple(_readable(folder.name) for folder in folders), files, np.array(labels, "int64")


def _readable(name):
    """A name as text that can be printed and stored: bytes that are no UTF-8 are written out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def _opened(file):
    """The file as a PIL image; whatever goes wrong is an error that names the file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            'Folders of images need Pillow: pip install "keras-distill[data]"'
        ) from error
    try:
        with Image.open(pathlib.Path(file)) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"Expected an image of 8 bits a channel that can be read. Received: {str(file)!r} "
            f"({error}). Replace it or remove it."
        ) from error


def _common_size(path, files):
    """(height, width) of all files; raises where they differ."""
    sizes = {}
    for file in files:
        with _opened(file) as image:
            sizes.setdefault((image.height, image.width), file)
        if len(sizes) > 1:
            (first, first_file), (second, second_file) = sizes.items()
            raise ValueError(
                f"Expected `image_size`, as the images of {str(path)!r} differ in size. Received: "
                f"image_size=None; {first_file.name} is {first}, {second_file.name} is {second}."
            )
    return next(iter(sizes))


def _read_images(files, image_size, path):
    images = empty_images(len(files), (*image_size, 3), str(path))
    for i, file in enumerate(files):
        with _opened(file) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                raise ValueError(f"its mode is {image.mode}")
            if "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("RGB")
            if (image.height, image.width) != image_size:
                image = image.resize(image_size[::-1], resample=2)  # 2: bilinear, antialiased
            images[i] = np.asarray(image)
    return images
