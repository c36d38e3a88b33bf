"""Flow of the solution procedure (FSP): products of the maps at two depths of a network."""

import math
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._types import Config
from keras_distill._types import Shapes
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _logits
from keras_distill.losses import _maps
from keras_distill.losses import misfit
from keras_distill.losses.base import DistillationLoss

POOLS = ("max", "average")
MODES = ("paper", "mean")


def flow_of_solution(
    teacher_features: Structure, student_features: Structure, pool: str = "max", mode: str = "paper"
) -> Tensor:
    """FSP: the products of the channels at two depths of a network.

    Of maps F1 `(H, W, C1)` and F2 `(H, W, C2)` of one network,

        G_ij = sum_hw F1_hwi F2_hwj / (H W),

    and a sample's value is the sum over pairs of `||G_s - G_t||_F^2`, each of weight 1:
    `mode="paper"`. `mode="mean"` takes the mean of the squares over C1 x C2 instead of their
    sum. More than two maps make a pair of each map and the next.

    Of a pair in one network, the larger map is pooled to the smaller one, height and width each
    on their own, over the adaptive cells of `keras_distill.connectors.adaptive_average_matrix`.
    The two networks may differ in height and width, but not in channels.

    Weight in use: 1, in a first stage of its own on the layers up to the last map, before a
    second one on the labels alone.

    Args:
        teacher_features: List of two or more tensors `(batch, height, width, channels)`, in the
            order of depth; constants to the gradient.
        student_features: List of as many tensors with the same channels.
        pool: `"max"`, or `"average"` as in RepDistiller and AberHu's
            Knowledge-Distillation-Zoo.
        mode: `"paper"` or `"mean"`, also of these two.

    Returns:
        Tensor `(batch,)`, 0 at equal features.

    Raises:
        ValueError: If there are fewer than two maps or not as many from both, one is no map,
            the channels or batches differ, or an option is unknown.

    References:
        Yim et al. CVPR 2017,
        https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html.
        Convention of the paper's equations. The paper has no helper; where channels differ,
        `connector="auto"` or `keras_distill.regressors.ConvBatchNorm` fits the student's.
    """
    _checks.one_of("pool", pool, POOLS)
    _checks.one_of("mode", mode, MODES)
    _check(teacher_features, student_features)
    pairs = [_logits.matched_pair(t, s) for t, s in zip(teacher_features, student_features)]
    total = 0.0
    for (teacher, student), (next_teacher, next_student) in zip(pairs, pairs[1:]):
        target = _flow(teacher, next_teacher, pool)
        squares = ops.square(_flow(student, next_student, pool) - target)
        reduce = ops.mean if mode == "mean" else ops.sum
        total = total + reduce(squares, axis=(1, 2))
    return total


def _flow(first, second, pool):
    """`(batch, channels of the first, channels of the second)`."""
    both = zip(first.shape[1:3], second.shape[1:3])
    sizes = [None if None in own else min(own) for own in both]
    first, second = (_maps.positions(_pooled(x, sizes, pool)) for x in (first, second))
    return _products(first, second) / ops.cast(ops.shape(first)[1], first.dtype)


@ops.custom_gradient
def _products(first, second):
    """`first^T second` of each sample, whose gradient transposes no map."""

    def gradient(*args, upstream=None):
        if upstream is None:
            (upstream,) = args
        of_first = ops.matmul(second, ops.transpose(upstream, (0, 2, 1)))
        return of_first, ops.matmul(first, upstream)

    return ops.matmul(ops.transpose(first, (0, 2, 1)), second), gradient


def _pooled(x, sizes, pool):
    """A map of these sizes, which are no larger; `None` is a size of both, unknown."""
    pairs = list(zip(x.shape[1:3], sizes))
    if all(size == target for size, target in pairs):
        return x
    whole = all(None not in pair and pair[0] % pair[1] == 0 for pair in pairs)
    if whole:
        window = tuple(size // target for size, target in pairs)
        function = ops.max_pool if pool == "max" else ops.average_pool
        return function(x, window, strides=window, data_format="channels_last")
    along = _maps.average_down if pool == "average" else _max_down
    for axis, (size, target) in enumerate(pairs, start=1):
        if size != target:
            x = along(x, axis, target)
    return x


def _max_down(x, axis, target):
    """The largest of the adaptive cells along an axis, which overlap."""
    size = x.shape[axis]
    firsts = [i * size // target for i in range(target)]
    lasts = [math.ceil((i + 1) * size / target) - 1 for i in range(target)]
    longest = max(last - first for first, last in zip(firsts, lasts)) + 1
    # A shorter cell repeats its last entry.
    cells = [[min(first + k, last) for k in range(longest)] for first, last in zip(firsts, lasts)]
    return ops.max(ops.take(x, ops.convert_to_tensor(cells, dtype="int32"), axis), axis=axis + 1)


def _misfit(teacher, student):
    """What lists of shapes lack, as in `DistillationLoss.misfit`."""
    for own in (teacher, student):
        if len(own) < 2 or not isinstance(own[0], (list, tuple)):
            return "a list of two or more maps from both, in the order of depth"
    expected = (
        misfit.of_one_number(teacher, student)
        or misfit.of_maps(teacher, student)
        or misfit.of_equal_channels(teacher, student)
    )
    if expected is not None:
        return expected
    for own in (teacher, student):
        for shape, other in zip(own, own[1:]):
            if any(a != b and None in (a, b) for a, b in zip(shape[1:3], other[1:3])):
                return "maps of known height and width"
    return None


def _check(teacher, student):
    shapes = [
        [tuple(x.shape) for x in own] if isinstance(own, (list, tuple)) else tuple(own.shape)
        for own in (teacher, student)
    ]
    expected = _misfit(*shapes)
    hint = "Name two or more layers before the pooling; where channels differ, give a connector."
    if expected is None:
        batches = {shape[0] for own in shapes for shape in own} - {None}
        if len(batches) > 1:
            expected, hint = "maps of the same batch", "Run both networks on the same samples."
    if expected is not None:
        raise ValueError(
            f"Expected {expected}. Received: teacher_features.shape={shapes[0]}, "
            f"student_features.shape={shapes[1]}. {hint}"
        )


@keras.saving.register_keras_serializable(package="keras_distill")
class FlowOfSolution(DistillationLoss):
    """Products of the maps at two depths, FSP (Yim et al. 2017): see `flow_of_solution`.

    Args:
        pool: How the larger map of a pair is brought to the smaller one, `"max"` or
            `"average"`.
        mode: `"paper"`, the sum over pairs of channels, or `"mean"`.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.

    Example:
    ```python
    taps = ["stem", "stage1", "stage2", "stage3"]
    kd.Term(kd.losses.FlowOfSolution(), taps, taps)
    ```
    """

    def __init__(self, pool: str = "max", mode: str = "paper", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pool = _checks.one_of("pool", pool, POOLS)
        self.mode = _checks.one_of("mode", mode, MODES)

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        return _misfit(teacher_shapes, student_shapes)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        return flow_of_solution(y_true, y_pred, self.pool, self.mode)

    def get_config(self) -> Config:
        return {**super().get_config(), "pool": self.pool, "mode": self.mode}
