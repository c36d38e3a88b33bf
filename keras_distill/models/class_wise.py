"""CS-KD: a network learns to predict alike for images of one class."""

from typing import Any

import keras

from keras_distill._types import NumberOrSchedule
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.data.targets import Targets
from keras_distill.models.outputs import Outputs
from keras_distill.models.paired import PairedStudent


@keras.saving.register_keras_serializable(package="keras_distill")
class ClassWiseDistiller(PairedStudent):
    """Class-wise self-knowledge distillation (CS-KD): no teacher but another image's prediction.

    `CE(softmax(z), y) + weight * T^2 KL(softmax(z_pair / T) || softmax(z / T))`

    with `z` the student's logits of an image and `z_pair` those of another image of its class.
    The pair is a constant: its forward is a call of its own, in training mode (batch
    normalization and dropout act on it, moving statistics follow it), and has no backward.
    Label loss, regularisers of activities and metrics are those of `x` alone.

    Trains on elements `((x, x_pair), y)`, which `keras_distill.data.class_pairs` makes.

    Args:
        student: A `keras.Model`, changed in place; logits are taken before a softmax.
        temperature: T, a positive number or a schedule. Defaults to 4.
        weight: Factor of the pair's term, a number or a schedule. Defaults to 1 (CIFAR-100,
            TinyImageNet); 3 for fine-grained classes.
        student_from_logits: Whether the student returns logits, where its graph does not tell.
        name: Name of the wrapper.

    Logs: `loss`, `label_loss`, `class_wise_loss` (with T^2, without its weight), metrics.

    Example:
    ```python
    pairs = kd.data.class_pairs(images, labels, 128, epochs=10, augment=kd.data.crop_and_flip())
    distiller = kd.ClassWiseDistiller(student)
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(pairs, epochs=10, steps_per_epoch=steps, shuffle=False)
    ```

    Reference:
        Yun et al., 2020, https://arxiv.org/abs/2003.13964; convention of alinlab/cs-kd: T^2,
        mean over the batch, the images forwarded before their pairs.
    """

    pair_source = "keras_distill.data.class_pairs"

    def __init__(
        self,
        student: keras.Model,
        temperature: NumberOrSchedule = 4.0,
        weight: NumberOrSchedule = 1.0,
        student_from_logits: bool | None = None,
        name: str = "class_wise_distiller",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            student,
            temperature,
            weight,
            term_names=["class_wise_loss"],
            student_from_logits=student_from_logits,
            name=name,
            **kwargs,
        )

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        x, x_pair = self.pair(inputs, training)
        student = self._student_network(x, training=training)
        if x_pair is None:
            return Outputs(student.prediction, None)
        before = self.student.losses  # Those of activities come first, then those of weights.
        pair = self._student_network(x_pair, training=training)
        # The pair's activities are no loss; the others' go on in the wrapper's name.
        self._student_network._clear_losses()
        self.add_loss(before[: len(before) - len(self.student.losses)])
        return Outputs(student.prediction, (self.logits(pair), self.logits(student)))

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        value = self.soft_term(*outputs.terms, sample_weight)
        return [("class_wise_loss", value, self._current(self.weight))]
