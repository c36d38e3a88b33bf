"""Halves of a batch, made from arrays or from single samples: the parts of `overlap_batches`."""

import random

import keras
import numpy as np

from keras_distill._checks import instance
from keras_distill._checks import message
from keras_distill._checks import positive_integer
from keras_distill.data import mixing
from keras_distill.data.pipeline import as_float
from keras_distill.data.pipeline import check_class_weight
from keras_distill.data.pipeline import check_pipeline
from keras_distill.data.pipeline import class_weights
from keras_distill.data.pipeline import epoch_order
from keras_distill.data.pipeline import epoch_samples
from keras_distill.data.pipeline import map_in_order
from keras_distill.data.pipeline import on_host
from keras_distill.data.pipeline import sample_seeds
from keras_distill.data.pipeline import samples_held
from keras_distill.data.targets import Targets
from keras_distill.data.targets import check_samples

# The parts of `sample_seeds`: those of part 0 are the draws of `batches`.
NEW, REPEATED, MIXED, OTHER = 0, 1, 2, 3


class Halves:
    """How a half is made of samples; the arguments are those of `overlap_batches`."""

    def __init__(
        self,
        half_batch_size,
        augment=None,
        carry=True,
        seed=None,
        mix=None,
        class_count=None,
        class_weight=None,
        ids=False,
        other_view=False,
    ):
        self.size = positive_integer("half_batch_size", half_batch_size)
        self.carry = instance("carry", carry, bool, "True or False")
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
        self.other_view = instance("other_view", other_view, bool, "True or False")
        if other_view and augment is None:
            raise ValueError(
                message(
                    "`augment` with other_view=True, or both views would be the same image",
                    "augment",
                    augment,
                )
            )

    def steps(self, sample_count):
        """The steps of an epoch; raises where there are none."""
        if sample_count < self.size:
            raise ValueError(
                message(
                    f"`half_batch_size` to be at most the {sample_count} samples",
                    "half_batch_size",
                    self.size,
                )
            )
        return sample_count // self.size

    def weights(self, y, weight=None):
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

    def make(self, indices, views, y, seeds=None, mix_seed=None):
        """Augments and mixes a half.

        Args:
            indices: int64 `(n,)`.
            views: The images, once for each appearance that is asked.
            y: The labels.
            seeds: Those of the augmentation, int32 `(n, 2)`, for each appearance.
            mix_seed: int32 `(2,)`, one for all appearances.

        Returns:
            `(views, y)`.
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
        return views, labels


class ArraySource:
    """Arrays in memory, of which each half is taken by its indices.

    Attributes:
        steps: Steps of an epoch.
    """

    def __init__(self, halves, arrays, shuffle, as_images=False):
        self.halves = halves
        self.shuffle = instance("shuffle", shuffle, bool, "True or False")
        self.as_images = as_images
        arrays, self.count = _checked_arrays(arrays)
        self.steps = halves.steps(self.count)
        self.arrays = keras.tree.map_structure(lambda array: on_host(array)[0], arrays)

    def taken(self, epoch, follows):
        """What the steps of an epoch take: a dict of tensors, the steps first.

        Args:
            epoch: int64 scalar.
            follows: Whether the epoch before it was in the stream.
        """
        import tensorflow as tf

        new = self._order(epoch)
        first = tf.cond(follows, lambda: self._order(epoch - 1)[-1:], lambda: new[:1])
        last = tf.concat([first, new[:-1]], axis=0)
        absent = (tf.range(self.steps) == 0) & ~follows
        parts = {"absent": absent, "indices": tf.stack([last, new], axis=1)}
        if self.halves.augment is not None:
            seeds = tf.cond(
                follows,
                lambda: self._seeds(epoch - 1, first, REPEATED),
                lambda: self._seeds(epoch, first, NEW),  # Absent: a copy of the new half.
            )
            seeds = tf.concat([seeds, self._seeds(epoch, new[:-1], REPEATED)], axis=0)
            parts["seeds"] = tf.stack([seeds, self._seeds(epoch, new, NEW)], axis=1)
            if self.halves.other_view:
                parts["other_seeds"] = self._seeds(epoch, new, OTHER)
        if self.halves.mix is not None:
            seeds = self._seeds(epoch, new[:, :1], MIXED)
            before = tf.where(follows, epoch - 1, epoch)
            last = tf.concat([self._seeds(before, first[:, :1], MIXED), seeds[:-1]], axis=0)
            parts["mix_seeds"] = tf.concat([last, seeds], axis=1)
        return parts

    def halves_of(self, epoch, follows):
        """The same as a data set of steps."""
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices(self.taken(epoch, follows))

    def _order(self, epoch):
        """The indices of an epoch, `(steps, n)`."""
        import tensorflow as tf

        order = epoch_order(self.count, self.halves.seed, epoch, self.shuffle)
        size = self.halves.size
        return tf.reshape(order[: self.steps * size], (self.steps, size))

    def _seeds(self, epoch, indices, part):
        import tensorflow as tf

        seeds = sample_seeds(self.halves.seed, epoch, tf.reshape(indices, [-1]), part)
        return tf.reshape(seeds, (*indices.shape, 2))

    def elements(self, stream):
        """The elements of a data set of steps."""
        return map_in_order(stream, self._element)

    def _element(self, step):
        import tensorflow as tf

        size = self.halves.size
        indices = tf.reshape(step["indices"], [-1])
        x, y, *w = keras.tree.map_structure(lambda array: tf.gather(array, indices), self.arrays)
        x = keras.tree.map_structure(as_float, x) if self.as_images else x
        sample = indices, x, y, self.halves.weights(y, *w)
        made = []
        for half in (0, 1):
            rows = slice(half * size, (half + 1) * size)
            own, x, y, w = tf.nest.map_structure(lambda part, rows=rows: part[rows], sample)
            seeds = {"seeds": [step["seeds"][half]]} if "seeds" in step else {}
            if half == 1 and self.halves.other_view:
                seeds["seeds"].append(step["other_seeds"])
            if "mix_seeds" in step:
                seeds["mix_seed"] = step["mix_seeds"][half]
            views, y = self.halves.make(own, [x] * len(seeds.get("seeds", [x])), y, **seeds)
            made.append((views[0] if len(views) == 1 else tuple(views), y, w))
        (x_last, y_last, w_last), new = made
        w_last = tf.nest.map_structure(lambda w: tf.where(step["absent"], 0.0, w), w_last)
        return tuple(zip((x_last, y_last, w_last), new))


class SampleSource:
    """A data set of single samples, each read once an epoch.

    Attributes:
        steps: Steps of an epoch.
    """

    def __init__(self, halves, samples, shuffle, as_images=False):
        self.halves = halves
        self.samples = samples
        self.as_images = as_images
        count = check_samples(samples, "overlap_batches")
        self.steps = halves.steps(count)
        self.held = samples_held(shuffle, count)

    def halves_of(self, epoch, follows):
        """The halves of an epoch: (epoch, whether there is one before it, indices, samples)."""
        own = epoch_samples(self.samples, self.halves.seed, epoch, self.held)
        halves = own.batch(self.halves.size, drop_remainder=True).enumerate()
        return halves.map(lambda i, half: (epoch, (i > 0) | follows, *half))

    def elements(self, stream):
        """The elements of a data set of halves."""
        stream = map_in_order(stream, self._twice)
        _, (_, again, *_), y, weight = stream.element_spec
        return stream.scan(_zeros((again, y, weight)), self._pair)

    def _twice(self, epoch, follows, indices, sample):
        """A half at its first appearance and at its second, and perhaps its other view."""
        x, y, *weight = sample
        x = keras.tree.map_structure(as_float, x) if self.as_images else x
        seed = self.halves.seed
        parts = (NEW, REPEATED, OTHER) if self.halves.other_view else (NEW, REPEATED)
        seeds = [sample_seeds(seed, epoch, indices, part) for part in parts]
        mix_seed = sample_seeds(seed, epoch, indices[:1], MIXED)[0]
        views, labels = self.halves.make(indices, [x] * len(parts), y, seeds, mix_seed)
        return follows, tuple(views), labels, self.halves.weights(y, *weight)

    @staticmethod
    def _pair(last, half):
        import tensorflow as tf

        follows, (new, again, *other), y, weight = half
        absent = new, y, tf.nest.map_structure(tf.zeros_like, weight)
        repeated = tf.cond(follows, lambda: last, lambda: absent)
        own = (new, *other) if other else new
        return (again, y, weight), tuple(zip(repeated, (own, y, weight)))


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
