"""CKA: how alike two networks' kernels of a batch are."""

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._ops import l2_normalize
from keras_distill._types import Config
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _relation
from keras_distill.losses._relation import RelationLoss

KERNELS = ("linear", "rbf")


def kernel_alignment(
    teacher_features: Structure,
    student_features: Structure,
    kernel: str = "linear",
    unbiased: bool = False,
    bandwidth: float = 1.0,
    gather: bool = False,
) -> Tensor:
    """CKA: one minus the centred alignment of two kernels.

    The features, flattened to rows f, give the kernel matrix `K_ij = f_i . f_j` ("linear") or
    `exp(-||f_i - f_j||^2 / (2 sigma^2))` ("rbf"), where sigma is `bandwidth` times the median
    distance of the batch (that of a sample to itself included), a constant to the gradient.
    With the centred matrices K and L of the networks, the loss is

        1 - CKA,    CKA = <K, L> / (||K|| ||L||),

    the same number for each sample. For linear kernels that equals
    `||Y'X||_F^2 / (||X'X||_F ||Y'Y||_F)` of centred features X and Y.

    It is biased: of more features than samples, CKA comes near 1 whatever they are. With
    `unbiased=True` the diagonals are left out and the matrices are centred so that the products
    estimate HSIC without bias (U-centring, which gives the estimator of Song et al. 2012): CKA
    is then in [-1, 1].

    A batch whose size is known and below 2 (4 if unbiased) is an error; where it is not known
    and such a batch comes, as where all features are constant, CKA counts as 0.

    As CKA knows no scale, take it beside a label loss.

    Args:
        teacher_features: Tensor `(batch, ...)`, map or vector, a constant to the gradient.
        student_features: Tensor `(batch, ...)` of any other shape.
        kernel: `"linear"` or `"rbf"`.
        unbiased: Whether HSIC is estimated without bias.
        bandwidth: Positive factor of the median distance, of the "rbf" kernel only.
        gather: With several replicas (`tf.distribute`), whether the matrices are of the samples
            of all replicas, as on one device, or of each replica's own.

    Returns:
        Tensor `(batch,)`: one number for the batch, for each sample; 0 at equal features.

    Raises:
        ValueError: If a feature has no axis beyond the batch, the batches differ or are too
            small, or an option is unknown.

    References:
        Kornblith et al. ICML 2019, https://arxiv.org/abs/1905.00414; the unbiased estimate on
        batches as Nguyen et al. ICLR 2021, https://arxiv.org/abs/2010.15327.
        Deviation: Nguyen et al. sum the HSIC of many batches before they divide; a loss has
        one batch.
    """
    _checks.one_of("kernel", kernel, KERNELS)
    bandwidth = _checks.positive("bandwidth", bandwidth)
    teacher, own = _relation.paired_samples(teacher_features, student_features)
    teacher, student = (_relation.from_all_replicas(x, gather) for x in (teacher, own))
    least = 4 if unbiased else 2
    _relation.check_batch(teacher, student, least, "of fewer this kernel alignment is not defined")
    center = _u_centered if unbiased else _centered
    parts = [
        l2_normalize(center(_kernel_matrix(x, kernel, bandwidth)), axis=(0, 1))
        for x in (teacher, student)
    ]
    return _relation.for_each_sample(1.0 - ops.sum(parts[0] * parts[1]), own)


def _kernel_matrix(x, kernel, bandwidth):
    if kernel == "linear":
        x = x - _relation.center_of(x)
        products = _relation.products(x, x)
        return products / _relation.magnitude(products)
    squares = _relation.squared_distances(x, x)
    median = ops.stop_gradient(ops.median(squares))
    # Most of the batch being duplicates, the median is 0: the mean stands in.
    mean = ops.stop_gradient(ops.mean(squares))
    width = ops.where(median > 0, median, ops.where(mean > 0, mean, ops.ones_like(mean)))
    return ops.exp(squares * (-0.5 / bandwidth**2) / width)


def _centered(matrix):
    """`H K H`: rows and columns of mean 0."""
    matrix = matrix - _relation.center_of(matrix, axis=0)
    return matrix - _relation.center_of(matrix, axis=1)


def _u_centered(matrix):
    """Rows and columns off the diagonal of sum 0, the diagonal 0 (Szekely & Rizzo 2014)."""
    size = ops.shape(matrix)[0]
    off = 1.0 - ops.eye(size, dtype=matrix.dtype)
    matrix = matrix * off
    rows = ops.sum(matrix, axis=1, keepdims=True)
    # A batch of fewer than 4, whose size was not known, leaves nothing.
    fit = ops.cast(size >= 4, matrix.dtype)
    one = ops.cast(ops.maximum(size - 1, 1), matrix.dtype)
    two = ops.cast(ops.maximum(size - 2, 1), matrix.dtype)
    means = (rows + ops.transpose(rows) - ops.sum(rows) / one) / two
    return fit * (matrix - means) * off


@keras.saving.register_keras_serializable(package="keras_distill")
class KernelAlignment(RelationLoss):
    """Centred kernel alignment, CKA (Kornblith et al. 2019): see `kernel_alignment`.

    Args:
        kernel: `"linear"` or `"rbf"`.
        unbiased: Whether HSIC is estimated without bias.
        bandwidth: Positive factor of the median distance, of the "rbf" kernel only.
        gather: With several replicas, whether the matrices are of all their samples.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(
        self,
        kernel: str = "linear",
        unbiased: bool = False,
        bandwidth: float = 1.0,
        gather: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(gather, **kwargs)
        self.kernel = _checks.one_of("kernel", kernel, KERNELS)
        self.unbiased = _checks.instance("unbiased", unbiased, bool, "True or False")
        self.bandwidth = _checks.positive("bandwidth", bandwidth)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        options = self.kernel, self.unbiased, self.bandwidth, self.gather
        return kernel_alignment(y_true, y_pred, *options)

    def get_config(self) -> Config:
        options = {"kernel": self.kernel, "unbiased": self.unbiased}
        return {**super().get_config(), **options, "bandwidth": self.bandwidth}
