"""What the relation losses share: how they read features, see replicas, centre and compare."""

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._ops import flatten_samples
from keras_distill.losses import _logits
from keras_distill.losses.base import DistillationLoss


class RelationLoss(DistillationLoss):
    """Base of the losses that relate the samples of a batch to one another.

    Args:
        gather: With several replicas, whether a replica's samples are related to those of all
            replicas (the value is that of one device) or to its own batch's only.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(self, gather=False, **kwargs):
        super().__init__(**kwargs)
        self.gather = _checks.instance("gather", gather, bool, "True or False")

    def get_config(self):
        return {**super().get_config(), "gather": self.gather}


def paired_vectors(teacher_features, student_features):
    """Both as float `(batch, features)`, the teacher a constant; maps are an error."""
    teacher, student = _logits.matched_pair(teacher_features, student_features)
    _check_ranks(
        teacher,
        student,
        lambda rank: rank == 2,
        "of shape (batch, features)",
        "Tap a pooled layer, or pool the maps.",
    )
    return teacher, student


def paired_samples(teacher_features, student_features):
    """As `paired_vectors`, of maps, tokens or vectors, which are flattened."""
    teacher, student = _logits.matched_pair(teacher_features, student_features)
    _check_ranks(
        teacher,
        student,
        lambda rank: rank >= 2,
        "of shape (batch, ..., features)",
        "Give a feature of one unit the shape (batch, 1).",
    )
    return flatten_samples(teacher), flatten_samples(student)


def received(teacher, student):
    """The two shapes, as every error names them."""
    return (
        f"teacher_features.shape={tuple(teacher.shape)}, "
        f"student_features.shape={tuple(student.shape)}"
    )


def _check_ranks(teacher, student, allowed, wanted, hint):
    if not (allowed(len(teacher.shape)) and allowed(len(student.shape))):
        raise ValueError(
            f"Expected teacher and student features {wanted}. Received: "
            f"{received(teacher, student)}. {hint}"
        )
    batches = teacher.shape[0], student.shape[0]
    if None not in batches and batches[0] != batches[1]:
        raise ValueError(
            "Expected teacher and student features of the same batch. Received: "
            f"{received(teacher, student)}. Run both networks on the same samples."
        )


def check_batch(teacher, student, least, why):
    """Raises where the batch is known and too small for a statistic."""
    batch = student.shape[0]
    if batch is not None and batch < least:
        raise ValueError(
            f"Expected at least {least} samples a batch: {why}. Received: "
            f"{received(teacher, student)}. Raise the batch size; `drop_remainder=True` drops a "
            "last smaller batch."
        )


def from_all_replicas(x, gather):
    """`x` of all replicas, one after the other along the batch, if `gather`; else `x`.

    The gradient reaches every replica's own part. Outside a replica of a `tf.distribute`
    strategy there is nothing to gather: on JAX, Keras's distributions compute on the global
    batch already.
    """
    context = _replica() if gather else None
    return x if context is None else context.all_gather(x, axis=0)


def same_sample(own, count, gather):
    """Boolean `(own, count)`: where a sample of this replica meets itself among all."""
    size = ops.shape(own)[0]
    positions = ops.arange(size)
    context = _replica() if gather else None
    if context is not None:
        sizes = context.all_gather(ops.cast(ops.reshape(size, (1,)), "int32"), axis=0)
        positions = positions + ops.sum(sizes[: context.replica_id_in_sync_group])
    return ops.equal(positions[:, None], ops.arange(count)[None, :])


def _replica():
    """The replica context of a strategy of several replicas, or `None`."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None


def for_each_sample(value, student):
    """One number for the batch as one value a sample: shape `(batch,)`."""
    return ops.broadcast_to(value, (ops.shape(student)[0],))


def magnitude(x):
    """The largest magnitude in `x` as a constant, 1 where that is 0.

    Losses that no scale changes divide by it, so that powers of features stay in range.
    """
    largest = ops.stop_gradient(ops.max(ops.abs(x)))
    return ops.where(largest > 0, largest, ops.ones_like(largest))


def centered(x, axis=0):
    """`x` less its mean along an axis: exactly 0 where it is constant, and without an offset.

    The first entry is taken off first, so that the mean is of differences.
    """
    first = ops.take(x, ops.zeros((1,), "int32"), axis=axis)
    x = x - ops.stop_gradient(first)
    return x - ops.mean(x, axis=axis, keepdims=True)


def squared_distances(x, everyone):
    """Squared distances of the rows of `x` to those of `everyone`, 0 or more.

    From products of the centred rows: an absolute error near 1e-7 of the largest, so that
    duplicates are not exactly 0 apart.
    """
    first = ops.stop_gradient(everyone[:1])
    center = first + ops.stop_gradient(ops.mean(everyone - first, axis=0, keepdims=True))
    x, everyone = x - center, everyone - center
    products = ops.matmul(x, ops.transpose(everyone))
    squares = [ops.sum(ops.square(rows), axis=-1) for rows in (x, everyone)]
    return ops.maximum(squares[0][:, None] + squares[1][None, :] - 2.0 * products, 0.0)


def huber(difference):
    """`d^2 / 2` where `|d| < 1`, else `|d| - 1/2`."""
    size = ops.abs(difference)
    return ops.where(size < 1.0, 0.5 * ops.square(difference), size - 0.5)
