"""DLB: a network learns from its own predictions for the last mini-batch."""

import contextlib
import inspect
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill import distribution
from keras_distill._types import Augment
from keras_distill._types import Config
from keras_distill._types import NumberOrSchedule
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.data.overlap import check_overlap
from keras_distill.data.overlap import overlap_epoch
from keras_distill.data.targets import Targets
from keras_distill.models import last_batch
from keras_distill.models.outputs import Outputs
from keras_distill.models.outputs import as_targets
from keras_distill.models.paired import PairedStudent
from keras_distill.models.wiring import shapes_of_inputs
from keras_distill.schedules import number_or_schedule


@keras.saving.register_keras_serializable(package="keras_distill")
class DLBModel(PairedStudent):
    """Self-distillation from the last mini-batch (DLB).

    `CE(both halves) + weight * T^2 KL(softmax(cached / T) || softmax(z / T))`

    Half of each batch are the samples of the half before, augmented anew. Their cached logits
    are those of the step before: of its forward in training mode, before its update. The
    cross-entropy is the mean over all forwarded samples, the KL term one over the repeated half
    alone. Only the logits are cached, in float32, on each replica its own.

    Trains on elements `((x_last, x_new), (y_last, y_new), (w_last, w_new))`, which
    `keras_distill.data.overlap_batches` makes; on arrays `fit` makes them itself. The third are
    Keras's sample weights: a 0 adds nothing and still counts. But a repeated half whose weights
    are all 0 is absent, left out of sums and counts: then the loss is the mean over the new
    half. `evaluate`, `predict` and validation take plain elements, and of overlapping ones the
    new half; they leave the cache alone.

    The cache belongs to the stream of one `fit`. It is not saved, and each `fit` begins without
    one: its first repeated half is left out, whatever its weights. So a run that was killed and
    resumed equals one that was never disturbed with `carry=False`; with `carry=True` it differs
    by this one half.

    Args:
        student: A `keras.Model`, changed in place; logits are taken before a softmax.
        temperature: T, a positive number or a schedule. Defaults to 3, as published.
        weight: Factor of the KL term, a number or a schedule. Defaults to 1, as published.
        fused_forward: Whether both halves go through the student in one forward, the paper's
            batch. False runs two as the official code does, the new half first: batch
            statistics are those of each half, and their averages move twice a step.
        distortion_weight: `None`, or the factor of DDGSD's two KL terms between two views of
            the new half, a number or a schedule: `T^2 (KL(b || a) + KL(a || b))`, each target
            a constant. Elements are then `((x_last, (x_new, x_other)), ...)`, see `other_view`
            of `overlap_batches`; the label loss is the mean over all three, and DLB keeps to
            the first view.
        student_from_logits: Whether the student returns logits, where its graph does not tell.
        name: Name of the wrapper.

    Logs: `loss`, `label_loss` (all that is forwarded), `last_batch_loss` (the KL term with
    T^2), `distortion_loss` where asked for, and metrics on the new half.

    Example:
    ```python
    model = kd.DLBModel(student)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, labels, batch_size=128, epochs=10)
    ```

    Reference:
        Shen et al., 2022, https://arxiv.org/abs/2203.16172. Convention of
        Meta-knowledge-Lab/DLB: the loss, accuracy on the new half.
        Deviation: with two forwards an absent half is forwarded too, a copy of the new one, so
        that the first step moves the averages twice.
        Deviation: `distortion_weight` has no term on features; neither paper combines the two.
    """

    pair_source = "keras_distill.data.overlap_batches"
    own_view = 1
    _cache = None

    def __init__(
        self,
        student: keras.Model,
        temperature: NumberOrSchedule = 3.0,
        weight: NumberOrSchedule = 1.0,
        fused_forward: bool = True,
        distortion_weight: NumberOrSchedule | None = None,
        student_from_logits: bool | None = None,
        name: str = "dlb_model",
        **kwargs: Any,
    ) -> None:
        compares_views = distortion_weight is not None
        super().__init__(
            student,
            temperature,
            weight,
            term_names=["last_batch_loss", "distortion_loss"][: 1 + compares_views],
            student_from_logits=student_from_logits,
            name=name,
            **kwargs,
        )
        self.fused_forward = _checks.instance("fused_forward", fused_forward, bool, "True or False")
        if compares_views:
            distortion_weight = number_or_schedule("distortion_weight", distortion_weight)
        self.distortion_weight = distortion_weight

    # Forward.

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        if not training:  # The cache is of training alone.
            student = self._student_network(self.own_inputs(inputs), training=False)
            return Outputs(student.prediction, None)
        last, new = self.pair(inputs, training)
        new, *other = self._views_of_new(new)
        if self._cache is None:
            raise ValueError(
                "Expected `fit` or `train_on_batch` to run the training forward, for they make "
                f"the cache. Received: a call of {type(self).__name__} with training=True."
            )
        if self.fused_forward:
            joined = last_batch.joined(last, new, *other)
            outputs = self._student_network(joined, training=True)
            prediction, logits = outputs.prediction, self.logits(outputs)
            rows = ops.shape(keras.tree.flatten(last)[0])[0]
            own = last_batch.rows_of(prediction, rows, 2 * rows)
            last_logits, new_logits, *other_logits = (
                last_batch.rows_of(logits, part * rows, (part + 1) * rows)
                for part in range(2 + len(other))
            )
        else:
            first = self._student_network(new, training=True)
            again = self._student_network(last, training=True)
            others = [self._student_network(view, training=True) for view in other]
            own = first.prediction
            prediction = last_batch.joined(*(part.prediction for part in (again, first, *others)))
            last_logits, new_logits, *other_logits = (
                self.logits(part) for part in (again, first, *others)
            )
        halves = last_batch.Halves(
            prediction,
            last_logits,
            *self._cache.exchange(new_logits),
            new_logits,
            other_logits[0] if other else None,
        )
        return Outputs(own, halves)

    def _views_of_new(self, new):
        """The views of a new half: `(x_new,)`, or `(x_new, x_other)` where DDGSD asks for it."""
        views = self.views(new)
        if len(views) != (1 if self.distortion_weight is None else 2):
            raise ValueError(
                f"Expected {'one view' if self.distortion_weight is None else 'two views'} of "
                f"the new half for distortion_weight={self.distortion_weight}. Received: "
                f"{len(views)}. Make the data set with keras_distill.data.overlap_batches(..., "
                f"other_view={self.distortion_weight is not None})."
            )
        return views

    def own_inputs(self, inputs: Structure) -> Structure:
        return self.views(super().own_inputs(inputs))[0]

    # Loss and metrics.

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Structure | None = None,
        sample_weight: Structure | None = None,
        training: bool = True,
    ) -> Tensor:
        if isinstance(y_pred, Outputs) and y_pred.terms is not None:
            y_pred = last_batch.without_absent(y_pred, sample_weight)
        else:
            y, sample_weight = self._of_the_new_half(x, y, sample_weight)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def training_label_loss(
        self, labels: Structure | None, outputs: Outputs, sample_weight: Structure | None
    ) -> Tensor | None:
        if outputs.terms is None:
            return super().training_label_loss(labels, outputs, sample_weight)
        if labels is not None:
            labels = self._as_forwarded([as_targets(half).labels for half in labels])
        weights = None if sample_weight is None else self._as_forwarded(sample_weight)
        return self.label_loss(labels, outputs.terms.prediction, weights)

    def term_values(
        self, outputs: Outputs, targets: Targets, sample_weight: Structure | None
    ) -> list[tuple[str, Tensor, Tensor]]:
        halves = outputs.terms
        weights = None if sample_weight is None else sample_weight[0]
        value = self.soft_term(halves.cached, halves.last_logits, weights)
        values = [("last_batch_loss", value, self._current(self.weight))]
        if halves.other_logits is not None:
            weights = None if sample_weight is None else sample_weight[self.own_view]
            value = self.soft_term(halves.other_logits, halves.new_logits, weights)
            value = value + self.soft_term(halves.new_logits, halves.other_logits, weights)
            values.append(("distortion_loss", value, self._current(self.distortion_weight)))
        return values

    def _as_forwarded(self, halves):
        """What belongs to the halves, for each row that was forwarded."""
        last, new = halves
        return last_batch.joined(last, new, *([] if self.distortion_weight is None else [new]))

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Structure, sample_weight: Structure | None = None
    ) -> dict[str, Tensor]:
        y, sample_weight = self._of_the_new_half(x, y, sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _of_the_new_half(self, x, y, sample_weight):
        """Labels and weights of the new half, where `x` holds two."""
        if len(self.views(x)) == 2:
            y = None if y is None else y[self.own_view]
            sample_weight = None if sample_weight is None else sample_weight[self.own_view]
        return y, sample_weight

    # Fitting.

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        *args: Any,
        augment: Augment | None = None,
        mix: keras.layers.Layer | None = None,
        carry: bool = True,
        seed: int | None = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`, on overlapping elements, or on arrays, which it lets overlap.

        On arrays, `batch_size` counts forwarded samples as in plain Keras. Half of them are
        new, so an epoch has twice the steps of a plain one, and forwards each sample twice; a
        remainder of less than half a batch is dropped. `x` reaches the student as in plain
        Keras: uint8 is not scaled. A run that a callback takes up goes on with the order of the
        epoch at which it stopped, where `seed` is given.

        Args:
            x: A `tf.data.Dataset` of overlapping elements, or arrays.
            y: The labels of arrays.
            *args, **kwargs: As in Keras. `sample_weight`, `class_weight`, `shuffle`,
                `validation_data` and `validation_split` work on arrays, `steps_per_epoch` does
                not.
            augment, mix, carry, seed: For arrays, as in `keras_distill.data.overlap_batches`.

        Returns:
            Keras's `History`.
        """
        given = inspect.signature(keras.Model.fit).bind(self, x, y, *args, **kwargs).arguments
        given.pop("self")
        options = {"augment": augment, "mix": mix, "carry": carry, "seed": seed}
        views = self.distortion_weight is not None
        if hasattr(x, "element_spec"):
            changed = {name for name in options if options[name] not in (None, True)}
            changed |= {"class_weight"} & {name for name in given if given[name] is not None}
            if changed:
                raise ValueError(
                    f"Expected {', '.join(sorted(changed))} beside arrays only. Received: a "
                    "data set. Give it to keras_distill.data.overlap_batches."
                )
        else:
            given = self._with_overlap(given, {**options, "other_view": views})
        self._begin_stream(given["x"])
        return super().fit(**given)

    def _with_overlap(self, given, options):
        """The arguments of `fit` on arrays, as those of a `fit` on overlapping elements."""
        x, y = given["x"], given.get("y")
        batch_size = _checks.positive_integer("batch_size", given.pop("batch_size", None) or 32)
        if shapes_of_inputs(x) is None or y is None or given.get("steps_per_epoch") is not None:
            raise ValueError(
                f"Expected arrays `x` and `y` without steps_per_epoch, or a tf.data.Dataset of "
                f"{last_batch.ELEMENT}. Received: x of type {type(x).__name__}, y of type "
                f"{type(y).__name__}, steps_per_epoch={given.get('steps_per_epoch')}."
            )
        if batch_size % 2:
            raise ValueError(
                _checks.message("`batch_size` to be even, two halves", "batch_size", batch_size)
            )
        self.check_data(x, y)
        arrays = x, y, given.pop("sample_weight", None)
        split = given.pop("validation_split", 0.0)
        if split and given.get("validation_data") is None:
            kept = int(len(keras.tree.flatten(x)[0]) * (1.0 - split))
            rows = slice(kept, None)
            held_out = keras.tree.map_structure(lambda a: None if a is None else a[rows], arrays)
            arrays = keras.tree.map_structure(lambda a: None if a is None else a[:kept], arrays)
            given["validation_data"] = held_out
        if options["mix"] is not None:
            options["class_count"] = self._student_network.output_shapes[0][-1]
        clock = last_batch.Clock(given.get("initial_epoch", 0))
        given["x"] = overlap_epoch(
            arrays[:2] if arrays[2] is None else arrays,
            batch_size // 2,
            clock.now,
            shuffle=given.get("shuffle", True),
            class_weight=given.pop("class_weight", None),
            **options,
        )
        given["y"], given["shuffle"] = None, False
        given["validation_batch_size"] = given.get("validation_batch_size") or batch_size
        given["callbacks"] = clock.among(given.get("callbacks"))
        return given

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`, on an overlapping element.

        The calls since the last `fit` or `reset_cache` are one stream.
        """
        self._check_pairs_of(x)
        halves = self.views(x)
        rows = [len(keras.tree.flatten(half)[0]) for half in halves]
        if self._cache is None:
            self._make_cache(rows[1], x)
        if set(rows) != {self._cache.rows}:
            raise ValueError(
                f"Expected halves of {self._cache.rows} samples, as the cache holds. Received: "
                f"{rows[0]} and {rows[1]}. Call `reset_cache()` to begin with another size."
            )
        return super().train_on_batch(x, y, *args, **kwargs)

    def reset_cache(self) -> None:
        """Forgets the cached logits: the repeated half of the next step is left out."""
        self._cache = None
        self.train_function = None

    def _begin_stream(self, dataset):
        """Checks a data set before training, and begins with an empty cache of its size."""
        self._check_pairs_of(dataset)
        strategy = getattr(self, "distribute_strategy", None)
        if distribution.in_several_processes(strategy):
            raise ValueError(
                "Expected a DLBModel in one process, for several do not keep a sample on one "
                f"replica. Received: {type(strategy).__name__}. Use MirroredStrategy."
            )
        halves = self.views(shapes_of_inputs(dataset))
        self._views_of_new(halves[self.own_view])
        rows = last_batch.rows_a_replica(halves, getattr(strategy, "num_replicas_in_sync", 1))
        check_overlap(dataset)
        self._make_cache(rows, dataset)

    def _make_cache(self, rows, x):
        """Empties the cache, or makes one where there is none of this size."""
        if self._cache is not None and self._cache.rows == rows:
            self._cache.empty()
            return
        scope = contextlib.nullcontext()
        if distribution.is_tensorflow():
            scope = self.distribute_strategy.scope()
        with scope:
            self._cache = last_batch.LogitCache(rows, self._logit_shapes(x))
        self.train_function = None  # It holds the variables of the cache before.

    def _logit_shapes(self, x):
        """The shape of each output's logits without the first axis."""
        known = self._student_network.output_shapes
        if known is not None and all(size for shape in known for size in shape[1:]):
            return [shape[1:] for shape in known]
        inputs = self.own_inputs(_keras.first_inputs(x))
        scores = self._student_network(inputs, training=False).scores
        return [tuple(score.shape)[1:] for score in scores]

    def _check_pair(self, views):
        if len(views) != 2:
            shapes = [tuple(part.shape) for part in keras.tree.flatten(views[0])]
            raise ValueError(
                f"Expected training elements {last_batch.ELEMENT} for a {type(self).__name__}. "
                f"Received: x of shape {shapes[0] if len(shapes) == 1 else shapes}. "
                f"{last_batch.MAKE_ONE}"
            )

    # The cache is state that the step carries, and that no file holds.

    @property
    def variables(self) -> list[keras.Variable]:
        return [*super().variables, *(self._cache.variables if self._cache is not None else [])]

    @property
    def _seed_states(self):
        cached = {id(v) for v in self._cache.variables} if self._cache is not None else ()
        return [state for state in super()._seed_states if id(state) not in cached]

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "fused_forward": self.fused_forward,
            "distortion_weight": _keras.serialized(self.distortion_weight),
        }
