"""What the pipelines share: the order of an epoch, its images, its draws, the checks."""

import math
from typing import NamedTuple

import numpy as np

from keras_distill._checks import is_number
from keras_distill._checks import message
from keras_distill._checks import positive_integer


def steps_per_epoch(sample_count: int, batch_size: int, drop_remainder: bool = False) -> int:
    """How many batches an epoch has.

    Args:
        sample_count: Number of samples.
        batch_size: Samples in a batch.
        drop_remainder: Whether a last, shorter batch is left out.

    Returns:
        An int.
    """
    positive_integer("sample_count", sample_count)
    positive_integer("batch_size", batch_size)
    if drop_remainder:
        return sample_count // batch_size
    return math.ceil(sample_count / batch_size)


class Order(NamedTuple):
    """The batches of each epoch, as indices of samples; the arguments are those of `batches`."""

    batch_size: int
    epochs: int
    start_epoch: int
    shuffle: bool
    seed: int
    drop_remainder: bool

    def of_indices(self, sample_count):
        """A `tf.data.Dataset` of (epoch, indices of a batch), both int64, of known cardinality."""
        import tensorflow as tf

        def of_epoch(epoch):
            order = epoch_order(sample_count, self.seed, epoch, self.shuffle)
            return tf.data.Dataset.from_tensor_slices(order)

        return self._of_epochs(sample_count, of_epoch, lambda epoch, batch: (epoch, batch))

    def of_samples(self, samples, sample_count):
        """The same of (epoch, indices, x, y, ...), from a data set of single samples."""
        held = samples_held(self.shuffle, sample_count)
        return self._of_epochs(
            sample_count,
            lambda epoch: epoch_samples(samples, self.seed, epoch, held),
            lambda epoch, indices, sample: (epoch, indices, *sample),
        )

    def _of_epochs(self, sample_count, of_epoch, element):
        """Batches of the data set that `of_epoch` gives for each epoch.

        Raises:
            ValueError: If no batch is left.
        """
        import tensorflow as tf

        steps = steps_per_epoch(sample_count, self.batch_size, self.drop_remainder)
        if steps == 0:
            raise ValueError(
                message(
                    f"`batch_size` to be at most the {sample_count} samples",
                    "batch_size",
                    self.batch_size,
                )
                + " Or leave `drop_remainder` off."
            )

        def batches_of(epoch):
            batches = of_epoch(epoch).batch(self.batch_size, drop_remainder=self.drop_remainder)
            return batches.map(lambda *batch: element(epoch, *batch))

        dataset = tf.data.Dataset.range(self.start_epoch, self.epochs).flat_map(batches_of)
        total = (self.epochs - self.start_epoch) * steps
        return dataset.apply(tf.data.experimental.assert_cardinality(total))


def epoch_order(sample_count, seed, epoch, shuffle=True):
    """The order of an epoch: an int64 permutation, a function of (seed, epoch)."""
    import tensorflow as tf

    order = tf.range(sample_count, dtype=tf.int64)
    if shuffle:
        order = tf.random.experimental.stateless_shuffle(order, seed=[seed, epoch])
    return order


def epoch_samples(samples, seed, epoch, held):
    """A data set of single samples as `(index, sample)`, in the order of an epoch.

    Args:
        samples: A `tf.data.Dataset`, whose own order is the same each time it is read.
        seed, epoch: The order is a function of them.
        held: How many samples are held in memory to draw from; 0 keeps the data set's order.
    """
    import tensorflow as tf

    own = samples.enumerate()
    if not held:
        return own
    if not tf.executing_eagerly():
        # `shuffle` mixes its seed with that of the graph, here this function's own.
        tf.random.set_seed(1)
    word = tf.random.stateless_uniform(
        (), seed=[seed, epoch], minval=None, maxval=None, dtype=tf.int64
    )
    return own.shuffle(held, seed=word, reshuffle_each_iteration=False)


def samples_held(shuffle, sample_count):
    """How many samples `shuffle` holds: all for True, 0 for False, or a number of them."""
    if shuffle is True:
        return sample_count
    return shuffle and positive_integer("shuffle", shuffle)


def take_images(images, indices, augment, seed, epoch, part=0):
    """The images at `indices` as float32 (uint8 in 0..1), augmented.

    Args:
        images: Tensor `(samples, ...)`.
        indices: int64 tensor `(batch,)`.
        augment, seed, epoch: As in `batches`.
        part: Which view, half or partner of the sample this is: each has draws of its own,
            those of part 0 are the draws of `batches`.
    """
    import tensorflow as tf

    x = as_float(tf.gather(images, indices))
    return x if augment is None else augment(x, sample_seeds(seed, epoch, indices, part))


def as_float(images):
    """Images as float32: uint8 in 0..1, any other dtype unscaled."""
    import tensorflow as tf

    x = tf.cast(images, tf.float32)
    return x / 255.0 if images.dtype == tf.uint8 else x


def sample_seeds(seed, epoch, indices, part=0):
    """A seed for each sample, int32 `(batch, 2)`: a function of (seed, epoch, part, sample)."""
    import tensorflow as tf

    words = [seed, epoch]
    if part:
        words = tf.random.experimental.stateless_fold_in(tf.stack(words), part)
    word = tf.random.stateless_uniform((), seed=words, minval=None, maxval=None, dtype=tf.int32)
    second = tf.cast(indices, tf.int32)
    return tf.stack([tf.fill(tf.shape(second), word), second], axis=1)


def map_in_order(dataset, function):
    """`dataset.map` in parallel, order and cardinality kept."""
    import tensorflow as tf

    return dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def made_ahead(dataset, function):
    """`map_in_order`, the next elements made while the present one is used."""
    return prefetched(map_in_order(dataset, function))


def prefetched(dataset):
    """The end of a pipeline: the next elements are made while the present one is used.

    TensorFlow's tuner of parallelism is off for it. Its thread sleeps twice as long each time, from
    10 ms to a minute, and the end of an epoch often waits until it wakes: epochs of 0.95 s took
    0.95 or 1.27 s. Untuned, these pipelines are as fast.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def on_host(*arrays):
    """The arrays as tensors in the machine's memory, where the whole data set stays."""
    import tensorflow as tf

    with tf.device("CPU:0"):
        return [tf.convert_to_tensor(array) for array in arrays]


def class_of_each(labels):
    """The class id of each sample, int64 `(samples,)`; negative where it has none."""
    one_hot = labels.ndim == 2 and labels.shape[-1] > 1
    if one_hot and np.allclose(labels.sum(axis=-1), 1.0, atol=1e-3):
        return labels.argmax(axis=-1).astype("int64")
    if one_hot or labels.ndim > 2 or not np.array_equal(labels, np.round(labels)):
        raise ValueError(
            message("`labels` to be one class id a sample, or one-hot labels", "labels", labels[:2])
        )
    return labels.reshape(-1).astype("int64")


def class_weights(labels, class_weight):
    """The weight of each label's class, float32 `(batch,)`; 1 where it has none.

    Args:
        labels: Tensor of class ids `(batch,)` or `(batch, 1)`, or of one-hot labels.
        class_weight: A dict of class to weight, as in `fit`.
    """
    import tensorflow as tf

    table = tf.constant(
        [class_weight.get(i, 1.0) for i in range(max(class_weight) + 1)], tf.float32
    )
    if labels.shape.rank > 1:
        labels = labels[:, 0] if labels.shape[-1] == 1 else tf.argmax(labels, axis=-1)
    labels = tf.cast(labels, tf.int32)
    known = (labels >= 0) & (labels < len(table))
    return tf.where(known, tf.gather(table, tf.where(known, labels, 0)), 1.0)


def check_class_weight(class_weight):
    """Raises unless `class_weight` is `None` or a dict of class to weight."""
    if class_weight is None:
        return
    fits = isinstance(class_weight, dict) and class_weight
    if not fits or not all(
        isinstance(label, (int, np.integer)) and label >= 0 and is_number(weight) and weight >= 0
        for label, weight in class_weight.items()
    ):
        raise ValueError(
            message(
                "`class_weight` to be None or a dict of class to weight, 0 or more",
                "class_weight",
                class_weight,
            )
        )


def check_pipeline(epochs, start_epoch, augment, seed):
    """Raises unless the arguments that all pipelines take are in their range."""
    positive_integer("epochs", epochs)
    _check_seed(seed)
    if not isinstance(start_epoch, (int, np.integer)) or not 0 <= start_epoch <= epochs:
        raise ValueError(
            message(f"`start_epoch` to be from 0 to epochs={epochs}", "start_epoch", start_epoch)
        )
    check_augment(augment)


def check_augment(augment):
    """Raises unless `augment` is `None` or a function."""
    if augment is not None and not callable(augment):
        raise ValueError(
            message("`augment` to be None or a function of (images, seeds)", "augment", augment)
            + " For instance `kd.data.crop_and_flip()`."
        )


def check_arrays(images, labels):
    """Both as NumPy arrays; raises unless they are numbers and belong together."""
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim < 2 or len(images) == 0:
        raise ValueError(
            message("`images` to be a non-empty array (samples, ...)", "images.shape", images.shape)
        )
    if labels.ndim == 0 or len(labels) != len(images):
        raise ValueError(
            message(f"`labels` to have {len(images)} entries", "labels.shape", labels.shape)
        )
    for name, array in (("images", images), ("labels", labels)):
        if array.dtype.kind not in "biuf":
            raise ValueError(message(f"`{name}` to be numbers", f"{name}.dtype", str(array.dtype)))
    return images, labels


def _check_seed(seed):
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ValueError(message("`seed` to be a whole number", "seed", seed))
    if not -(2**63) <= seed < 2**63:
        raise ValueError(message("`seed` to fit into 64 bits", "seed", seed))
