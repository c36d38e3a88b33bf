"""Neuron selectivity transfer: how the maps of a network's channels are distributed."""

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
from keras_distill.losses import _maps
from keras_distill.losses import misfit
from keras_distill.losses.base import DistillationLoss

KERNELS = ("poly", "linear", "gaussian")
# Of unit vectors; below it channels differ by rounding alone.
LEAST_VARIANCE = 1e-8
# The squared norm below which a channel counts as zeros.
LEAST_SQUARE = 1e-24


def neuron_selectivity(
    teacher_features: Structure,
    student_features: Structure,
    kernel: str = "poly",
    degree: int = 2,
    offset: float = 0.0,
) -> Tensor:
    """NST: the squared maximum mean discrepancy of the channels.

    Each channel of an image, flattened to its positions and over its norm, is a sample: `t_i` of
    the teacher, `s_j` of the student. The value of an image is

        mean_ij k(t_i, t_j) + mean_ij k(s_i, s_j) - 2 mean_ij k(t_i, s_j)

    with the kernel `(x . y + offset)^degree` ("poly": at 2 and 0 the Gram matrices are matched),
    `x . y` ("linear") or `exp(-||x - y||^2 / (2 sigma^2))` ("gaussian"), where `sigma^2` is the
    mean of `||t_i - s_j||^2` over the image's pairs, a constant to the gradient and 1e-8 at the
    least. Several maps a network, in lists, are summed over the pairs.

    Channels may differ. Where sizes differ, the larger map is averaged down to the smaller, height
    and width each on its own. A channel of zeros counts as the zero vector. Rounding can take the
    value of nearly equal features below 0, by some 1e-7.

    Weight in use: 50 with "poly", beside the label loss (official code, RepDistiller, mdistiller),
    there on the last map of each of the three stages. The paper weighs by lambda / 2.

    Args:
        teacher_features: Tensor `(batch, height, width, channels)`, a constant to the gradient,
            or a list of them.
        student_features: Tensor `(batch, other height, other width, other channels)`, or a list
            of as many.
        kernel: `"poly"`, `"linear"` or `"gaussian"`.
        degree: The exponent of the "poly" kernel only, a whole number above 0.
        offset: What the "poly" kernel only adds to a product, 0 or more.

    Returns:
        Tensor `(batch,)`, 0 at equal features. No positive scale of a channel changes it, nor the
        order of the channels, nor, of "poly" with an even degree and no offset, a channel's sign.

    Raises:
        ValueError: If the features are no maps, the batches or numbers of maps differ, a size is
            unknown where sizes differ, or an option is unknown.

    References:
        Huang & Wang 2017, https://arxiv.org/abs/1707.01219. Convention of RepDistiller.
        Deviation: the teacher's term stays in the value, which the official code
        (TuSimple/neuron-selectivity-transfer) leaves out; the gradient is the same.
        Deviation: the norm has no epsilon in its root, of which the official code has 1e-10.
        Deviation: the paper leaves open which pairs give `sigma^2`; here they are those of
        teacher and student, and it has no gradient.
    """
    _checks.one_of("kernel", kernel, KERNELS)
    degree = _checks.positive_integer("degree", degree)
    offset = _checks.non_negative("offset", offset)
    total = 0.0
    for teacher, student in _maps.matched_pairs(teacher_features, student_features):
        teacher, student = _maps.positions(teacher), _maps.positions(student)
        if kernel == "poly":
            total = total + _polynomial(teacher, student, degree, offset)
        else:
            discrepancy = _linear if kernel == "linear" else _gaussian
            units = (l2_normalize(x, axis=1) for x in (teacher, student))
            total = total + discrepancy(*units)
    return total


def _polynomial(teacher, student, degree, offset):
    # The products are divided by the norms, not the features, which are many more.
    of_teacher, of_student = _gram(teacher), _gram(student)
    t, s = _inverse_norms(of_teacher), _inverse_norms(of_student)

    def mean_of(products, first, second):
        cosines = products * first[:, :, None] * second[:, None, :]
        return _mean_of_pairs(math.prod([cosines + offset] * degree))

    within = mean_of(of_teacher, t, t) + mean_of(of_student, s, s)
    return within - 2.0 * mean_of(_products(teacher, student), t, s)


def _inverse_norms(gram):
    """`(batch, C)`: one over the norms of the channels, 0 for a channel of zeros."""
    squares = ops.diagonal(gram, axis1=1, axis2=2)
    present = squares > LEAST_SQUARE
    inverse = 1.0 / ops.sqrt(ops.where(present, squares, ops.ones_like(squares)))
    return ops.where(present, inverse, ops.zeros_like(inverse))


def _linear(teacher, student):
    """The squared distance of the means, which the three terms make."""
    difference = ops.mean(student, axis=-1) - ops.mean(teacher, axis=-1)
    return ops.sum(ops.square(difference), axis=-1)


def _gaussian(teacher, student):
    # Distances are those of the vectors less a common one. From the teacher's mean no vector is
    # farther, on average, than sigma, so that rounding stays small beside it.
    center = ops.mean(teacher, axis=-1, keepdims=True)
    teacher, student = teacher - center, student - center
    of_teacher, of_student = _gram(teacher), _gram(student)
    t, s = (ops.diagonal(gram, axis1=1, axis2=2) for gram in (of_teacher, of_student))

    def squared_distances(products, first, second):
        return first[:, :, None] + second[:, None, :] - 2.0 * products

    across = squared_distances(_products(teacher, student), t, s)
    variance = ops.maximum(_mean_of_pairs(ops.stop_gradient(across)), LEAST_VARIANCE)

    def mean_of(squares):
        return _mean_of_pairs(ops.exp(-0.5 * squares / variance[:, None, None]))

    within = mean_of(squared_distances(of_teacher, t, t))
    within = within + mean_of(squared_distances(of_student, s, s))
    return within - 2.0 * mean_of(across)


def _products(x, y):
    """Of `(batch, positions, C)` and `(batch, positions, D)`: `(batch, C, D)`."""
    return ops.matmul(ops.transpose(x, (0, 2, 1)), y)


@ops.custom_gradient
def _gram(x):
    """`_products(x, x)`, with half the work of their general gradient."""

    def gradient(*args, upstream=None):
        if upstream is None:
            (upstream,) = args
        return ops.matmul(x, upstream + ops.transpose(upstream, (0, 2, 1)))

    return _products(x, x), gradient


def _mean_of_pairs(x):
    return ops.mean(x, axis=(1, 2))


@keras.saving.register_keras_serializable(package="keras_distill")
class NeuronSelectivity(DistillationLoss):
    """Neuron selectivity transfer, NST (Huang & Wang 2017): see `neuron_selectivity`.

    Args:
        kernel: `"poly"`, `"linear"` or `"gaussian"`.
        degree: The exponent of the "poly" kernel only, a whole number above 0.
        offset: What the "poly" kernel only adds to a product, 0 or more.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(
        self, kernel: str = "poly", degree: int = 2, offset: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.kernel = _checks.one_of("kernel", kernel, KERNELS)
        self.degree = _checks.positive_integer("degree", degree)
        self.offset = _checks.non_negative("offset", offset)

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        return misfit.of_matched_maps(teacher_shapes, student_shapes)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        return neuron_selectivity(y_true, y_pred, self.kernel, self.degree, self.offset)

    def get_config(self) -> Config:
        options = {"kernel": self.kernel, "degree": self.degree, "offset": self.offset}
        return {**super().get_config(), **options}
