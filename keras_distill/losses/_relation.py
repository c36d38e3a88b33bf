"""What the relation losses share: how they read features, see replicas, centre and compare."""

from typing import Any

from keras import ops

from keras_distill import _checks
from keras_distill import distribution
from keras_distill._ops import flatten_samples
from keras_distill._types import Config
from keras_distill._types import Shapes
from keras_distill.losses import _logits
from keras_distill.losses import misfit
from keras_distill.losses._shapes import received
from keras_distill.losses.base import DistillationLoss


class RelationLoss(DistillationLoss):
    """Base of the losses that relate the samples of a batch to one another.

    Args:
        gather: With several replicas, whether a replica's samples are related to those of all
            replicas (the value is that of one device) or to its own batch's only.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(self, gather: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gather = _checks.instance("gather", gather, bool, "True or False")

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        return misfit.of_one_feature(teacher_shapes, student_shapes)

    def get_config(self) -> Config:
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
    return distribution.of_all_replicas(x) if gather else x


def same_sample(own, count, gather):
    """Boolean `(own, count)`: where a sample of this replica meets itself among all."""
    size = ops.shape(own)[0]
    positions = ops.arange(size)
    context = distribution.replica_context() if gather else None
    if context is not None:
        sizes = context.all_gather(ops.cast(ops.reshape(size, (1,)), "int32"), axis=0)
        positions = positions + ops.sum(sizes[: context.replica_id_in_sync_group])
    return ops.equal(positions[:, None], ops.arange(count)[None, :])


def for_each_sample(value, student):
    """One number for the batch as one value a sample: shape `(batch,)`."""
    return ops.broadcast_to(value, (ops.shape(student)[0],))


def magnitude(x):
    """The largest magnitude in `x` as a constant, 1 where that is 0.

    What no scale changes is divided by it, so that its squares stay in range.
    """
    largest = ops.stop_gradient(ops.max(ops.abs(x)))
    return ops.where(largest > 0, largest, ops.ones_like(largest))


def center_of(x, axis=0):
    """The mean along an axis, a constant, of which what is constant differs by exactly 0.

    The first entry is taken off first, so that the mean is of differences. It is for losses that
    no shift changes, whose gradient by the mean is 0.
    """
    x = ops.stop_gradient(x)
    first = ops.take(x, ops.zeros((1,), "int32"), axis=axis)
    return first + ops.mean(x - first, axis=axis, keepdims=True)


def products(x, everyone):
    """`x everyone^T`; of one tensor with itself, half the work of the general gradient."""
    return _gram(x) if x is everyone else ops.matmul(x, ops.transpose(everyone))


@ops.custom_gradient
def _gram(x):
    def gradient(*args, upstream=None):
        if upstream is None:
            (upstream,) = args
        return ops.matmul(upstream + ops.transpose(upstream), x)

    return ops.matmul(x, ops.transpose(x)), gradient


def squared_distances(x, everyone):
    """Squared distances of the rows of `x` to those of `everyone`, 0 or more.

    From products of the centred rows: an absolute error near 1e-7 of the largest, so that
    duplicates are not exactly 0 apart.
    """
    center = center_of(everyone)
    alike = x is everyone
    x = x - center
    everyone = x if alike else everyone - center
    of_rows = ops.sum(ops.square(x), axis=-1)
    of_everyone = of_rows if alike else ops.sum(ops.square(everyone), axis=-1)
    squares = of_rows[:, None] + of_everyone[None, :] - 2.0 * products(x, everyone)
    return ops.maximum(squares, 0.0)


def huber(difference):
    """`d^2 / 2` where `|d| < 1`, else `|d| - 1/2`."""
    size = ops.abs(difference)
    return ops.where(size < 1.0, 0.5 * ops.square(difference), size - 0.5)
