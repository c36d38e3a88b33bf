"""Networks that learn no features: a linear head on a frozen random map, and a linearised network.

In Allen-Zhu and Li's "random feature mappings" an ensemble helps, and distilling it does not.
"""

from collections.abc import Sequence

import keras
from keras import layers
from keras import ops

from keras_distill import _checks
from keras_distill import _keras
from keras_distill._graph import has_graph
from keras_distill._graph import uncompiled_clone
from keras_distill.heads import head_of


def random_features(
    input_shape: tuple[int, ...] = (28, 28, 1),
    classes: int = 10,
    channels: Sequence[int] = (16, 32),
    kernel_size: int = 5,
    seed: int | None = None,
    classifier_activation: str | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a linear classifier on a frozen random convolutional map.

    Each stage is a convolution with filters drawn at random (He et al.'s normal distribution, no
    bias), ReLU, and the mean of 2 x 2 places. What the last one returns is brought to zero mean
    and a norm of 1 (layer "features"), so that one learning rate suits maps of all sizes. Only
    the layer "head" is trained. The filters are saved with the network.

    Args:
        input_shape: Shape of an image, `(height, width, channels)`; each stage halves its sides.
        classes: Number of classes.
        channels: Filters of each stage.
        kernel_size: Height and width of the filters.
        seed: Whole number for the filters and the head's initial weights; None leaves Keras's
            random state to give them. An ensemble wants another seed for each member.
        classifier_activation: Activation of the head. Defaults to none: logits.
        name: Name of the model. Defaults to "random_features_CHANNELS".

    Returns:
        A functional `keras.Model` of "random1", "stage1", ..., "features" and "head".

    Raises:
        ValueError: If an argument is out of its range, or nothing is left of the image.

    Reference:
        Allen-Zhu and Li, 2020, https://arxiv.org/abs/2012.09816, "random feature mappings";
        Rahimi and Recht, 2007, Random features for large-scale kernel machines.
        Deviation: the map is small and ours; the paper's are the gradient features of large
        networks, see `linearized`.
    """
    widths = [_checks.positive_integer("channels", width) for width in _as_list(channels)]
    classes = _checks.positive_integer("classes", classes)
    kernel_size = _checks.positive_integer("kernel_size", kernel_size)
    least = 2 ** len(widths)
    if len(input_shape) != 3 or any(side is None or side < least for side in input_shape[:2]):
        expected = f"`input_shape` to be (height, width, channels), at least {least} x {least}"
        raise ValueError(_checks.message(expected, "input_shape", input_shape))
    inputs = x = keras.Input(input_shape, name="image")
    for stage, width in enumerate(widths, start=1):
        x = layers.Conv2D(
            width,
            kernel_size,
            padding="same",
            use_bias=False,
            kernel_initializer=keras.initializers.HeNormal(_seed(seed, stage)),
            trainable=False,
            name=f"random{stage}",
        )(x)
        x = layers.Activation("relu", name=f"random{stage}_relu")(x)
        x = layers.AveragePooling2D(2, name=f"stage{stage}")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.LayerNormalization(center=False, scale=False, name="flat_norm")(x)
    x = layers.Rescaling(x.shape[-1] ** -0.5, name="features")(x)
    x = layers.Dense(
        classes,
        activation=classifier_activation,
        kernel_initializer=keras.initializers.GlorotUniform(_seed(seed, 0)),
        name="head",
    )(x)
    return keras.Model(inputs, x, name=name or "_".join(map(str, ["random_features", *widths])))


def linearized(
    model: keras.Model, subtract_initial: bool = False, name: str | None = None
) -> keras.Model:
    """Builds the first-order Taylor expansion of a network in its weights, at those it has now.

    `f(x; w0) + J(x; w0) d`: w0 are the network's trainable weights, kept as they are, J is their
    Jacobian, and the displacements d, which begin at 0, are what is trained. The features
    `J(x; w0)` are the network's neural tangent features, as random as w0 and never learned.

    The network runs as for inference (`training=False`) always: dropout is off, and batch
    normalization uses the moving statistics that it has now, those of a fresh network being 0
    and 1. Its layers that are not trainable are not expanded. Regularisers of its layers are
    left out: weight decay of the optimizer pulls towards w0.
    SavedModels hold the expansion; TF Lite lacks operations of derivatives.

    Args:
        model: A functional or built Sequential model that returns logits. It is copied, and not
            changed.
        subtract_initial: Whether `f(x; w0)` is left out, so that the outputs are linear in d,
            and 0 before training.
        name: Name of the model. Defaults to the network's and "_linearized".

    Returns:
        A functional `keras.Model` of "expansion", a `Linearization`, and "logits", the identity
        as a dense layer: it tells all that looks at the graph that these are logits.

    Raises:
        TypeError: If `model` is no `keras.Model`.
        ValueError: If it has no graph, several inputs or outputs, a head that is not linear, or
            nothing to train.
        RuntimeError: On backends other than TensorFlow and JAX.

    Reference:
        Jacot et al., 2018, https://arxiv.org/abs/1806.07572; Allen-Zhu and Li, 2020,
        https://arxiv.org/abs/2012.09816, "NTK feature mapping".

    Example:
    ```python
    network = kd.backbones.small_cnn((28, 28, 1), 10, (8, 16, 32))
    student = kd.backbones.linearized(network, subtract_initial=True)
    ```
    """
    _check_expandable(model)
    copy = uncompiled_clone(model)
    copy.set_weights(model.get_weights())
    (shape,) = [tuple(tensor.shape) for tensor in model.inputs]
    inputs = keras.Input(batch_shape=shape, dtype=model.inputs[0].dtype, name="image")
    x = Linearization(copy, subtract_initial, name="expansion")(inputs)
    x = layers.Dense(
        x.shape[-1],
        use_bias=False,
        kernel_initializer="identity",
        trainable=False,
        dtype=x.dtype,
        name="logits",
    )(x)
    return keras.Model(inputs, x, name=name or f"{model.name}_linearized")


@keras.saving.register_keras_serializable(package="keras_distill")
class Linearization(layers.Layer):
    """`f(x; w0) + J(x; w0) d`, the layer of `linearized`.

    Its weights are w0, not trained, and a displacement for each weight that the model trains.

    Args:
        model: The network f; one input, one output. It serves as a function of its weights and
            is not tracked: w0 are copies of them.
        subtract_initial: Whether `f(x; w0)` is left out.
        **kwargs: As in `keras.layers.Layer`.
    """

    def __init__(self, model, subtract_initial=False, **kwargs):
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)
        if keras.backend.backend() not in _PRODUCTS:
            raise RuntimeError(
                f"Linearization needs the {' or '.join(_PRODUCTS)} backend. Received: "
                f"KERAS_BACKEND={keras.backend.backend()!r}."
            )
        _checks.instance("subtract_initial", subtract_initial, bool, "True or False")
        self.subtract_initial = subtract_initial
        self._function = _Function(model)
        self._given = _keras.serialized(model)
        self.initial = [
            self._weight_for(weight, "initial", ops.convert_to_numpy(weight), trainable=False)
            for weight in model.weights
        ]
        self.displacements = [
            self._weight_for(model.weights[place], "displacement", 0.0, trainable=True)
            for place in self._function.expanded
        ]
        self.built = True

    def _weight_for(self, weight, what, value, trainable):
        return self.add_weight(
            shape=weight.shape,
            initializer=keras.initializers.Constant(value),
            dtype=weight.dtype,
            trainable=trainable,
            autocast=False,
            name=f"{weight.path.replace('/', '_')}_{what}",
        )

    def call(self, inputs):
        initial = [weight.value for weight in self.initial]
        displacements = [weight.value for weight in self.displacements]
        primals = [initial[place] for place in self._function.expanded]

        def function(*expanded):
            values = list(initial)
            for place, value in zip(self._function.expanded, expanded):
                values[place] = value
            return self._function(values, inputs)

        value, change = _PRODUCTS[keras.backend.backend()](function, primals, displacements)
        return change if self.subtract_initial else value + change

    def compute_output_spec(self, inputs):
        (output,) = self._function.model.outputs
        return keras.KerasTensor((inputs.shape[0], *output.shape[1:]), dtype=output.dtype)

    def get_config(self):
        config = {"model": self._given, "subtract_initial": self.subtract_initial}
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**_keras.arguments_of(config, custom_objects))


class _Function:
    """A network as a function of its weights: a plain object, which Keras does not track.

    Args:
        model: The network.
    """

    def __init__(self, model):
        self.model = model
        trained = {id(weight) for weight in model.trainable_weights}
        self.expanded = [i for i, weight in enumerate(model.weights) if id(weight) in trained]

    def __call__(self, values, inputs):
        with keras.StatelessScope(state_mapping=list(zip(self.model.weights, values))):
            return self.model(inputs, training=False)


def _product_in_tensorflow(function, primals, tangents):
    import tensorflow as tf

    primals = [tf.convert_to_tensor(primal) for primal in primals]
    tangents = [tf.convert_to_tensor(tangent) for tangent in tangents]
    with tf.autodiff.ForwardAccumulator(primals, tangents) as accumulator:
        value = function(*primals)
    zero = tf.UnconnectedGradients.ZERO
    return value, accumulator.jvp(value, unconnected_gradients=zero)


def _product_in_jax(function, primals, tangents):
    import jax

    return jax.jvp(function, tuple(primals), tuple(tangents))


# Functions of (function, primals, tangents) that return its value and Jacobian-vector product.
_PRODUCTS = {"tensorflow": _product_in_tensorflow, "jax": _product_in_jax}


def _check_expandable(model):
    _checks.instance("model", model, keras.Model, "a keras.Model")
    if not has_graph(model):
        raise ValueError(
            _checks.message("`model` to be functional or a built Sequential", "model", model)
            + " Wrap it: keras.Model(inputs, model(inputs))."
        )
    counts = len(model.inputs), len(model.outputs)
    if counts != (1, 1):
        expected = "`model` with one input and one output"
        raise ValueError(_checks.message(expected, "inputs, outputs", counts))
    if not model.trainable_weights:
        expected = "`model` with weights to train"
        raise ValueError(_checks.message(expected, "model", model.name))
    head = head_of(model)
    if head in ("softmax", "sigmoid"):
        raise ValueError(
            _checks.message("`model` to return logits", "head", head)
            + " What is expanded would be probabilities: build it without that activation."
        )


def _seed(seed, place):
    """Another seed for each layer, the same for the same two numbers."""
    return None if seed is None else int(seed) * 1009 + place


def _as_list(channels):
    return list(channels) if isinstance(channels, (tuple, list)) else [channels]
