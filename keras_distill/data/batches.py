"""Batches from arrays whose order and augmentation depend on (seed, epoch, sample) only."""

import math

import numpy as np

from keras_distill._checks import message
from keras_distill._checks import positive_integer
from keras_distill.data.targets import Targets


def steps_per_epoch(sample_count, batch_size, drop_remainder=False):
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


def batches(
    images,
    labels,
    batch_size,
    *,
    epochs=1,
    start_epoch=0,
    shuffle=True,
    augment=None,
    seed=0,
    ids=False,
    drop_remainder=False,
):
    """Builds one data set of all the batches of a training.

    The order in an epoch is a function of (seed, epoch), the augmentation of a sample
    one of (seed, epoch, sample), so that a training taken up again at `start_epoch` sees
    what an undisturbed one sees. Batches never reach over the end of an epoch. Fit as

        steps = steps_per_epoch(len(images), batch_size)
        dataset = batches(images, labels, batch_size, epochs=epochs, start_epoch=start)
        model.fit(
            dataset, epochs=epochs, initial_epoch=start, steps_per_epoch=steps, shuffle=False
        )

    (`shuffle=False` only keeps Keras from warning that a data set has its own order.)
    Under `steps_per_execution`, choose one that divides `steps` (a matter of Keras: a
    call to `fit` with `steps_per_epoch` otherwise takes batches of the next epoch).

    Args:
        images: NumPy array of shape `(samples, ...)`, usually `(samples, height, width,
            channels)`. uint8 is kept until a batch is taken and becomes float32 in 0..1;
            any other dtype becomes float32 unscaled.
        labels: NumPy array with `samples` entries, of any shape beyond the first axis.
        batch_size: Samples in a batch (the global batch under a strategy).
        epochs: Number of the epoch after the last one, as in `fit`.
        start_epoch: Number of the first epoch, as `initial_epoch` in `fit`. Where it
            equals `epochs` nothing is left and the data set is empty.
        shuffle: Whether each epoch has an order of its own; else that of the arrays.
        augment: None, or a function of (images, seeds), see `keras_distill.data.augment`.
        seed: Whole number.
        ids: Whether `y` is `Targets(labels=..., ids=...)`, ids the index in `images`.
        drop_remainder: Whether an epoch's last, shorter batch is left out.

    Returns:
        A `tf.data.Dataset` of (images, labels), images float32, with a known cardinality
        of `(epochs - start_epoch) * steps`.

    Raises:
        ValueError: If there is nothing to batch, the arrays differ in length, or an
            argument is out of its range.
    """
    import tensorflow as tf

    images, labels = _check_arrays(images, labels)
    positive_integer("epochs", epochs)
    _check_seed(seed)
    if not isinstance(start_epoch, (int, np.integer)) or not 0 <= start_epoch <= epochs:
        raise ValueError(
            message(f"`start_epoch` to be from 0 to epochs={epochs}", "start_epoch", start_epoch)
        )
    if augment is not None and not callable(augment):
        raise ValueError(
            message("`augment` to be None or a function of (images, seeds)", "augment", augment)
            + " For instance `kd.data.crop_and_flip()`."
        )
    count = len(images)
    steps = steps_per_epoch(count, batch_size, drop_remainder)
    if steps == 0:
        raise ValueError(
            message(f"`batch_size` to be at most the {count} samples", "batch_size", batch_size)
            + " Or leave `drop_remainder` off."
        )

    with tf.device("CPU:0"):  # the whole data set stays in the machine's memory
        images = tf.convert_to_tensor(images)
        labels = tf.convert_to_tensor(labels)

    def epoch_batches(epoch):
        order = tf.range(count, dtype=tf.int64)
        if shuffle:
            order = tf.random.experimental.stateless_shuffle(order, seed=[seed, epoch])
        indices = tf.data.Dataset.from_tensor_slices(order)
        indices = indices.batch(batch_size, drop_remainder=drop_remainder)
        return indices.map(lambda batch: (epoch, batch))

    def take(epoch, indices):
        x = tf.cast(tf.gather(images, indices), tf.float32)
        if images.dtype == tf.uint8:
            x = x / 255.0
        if augment is not None:
            word = tf.random.stateless_uniform(
                (), seed=[seed, epoch], minval=None, maxval=None, dtype=tf.int32
            )
            second = tf.cast(indices, tf.int32)
            x = augment(x, tf.stack([tf.fill(tf.shape(second), word), second], axis=1))
        y = tf.gather(labels, indices)
        return x, Targets(labels=y, ids=indices) if ids else y

    dataset = tf.data.Dataset.range(start_epoch, epochs).flat_map(epoch_batches)
    dataset = dataset.map(take, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    total = (epochs - start_epoch) * steps
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(total))
    return dataset.prefetch(tf.data.AUTOTUNE)


def _check_arrays(images, labels):
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
