"""Frozen networks inside a model: state that is never trained, and saved only on demand."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill._files import to_disk
from keras_distill._files import written_beside
from keras_distill._types import PathLike


class FrozenNetworks(keras.Model):
    """A model some of whose networks are frozen: tracked, and left untouched.

    The four properties of trainable and other variables leave the frozen networks out, so that
    their own `trainable` need not change.

    Class attributes, which a subclass sets:
        frozen_attributes: Attributes that hold frozen networks, left out of weights files.
        saved_attributes: Attributes that hold networks without a gradient that are state of
            the training (an average of the student): weights files hold them.
    """

    frozen_attributes: tuple[str, ...] = ()
    saved_attributes: tuple[str, ...] = ()
    _hides_frozen = False

    @property
    def frozen_variables(self) -> list[keras.Variable]:
        """Variables of the frozen networks that weights files leave out."""
        return self._variables_of(self.frozen_attributes)

    def _variables_of(self, attributes):
        networks = [getattr(self, name, None) for name in attributes]
        return [v for network in networks if network is not None for v in network.variables]

    @property
    def _ids_without_gradient(self):
        attributes = [*self.frozen_attributes, *self.saved_attributes]
        return {id(variable) for variable in self._variables_of(attributes)}

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        frozen = self._ids_without_gradient
        return [v for v in super().trainable_variables if id(v) not in frozen]

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        trained = {id(variable) for variable in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trained]

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        frozen = self._ids_without_gradient
        return [v for v in super().trainable_weights if id(v) not in frozen]

    @property
    def non_trainable_weights(self) -> list[keras.Variable]:
        trained = {id(variable) for variable in self.trainable_weights}
        return [v for v in self.weights if id(v) not in trained]

    # Saving and export.

    def __dir__(self):
        # Keras's saver finds state through dir(). `layers` and the inference model are views of
        # networks that have names of their own here; a weights file omits the frozen ones.
        hidden = {"inference_model", "layers"}
        if self.__dict__.get("_hides_frozen"):
            hidden.update(self.frozen_attributes)
        return [name for name in super().__dir__() if name not in hidden]

    @property
    def _seed_states(self):
        """Seeds of the layers that are trained (dropout): Keras itself saves none."""
        known = {id(variable) for variable in [*self.weights, *self.frozen_variables]}
        return [variable for variable in self.variables if id(variable) not in known]

    @property
    def _own_variables(self):
        return {v.name: v for v in self._trainable_variables + self._non_trainable_variables}

    def save_own_variables(self, store: Any) -> None:
        for name, variable in self._own_variables.items():
            store[name] = variable
        for i, state in enumerate(self._seed_states):
            store[f"seed_{i}"] = ops.convert_to_numpy(state)

    def load_own_variables(self, store: Any) -> None:
        # Own variables (a step counter on JAX) and seeds may be missing: another backend's file.
        for name, variable in self._own_variables.items():
            if name in store.keys():
                variable.assign(store[name])
        for i, state in enumerate(self._seed_states):
            if f"seed_{i}" in store.keys():
                state.assign(store[f"seed_{i}"])

    @contextlib.contextmanager
    def without_frozen(self) -> Iterator[None]:
        """Inside, the saver and `get_config` see no frozen network."""
        before, self._hides_frozen = self._hides_frozen, True
        try:
            yield
        finally:
            self._hides_frozen = before

    def save_weights(self, filepath: PathLike, **kwargs: Any) -> None:
        """As `keras.Model.save_weights`; the frozen networks are left out."""
        target = pathlib.Path(filepath)
        if not target.name.endswith((".weights.h5", ".weights.json")):
            raise ValueError(
                _checks.message("`filepath` to end in '.weights.h5'", "filepath", str(filepath))
            )
        _check_may_write(target, **kwargs)
        with written_beside(target) as temporary, self.without_frozen():
            if target.suffix == ".h5" and kwargs.get("max_shard_size") is None:
                content = _keras.weights_in_memory(self).getbuffer()
                pathlib.Path(temporary).write_bytes(content)
                return
            super().save_weights(temporary, **kwargs)
            beside = pathlib.Path(temporary).parent.iterdir()
            shards = [path for path in beside if path.name != target.name]
            if shards:  # no index while shards of two savings lie there: it would join them
                pathlib.Path(os.path.realpath(target)).unlink(missing_ok=True)
            for shard in shards:
                to_disk(shard)
                shard.replace(target.with_name(shard.name))

    def load_weights(self, filepath: PathLike, **kwargs: Any) -> None:
        """As `keras.Model.load_weights`; the frozen networks stay as they are."""
        if not os.path.isfile(filepath):
            raise ValueError(
                _checks.message("`filepath` to be a weights file", "filepath", str(filepath))
                + " There is no such file."
            )
        try:
            with self.without_frozen():
                super().load_weights(filepath, **kwargs)
        except Exception as error:  # Of many kinds: HDF5's, Keras's, NumPy's.
            reason = " ".join(str(error).split())[:150]
            raise ValueError(
                _checks.message("`filepath` to fit this model", "filepath", str(filepath))
                + f" It is corrupt, or of another model ({reason})."
            ) from error

    def save(self, filepath: PathLike, include_teacher: bool = True, **kwargs: Any) -> None:
        """As `keras.Model.save`, written beside and renamed, with all that `fit` needs.

        Args:
            filepath: A path that ends in `.keras`.
            include_teacher: Whether the frozen networks are saved too. Without them, the
                loaded wrapper predicts and evaluates, and `fit` asks for a teacher.
            **kwargs: As in Keras.
        """
        path = str(filepath)
        if not path.endswith(".keras"):
            raise ValueError(_checks.message("`filepath` to end in '.keras'", "filepath", path))
        _check_may_write(path, **kwargs)
        with written_beside(path) as temporary:
            if include_teacher:
                super().save(temporary, **kwargs)
            else:
                with self.without_frozen():
                    super().save(temporary, **kwargs)

    def export(self, filepath: PathLike, format: str = "tf_saved_model", **kwargs: Any) -> Any:
        """As `keras.Model.export`, of the inference model alone."""
        return self.inference_model.export(filepath, format=format, **kwargs)


def _check_may_write(path, overwrite=True, **kwargs):
    """Raises where a file is in the way; Keras would ask on the terminal."""
    if not overwrite and os.path.exists(path):
        raise ValueError(
            f"Expected no file at {str(path)!r} with overwrite=False. Received: a file that "
            "exists. Remove it, choose another path, or pass overwrite=True."
        )
