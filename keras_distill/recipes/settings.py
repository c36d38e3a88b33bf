"""`Setting`: how a recipe trains, in numbers: epochs, batches, learning rate, augmentation."""

import dataclasses

import keras
from keras import ops

from keras_distill import _checks
from keras_distill import data


@dataclasses.dataclass(frozen=True)
class Setting:
    """SGD with momentum, a learning rate that falls, and batches that can be repeated.

    Attributes:
        epochs: Number of epochs.
        batch_size: Images of the data set in a batch; a scheme may forward each of them twice.
        learning_rate: The first one.
        momentum: Of SGD.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: As the papers' codes count it: added to the gradient, before the momentum.
            Keras's SGD subtracts `learning_rate * weight_decay * w` beside the momentum, so it
            is given `weight_decay / (1 - momentum)`, which shrinks a weight as much.
        drops: After how many of the `epochs` the learning rate is multiplied by `factor`.
        factor: See `drops`.
        cosine: Whether the learning rate falls to 0 along half a cosine instead.
        warm_up: Epochs in which it first rises in a straight line.
        augment: Whether training images are shifted by up to an eighth of their side (the
            4 pixels of CIFAR), and mirrored if `flip`.
        flip: Whether augmentation mirrors; digits and letters want False.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    drops: tuple = ()
    factor: float = 0.1
    cosine: bool = False
    warm_up: int = 0
    augment: bool = True
    flip: bool = True

    def __post_init__(self):
        _checks.positive_integer("epochs", self.epochs)
        _checks.positive_integer("batch_size", self.batch_size)
        _checks.positive("learning_rate", self.learning_rate)

    def changed(self, epochs=None, **others):
        """The setting with other values; the drops move with the epochs. None changes nothing."""
        others = {name: value for name, value in others.items() if value is not None}
        if epochs is None:
            return dataclasses.replace(self, **others)
        _checks.positive_integer("epochs", epochs)
        drops = tuple(drop * epochs / self.epochs for drop in self.drops)
        return dataclasses.replace(self, epochs=epochs, drops=drops, **others)

    def shared_by(self, views):
        """The setting of a scheme that forwards each image `views` times an epoch.

        The epochs and the images of a batch are divided by `views` (rounded, one at least): so
        many images are forwarded in all and in a step as before, in as many steps.
        """
        return self.changed(
            epochs=max(1, round(self.epochs / views)),
            batch_size=max(1, round(self.batch_size / views)),
        )

    def optimizer(self, steps):
        """A new optimizer.

        Args:
            steps: Steps of an epoch.
        """
        return keras.optimizers.SGD(
            self.rate(steps),
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay / (1.0 - self.momentum) or None,
        )

    def rate(self, steps):
        """The learning rate: a number, or a schedule of the step.

        Args:
            steps: Steps of an epoch.
        """
        schedules = keras.optimizers.schedules
        rate = self.learning_rate
        if self.cosine:
            rate = schedules.CosineDecay(rate, self.epochs * steps)
        elif self.drops:
            # Keras's boundary is the last step of the value before it.
            boundaries = [max(0, round(drop * steps) - 1) for drop in self.drops]
            values = [rate * self.factor**i for i in range(len(boundaries) + 1)]
            rate = schedules.PiecewiseConstantDecay(boundaries, values)
        return WarmedUp(rate, self.warm_up * steps) if self.warm_up else rate

    def augmentation(self, image_shape):
        """None, or the function for `kd.data.batches(augment=...)`."""
        if not self.augment:
            return None
        return shifts(image_shape, self.flip)


def shifts(image_shape, flip=True):
    """Random shifts by up to an eighth of the shorter side, and mirroring of half the images."""
    return data.crop_and_flip(padding=max(1, min(image_shape[:2]) // 8), flip=flip)


@keras.saving.register_keras_serializable(package="keras_distill")
class WarmedUp(keras.optimizers.schedules.LearningRateSchedule):
    """`rate * min((step + 1) / steps, 1)`, of a number or a schedule."""

    def __init__(self, rate, steps):
        self.rate = rate
        self.steps = _checks.positive_integer("steps", steps)

    def __call__(self, step):
        rate = self.rate(step) if callable(self.rate) else self.rate
        return rate * ops.minimum((ops.cast(step, "float32") + 1.0) / self.steps, 1.0)

    def get_config(self):
        return {"rate": keras.saving.serialize_keras_object(self.rate), "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["rate"]), config["steps"])
