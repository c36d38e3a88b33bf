"""Views of samples that can be had again: augmented and mixed by stored seeds alone."""

from typing import Any
from typing import NamedTuple

import keras
import numpy as np

from keras_distill.data.augment import random_uniform
from keras_distill.data.mixing import check_mix
from keras_distill.data.pipeline import as_float
from keras_distill.data.pipeline import check_augment

# Tells the draws of a box from those of the augmentation, which begin with the same seed.
BOX_WORD = 0x2545F491


class Draws(NamedTuple):
    """What is drawn for each sample of a view, arrays `(samples,)`, or tensors of a batch.

    Attributes:
        seed: int32, by which the sample's augmentation draws.
        partner: int32, the sample that is mixed in; `None` without mixing.
        partner_seed: int32, the partner's own seed in this view.
        amount: float32, the sample's own share, before a box meets the border.
    """

    seed: Any
    partner: Any = None
    partner_seed: Any = None
    amount: Any = None


def draws_of_view(samples, view, seed, mix=None):
    """The draws of a view: a function of (seed, view), by NumPy's PCG64.

    Args:
        samples: Number of samples.
        view: Number of the view.
        seed: Whole number, 0 or more.
        mix: `None`, `keras.layers.MixUp` or `keras.layers.CutMix`, whose settings say how much is
            mixed. Partners are a permutation: each sample is mixed into one other.
    """
    rng = np.random.Generator(np.random.PCG64([seed, view]))
    words = rng.integers(-(2**31), 2**31, samples, dtype="int32")
    if mix is None:
        return Draws(words)
    partner = rng.permutation(samples).astype("int32")
    alpha = mix.alpha if isinstance(mix, keras.layers.MixUp) else rng.uniform(*mix.factor, samples)
    alpha = np.broadcast_to(alpha, (samples,))
    amount = np.where(alpha > 0, rng.beta(np.maximum(alpha, 1e-3), np.maximum(alpha, 1e-3)), 1.0)
    return Draws(words, partner, words[partner], amount.astype("float32"))


class Replay:
    """Makes a view of samples from their draws.

    Args:
        augment: `None`, or a function of (images, seeds), see `keras_distill.data.augment`. One
            that draws once a batch (`keras_augment`) is given samples one by one, so that a view
            does not depend on the batch that it is in.
        mix: `None`, `keras.layers.MixUp` or `keras.layers.CutMix`.
        class_count: Number of classes of labels that are class ids; needed to mix them.
    """

    def __init__(self, augment=None, mix=None, class_count=None):
        check_augment(augment)
        if mix is not None:
            check_mix(mix)
        self.augment = augment
        self.mix = mix
        self.class_count = class_count

    def one(self, images, indices, seeds):
        """Images as float32, augmented: each by its own seed and index."""
        import tensorflow as tf

        images = as_float(images)
        if self.augment is None:
            return images
        words = tf.stack([seeds, tf.cast(indices, tf.int32)], axis=1)
        if not getattr(self.augment, "by_batch", False):
            return self.augment(images, words)

        def of_one(pair):
            image, word = pair
            return self.augment(image[tf.newaxis], word[tf.newaxis])[0]

        return tf.map_fn(of_one, (images, words), fn_output_signature=images.dtype)

    def mixed(self, view, other, labels, other_labels, draws):
        """A view and its labels with those of the partner mixed in."""
        import tensorflow as tf

        own = draws.amount[:, None, None, None]
        if isinstance(self.mix, keras.layers.MixUp):
            view, share = own * view + (1.0 - own) * other, draws.amount
        else:
            inside = _boxes(draws, view.shape[1], view.shape[2])
            view = tf.where(inside[..., None], other, view)
            share = 1.0 - tf.reduce_mean(tf.cast(inside, tf.float32), axis=[1, 2])
        labels, other_labels = (self._distributions(y) for y in (labels, other_labels))
        return view, share[:, None] * labels + (1.0 - share)[:, None] * other_labels

    def _distributions(self, labels):
        import tensorflow as tf

        if labels.shape.rank == 2 and labels.shape[-1] > 1:
            return tf.cast(labels, tf.float32)
        return tf.one_hot(tf.reshape(tf.cast(labels, tf.int32), [-1]), self.class_count)

    def description(self, images):
        """What a manifest says of the augmentation: its kind, and views of a few images.

        Args:
            images: NumPy array, the first samples.
        """
        import tensorflow as tf

        probe = tf.convert_to_tensor(images)
        seeds = tf.range(len(images), dtype=tf.int32) + 1
        views = self.one(probe, tf.range(len(images)), seeds).numpy()
        if not np.isfinite(views).all():
            raise ValueError(
                "Expected images, augmented, that are finite float32 numbers. Received: NaN or "
                f"infinity in one of the first {len(images)}. Mend the images or the augmentation."
            )
        mix = None
        if self.mix is not None:
            setting = (
                self.mix.alpha if isinstance(self.mix, keras.layers.MixUp) else self.mix.factor
            )
            mix = [type(self.mix).__name__, np.ravel(setting).tolist()]
        return {"mix": mix, "shape": list(views.shape[1:]), "probe": _sketch(views)}


def _boxes(draws, height, width):
    """Whether each position lies in the sample's box, `(batch, height, width)`.

    CutMix (Yun et al. 2019): sides sqrt(1 - amount) of the image's, any centre, cut at the border.
    """
    import tensorflow as tf

    words = tf.stack([tf.bitwise.bitwise_xor(draws.seed, BOX_WORD), draws.partner], axis=1)
    centre = random_uniform(words, 2)
    half = tf.sqrt(1.0 - draws.amount) / 2.0

    def inside(centre, size):
        place = (tf.range(size, dtype=tf.float32) + 0.5) / size
        return tf.abs(place[tf.newaxis] - centre[:, tf.newaxis]) < half[:, tf.newaxis]

    rows, columns = inside(centre[:, 0], height), inside(centre[:, 1], width)
    return rows[:, :, tf.newaxis] & columns[:, tf.newaxis, :]


def _sketch(views):
    """A random projection of each view: any change that can be seen changes it."""
    flat = views.reshape(len(views), -1).astype("float64")
    weights = np.random.Generator(np.random.PCG64(0)).standard_normal(flat.shape[1])
    return (flat @ weights / np.sqrt(max(flat.shape[1], 1))).round(7).tolist()


def same_probe(one, other):
    """Whether two probes are alike up to rounding, which differs between machines."""
    same_length = len(one) == len(other)
    return same_length and all(abs(float(a) - float(b)) <= 1e-4 for a, b in zip(one, other))
