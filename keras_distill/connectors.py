"""Layers that fit a student's feature to a teacher's: channels, space, tokens.

A connector stands on the student's side only, is trained and saved with the wrapper, and is
never exported with the student. `Term(connector="auto")` chooses by the shapes (`automatic`);
the papers' own connectors are in `keras_distill.regressors`.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill._types import Config
from keras_distill._types import Shape
from keras_distill._types import Tensor


def adaptive_average_matrix(size: int, target: int) -> np.ndarray:
    """The (target, size) matrix that averages `size` cells down to `target`.

    Cell i covers the rows floor(i * size / target) .. ceil((i + 1) * size / target) - 1, which
    overlap where `target` does not divide `size`.
    """
    import numpy as np

    matrix = np.zeros((target, size), "float32")
    for i in range(target):
        first, last = i * size // target, math.ceil((i + 1) * size / target)
        matrix[i, first:last] = 1.0 / (last - first)
    return matrix


@keras.saving.register_keras_serializable(package="keras_distill")
class Resize(keras.layers.Layer):
    """Brings the space axes of a feature, (batch, ..., channels), to `target`.

    An axis that is larger is averaged down with the adaptive cells of
    `adaptive_average_matrix`; one that is smaller is interpolated linearly (cell centres
    aligned, edges held).

    Args:
        target: Sizes of the axes between the first and the last: `(H, W)` or `(tokens,)`.
    """

    def __init__(self, target: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target = tuple(int(size) for size in target)

    def call(self, inputs: Tensor) -> Tensor:
        outputs = inputs
        for axis, target in enumerate(self.target, start=1):
            size = outputs.shape[axis]
            if size == target:
                continue
            matrix = (
                adaptive_average_matrix(size, target)
                if size > target
                else _linear_matrix(size, target)
            )
            moved = ops.moveaxis(outputs, axis, -1)
            moved = ops.matmul(moved, ops.cast(matrix.T, outputs.dtype))
            outputs = ops.moveaxis(moved, -1, axis)
        return outputs

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        return (input_shape[0], *self.target, input_shape[-1])

    def get_config(self) -> Config:
        return {**super().get_config(), "target": list(self.target)}


def _linear_matrix(size, target):
    """The (target, size) matrix of linear interpolation between cell centres."""
    import numpy as np

    matrix = np.zeros((target, size), "float32")
    for i in range(target):
        position = min(max((i + 0.5) * size / target - 0.5, 0.0), size - 1.0)
        low = int(position)
        high = min(low + 1, size - 1)
        matrix[i, low] += 1.0 - (position - low)
        matrix[i, high] += position - low
    return matrix


@keras.saving.register_keras_serializable(package="keras_distill")
class TokensToMap(keras.layers.Layer):
    """(batch, height * width [+ leading tokens], channels) to (batch, height, width, channels).

    Tokens in front of the grid (a class token, a distillation token) are dropped.
    """

    def __init__(self, height: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height = int(height)
        self.width = int(width)

    def call(self, inputs: Tensor) -> Tensor:
        grid = inputs[:, inputs.shape[1] - self.height * self.width :, :]
        return ops.reshape(grid, (-1, self.height, self.width, inputs.shape[-1]))

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        return (input_shape[0], self.height, self.width, input_shape[-1])

    def get_config(self) -> Config:
        return {**super().get_config(), "height": self.height, "width": self.width}


@keras.saving.register_keras_serializable(package="keras_distill")
class MapToTokens(keras.layers.Layer):
    """(batch, height, width, channels) to (batch, leading + height * width, channels).

    Args:
        leading: Tokens in front of the grid (a class token, a distillation token): each is the
            mean of the map.
    """

    def __init__(self, leading: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.leading = int(leading)

    def call(self, inputs: Tensor) -> Tensor:
        _, height, width, channels = inputs.shape
        tokens = ops.reshape(inputs, (-1, height * width, channels))
        means = [ops.mean(tokens, axis=1, keepdims=True)] * self.leading
        return ops.concatenate([*means, tokens], axis=1)

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        batch, height, width, channels = input_shape
        return (batch, self.leading + height * width, channels)

    def get_config(self) -> Config:
        return {**super().get_config(), "leading": self.leading}


def automatic(
    student_shape: Shape, teacher_shape: Shape, name: str | None = None
) -> keras.Sequential | None:
    """The layer that `Term(connector="auto")` puts on the student's side.

    The order is: rank, then space (`Resize`), then channels (a 1x1 convolution or a dense layer
    without activation and with bias). Of ranks that differ, a map or tokens against a vector
    are pooled; tokens against a map are laid out as a grid of the map's proportions, or a
    square one; a map against tokens is resized to a grid of the map's proportions and
    flattened. Up to two tokens in front of a grid (a class token, a distillation token) are
    dropped, or filled with the map's mean. Tokens against tokens are a sequence.

    Args:
        student_shape: Shape of the student's feature, batch first, `None` for unknown.
        teacher_shape: Shape of the teacher's feature.
        name: Name for the layer.

    Returns:
        A built `keras.Sequential`, or `None` where the shapes already agree.

    Raises:
        ValueError: Where the shapes cannot be fitted or an axis that must be known is not.
    """
    student_shape, teacher_shape = tuple(student_shape), tuple(teacher_shape)
    if student_shape[1:] == teacher_shape[1:]:
        return None
    layers = _fit_rank(student_shape, teacher_shape)
    shape = student_shape
    for layer in layers:
        shape = layer.compute_output_shape(shape)
    if len(shape) > 2 and tuple(shape[1:-1]) != teacher_shape[1:-1]:
        if None in shape[1:-1] or None in teacher_shape[1:-1]:
            raise ValueError(
                _checks.message(
                    "known sizes on both sides for `connector='auto'`",
                    "student_shape, teacher_shape",
                    (student_shape, teacher_shape),
                    "Build both models with fixed input sizes, or pass a layer as `connector`.",
                )
            )
        layers.append(Resize(teacher_shape[1:-1], dtype="float32"))
        shape = layers[-1].compute_output_shape(shape)
    channels = teacher_shape[-1]
    if shape[-1] != channels:
        if len(shape) == 4:
            layers.append(keras.layers.Conv2D(channels, 1, dtype="float32", name="project"))
        else:
            layers.append(keras.layers.Dense(channels, dtype="float32", name="project"))
    connector = keras.Sequential(layers, name=name)
    connector.build(student_shape)
    return connector


def _fit_rank(student_shape, teacher_shape):
    student_rank, teacher_rank = len(student_shape), len(teacher_shape)
    if student_rank == teacher_rank:
        return []
    if teacher_rank == 2 and student_rank == 4:
        return [keras.layers.GlobalAveragePooling2D(dtype="float32")]
    if teacher_rank == 2 and student_rank == 3:
        return [keras.layers.GlobalAveragePooling1D(dtype="float32")]
    if teacher_rank == 3 and student_rank == 4 and None not in student_shape[1:3]:
        grid = _grid(teacher_shape[1], *student_shape[1:3])
        if grid is None:
            return [MapToTokens(dtype="float32")]
        layers = [] if grid == student_shape[1:3] else [Resize(grid, dtype="float32")]
        leading = teacher_shape[1] - grid[0] * grid[1]
        return [*layers, MapToTokens(leading, dtype="float32")]
    if teacher_rank == 4 and student_rank == 3:
        grid = _grid(student_shape[1], *teacher_shape[1:3]) or _grid(student_shape[1], 1, 1)
        if grid is not None:
            return [TokensToMap(*grid, dtype="float32")]
    raise ValueError(
        _checks.message(
            "features that `connector='auto'` can fit (maps, tokens on a grid, vectors)",
            "student_shape, teacher_shape",
            (student_shape, teacher_shape),
            "Pass a layer of your own as `connector`.",
        )
    )


def _grid(tokens, height, width):
    """The `(height, width)` of a grid of these proportions that up to two tokens lead."""
    if None in (tokens, height, width) or min(tokens, height, width) < 1:
        return None
    common = math.gcd(height, width)
    height, width = height // common, width // common
    scale = math.isqrt(tokens // (height * width))
    leading = tokens - scale * scale * height * width
    return (scale * height, scale * width) if scale > 0 and leading <= 2 else None
