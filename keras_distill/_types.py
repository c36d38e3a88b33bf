"""Names for the types that recur in the public signatures.

Keras and TensorFlow ship no hints of their own, and a tensor is another class on each backend: what
is `Any` to a type checker still tells a reader what is meant.
"""

import os
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeAlias

import keras

# A tensor of the backend, a `KerasTensor`, or an array that Keras makes one of.
Tensor: TypeAlias = Any
# A tensor, or a list, tuple or dict of such: the inputs or outputs of a model.
Structure: TypeAlias = Any
# A number, or what holds one on the backend: a scalar tensor or a `keras.Variable`.
Scalar: TypeAlias = float | Any
# A number, or a schedule of `optimizer.iterations`.
NumberOrSchedule: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule

# The sizes of a tensor's axes, `None` where one is open; and those of one tensor or several.
Shape: TypeAlias = Sequence[int | None]
Shapes: TypeAlias = Shape | Sequence[Shape]

# A place in the file system.
PathLike: TypeAlias = str | os.PathLike[str]
# The path of one layer in a model, or of several, as `keras_distill.tap` reads them.
Layers: TypeAlias = str | Sequence[str]

# What a Keras object is made of again.
Config: TypeAlias = dict[str, Any]
# What Keras hands to callbacks: values by name, to which they may add.
Logs: TypeAlias = dict[str, Any]
# What `compile` takes as an optimizer, and what a term takes as a loss.
OptimizerLike: TypeAlias = str | Mapping[str, Any] | keras.optimizers.Optimizer
LossLike: TypeAlias = str | keras.losses.Loss | Callable[..., Any]
# A function of (images, seeds) that returns images, or an image layer of Keras.
Augment: TypeAlias = Callable[..., Tensor]
# A function of a line, for the person who waits.
Say: TypeAlias = Callable[[str], object]

# TensorFlow's, named without importing it.
if TYPE_CHECKING:
    import tensorflow as tf

    Dataset: TypeAlias = tf.data.Dataset
    Strategy: TypeAlias = tf.distribute.Strategy
else:
    Dataset: TypeAlias = Any
    Strategy: TypeAlias = Any
