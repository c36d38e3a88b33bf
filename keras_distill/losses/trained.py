"""The base of the losses that hold layers of their own."""

from typing import Any

import keras

from keras_distill import _checks
from keras_distill import _keras
from keras_distill._types import Config
from keras_distill._types import Shapes
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _shapes
from keras_distill.losses.base import DistillationLoss


class TrainedLoss(DistillationLoss, keras.layers.Layer):
    """Base class of the losses with trained layers: a loss first, and a Keras layer.

    As a layer it is tracked: a wrapper trains its variables with the student's, saves them with
    itself, and never exports them. A wrapper builds it at construction, by the shapes of the
    features that the term names; used by itself, it is built with `build_for` or at its first
    call.

    A subclass gives `make(teacher_shapes, student_shapes)`, which makes its layers, built, and
    `call(y_true, y_pred, training)`. Layers run in float32 (`dtype=self.dtype`).

    Args:
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(
        self,
        name: str | None = None,
        reduction: str | None = "sum_over_batch_size",
        dtype: Any = None,
    ) -> None:
        name = name or _keras.to_snake_case(type(self).__name__)
        keras.layers.Layer.__init__(self, name=name, autocast=False)
        DistillationLoss.__init__(self, name=name, reduction=reduction, dtype=dtype)
        self._shapes = None

    def build_for(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        """Makes the layers for features of these shapes, once.

        Args:
            teacher_shapes: The shape of the teacher's feature, batch first, or a list of them.
            student_shapes: The student's, alike, after the term's connector.

        Raises:
            ValueError: If the layers are there already, for other shapes; or if the loss cannot
                compare such features.
        """
        shapes = [_without_batch(teacher_shapes), _without_batch(student_shapes)]
        if self._shapes is not None:
            if self._shapes != shapes:
                raise ValueError(
                    _checks.message(
                        f"{self.name!r} to see features of the shapes that it was built for, "
                        f"{self._shapes}",
                        "shapes",
                        shapes,
                        "Make one loss for each term.",
                    )
                )
            return
        misfit = self.misfit(teacher_shapes, student_shapes)
        if misfit is not None:
            raise ValueError(
                _checks.message(misfit, "teacher, student", (teacher_shapes, student_shapes))
            )
        self.make(teacher_shapes, student_shapes)
        self._shapes = shapes
        self.built = True

    def make(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        """Makes the layers, built, for features of these shapes."""
        raise NotImplementedError(f"{type(self).__name__} gives no `make`.")

    def __call__(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        sample_weight: Structure | None = None,
        training: bool = True,
    ) -> Tensor:
        if self._shapes is None:
            features = _features(teacher_outputs, self.needs_labels or self.needs_ids)
            self.build_for(_shapes.shapes_of(features), _shapes.shapes_of(student_outputs))
        return _keras.call_loss(
            self, teacher_outputs, student_outputs, sample_weight, training=training
        )

    @property
    def frozen_variables(self) -> list[keras.Variable]:
        """Variables of its layers that it uses and never trains; another term may."""
        return []

    def get_build_config(self) -> Config | None:
        """The shapes that the layers were made for."""
        return None if self._shapes is None else {"shapes": self._shapes}

    def build_from_config(self, config: Config) -> None:
        teacher, student = config["shapes"]
        self.build_for(_with_batch(teacher), _with_batch(student))


def _without_batch(shapes):
    """The sizes behind the batch, in lists, as a JSON file holds them."""
    if _shapes.is_shape(shapes):
        return [None if size is None else int(size) for size in shapes[1:]]
    return [_without_batch(shape) for shape in shapes]


def _with_batch(shapes):
    return (None, *shapes) if _shapes.is_shape(shapes) else [_with_batch(shape) for shape in shapes]


def _features(teacher_outputs, has_extras):
    return teacher_outputs[0] if has_extras else teacher_outputs
