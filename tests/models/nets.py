"""Tiny networks, data and numpy formulas that the tests of the wrappers share."""

import keras
import numpy as np
from keras import layers
from keras import ops

CLASSES = 4
FEATURES = 6


def vectors(count=24, seed=0):
    return np.random.default_rng(seed).normal(size=(count, FEATURES)).astype("float32")


def images(count=12, size=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size, size, 1)).astype("float32")


def token_ids(count=8, length=5, seed=0):
    """Ids from 1 to 9, the tails of the rows padded with 0."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(1, 10, size=(count, length))
    lengths = generator.integers(1, length + 1, size=(count, 1))
    return np.where(np.arange(length) < lengths, ids, 0).astype("int32")


def class_ids(shape=24, seed=1):
    return np.random.default_rng(seed).integers(0, CLASSES, size=shape).astype("int32")


def mlp(activation=None, classes=CLASSES, width=8, name="mlp", regularizer=None):
    inputs = keras.Input((FEATURES,), name="vector")
    hidden = layers.Dense(width, "tanh", name="hidden", kernel_regularizer=regularizer)(inputs)
    outputs = layers.Dense(classes, activation, name="head")(hidden)
    return keras.Model(inputs, outputs, name=name)


def cnn(width=4, name="cnn", classes=CLASSES, regularized=False, dropout=0.0, seed=5, size=8):
    penalty = keras.regularizers.L2(0.05) if regularized else None
    activity = keras.regularizers.L2(0.01) if regularized else None
    inputs = keras.Input((size, size, 1), name="image")
    x = layers.Conv2D(width, 3, padding="same", name="conv1", kernel_regularizer=penalty)(inputs)
    x = layers.BatchNormalization(momentum=0.7, name="bn1")(x)
    x = layers.ReLU(name="stage1")(x)
    x = layers.Conv2D(width, 3, strides=2, name="stage2", activity_regularizer=activity)(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = layers.Dropout(dropout, seed=seed, name="dropout")(x)
    outputs = layers.Dense(classes, name="head")(x)
    return keras.Model(inputs, outputs, name=name)


def tagger(width=5, name="tagger"):
    """(batch, length) ids to (batch, length, classes) logits with a Keras mask."""
    inputs = keras.Input((None,), dtype="int32", name="ids")
    x = layers.Embedding(10, width, mask_zero=True, name="embedding")(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES, name="head")(x), name=name)


def two_heads(kind="list", name="two_heads", width=8):
    """A model with two outputs; the one that the graph builds first is called "zebra"."""
    inputs = keras.Input((FEATURES,), name="vector")
    hidden = layers.Dense(width, "tanh", name="hidden")(inputs)
    zebra = layers.Dense(CLASSES, name="zebra")(hidden)
    apple = layers.Dense(3, name="apple")(hidden)
    outputs = [zebra, apple] if kind == "list" else {"zebra": zebra, "apple": apple}
    return keras.Model(inputs, outputs, name=name)


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A model without a graph."""

    def __init__(self, activation=None, classes=CLASSES, width=8, **kwargs):
        super().__init__(**kwargs)
        self.settings = {"activation": activation, "classes": classes, "width": width}
        self.hidden = layers.Dense(width, "tanh", name="hidden")
        self.head = layers.Dense(classes, activation, name="head")

    def call(self, inputs, training=None):
        return self.head(self.hidden(inputs))

    def get_config(self):
        return {**super().get_config(), **self.settings}


def copy_of(model, name=None):
    """A model of its own with the same weights (and seeds)."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    if name is not None:
        copy.name = name
    return copy


def sharpen(model, factor=4.0):
    """Larger weights in the head: predictions that are worth telling apart."""
    head = model.get_layer("head")
    head.kernel.assign(head.kernel * factor)
    return model


def cross_entropy(**kwargs):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def sgd(rate=0.1):
    return keras.optimizers.SGD(rate)


def array(x):
    """A variable or tensor as a numpy array of its own."""
    return np.array(ops.convert_to_numpy(x))


def snapshot(model):
    """All that a model holds: values of its variables, and its layers' trainable flags."""
    values = [np.array(v) for v in model.get_weights()]
    flags = [layer.trainable for layer in model._flatten_layers()]
    return values, flags


def assert_untouched(model, before):
    values, flags = snapshot(model)
    assert flags == before[1]
    for value, old in zip(values, before[0], strict=True):
        np.testing.assert_array_equal(value, old)


def assert_same_weights(model, other, rtol=0.0, atol=0.0):
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def difference(model, other):
    pairs = zip(model.get_weights(), other.get_weights(), strict=True)
    return max(float(np.max(np.abs(a.astype("float64") - b))) for a, b in pairs)


def predict(model, x, **kwargs):
    return keras.tree.map_structure(ops.convert_to_numpy, model(x, **kwargs))


# Formulas in numpy, float64.


def log_softmax(z):
    z = np.asarray(z, "float64")
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-np.asarray(z, "float64")))


def kd(teacher, student, temperature):
    """T^2 KL(teacher || student), one value a prediction."""
    t = log_softmax(np.asarray(teacher) / temperature)
    s = log_softmax(np.asarray(student) / temperature)
    return temperature**2 * np.sum(np.exp(t) * (t - s), -1)


def bernoulli_kd(teacher, student, temperature):
    p, q = sigmoid(teacher / temperature), sigmoid(student / temperature)
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return temperature**2 * kl.sum(-1)


def ce(labels, logits):
    return -np.take_along_axis(log_softmax(logits), labels[..., None], -1)[..., 0]
