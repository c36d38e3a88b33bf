"""Knowledge distillation from a frozen teacher into a student."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras

from keras_distill import _checks
from keras_distill import _keras
from keras_distill._types import Config
from keras_distill._types import LossLike
from keras_distill._types import OptimizerLike
from keras_distill._types import Scalar
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.data.targets import Targets
from keras_distill.data.teacher_cache import TeacherCache
from keras_distill.models.base import DistillationModel
from keras_distill.models.cached_teacher import as_teacher
from keras_distill.models.comparison import Comparison
from keras_distill.models.comparison import split_inputs
from keras_distill.models.network import check_compute_dtype
from keras_distill.models.outputs import Outputs
from keras_distill.models.stages import FollowStages
from keras_distill.models.stages import Parts
from keras_distill.models.stages import Stage
from keras_distill.models.stages import StageOptimizer
from keras_distill.models.stages import checked_stages
from keras_distill.models.stages import configs_of
from keras_distill.models.stages import stage_of
from keras_distill.models.stages import terms_of
from keras_distill.models.terms import BoundTerm
from keras_distill.models.terms import Term
from keras_distill.models.wiring import as_terms
from keras_distill.models.wiring import dtype_policy_of
from keras_distill.models.wiring import normalized_class_map
from keras_distill.models.wiring import unique_names

_TEACHER = "a keras.Model, an EnsembleTeacher or a kd.data.TeacherCache"
_LEFT_OUT = object()  # the teacher of a wrapper that was saved without it


@keras.saving.register_keras_serializable(package="keras_distill")
class Distiller(DistillationModel):
    """Trains a student on labels and on what a frozen teacher says and sees.

    `total = student_loss_weight * label loss + sum(weight_i * term_i) + regularisers`

    The teacher runs for inference, once a step, and is never changed. The student runs once
    a step too: label loss, logits and features come from the same forward. `evaluate` and
    `predict` are the student's alone.

    Args:
        teacher: A `keras.Model`, an `EnsembleTeacher`, or a `kd.data.TeacherCache` of one, whose
            `dataset` then is what `fit` takes. A model may have a softmax or sigmoid
            head: the logits before it are found. A teacher that wants another input size or
            range goes behind an adapter:
            `keras.Sequential([keras.Input(...), keras.layers.Resizing(...), teacher])`.
        student: A `keras.Model`, changed in place.
        distillation_losses: A loss, a `Term`, or a list of them. A loss alone compares
            predictions. `None` with `stages`.
        student_loss_weight: Factor of the label loss. Defaults to 1.
        class_map: Aligns label sets that differ: for each of the student's classes the
            teacher's class, or -1 for none (a sequence), or a dict of the classes that both
            know. Response losses then see the shared classes alone.
        stages: A list of `kd.Stage`, each with terms, epochs and an optimizer of its own, which
            one `fit` runs one after another.
        teacher_from_logits, student_from_logits: Whether the models return logits. Only for
            models whose graph does not tell (subclassed, or ending in a layer of your own);
            without it the outputs for the first batch decide, before training.
        teacher_dtype: Run the teacher's layers in this dtype, such as "bfloat16". Defaults to
            its own policies.
        name: Name of the wrapper.

    Inputs that differ between the networks are given as
    `x = {"teacher": ..., "student": ...}`.

    Labels of -1 mark unlabelled samples where the compiled loss reads class ids: the label
    loss and terms that need labels give them weight 0 (they still count in the mean, as
    Keras counts any weight of 0), metrics leave them out, the other terms keep them.

    Example:
    ```python
    distiller = kd.Distiller(teacher, student, kd.losses.SoftTargets(temperature=4.0))
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(images, labels, epochs=10)
    student.save("student.keras")
    ```

    Reference:
        Hinton et al., 2015, https://arxiv.org/abs/1503.02531.
    """

    frozen_attributes = ("teacher",)

    def __init__(
        self,
        teacher: keras.Model | TeacherCache,
        student: keras.Model,
        distillation_losses: LossLike | Term | Sequence[LossLike | Term] | None = None,
        student_loss_weight: float = 1.0,
        class_map: Sequence[int] | Mapping[int, int] | None = None,
        stages: Sequence[Stage] | None = None,
        *,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        teacher_dtype: str | None = None,
        name: str = "distiller",
        **kwargs: Any,
    ) -> None:
        _checks.instance("student", student, keras.Model, "a keras.Model")
        teacher = as_teacher(teacher)
        if teacher is not _LEFT_OUT:
            _checks.instance("teacher", teacher, keras.Model, _TEACHER)
        if stages is None:
            terms = [as_terms(distillation_losses)]
        else:
            if distillation_losses is not None:
                raise ValueError(
                    "Expected `distillation_losses` or `stages`. Received: both. Put the losses "
                    "into the `terms` of the stages."
                )
            stages = checked_stages(stages)
            terms = [stage.terms for stage in stages]
        flat = [term for of_stage in terms for term in of_stage]
        names = unique_names([term.name for term in flat], taken={"loss", "label_loss", "stage"})
        kwargs.setdefault("dtype", dtype_policy_of(student))
        super().__init__(term_names=names, name=name, **kwargs)
        self.student_loss_weight = _checks.non_negative("student_loss_weight", student_loss_weight)
        self.class_map = normalized_class_map(class_map)
        self.teacher_from_logits = teacher_from_logits
        self.student_from_logits = student_from_logits
        self.teacher_dtype = check_compute_dtype("teacher_dtype", teacher_dtype)
        self.student = student
        self.terms = [BoundTerm(term, name) for term, name in zip(flat, names)]
        self._parts = Parts(stages, self._comparisons(stages, [len(own) for own in terms]))
        self.assistants = []
        if stages is not None:
            own = [stage.student for stage in stages if stage.student is not None]
            self.assistants = list({id(network): network for network in own}.values())
            self._stage = self.add_weight(
                shape=(), initializer="zeros", dtype="int32", trainable=False, name="stage"
            )
        if teacher is _LEFT_OUT:
            for part in self._parts.comparisons:
                part.connect_saved()
            teacher = None
        self.teacher = teacher
        self.built = all(part.student.built for part in self._parts.comparisons)
        if stages is not None and self.built:
            self._parts.check_trained()

    def _comparisons(self, stages, counts):
        bound = iter(self.terms)
        comparisons = []
        for stage, count in zip(stages or [None], counts):
            student, weight = self.student, self.student_loss_weight
            if stage is not None:
                student = self.student if stage.student is None else stage.student
                if stage.student_loss_weight is not None:
                    weight = stage.student_loss_weight
            terms = [next(bound) for _ in range(count)]
            options = self.class_map, self.student_from_logits
            comparisons.append(self._comparison(student, terms, weight, *options))
        return comparisons

    def _comparison(self, student, *arguments):
        return Comparison(student, *arguments)

    # The teacher may be missing in a wrapper that was saved without it, and set later.

    def __setattr__(self, name, value):
        if name == "teacher":
            self._bind_teacher(value)
        super().__setattr__(name, value)

    def _bind_teacher(self, teacher):
        if teacher is not None:
            _checks.instance("teacher", teacher, keras.Model, _TEACHER)
        options = self.teacher_from_logits, self.teacher_dtype
        for stage, part in zip(self._parts.stages or [None], self._parts.comparisons):
            own = None if stage is None else stage.teacher
            part.bind_teacher(teacher if own is None else own, *options)

    def set_teacher(self, teacher: keras.Model) -> None:
        """Gives a wrapper that was saved without its teacher one to train with."""
        with _keras.unlocked(self):
            self.teacher = as_teacher(teacher)

    @property
    def _ids_without_gradient(self):
        # What a term holds and does not train, such as a paraphraser, another term may train.
        terms = getattr(self, "terms", [])
        held = {id(v) for term in terms for v in term.variables}
        trained = {id(v) for term in terms for v in term.trainable_variables}
        return super()._ids_without_gradient | (held - trained)

    @property
    def inference_model(self) -> keras.Model:
        """The student."""
        return self.student

    @property
    def output_names(self) -> list[str] | None:
        """The student's: see `DistillationModel.output_names`."""
        return getattr(self.student, "output_names", None)

    # Stages.

    @property
    def stages(self) -> list[Stage] | None:
        """The `Stage`s, or `None`."""
        return self._parts.stages

    @property
    def stage(self) -> int:
        """The number of the stage that runs or ran last, from 0."""
        return self._parts.active

    @property
    def silent_terms(self) -> list[str]:
        """Names of the terms of other stages."""
        own = {term.name for term in self._parts.current.terms}
        return [term.name for term in self.terms if term.name not in own]

    def begin_stage(self, number: int) -> None:
        """Goes on with a stage, as `fit` does in its first epoch.

        Args:
            number: Its position in `stages`.
        """
        self._stage.assign(number)
        if number != self._parts.active:
            self._go_on_with(number)
            self._set_step_counter()

    def _go_on_with(self, number):
        self._parts.active = number
        if self.optimizer is not None:
            _unscaled(self.optimizer).begin(number)
        if self.train_function is not None:
            self.make_train_function(force=True)
        self.test_function = None

    def finish_stage(self) -> None:
        """Ends a stage as the end of `fit` would: averages of weights take their place."""
        self.optimizer.finalize_variable_values(self.trainable_weights)

    @property
    def label_loss_weight(self) -> Scalar:
        return self._parts.current.label_weight

    @property
    def updated_variables(self) -> list[keras.Variable]:
        if self.stages is None:
            return self.trainable_variables
        return self._parts.trained(self._parts.active)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int | None = None,
        verbose: int | str = "auto",
        callbacks: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`; with `stages`, `epochs` defaults to those of all stages.

        Callbacks, `initial_epoch` and data sets with `steps_per_epoch` count the epochs of all
        stages. Each epoch's logs hold the number of its `stage`.
        """
        if self.stages is None:
            epochs = 1 if epochs is None else epochs
        else:
            epochs = sum(stage.epochs for stage in self.stages) if epochs is None else epochs
            given = keras.tree.flatten(callbacks) if callbacks else []
            callbacks = [FollowStages(self.stages), *given]
        return super().fit(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            **kwargs,
        )

    # Forward and terms.

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        return self._parts.current.forward(inputs, training)

    def infer(self, inputs: Structure) -> Structure:
        return self.student(split_inputs(self.student, inputs)[1], training=False)

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        return self._parts.current.term_values(
            outputs, targets, sample_weight, self.step, self.output_names
        )

    # Compiling and checks.

    def compile(
        self, optimizer: OptimizerLike = "rmsprop", loss: Any = None, **kwargs: Any
    ) -> None:
        """As `DistillationModel.compile`; with `stages`, each gets a copy of the optimizer."""
        if self.stages is not None and optimizer is not None:
            groups = [
                lambda number=number: self._parts.trained(number)
                for number in range(len(self.stages))
            ]
            optimizer = StageOptimizer.for_stages(optimizer, self.stages, groups)
            optimizer.begin(self._parts.active)
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def check_label_loss(self, loss: Any) -> None:
        for part in self._parts.comparisons:
            part.check_label_loss(loss, self.output_names)

    def check_data(self, x: Any, y: Any) -> None:
        super().check_data(x, y)
        for part in self._parts.comparisons:
            part.check_data(x, y, self._compiled_loss, self.output_names)

    # Saving.

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        if self.stages is not None:
            number = int(keras.ops.convert_to_numpy(self._stage))
            if number != self._parts.active:
                self._go_on_with(number)

    def get_config(self) -> Config:
        config = super().get_config()
        config.pop("dtype", None)
        config = {
            **config,
            "name": self.name,
            "teacher": None if self._hides_frozen else _keras.serialized(self.teacher),
            "student": _keras.serialized(self.student),
            "student_loss_weight": self.student_loss_weight,
            "class_map": self.class_map,
            "teacher_from_logits": self.teacher_from_logits,
            "student_from_logits": self.student_from_logits,
            "teacher_dtype": self.teacher_dtype,
        }
        terms = [
            [{"class_name": "Term", "config": term.get_config(), "name": term.name} for term in own]
            for own in (part.terms for part in self._parts.comparisons)
        ]
        if self.stages is None:
            return {**config, "distillation_losses": terms[0]}
        stages = configs_of(self.stages, terms, self.assistants)
        return {**config, "stages": stages, "assistants": _keras.serialized(self.assistants)}

    @classmethod
    def from_config(cls, config: Config, custom_objects: Mapping[str, Any] | None = None) -> Self:
        config = dict(config)
        with keras.saving.custom_object_scope(custom_objects or {}):
            for name in ("teacher", "student"):
                config[name] = keras.saving.deserialize_keras_object(config[name])
            assistants = _keras.deserialized(config.pop("assistants", []))
            if config.get("stages") is None:
                config["distillation_losses"] = terms_of(config["distillation_losses"])
            else:
                config["stages"] = [stage_of(stage, assistants) for stage in config["stages"]]
        if config["teacher"] is None:
            config["teacher"] = _LEFT_OUT
        return cls(**config)

    @classmethod
    def from_keras(cls, distiller: Any) -> Self:
        """Converts a `keras.distillation.Distiller`, with the losses that its author meant.

        See `keras_distill.models.from_keras.terms_of` for the rules.

        Args:
            distiller: A `keras.distillation.Distiller`. Its teacher and student are shared,
                not copied. The teacher's `trainable`, which Keras set to `False`, is left so.
        """
        from keras_distill.models import from_keras

        return cls(
            distiller.teacher,
            distiller.student,
            from_keras.terms_of(distiller),
            student_loss_weight=float(distiller.student_loss_weight),
            name=distiller.name,
        )


def _unscaled(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)
