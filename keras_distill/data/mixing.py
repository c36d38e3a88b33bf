"""Keras's own image layers (CutMix, MixUp, RandomErasing, ...) with seeds that a run repeats.

A Keras layer draws from a state that moves with each call, so that in a parallel pipeline, or
after a kill, its draws are others. Here each draw is a function of the seeds that the pipeline
gives.
"""

import contextlib
from collections.abc import Callable

import keras

from keras_distill import _keras
from keras_distill._checks import instance
from keras_distill._checks import message
from keras_distill._checks import positive_integer
from keras_distill._types import Augment
from keras_distill._types import Tensor

MIXING = (keras.layers.CutMix, keras.layers.MixUp)


def keras_augment(*layers: Callable[..., Tensor]) -> Augment:
    """Image layers of Keras as one function of (images, seeds), for `augment`.

    The layers are applied in turn. Their draws are a function of the batch's first seed, so
    of (seed, epoch, first sample): a resumed run repeats them.

    Args:
        *layers: Layers of Keras that change images alone, such as `keras.layers.RandomErasing((1.0,
            1.0), fill_value=0.0, value_range=(0, 1))` (a rectangle of each image, as Cutout has),
            `keras.layers.RandomTranslation(0.1, 0.1)`, `keras.layers.RandAugment(value_range=(0,
            1))`, or functions of (images, seeds).
            Of a `factor` that is one number Keras draws the probability between 0 and it:
            `RandomErasing(1.0)` erases half of the images, and fills with noise.
            For layers that mix images, see `mix` of `overlap_batches`.

    Returns:
        A function of (images, seeds), see `keras_distill.data.augment`.

    Raises:
        ValueError: If something else is among the layers.

    Example:
        >>> cutout = keras.layers.RandomErasing((1.0, 1.0), fill_value=0.0, value_range=(0, 1))
        >>> augment = kd.data.keras_augment(kd.data.crop_and_flip(), cutout)
    """
    for layer in layers:
        if isinstance(layer, MIXING):
            raise ValueError(
                message("layers that change each image alone", "layer", layer)
                + " Give a layer that mixes as `mix` of `overlap_batches`."
            )
        if not (_is_repeatable(layer) or (callable(layer) and not _is_layer(layer))):
            raise ValueError(
                message("image layers of Keras or functions of (images, seeds)", "layer", layer)
                + " Layers made of others, but for RandAugment, keep states of their own."
            )

    def augment(images, seeds):
        for place, layer in enumerate(layers):
            if _is_layer(layer):
                transformation = draw(layer, images, seeds[0], place)
                images = transform(layer, images, transformation)
            else:
                images = layer(images, seeds)
        return images

    augment.by_batch = any(_is_layer(layer) for layer in layers)
    return augment


def check_mix(layer):
    """Returns `layer`; raises unless it is one that mixes images and labels."""
    return instance(
        "mix",
        layer,
        MIXING,
        "a keras.layers.CutMix or keras.layers.MixUp",
        "Layers that change each image alone belong to `augment`.",
    )


def mixed(layer, views, labels, class_count, seed):
    """Views of one batch, mixed alike, and their labels.

    Args:
        layer: `keras.layers.CutMix` or `keras.layers.MixUp`. CutMix of the paper's alpha of 1 is
            `CutMix((1.0, 1.0))`; of `CutMix(1.0)`, Keras's default, it is drawn between 0 and 1.
        views: A list of float tensors `(batch, height, width, channels)`.
        labels: Class ids `(batch,)` or `(batch, 1)`, or distributions `(batch, classes)`.
        class_count: Number of classes; may be `None` for distributions.
        seed: int32 tensor `(2,)`.

    Returns:
        `(views, labels)`, labels float32 `(batch, classes)`. An unlabelled sample (-1) adds
        no label to a mixture.
    """
    import tensorflow as tf

    if labels.shape.rank == 2 and labels.shape[-1] > 1:
        labels = tf.cast(labels, tf.float32)
    else:
        positive_integer("class_count", class_count)
        labels = tf.one_hot(tf.reshape(tf.cast(labels, tf.int32), [-1]), class_count)
    transformation = draw(layer, views[0], seed)
    views = [transform(layer, view, transformation) for view in views]
    return views, transform_labels(layer, labels, transformation)


def draw(layer, images, seed, place=0):
    """What a layer draws for a batch of images.

    Args:
        layer: An image layer of Keras.
        images: Float tensor `(batch, height, width, channels)` of `tf.data`.
        seed: int32 tensor `(2,)`, of which the draws are a function.
        place: A number that tells layers with the same seed apart.

    Returns:
        The layer's transformation: permutation, weights and boxes of a layer that mixes.
    """
    seeds = _Seeds(seed, place)
    with _on_tensorflow(layer):
        if isinstance(layer, keras.layers.RandAugment):
            return _keras.rand_augment_transformation(layer, images, seeds)
        return layer.get_random_transformation(images, training=True, seed=seeds)


def transform(layer, images, transformation):
    """The images transformed, in their own dtype."""
    import tensorflow as tf

    with _on_tensorflow(layer):
        if isinstance(layer, keras.layers.RandAugment):
            return _keras.rand_augment_images(layer, images, transformation)
        transformed = layer.transform_images(images, transformation, training=True)
    return tf.ensure_shape(tf.cast(transformed, images.dtype), images.shape)


def transform_labels(layer, labels, transformation):
    """One-hot labels `(batch, classes)`, mixed as the images are."""
    import tensorflow as tf

    with _on_tensorflow(layer):
        mixed = layer.transform_labels(labels, transformation, training=True)
    return tf.ensure_shape(tf.cast(mixed, labels.dtype), labels.shape)


class _Seeds(keras.random.SeedGenerator):
    """A generator without a state: the i-th seed is a function of `seed`, `place` and i."""

    def __init__(self, seed, place):
        import tensorflow as tf

        self._base = tf.random.experimental.stateless_fold_in(seed, place)
        self._count = 0

    def next(self, ordered=True):
        import tensorflow as tf

        self._count += 1
        return tf.random.experimental.stateless_fold_in(self._base, self._count)


@contextlib.contextmanager
def _on_tensorflow(layer):
    """Keras's data layers compute in `tf.data` on any backend, once told so."""
    layers = _keras.flatten_layers(layer)
    for each in layers:
        each.backend.set_backend("tensorflow")
    try:
        yield
    finally:
        for each in layers:
            each.backend.reset()


def _is_layer(value):
    return isinstance(value, keras.layers.Layer)


def _is_repeatable(layer):
    """Whether this is an image layer of Keras whose draws are all made with the seed it gets."""
    methods = ("get_random_transformation", "transform_images")
    if not _is_layer(layer) or not all(hasattr(layer, name) for name in methods):
        return False
    if isinstance(layer, keras.layers.RandAugment):
        return True
    return len(_keras.flatten_layers(layer)) == 1
