"""Batches that overlap by half: what DLB learns from."""

import random

import keras
import numpy as np

from keras_distill._checks import instance
from keras_distill._checks import message
from keras_distill._checks import positive_integer
from keras_distill.data import mixing
from keras_distill.data.batches import as_float
from keras_distill.data.batches import check_class_weight
from keras_distill.data.batches import check_pipeline
from keras_distill.data.batches import class_weights
from keras_distill.data.batches import epoch_order
from keras_distill.data.batches import on_host
from keras_distill.data.batches import sample_seeds
from keras_distill.data.targets import Targets
from keras_distill.data.targets import check_samples

# The parts of `sample_seeds`: those of part 0 are the draws of `batches`.
NEW, REPEATED, MIXED = 0, 1, 2


def overlap_batches(
    dataset,
    half_batch_size,
    augment=None,
    carry=True,
    seed=None,
    start_epoch=0,
    *,
    epochs=1,
    shuffle=True,
    mix=None,
    class_count=None,
    class_weight=None,
    ids=False,
):
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

    halves = Halves(half_batch_size, augment, seed, mix, class_count, class_weight, ids)
    instance("carry", carry, bool, "True or False")
    check_pipeline(epochs, start_epoch, None, halves.seed)
    make = halves.of_samples if hasattr(dataset, "element_spec") else halves.of_arrays
    steps, steps_of, elements = make(dataset, shuffle, as_images=True)
    stream = tf.data.Dataset.range(start_epoch, epochs).flat_map(
        lambda epoch: steps_of(epoch, carry & (epoch > start_epoch))
    )
    return _of_known_length(elements(stream), (epochs - start_epoch) * steps)


def overlap_epoch(arrays, half_batch_size, current, carry=True, shuffle=True, **settings):
    """The overlapping batches of one epoch each time the data set is read, for `fit`.

    The seam crosses the epochs although Keras reads the data set anew for each of them.

    Args:
        arrays: `(x, y)` or `(x, y, sample_weight)`, structures of arrays. `x` stays what it
            is, float64 apart, as in Keras's own `fit` on arrays.
        half_batch_size, carry, shuffle: As in `overlap_batches`.
        current: A function without arguments that gives `(epoch, whether it is the first)` when
            the data set is read.
        **settings: `augment`, `seed`, `mix`, `class_count`, `class_weight` of `overlap_batches`.

    Returns:
        A `tf.data.Dataset` whose cardinality is the steps of an epoch.
    """
    import tensorflow as tf

    halves = Halves(half_batch_size, **settings)
    instance("carry", carry, bool, "True or False")
    steps, steps_of, elements = halves.of_arrays(arrays, shuffle)
    specs = (tf.TensorSpec((), tf.int64), tf.TensorSpec((), tf.bool))
    source = tf.data.Dataset.from_generator(lambda: [current()], output_signature=specs)
    stream = source.flat_map(lambda epoch, is_first: steps_of(epoch, carry & ~is_first))
    return _of_known_length(elements(stream), steps)


class Halves:
    """How samples become overlapping halves; the arguments are those of `overlap_batches`.

    `of_arrays` and `of_samples` return three things: the steps of an epoch; a function of
    (epoch, whether the epoch before it was in the stream) that gives what each step takes, as a
    data set; a function of such a data set that gives the elements.
    """

    def __init__(
        self,
        half_batch_size,
        augment=None,
        seed=None,
        mix=None,
        class_count=None,
        class_weight=None,
        ids=False,
    ):
        self.size = positive_integer("half_batch_size", half_batch_size)
        self.seed = random.randint(0, 2**31 - 1) if seed is None else seed
        if isinstance(augment, keras.layers.Layer):
            augment = mixing.keras_augment(augment)
        check_pipeline(1, 0, augment, self.seed)
        check_class_weight(class_weight)
        self.augment = augment
        self.mix = mix if mix is None else mixing.check_mix(mix)
        self.class_count = class_count
        self.class_weight = class_weight
        self.ids = ids

    def of_arrays(self, arrays, shuffle, as_images=False):
        """From arrays in memory, where each half is taken by its indices."""
        import tensorflow as tf

        instance("shuffle", shuffle, bool, "True or False")
        arrays, count = _checked_arrays(arrays)
        arrays = keras.tree.map_structure(lambda array: on_host(array)[0], arrays)
        steps = self._steps(count)

        def halves_of(epoch, part):
            order = epoch_order(count, self.seed, epoch, shuffle)[: steps * self.size]
            seeds = sample_seeds(self.seed, epoch, order, part)
            order = tf.reshape(order, (steps, self.size))
            seeds = tf.reshape(seeds, (steps, self.size, 2))
            return order, seeds, sample_seeds(self.seed, epoch, order[:, 0], MIXED)

        def steps_of(epoch, follows):
            new = halves_of(epoch, NEW)
            before = tf.cond(
                follows,
                lambda: [part[-1:] for part in halves_of(epoch - 1, REPEATED)],
                lambda: [part[:1] for part in new],
            )
            repeated = halves_of(epoch, REPEATED)
            last = [tf.concat([b, r[:-1]], axis=0) for b, r in zip(before, repeated)]
            both = [tf.stack(parts, axis=1) for parts in zip(last, new)]
            absent = (tf.range(steps) == 0) & ~follows
            return tf.data.Dataset.from_tensor_slices((absent, *both))

        def element(absent, indices, seeds, mix_seeds):
            flat = tf.reshape(indices, [-1])
            x, y, *weight = keras.tree.map_structure(lambda array: tf.gather(array, flat), arrays)
            x = keras.tree.map_structure(as_float, x) if as_images else x
            weight = self._weights(y, *weight)
            sample = flat, x, y, weight
            made = []
            for k, rows in enumerate((slice(None, self.size), slice(self.size, None))):
                own, x, y, weight = tf.nest.map_structure(lambda part: part[rows], sample)
                made.append(self._half(own, [x], [seeds[k]], mix_seeds[k], y, weight))
            ((last,), y_last, w_last), ((new,), y_new, w_new) = made
            w_last = tf.nest.map_structure(lambda w: tf.where(absent, 0.0, w), w_last)
            return (last, new), (y_last, y_new), (w_last, w_new)

        return steps, steps_of, lambda stream: _mapped(stream, element)

    def of_samples(self, samples, shuffle, as_images=True):
        """From a data set of single samples, each read once an epoch."""
        import tensorflow as tf

        steps = self._steps(check_samples(samples, "overlap_batches"))
        held = len(samples) if shuffle is True else shuffle and positive_integer("shuffle", shuffle)

        def steps_of(epoch, follows):
            own = samples.enumerate()
            if held:
                if not tf.executing_eagerly():
                    # `shuffle` mixes its seed with that of the graph, here this function's own.
                    tf.random.set_seed(1)
                word = tf.random.stateless_uniform(
                    (), seed=[self.seed, epoch], minval=None, maxval=None, dtype=tf.int64
                )
                own = own.shuffle(held, seed=word, reshuffle_each_iteration=False)
            halves = own.batch(self.size, drop_remainder=True).enumerate()
            return halves.map(lambda i, half: (epoch, (i > 0) | follows, *half))

        def both(epoch, follows, indices, sample):
            x, y, *weight = sample
            x = keras.tree.map_structure(as_float, x) if as_images else x
            seeds = [sample_seeds(self.seed, epoch, indices, part) for part in (NEW, REPEATED)]
            mix_seed = sample_seeds(self.seed, epoch, indices[:1], MIXED)[0]
            weight = self._weights(y, *weight)
            return (follows, *self._half(indices, [x, x], seeds, mix_seed, y, weight))

        def pair(last, half):
            follows, (new, again), y, weight = half
            absent = new, y, tf.nest.map_structure(tf.zeros_like, weight)
            repeated = tf.cond(follows, lambda: last, lambda: absent)
            return (again, y, weight), tuple(zip(repeated, (new, y, weight)))

        def elements(stream):
            stream = _mapped(stream, both)
            _, (_, again), y, weight = stream.element_spec
            return stream.scan(_zeros((again, y, weight)), pair)

        return steps, steps_of, elements

    def _steps(self, count):
        if count < self.size:
            raise ValueError(
                message(
                    f"`half_batch_size` to be at most the {count} samples",
                    "half_batch_size",
                    self.size,
                )
            )
        return count // self.size

    def _weights(self, y, weight=None):
        """The samples' weights, float32, times those of their classes."""
        import tensorflow as tf

        labels = y.labels if isinstance(y, Targets) else y
        if weight is None:
            weight = tf.ones(tf.shape(tf.nest.flatten(labels)[0])[:1])
        weight = tf.nest.map_structure(lambda w: tf.cast(w, tf.float32), weight)
        if self.class_weight is None:
            return weight
        if tf.nest.is_nested(labels) or tf.nest.is_nested(weight):
            raise ValueError(
                "Expected `class_weight` only for the labels of one output. Received: labels or "
                "weights of several. Give sample weights instead."
            )
        return weight * class_weights(labels, self.class_weight)

    def _half(self, indices, views, seeds, mix_seed, y, weight):
        """A half of an element.

        Args:
            indices: int64 `(n,)`.
            views: The images, once for each appearance that is asked.
            seeds: The augmentation's seeds of each appearance.
            mix_seed: int32 `(2,)`.
            y, weight: Labels and weights.

        Returns:
            `(views, y, weight)`, images augmented and mixed.
        """
        labels = y.labels if isinstance(y, Targets) else y
        if self.augment is not None:
            views = [self.augment(x, own) for x, own in zip(views, seeds)]
        if self.mix is not None:
            views, labels = mixing.mixed(self.mix, views, labels, self.class_count, mix_seed)
        if isinstance(y, Targets):
            labels = Targets({**y, "labels": labels})
        if self.ids:
            labels = Targets(labels if isinstance(y, Targets) else {"labels": labels})
            labels["ids"] = indices
        return tuple(views), labels, weight


def _mapped(dataset, function):
    import tensorflow as tf

    return dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _of_known_length(dataset, length):
    import tensorflow as tf

    dataset = dataset.apply(tf.data.experimental.assert_cardinality(length))
    return dataset.prefetch(tf.data.AUTOTUNE)


def _zeros(specs):
    """Tensors of these specs: what stands before the first half."""
    import tensorflow as tf

    for spec in tf.nest.flatten(specs):
        if not spec.shape.is_fully_defined():
            raise ValueError(
                message("samples of one known shape", "element_spec", specs)
                + " Resize the images, or tell their shape: `tf.ensure_shape`."
            )
    return tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), specs)


def _checked_arrays(arrays):
    """The structure with NumPy arrays for leaves, float64 as Keras's floatx, and their length."""
    instance("dataset", arrays, tuple, "arrays (images, labels) or a tf.data.Dataset")
    if len(arrays) not in (2, 3):
        raise ValueError(
            message("(images, labels) or (images, labels, sample_weight)", "entries", len(arrays))
        )

    def as_array(value):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise ValueError(message("arrays of numbers", "array", value))
        return array.astype(keras.config.floatx()) if array.dtype == "float64" else array

    arrays = keras.tree.map_structure(as_array, keras.tree.lists_to_tuples(arrays))
    lengths = {len(array) for array in keras.tree.flatten(arrays)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(message("arrays of one length, above 0", "lengths", sorted(lengths)))
    return arrays, lengths.pop()
