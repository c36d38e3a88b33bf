"""Draws of negatives: samples of other classes, each at most once, for a whole batch at a time."""

import numpy as np
from keras import ops

# One key for each round of the permutation, one for the draws with replacement and one for the
# positive.
ROUNDS = 6
KEYS = ROUNDS + 2


class Negatives:
    """Which samples each training sample is set against.

    The draws are computed from keys, a few random numbers a sample: the first numbers of a random
    permutation of the sample's pool (a Feistel network on a grid that holds the pool, walked on
    until it lands inside), so that nothing is sorted and no (batch, samples) tensor is drawn.

    Args:
        samples: Number of training samples.
        labels: Class ids `(samples,)`; a sample labelled -1 is a class of its own. `None`: each
            sample is.
    """

    def __init__(self, samples, labels=None):
        classes = np.arange(samples) if labels is None else _classes(np.asarray(labels))
        _, self.class_of, counts = np.unique(classes, return_inverse=True, return_counts=True)
        self.class_of = self.class_of.reshape(-1)
        self.samples = samples
        # Samples sorted by class: a class is a stretch of them, its negatives all the rest.
        self.order = np.argsort(self.class_of, kind="stable")
        self.starts = np.cumsum(counts) - counts
        self.counts = counts
        self.pools = samples - counts
        self.widths = np.ceil(np.sqrt(np.maximum(self.pools, 1))).astype("int64")
        self.heights = -(-self.pools // self.widths)

    def draw(self, ids, keys, negatives, own_class):
        """The candidates of some samples.

        Args:
            ids: int32 tensor `(batch,)`, each below `samples`.
            keys: int32 tensor `(batch, KEYS)` of random numbers, 0 or more.
            negatives: How many negatives a sample gets: without replacement where its pool has as
                many, else with.
            own_class: Whether the positive is a random sample of the class, instead of the sample.

        Returns:
            int32 tensor `(batch, 1 + negatives)`: the positive's id, then the negatives'.
        """
        row = _take(self.class_of, ids)
        start, count, pool, width, height = (
            ops.expand_dims(ops.cast(_take(table, row), "uint32"), -1)
            for table in (self.starts, self.counts, self.pools, self.widths, self.heights)
        )
        keys = ops.cast(keys, "uint32")
        places = ops.expand_dims(ops.cast(ops.arange(negatives, dtype="int32"), "uint32"), 0)
        places = places + ops.zeros_like(pool)
        again = once = None
        if negatives > self.pools.min():
            again = ops.mod(_hashed(places, keys[:, ROUNDS : ROUNDS + 1]), pool)
        if negatives <= self.pools.max():
            once = permuted(ops.minimum(places, pool - _uint(1)), pool, width, height, keys)
        if again is not None and once is not None:
            places = ops.where(pool >= _uint(negatives), once, again)
        else:
            places = again if once is None else once
        places = ops.where(places >= start, places + count, places)
        ids = ops.expand_dims(ids, -1)
        if own_class:
            place = start + ops.mod(_hashed(ops.zeros_like(start), keys[:, -1:]), count)
            ids = _take(self.order, ops.cast(place, "int32"))
        return ops.concatenate([ids, _take(self.order, ops.cast(places, "int32"))], axis=-1)


def permuted(places, pool, width, height, keys):
    """Where a random permutation of `0 .. pool - 1` takes the places, all uint32.

    Args:
        places: Tensor `(batch, places)`, each below `pool`.
        pool: Tensor `(batch, 1)`.
        width, height: Tensors `(batch, 1)` of a grid of `width * height >= pool` fields.
        keys: Tensor `(batch, ROUNDS or more)`: which permutation.
    """

    def mixed(places):
        right = ops.floor_divide(places, width)
        left = places - right * width
        for i in range(0, ROUNDS, 2):
            left = _rotated(left, right, width, keys[:, i : i + 1])
            right = _rotated(right, left, height, keys[:, i + 1 : i + 2])
        return right * width + left

    return ops.while_loop(
        lambda places: ops.any(places >= pool),
        lambda places: (ops.where(places >= pool, mixed(places), places),),
        (mixed(places),),
    )[0]


def _classes(labels):
    """The labels, each sample without one a class of its own."""
    alone = labels < 0
    fresh = labels.max(initial=0) + 1 + np.arange(alone.sum())
    labels = labels.astype("int64")
    labels[alone] = fresh
    return labels


def _rotated(values, by, size, keys):
    """Values below `size`, below 2**16, each moved on by a random step that depends on `by`."""
    step = ops.bitwise_right_shift(_hashed(by, keys), _uint(16)) * size
    moved = values + ops.bitwise_right_shift(step, _uint(16))
    return ops.where(moved >= size, moved - size, moved)


def _hashed(values, keys):
    """Well-mixed bits of uint32 values, other ones for each key."""
    bits = ops.bitwise_xor(values * _uint(0x9E3779B9), keys)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = ops.bitwise_xor(bits, ops.bitwise_right_shift(bits, _uint(shift))) * _uint(factor)
    return ops.bitwise_xor(bits, ops.bitwise_right_shift(bits, _uint(16)))


def _take(table, places):
    return ops.take(ops.convert_to_tensor(table.astype("int32")), places, axis=0)


def _uint(number):
    return ops.convert_to_tensor(np.uint32(number), dtype="uint32")
