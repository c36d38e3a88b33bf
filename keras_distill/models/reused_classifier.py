"""SimKD: the student takes over its teacher's classifier."""

from collections.abc import Mapping
from typing import Any
from typing import Self

import keras
from keras import layers

from keras_distill import _checks
from keras_distill import _keras
from keras_distill import taps
from keras_distill._types import Config
from keras_distill._types import PathLike
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.connectors import Resize
from keras_distill.data.targets import Targets
from keras_distill.losses._maps import matched_maps
from keras_distill.losses.feature import Hint
from keras_distill.models import labels as label_rules
from keras_distill.models.base import DistillationModel
from keras_distill.models.exits import find_deepest
from keras_distill.models.labels import per_sample
from keras_distill.models.network import Network
from keras_distill.models.outputs import Outputs
from keras_distill.models.sections import section
from keras_distill.models.wiring import check_inputs
from keras_distill.models.wiring import check_separate
from keras_distill.models.wiring import dtype_policy_of
from keras_distill.models.wiring import shapes_of_inputs

TERM = "feature_loss"


@keras.saving.register_keras_serializable(package="keras_distill")
class ReusedClassifierDistiller(DistillationModel):
    """SimKD: a student's body learns the teacher's last map, and gets the teacher's classifier.

    `total = weight * mean (P(f_s) - f_t)^2 + student_loss_weight * label loss`

    `f_s` and `f_t` are the last maps of student and teacher, `P` a projector of 1x1, 3x3 and 1x1
    convolutions, each with batch normalization and ReLU. The larger of the two maps is averaged
    down to the smaller. What is evaluated and exported is the student's body, the projector and
    the teacher's classifier, which stays as it is; the student's own classifier is not used. As
    published, labels are not learned from: `student_loss_weight` is 0 by default, and a compiled
    `loss` is logged.

    Args:
        teacher: A functional `keras.Model`, left untouched.
        student: A functional `keras.Model`, whose layers up to `student_layer` are changed.
        teacher_layer: Path of the layer whose map is learned, with the classifier behind it.
            Defaults to the last map before the last dense layer.
        student_layer: The student's, alike.
        reduction: The projector's two inner layers have the teacher's channels divided by this.
        weight: Factor of the feature loss.
        student_loss_weight: Factor of the label loss, whose gradient comes through the teacher's
            classifier.
        batch_norm: Whether the projector's convolutions are normalized.
        teacher_dtype: As in `Distiller`.
        name: Name of the wrapper.

    Logs: `loss`, `label_loss`, `feature_loss`, metrics of the whole.

    Example:
    ```python
    simkd = kd.ReusedClassifierDistiller(teacher, student)
    simkd.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                  metrics=["accuracy"])
    simkd.fit(images, labels, epochs=240)
    simkd.inference_model.save("student.keras")
    ```

    Reference:
        Chen et al., CVPR 2022, https://arxiv.org/abs/2203.14001; convention of
        DefangChen/SimKD.
        Deviation: a batch normalization with Keras's epsilon of 1e-3 and momentum 0.9.
    """

    frozen_attributes = ("teacher",)

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        teacher_layer: str | None = None,
        student_layer: str | None = None,
        reduction: int = 2,
        weight: float = 1.0,
        student_loss_weight: float = 0.0,
        *,
        batch_norm: bool = True,
        teacher_dtype: str | None = None,
        name: str = "reused_classifier_distiller",
        **kwargs: Any,
    ) -> None:
        for role, model in (("teacher", teacher), ("student", student)):
            _checks.instance(role, model, keras.Model, "a keras.Model")
        check_separate(teacher, student)
        paths = [
            _map_of(model, role, path)
            for model, role, path in (
                (teacher, "teacher", teacher_layer),
                (student, "student", student_layer),
            )
        ]
        kwargs.setdefault("dtype", dtype_policy_of(student))
        super().__init__(term_names=[TERM], name=name, **kwargs)
        self.teacher_layer, self.student_layer = teacher_layer, student_layer
        self.reduction = _checks.positive_integer("reduction", reduction)
        self.weight = _checks.non_negative("weight", weight)
        self.student_loss_weight = _checks.non_negative("student_loss_weight", student_loss_weight)
        self.batch_norm = _checks.instance("batch_norm", batch_norm, bool, "True or False")
        self.teacher_dtype = teacher_dtype
        self.teacher = teacher
        self._teacher_network = Network(
            teacher, "teacher", paths[:1], frozen=True, compute_dtype=teacher_dtype
        )
        self.body = section(student, None, paths[1])
        shapes = self._teacher_network.feature_shape(paths[0]), tuple(self.body.output.shape)
        self.projector = self._projector(*shapes)
        self._parts = _Parts(student, _classifier(teacher, paths[0], self.projector))
        features = self.projector(self.body.output)
        self._parts.whole = keras.Model(
            self.body.input, self._parts.classifier(features), name=f"{student.name}_reused"
        )
        self._parts.loss = Hint()
        self.built = True

    def _projector(self, teacher_shape, student_shape):
        """Student's map -> map with the teacher's channels, no larger than the teacher's."""
        inputs = x = keras.Input(batch_shape=(None, *student_shape[1:]))
        size = [min(pair) for pair in zip(teacher_shape[1:3], student_shape[1:3])]
        if size != list(student_shape[1:3]):
            x = Resize(size, dtype=self.dtype_policy, name="resize")(x)
        channels = teacher_shape[-1]
        inner = max(1, channels // self.reduction)
        for number, (filters, kernel) in enumerate(((inner, 1), (inner, 3), (channels, 1)), 1):
            options = {"dtype": self.dtype_policy}
            x = layers.Conv2D(
                filters,
                kernel,
                padding="same",
                use_bias=not self.batch_norm,
                data_format="channels_last",
                kernel_initializer="he_normal",
                name=f"conv{number}",
                **options,
            )(x)
            if self.batch_norm:
                x = layers.BatchNormalization(momentum=0.9, name=f"norm{number}", **options)(x)
            x = layers.ReLU(name=f"relu{number}", **options)(x)
        return keras.Model(inputs, x, name="projector")

    @property
    def inference_model(self) -> keras.Model:
        """The student's body, the projector and the teacher's classifier, a functional model."""
        return self._parts.whole

    @property
    def output_names(self) -> list[str] | None:
        """The teacher's: see `DistillationModel.output_names`."""
        return self.teacher.output_names

    # Forward and term.

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        teacher = self._teacher_network(inputs)
        features = self.projector(self.body(inputs, training=training), training=training)
        prediction = self._parts.classifier(features, training=False)
        return Outputs(prediction, (teacher.features[0], features))

    def infer(self, inputs: Structure) -> Structure:
        return self._parts.whole(inputs, training=False)

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        pair = matched_maps(*outputs.terms)
        weight = per_sample(label_rules.by_output(sample_weight, 1)[0])
        value = _keras.call_loss(self._parts.loss, *pair, weight, always_reduce=True)
        return [(TERM, value, self.weight)]

    # Checks.

    def check_label_loss(self, loss: Any) -> None:
        label_rules.check_heads(loss, self._teacher_network.heads, role="teacher")

    def check_data(self, x: Any, y: Any) -> None:
        super().check_data(x, y)
        label_rules.check_class_ids(self._compiled_loss, y, self._teacher_network.output_shapes)
        shapes = shapes_of_inputs(x)
        for model, role in ((self.teacher, "teacher"), (self.body, "student")):
            check_inputs(model, role, shapes)

    # Saving.

    def save(self, filepath: PathLike, include_teacher: bool = True, **kwargs: Any) -> None:
        """As `keras.Model.save`, always with the teacher: its classifier is a part."""
        if not include_teacher:
            raise ValueError(
                "Expected the teacher to be saved, for its classifier is part of the result. "
                "Received: include_teacher=False. Save `inference_model` alone."
            )
        super().save(filepath, **kwargs)

    def get_config(self) -> Config:
        config = super().get_config()
        config.pop("dtype", None)
        return {
            **config,
            "name": self.name,
            "teacher": _keras.serialized(self.teacher),
            "student": _keras.serialized(self._parts.student),
            "teacher_layer": self.teacher_layer,
            "student_layer": self.student_layer,
            "reduction": self.reduction,
            "weight": self.weight,
            "student_loss_weight": self.student_loss_weight,
            "batch_norm": self.batch_norm,
            "teacher_dtype": self.teacher_dtype,
        }

    @classmethod
    def from_config(cls, config: Config, custom_objects: Mapping[str, Any] | None = None) -> Self:
        return cls(**_keras.arguments_of(config, custom_objects))


class _Parts:
    """What Keras shall not track: views of networks that have attributes of their own."""

    def __init__(self, student, classifier):
        self.student = student
        self.classifier = classifier
        self.whole = self.loss = None


def _map_of(model, role, path):
    """The path of the map that is compared; raises where there is none."""
    if path is None:
        path = find_deepest(model).map_path
        if path is None:
            raise ValueError(
                f"Expected a map in the {role} before its classifier. Received: "
                f"{model.name!r}, which has none. Pass `{role}_layer`."
            )
    (path,) = taps.check_paths(model, path, argument=f"{role}_layer")
    shape = taps.list_taps(model)[path]
    if isinstance(shape, list) or len(shape) != 4 or None in shape[1:]:
        raise ValueError(
            _checks.message(
                f"`{role}_layer` to return one map (batch, height, width, channels) of known size",
                f"{role}_layer",
                path,
                f"Its output has the shape {shape}.",
            )
        )
    return path


def _classifier(teacher, path, projector):
    """What follows the map in the teacher, on a map of the projector's size."""
    try:
        return section(teacher, path, None, shape=tuple(projector.output.shape))
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"Expected the teacher's layers behind {path!r} to take a map of shape "
            f"{tuple(projector.output.shape)}. Received: {reason} Name other layers."
        ) from error
