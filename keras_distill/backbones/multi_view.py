"""The network of Allen-Zhu and Li's theory: a convolution, smoothed ReLU, sums."""

import keras
from keras import layers
from keras import ops

from keras_distill import _checks


def multi_view_cnn(
    input_shape: tuple[int, ...] = (8, 1, 60),
    classes: int = 6,
    channels: int = 4,
    power: float = 3,
    threshold: float = 0.3,
    deviation: float = 0.02,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds the network that the paper proves its theorems for, for `kd.data.multi_view`.

    Logit i is `sum_r sum_p sReLU(<w_ir, x_p>)`: the same filters read each patch, a class has
    filters of its own, and nothing but filters is trained.

    Args:
        input_shape: Shape of an input, `(patches, 1, dimension)`.
        classes: Number of classes.
        channels: Filters of each class (the paper's m).
        power: Exponent q of `SmoothedReLU`. At 3, as in the theorems, small filters grow slowly
            and the one that is ahead wins, which is what makes a network learn one view.
        threshold: From where on `SmoothedReLU` is a straight line (the paper's rho).
        deviation: Standard deviation of the filters before training.
        seed: Whole number for the filters; None leaves it to Keras's random state.
        name: Name of the model. Defaults to "multi_view_cnn".

    Returns:
        A functional `keras.Model` of "filters", "activations" and "head", which returns logits.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        Allen-Zhu and Li, 2020, https://arxiv.org/abs/2012.09816, the learner of the theorems.
        Deviation: the paper's widths and constants are asymptotic; the defaults are those at
        which our toy shows what they predict.
    """
    classes = _checks.positive_integer("classes", classes)
    channels = _checks.positive_integer("channels", channels)
    _checks.positive("deviation", deviation)
    if len(input_shape) != 3 or None in tuple(input_shape) or input_shape[1] != 1:
        expected = "`input_shape` to be (patches, 1, dimension)"
        raise ValueError(_checks.message(expected, "input_shape", input_shape))
    inputs = keras.Input(input_shape, name="image")
    x = layers.Conv2D(
        classes * channels,
        1,
        use_bias=False,
        kernel_initializer=keras.initializers.RandomNormal(stddev=deviation, seed=seed),
        name="filters",
    )(inputs)
    x = SmoothedReLU(power, threshold, name="activations")(x)
    x = layers.Reshape((input_shape[0], classes, channels), name="by_class")(x)
    x = layers.EinsumDense(
        "bpkm,pm->bk",
        output_shape=(classes,),
        kernel_initializer="ones",
        trainable=False,
        name="head",
    )(x)
    return keras.Model(inputs, x, name=name or "multi_view_cnn")


@keras.saving.register_keras_serializable(package="keras_distill")
class SmoothedReLU(layers.Layer):
    """ReLU whose corner is a power: 0, then `z^q / (q t^(q-1))` up to t, then `z - (1 - 1/q) t`.

    Value and slope are continuous. Any shape; each value for itself.

    Args:
        power: q, 1 or more; 1 is ReLU.
        threshold: t, above 0.
        **kwargs: As in `keras.layers.Layer`.

    Reference:
        Allen-Zhu and Li, 2020, https://arxiv.org/abs/2012.09816.
    """

    def __init__(self, power=3, threshold=0.3, **kwargs):
        super().__init__(**kwargs)
        self.power = _checks.positive("power", power)
        if self.power < 1:
            raise ValueError(_checks.message("`power` to be 1 or more", "power", power))
        self.threshold = _checks.positive("threshold", threshold)
        self.built = True

    def call(self, inputs):
        start = ops.clip(inputs, 0.0, self.threshold)
        bend = self.threshold * ops.power(start / self.threshold, self.power) / self.power
        return bend + ops.relu(inputs - self.threshold)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "power": self.power, "threshold": self.threshold}
