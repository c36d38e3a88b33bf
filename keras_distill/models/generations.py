"""Several trainings in one `fit`: each generation learns from the one before it."""

import contextlib
import json
import math
import random
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill import distribution
from keras_distill._types import Config
from keras_distill._types import Logs
from keras_distill._types import OptimizerLike
from keras_distill._types import Structure
from keras_distill.models.network import Network
from keras_distill.models.network import fresh_copy
from keras_distill.models.outputs import Outputs
from keras_distill.models.student import StudentModel


class Generations(StudentModel):
    """Base class of the wrappers that train a student, then fresh copies of it.

    One `fit` is one Keras training of `rounds * epochs` epochs: generation 0 on labels, then,
    from a fresh start, each generation from the one before it, which is frozen. What changes
    at a generation's first epoch is the values of variables, so that a run resumed from a
    backup equals one that was never disturbed. Callbacks, `initial_epoch` and data sets with
    `steps_per_epoch` count the epochs of all generations; each epoch's logs hold its
    `generation`. At a new generation

    * the student gets fresh initial weights, a function of (seed, generation);
    * the optimizer is as it was compiled: no momenta, step 0, the first learning rate;
    * `EarlyStopping` and `ReduceLROnPlateau` end and begin anew. `EarlyStopping` ends its
      generation alone; any other callback that stops the training ends it all.

    A subclass gives `term_values`, for `outputs.terms = (teacher, student)`, and sets
    `label_weight`, the factor of the label loss after generation 0.

    Args:
        student: A built `keras.Model`, changed in place: the last generation in the end. Fresh
            copies begin at its initializers: pretrained weights are generation 0's alone.
        term_names: Names of the terms.
        generations: How many follow generation 0. With 0 the wrapper trains once.
        seed: Whole number for the initial weights of the generations. By default it is drawn
            (`keras.utils.set_random_seed` decides it). A run that a new process resumes from a
            weights file has to have the same.
        restore_best: Name of a log, such as "val_accuracy": each generation ends with the
            weights of its best epoch. `None` keeps those of its last.
        best_mode: "min" or "max"; by default read off a name that ends in "loss" or "accuracy".
        **kwargs: As in `StudentModel`.
    """

    saved_attributes = ("earlier", "best")

    def __init__(
        self,
        student: keras.Model,
        term_names: Sequence[str],
        generations: int,
        seed: int | None = None,
        restore_best: str | None = None,
        best_mode: str | None = None,
        student_from_logits: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, term_names, student_from_logits=student_from_logits, **kwargs)
        self.rounds = generations + 1
        self.seed = self._drawn_seed() if seed is None and generations else seed
        self.restore_best = restore_best
        self.best_mode = _checked_mode(restore_best, best_mode)
        self.label_weight = 1.0
        self.earlier = self.best = None
        self._distils = False
        self._optimizer_config = None
        if generations:
            self._generation = self._state(0, "int32", "generation")
            # The last of them is the teacher: at each new generation all move up by one.
            self.earlier = _Copies([self._fresh_copy(i) for i in range(generations)])
            self._check_starts(self.earlier.networks[0], self._fresh_copy(generations))
            self._teacher_network = Network(
                self.earlier.networks[-1], "teacher", from_logits=student_from_logits, frozen=True
            )
        if generations and restore_best is not None:
            self.best = _Copies([self._fresh_copy(0)])
            self._best_value = self._state(math.inf, "float32", "best_value")

    def _drawn_seed(self):
        strategy = self.distribute_strategy if distribution.is_tensorflow() else None
        if distribution.in_several_processes(strategy):
            raise ValueError(
                "Expected `seed`, for each process starts its generations by its own. Received: "
                "seed=None under a strategy of several processes. Pass the same number in all."
            )
        return random.randrange(2**31)

    def _state(self, value, dtype, name):
        initializer = keras.initializers.Constant(value)
        return self.add_weight(
            shape=(), initializer=initializer, dtype=dtype, trainable=False, name=name
        )

    def _fresh_copy(self, generation):
        """The student with initial weights of its own, drawn by (seed, generation)."""
        with _drawing_by(f"{self.seed}, {generation}"):
            return fresh_copy(self.student)

    def _check_starts(self, one, other):
        pairs = zip(one.get_weights(), other.get_weights())
        if all(np.array_equal(a, b) for a, b in pairs):
            warnings.warn(
                "Expected a student whose initial weights are drawn. Received: one whose fresh "
                "copies are all alike, so each generation starts from the same weights. Leave "
                "the seeds of its initializers out.",
                stacklevel=4,
            )

    # Generations.

    @property
    def generation(self) -> int:
        """Which generation the student is of, from 0."""
        return int(ops.convert_to_numpy(self._generation)) if self.earlier else 0

    def trained_generations(self) -> list[keras.Model]:
        """The networks so far, generation 0 first; the last one is the student.

        They are the wrapper's own, not copies: a further `fit` changes them.
        """
        if not self.earlier:
            return [self.student]
        return [*self.earlier.networks[self.rounds - 1 - self.generation :], self.student]

    def begin_generation(self, generation: int) -> None:
        """Makes the student a teacher, and starts the next generation in its place.

        Args:
            generation: Its number: at most one more than the present one. Up to the present
                number it only says which generation goes on.
        """
        present = self.generation
        if generation > present + 1:
            raise ValueError(
                f"Expected to go on in generation {present} or {present + 1}, which this wrapper "
                f"has come to. Received: an epoch of generation {generation}. Restore a backup "
                "of that generation first, or leave `initial_epoch` out."
            )
        if generation == present + 1:
            self.keep_best()
            networks = [*self.earlier.networks, self.student]
            for older, newer in zip(networks, networks[1:]):
                older.set_weights(newer.get_weights())
            fresh = self._fresh_copy(generation)
            self.student.set_weights(fresh.get_weights())
            optimizer = keras.optimizers.deserialize(json.loads(self._optimizer_config))
            optimizer.build(fresh.trainable_variables)
            for own, new in zip(self.optimizer.variables, optimizer.variables, strict=True):
                own.assign(ops.convert_to_numpy(new))
            self._set_step_counter()
        self._generation.assign(generation)
        self._follow_generation()

    def _follow_generation(self):
        """Steps are compiled anew where the teacher comes in: generation 0 runs without one."""
        distils = self.generation > 0
        if not self.earlier or distils == self._distils:
            return
        self._distils = distils
        self.student_loss_weight = self.label_weight if distils else 1.0
        if self.train_function is not None:
            self.make_train_function(force=True)
        self.test_function = None

    def note_epoch(self, logs: Logs) -> None:
        """Keeps the student's weights where `restore_best` says that this epoch is the best."""
        if self.best is None:
            return
        if self.restore_best not in logs:
            is_validation = self.restore_best.startswith("val_")
            if is_validation and not any(name.startswith("val_") for name in logs):
                return  # validation_freq
            raise ValueError(
                f"Expected `restore_best` to name one of the logs {sorted(logs)}. Received: "
                f"restore_best={self.restore_best!r}."
            )
        value = float(logs[self.restore_best]) * (1.0 if self.best_mode == "min" else -1.0)
        if value < float(ops.convert_to_numpy(self._best_value)):
            self._best_value.assign(value)
            self.best.networks[0].set_weights(self.student.get_weights())

    def keep_best(self) -> None:
        """Gives the student the weights of its generation's best epoch, where one is kept."""
        if self.best is None or math.isinf(float(ops.convert_to_numpy(self._best_value))):
            return
        self.student.set_weights(self.best.networks[0].get_weights())
        self._best_value.assign(math.inf)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        callbacks: Any = None,
        initial_epoch: int = 0,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`, for all generations, one after another.

        Args:
            x, y, batch_size, verbose: As in Keras.
            epochs: Number of epochs of EACH generation: `rounds * epochs` in all.
            callbacks: As in Keras; see the class for what they see.
            initial_epoch: As in Keras, counted over all generations.
            **kwargs: As in Keras.

        Returns:
            Keras's `History` of the last generation, with one attribute more: `generations`,
            a list with the dict of each generation's logs (empty where it was done before a
            resumed run).
        """
        arguments = {"batch_size": batch_size, "verbose": verbose, **kwargs}
        if self.rounds == 1:
            return super().fit(
                x, y, epochs=epochs, callbacks=callbacks, initial_epoch=initial_epoch, **arguments
            )
        given = keras.tree.flatten(callbacks) if callbacks else []
        if self.best is not None and self.restore_best.startswith("val_"):
            if kwargs.get("validation_data") is None and not kwargs.get("validation_split"):
                raise ValueError(
                    f"Expected `validation_data`, for restore_best={self.restore_best!r}. "
                    "Received: none."
                )
        follow = FollowGenerations(epochs, given)
        while True:
            self._initial_epoch = None  # BackupAndRestore left it by an earlier fit
            history = super().fit(
                x,
                y,
                epochs=self.rounds * epochs,
                callbacks=[follow, *given],
                initial_epoch=initial_epoch,
                **arguments,
            )
            following = self.generation + 1
            if following == self.rounds or not follow.stopped_early():
                break
            self.begin_generation(following)
            initial_epoch = following * epochs
        return follow.told(history, self.rounds)

    def check_data(self, x: Any, y: Any) -> None:
        super().check_data(x, y)
        self._follow_generation()

    # Forward.

    def forward(self, inputs: Structure, training: bool) -> Outputs:
        student = self._student_network(inputs, training=training)
        if not self._distils:
            return Outputs(student.prediction, None)
        return Outputs(student.prediction, (self._teacher_network(inputs), student))

    # Compiling and saving.

    def compile(
        self, optimizer: OptimizerLike = "rmsprop", loss: Any = None, **kwargs: Any
    ) -> None:
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        if self.earlier:
            # As text: Keras would track a dict, and takes a LossScaleOptimizer's apart.
            self._optimizer_config = json.dumps(keras.optimizers.serialize(self.optimizer))

    def check_label_loss(self, loss: Any) -> None:
        if self.earlier and loss is None:
            raise ValueError(
                _checks.message(
                    "a label `loss`, which generation 0 learns from", "loss", loss, "Pass one."
                )
            )
        super().check_label_loss(loss)

    def get_compile_config(self) -> Config:
        config = super().get_compile_config()
        if config and self._optimizer_config is not None:
            # The optimizer as compiled: its present state is in the file's variables.
            config["optimizer"] = json.loads(self._optimizer_config)
        return config

    def get_config(self) -> Config:
        config = {**super().get_config(), "seed": self.seed}
        return {**config, "restore_best": self.restore_best, "best_mode": self.best_mode}


class FollowGenerations(keras.callbacks.Callback):
    """Begins each generation in its first epoch, and notes the logs by generation.

    Args:
        epochs: Number of epochs of a generation.
        others: The callbacks that `fit` was given.
    """

    def __init__(self, epochs, others):
        super().__init__()
        self.epochs = _checks.positive_integer("epochs", epochs)
        self.stoppers = [c for c in others if isinstance(c, keras.callbacks.EarlyStopping)]
        plateaus = [c for c in others if isinstance(c, keras.callbacks.ReduceLROnPlateau)]
        self.renewed = [*self.stoppers, *plateaus]
        self.noted = {}

    def on_epoch_begin(self, epoch, logs=None):
        generation = epoch // self.epochs
        if generation == self.model.generation + 1:
            # As at the end of a training: averaged weights first, then what callbacks restore.
            self.model.optimizer.finalize_variable_values(self.model.trainable_weights)
            for callback in self.renewed:
                callback.on_train_end()
                callback.on_train_begin()
        self.model.begin_generation(generation)

    def on_epoch_end(self, epoch, logs=None):
        self.model.note_epoch(logs)
        logs["generation"] = self.model.generation
        self.noted.setdefault(self.model.generation, []).append((epoch, dict(logs)))

    def on_train_end(self, logs=None):
        self.model.keep_best()

    def stopped_early(self):
        """Whether an `EarlyStopping` has ended the generation."""
        return any(callback.stopped_epoch > 0 for callback in self.stoppers)

    def told(self, history, rounds):
        """Fills Keras's `History`: see `Generations.fit`."""
        history.generations = [{} for _ in range(rounds)]
        for generation, epochs in self.noted.items():
            for _, logs in epochs:
                for name, value in logs.items():
                    history.generations[generation].setdefault(name, []).append(value)
        if self.noted:
            last = max(self.noted)
            history.history = history.generations[last]
            history.epoch = [epoch for epoch, _ in self.noted[last]]
        return history


class _Copies(keras.layers.Layer):
    """A holder of networks with the student's architecture, so that Keras saves them."""

    def __init__(self, networks):
        super().__init__(autocast=False)
        self.networks = networks
        self.built = True


@contextlib.contextmanager
def _drawing_by(seed):
    """Inside, Keras's initializers draw their seeds from Python's generator at `seed`."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


def _checked_mode(restore_best, mode):
    if restore_best is None or mode is not None:
        return _checks.one_of("best_mode", mode, (None, "min", "max"))
    ends = {"loss": "min", "accuracy": "max"}
    for end, mode in ends.items():
        if restore_best.endswith(end):
            return mode
    raise ValueError(
        _checks.message(
            f"`best_mode` to be 'min' or 'max' for restore_best={restore_best!r}",
            "best_mode",
            None,
        )
    )
