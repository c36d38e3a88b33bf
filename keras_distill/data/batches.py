"""Batches from arrays whose order and augmentation depend on (seed, epoch, sample) only."""

import keras
import numpy as np

from keras_distill._checks import positive_integer
from keras_distill._types import Augment
from keras_distill._types import Dataset
from keras_distill.data import mixing
from keras_distill.data.pipeline import Order
from keras_distill.data.pipeline import check_arrays
from keras_distill.data.pipeline import check_pipeline
from keras_distill.data.pipeline import made_ahead
from keras_distill.data.pipeline import on_host
from keras_distill.data.pipeline import sample_seeds
from keras_distill.data.pipeline import take_images
from keras_distill.data.targets import Targets

MIXED = 1  # The part of a sample's draws by which batches are mixed.


def batches(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    *,
    epochs: int = 1,
    start_epoch: int = 0,
    shuffle: bool = True,
    augment: Augment | None = None,
    seed: int = 0,
    ids: bool = False,
    drop_remainder: bool = False,
    mix: keras.layers.Layer | None = None,
    class_count: int | None = None,
) -> Dataset:
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
        mix: None, `keras.layers.MixUp` or `keras.layers.CutMix`: the augmented images of a batch
            are mixed among each other. Labels then are distributions `(batch, classes)`.
        class_count: Number of classes, which `mix` needs where labels are class ids.

    Returns:
        A `tf.data.Dataset` of (images, labels), images float32, with a known cardinality
        of `(epochs - start_epoch) * steps`.

    Raises:
        ValueError: If there is nothing to batch, the arrays differ in length, or an
            argument is out of its range.
    """
    images, labels = check_arrays(images, labels)
    check_pipeline(epochs, start_epoch, augment, seed)
    if mix is not None:
        mixing.check_mix(mix)
        if labels.ndim == 1 or labels.shape[-1] == 1:
            positive_integer("class_count", class_count)
    order = Order(batch_size, epochs, start_epoch, shuffle, seed, drop_remainder)
    dataset = order.of_indices(len(images))
    images, labels = on_host(images, labels)

    def take(epoch, indices):
        import tensorflow as tf

        x = take_images(images, indices, augment, seed, epoch)
        y = tf.gather(labels, indices)
        if mix is not None:
            words = sample_seeds(seed, epoch, indices[:1], MIXED)[0]
            (x,), y = mixing.mixed(mix, [x], y, class_count, words)
        return x, Targets(labels=y, ids=indices) if ids else y

    return made_ahead(dataset, take)
