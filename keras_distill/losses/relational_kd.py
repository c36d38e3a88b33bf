"""Relational knowledge distillation: distances and angles between samples."""

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._ops import l2_normalize
from keras_distill._types import Config
from keras_distill._types import Shapes
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _anchors
from keras_distill.losses import _relation
from keras_distill.losses import misfit
from keras_distill.losses._relation import RelationLoss


def relational_distance(
    teacher_features: Structure,
    student_features: Structure,
    normalize: bool = False,
    gather: bool = False,
) -> Tensor:
    """RKD-D: the distances between samples, relative to their mean.

    With `D_ij = ||f_i - f_j|| / mu`, mu the mean of the distances of the batch that are above 0,
    the value of sample i is `mean_j huber(S_ij - T_ij)` for student S and teacher T, with
    `huber(d) = d^2 / 2` where `|d| < 1` and `|d| - 1/2` elsewhere. The mean over the batch is
    that over all B^2 pairs, those of a sample with itself among them. The student's mean
    distance carries gradient.

    A batch of one sample, or of equal ones, has no distances: its own are 0.

    Distances are taken from differences, so that duplicates are exactly 0 apart and an offset
    costs no digits; no (batch, batch, features) tensor is held.

    Weights in use: 25, with 50 for the angles, beside the label loss (RepDistiller, mdistiller);
    1 and 2 for metric learning, without a label loss (official code).

    Args:
        teacher_features: Tensor `(batch, features)`, a constant to the gradient.
        student_features: Tensor `(batch, other features)`.
        normalize: Whether features are divided by their norm first, as mmrazor does.
        gather: With several replicas (`tf.distribute`), whether a replica's samples are
            compared with those of all replicas, as on one device, or with its own batch's.

    Returns:
        Tensor `(batch,)`, 0 where all relative distances agree.

    Raises:
        ValueError: If the features are no vectors or the batches differ.

    References:
        Park et al. CVPR 2019, https://arxiv.org/abs/1904.05068. Convention of the official code
        (lenscloth/RKD).
        Deviation: duplicates are 0 apart and stay out of the mean, where the official code
        counts them as 1e-6; the gradient at a distance of 0 is 0.
    """
    teacher, student = _vectors(teacher_features, student_features, normalize)
    relative = [_relative_distances(x, gather) for x in (teacher, student)]
    return ops.mean(_relation.huber(relative[1] - ops.stop_gradient(relative[0])), axis=-1)


def relational_angle(
    teacher_features: Structure,
    student_features: Structure,
    normalize: bool = False,
    gather: bool = False,
) -> Tensor:
    """RKD-A: the angles that samples make with one another.

    With the directions `e_ab = (f_b - f_a) / ||f_b - f_a||`, the value of sample a is
    `mean_bc huber(<s_ab, s_ac> - <t_ab, t_ac>)` for student s and teacher t. The mean over the
    batch is that over all B^3 triplets, degenerate ones among them, whose cosine is 0.

    It is worked out a few anchors a at a time, and the gradient computes each again: memory
    grows with B^2 and time with B^3 d.

    Weights in use: 50, with 25 for the distances, beside the label loss (RepDistiller,
    mdistiller); 2 and 1 for metric learning, without a label loss (official code).

    Args:
        teacher_features: Tensor `(batch, features)`, a constant to the gradient.
        student_features: Tensor `(batch, other features)`.
        normalize: Whether features are divided by their norm first, as mmrazor does.
        gather: With several replicas (`tf.distribute`), whether a replica's samples are the
            anchors of angles between the samples of all replicas, as on one device, or of its
            own batch's.

    Returns:
        Tensor `(batch,)`, 0 where all angles agree.

    Raises:
        ValueError: If the features are no vectors or the batches differ.

    References:
        Park et al. CVPR 2019, https://arxiv.org/abs/1904.05068. Convention of the official code
        (lenscloth/RKD).
        Deviation: the direction between duplicates has a gradient of 0, where the official
        code's grows to 1e12.
    """
    teacher, student = _vectors(teacher_features, student_features, normalize)
    everyone = [_relation.from_all_replicas(x, gather) for x in (teacher, student)]
    return _anchors.angle_losses(teacher, student, *everyone)


def _vectors(teacher, student, normalize):
    teacher, student = _relation.paired_vectors(teacher, student)
    if normalize:
        return l2_normalize(teacher), l2_normalize(student)
    return teacher, student


def _relative_distances(x, gather):
    """Distances of this replica's samples to all, over the mean of those above 0."""
    distances = _anchors.pairwise_distances(x, _relation.from_all_replicas(x, gather))
    apart = ops.cast(distances > 0, distances.dtype)
    sums = ops.stack([ops.sum(distances, axis=-1), ops.sum(apart, axis=-1)], axis=-1)
    total, count = ops.unstack(ops.sum(_relation.from_all_replicas(sums, gather), axis=0), 2)
    mean = total / ops.maximum(count, 1.0)
    return distances / ops.where(mean > 0, mean, ops.ones_like(mean))


class _Relational(RelationLoss):
    """What the two losses share: the arguments."""

    def __init__(self, normalize: bool = False, gather: bool = False, **kwargs: Any) -> None:
        super().__init__(gather, **kwargs)
        self.normalize = _checks.instance("normalize", normalize, bool, "True or False")

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        return misfit.of_one_vector(teacher_shapes, student_shapes)

    def get_config(self) -> Config:
        return {**super().get_config(), "normalize": self.normalize}


@keras.saving.register_keras_serializable(package="keras_distill")
class RelationalDistance(_Relational):
    """Relative distances between samples, RKD-D (Park et al. 2019): see `relational_distance`.

    Args:
        normalize: Whether features are divided by their norm first.
        gather: With several replicas, whether samples are compared across all of them.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(self, normalize: bool = False, gather: bool = False, **kwargs: Any) -> None:
        super().__init__(normalize, gather, **kwargs)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        return relational_distance(y_true, y_pred, self.normalize, self.gather)


@keras.saving.register_keras_serializable(package="keras_distill")
class RelationalAngle(_Relational):
    """Angles between samples, RKD-A (Park et al. 2019): see `relational_angle`.

    Args:
        normalize: Whether features are divided by their norm first.
        gather: With several replicas, whether angles span the samples of all of them.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(self, normalize: bool = False, gather: bool = False, **kwargs: Any) -> None:
        super().__init__(normalize, gather, **kwargs)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        return relational_angle(y_true, y_pred, self.normalize, self.gather)
