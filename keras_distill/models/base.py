"""What all wrappers share: the training step, the total loss, logs, saving."""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import _keras
from keras_distill import _memory
from keras_distill import distribution
from keras_distill._types import Config
from keras_distill._types import OptimizerLike
from keras_distill._types import Scalar
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.data.targets import Targets
from keras_distill.models import labels as label_rules
from keras_distill.models.frozen import FrozenNetworks
from keras_distill.models.outputs import Outputs
from keras_distill.models.outputs import as_targets
from keras_distill.models.outputs import batch_size


class DistillationModel(FrozenNetworks):
    """Base class of the wrappers.

    A subclass gives:
        `forward(inputs, training)`: an `Outputs`, from one forward of each network;
        `infer(inputs)`: the prediction of the model that is evaluated and exported;
        `term_values(outputs, targets, sample_weight)`: a list of `(name, value, weight)`;
        `inference_model`: the Keras model that `export` takes.

    and may give:
        `training_label_loss(labels, outputs, sample_weight)`: the label loss of a step;
        `metric_data(outputs, targets, sample_weight)`: what the compiled metrics see of it;
        `after_update()`: what follows each update of the weights;
        `student_loss_weight`: the factor of the label loss in training, a number or a tensor;
        `silent_terms`: names of terms that take no part at present, whose logs are left out.

    Args:
        term_names: Names of the terms, each of which gets a log of its own.
        name, dtype: As in `keras.Model`.
    """

    silent_terms: Sequence[str] = ()

    def __init__(
        self, term_names: Sequence[str], name: str | None = None, dtype: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(name=name, dtype=dtype, autocast=False, **kwargs)
        self.student_loss_weight = 1.0
        self._collects_terms = False
        self._evaluate_terms = None
        self._compiled_loss = None
        self._step_counter = None
        if keras.backend.backend() == "jax":
            self._step_counter = self.add_weight(
                shape=(), initializer="zeros", dtype="int32", trainable=False, name="step"
            )
        self._label_loss_tracker = keras.metrics.Mean(name="label_loss")
        self._term_trackers = [keras.metrics.Mean(name=name) for name in term_names]

    # Forward.

    def call(self, inputs: Structure, training: bool | None = None) -> Tensor:
        """The prediction; in training, an `Outputs` with all that the terms need."""
        if training or self._collects_terms:
            return self.forward(inputs, training=bool(training))
        return self.infer(inputs)

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        """Runs each network once. Returns `Outputs`."""
        raise NotImplementedError(f"{type(self).__name__} gives no `forward`.")

    def infer(self, inputs: Structure) -> Structure:
        """Runs the inference model alone."""
        raise NotImplementedError(f"{type(self).__name__} gives no `infer`.")

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        """Returns `[(name, reduced value, weight), ...]`."""
        raise NotImplementedError(f"{type(self).__name__} gives no `term_values`.")

    @property
    def inference_model(self) -> keras.Model:
        """The Keras model that is exported."""
        raise NotImplementedError(f"{type(self).__name__} gives no `inference_model`.")

    @property
    def output_names(self) -> list[str] | None:
        """Names of the outputs, by which Keras reads dicts of losses, metrics and labels."""
        return None

    # Loss and logs.

    def compile(
        self,
        optimizer: OptimizerLike = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        evaluate_terms: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Configures the wrapper; as `keras.Model.compile`, for the inference model.

        Args:
            optimizer, loss, loss_weights, metrics, weighted_metrics: As in Keras. `loss` is
                the label loss; `None` trains on the terms alone.
            evaluate_terms: Whether `evaluate` and validation add the terms to the loss, with
                a teacher forward. Defaults to `False`, and to `True` where `loss` is `None`.
            **kwargs: As in Keras (`run_eagerly`, `steps_per_execution`, `jit_compile`,
                `auto_scale_loss`).
        """
        self.check_label_loss(loss)
        self._check_names(metrics, weighted_metrics)
        # Keras keeps those of an earlier `compile` where none are given.
        self._compile_loss = self._compile_metrics = None
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            **kwargs,
        )
        self._compiled_loss = loss
        self._evaluate_terms = evaluate_terms
        if self.built and self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    def _check_names(self, *metrics):
        logged = {tracker.name for tracker in [self._label_loss_tracker, *self._term_trackers]}
        for metric in keras.tree.flatten(metrics):
            name = metric if isinstance(metric, str) else getattr(metric, "name", None)
            if name in logged:
                raise ValueError(
                    f"Expected metrics with names of their own. Received: {name!r}, under which a "
                    "loss is logged. Give the metric, or the Term, another name."
                )

    def check_label_loss(self, loss: Any) -> None:
        """Raises where a compiled loss contradicts the head; subclasses know the head."""

    @property
    def evaluate_terms(self) -> bool:
        """Whether `evaluate` adds the terms to the loss."""
        return self._compiled_loss is None if self._evaluate_terms is None else self._evaluate_terms

    def get_compile_config(self) -> Config:
        config = super().get_compile_config()
        return {**config, "evaluate_terms": self._evaluate_terms} if config else config

    def compile_from_config(self, config: Config) -> None:
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Structure | None = None,
        sample_weight: Structure | None = None,
        training: bool = True,
    ) -> Tensor:
        """The compiled loss, the model's regularisers, and the weighted terms.

        On more than one replica every part is divided by their number, as Keras does, and
        every log is of the undivided value.
        """
        outputs = y_pred if isinstance(y_pred, Outputs) else None
        prediction = y_pred if outputs is None else outputs.prediction
        targets = as_targets(y)
        rows = batch_size(prediction)
        losses = []
        if outputs is None:
            label_loss = self.label_loss(targets.labels, prediction, sample_weight)
        else:
            label_loss = self.training_label_loss(targets.labels, outputs, sample_weight)
        if label_loss is not None:
            self._log(self._label_loss_tracker, label_loss, rows)
            losses.append(label_loss if outputs is None else label_loss * self.label_loss_weight)
        losses.extend(self._aggregate_additional_loss(loss) for loss in self.losses)
        if outputs is not None:
            compares = outputs.terms is not None
            values = self.term_values(outputs, targets, sample_weight) if compares else []
            trackers = {tracker.name: tracker for tracker in self._term_trackers}
            for name, value, weight in values:
                self._log(trackers[name], value, rows)
                losses.append(ops.cast(value, "float32") * weight)
            if training and self._step_counter is not None:
                self._step_counter.assign_add(1)
        if not losses:
            return ops.zeros(())
        return sum(ops.cast(loss, "float32") for loss in losses)

    @property
    def label_loss_weight(self) -> Scalar:
        """The factor of the label loss in training, at present."""
        return self.student_loss_weight

    @property
    def updated_variables(self) -> list[keras.Variable]:
        """The variables that a step updates, where the step is our own (on TensorFlow)."""
        return self.trainable_variables

    def training_label_loss(
        self, labels: Structure | None, outputs: Outputs, sample_weight: Structure | None
    ) -> Tensor | None:
        """The label loss of a training step; several networks override it."""
        return self.label_loss(labels, outputs.prediction, sample_weight)

    def metric_data(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> tuple[Structure, Structure, Structure | None]:
        """`(labels, prediction, sample_weight)` for the metrics of a training step."""
        return targets.labels, outputs.prediction, sample_weight

    def label_loss(
        self, labels: Structure | None, prediction: Structure, sample_weight: Structure | None
    ) -> Tensor | None:
        """The compiled loss of the labelled samples; `None` where there is none."""
        if self._compile_loss is None:
            return None
        if labels is None:
            raise ValueError(
                "Expected labels for the compiled `loss`. Received: y=None. Compile with "
                "loss=None to train on the terms alone."
            )
        labels, sample_weight, _ = label_rules.leave_out_unlabelled(
            self._compiled_loss, labels, prediction, sample_weight, self.output_names
        )
        return self._compile_loss(labels, prediction, sample_weight)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Structure, sample_weight: Structure | None = None
    ) -> dict[str, Tensor]:
        outputs = y_pred if isinstance(y_pred, Outputs) else None
        labels, prediction = as_targets(y).labels, y_pred
        if outputs is not None:
            labels, prediction, sample_weight = self.metric_data(
                outputs, as_targets(y), sample_weight
            )
        if self._compile_metrics is not None:
            if labels is None:
                raise ValueError(
                    "Expected labels for the compiled `metrics`. Received: y=None. Compile "
                    "without metrics to train on the terms alone."
                )
            labels, sample_weight, masks = label_rules.leave_out_unlabelled(
                self._compiled_loss, labels, prediction, sample_weight, self.output_names
            )
            label_rules.update_metrics(
                self._compile_metrics, labels, prediction, sample_weight, masks
            )
        logs = self.get_metrics_result()
        silent = [] if outputs is not None else [self._label_loss_tracker, *self._term_trackers]
        if outputs is not None and outputs.terms is None:
            silent = list(self._term_trackers)
        if self._compile_loss is None:
            silent.append(self._label_loss_tracker)
        silent = {metric.name for metric in silent} | set(self.silent_terms)
        return {name: value for name, value in logs.items() if name not in silent}

    @property
    def step(self) -> Scalar:
        """The number of updates so far, which schedules read: `optimizer.iterations`.

        JAX's step does not see the optimizer's variables when it computes the loss, so there
        the wrapper counts its own steps, set right at each `fit`.
        """
        if self.optimizer is None:
            return 0
        if self._step_counter is None:
            return self.optimizer.iterations
        return self._step_counter // self._steps_per_update

    @property
    def _steps_per_update(self):
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        optimizer = getattr(optimizer, "optimizers", [optimizer])[0]
        return optimizer.gradient_accumulation_steps or 1

    def _set_step_counter(self):
        if self._step_counter is not None and self.optimizer is not None:
            updates = ops.cast(self.optimizer.iterations, "int32")
            self._step_counter.assign(updates * self._steps_per_update)

    @staticmethod
    def _log(tracker, value, rows):
        tracker.update_state(_keras.unscale_loss_for_distribution(value), sample_weight=rows)

    # Steps.

    def train_step(self, *args: Any) -> Any:
        """One update. Keras compiles it; on other backends it is Keras's own step."""
        if not distribution.is_tensorflow():
            return self._with_after_update(super().train_step(*args))
        import tensorflow as tf

        x, y, sample_weight = _keras.unpack_x_y_sample_weight(*args)
        trained = self.updated_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in trained])
            outputs = self(x, training=True)
            loss = self.compute_loss(x, y, outputs, sample_weight, training=True)
            self._log(self._loss_tracker, loss, batch_size(outputs.prediction))
            loss = self.optimizer.scale_loss(loss)
        if trained:
            gradients = tape.gradient(loss, [variable.value for variable in trained])
            self.optimizer.apply_gradients(zip(gradients, trained))
        self.after_update()
        logs = self.compute_metrics(x, y, outputs, sample_weight)
        return distribution.logs_for_reduction(logs, self.distribute_strategy)

    def after_update(self) -> None:
        """Called after each update of the weights, inside the compiled step."""

    def _with_after_update(self, result):
        """Keras's step on JAX returns `(logs, state)`: `after_update` is applied to the state."""
        overrides = type(self).after_update is not DistillationModel.after_update
        if not overrides or keras.backend.backend() != "jax":
            if overrides:
                self.after_update()
            return result
        return _keras.changed_state(self, result, self.after_update)

    def test_step(self, *args: Any) -> Any:
        """One batch of `evaluate`: the inference model alone, unless `evaluate_terms`."""
        with self._collecting_terms(self.evaluate_terms):
            logs = super().test_step(*args)
        if not distribution.is_tensorflow():
            return logs
        return distribution.logs_for_reduction(logs, self.distribute_strategy)

    @contextlib.contextmanager
    def _collecting_terms(self, collects):
        before, self._collects_terms = self._collects_terms, collects
        try:
            yield
        finally:
            self._collects_terms = before

    def fit(
        self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`; checks first what only the data can tell, and advises on memory."""
        self.check_data(x, y)
        if kwargs.get("class_weight") and hasattr(x, "element_spec") and hasattr(x, "map"):
            x = label_rules.with_class_weight(x, kwargs.pop("class_weight"))
        self._set_step_counter()
        with _memory.advised():
            return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`: `loss` is what the inference model alone would give."""
        if self.compiled and self.evaluate_terms:
            self.check_data(x, y)
        self._set_step_counter()
        return super().evaluate(x, y, *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`."""
        self.check_data(x, y)
        self._set_step_counter()
        return super().train_on_batch(x, y, *args, **kwargs)

    def check_data(self, x: Any, y: Any) -> None:
        """Raises where the data is empty; subclasses add what they need to know of it."""
        if _keras.is_empty(x):
            raise ValueError(
                "Expected `x` to hold samples. Received an empty data set. Check the path, the "
                "split or the filter that made it."
            )

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras reduces the first batch eagerly, which MultiWorkerMirroredStrategy refuses
        # (keras issue 20585): hand over this process's first copy of it instead.
        strategy = self._distribute_strategy if distribution.is_tensorflow() else None
        if iterator is not None and distribution.in_several_processes(strategy):
            for _, _, batches in iterator:
                data_batch = keras.tree.map_structure(distribution.first_local, next(batches))
                break
            iterator = None
        return super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
