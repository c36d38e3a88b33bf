"""Losses between the relations that teacher and student see among the samples of a batch."""

import math
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._ops import l2_normalize
from keras_distill._types import Config
from keras_distill._types import Shapes
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _logits
from keras_distill.losses import _relation
from keras_distill.losses import misfit
from keras_distill.losses._relation import RelationLoss

PKT_MODES = ("code", "paper")
PKT_EPSILON = 1e-7
CONGRUENCE_MODES = ("paper", "neighbors")
CONGRUENCE_KERNELS = ("gaussian", "bilinear")


def probabilistic_transfer(
    teacher_features: Structure,
    student_features: Structure,
    labels: Tensor | None = None,
    mode: str = "code",
    supervised_weight: float = 0.0,
    gather: bool = False,
) -> Tensor:
    """PKT: whom each sample lies near, as probabilities.

    With unit vectors `u = f / (||f|| + 1e-7)`, the similarity of i and j is
    `(<u_i, u_j> + 1) / 2`, divided by its row's sum: P for the teacher, Q for the student.
    The value of sample i is `mean_j P_ij log((P_ij + 1e-7) / (Q_ij + 1e-7))`, so that the mean
    over the batch is that over all B^2 pairs.

    `mode="paper"` leaves out the pairs of a sample with itself and sums over i and j instead:
    the value of a sample is B times its row's sum.

    With `supervised_weight` above 0, that much of the same divergence is added with the
    labels as teacher: P_ij is 1 where i and j are of one class, else 0, divided by its row's
    sum. A label below 0 is of no class: its sample matches itself alone.

    Weights in use: 30000 beside the label loss (RepDistiller, mdistiller), 10000 (AberHu), 1
    without a label loss (official code); 0.001 for the supervised part.

    Args:
        teacher_features: Tensor `(batch, features)`, a constant to the gradient.
        student_features: Tensor `(batch, other features)`.
        labels: With `supervised_weight`: class ids `(batch,)` or `(batch, 1)`, or one-hot.
        mode: `"code"` or `"paper"`.
        supervised_weight: Weight of the supervised part, 0 or more.
        gather: With several replicas (`tf.distribute`), whether a replica's samples are
            related to those of all replicas, as on one device, or to its own batch's.

    Returns:
        Tensor `(batch,)`, 0 at equal features (the supervised part is not).

    Raises:
        ValueError: If the features are no vectors, the batches differ, `mode` is unknown or
            labels are missing.

    References:
        Passalis & Tefas ECCV 2018, https://arxiv.org/abs/1803.10837. Convention of the official
        code (passalis/probabilistic_kt).
        Deviation: a vector of zeros has a gradient of 0, where the division by 1e-7 gives one
        of 1e7; cosines that rounding takes below -1 count as -1.
    """
    _checks.one_of("mode", mode, PKT_MODES)
    teacher, student = _relation.paired_vectors(teacher_features, student_features)
    similarity = _similarity(student, gather)
    count = ops.shape(similarity)[1]
    itself = _relation.same_sample(student, count, gather)
    pairs = ops.ones_like(similarity)
    if mode == "paper":
        pairs = pairs - ops.cast(itself, pairs.dtype)
    log_student = ops.log(_row_shares(similarity * pairs) + PKT_EPSILON)

    def divergence(relations):
        shares = _row_shares(ops.stop_gradient(relations) * pairs)
        values = shares * (ops.log(shares + PKT_EPSILON) - log_student)
        if mode == "code":
            return ops.mean(values, axis=-1)
        return ops.sum(values, axis=-1) * ops.cast(count, values.dtype)

    value = divergence(_similarity(teacher, gather))
    if supervised_weight:
        ids = _class_ids(labels, teacher, student)
        same = ops.equal(ids[:, None], _relation.from_all_replicas(ids, gather)[None, :])
        same = ops.logical_or(ops.logical_and(same, ids[:, None] >= 0), itself)
        value = value + supervised_weight * divergence(ops.cast(same, value.dtype))
    return value


def _similarity(x, gather):
    """`(own, everyone)`: cosines moved to 0..1, of this replica's samples with all."""
    unit = l2_normalize(x, added=PKT_EPSILON)
    cosines = _relation.products(unit, _relation.from_all_replicas(unit, gather))
    return ops.maximum(0.5 * (cosines + 1.0), 0.0)


def _row_shares(x):
    """Each row over its sum; a row without anything stays 0."""
    total = ops.sum(x, axis=-1, keepdims=True)
    present = total > PKT_EPSILON
    return ops.where(present, x / ops.where(present, total, 1.0), ops.zeros_like(x))


def _class_ids(labels, teacher, student):
    """Labels as int32 `(batch,)`, from ids, a column of them, or one-hot rows."""
    if labels is None:
        raise ValueError(
            "Expected `labels` where `supervised_weight` is above 0. Received: labels=None. Give "
            "them, or leave `supervised_weight` at 0."
        )
    labels = ops.convert_to_tensor(labels)
    ids = labels
    if len(labels.shape) == 2:
        column = labels.shape[1] == 1
        ids = ops.squeeze(labels, axis=1) if column else ops.argmax(labels, axis=-1)
    sizes = {ids.shape[0], student.shape[0]} - {None} if ids.shape else set()
    if len(ids.shape) != 1 or len(sizes) > 1:
        raise ValueError(
            "Expected `labels` as class ids of shape (batch,) or (batch, 1), or one-hot. Received: "
            f"labels.shape={tuple(labels.shape)}, {_relation.received(teacher, student)}."
        )
    return ops.cast(ids, "int32")


def correlation_congruence(
    teacher_features: Structure,
    student_features: Structure,
    gamma: float = 0.4,
    order: int = 2,
    mode: str = "paper",
    kernel: str = "gaussian",
    gather: bool = False,
) -> Tensor:
    """CC: the kernel matrix of a batch.

    With unit vectors f, `C_ij = sum_{p=0..order} exp(-2 gamma) (2 gamma)^p / p! (f_i . f_j)^p`,
    the expansion of `exp(-gamma ||f_i - f_j||^2)` for unit vectors. The value of sample i is
    `mean_j (S_ij - T_ij)^2` for student S and teacher T, so that the mean over the batch is
    `||S - T||_F^2 / B^2`. `kernel="bilinear"` takes `C_ij = f_i . f_j`.

    `mode="neighbors"` is another loss under the same name, the variant in RepDistiller, which
    names the paper's author as its source: with `D = s - t`, features as they are,
    `mean_i sum_d |D_i| |D_{i+1}|` over the B - 1 neighbouring rows. It needs equally many
    features, depends on the order of the batch, and uses neither `gamma`, `order` nor `kernel`.
    It is one number for the batch, returned for each sample, and 0 for a batch of one.

    The paper composes batches of samples of one class (or cluster) in equal parts. An embedding
    layer in front is to be on the student's side only, or the teacher's fixed: with both
    trained, a constant map is a minimum.

    Weights in use: 100 (AberHu) for `mode="paper"`, 0.02 (RepDistiller) for `"neighbors"`, both
    beside the label loss.

    Args:
        teacher_features: Tensor `(batch, features)`, a constant to the gradient.
        student_features: Tensor `(batch, other features)`.
        gamma: Positive width of the Gaussian kernel.
        order: Highest power p of the expansion, 1 or more.
        mode: `"paper"` or `"neighbors"`.
        kernel: `"gaussian"` or `"bilinear"`.
        gather: With several replicas (`tf.distribute`), whether a replica's samples are
            related to those of all replicas, as on one device, or to its own batch's.

    Returns:
        Tensor `(batch,)`, 0 at equal features.

    Raises:
        ValueError: If the features are no vectors, the batches differ, an option is unknown, or
            the sizes differ where they must not.

    References:
        Peng et al. ICCV 2019, https://arxiv.org/abs/1904.01802. Convention of the paper, as in
        AberHu's Knowledge-Distillation-Zoo.
        Deviation: a vector of zeros stays 0, with a gradient of 0.
    """
    gamma, order = _checks.positive("gamma", gamma), _checks.positive_integer("order", order)
    _checks.one_of("mode", mode, CONGRUENCE_MODES)
    _checks.one_of("kernel", kernel, CONGRUENCE_KERNELS)
    teacher, student = _relation.paired_vectors(teacher_features, student_features)
    if mode == "neighbors":
        return _neighbor_congruence(teacher, student, gather)

    def relations(x):
        unit = l2_normalize(x)
        cosines = _relation.products(unit, _relation.from_all_replicas(unit, gather))
        if kernel == "bilinear":
            return cosines
        # Horner's rule on sum_p (2 gamma)^p / p! cosines^p.
        series = ops.ones_like(cosines)
        for power in range(order, 0, -1):
            series = 1.0 + (2.0 * gamma / power) * cosines * series
        return math.exp(-2.0 * gamma) * series

    return ops.mean(ops.square(relations(student) - relations(teacher)), axis=-1)


def _neighbor_congruence(teacher, student, gather):
    _logits.check_same_shape(
        teacher, student, "features", 'Give the Term `connector="auto"`, or take mode="paper".'
    )
    gaps = ops.abs(_relation.from_all_replicas(student - teacher, gather))
    products = ops.sum(gaps[:-1] * gaps[1:], axis=-1)
    count = ops.cast(ops.maximum(ops.shape(gaps)[0] - 1, 1), products.dtype)
    return _relation.for_each_sample(ops.sum(products) / count, student)


def similarity_preserving(
    teacher_features: Structure, student_features: Structure, gather: bool = False
) -> Tensor:
    """SP: the products of all pairs of samples, by row.

    With F the `(batch, ...)` features flattened to rows and `G = F F^T`, its rows divided by
    their norm, the value of sample i is `sum_j (S_ij - T_ij)^2 / B` for student S and teacher
    T, so that the mean over the batch is `||S - T||_F^2 / B^2`.

    Weight in use: 3000 beside the label loss (RepDistiller, mdistiller).

    Args:
        teacher_features: Tensor `(batch, ...)`, map or vector, a constant to the gradient.
        student_features: Tensor `(batch, ...)` of any other shape.
        gather: With several replicas (`tf.distribute`), whether a replica's samples are
            related to those of all replicas, as on one device, or to its own batch's.

    Returns:
        Tensor `(batch,)`, 0 at equal features.

    Raises:
        ValueError: If a feature has no axis beyond the batch or the batches differ.

    References:
        Tung & Mori ICCV 2019, https://arxiv.org/abs/1907.09682. Convention of RepDistiller.
        Deviation: a row of zeros (a sample without any feature) has a gradient of 0.
    """
    teacher, student = _relation.paired_samples(teacher_features, student_features)

    def relations(x):
        products = _relation.products(x, _relation.from_all_replicas(x, gather))
        return l2_normalize(products / _relation.magnitude(products))

    return ops.mean(ops.square(relations(student) - relations(teacher)), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class ProbabilisticTransfer(RelationLoss):
    """Nearness as probabilities, PKT (Passalis & Tefas 2018): see `probabilistic_transfer`.

    With `supervised_weight` it needs labels: `y_true` is `(teacher_features, labels)`. An
    unlabelled sample (-1) is of no class to the others; its own row counts 0 in a `Term`, as in
    every loss that needs labels. A second term without `supervised_weight` keeps it.

    Args:
        mode: `"code"` (mean over all pairs) or `"paper"` (sum, without a sample's own).
        supervised_weight: Weight of the same divergence from the labels' classes.
        gather: With several replicas, whether samples are related across all of them.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(
        self,
        mode: str = "code",
        supervised_weight: float = 0.0,
        gather: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(gather, **kwargs)
        self.mode = _checks.one_of("mode", mode, PKT_MODES)
        self.supervised_weight = _checks.non_negative("supervised_weight", supervised_weight)
        self.needs_labels = self.supervised_weight > 0

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        return misfit.of_one_vector(teacher_shapes, student_shapes)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        teacher, labels = y_true if self.needs_labels else (y_true, None)
        options = self.mode, self.supervised_weight, self.gather
        return probabilistic_transfer(teacher, y_pred, labels, *options)

    def get_config(self) -> Config:
        options = {"mode": self.mode, "supervised_weight": self.supervised_weight}
        return {**super().get_config(), **options}


@keras.saving.register_keras_serializable(package="keras_distill")
class CorrelationCongruence(RelationLoss):
    """The kernel matrix of a batch, CC (Peng et al. 2019): see `correlation_congruence`.

    Args:
        gamma: Positive width of the Gaussian kernel.
        order: Highest power of its expansion, 1 or more.
        mode: `"paper"`, or `"neighbors"`, RepDistiller's variant.
        kernel: `"gaussian"` or `"bilinear"`.
        gather: With several replicas, whether samples are related across all of them.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(
        self,
        gamma: float = 0.4,
        order: int = 2,
        mode: str = "paper",
        kernel: str = "gaussian",
        gather: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(gather, **kwargs)
        self.gamma = _checks.positive("gamma", gamma)
        self.order = _checks.positive_integer("order", order)
        self.mode = _checks.one_of("mode", mode, CONGRUENCE_MODES)
        self.kernel = _checks.one_of("kernel", kernel, CONGRUENCE_KERNELS)

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        expected = misfit.of_one_vector(teacher_shapes, student_shapes)
        if expected is None and self.mode == "neighbors":
            return misfit.of_one_shape(teacher_shapes, student_shapes)
        return expected

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        options = self.gamma, self.order, self.mode, self.kernel, self.gather
        return correlation_congruence(y_true, y_pred, *options)

    def get_config(self) -> Config:
        options = {"gamma": self.gamma, "order": self.order}
        return {**super().get_config(), **options, "mode": self.mode, "kernel": self.kernel}


@keras.saving.register_keras_serializable(package="keras_distill")
class SimilarityPreserving(RelationLoss):
    """Products of all pairs of samples, SP (Tung & Mori 2019): see `similarity_preserving`.

    Args:
        gather: With several replicas, whether samples are related across all of them.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(self, gather: bool = False, **kwargs: Any) -> None:
        super().__init__(gather, **kwargs)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        return similarity_preserving(y_true, y_pred, self.gather)
