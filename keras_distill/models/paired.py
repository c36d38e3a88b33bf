"""The base of the wrappers that train one student on pairs of inputs."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill import _checks
from keras_distill import _keras
from keras_distill._types import Config
from keras_distill._types import NumberOrSchedule
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.models.student import StudentModel
from keras_distill.models.wiring import shapes_of_inputs
from keras_distill.schedules import number_or_schedule
from keras_distill.schedules import value_at


class PairedStudent(StudentModel):
    """Base class of the wrappers whose training elements are `((x, other), y)`.

    `fit` and `train_on_batch` refuse plain elements. `evaluate`, `predict` and validation take
    them, and of pairs the first.

    Class attributes, which a subclass sets:
        pair_source: Name of the data function that makes the pairs.

    Args:
        student: A `keras.Model`, changed in place.
        temperature: T, a positive number or a schedule of `optimizer.iterations`.
        weight: Factor of the soft term, a number, 0 or more, or such a schedule.
        **kwargs: As in `StudentModel`.
    """

    pair_source: str | None = None

    def __init__(
        self,
        student: keras.Model,
        temperature: NumberOrSchedule,
        weight: NumberOrSchedule,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, **kwargs)
        self.temperature = number_or_schedule("temperature", temperature, _checks.positive)
        self.weight = number_or_schedule("weight", weight)

    def pair(self, inputs: Structure, training: bool) -> tuple[Structure, Structure | None]:
        """`(x, other)`; `other` is `None` for a plain batch of `evaluate`."""
        views = self.views(inputs)
        if training:
            self._check_pair(views)
        return views if len(views) == 2 else (views[0], None)

    def soft_term(
        self, targets: Sequence[Tensor], logits: Sequence[Tensor], sample_weight: Structure | None
    ) -> Tensor:
        """`soft_value` at this step's temperature."""
        return self.soft_value(targets, logits, self._current(self.temperature), sample_weight)

    def _current(self, value):
        """A schedule's value at this step; a number as it is."""
        return value_at(value, self.step) if callable(value) else value

    def fit(
        self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`, on pairs."""
        self._check_pairs_of(x)
        return super().fit(x, y, *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`, on a pair."""
        self._check_pairs_of(x)
        return super().train_on_batch(x, y, *args, **kwargs)

    def _check_pairs_of(self, x):
        shapes = shapes_of_inputs(x)
        if shapes is not None:  # Of a generator the first step tells, before any update.
            self._check_pair(self.views(shapes))

    def _check_pair(self, views):
        if len(views) != 2:
            shapes = [tuple(part.shape) for part in keras.tree.flatten(views[0])]
            raise ValueError(
                f"Expected training elements ((x, other), y) for a {type(self).__name__}. "
                f"Received: x of shape {shapes[0] if len(shapes) == 1 else shapes}. Make the "
                f"data set with {self.pair_source}(...)."
            )

    # Saving.

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "temperature": _keras.serialized(self.temperature),
            "weight": _keras.serialized(self.weight),
        }
