"""Learning on real data: no scheme is worse than the student alone, no policy than float32.

Fashion-MNIST in tensorflow-datasets' prepared form, found through `TFDS_DATA_DIR`: 1,000 training
images, five seeds, seed by seed. `make test-learning` runs it, for minutes.

Schemes: the small setting of the recipes. A scheme that forwards each image twice gets half the
epochs, DDGSD apart: it is held against its baseline at equal epochs, as in its paper, and both
see augmented images.

Policies: every wrapper of the contract on small networks, six epochs of Adam, the first 4,000
test images; the same seeds, and the same teachers, in float32 and in mixed precision.

Int8: 2,000 training images of CIFAR-10, shifted and mirrored; a student distilled in float for 20
epochs, then in simulated int8 for 10; the first 5,000 test images, answered by the files.
"""

import math
import os

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.heads import head_of
from keras_distill.recipes import networks
from keras_distill.recipes import quantizing
from keras_distill.recipes import schemes
from keras_distill.recipes.settings import shifts
from tests import contract

SEEDS = 5
MOST_ERROR = 0.005  # of the mean difference, as a share: half a point
SCHEMES = [r.name for r in schemes.RECIPES if r.name != "baseline" and r.first is None]


def prepared(name, limit):
    """So many training images of a data set, and its test images; skips where it is missing."""
    if not os.environ.get("TFDS_DATA_DIR"):
        pytest.skip(f"needs {name}, prepared by tensorflow-datasets, in TFDS_DATA_DIR")
    pytest.importorskip("tensorflow_datasets")
    try:
        return kd.data.load(name, limit=limit)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def fashion_mnist():
    return prepared("fashion_mnist", 1000)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """One a process: the student alone is trained once for all schemes."""
    return tmp_path_factory.mktemp("learning")


@pytest.mark.tensorflow
@pytest.mark.slow
@pytest.mark.learning
@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_is_not_worse_than_the_student_alone(name, fashion_mnist, folder):
    augments = schemes.named(name).augments
    options = schemes.Options(
        augment=augments or None,
        flip=augments or None,
        budget="epochs" if augments else "images",
        looks=1,
    )
    results = kd.recipes.compare_recipes(
        ["baseline", name],
        fashion_mnist,
        SEEDS,
        options,
        folder / ("augmented" if augments else "plain"),
        say=lambda line: None,
    )
    gain = results["comparison"][1]["gain"]
    print(f"{name}: {100 * gain['mean']:+.2f} +- {100 * gain['error']:.2f} points")
    assert math.isfinite(gain["mean"])
    assert gain["error"] <= MOST_ERROR
    assert gain["mean"] >= -2 * gain["error"]


# Mixed precision.

POLICIES = ("mixed_float16", "mixed_bfloat16")
EPOCHS, BATCH, TEST_IMAGES = 6, 50, 4000
LEAST_DIFFERENCE = 0.005  # of the accuracy: less counts as none


def network(name, width=3, batch_norm=True, dropout=0.0, softmax=False, dtype=None):
    """The contract's network for these images: two convolutions, of 4 and 8 times the width."""
    inputs = x = keras.Input((28, 28, 1))
    for i, (layer, end) in enumerate((("stem", "relu"), ("conv", "features"))):
        x = keras.layers.Conv2D(
            4 * width * (i + 1), 5 - 2 * i, 3 - i, use_bias=not batch_norm, name=layer, dtype=dtype
        )(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(momentum=0.9, name=f"norm{i}", dtype=dtype)(x)
        x = keras.layers.ReLU(name=end, dtype=dtype)(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool", dtype=dtype)(x)
    activation = "softmax" if softmax else None
    x = keras.layers.Dense(10, activation, name="logits", dtype="float32")(x)
    return keras.Model(inputs, x, name=name)


def of_one_class(images, labels):
    """Beside each image another one of its class."""
    order = np.argsort(labels, kind="stable")
    partners = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        partners[own] = np.roll(own, 1)
    return (images, images[partners]), labels


def shifted(images, labels):
    """Beside each image itself, a pixel to the right."""
    return (images, np.roll(images, 1, axis=2)), labels


ELEMENTS = {
    "ClassWiseDistiller": of_one_class,
    "DistortionDistiller": shifted,
    "MeanTeacher": shifted,
}


class Trainings:
    """The accuracies of wrappers by policy and seed; float32 is trained once for both others."""

    def __init__(self, split):
        self.train, self.test = (
            (part.images.astype("float32") / 255, part.labels) for part in (split.train, split.test)
        )
        self.teachers = {}
        self.found = {}

    def accuracies(self, name, policy):
        """One accuracy a seed."""
        if (name, policy) not in self.found:
            model, found = None, []
            for seed in range(SEEDS):
                model = self._begun(name, policy, seed, model)
                found.append(self._accuracy(name, model))
            self.found[name, policy] = found
        return np.array(self.found[name, policy])

    def _begun(self, name, policy, seed, traced):
        """A wrapper at the beginning of a seed; where it can be, the one traced before."""
        wrapper = contract.WRAPPERS[name]
        fresh = wrapper.compiled(seed=seed, dtype=policy, compile={"optimizer": self._adam()})
        for attribute in fresh.frozen_attributes:
            self._teach(getattr(fresh, attribute), seed)
        if traced is None or wrapper.rounds > 1 or getattr(fresh, "stages", None):
            return fresh
        variables = [[*model.variables, *model.optimizer.variables] for model in (traced, fresh)]
        if len(variables[0]) != len(variables[1]):  # A fit has made some, as a DLBModel's does.
            return fresh
        for old, new in zip(*variables, strict=True):
            old.assign(new)
        return traced

    def _adam(self):
        steps = EPOCHS * len(self.train[1]) // BATCH
        return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, steps))

    def _accuracy(self, name, model):
        wrapper = contract.WRAPPERS[name]
        x, y = ELEMENTS.get(name, wrapper.element)(*self.train)
        arguments = {"epochs": EPOCHS, "batch_size": BATCH, "verbose": 0, **wrapper.fit}
        logs = model.fit(x, y, **arguments).history
        assert np.isfinite(logs["loss"]).all()
        images, labels = (part[:TEST_IMAGES] for part in self.test)
        found = wrapper.prediction(model.predict(images, batch_size=500, verbose=0))
        return np.mean(found.argmax(-1) == labels)

    def _teach(self, teacher, seed):
        """Trains a teacher on the labels; others of its shape get the same weights."""
        key = (seed, *(tuple(variable.shape) for variable in teacher.weights))
        if key not in self.teachers:
            softmax = head_of(teacher) == "softmax"
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
            teacher.compile(self._adam(), loss)
            teacher.fit(*self.train, batch_size=BATCH, epochs=EPOCHS, verbose=0)
            self.teachers[key] = teacher.get_weights()
        teacher.set_weights(self.teachers[key])


@pytest.fixture(scope="module")
def trainings(fashion_mnist):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "network", network)
        patch.setattr(contract, "CLASSES", 10)
        patch.setattr(contract, "MOST_SAMPLES", 1000)
        yield Trainings(fashion_mnist)


@pytest.mark.tensorflow
@pytest.mark.slow
@pytest.mark.learning
@pytest.mark.parametrize("name", contract.WRAPPERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_mixed_precision_trains_to_the_accuracy_of_float32(name, policy, trainings):
    plain, mixed = (trainings.accuracies(name, p) for p in ("float32", policy))
    gains = mixed - plain
    mean, error = gains.mean(), gains.std(ddof=1) / math.sqrt(SEEDS)
    print(
        f"{name}, {policy}: {100 * plain.mean():.2f} in float32, "
        f"{100 * mean:+.2f} +- {100 * error:.2f} points"
    )
    assert plain.mean() > 0.5  # it learns: a tenth is chance
    assert mean >= -max(2 * error, LEAST_DIFFERENCE)


# Int8.

MOST_LOSS = 0.005  # half a point


def train_on_cifar10(model, network, split, path):
    """Twenty epochs of Adam, from 0.003 along half a cosine, and into a file."""
    batch, epochs = 50, 20
    steps = len(split.train) // batch
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * steps)
    model.compile(keras.optimizers.Adam(rate), networks.label_loss(network))
    images, labels = split.train.images, split.train.labels
    data = kd.data.batches(images, labels, batch, epochs=epochs, augment=shifts((32, 32), True))
    model.fit(data, epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=0)
    return networks.save(network, path)


@pytest.mark.tensorflow
@pytest.mark.slow
@pytest.mark.learning
def test_simulated_int8_keeps_what_was_distilled(tmp_path):
    split = prepared("cifar10", 2000)
    teacher = networks.build("small-16-32-64", (32, 32, 3), 10, seed=100)
    teacher = train_on_cifar10(teacher, teacher, split, tmp_path / "teacher.keras")
    found = []
    for seed in range(SEEDS):
        student = networks.build("small-8-16-32", (32, 32, 3), 10, seed=seed)
        loss = kd.losses.SoftTargets(temperature=4.0)
        distiller = kd.Distiller(teacher, student, loss, student_loss_weight=0.1)
        path = tmp_path / f"student{seed}.keras"
        train_on_cifar10(distiller, student, split, path)
        settings = quantizing.Settings(
            str(path),
            str(tmp_path / "teacher.keras"),
            "cifar10",
            limit=2000,
            test_limit=5000,
            augment=True,
            seed=seed,
        )
        results = quantizing.quantize(settings, tmp_path / f"{seed}", verbose=0, say=lambda _: None)
        found.append([model["accuracy"][0] for model in results["models"]])
        print("float, int8 after training, int8-aware:", *(f"{100 * a:.2f}" for a in found[-1]))
    floats, after, aware = np.mean(found, axis=0)
    print(f"means: {100 * floats:.2f}, {100 * after:.2f}, {100 * aware:.2f}")
    assert floats > 0.35
    assert aware >= floats - MOST_LOSS
    assert aware >= after
