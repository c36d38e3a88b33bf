"""Two augmented views of each image: the batches of DDGSD."""

from collections.abc import Mapping

import numpy as np

from keras_distill._checks import instance
from keras_distill._checks import message
from keras_distill._types import Augment
from keras_distill._types import Dataset
from keras_distill.data.pipeline import Order
from keras_distill.data.pipeline import as_float
from keras_distill.data.pipeline import check_arrays
from keras_distill.data.pipeline import check_class_weight
from keras_distill.data.pipeline import check_pipeline
from keras_distill.data.pipeline import class_weights
from keras_distill.data.pipeline import made_ahead
from keras_distill.data.pipeline import on_host
from keras_distill.data.pipeline import sample_seeds
from keras_distill.data.targets import Targets
from keras_distill.data.targets import check_no_labels
from keras_distill.data.targets import check_samples


def two_views(
    images: np.ndarray | Dataset,
    labels: np.ndarray | None,
    batch_size: int,
    augment: Augment,
    *,
    epochs: int = 1,
    start_epoch: int = 0,
    shuffle: bool | int = True,
    seed: int = 0,
    ids: bool = False,
    drop_remainder: bool = False,
    class_weight: Mapping[int, float] | None = None,
) -> Dataset:
    """Batches of images in two views, augmented independently: `((x_view, x_other_view), y)`.

    The first view is the `x` of `batches`, the other has draws of its own; both are functions
    of (seed, epoch, sample). For a `DistortionDistiller` or a `MeanTeacher`:

        steps = steps_per_epoch(len(images), batch_size)
        dataset = two_views(
            images, labels, batch_size, crop_and_flip(), epochs=epochs, start_epoch=start
        )
        distiller.fit(
            dataset, epochs=epochs, initial_epoch=start, steps_per_epoch=steps, shuffle=False
        )

    Of `batch_size` images, `2 * batch_size` are forwarded.

    Args:
        images: NumPy array `(samples, ...)`, as in `batches`; or a `tf.data.Dataset` of
            single samples `(x, y)` or `(x, y, sample_weight)` of known cardinality, `labels`
            then being `None`. Its own order has to be the same each time it is read.
        labels: NumPy array with `samples` entries, of any shape beyond the first axis.
        batch_size: Images in a batch (the global batch under a strategy).
        augment: A function of (images, seeds), see `keras_distill.data.augment`.
        epochs, start_epoch, seed, drop_remainder: As in `batches`.
        shuffle: As in `batches`. For a data set, a whole number is how many samples are held
            in memory to draw from; True holds them all.
        ids: Whether `y` is `Targets(labels=..., ids=...)`, ids the index of the sample.
        class_weight: A dict of class to weight; the elements then are `((x_view,
            x_other_view), y, sample_weight)`. Keras itself takes none for such elements.

    Returns:
        A `tf.data.Dataset` of known cardinality, `(epochs - start_epoch) * steps`.

    Raises:
        ValueError: As `batches`, and where `augment` is `None`.

    Reference:
        Xu and Liu, 2019, https://doi.org/10.1609/aaai.v33i01.33015565.
    """
    check_pipeline(epochs, start_epoch, augment, seed)
    check_class_weight(class_weight)
    if augment is None:
        raise ValueError(
            message("`augment` to be a function of (images, seeds)", "augment", augment)
            + " Two views of an image differ by it alone. For instance `kd.data.crop_and_flip()`."
        )
    order = Order(batch_size, epochs, start_epoch, shuffle, seed, drop_remainder)
    source = _of_samples if hasattr(images, "element_spec") else _of_arrays
    dataset, read = source(images, labels, order)

    def take(epoch, indices, *rest):
        import tensorflow as tf

        x, y, *weight = read(indices, *rest)
        x = as_float(x)
        views = tuple(augment(x, sample_seeds(seed, epoch, indices, part)) for part in (0, 1))
        targets = Targets(y if isinstance(y, Targets) else {"labels": y})
        if class_weight is not None:
            by_class = class_weights(targets.labels, class_weight)
            weight = [by_class * tf.cast(w, tf.float32) for w in weight] or [by_class]
        if ids:
            targets["ids"] = indices
            y = targets
        return (views, y, *weight)

    return made_ahead(dataset, take)


def _of_arrays(images, labels, order):
    """A data set of (epoch, indices), and a function of the indices that gives (x, y)."""
    images, labels = check_arrays(images, labels)
    instance("shuffle", order.shuffle, bool, "True or False")
    dataset = order.of_indices(len(images))
    images, labels = on_host(images, labels)

    def read(indices):
        import tensorflow as tf

        return tf.gather(images, indices), tf.gather(labels, indices)

    return dataset, read


def _of_samples(samples, labels, order):
    """A data set of (epoch, indices, x, y, ...), and a function that gives (x, y, ...) of it."""
    check_no_labels(labels)
    count = check_samples(samples, "two_views")
    return order.of_samples(samples, count), lambda indices, *element: element
