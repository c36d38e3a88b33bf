"""A small trained student on scikit-learn's digits, its data, and wrappers around it."""

import keras
import numpy as np
import pytest


@pytest.fixture(scope="session")
def digits():
    """Real digits in [0, 1]: (x_train, y_train, x_test, y_test), 1200 and 597 images."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16.0).astype("float32")
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order]
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def build_student(activation=None):
    """Convolution, BatchNormalization and depthwise convolution: what the converter folds."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Flatten()(x)
    outputs = layers.Dense(10, activation=activation)(x)
    return keras.Model(inputs, outputs, name="student")


@pytest.fixture
def student_builder():
    return build_student


@pytest.fixture(scope="session")
def student(digits):
    """A student with a linear head, trained for a few epochs. Tests leave it as it is."""
    keras.utils.set_random_seed(7)
    model = build_student()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.fit(digits[0], digits[1], batch_size=64, epochs=4, verbose=0)
    return model


@pytest.fixture(scope="session")
def classifier(student):
    """The same student with a softmax head."""
    model = build_student("softmax")
    model.set_weights(student.get_weights())
    return model


class Wrapper(keras.Model):
    """Stands for a wrapper of the library: a big teacher, a student, and what leaves."""

    def __init__(self, student):
        super().__init__()
        self.teacher = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        self.teacher.add(keras.layers.Dense(500))
        self.teacher.add(keras.layers.Dense(10))
        self.student = student
        self.built = True

    def call(self, inputs, training=None):
        return self.student(inputs, training=training)

    @property
    def inference_model(self):
        return self.student


@pytest.fixture
def wrapper(student):
    return Wrapper(student)


@keras.saving.register_keras_serializable("keras_distill_tests")
class Lambda(keras.layers.Layer):
    """Any function of tensors as a layer."""

    def __init__(self, function=None, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


@pytest.fixture
def model_with():
    """A small convolutional model with one given function in its middle."""

    def build(function):
        inputs = keras.Input((8, 8, 1))
        x = Lambda(function)(keras.layers.Conv2D(4, 3)(inputs))
        return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x)))

    return build


@pytest.fixture
def two_by_two():
    """Builds a model of two inputs and two outputs, given as a list or as a dict."""

    def build(kind):
        # Neither the order of the names nor that of the keys is alphabetical.
        wide, narrow = keras.Input((6,), name="wide"), keras.Input((3,), name="narrow")
        both = keras.layers.Concatenate()([wide, narrow])
        small = keras.layers.Dense(2, name="small")(both)
        large = keras.layers.Dense(5, name="large")(keras.layers.Dense(4)(wide))
        if kind is dict:
            return keras.Model({"wide": wide, "narrow": narrow}, {"small": small, "large": large})
        return keras.Model(kind([wide, narrow]), kind([small, large]))

    return build


@pytest.fixture
def two_inputs():
    generator = np.random.default_rng(0)
    return (
        generator.normal(size=(40, 6)).astype("float32"),
        generator.normal(size=(40, 3)).astype("float32"),
    )
