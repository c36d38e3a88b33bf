"""The samples of a `TeacherCache`: arrays in memory, or a data set read in its own order."""

import numpy as np

from keras_distill._checks import instance
from keras_distill._checks import message
from keras_distill.data.cache_recorder import array_fingerprint
from keras_distill.data.pipeline import check_arrays
from keras_distill.data.pipeline import made_ahead
from keras_distill.data.pipeline import on_host
from keras_distill.data.replay import Draws
from keras_distill.data.targets import check_no_labels
from keras_distill.data.targets import check_samples

PROBED = 16


def source_of(images, labels, mix):
    """The source of arrays, or of a `tf.data.Dataset` of single samples."""
    if not hasattr(images, "element_spec"):
        return Arrays(images, labels)
    check_no_labels(labels)
    if mix is not None:
        raise ValueError(
            message("`mix` with arrays only, whose partners can be read", "mix", mix)
            + " Give the images as an array, or leave `mix` out."
        )
    return Samples(images)


class Arrays:
    """Arrays of images and labels.

    Attributes:
        samples: How many.
        first: A few of the images, for the probe of the augmentation.
        fingerprint: Of all images and labels, SHA-256.
    """

    def __init__(self, images, labels):
        images, labels = check_arrays(images, labels)
        self.samples = len(images)
        self.first = images[:PROBED]
        self.fingerprint = {
            "images": array_fingerprint(images),
            "labels": array_fingerprint(labels),
        }
        self._images, self._labels = on_host(images, labels)

    def batches(self, order):
        """A data set of (epoch, ids)."""
        instance("shuffle", order.shuffle, bool, "True or False")
        return order.of_indices(self.samples)

    def view(self, replay, ids, element, draws):
        """`(x, y)` of samples in the view of their draws."""
        import tensorflow as tf

        x = replay.one(tf.gather(self._images, ids), ids, draws.seed)
        y = tf.gather(self._labels, ids)
        if replay.mix is None:
            return x, y
        other = tf.gather(self._images, draws.partner)
        other = replay.one(other, draws.partner, draws.partner_seed)
        return replay.mixed(x, other, y, tf.gather(self._labels, draws.partner), draws)

    def range(self, replay, draws, first, end, batch_size):
        """A data set of batches of the views of the samples from `first` to `end`."""
        import tensorflow as tf

        parts = [None if part is None else tf.constant(part[first:end]) for part in draws]

        def take(ids):
            own = [None if part is None else tf.gather(part, ids - first) for part in parts]
            return self.view(replay, ids, (), Draws(*own))[0]

        ids = tf.data.Dataset.range(first, end).batch(batch_size)
        return made_ahead(ids, take)


class Samples:
    """A `tf.data.Dataset` of single samples. Its fingerprint is of its specs and first samples."""

    def __init__(self, dataset):
        self.samples = check_samples(dataset, "TeacherCache")
        if not hasattr(dataset.element_spec[0], "shape"):
            raise ValueError(
                message("`dataset` to yield one tensor as x", "x", type(dataset.element_spec[0]))
            )
        self._dataset = dataset
        some = list(dataset.take(PROBED).as_numpy_iterator())
        self.first = np.stack([element[0] for element in some])
        self.fingerprint = {
            "elements": str(dataset.element_spec),
            "first": array_fingerprint(self.first),
        }

    def batches(self, order):
        """A data set of (epoch, ids, x, y, ...)."""
        return order.of_samples(self._dataset, self.samples)

    def view(self, replay, ids, element, draws):
        """`(x, y, ...)` of samples in the view of their draws."""
        x, *rest = element
        return (replay.one(x, ids, draws.seed), *rest)

    def range(self, replay, draws, first, end, batch_size):
        """See `Arrays.range`."""
        import tensorflow as tf

        seeds = tf.constant(draws.seed[first:end])

        def take(ids, element):
            own = Draws(tf.gather(seeds, ids - first))
            return self.view(replay, ids, element, own)[0]

        samples = self._dataset.enumerate().skip(first).take(end - first).batch(batch_size)
        return made_ahead(samples, take)
