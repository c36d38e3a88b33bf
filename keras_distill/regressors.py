"""The connectors of the papers: trained layers that bring a student's feature to a teacher's.

Each is a layer to pass as `Term(connector=...)`, builds itself on the student's shape, runs in
float32, is trained and saved with the wrapper, and is never exported with the student. Batch
normalization sees each replica's own batch, as Keras's does.
"""

from typing import Any

import keras

from keras_distill import _checks
from keras_distill._types import Config
from keras_distill._types import Shape
from keras_distill._types import Tensor


class _Regressor(keras.layers.Layer):
    """Base of the layers that bring a map to the shape of another, in float32 by default."""

    def __init__(
        self,
        target_shape: Shape,
        activation: str | None = "relu",
        dtype: str = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype=dtype, **kwargs)
        if len(target_shape) != 3:
            raise ValueError(
                _checks.message(
                    "`target_shape` to be (height, width, channels)",
                    "target_shape",
                    tuple(target_shape),
                    "It is the shape of the teacher's feature, without the batch.",
                )
            )
        self.target_shape = tuple(_checks.positive_integer("target_shape", n) for n in target_shape)
        self.activation = keras.activations.get(activation)

    def _misfit(self, input_shape, expected):
        """The error of a student's map that no layer of this kind brings to the target."""
        received = f"input_shape={tuple(input_shape)}, target_shape={self.target_shape}"
        return ValueError(
            f"Expected {expected} for {type(self).__name__}. Received: {received}. Tap another "
            "layer, or take `connector='auto'`, which resizes."
        )

    def _sizes(self, input_shape):
        """`(student's, teacher's)` size of height and width."""
        if len(input_shape) != 4 or None in input_shape[1:]:
            raise self._misfit(input_shape, "a student's map of known height, width and channels")
        return list(zip(input_shape[1:3], self.target_shape[:2]))

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        return (input_shape[0], *self.target_shape)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "target_shape": list(self.target_shape),
            "activation": keras.activations.serialize(self.activation),
        }


@keras.saving.register_keras_serializable(package="keras_distill")
class HintRegressor(_Regressor):
    """FitNet's regressor: one convolution without padding, (Hs - Ht + 1) x (Ws - Wt + 1).

    For a student's map that is as large as the teacher's or larger. Between maps of one shape
    the official code uses no regressor.

    Args:
        target_shape: `(height, width, channels)` of the teacher's feature.
        activation: Nonlinearity: the teacher's at the tapped layer, `None` for one without.
        max_norm: Largest norm of the weights of one output channel, `None` for any.
        dtype: Of the layer; float32 whatever the dtype policy.
        **kwargs: As in `keras.layers.Layer`.

    References:
        Romero et al. ICLR 2015, https://arxiv.org/abs/1412.6550. As the official code: weights
        start uniform in +-0.05, the bias at 0, and each channel's norm is held below 0.9.
    """

    def __init__(
        self,
        target_shape: Shape,
        activation: str | None = "relu",
        max_norm: float | None = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(target_shape, activation, **kwargs)
        self.max_norm = None if max_norm is None else _checks.positive("max_norm", max_norm)

    def build(self, input_shape: Shape) -> None:
        kernel = [size - target + 1 for size, target in self._sizes(input_shape)]
        if min(kernel) < 1:
            raise self._misfit(input_shape, "a student's map as large as the teacher's, or larger")
        constraint = None
        if self.max_norm is not None:
            constraint = keras.constraints.MaxNorm(self.max_norm, axis=[0, 1, 2])
        self.conv = keras.layers.Conv2D(
            self.target_shape[-1],
            kernel,
            activation=self.activation,
            kernel_initializer=keras.initializers.RandomUniform(-0.05, 0.05),
            kernel_constraint=constraint,
            dtype=self.dtype_policy,
            name="conv",
        )
        self.conv.build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        return self.conv(inputs)

    def get_config(self) -> Config:
        return {**super().get_config(), "max_norm": self.max_norm}


@keras.saving.register_keras_serializable(package="keras_distill")
class ConvRegressor(_Regressor):
    """RepDistiller's regressor: a convolution chosen by the sizes, batch normalization, ReLU.

    For each of height and width, s the student's and t the teacher's size: s = 2t takes a
    kernel of 3 at stride 2, padded by 1; 2s = t a transposed one of 4 at stride 2, padded by 1;
    and s >= t one of 1 + s - t without padding.

    Args:
        target_shape: `(height, width, channels)` of the teacher's feature.
        activation: "relu" against a feature behind a ReLU (`Hint`), `None` against one before
            it (`ActivationBoundary`).
        dtype: Of the layer; float32 whatever the dtype policy.
        **kwargs: As in `keras.layers.Layer`.

    References:
        `ConvReg` of RepDistiller, https://github.com/HobbitLong/RepDistiller.
        Deviation: the rule holds for height and width each, there for the height alone.
        Deviation: the convolution has no bias, which the batch normalization takes away.
    """

    def build(self, input_shape: Shape) -> None:
        sizes = self._sizes(input_shape)
        up = [2 * size == target for size, target in sizes]
        if not all(size >= target or up_ for (size, target), up_ in zip(sizes, up)):
            raise self._misfit(input_shape, "sizes of half the teacher's, or as large or larger")
        if any(up) and not all(size == target or up_ for (size, target), up_ in zip(sizes, up)):
            raise self._misfit(
                input_shape, "a map that is not smaller one way and larger the other"
            )
        down = [size == 2 * target for size, target in sizes]
        options = {
            "use_bias": False,
            "kernel_initializer": keras.initializers.VarianceScaling(1 / 3, distribution="uniform"),
            "dtype": self.dtype_policy,
            "name": "conv",
        }
        self.pad = None
        if any(down):
            self.pad = keras.layers.ZeroPadding2D(
                [int(d) for d in down], dtype=self.dtype_policy, name="pad"
            )
        if any(up):
            kernel, strides = [4 if up_ else 1 for up_ in up], [2 if up_ else 1 for up_ in up]
            self.conv = keras.layers.Conv2DTranspose(
                self.target_shape[-1], kernel, strides, padding="same", **options
            )
        else:
            kernel = [3 if d else 1 + size - target for (size, target), d in zip(sizes, down)]
            strides = [2 if d else 1 for d in down]
            self.conv = keras.layers.Conv2D(self.target_shape[-1], kernel, strides, **options)
        padded = input_shape if self.pad is None else self.pad.compute_output_shape(input_shape)
        self.conv.build(padded)
        self.norm = _batch_norm(self.dtype_policy)
        self.norm.build(self.compute_output_shape(input_shape))

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        padded = inputs if self.pad is None else self.pad(inputs)
        return self.activation(self.norm(self.conv(padded), training=training))


@keras.saving.register_keras_serializable(package="keras_distill")
class ConvBatchNorm(keras.layers.Layer):
    """ActivationBoundary's connector: a 1x1 convolution without bias, batch normalization.

    Of maps, tokens and vectors alike: the last axis becomes `channels`. Weights start as
    N(0, 2 / channels), a variance. Maps of other sizes need a `Resize` in front, in a
    `keras.Sequential`.

    Args:
        channels: The teacher's channels.
        dtype: Of the layer; float32 whatever the dtype policy.
        **kwargs: As in `keras.layers.Layer`.

    References:
        Heo et al. AAAI 2019, https://arxiv.org/abs/1811.03233, as in the official code.
    """

    def __init__(self, channels: int, dtype: str = "float32", **kwargs: Any) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.channels = _checks.positive_integer("channels", channels)

    def build(self, input_shape: Shape) -> None:
        self.conv = keras.layers.Dense(
            self.channels,
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0, mode="fan_out", distribution="untruncated_normal"
            ),
            dtype=self.dtype_policy,
            name="conv",
        )
        self.conv.build(input_shape)
        self.norm = _batch_norm(self.dtype_policy)
        self.norm.build(self.compute_output_shape(input_shape))

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return self.norm(self.conv(inputs), training=training)

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.channels)

    def get_config(self) -> Config:
        return {**super().get_config(), "channels": self.channels}


def _batch_norm(dtype):
    # PyTorch's momentum 0.1 is Keras's 0.9.
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=dtype, name="norm")
