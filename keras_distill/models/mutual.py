"""Deep mutual learning: a cohort of students that teach each other."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras

from keras_distill import _checks
from keras_distill import _keras
from keras_distill import distribution
from keras_distill._types import Config
from keras_distill._types import Logs
from keras_distill._types import NumberOrSchedule
from keras_distill._types import OptimizerLike
from keras_distill._types import Scalar
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.data.targets import Targets
from keras_distill.models import cohort_metrics
from keras_distill.models import cohort_step
from keras_distill.models import labels as label_rules
from keras_distill.models import mimicry
from keras_distill.models import placement
from keras_distill.models.base import DistillationModel
from keras_distill.models.cohort import ENSEMBLE
from keras_distill.models.cohort import Cohort
from keras_distill.models.cohort import checked_students
from keras_distill.models.cohort import policy_of_students
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.outputs import Outputs
from keras_distill.models.outputs import as_targets
from keras_distill.models.outputs import batch_size
from keras_distill.models.per_network import PerNetworkOptimizer
from keras_distill.models.wiring import shapes_of_inputs
from keras_distill.schedules import number_or_schedule
from keras_distill.schedules import value_at


@keras.saving.register_keras_serializable(package="keras_distill")
class MutualLearner(DistillationModel):
    """Students that learn from the labels and from each other (DML).

    Student k minimises its own label loss plus `weight` times its mimicry loss,
    `T^2 / (K - 1) * sum over l != k of KL(p_l || p_k)`, the mean over the batch. The peers'
    probabilities p_l, at temperature T, come from the training-mode forward that also gives
    their own losses, and are constants to the gradient of student k.

    Args:
        students: At least two `keras.Model`s with the same outputs, of any architectures,
            changed in place. Heads may be softmax, sigmoid or logits.
        temperature: T, a positive number or a schedule.
        weight: Factor of the mimicry losses, a number, 0 or more, or a schedule.
        peers: "each" compares with each peer (DML), "mean" with the peers' mean probability
            (DML_e). A KL is linear in its target but for the target's entropy, so that both
            have the same gradient at equal weights; only the logged losses differ.
        reduce: "mean" over the K - 1 peers, or "sum": K - 1 times as much, with either `peers`.
        update: "simultaneous": all students step from one forward of each. "sequential" (the
            paper's Algorithm 1; TensorFlow only): they step one after the other on the same
            batch, each against the latest predictions of its peers. Each is forwarded at the
            start of the step and, but for the last, again when it has stepped: 2K - 1
            forwards. The second forward is in training mode too, moves no batch statistics,
            and draws dropout of its own.
        devices: One device a student, such as `["GPU:0", "GPU:1"]` (TensorFlow only). Its
            variables, forward, gradient and update are placed there, and only probabilities
            cross. The variables are created anew: a function of your own that was traced
            with the old ones keeps those.
        students_from_logits: Whether students return logits, where their graph does not tell.
        name: Name of the model.

    Compile it as for ONE student: optimizer, `loss` and `metrics` are copied for each (a list of
    optimizers gives each its own). Where only some heads are a softmax, all are read as logits.
    The logs are `NAME_loss` (the label loss), `NAME_mimicry` and `NAME_accuracy` ... of each
    student, by its model's name, made unique; `ensemble_accuracy` ...; and `loss`, the sum of
    all that is minimised. In `evaluate` and validation `loss` is the ensemble's label loss, for
    the mean probability of all is the model that is exported; with `evaluate_terms=True` it is
    what training minimises. `predict` gives a dict of the students' outputs by name, and under
    "ensemble" the mean probability, or values whose softmax it is where students give logits.

    Example:
    ```python
    cohort = keras_distill.MutualLearner([resnet, mobilenet])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    cohort.compile("adam", loss, metrics=["accuracy"])
    cohort.fit(x, y, validation_data=(x_val, y_val))
    keras_distill.export.tflite(cohort.best_student("val_accuracy"), "student.tflite")
    ```

    Reference:
        Zhang, Xiang, Hospedales and Lu, "Deep Mutual Learning", CVPR 2018,
        https://arxiv.org/abs/1706.00384. The paper's equations.
        Deviation: `update="simultaneous"`, which needs K forwards, is the default.
        Deviation: sequential steps use one batch for all, as in the paper; the authors'
        TensorFlow code draws a new one for each network.
        Deviation: `reduce="mean"` is the paper's; the authors' code sums.
        Deviation: T other than 1 (with the factor T^2), and `weight`, are ours.
    """

    def __init__(
        self,
        students: Sequence[keras.Model],
        temperature: NumberOrSchedule = 1.0,
        weight: NumberOrSchedule = 1.0,
        peers: str = "each",
        reduce: str = "mean",
        update: str = "simultaneous",
        devices: Sequence[str] | None = None,
        students_from_logits: bool | None = None,
        name: str = "mutual_learner",
        **kwargs: Any,
    ) -> None:
        students, names = checked_students(students)
        kwargs.setdefault("dtype", policy_of_students(students))
        super().__init__(term_names=[f"{n}_mimicry" for n in names], name=name, **kwargs)
        self.temperature = number_or_schedule("temperature", temperature, _checks.positive)
        self.weight = number_or_schedule("weight", weight)
        self.peers = _checks.one_of("peers", peers, ("each", "mean"))
        self.reduce = _checks.one_of("reduce", reduce, ("mean", "sum"))
        self.update = _checks.one_of("update", update, ("simultaneous", "sequential"))
        if update == "sequential":
            distribution.require_tensorflow("`update='sequential'`")
        self.devices = placement.checked_devices(devices, len(students))
        self.students_from_logits = students_from_logits
        self.students = students
        self.student_names = names
        self.cohort = Cohort(students, names, students_from_logits, self.devices)
        self._given_metrics = None
        self._student_loss_trackers = [keras.metrics.Mean(name=f"{n}_loss") for n in names]
        for student, device in zip(students, self.devices or ()):
            placement.place(student, device)
        self.built = all(student.built for student in students)

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        return Outputs(*self.cohort.run_all(inputs, training))

    def infer(self, inputs: Structure) -> Structure:
        return self.cohort.run_all(inputs, training=False)[0]

    @property
    def output_names(self) -> list[str] | None:
        """A student's: see `DistillationModel.output_names`."""
        return self.cohort.output_names

    # Losses.

    @property
    def current_temperature(self) -> Tensor:
        """T at this step."""
        return value_at(self.temperature, self.step)

    @property
    def current_weight(self) -> Tensor:
        """The factor of the mimicry losses at this step."""
        return value_at(self.weight, self.step)

    def peers_seen(
        self, logits: Sequence[Sequence[Tensor]], temperature: Scalar
    ) -> tuple[list[list[Tensor]], list[list[mimicry.Peer]]]:
        """Log-probabilities and `mimicry.Peer`s, each by student and output."""
        log_probs = [
            self.cohort.log_probabilities(k, own, temperature) for k, own in enumerate(logits)
        ]
        return log_probs, [self.cohort.as_peer(k, own) for k, own in enumerate(log_probs)]

    def mimicry(
        self,
        index: int,
        log_probs: Sequence[Tensor],
        peers: Sequence[Sequence[mimicry.Peer]],
        temperature: Scalar,
        sample_weight: Structure | None,
    ) -> Tensor:
        """The mimicry loss of a student, summed over its outputs, before its weight.

        Args:
            index: Which student.
            log_probs: Its log-probabilities, one tensor an output.
            peers: `mimicry.Peer`s by student and output, its own among them.
            temperature: T.
            sample_weight: Keras's sample weights, in the structure of the outputs, or `None`.
        """
        weights = label_rules.by_output(sample_weight, len(log_probs), self.cohort.output_keys)
        others = [own for k, own in enumerate(peers) if k != index]
        loss = mimicry.Mimicry(temperature)
        total = 0.0
        for own, weight, *of_peers in zip(log_probs, weights, *others):
            target = mimicry.target_of(of_peers, self.peers == "mean", self.reduce == "sum")
            total += _keras.call_loss(loss, tuple(target), own, weight, always_reduce=True)
        return total

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        temperature, weight = self.current_temperature, self.current_weight
        log_probs, peers = self.peers_seen(outputs.terms, temperature)
        values = [
            self.mimicry(k, own, peers, temperature, sample_weight)
            for k, own in enumerate(log_probs)
        ]
        return [
            (f"{name}_mimicry", value, weight) for name, value in zip(self.student_names, values)
        ]

    def student_label_loss(
        self, index: int, labels: Structure, predictions: Structure, sample_weight: Structure | None
    ) -> Tensor | None:
        """The label loss of one student, which it logs; `None` where there is none."""
        prediction = predictions[self.student_names[index]]
        loss = self.label_loss(labels, prediction, sample_weight)
        if loss is not None:
            self._log(self._student_loss_trackers[index], loss, batch_size(prediction))
        return loss

    def _label_losses(self, labels, predictions, sample_weight):
        return [
            self.student_label_loss(k, labels, predictions, sample_weight)
            for k in range(len(self.cohort))
        ]

    def training_label_loss(
        self, labels: Structure | None, outputs: Outputs, sample_weight: Structure | None
    ) -> Tensor | None:
        losses = self._label_losses(labels, outputs.prediction, sample_weight)
        return None if self._compile_loss is None else sum(losses)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Structure | None = None,
        sample_weight: Structure | None = None,
        training: bool = True,
    ) -> Tensor:
        """As `DistillationModel.compute_loss`; of plain predictions, the ensemble's."""
        if not isinstance(y_pred, Outputs):
            self._label_losses(as_targets(y).labels, y_pred, sample_weight)
            y_pred = y_pred[ENSEMBLE]
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def train_step(self, *args: Any) -> Any:
        """One update of each student: see `update`."""
        if self.update == "simultaneous" and self.devices is None:
            return super().train_step(*args)
        return cohort_step.train_step(self, *_keras.unpack_x_y_sample_weight(*args))

    # Compilation and logs.

    def compile(
        self,
        optimizer: OptimizerLike | Sequence[OptimizerLike] = "rmsprop",
        loss: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`, for one student.

        Args:
            optimizer: One for all, copied for each student, or a list with one a student.
            loss: The label loss of one student; `None` trains on the mimicry losses alone.
            metrics, weighted_metrics: Of one student, copied for each and for the ensemble.
            **kwargs: As in `DistillationModel.compile`.
        """
        given = cohort_metrics.GivenMetrics(metrics, weighted_metrics)
        if optimizer is not None:
            optimizer = PerNetworkOptimizer.for_networks(optimizer, self.cohort.students)
            cohort_step.check_optimizers(optimizer.optimizers, self.update)
        jit_compile = cohort_step.checked_jit(kwargs.pop("jit_compile", "auto"), self.devices)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            jit_compile=jit_compile,
            **given.of_each(self.student_names, self.cohort.output_keys),
            **kwargs,
        )
        self._given_metrics = given

    def get_compile_config(self) -> Config:
        config = super().get_compile_config()
        return {**config, **self._given_metrics.serialized()} if config else config

    def check_label_loss(self, loss: Any) -> None:
        label_rules.check_heads(loss, self.cohort.heads, keys=self.cohort.output_keys)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Structure, sample_weight: Structure | None = None
    ) -> dict[str, Tensor]:
        """The compiled metrics of each student and of the ensemble, and the losses."""
        trains = isinstance(y_pred, Outputs)
        if self._compile_metrics is not None:
            labels = as_targets(y).labels
            if labels is None:
                raise ValueError(
                    "Expected labels for the compiled `metrics`. Received: y=None. Compile "
                    "without metrics to train on the mimicry losses alone."
                )
            cohort_metrics.update(
                self._compile_metrics,
                self._compiled_loss,
                labels,
                y_pred.prediction if trains else y_pred,
                sample_weight,
                self.cohort,
            )
        silent = [] if trains else [self._label_loss_tracker, *self._term_trackers]
        if self._compile_loss is None:
            silent += [self._label_loss_tracker, *self._student_loss_trackers]
        else:  # Of several outputs Keras logs each loss: here the mean over all students.
            silent += self._compile_loss.metrics
        silent = {metric.name for metric in silent}
        logs = self.get_metrics_result()
        return {name: value for name, value in logs.items() if name not in silent}

    # Data.

    def check_data(self, x: Any, y: Any) -> None:
        super().check_data(x, y)
        shapes = self.cohort.networks[0].output_shapes
        label_rules.check_class_ids(self._compiled_loss, y, shapes)
        self.cohort.check_inputs(shapes_of_inputs(x))
        self._settle(x)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`: `loss` is the ensemble's; all students' logs beside it."""
        self._settle(x)
        return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`: a dict by student's name, and "ensemble"."""
        self._settle(x)
        return super().predict(x, *args, **kwargs)

    def _settle(self, x):
        if self.cohort.is_open:
            self.cohort.settle(_keras.first_inputs(x))
            self.check_label_loss(self._compiled_loss)

    # The cohort.

    def best_student(
        self, metric: str = "val_accuracy", mode: str | None = None, logs: Logs | None = None
    ) -> keras.Model:
        """The student that does best, as it is now: a plain `keras.Model`.

        Args:
            metric: A metric or loss that is logged for each student, without its name:
                "accuracy", "val_accuracy", "val_loss", "mimicry". Of the last `fit` the last
                epoch counts, whose weights the students hold.
            mode: "max" or "min". By default "min" for losses, errors and divergences.
            logs: Values to go by instead of the last `fit`'s: a dict as `evaluate(...,
                return_dict=True)` gives, whose names have no "val_".

        Returns:
            One of `students`; of equal ones the first.
        """
        _checks.one_of("mode", mode, (None, "max", "min"))
        if logs is not None:
            metric = metric.removeprefix("val_")
        else:
            logs = cohort_metrics.last_logs(getattr(self, "history", None))
        return self.students[cohort_metrics.index_of_best(self.student_names, metric, logs, mode)]

    def cohort_as_ensemble(self) -> EnsembleTeacher:
        """An `EnsembleTeacher` of the students, which it shares: their mean probability."""
        return EnsembleTeacher(
            list(self.students),
            members_from_logits=self.students_from_logits,
            name=f"{self.name}_ensemble",
        )

    @property
    def inference_model(self) -> keras.Model:
        """The ensemble of all students; see `cohort_as_ensemble`."""
        return self.cohort_as_ensemble().inference_model

    # Saving.

    def get_config(self) -> Config:
        config = super().get_config()
        config.pop("dtype", None)
        return {
            **config,
            "name": self.name,
            "students": _keras.serialized(self.students),
            "temperature": _keras.serialized(self.temperature),
            "weight": _keras.serialized(self.weight),
            "peers": self.peers,
            "reduce": self.reduce,
            "update": self.update,
            "devices": None if self.devices is None else list(self.devices),
            "students_from_logits": self.students_from_logits,
        }

    @classmethod
    def from_config(cls, config: Config, custom_objects: Mapping[str, Any] | None = None) -> Self:
        config = _keras.arguments_of(config, custom_objects)
        return cls(**{**config, "devices": placement.devices_here(config["devices"])})
