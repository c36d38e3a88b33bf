"""Labelled images in memory, and deterministic choices among them."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images in memory.

    Attributes:
        images: uint8 array of shape (samples, height, width, channels).
        labels: int64 array of shape (samples,), from 0 to class_count - 1.
        class_names: The classes' names by label.
        name: The data set and its part, such as `"digits/train"`.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels)."""
        return tuple(self.images.shape[1:])

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def subset(self, indices: np.ndarray | Sequence[int], name: str | None = None) -> "ImageData":
        """The samples at `indices`, as a new `ImageData`."""
        images, labels = self.images[indices], self.labels[indices]
        return ImageData(images, labels, self.class_names, name or self.name)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The parts of a data set; `validation` is None unless a share was asked for."""

    train: ImageData
    test: ImageData
    validation: ImageData | None = None


def choose(count, limit, seed):
    """Ascending indices of `limit` of `count` samples (all, where it is None or larger)."""
    if limit is None or limit >= count:
        return np.arange(count)
    generator = np.random.default_rng([seed, count])
    return np.sort(generator.choice(count, limit, replace=False))


def stratified_split(labels, first, seed):
    """Splits indices in two, each class in proportion (largest remainders).

    Args:
        labels: int array of shape (samples,), two samples or more.
        first: The first part's share (float, 0 to 1) or number of samples (int).
        seed: Whole number, 0 or more.

    Returns:
        Two ascending int64 arrays, neither of them empty, that together hold each index
        once.
    """
    total = len(labels)
    wanted = first if isinstance(first, (int, np.integer)) else round(first * total)
    wanted = min(max(int(wanted), 1), total - 1)
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * wanted / total
    counts = np.floor(exact).astype(int)
    # The largest remainders come first, the lower class among equal ones.
    order = np.lexsort((classes, counts - exact))
    counts[order[: wanted - counts.sum()]] += 1
    generator = np.random.default_rng(seed)
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(classes, counts)
    ]
    part = np.sort(np.concatenate(chosen))
    return part, np.setdiff1d(np.arange(total), part)


def resize(images, image_size):
    """Resizes uint8 images (samples, height, width, channels), bilinear with antialiasing."""
    if image_size is None or tuple(images.shape[1:3]) == image_size:
        return images
    import keras

    resized = keras.ops.image.resize(
        images.astype("float32"), image_size, antialias=True, data_format="channels_last"
    )
    return np.clip(np.round(keras.ops.convert_to_numpy(resized)), 0, 255).astype("uint8")


def empty_images(count, shape, name):
    """An uninitialised uint8 array (count, *shape); raises where it would not fit.

    Raises:
        ValueError: If it needs more than 60 % of the machine's memory.
    """
    needed = count * int(np.prod(shape))
    memory = _machine_memory()
    if memory is not None and needed > 0.6 * memory:
        raise ValueError(
            f"Expected the images of {name!r} to fit into memory. Received: {count} images of "
            f"shape {tuple(shape)}, {needed / 1e9:.1f} GB of {memory / 1e9:.1f}. "
            "Pass `limit`, `test_limit` or a smaller `image_size`."
        )
    return np.empty((count, *shape), "uint8")


def _machine_memory():
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None  # this system does not tell
