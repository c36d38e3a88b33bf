"""Augmentations that are functions of the image and of a seed of its own.

Each is made by a function of its settings and called by `batches` as
`augment(images, seeds)` inside the data pipeline: images float32 `(batch, height, width,
channels)` in 0..1, seeds int32 `(batch, 2)`, the first column a number for (seed, epoch),
the second the sample's index. Any function of that form can be used instead.
"""

from keras_distill._checks import instance
from keras_distill._checks import message
from keras_distill._checks import one_of
from keras_distill._types import Augment
from keras_distill._types import Tensor


def random_uniform(seeds: Tensor, count: int) -> Tensor:
    """Draws numbers for each sample from its own seed, all samples at once.

    The integer hash of MurmurHash3 (its 32-bit finaliser), applied to the two words of
    the seed and to a counter. `tf.random.stateless_uniform` takes one seed a call;
    `tf.random.experimental.index_shuffle` takes many, but its values for neighbouring
    samples are correlated by 0.8.

    Args:
        seeds: int32 tensor of shape `(batch, 2)`.
        count: How many numbers a sample gets.

    Returns:
        float32 tensor of shape `(batch, count)`, uniform in [0, 1).
    """
    import tensorflow as tf

    def mix(words):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            shifted = tf.bitwise.right_shift(words, tf.constant(shift, tf.uint32))
            words = tf.bitwise.bitwise_xor(words, shifted) * tf.constant(factor, tf.uint32)
        shifted = tf.bitwise.right_shift(words, tf.constant(16, tf.uint32))
        return tf.bitwise.bitwise_xor(words, shifted)

    golden = tf.constant(0x9E3779B9, tf.uint32)
    words = tf.bitcast(seeds, tf.uint32)
    state = mix(mix(words[:, :1] + golden) + words[:, 1:])
    draws = mix(state + tf.cast(tf.range(1, count + 1), tf.uint32) * golden)
    mantissa = tf.bitwise.right_shift(draws, tf.constant(8, tf.uint32))
    return tf.cast(mantissa, tf.float32) * (1.0 / 2**24)


def crop_and_flip(padding: int = 4, flip: bool = True, fill: str = "zeros") -> Augment:
    """Random shift by up to `padding` pixels and random mirroring: the CIFAR standard.

    He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2: four
    pixels padded on each side, a random crop of the original size, a horizontal flip
    with probability one half. Digits and letters want `flip=False`.

    Args:
        padding: Largest shift in pixels along each axis, 0 or more.
        flip: Whether half of the images are mirrored left to right.
        fill: What stands outside the image: `"zeros"` or `"reflect"`.

    Returns:
        A function of (images, seeds) for `batches(augment=...)`.

    Raises:
        TypeError: If `flip` is not a bool.
        ValueError: If `padding` is negative or `fill` is unknown.
    """
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise ValueError(message("`padding` to be a whole number, 0 or more", "padding", padding))
    instance("flip", flip, bool, "True or False")
    one_of("fill", fill, ("zeros", "reflect"))
    mode = {"zeros": "CONSTANT", "reflect": "REFLECT"}[fill]

    def augment(images, seeds):
        import tensorflow as tf

        height, width = images.shape[1], images.shape[2]
        draws = random_uniform(seeds, 3)
        offsets = tf.cast(draws[:, :2] * (2 * padding + 1), tf.int32)
        rows = offsets[:, :1] + tf.range(height)
        columns = tf.range(width)[tf.newaxis]
        if flip:
            columns = tf.where(draws[:, 2:] < 0.5, columns[:, ::-1], columns)
        columns = offsets[:, 1:] + columns
        sides = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
        padded = tf.pad(images, sides, mode=mode)
        return tf.gather(
            tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1
        )

    return augment
