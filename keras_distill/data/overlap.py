"""Batches that overlap by half: what DLB learns from."""

from collections.abc import Mapping

import keras
import numpy as np

from keras_distill._types import Augment
from keras_distill._types import Dataset
from keras_distill.data.halves import ArraySource
from keras_distill.data.halves import Halves
from keras_distill.data.halves import SampleSource
from keras_distill.data.pipeline import check_pipeline
from keras_distill.data.pipeline import prefetched
from keras_distill.data.targets import Targets


def overlap_batches(
    dataset: tuple[np.ndarray, ...] | Dataset,
    half_batch_size: int,
    augment: Augment | None = None,
    carry: bool = True,
    seed: int | None = None,
    start_epoch: int = 0,
    *,
    epochs: int = 1,
    shuffle: bool | int = True,
    mix: keras.layers.Layer | None = None,
    class_count: int | None = None,
    class_weight: Mapping[int, float] | None = None,
    ids: bool = False,
    other_view: bool = False,
) -> Dataset:
    """Batches whose first half was the second half of the batch before.

    An element is `((x_last, x_new), (y_last, y_new), (w_last, w_new))`, each half of
    `half_batch_size` samples. `x_last` holds the images of the `x_new` before it, augmented
    anew. The weights are the caller's own, 1 where there are none; a repeated half whose
    weights are all 0 is absent, and a copy of the new half stands in its place (so that it
    changes no batch statistics). Absent is the first one of the stream; with `carry=False`
    the first one of each epoch. For a `DLBModel`:

        steps = steps_per_epoch(len(images), n, drop_remainder=True)
        dataset = overlap_batches(
            (images, labels), n, crop_and_flip(), seed=0, epochs=epochs, start_epoch=start
        )
        model.fit(
            dataset, epochs=epochs, initial_epoch=start, steps_per_epoch=steps, shuffle=False
        )

    Each sample is new once an epoch and comes again in the next step: it is forwarded twice
    an epoch. Compare with a plain `fit` of twice the epochs on batches of `2 * n`.

    The order of the new halves is that of `batches`, a function of (seed, epoch); the
    augmentation is one of (seed, epoch, sample, appearance), that of the first appearance the
    one of `batches`. So a run resumed at `start_epoch` sees the new halves that an undisturbed
    one sees. Its first repeated half is absent: with `carry=False` it was so anyway, and the
    runs are equal; with `carry=True` they differ by this one half.

    Args:
        dataset: `(images, labels)` or `(images, labels, sample_weight)` as arrays, images as in
            `batches`; or a finite `tf.data.Dataset` of single samples `(x, y)` or `(x, y,
            sample_weight)`, whose own order is the same each time it is read. Each image is
            read and decoded once an epoch.
        half_batch_size: New samples in an element, n (under a strategy of all replicas). The
            remainder of an epoch is dropped.
        augment: None, a function of (images, seeds), see `keras_distill.data.augment`, or an
            image layer of Keras, see `keras_augment`.
        carry: Whether an epoch's first repeated half is the last new half of the epoch
            before, as in the official code; else it is absent.
        seed: Whole number. `None` takes one from Python's `random`, which
            `keras.utils.set_random_seed` seeds; a run that is resumed needs a number.
        start_epoch, epochs: As in `batches`.
        shuffle: As in `batches`. For a data set, a whole number is how many samples are held
            in memory to draw from; True holds them all, False keeps its order.
        mix: None, `keras.layers.CutMix` or `keras.layers.MixUp`. Mixes the samples of a half;
            permutation, weights and boxes are drawn once for both appearances, so that the
            images that are compared stay the same. The labels become one-hot (or stay
            distributions), the weight is that of the image that is mixed into.
        class_count: Number of classes, which `mix` needs where labels are class ids.
        class_weight: A dict of class to weight, multiplied with the weights (before mixing).
            Keras itself takes none for such elements.
        ids: Whether `y` is `Targets(labels=..., ids=...)`, ids the index of the sample.
        other_view: Whether `x_new` is `(x_new, x_other)`, with another augmentation of the same
            images, for a `DLBModel` with a `distortion_weight` (DDGSD beside DLB).

    Returns:
        A `tf.data.Dataset` of known cardinality, `(epochs - start_epoch) * steps`.

    Raises:
        ValueError: If there are fewer than `half_batch_size` samples, or an argument is out of
            its range.

    Reference:
        Shen et al., 2022, https://arxiv.org/abs/2203.16172. Convention of
        Meta-knowledge-Lab/DLB: two independent augmentations, the seam crosses the epochs.
        Deviation: the remainder of an epoch is dropped, where the code has a short half.
        Deviation: the code has no mixing.
    """
    import tensorflow as tf

    halves = Halves(
        half_batch_size, augment, carry, seed, mix, class_count, class_weight, ids, other_view
    )
    check_pipeline(epochs, start_epoch, None, halves.seed)
    source = SampleSource if hasattr(dataset, "element_spec") else ArraySource
    source = source(halves, dataset, shuffle, as_images=True)
    stream = tf.data.Dataset.range(start_epoch, epochs).flat_map(
        lambda epoch: source.halves_of(epoch, carry & (epoch > start_epoch))
    )
    return _of_known_length(source.elements(stream), (epochs - start_epoch) * source.steps)


def overlap_epoch(arrays, half_batch_size, current, shuffle=True, **settings):
    """The overlapping batches of one epoch each time the data set is read, for `fit`.

    The seam crosses the epochs although Keras reads the data set anew for each of them.

    Args:
        arrays: `(x, y)` or `(x, y, sample_weight)`, structures of arrays. `x` stays what it
            is, float64 apart, as in Keras's own `fit` on arrays.
        half_batch_size, shuffle: As in `overlap_batches`.
        current: A function without arguments that gives `(epoch, whether it is the first)` when
            the data set is read.
        **settings: `augment`, `carry`, `seed`, `mix`, `class_count`, `class_weight`,
            `other_view` of `overlap_batches`.

    Returns:
        A `tf.data.Dataset` whose cardinality is the steps of an epoch.
    """
    import tensorflow as tf

    halves = Halves(half_batch_size, **settings)
    source = ArraySource(halves, arrays, shuffle)

    def taken():
        number, is_first = current()
        follows = tf.constant(halves.carry and not is_first)
        with tf.device("CPU:0"):
            return source.taken(tf.constant(number, tf.int64), follows)

    specs = tf.nest.map_structure(tf.type_spec_from_value, taken())
    flat = tf.nest.flatten(specs)

    # One call of Python an epoch: an iterator over this begins in half the time that one over
    # a graph that does the same, or over `from_generator`, takes.
    def read(_):
        tensors = tf.numpy_function(
            lambda: [part.numpy() for part in tf.nest.flatten(taken())],
            [],
            [spec.dtype for spec in flat],
        )
        tensors = [tf.ensure_shape(tensor, spec.shape) for tensor, spec in zip(tensors, flat)]
        return tf.nest.pack_sequence_as(specs, tensors)

    stream = tf.data.Dataset.from_tensors(0).map(read).unbatch()
    return _of_known_length(source.elements(stream), source.steps)


def _of_known_length(dataset, length):
    import tensorflow as tf

    dataset = dataset.apply(tf.data.experimental.assert_cardinality(length))
    dataset = prefetched(dataset)
    dataset.overlaps = True  # Read by `check_overlap`, which then need not look.
    return dataset


def check_overlap(dataset):
    """Raises where the second element does not repeat the first, as ids or labels tell.

    Args:
        dataset: A `tf.data.Dataset` of elements as `overlap_batches` makes them. One that it
            made is not looked at.
    """
    if getattr(dataset, "overlaps", False):
        return
    elements = list(dataset.take(2).as_numpy_iterator())
    if len(elements) < 2:
        return
    (_, y, *_), (_, y_next, *weight) = elements
    absent = weight and not any(np.any(w) for w in keras.tree.flatten(weight[0][0]))
    new, repeated = (
        y["ids"] if isinstance(y, Targets) and "ids" in y else y for y in (y[1], y_next[0])
    )
    pairs = zip(keras.tree.flatten(new), keras.tree.flatten(repeated))
    if not absent and not all(np.array_equal(a, b) for a, b in pairs):
        raise ValueError(
            "Expected the repeated half of an element to be the new half of the one before. "
            "Received: a data set whose second element repeats other labels than the first has. "
            "Make it with keras_distill.data.overlap_batches(...), and do not shuffle it."
        )
