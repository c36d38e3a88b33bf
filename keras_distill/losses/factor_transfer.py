"""FT: the teacher's map paraphrased into factors, which the student's translates into."""

from typing import Any
from typing import Self

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._ops import flatten_samples
from keras_distill._ops import l2_normalize
from keras_distill._ops import per_sample_mean
from keras_distill._types import Config
from keras_distill._types import Shapes
from keras_distill._types import Structure
from keras_distill._types import Tensor
from keras_distill.losses import _layers
from keras_distill.losses import _maps
from keras_distill.losses import misfit
from keras_distill.losses.trained import TrainedLoss

MODES = ("factor", "attention")
RECONSTRUCTIONS = ("l1", "mse")
SLOPE = 0.1


def factor_transfer(
    teacher_factor: Tensor, student_factor: Tensor, power: float = 1, mode: str = "factor"
) -> Tensor:
    """FT: the difference of normalised factors.

    A factor F is flattened and divided by its norm, `f = F / ||F||`; the value of a sample is the
    mean over all elements of `|f_s - f_t|^p`. With `mode="attention"` a factor is turned into an
    attention map first, the mean over its channels of `F^2`.

    Where the sizes of maps differ, which the paper excludes, the larger one is averaged down to
    the smaller, height and width each on its own.

    Weights in use: 500 with `mode="factor"`, beside the label loss (official code); 200 with
    `mode="attention"` (RepDistiller).

    Args:
        teacher_factor: Tensor `(batch, height, width, channels)`, a constant to the gradient.
        student_factor: Tensor with as many channels.
        power: The exponent p, a number of 1 or more.
        mode: `"factor"` or `"attention"`.

    Returns:
        Tensor `(batch,)`, 0 at equal factors. No scale of a sample's factor changes it.

    Raises:
        ValueError: If the factors are no maps, differ in channels, or an option is unknown.

    References:
        Kim et al. NeurIPS 2018, https://arxiv.org/abs/1802.04977. Convention of the official code
        (Jangho-Kim/Factor-Transfer-pytorch); `mode="attention"` is what RepDistiller calls by this
        name.
    """
    power = _maps.checked_power(power)
    _checks.one_of("mode", mode, MODES)
    teacher, student = _maps.matched_maps(teacher_factor, student_factor)
    if mode == "attention":
        teacher, student = (
            ops.mean(ops.square(_maps.of_unit_size(x)), axis=-1) for x in (teacher, student)
        )
    elif teacher.shape[-1] != student.shape[-1]:
        raise ValueError(
            "Expected factors with as many channels. Received: "
            f"teacher_factor.shape={tuple(teacher_factor.shape)}, "
            f"student_factor.shape={tuple(student_factor.shape)}. FactorTransfer holds the "
            "layers that make them."
        )
    teacher, student = (
        l2_normalize(flatten_samples(_maps.of_unit_size(x))) for x in (teacher, student)
    )
    size = _magnitude(student - teacher)
    return ops.mean(size if power == 1 else ops.power(size, power), axis=-1)


def _magnitude(x):
    """`|x|`, whose gradient at 0 is 0 on every backend."""
    return x * ops.stop_gradient(ops.sign(x))


def _rate(rate):
    return _checks.positive("rate", rate)


@keras.saving.register_keras_serializable(package="keras_distill")
class Paraphraser(keras.layers.Layer):
    """FT's paraphraser: an encoder of maps into factors, and a decoder back.

    The encoder: 3x3 convolutions m -> m -> km -> km with biases, each with a leaky ReLU (0.1),
    the last one's output is the factor. The decoder mirrors it with transposed convolutions. The
    layer itself gives the reconstruction.

    Args:
        rate: The paraphrase rate k, factor channels over the map's.
        **kwargs: As in `keras.layers.Layer`.
    """

    def __init__(self, rate=0.5, name="paraphraser", **kwargs):
        super().__init__(name=name, **kwargs)
        self.rate = _rate(rate)

    def build(self, input_shape):
        own = self.channels = input_shape[-1]
        factors = self.factor_channels = max(1, round(self.rate * own))
        sizes = [(own, own), (own, factors), (factors, factors)]
        self.encoder = [_layers.convolution(*size, 3, self.dtype) for size in sizes]
        self.decoder = [
            _layers.convolution(outputs, inputs, 3, self.dtype, transposed=True)
            for inputs, outputs in reversed(sizes)
        ]

    def encode(self, maps):
        """The factors of maps."""
        return _through(self.encoder, maps)

    def decode(self, factors):
        """Maps from factors."""
        return _through(self.decoder, factors)

    def call(self, inputs):
        return self.decode(self.encode(inputs))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


def _through(layers, x, norms=None, training=False):
    for i, layer in enumerate(layers):
        x = layer(x)
        if norms:
            x = norms[i](x, training=training)
        x = ops.maximum(x, SLOPE * x)  # TensorFlow's graph optimizer stumbles over its LeakyRelu
    return x


@keras.saving.register_keras_serializable(package="keras_distill")
class FactorTransfer(TrainedLoss):
    """Factor transfer, FT (Kim et al. 2018): see `factor_transfer`.

    Holds the `translator`, trained with the student: 3x3 convolutions c -> c -> km -> km with
    biases, each with a leaky ReLU (0.1), of the student's c channels and the teacher's m. And the
    `paraphraser`, whose encoder gives the teacher's factors and which this loss leaves as it is:
    it is trained by `reconstruction()`, beforehand:

    ```python
    transfer = kd.losses.FactorTransfer()
    stages = [
        kd.Stage("paraphraser", 6, kd.Term(transfer.reconstruction(), "stage3", "stage3"),
                 trainable=[], student_loss_weight=0),
        kd.Stage("transfer", 240, kd.Term(transfer, "stage3", "stage3", weight=500)),
    ]
    ```

    Weights and biases start as PyTorch's do, uniform in `+-1 / sqrt(fan_in)`. The official code
    trains the paraphraser with SGD at 0.1, and the translator with an optimizer of its own.

    Args:
        rate: The paraphrase rate k: factor channels over the teacher's.
        power: The exponent p, a number of 1 or more.
        mode: `"factor"`, the official form, or `"attention"`, RepDistiller's.
        batch_normalization: Whether the translator has batch normalization before each leaky ReLU,
            as in RepDistiller. With several replicas each sees its own batch.
        paraphraser: A `Paraphraser` to share, whose rate has to be `rate`; `None` makes one.
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.

    Deviation: where rounding leaves no factor channel, there is one.
    """

    def __init__(
        self,
        rate: float = 0.5,
        power: float = 1,
        mode: str = "factor",
        batch_normalization: bool = False,
        paraphraser: "Paraphraser | None" = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rate = _rate(rate)
        self.power = _maps.checked_power(power)
        self.mode = _checks.one_of("mode", mode, MODES)
        self.batch_normalization = _checks.instance(
            "batch_normalization", batch_normalization, bool, "True or False"
        )
        self.paraphraser = _paraphraser(paraphraser, self.rate, self.dtype)

    def reconstruction(self, loss: str = "l1", **kwargs: Any) -> "FactorReconstruction":
        """The loss that trains the paraphraser: `FactorReconstruction` with this one's.

        Args:
            loss: `"l1"` (official code) or `"mse"` (paper, RepDistiller).
            **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
        """
        return FactorReconstruction(self.paraphraser, loss, **kwargs)

    @property
    def frozen_variables(self) -> list[keras.Variable]:
        return self.paraphraser.variables

    def misfit(self, teacher_shapes: Shapes, student_shapes: Shapes) -> str | None:
        expected = misfit.of_one_feature(teacher_shapes, student_shapes)
        expected = expected or misfit.of_matched_maps(teacher_shapes, student_shapes)
        return expected or _misfit_of_paraphraser(self.paraphraser, teacher_shapes)

    def make(self, teacher_shapes: Shapes, student_shapes: Shapes) -> None:
        if not self.paraphraser.built:
            self.paraphraser.build((None, None, None, teacher_shapes[-1]))
        own, factors = student_shapes[-1], self.paraphraser.factor_channels
        sizes = [(own, own), (own, factors), (factors, factors)]
        self.translator = [_layers.convolution(*size, 3, self.dtype) for size in sizes]
        self.norms = []
        if self.batch_normalization:
            self.norms = [_layers.batch_normalization(out, self.dtype) for _, out in sizes]

    def translate(self, maps: Tensor, training: bool = False) -> Tensor:
        """The student's factors."""
        return _through(self.translator, maps, self.norms, training)

    def call(self, y_true: Structure, y_pred: Structure, training: bool = True) -> Tensor:
        teacher = self.paraphraser.encode(ops.stop_gradient(y_true))
        student = self.translate(y_pred, training)
        return factor_transfer(teacher, student, self.power, self.mode)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "rate": self.rate,
            "power": self.power,
            "mode": self.mode,
            "batch_normalization": self.batch_normalization,
            "paraphraser": _shared_config(self.paraphraser),
        }

    @classmethod
    def from_config(cls, config: Config) -> Self:
        return cls(**_with_paraphraser(config))


@keras.saving.register_keras_serializable(package="keras_distill")
class FactorReconstruction(TrainedLoss):
    """How far the paraphraser's reconstruction is from the teacher's map t: FT's first stage.

    The mean over the elements of a sample of `|t' - t|` or `(t' - t)^2`. Trains the paraphraser
    alone; the student's feature, which a `Term` names too, has no part in it. Made by
    `FactorTransfer.reconstruction`. A `.keras` file of a `Distiller` that holds both restores one
    paraphraser for both.

    Args:
        paraphraser: The `Paraphraser` to train; `None` makes one.
        loss: `"l1"` (official code) or `"mse"` (paper, RepDistiller).
        **kwargs: `name`, `reduction`, `dtype`, as in `DistillationLoss`.
    """

    def __init__(self, paraphraser=None, loss="l1", **kwargs):
        super().__init__(**kwargs)
        self.loss = _checks.one_of("loss", loss, RECONSTRUCTIONS)
        self.paraphraser = _paraphraser(paraphraser, None, self.dtype)

    def misfit(self, teacher_shapes, student_shapes):
        expected = misfit.of_one_feature(teacher_shapes, teacher_shapes)
        if expected is not None or misfit.of_maps(teacher_shapes, teacher_shapes) is not None:
            return "one map of shape (batch, height, width, channels) from the teacher"
        return _misfit_of_paraphraser(self.paraphraser, teacher_shapes)

    def make(self, teacher_shapes, student_shapes):
        if not self.paraphraser.built:
            self.paraphraser.build((None, None, None, teacher_shapes[-1]))

    def call(self, y_true, y_pred, training=True):
        teacher = ops.stop_gradient(y_true)
        difference = self.paraphraser(teacher) - teacher
        return per_sample_mean(
            _magnitude(difference) if self.loss == "l1" else ops.square(difference)
        )

    def get_config(self):
        return {
            **super().get_config(),
            "paraphraser": _shared_config(self.paraphraser),
            "loss": self.loss,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**_with_paraphraser(config))


def _paraphraser(given, rate, dtype):
    if given is None:
        return Paraphraser(0.5 if rate is None else rate, dtype=dtype)
    _checks.instance("paraphraser", given, Paraphraser, "a Paraphraser")
    if rate is not None and given.rate != rate:
        raise ValueError(
            _checks.message(f"`rate` to be that of the paraphraser, {given.rate}", "rate", rate)
        )
    return given


def _misfit_of_paraphraser(paraphraser, teacher_shape):
    if teacher_shape[-1] is None:
        return "a known number of channels from the teacher"
    if paraphraser.built and paraphraser.channels != teacher_shape[-1]:
        return f"the {paraphraser.channels} channels that the paraphraser was built for"
    return None


def _shared_config(paraphraser):
    # Inside a `.keras` file, Keras marks what it serializes a second time as shared, and restores
    # it once. The first call alone would be marked after its config has been copied.
    keras.saving.serialize_keras_object(paraphraser)
    return keras.saving.serialize_keras_object(paraphraser)


def _with_paraphraser(config):
    paraphraser = keras.saving.deserialize_keras_object(config["paraphraser"])
    return {**config, "paraphraser": paraphraser}
