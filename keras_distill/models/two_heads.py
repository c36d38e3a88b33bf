"""DeiT: labels teach one head of the student, the teacher another."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._ops import at_least_float32
from keras_distill._types import Config
from keras_distill._types import LossLike
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.heads import head_of
from keras_distill.losses.hard_targets import HardTargets
from keras_distill.models.comparison import Comparison
from keras_distill.models.distiller import Distiller
from keras_distill.models.network import LOGITS
from keras_distill.models.network import PROBABILITIES
from keras_distill.models.network import SIGMOID
from keras_distill.models.outputs import Outputs
from keras_distill.models.terms import Term
from keras_distill.taps import tap

HARD_WEIGHT = 0.5  # of the teacher's labels, and of the labels beside them


@keras.saving.register_keras_serializable(package="keras_distill")
class TwoHeadDistiller(Distiller):
    """DeiT: a student with a head for the labels and a head for the teacher.

    `total = student_loss_weight * CE(label head, y) + sum(weight_i * term_i) + regularisers`

    The label loss of a training step reads the label head alone, and terms on predictions read
    the distillation head alone. What is evaluated, predicted and exported is what the student
    returns, the mean of both; metrics are of that in training too. In a vision transformer
    each head reads a token of its own; `kd.backbones.hub_deit` builds one, and
    `kd.backbones.hub_distilled` makes one of a keras-hub backbone. Any functional student
    whose output is made of two such heads will do.

    Args:
        teacher: As in `Distiller`.
        student: A functional `keras.Model` with one output, changed in place.
        distillation_losses: As in `Distiller`. Defaults to
            `Term(HardTargets(), weight=0.5)`, the teacher's choice as the label. The paper's
            soft distillation: `Term(SoftTargets(3.0), weight=0.1)` with
            `student_loss_weight=0.9`.
        student_loss_weight: Factor of the label loss. Defaults to 0.5.
        label_head: Path of the layer that gives the logits which labels teach.
        distillation_head: Path of the layer that gives the logits which the teacher teaches.
        name: Name of the wrapper.
        **kwargs: Other arguments of `Distiller`. A stage with a student of its own trains
            that as a `Distiller` does.

    A loss that looks at the inputs (`BoundarySupport`, `GradientAttention`) sees the student's
    own prediction. In `evaluate`, with `evaluate_terms=True` too, the label loss is of the
    student's own prediction.

    Example:
    ```python
    student = kd.backbones.hub_deit(classes=10, input_shape=(32, 32, 3), patch_size=4)
    distiller = kd.TwoHeadDistiller(teacher, student)
    label_loss = kd.LabelSmoothing(0.1)
    distiller.compile(keras.optimizers.AdamW(5e-4, weight_decay=0.05), label_loss)
    distiller.fit(images, labels, epochs=300)
    student.save("student.keras")
    ```

    Published (ImageNet, 300 epochs): a convolutional RegNetY-16GF as the teacher, AdamW with a
    rate of 5e-4 for each 512 images of a batch (here 1024), weight decay 0.05, 5 epochs of
    warm-up and a cosine, label smoothing 0.1 on true labels, mixup, CutMix and RandAugment;
    the teacher sees the same augmented images as the student.

    Reference:
        Touvron et al., ICML 2021, https://arxiv.org/abs/2012.12877. Convention of
        facebookresearch/deit: weights 1/2 and 1/2, the mean of the heads' logits.
        Deviation: the soft term is the mean over the batch; the code also divides it by the
        number of classes.
    """

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        distillation_losses: LossLike | Term | Sequence[LossLike | Term] | None = None,
        student_loss_weight: float = HARD_WEIGHT,
        label_head: str = "head",
        distillation_head: str = "distillation_head",
        *,
        name: str = "two_head_distiller",
        **kwargs: Any,
    ) -> None:
        if distillation_losses is None and kwargs.get("stages") is None:
            distillation_losses = Term(HardTargets(), weight=HARD_WEIGHT)
        self.label_head, self.distillation_head = label_head, distillation_head
        super().__init__(
            teacher, student, distillation_losses, student_loss_weight, name=name, **kwargs
        )

    def _comparison(self, student, *arguments):
        if student is not self.student:
            return super()._comparison(student, *arguments)
        heads = {"label_head": self.label_head, "distillation_head": self.distillation_head}
        return TwoHeads(heads, student, *arguments)

    def training_label_loss(
        self, labels: Structure | None, outputs: Outputs, sample_weight: Structure | None
    ) -> Tensor | None:
        prediction = outputs.terms.label_prediction
        prediction = outputs.prediction if prediction is None else prediction
        return self.label_loss(labels, prediction, sample_weight)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "label_head": self.label_head,
            "distillation_head": self.distillation_head,
        }


class TwoHeads(Comparison):
    """A two-headed student beside its teacher.

    Args:
        heads: Paths of the student's heads by the argument that names them, the label head
            first.
        student, **kwargs: As in `Comparison`.

    Raises:
        ValueError: If the student has not one output, or a path is no head of its classes.
    """

    def __init__(self, heads, student, *arguments):
        _check_heads(heads, student)
        self._heads = list(heads.values())
        super().__init__(student, *arguments)

    def _paths(self, side):
        paths = super()._paths(side)
        return [*paths, *self._heads] if side == "student_paths" else paths

    def forward(self, inputs, training):
        outputs = super().forward(inputs, training)
        student = outputs.terms.student
        network = self.student_network
        features = [student.features[network.paths.index(path)] for path in self._heads]
        label, distilled = (self._prediction(logits) for logits in features)
        scores = distilled if network.heads[0] == PROBABILITIES else features[1]
        student = student._replace(prediction=distilled, scores=[scores])
        label = label if training else None
        compared = outputs.terms._replace(student=student, label_prediction=label)
        return Outputs(outputs.prediction, compared)

    def _prediction(self, logits):
        """A head's logits in the form of the student's own prediction."""
        kind = self.student_network.heads[0]
        if kind == LOGITS:
            return logits
        logits = at_least_float32(logits)
        return ops.sigmoid(logits) if kind == SIGMOID else ops.softmax(logits, axis=-1)


def _check_heads(heads, student):
    """Raises unless the paths are two layers that give logits of the student's classes."""
    paths = list(heads.values())
    for argument, path in heads.items():
        _checks.instance(argument, path, str, "the path of a layer")
    if paths[0] == paths[1]:
        expected = "`distillation_head` to be another layer than `label_head`"
        raise ValueError(_checks.message(expected, "distillation_head", paths[1]))
    twin = tap(student, paths)
    shapes = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), twin.output)
    kinds = head_of(twin)["features"]
    if not isinstance(student.output_shape, tuple):
        raise ValueError(
            f"Expected a student with one output. Received: {student.name!r} with outputs of "
            f"shapes {student.output_shape}. Return the mean of the heads."
        )
    for argument, path in heads.items():
        found, wanted = shapes["features"][path], shapes["prediction"]
        what = f"gives the shape {found}" if found != wanted else f"ends in a {kinds[path]}"
        if found != wanted or kinds[path] in ("softmax", "sigmoid"):
            expected = f"`{argument}` to be a layer that gives logits of the student's {wanted}"
            raise ValueError(_checks.message(expected, argument, path, f"That layer {what}."))
