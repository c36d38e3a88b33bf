"""Keras's own distillation losses as terms, with what their authors meant.

Keras 3.15's `LogitsDistillation` means knowledge distillation, but its default loss is the
function `kl_divergence`, to which it hands raw logits divided by the temperature, clipped to
[1e-7, 1]. The rules here give the loss that the name and the docstring promise.
"""

import keras

from keras_distill import _checks
from keras_distill.losses import Hint
from keras_distill.losses import LogitMSE
from keras_distill.losses import SoftTargets
from keras_distill.losses.base import DistillationLoss
from keras_distill.models.function_loss import as_loss
from keras_distill.models.labels import loss_name
from keras_distill.models.terms import Term


def terms_of(distiller):
    """The terms of a `keras.distillation.Distiller`.

    Its total is `a * label loss + (1 - a) * sum(w_i * loss_i)`, a = `student_loss_weight`, so
    each term's weight is `(1 - a) * w_i`.

    | Keras | here |
    | --- | --- |
    | `LogitsDistillation`, any form of KL divergence | `SoftTargets(temperature)` |
    | `LogitsDistillation`, categorical cross-entropy | `SoftTargets(temperature)`, weight / T^2 |
    | `LogitsDistillation`, mean squared error | `LogitMSE()`, weight / T^2 |
    | `FeatureDistillation`, mean squared error | `Hint()` |
    | any other loss of features or predictions | that loss |

    The soft cross-entropy differs from the divergence by the teacher's entropy, which has no
    gradient.

    Raises:
        ValueError: For a loss structure of several entries, or a `DistillationLoss` subclass of
            the user's, which has no counterpart: wrap its function in a `Term`.
    """
    share = 1.0 - float(distiller.student_loss_weight)
    pairs = zip(distiller.distillation_losses, distiller.distillation_loss_weights)
    return [_term(loss, share * float(weight)) for loss, weight in pairs]


def _term(loss, weight):
    if isinstance(loss, keras.distillation.LogitsDistillation):
        return _logits_term(_single(loss), float(loss.temperature), weight)
    if isinstance(loss, keras.distillation.FeatureDistillation):
        one = _single(loss)
        paths = {"teacher": loss.teacher_layer_name, "student": loss.student_layer_name}
        if (paths["teacher"] is None) != (paths["student"] is None):
            raise ValueError(
                "Expected FeatureDistillation with both layer names or neither. Received: "
                f"teacher_layer_name={paths['teacher']!r}, "
                f"student_layer_name={paths['student']!r}."
            )
        is_squared = loss_name(one) in ("mean_squared_error", "mse")
        return Term(Hint() if is_squared and paths["teacher"] else one, weight=weight, **paths)
    raise ValueError(
        "Expected LogitsDistillation or FeatureDistillation. Received: "
        f"{type(loss).__name__}. Wrap its function: Term(lambda teacher, student: ...)."
    )


def _single(loss):
    entries = [entry for entry in keras.tree.flatten(loss.loss) if entry is not None]
    names = {loss_name(entry) for entry in entries}
    if len(names) != 1:
        raise ValueError(
            f"Expected one loss in {type(loss).__name__}. Received: {sorted(names)}. Write one "
            "Term an output."
        )
    return entries[0]


def _logits_term(loss, temperature, weight):
    name = loss_name(loss)
    if name in ("kl_divergence", "kullback_leibler_divergence"):
        return Term(SoftTargets(temperature), weight=weight)
    if name == "categorical_crossentropy":
        return Term(SoftTargets(temperature), weight=weight / temperature**2)
    if name in ("mean_squared_error", "mse"):
        return Term(LogitMSE(), weight=weight / temperature**2)
    return Term(TemperedLoss(loss, temperature, name=name), weight=weight)


@keras.saving.register_keras_serializable(package="keras_distill")
class TemperedLoss(DistillationLoss):
    """A loss that sees logits divided by a temperature, as `LogitsDistillation` does.

    Args:
        loss: A loss of Keras, its name, or a function of (teacher, student).
        temperature: Positive number.
    """

    on_logits = True

    def __init__(self, loss, temperature, **kwargs):
        super().__init__(**kwargs)
        self.loss = as_loss(loss)
        self.temperature = _checks.positive("temperature", temperature)

    def call(self, y_true, y_pred):
        return self.loss.call(y_true / self.temperature, y_pred / self.temperature)

    def get_config(self):
        loss = keras.saving.serialize_keras_object(self.loss)
        return {**super().get_config(), "loss": loss, "temperature": self.temperature}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})
