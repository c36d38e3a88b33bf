"""Pairs of images of one class: the batches of CS-KD."""

import warnings
from collections.abc import Mapping

import numpy as np

from keras_distill._checks import instance
from keras_distill._checks import message
from keras_distill._types import Augment
from keras_distill._types import Dataset
from keras_distill.data.augment import random_uniform
from keras_distill.data.pipeline import Order
from keras_distill.data.pipeline import as_float
from keras_distill.data.pipeline import check_arrays
from keras_distill.data.pipeline import check_class_weight
from keras_distill.data.pipeline import check_pipeline
from keras_distill.data.pipeline import class_of_each
from keras_distill.data.pipeline import class_weights
from keras_distill.data.pipeline import made_ahead
from keras_distill.data.pipeline import on_host
from keras_distill.data.pipeline import sample_seeds
from keras_distill.data.pipeline import take_images
from keras_distill.data.targets import Targets
from keras_distill.data.targets import check_no_labels
from keras_distill.data.targets import check_samples


def class_pairs(
    images: np.ndarray | Dataset,
    labels: np.ndarray | None,
    batch_size: int,
    *,
    epochs: int = 1,
    start_epoch: int = 0,
    shuffle: bool = True,
    augment: Augment | None = None,
    seed: int = 0,
    ids: bool = False,
    drop_remainder: bool = False,
    class_weight: Mapping[int, float] | None = None,
    exclude_self: bool = False,
) -> Dataset:
    """Batches of images, each with a partner of its own class: `((x, x_pair), y)`.

    The anchors `x` are those of `batches`: every sample once an epoch, in an order that is a
    function of (seed, epoch). Each draws its partner uniformly among the samples of its
    class, itself included, as a function of (seed, epoch, sample). The partner is augmented
    on its own. Train a `ClassWiseDistiller` with it:

        steps = steps_per_epoch(len(images), batch_size)
        dataset = class_pairs(images, labels, batch_size, epochs=epochs, start_epoch=start)
        distiller.fit(
            dataset, epochs=epochs, initial_epoch=start, steps_per_epoch=steps, shuffle=False
        )

    Of `batch_size` anchors, `2 * batch_size` images are forwarded. A class with one image
    pairs with itself, which is warned of once. So does a sample without a label (-1).

    Args:
        images: NumPy array `(samples, ...)`, as in `batches`; or a `tf.data.Dataset` of
            single samples `(x, y)` of known cardinality, which is read into memory, `labels`
            then being `None`.
        labels: Class ids `(samples,)` or `(samples, 1)`, or one-hot labels.
        batch_size: Anchors in a batch (the global batch under a strategy).
        epochs, start_epoch, shuffle, augment, seed, drop_remainder: As in `batches`.
        ids: Whether `y` is `Targets(labels=..., ids=..., pair_ids=...)`, the indices of
            anchors and partners.
        class_weight: A dict of class to weight; the elements then are `((x, x_pair), y,
            sample_weight)`. Keras itself takes none for data sets of pairs.
        exclude_self: Whether a sample is never its own partner, where its class has another.

    Returns:
        A `tf.data.Dataset` of known cardinality, `(epochs - start_epoch) * steps`.

    Raises:
        ValueError: As `batches`, and where `labels` do not tell the class of each sample.

    Reference:
        Yun et al., 2020, https://arxiv.org/abs/2003.13964; sampler of alinlab/cs-kd.
    """
    check_pipeline(epochs, start_epoch, augment, seed)
    check_class_weight(class_weight)
    least = int(instance("exclude_self", exclude_self, bool, "True or False"))
    images, labels = check_arrays(*_in_memory(images, labels))
    classes = class_of_each(labels)
    members, first, place, size = _index_lists(classes)
    _warn_of_single_images(classes, size)
    order = Order(batch_size, epochs, start_epoch, shuffle, seed, drop_remainder)
    dataset = order.of_indices(len(images))
    images, labels, members, first, place, size = on_host(
        images, labels, members, first, place, size
    )

    def partners_of(indices, epoch):
        """An index of the same class for each, without rejection: some places further on."""
        import tensorflow as tf

        sizes = tf.gather(size, indices)
        choices = tf.maximum(sizes - least, 1)
        draws = random_uniform(sample_seeds(seed, epoch, indices, part=2), 1)[:, 0]
        # In float64: a float32 product may round up to the number of choices.
        steps = tf.cast(tf.cast(draws, tf.float64) * tf.cast(choices, tf.float64), tf.int64)
        places = (tf.gather(place, indices) + steps + least) % sizes
        return tf.gather(members, tf.gather(first, indices) + places)

    def take(epoch, indices):
        import tensorflow as tf

        partners = partners_of(indices, epoch)
        x = take_images(images, indices, augment, seed, epoch)
        x_pair = as_float(tf.gather(images, partners))
        if augment is not None:
            # By the anchor's index: two anchors with one partner see it augmented differently.
            x_pair = augment(x_pair, sample_seeds(seed, epoch, indices, part=1))
        y = tf.gather(labels, indices)
        element = (x, x_pair), Targets(labels=y, ids=indices, pair_ids=partners) if ids else y
        return element if class_weight is None else (*element, class_weights(y, class_weight))

    return made_ahead(dataset, take)


def _in_memory(images, labels):
    """Arrays as they are; a data set of single samples read through, once."""
    if not hasattr(images, "element_spec"):
        return images, labels
    check_no_labels(labels)
    count = check_samples(images, "class_pairs")
    if count == 0 or len(images.element_spec) != 2 or isinstance(images.element_spec[1], dict):
        raise ValueError(
            message(
                "the data set to hold samples (image, class id)",
                "element_spec",
                images.element_spec,
            )
            + f" It has {count} samples."
        )
    parts = zip(*images.as_numpy_iterator())
    return tuple(np.stack(part) for part in parts)


def _index_lists(classes):
    """`(members, first, place, size)`: the samples of each class, and where each one is.

    `members` lists all samples class by class. Sample `i` stands at `members[first[i] +
    place[i]]`, among the `size[i]` samples of its class. A sample without one is alone.
    """
    alone = classes < 0
    classes = np.where(alone, classes.max() + 1 + np.arange(len(classes)), classes)
    _, inverse, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    members = np.argsort(inverse, kind="stable")
    first = (np.cumsum(sizes) - sizes)[inverse]
    place = np.empty_like(members)
    place[members] = np.arange(len(members))
    return members, first, place - first, sizes[inverse]


def _warn_of_single_images(classes, size):
    single = np.sort(classes[(size == 1) & (classes >= 0)])
    if len(single) == 0:
        return
    listed = ", ".join(str(label) for label in single[:10])
    warnings.warn(
        f"Classes with one image, which pairs with itself: {listed}"
        f"{', ...' if len(single) > 10 else ''} ({len(single)} of {len(np.unique(classes))}).",
        stacklevel=3,
    )
