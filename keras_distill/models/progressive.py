"""PS-KD: the student's own predictions of the epoch before soften its labels."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill._graph import has_graph
from keras_distill._ops import at_least_float32
from keras_distill._types import Config
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.data.pipeline import class_weights
from keras_distill.data.pipeline import on_host
from keras_distill.data.targets import Targets
from keras_distill.models import labels as label_rules
from keras_distill.models import sample_ids
from keras_distill.models.label_targets import label_targets
from keras_distill.models.network import SIGMOID
from keras_distill.models.network import SOFTMAX
from keras_distill.models.outputs import Outputs
from keras_distill.models.outputs import as_targets
from keras_distill.models.prediction_table import PredictionTable
from keras_distill.models.prediction_table import check_storage
from keras_distill.models.student import StudentModel

CROSS_ENTROPY = {
    SOFTMAX: keras.losses.CategoricalCrossentropy,
    SIGMOID: keras.losses.BinaryCrossentropy,
}


@keras.saving.register_keras_serializable(package="keras_distill")
class ProgressiveDistiller(StudentModel):
    """Progressive self-knowledge distillation (PS-KD).

    `total = (1 - alpha_e) CE(y, z) + alpha_e CE(P[id], z)`, where `P[id]` is what the student
    said about the sample in the epoch before, and `alpha_e = alpha * (e + 1) / epochs` in
    epoch e, counted from 0. Epoch 0 is the label loss alone. In each step, P takes the
    softmax of the training forward, before the update. A sample that P does not know yet is
    trained on its label alone.

    Elements are `(x, Targets(labels=, ids=))`, with ids from 0 to samples - 1, as
    `kd.data.with_ids` and `kd.data.batches(..., ids=True)` make them. `fit` on arrays numbers
    the samples itself, by their position. An id beyond the table is an error before training
    where it can be seen (arrays, the first batch of a data set); later it ends the run on a
    CPU, and gives a loss of NaN on other devices and under XLA.

    Args:
        student: A `keras.Model`, changed in place.
        samples: Number of training samples N.
        alpha: The share of the past predictions in the last epoch's targets, 0 to 1.
        epochs: The number of epochs over which alpha rises. Defaults to `epochs` of `fit`,
            which needs no telling in a run resumed with `initial_epoch`; give it where one
            training is several calls of `fit`.
        table: How P is kept: "float32", of N * C * 4 bytes for C classes (CIFAR-100: 20 MB;
            ImageNet: 5.1 GB); "float16", half of that; or a number k for the k largest
            probabilities alone, N * k * 4 bytes, the rest of the probability spread evenly
            over the other classes. P lies where the weights lie, on each device.
        classes: Number of classes, for a student whose graph does not tell.
        student_from_logits: As in `Distiller`.
        name: Name of the wrapper.

    P and the share are saved, in `.keras` and in weights files, and a resumed run goes on
    with them. The term is logged as `past_predictions`, before `alpha_e`. `evaluate` has no
    such term: P belongs to the training samples. `train_on_batch` cannot know the epoch: call
    `set_epoch` before it.

    Example:
    ```python
    wrapper = kd.ProgressiveDistiller(student, samples=len(images))
    wrapper.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    wrapper.fit(images, labels, epochs=100)
    ```

    Reference:
        Kim et al., ICCV 2021, https://arxiv.org/abs/2006.12000; code:
        https://github.com/lgcnsai/PS-KD-Pytorch
        Deviation: P is not kept in the host's memory.
    """

    def __init__(
        self,
        student: keras.Model,
        samples: int,
        alpha: float = 0.8,
        epochs: int | None = None,
        table: str | int = "float32",
        *,
        classes: int | None = None,
        student_from_logits: bool | None = None,
        name: str = "progressive_distiller",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            student,
            ["past_predictions"],
            student_from_logits=student_from_logits,
            name=name,
            **kwargs,
        )
        self.samples = _checks.positive_integer("samples", samples)
        if not _checks.is_number(alpha) or not 0.0 <= alpha <= 1.0:
            raise ValueError(_checks.message("`alpha` to be a number from 0 to 1", "alpha", alpha))
        self.alpha = float(alpha)
        self.epochs = None if epochs is None else _checks.positive_integer("epochs", epochs)
        self.table = check_storage(table)
        self.classes = classes
        self._knows_epoch = False
        # A variable, for it changes with the epoch: the past predictions weigh the rest to 1.
        self.student_loss_weight = self.add_weight(
            shape=(), initializer="ones", dtype="float32", trainable=False, name="label_weight"
        )
        self.tables = [
            PredictionTable(self.samples, shape, check_storage(table, shape[-1]), f"table_{i}")
            for i, shape in enumerate(self._prediction_shapes())
        ]

    def _prediction_shapes(self):
        if not has_graph(self.student):
            if self.classes is None:
                raise ValueError(
                    "Expected `classes` for a student without a graph. Received: classes=None. "
                    "Pass the number of its classes."
                )
            return [(_checks.positive_integer("classes", self.classes),)]
        shapes = [shape[1:] for shape in self._student_network.output_shapes]
        if any(size is None for shape in shapes for size in shape):
            raise ValueError(
                "Expected a student whose outputs have a fixed shape, for the table holds one "
                f"for each sample. Received: {shapes}. Build it with a fixed input size."
            )
        return shapes

    # Epochs.

    def set_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """Sets the share of the past predictions: `fit` does so at the start of each epoch.

        Args:
            epoch: The epoch, from 0.
            epochs: Number of epochs of the whole training. Defaults to `epochs` of the wrapper.
        """
        epochs = self.epochs or epochs
        if epochs is None:
            raise ValueError(
                _checks.message("the number of `epochs`, over which alpha rises", "epochs", epochs)
            )
        share = self.alpha * min((epoch + 1) / epochs, 1.0) if epoch > 0 else 0.0
        self.student_loss_weight.assign(1.0 - share)
        self._knows_epoch = True

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        callbacks: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`; on arrays it gives each sample its position as id."""
        if sample_ids.are_arrays(x):
            if kwargs.get("class_weight"):
                (labels,) = on_host(as_targets(y).labels)
                weight = np.asarray(class_weights(labels, kwargs.pop("class_weight")))
                given = kwargs.get("sample_weight")
                kwargs["sample_weight"] = weight if given is None else weight * np.asarray(given)
            y = self._with_ids(x, y)
        self._check_ids(x, y)
        return super().fit(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=[_FollowEpochs(), *(keras.tree.flatten(callbacks) if callbacks else [])],
            **kwargs,
        )

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`, on `Targets` with ids, after `set_epoch`."""
        if not self._knows_epoch:
            raise ValueError(
                "Expected to know the epoch, which the share of the past predictions depends on. "
                "Received: train_on_batch without one. Call set_epoch(epoch, epochs) first."
            )
        self._check_ids(x, y)
        return super().train_on_batch(x, y, *args, **kwargs)

    # Ids.

    def _with_ids(self, x, y):
        if y is None or isinstance(y, Targets) and "ids" in y:
            return y
        return Targets({**as_targets(y), "ids": np.arange(keras.tree.flatten(x)[0].shape[0])})

    def _check_ids(self, x, y):
        """Raises where ids are missing or, as far as that can be seen, outside the table."""
        sample_ids.check(x, y, "the table", self._check_rows)

    def _check_rows(self, ids):
        if ids.size and (ids.min() < 0 or ids.max() >= self.samples):
            raise ValueError(
                f"Expected ids from 0 to {self.samples - 1}, for the table has samples="
                f"{self.samples} rows. Received: ids from {ids.min()} to {ids.max()}. Pass the "
                "number of training samples as `samples`."
            )

    def check_data(self, x: Any, y: Any) -> None:
        super().check_data(x, as_targets(y).labels)

    def check_label_loss(self, loss: Any) -> None:
        if loss is None:
            raise ValueError(
                _checks.message(
                    "a label `loss`, for the past predictions have a share of the target",
                    "loss",
                    loss,
                    "Pass a cross-entropy.",
                )
            )
        super().check_label_loss(loss)

    # The term.

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        student = self._student_network(inputs, training=training)
        return Outputs(student.prediction, student if training else None)

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        sample_ids.require(targets, "the table")
        ids = targets["ids"]
        logits = self.logits(outputs.terms)
        rows = [table.read(ids) for table in self.tables]
        labels, weights = label_targets(
            self,
            self._without_need_of_labels(targets.labels, outputs.prediction, logits, rows),
            outputs.prediction,
            logits,
            sample_weight,
        )
        total = 0.0
        for i, (table, own, (past, written)) in enumerate(zip(self.tables, logits, rows)):
            activation = self.activation_of(i, own.shape[-1])
            target = ops.where(written, past, labels[i])
            loss = CROSS_ENTROPY[activation](from_logits=True, dtype="float32")
            total = total + _keras.call_loss(loss, target, own, weights[i], always_reduce=True)
            scores = ops.stop_gradient(at_least_float32(own))
            of_scores = ops.sigmoid if activation == SIGMOID else ops.softmax
            table.write(ids, of_scores(scores))
        return [("past_predictions", total, 1.0 - self.student_loss_weight)]

    def _without_need_of_labels(self, labels, prediction, logits, rows):
        """The labels, with 0 for -1 where the table knows the sample: it has a target."""
        keys = label_rules.output_keys(prediction, self.output_names)
        flat = label_rules.by_output(labels, len(logits), keys)
        for i, (own, (_, written)) in enumerate(zip(logits, rows)):
            y = flat[i]
            if len(y.shape) < len(own.shape):
                written = ops.squeeze(written, axis=-1)
            flat[i] = ops.where(written, ops.maximum(y, ops.zeros_like(y)), y)
        return keras.tree.pack_sequence_as(prediction, flat) if len(flat) > 1 else flat[0]

    def get_config(self) -> Config:
        names = "samples alpha epochs table classes"
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}


class _FollowEpochs(keras.callbacks.Callback):
    """Tells the wrapper the epoch; Keras's own callbacks may have restored another before."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.set_epoch(epoch, self.params["epochs"])
