"""Attention transfer: where in the image a network is active."""

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._ops import flatten_samples
from keras_distill._ops import l2_normalize
from keras_distill._types import Config
from keras_distill._types import Shapes
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _logits
from keras_distill.losses import _maps
from keras_distill.losses import misfit
from keras_distill.losses.base import DistillationLoss

MODES = ("code", "paper")
MAPS = ("sum", "max")


def attention_transfer(
    teacher_features: Structure,
    student_features: Structure,
    power: float = 2,
    mode: str = "code",
    maps: str = "sum",
) -> Tensor:
    """AT: the difference of normalised attention maps.

    The attention map of a feature f is `Q = sum_c |f_c|^p` at each position, flattened (with
    `maps="max"`: `max_c |f_c|^p`), and `q = Q / ||Q||`. With `mode="code"` the value of a sample
    is the mean over positions of `(q_s - q_t)^2`; with `mode="paper"` it is
    `1/2 ||q_s - q_t||_2`, the norm not squared, so that the term's weight is the paper's beta.
    Several maps a network, in lists, are summed over the pairs.

    `power=1` with `maps="sum"` is the paper's `F_sum`. The codes take the mean over the channels,
    which the normalisation makes the same as the sum.

    Channels may differ. Where sizes differ, the larger map is averaged down to the smaller, height
    and width each on its own.

    Weight in use: 1000 with `mode="code"`, beside the label loss (official code, RepDistiller,
    mdistiller), on the last map of each of the three stages.

    Args:
        teacher_features: Tensor `(batch, height, width, channels)`, a constant to the gradient,
            or a list of them.
        student_features: Tensor `(batch, other height, other width, other channels)`, or a list
            of as many.
        power: The exponent p, a number of 1 or more.
        mode: `"code"` or `"paper"`.
        maps: What is taken over the channels: `"sum"` or `"max"`.

    Returns:
        Tensor `(batch,)`, 0 at equal features. No scale and no sign of a sample's features
        changes it, nor the order of the channels.

    Raises:
        ValueError: If the features are no maps, the batches or numbers of maps differ, a size is
            unknown where sizes differ, or an option is unknown.

    References:
        Zagoruyko & Komodakis ICLR 2017, https://arxiv.org/abs/1612.03928. Convention of the
        official code (szagoruyko/attention-transfer) and RepDistiller.
        Deviation: the magnitude is taken before any power; RepDistiller raises the feature itself,
        which for an odd power and negative features is no attention.
        Deviation: an attention map is divided by its largest entry before its norm, so that small
        features (below 1e-6 at power 2) are normalised too; below 1e-12 they count as 0.
    """
    power = _maps.checked_power(power)
    _checks.one_of("mode", mode, MODES)
    _checks.one_of("maps", maps, MAPS)
    total = 0.0
    for teacher, student in _maps.matched_pairs(teacher_features, student_features):
        difference = _attention(student, power, maps) - _attention(teacher, power, maps)
        squares = ops.square(difference)
        if mode == "code":
            total = total + ops.mean(squares, axis=-1)
        else:
            total = total + 0.5 * _logits.safe_sqrt(ops.sum(squares, axis=-1))
    return total


def _attention(features, power, maps):
    """`(batch, height, width, channels)` -> `(batch, positions)` of norm 1, or 0."""
    if power != 2:  # higher powers would leave the range of float32
        features = _maps.of_unit_size(features)
    if maps == "max":
        attention = _raised(ops.max(ops.abs(features), axis=-1), power)
    else:
        attention = ops.sum(_raised(features, power), axis=-1)
    least = _maps.LEAST_SCALE**2
    return l2_normalize(_maps.of_unit_size(flatten_samples(attention), least))


def _raised(x, power):
    """`|x|^p`."""
    return ops.square(x) if power == 2 else ops.power(ops.abs(x), power)


@keras.saving.register_keras_serializable(package="keras_distill")
class AttentionTransfer(DistillationLoss):
    """Attention transfer, AT (Zagoruyko & Komodakis 2017): see `attention_transfer`.

    Args:
        power: The exponent of the magnitudes, a number of 1 or more.
        mode: `"code"`, the mean of squared differences, or `"paper"`, half their norm.
        maps: What is taken over the channels: `"sum"` or `"max"`.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(
        self, power: float = 2, mode: str = "code", maps: str = "sum", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.power = _maps.checked_power(power)
        self.mode = _checks.one_of("mode", mode, MODES)
        self.maps = _checks.one_of("maps", maps, MAPS)

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        return misfit.of_matched_maps(teacher_shapes, student_shapes)

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        return attention_transfer(y_true, y_pred, self.power, self.mode, self.maps)

    def get_config(self) -> Config:
        options = {"power": self.power, "mode": self.mode, "maps": self.maps}
        return {**super().get_config(), **options}
