"""Label smoothing: the baseline that the schemes without a teacher are measured against."""

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._types import Config
from keras_distill._types import Structure
from keras_distill._types import Tensor

SPREADS = ("all", "others")


def smoothed_cross_entropy(labels, outputs, smoothing=0.1, from_logits=True, spread="all"):
    """Cross-entropy of class ids that are not quite certain.

    With `spread="all"`, `(1 - eps) * CE(y) + eps / C * sum_c CE(c)`: every class gets
    `eps / C`, the true one besides. With `spread="others"` the true class has `1 - eps`, and
    each of the others `eps / (C - 1)`.

    Args:
        labels: Class ids, shape `(batch, ...)` or `(batch, ..., 1)`.
        outputs: Logits or probabilities `(batch, ..., classes)`.
        smoothing: eps, at least 0 and below 1.
        from_logits: Whether `outputs` are logits.
        spread: Who gets the mass that is taken: "all" or "others".

    Returns:
        Tensor of shape `outputs.shape[:-1]`, in the dtype of `outputs`.

    Raises:
        ValueError: If the labels are no class ids of these outputs, there is one class only,
            or an argument is out of range.

    References:
        Szegedy et al. 2016, https://arxiv.org/abs/1512.00567 ("all": Keras's and TensorFlow's
        convention too); "others" is that of yuanli2333/Teacher-free-Knowledge-Distillation.
    """
    _check_options(smoothing, spread)
    labels, outputs = ops.convert_to_tensor(labels), ops.convert_to_tensor(outputs)
    classes = outputs.shape[-1]
    if classes == 1:
        raise ValueError(
            f"Expected at least two classes to smooth labels over. Received: outputs of shape "
            f"{tuple(outputs.shape)}. Use keras.losses.BinaryCrossentropy(label_smoothing=...)."
        )
    if len(labels.shape) == len(outputs.shape):
        if labels.shape[-1] != 1:
            raise ValueError(
                f"Expected `labels` to be class ids. Received: labels of shape "
                f"{tuple(labels.shape)} for outputs of shape {tuple(outputs.shape)}. Of one-hot "
                "labels use keras.losses.CategoricalCrossentropy(label_smoothing=...)."
            )
        labels = ops.squeeze(labels, axis=-1)
    if from_logits:
        losses = -ops.log_softmax(outputs, axis=-1)
    else:
        tiny = keras.config.epsilon()
        losses = -ops.log(ops.clip(outputs, tiny, 1.0 - tiny))
    true = ops.one_hot(ops.cast(labels, "int32"), classes, dtype=losses.dtype)
    label_loss = ops.sum(true * losses, axis=-1)
    if spread == "all":
        spread_loss = ops.mean(losses, axis=-1)
    else:
        spread_loss = ops.sum((1.0 - true) * losses, axis=-1) / (classes - 1)
    return (1.0 - smoothing) * label_loss + smoothing * spread_loss


@keras.saving.register_keras_serializable(package="keras_distill")
class LabelSmoothing(keras.losses.Loss):
    """The label loss of the label-smoothing baseline, for class ids.

    `keras.losses.CategoricalCrossentropy(label_smoothing=...)` smooths one-hot labels only;
    this takes class ids, as `keras.losses.SparseCategoricalCrossentropy` does. It compiles
    into any model, and into any wrapper, where -1 marks unlabelled samples as usual.

    Args:
        smoothing: eps, at least 0 and below 1: the mass taken from the true class.
        from_logits: Whether the model returns logits. Unlike Keras's losses, `True` by
            default.
        spread: "all" (Keras's convention): each class gets `eps / C`, the true one too.
            "others": each wrong class gets `eps / (C - 1)`, as Tf-KD's baseline does.
        **kwargs: `name`, `reduction`, `dtype`, as in `keras.losses.Loss`.

    Example:
    ```python
    model.compile("adam", kd.LabelSmoothing(0.1), metrics=["accuracy"])
    ```

    Reference:
        Szegedy et al., 2016, https://arxiv.org/abs/1512.00567. See `smoothed_cross_entropy`.
    """

    def __init__(
        self,
        smoothing: float = 0.1,
        from_logits: bool = True,
        spread: str = "all",
        name: str = "label_smoothing",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        _check_options(smoothing, spread)
        self.smoothing = float(smoothing)
        self.from_logits = _checks.instance("from_logits", from_logits, bool, "True or False")
        self.spread = spread

    def call(self, y_true: Structure, y_pred: Structure) -> Tensor:
        return smoothed_cross_entropy(y_true, y_pred, self.smoothing, self.from_logits, self.spread)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "smoothing": self.smoothing,
            "from_logits": self.from_logits,
            "spread": self.spread,
        }


def _check_options(smoothing, spread):
    if not _checks.is_number(smoothing) or not 0 <= smoothing < 1:
        raise ValueError(_checks.message("`smoothing` to be in [0, 1)", "smoothing", smoothing))
    _checks.one_of("spread", spread, SPREADS)
