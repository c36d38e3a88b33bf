"""What a wrapper's forward gives in training, and what it is held against."""

from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.data.targets import Targets


class Outputs(NamedTuple):
    """What a wrapper's forward gives in training; told from a model's own dict by its type.

    Attributes:
        prediction: The outputs that loss and metrics see.
        terms: What the terms compare, in a form of the wrapper's own; `None` where the data
            holds nothing to compare (a plain batch in `evaluate`, where training sees pairs).
    """

    prediction: Any
    terms: Any


def as_targets(y: Structure) -> Targets:
    """`y` itself where it is a `Targets`, else `y` as the labels of one."""
    return y if isinstance(y, Targets) else Targets(labels=y)


def batch_size(prediction: Structure) -> Tensor:
    """The number of rows of the first output."""
    return ops.shape(keras.tree.flatten(prediction)[0])[0]
