"""VID: the teacher's feature as a Gaussian that the student predicts."""

import math
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._ops import per_sample_mean
from keras_distill._types import Config
from keras_distill._types import Shapes
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _layers
from keras_distill.losses import _logits
from keras_distill.losses import _maps
from keras_distill.losses import misfit
from keras_distill.losses.trained import TrainedLoss

MODES = ("code", "paper")


def variational_information(
    teacher_features: Structure,
    student_features: Structure,
    alpha: Tensor,
    epsilon: float = 1e-5,
    mode: str = "code",
) -> Tensor:
    """VID's negative log-likelihood of the teacher's features t.

    `1/2 ((t - mu)^2 / sigma_c^2 + log sigma_c^2)`, with `sigma_c^2 = softplus(alpha_c) + epsilon`
    of each channel c, and with mu the means that the student predicts. `mode="code"`: the mean
    over positions and channels; `mode="paper"`: their sum. The constant `log(2 pi) / 2` is left
    out. The value may be negative.

    Where the sizes of maps differ, the larger one is averaged down to the smaller, height and
    width each on its own.

    Weight in use: 1 with `mode="code"`, beside the label loss (RepDistiller, mdistiller).

    Args:
        teacher_features: Tensor `(batch, height, width, channels)` or `(batch, channels)`, a
            constant to the gradient.
        student_features: Tensor of the means mu, with the teacher's channels.
        alpha: Tensor `(channels,)`.
        epsilon: The least variance, a positive number.
        mode: `"code"` or `"paper"`.

    Returns:
        Tensor `(batch,)`. Not 0 at equal features: `log sigma` remains.

    Raises:
        ValueError: If the features are no maps or vectors alike in channels, `alpha` has another
            shape, or an option is unknown.

    References:
        Ahn et al. CVPR 2019, https://arxiv.org/abs/1904.05835. Convention of RepDistiller, whose
        code follows the author's.
        Deviation: the softplus is the stable one; the code's `log(1 + exp(alpha))` overflows.
    """
    epsilon = _checks.positive("epsilon", epsilon)
    _checks.one_of("mode", mode, MODES)
    teacher, means = _matched(teacher_features, student_features)
    _logits.check_same_shape(
        teacher,
        means,
        "features",
        "VariationalInformation holds the layers that predict the teacher's.",
    )
    alpha = ops.cast(alpha, means.dtype)
    if tuple(alpha.shape) != (teacher.shape[-1],):
        raise ValueError(
            f"Expected `alpha` of shape ({teacher.shape[-1]},), one for each of the teacher's "
            f"channels. Received: alpha.shape={tuple(alpha.shape)}."
        )
    variance = ops.softplus(alpha) + epsilon
    values = 0.5 * (ops.square(teacher - means) / variance + ops.log(variance))
    if mode == "code":
        return per_sample_mean(values)
    return ops.sum(values, axis=tuple(range(1, len(values.shape))))


def _matched(teacher, student):
    """Both in one float dtype, the teacher's a constant, maps of one size."""
    ranks = tuple(len(getattr(x, "shape", ())) for x in (teacher, student))
    if ranks == (4, 4):
        return _maps.matched_maps(teacher, student)
    if ranks != (2, 2):
        raise ValueError(
            "Expected maps of shape (batch, height, width, channels) or vectors of shape (batch, "
            f"channels) from both. Received: {_maps.received(teacher, student)}. Name layers that "
            "give the same kind, or put a connector on the student's."
        )
    return _logits.matched_pair(teacher, student)


@keras.saving.register_keras_serializable(package="keras_distill")
class VariationalInformation(TrainedLoss):
    """Variational information distillation, VID (Ahn et al. 2019): see `variational_information`.

    Holds two things, trained with the student: `regressor`, which predicts the means from the
    student's feature by three 1x1 convolutions without bias, a ReLU between (dense layers for
    vectors); and `alpha`, one number for each of the teacher's channels, of which the variance is
    the softplus. Both are saved with the wrapper and exported with nothing.

    Weights start as PyTorch's do, uniform in `+-1 / sqrt(fan_in)`, and all variances at
    `initial_variance`.

    Weight decay on `alpha` biases the variance, and no loss can forbid it. Before `compile`:
    `optimizer.exclude_from_weight_decay(var_names=["alpha"])`. (RepDistiller decays it.
    mdistiller never trains it.)

    Args:
        initial_variance: Variance of every channel before training, above `epsilon`.
        epsilon: The least variance, a positive number.
        width: Channels of the two hidden layers. `None`: the teacher's channels, as in
            RepDistiller; the paper has wider ones.
        batch_normalization: Whether the hidden layers have batch normalization before the ReLU,
            as in the paper. With several replicas each sees its own batch.
        mode: `"code"`, the mean over positions and channels, or `"paper"`, their sum.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(
        self,
        initial_variance: float = 5.0,
        epsilon: float = 1e-5,
        width: int | None = None,
        batch_normalization: bool = False,
        mode: str = "code",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.epsilon = _checks.positive("epsilon", epsilon)
        self.initial_variance = _checks.positive("initial_variance", initial_variance)
        if self.initial_variance <= self.epsilon:
            raise ValueError(
                _checks.message(
                    f"`initial_variance` to be above `epsilon`, {self.epsilon}",
                    "initial_variance",
                    initial_variance,
                )
            )
        self.width = None if width is None else _checks.positive_integer("width", width)
        self.batch_normalization = _checks.instance(
            "batch_normalization", batch_normalization, bool, "True or False"
        )
        self.mode = _checks.one_of("mode", mode, MODES)

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        expected = misfit.of_one_feature(teacher_shapes, student_shapes)
        if expected is not None:
            return expected
        if misfit.of_vectors(teacher_shapes, student_shapes) is None:
            return None
        if misfit.of_maps(teacher_shapes, student_shapes) is not None:
            return "a map from both or a vector from both"
        return misfit.of_matched_maps(teacher_shapes, student_shapes)

    def make(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        of_maps = len(student_shapes) == 4
        outputs = teacher_shapes[-1]
        width = self.width or outputs
        layers, inputs = [], student_shapes[-1]
        for channels in (width, width, outputs):
            if layers:
                if self.batch_normalization:
                    layers.append(_layers.batch_normalization(inputs, self.dtype, of_maps))
                layers.append(keras.layers.ReLU(dtype=self.dtype))
            layers.append(_layers.projection(inputs, channels, self.dtype, of_maps))
            inputs = channels
        self.regressor = keras.Sequential(layers, name="regressor")
        self.regressor.build((None, None, None, student_shapes[-1])[-len(student_shapes) :])
        # softplus(alpha) + epsilon = initial_variance, also where exp would overflow.
        variance = self.initial_variance - self.epsilon
        alpha = variance + math.log(-math.expm1(-variance))
        self.alpha = self.add_weight(
            shape=(outputs,), initializer=keras.initializers.Constant(alpha), name="alpha"
        )

    def call(self, y_true: Structure, y_pred: Structure, training: bool = True) -> Tensor:
        teacher, student = _matched(y_true, y_pred)
        means = self.regressor(student, training=training)
        return variational_information(teacher, means, self.alpha, self.epsilon, self.mode)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "initial_variance": self.initial_variance,
            "epsilon": self.epsilon,
            "width": self.width,
            "batch_normalization": self.batch_normalization,
            "mode": self.mode,
        }
