"""Keras's losses, their names and plain functions as losses of a term."""

import keras

from keras_distill import _checks
from keras_distill import _keras
from keras_distill.losses.base import DistillationLoss

PROBABILITY_LOSSES = (
    "kl_divergence",
    "kullback_leibler_divergence",
    "categorical_crossentropy",
    "binary_crossentropy",
    "categorical_focal_crossentropy",
    "binary_focal_crossentropy",
    "sparse_categorical_crossentropy",
    "poisson",
)


@keras.saving.register_keras_serializable(package="keras_distill")
class FunctionLoss(DistillationLoss):
    """A plain function of (teacher, student) as a loss.

    Args:
        fn: A function that returns one value a prediction, or a scalar (a mean over the
            batch). To be saved, it must be registered with
            `keras.saving.register_keras_serializable` or be a function of Keras.
    """

    def __init__(self, fn, name=None, **kwargs):
        name = name or getattr(fn, "__name__", "")
        super().__init__(name=name if name.isidentifier() else "function_loss", **kwargs)
        self.fn = fn

    def call(self, y_true, y_pred):
        return self.fn(y_true, y_pred)

    def get_config(self):
        return {**super().get_config(), "fn": keras.saving.serialize_keras_object(self.fn)}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["fn"] = keras.saving.deserialize_keras_object(config["fn"])
        return cls(**config)


def as_loss(loss):
    """A `keras.losses.Loss` from a loss, a Keras loss's name, or a function."""
    if isinstance(loss, str):
        try:
            found = keras.losses.get(loss)
        except ValueError:
            found = None
        if found is None:
            raise ValueError(
                _checks.message(
                    "`loss` to be a loss of keras_distill.losses or the name of a Keras loss",
                    "loss",
                    loss,
                    "Call e.g. Term(keras_distill.losses.SoftTargets()).",
                )
            )
        loss = found
    if isinstance(loss, type) and issubclass(loss, keras.losses.Loss):
        raise TypeError(
            _checks.message("`loss` to be an instance", "loss", loss.__name__, "Call the class.")
        )
    if isinstance(loss, keras.losses.Loss):
        return loss
    if callable(loss):
        return FunctionLoss(loss)
    raise TypeError(
        _checks.message(
            "`loss` to be a keras.losses.Loss, the name of a Keras loss, or a function of "
            "(teacher, student)",
            "loss",
            loss,
        )
    )


def is_of_keras(loss):
    """Whether it is a loss, or a function, of Keras itself."""
    made = loss.fn if isinstance(loss, FunctionLoss) else type(loss)
    return str(getattr(made, "__module__", "")).partition(".")[0] == "keras"


def expects_probabilities(loss):
    """Whether a loss of Keras itself compares probabilities rather than logits."""
    if isinstance(loss, FunctionLoss):
        return getattr(loss.fn, "__name__", "") in PROBABILITY_LOSSES
    return _keras.to_snake_case(type(loss).__name__) in PROBABILITY_LOSSES + ("kldivergence",)


def at_temperature(loss, temperature):
    """A view of `loss` with another temperature, its variables shared.

    Not `copy.copy`: Keras copies by way of the config.
    """
    view = object.__new__(type(loss))
    view.__dict__.update(loss.__dict__, temperature=temperature)
    return view
