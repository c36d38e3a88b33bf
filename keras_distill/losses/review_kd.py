"""ReviewKD: the student's levels, fused from deep to shallow, against the teacher's."""

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
from keras_distill.losses import _maps
from keras_distill.losses import _shapes
from keras_distill.losses import misfit
from keras_distill.losses.trained import TrainedLoss

POOLED_SIZES = (4, 2, 1)
MOST_CHANNELS = 512


def review_kd(teacher_features: Structure, student_features: Structure) -> Tensor:
    """ReviewKD's hierarchical context loss, HCL.

    Of one level, with d the difference of the maps and d_l its average over l x l cells:
    `(mean d^2 + sum_l w_l mean d_l^2) / (1 + sum_l w_l)`, over those l of 4, 2 and 1 that are
    below height and width both. The first l in use has w = 1/2, each further one half as much. The
    value of a sample is the sum over the levels.

    Where the sizes of maps differ, the larger one is averaged down to the smaller, height and
    width each on its own.

    Weights in use: 5 on CIFAR-100 (mdistiller, ResNet-32x4 to ResNet-8x4; the official code has
    0.6, 1, 5 or 8 by the pair), 1 on ImageNet, with a warm-up over 20 epochs:
    `keras_distill.schedules.WarmUp(5.0, 20 * steps_per_epoch)`.

    Args:
        teacher_features: List of tensors, one a level: maps `(batch, height, width, channels)` or
            vectors `(batch, channels)`, which count as maps of one position. Constants to the
            gradient.
        student_features: List of as many, each with the teacher's channels.

    Returns:
        Tensor `(batch,)`, 0 at equal features.

    Raises:
        ValueError: If the numbers of levels, ranks or channels do not fit or a size is unknown.

    References:
        Chen et al. CVPR 2021, https://arxiv.org/abs/2104.09044. Convention of the official code
        (dvlab-research/ReviewKD), which takes maps as square.
    """
    received = _maps.received(teacher_features, student_features)
    teachers, students = (
        [_as_map(x, received) for x in _maps.as_list(features)]
        for features in (teacher_features, student_features)
    )
    total = 0.0
    for teacher, student in _maps.matched_pairs(teachers, students):
        if teacher.shape[-1] != student.shape[-1]:
            raise ValueError(
                f"Expected levels with as many channels from both. Received: {received}. ReviewKD "
                "holds the layers that fit the student's."
            )
        total = total + _context(student - teacher, received)
    return total


def _context(difference, received):
    """The loss of one level, `(batch,)`."""
    _, height, width, _ = difference.shape
    if None in (height, width):
        raise ValueError(
            f"Expected maps of known height and width. Received: {received}. Build both models "
            "with fixed input sizes."
        )
    value, weight, total_weight = per_sample_mean(ops.square(difference)), 1.0, 1.0
    for size in POOLED_SIZES:
        if size >= min(height, width):
            continue
        weight = weight / 2.0
        total_weight = total_weight + weight
        pooled = _maps.average_down(_maps.average_down(difference, 1, size), 2, size)
        value = value + weight * per_sample_mean(ops.square(pooled))
    return value / total_weight


def _as_map(x, received):
    x = ops.convert_to_tensor(x)
    if len(x.shape) == 2:
        return x[:, None, None, :]
    if len(x.shape) != 4:
        raise ValueError(
            "Expected levels of shape (batch, height, width, channels) or (batch, channels). "
            f"Received: {received}. Name maps and pooled layers."
        )
    return x


@keras.saving.register_keras_serializable(package="keras_distill")
class ReviewKD(TrainedLoss):
    """ReviewKD (Chen et al. 2021): see `review_kd`.

    In a `Term`, `teacher` and `student` name as many layers each, from shallow to deep: the maps
    of the stages and, as the last, the pooled vector. The teacher's maps are those before the
    ReLU; the last level may be left out.

    Holds `fusions`, one `AttentionFusion` a level, trained with the student. Batch normalization
    sees each replica's own batch.

    Args:
        mid_channels: Channels in which the levels are fused. `None`: those of the student's last
            level, 512 at most, as in mdistiller; the official code has 512 or 256 on ImageNet.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(self, mid_channels: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mid_channels = (
            None if mid_channels is None else _checks.positive_integer("mid_channels", mid_channels)
        )

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        expected = misfit.of_one_number(teacher_shapes, student_shapes)
        if expected is not None:
            return expected
        teachers, students = (_levels(shapes) for shapes in (teacher_shapes, student_shapes))
        if None in (*teachers, *students):
            return "maps of shape (batch, height, width, channels), or pooled vectors, from both"
        if any(None in level[1:] for level in (*teachers, *students)):
            return "maps of known height and width from both"
        for shallow, deep in zip(students, students[1:]):
            if deep[1] > shallow[1] or deep[2] > shallow[2]:
                return "layers from shallow to deep, none larger than the one before it"
        return None

    def make(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        teachers, students = _levels(teacher_shapes), _levels(student_shapes)
        middle = self.mid_channels or min(MOST_CHANNELS, students[-1][-1])
        self.fusions = [
            AttentionFusion(
                student[-1],
                middle,
                teacher[-1],
                teacher[1:3],
                fuses=level < len(students) - 1,
                dtype=self.dtype,
                name=f"fusion_{level}",
            )
            for level, (teacher, student) in enumerate(zip(teachers, students))
        ]

    def fused(self, student_features: Structure, training: bool = False) -> list[Tensor]:
        """What the student's levels, fused, give for the teacher's, from shallow to deep."""
        features = [_as_map(x, "") for x in _maps.as_list(student_features)]
        outputs, residual = [], None
        for fusion, maps in reversed(list(zip(self.fusions, features))):
            output, residual = fusion(maps, residual, training=training)
            outputs.insert(0, output)
        return outputs

    def call(self, y_true: Structure, y_pred: Structure, training: bool = True) -> Tensor:
        return review_kd(_maps.as_list(y_true), self.fused(y_pred, training))

    def get_config(self) -> Config:
        return {**super().get_config(), "mid_channels": self.mid_channels}


def _levels(shapes):
    """The shapes as those of maps, in a list; `None` for what is neither map nor vector."""
    return [_level(shape) for shape in _shapes.as_list(shapes)]


def _level(shape):
    if len(shape) == 2:
        return (shape[0], 1, 1, shape[1])
    return tuple(shape) if len(shape) == 4 else None


@keras.saving.register_keras_serializable(package="keras_distill")
class AttentionFusion(keras.layers.Layer):
    """ReviewKD's attention based fusion, ABF, of one level.

    A 1x1 convolution without bias and batch normalization bring the student's map to the middle
    channels. The deeper level's residual is brought to the map's size by nearest neighbours; a 1x1
    convolution of both, with bias, and a sigmoid give two attention maps, and the sum of both
    tensors, each times its own, is brought to the teacher's size by nearest neighbours. That is
    this level's residual, as in the official code; a 3x3 convolution without bias and batch
    normalization make of it the output.

    The convolutions without bias start as PyTorch's `kaiming_uniform_(a=1)`.

    Args:
        student_channels: Channels of the student's map.
        mid_channels: Channels of the residual.
        teacher_channels: Channels of the output.
        target: `(height, width)` of the teacher's map.
        fuses: Whether a residual comes in: not at the deepest level.
        **kwargs: As in `keras.layers.Layer`.
    """

    def __init__(
        self, student_channels, mid_channels, teacher_channels, target, fuses=True, **kwargs
    ):
        super().__init__(**kwargs)
        self.student_channels = student_channels
        self.mid_channels = mid_channels
        self.teacher_channels = teacher_channels
        self.target = tuple(target)
        self.fuses = fuses

        def convolution(inputs, outputs, size):
            scale = _layers.UNIT_VARIANCE
            return _layers.convolution(
                inputs, outputs, size, self.dtype, use_bias=False, scale=scale
            )

        self.reduce = convolution(student_channels, mid_channels, 1)
        self.reduce_norm = _layers.batch_normalization(mid_channels, self.dtype)
        self.expand = convolution(mid_channels, teacher_channels, 3)
        self.expand_norm = _layers.batch_normalization(teacher_channels, self.dtype)
        self.attention = _layers.convolution(2 * mid_channels, 2, 1, self.dtype) if fuses else None
        self.built = True

    def call(self, inputs, residual=None, training=None):
        """Gives `(output, residual)`."""
        own = self.reduce_norm(self.reduce(inputs), training=training)
        if self.fuses:
            residual = _nearest(residual, own.shape[1:3])
            both = ops.concatenate([own, residual], axis=-1)
            weights = ops.sigmoid(self.attention(both))
            own = own * weights[..., :1] + residual * weights[..., 1:]
        own = _nearest(own, self.target)
        return self.expand_norm(self.expand(own), training=training), own

    def get_config(self):
        return {
            **super().get_config(),
            "student_channels": self.student_channels,
            "mid_channels": self.mid_channels,
            "teacher_channels": self.teacher_channels,
            "target": list(self.target),
            "fuses": self.fuses,
        }


def _nearest(maps, target):
    """Maps of the target size: cell i is what lies at `floor(i * size / target)`."""
    for axis, wanted in zip((1, 2), target):
        size = maps.shape[axis]
        if wanted % size == 0:
            maps = ops.repeat(maps, wanted // size, axis) if wanted != size else maps
        else:
            maps = ops.take(maps, [i * size // wanted for i in range(wanted)], axis=axis)
    return maps
