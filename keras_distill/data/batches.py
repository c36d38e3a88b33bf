"""Batches from arrays whose order and augmentation depend on (seed, epoch, sample) only."""

import math

import numpy as np

from keras_distill._checks import is_number
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
    images, labels = check_arrays(images, labels)
    check_pipeline(epochs, start_epoch, augment, seed)
    dataset = index_batches(
        len(images),
        batch_size,
        epochs=epochs,
        start_epoch=start_epoch,
        shuffle=shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
    )
    images, labels = on_host(images, labels)

    def take(epoch, indices):
        import tensorflow as tf

        x = take_images(images, indices, augment, seed, epoch)
        y = tf.gather(labels, indices)
        return x, Targets(labels=y, ids=indices) if ids else y

    return map_in_order(dataset, take)


# What the pipelines of pairs, views and halves share with `batches`.


def index_batches(
    sample_count, batch_size, *, epochs, start_epoch, shuffle, seed, drop_remainder=False
):
    """A `tf.data.Dataset` of (epoch, indices of a batch), both int64, of known cardinality.

    Args:
        sample_count: Number of samples.
        batch_size, epochs, start_epoch, shuffle, seed, drop_remainder: As in `batches`.

    Raises:
        ValueError: If no batch is left.
    """
    import tensorflow as tf

    steps = full_steps(sample_count, batch_size, drop_remainder)

    def epoch_batches(epoch):
        order = epoch_order(sample_count, seed, epoch, shuffle)
        indices = tf.data.Dataset.from_tensor_slices(order)
        indices = indices.batch(batch_size, drop_remainder=drop_remainder)
        return indices.map(lambda batch: (epoch, batch))

    dataset = tf.data.Dataset.range(start_epoch, epochs).flat_map(epoch_batches)
    total = (epochs - start_epoch) * steps
    return dataset.apply(tf.data.experimental.assert_cardinality(total))


def full_steps(sample_count, batch_size, drop_remainder):
    """`steps_per_epoch`; raises where no batch is left."""
    steps = steps_per_epoch(sample_count, batch_size, drop_remainder)
    if steps == 0:
        raise ValueError(
            message(
                f"`batch_size` to be at most the {sample_count} samples", "batch_size", batch_size
            )
            + " Or leave `drop_remainder` off."
        )
    return steps


def epoch_order(sample_count, seed, epoch, shuffle=True):
    """The order of an epoch: an int64 permutation, a function of (seed, epoch)."""
    import tensorflow as tf

    order = tf.range(sample_count, dtype=tf.int64)
    if shuffle:
        order = tf.random.experimental.stateless_shuffle(order, seed=[seed, epoch])
    return order


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
    """`dataset.map` in parallel, order and cardinality kept, the next elements made ahead."""
    import tensorflow as tf

    dataset = dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def on_host(*arrays):
    """The arrays as tensors in the machine's memory, where the whole data set stays."""
    import tensorflow as tf

    with tf.device("CPU:0"):
        return [tf.convert_to_tensor(array) for array in arrays]


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
