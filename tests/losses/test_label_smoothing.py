"""Label smoothing: both conventions against their targets, and as a compiled loss."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.losses.label_smoothing import smoothed_cross_entropy
from keras_distill.models import labels as rules
from tests.contract import network
from tests.contract import samples
from tests.losses import numerics
from tests.oracles.response import log_softmax

LOGITS = np.array([[2.0, -1.0, 0.5, 0.0], [0.0, 3.0, -2.0, 1.0], [-40.0, 40.0, 0.0, 1.0]])
LABELS = np.array([0, 3, 1])


def target(labels, smoothing, spread, classes=4):
    """The smoothed distribution, row by row."""
    rows = np.zeros((len(labels), classes))
    for row, label in zip(rows, labels):
        if spread == "all":
            row[:] = smoothing / classes
            row[label] += 1.0 - smoothing
        else:
            row[:] = smoothing / (classes - 1)
            row[label] = 1.0 - smoothing
    return rows


@pytest.mark.parametrize("spread", ["all", "others"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_value_and_gradient(spread, smoothing):
    expected = -np.sum(target(LABELS, smoothing, spread) * log_softmax(LOGITS), axis=-1)
    for labels in (LABELS, LABELS[:, None]):
        values = numerics.values(
            smoothed_cross_entropy, labels, LOGITS, smoothing=smoothing, spread=spread
        )
        np.testing.assert_allclose(values, expected, rtol=max(1e-10, numerics.RTOL))
    gradient = numerics.gradient(
        lambda x: smoothed_cross_entropy(LABELS, x, smoothing, spread=spread), LOGITS
    )
    analytic = np.exp(log_softmax(LOGITS)) - target(LABELS, smoothing, spread)
    np.testing.assert_allclose(gradient, analytic, rtol=1e-6, atol=1e-9)


def test_all_is_the_convention_of_keras():
    ours = kd.LabelSmoothing(0.2)
    keras_own = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    logits = LOGITS[:2].astype("float32")
    one_hot = np.eye(4, dtype="float32")[LABELS[:2]]
    np.testing.assert_allclose(
        numerics.to_numpy(ours(LABELS[:2], logits)),
        numerics.to_numpy(keras_own(one_hot, logits)),
        rtol=1e-5,
    )


def test_probabilities():
    logits = LOGITS[:2]
    of_logits = numerics.values(smoothed_cross_entropy, LABELS[:2], logits)
    of_probabilities = numerics.values(
        smoothed_cross_entropy, LABELS[:2], np.exp(log_softmax(logits)), from_logits=False
    )
    np.testing.assert_allclose(of_probabilities, of_logits, rtol=1e-5)


def test_without_smoothing_it_is_the_cross_entropy_and_reduces_as_keras_does():
    logits, weights = LOGITS.astype("float32"), np.array([1.0, 0.0, 3.0], "float32")
    keras_own = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(
        numerics.to_numpy(kd.LabelSmoothing(0.0)(LABELS, logits, weights)),
        numerics.to_numpy(keras_own(LABELS, logits, weights)),
        rtol=1e-5,
    )


def test_tokens():
    logits = np.stack([LOGITS, LOGITS[::-1]])
    labels = np.stack([LABELS, LABELS])
    values = numerics.values(smoothed_cross_entropy, labels, logits)
    assert values.shape == (2, 3)
    single = numerics.values(smoothed_cross_entropy, LABELS, LOGITS)
    np.testing.assert_allclose(values[0], single, rtol=1e-6)


def test_config_round_trip():
    loss = kd.LabelSmoothing(0.3, from_logits=False, spread="others")
    config = keras.saving.serialize_keras_object(loss)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is kd.LabelSmoothing
    assert copy.get_config() == loss.get_config()
    assert copy.name == "label_smoothing"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: kd.LabelSmoothing(1.0), r"`smoothing` to be in \[0, 1\).*smoothing=1.0"),
        (lambda: kd.LabelSmoothing(-0.1), "`smoothing`"),
        (lambda: kd.LabelSmoothing("0.1"), "`smoothing`"),
        (lambda: kd.LabelSmoothing(spread="none"), "`spread` to be one of 'all', 'others'"),
        (lambda: smoothed_cross_entropy(np.eye(4), LOGITS), "class ids.*CategoricalCrossentropy"),
        (lambda: smoothed_cross_entropy(LABELS, LOGITS[:, :1]), "at least two classes"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_plain_keras_trains_the_baseline():
    x, y = samples(16)
    model = network("student")
    model.compile(keras.optimizers.SGD(0.05), kd.LabelSmoothing(0.1), metrics=["accuracy"])
    history = model.fit(x, y, batch_size=8, epochs=3, verbose=0, shuffle=False).history
    assert history["loss"][-1] < history["loss"][0]
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    logits = model.predict(x, verbose=0)
    expected = -np.sum(target(y, 0.1, "all") * log_softmax(logits), axis=-1).mean()
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(logs["accuracy"], np.mean(logits.argmax(-1) == y), rtol=1e-6)


def test_wrappers_read_it_as_a_label_loss():
    x, y = samples(12)
    y[::3] = -1
    distiller = kd.Distiller(network("teacher", 5), network("student"), kd.losses.SoftTargets())
    distiller.compile("sgd", kd.LabelSmoothing(0.1))
    logits = numerics.to_numpy(distiller.student(x, training=True))
    known = y >= 0
    expected = -np.sum(target(y[known], 0.1, "all") * log_softmax(logits[known]), axis=-1)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["label_loss"], expected.sum() / 12, rtol=1e-4)
    y[0] = 4
    with pytest.raises(ValueError, match="Expected labels from 0 to 3"):
        distiller.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match=r"Pass LabelSmoothing\(from_logits=True\)"):
        distiller.compile("sgd", kd.LabelSmoothing(0.1, from_logits=False))
    assert rules.from_logits_of(kd.LabelSmoothing()) is True
    ensemble = kd.EnsembleTeacher([network("a"), network("b")], objective="average")
    ensemble.compile("sgd", kd.LabelSmoothing(0.1))
    student = network("student", softmax=True)
    distiller = kd.Distiller(network("teacher", 5), student, kd.losses.SoftTargets())
    with pytest.raises(ValueError, match="label_smoothing with from_logits=True"):
        distiller.compile("sgd", kd.LabelSmoothing(0.1))
