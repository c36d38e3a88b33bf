"""Noisy labels: their share, their kinds, the true ones beside, reproducible by sample."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill.data import ImageData
from keras_distill.data import NoisyImageData
from keras_distill.data import Split
from keras_distill.data import Targets
from keras_distill.data import label_noise
from keras_distill.data import load
from keras_distill.data import with_ids

COUNT, CLASSES = 5000, 5
LABELS = np.random.default_rng(0).integers(0, CLASSES, COUNT)
IMAGES = np.zeros((COUNT, 1, 1, 1), "uint8")


def noisy(rate=0.4, labels=LABELS, **arguments):
    return label_noise(labels, rate, **arguments)["labels"]


@pytest.mark.parametrize("kind", ["symmetric", "pairflip"])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.45, 1.0])
def test_the_share_of_wrong_labels_is_the_rate(kind, rate):
    result = noisy(rate, kind=kind)
    assert np.sum(result != LABELS) == round(rate * COUNT)
    assert result.dtype == LABELS.dtype
    assert 0 <= result.min() and result.max() < CLASSES
    bernoulli = noisy(rate, kind=kind, exact=False)
    deviation = 5 * np.sqrt(COUNT * rate * (1 - rate))
    assert abs(np.sum(bernoulli != LABELS) - rate * COUNT) <= deviation
    if rate == 0.45:
        assert np.sum(bernoulli != LABELS) != round(rate * COUNT)


def test_symmetric_noise_is_uniform_over_the_other_classes():
    labels = np.full(40_000, 2)
    counts = np.bincount(noisy(0.5, labels, class_count=CLASSES), minlength=CLASSES)
    assert counts[2] == 20_000
    others = np.delete(counts, 2)
    assert ((others - 5000) ** 2 / 5000).sum() < 25.9  # 1e-5 of three degrees of freedom


def test_the_flipped_samples_are_spread_over_all():
    flipped = noisy(0.3) != LABELS
    for part in np.array_split(flipped, 10):
        assert abs(part.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / len(part))


def test_pairflip_goes_to_the_next_class():
    result = noisy(0.3, kind="pairflip")
    flipped = result != LABELS
    np.testing.assert_array_equal(result[flipped], (LABELS[flipped] + 1) % CLASSES)


def test_seeds_repeat_and_differ_and_samples_keep_their_noise():
    np.testing.assert_array_equal(noisy(seed=3), noisy(seed=3))
    assert np.mean(noisy(seed=3) == noisy(seed=4)) < 0.8
    first = noisy(labels=LABELS[:100], class_count=CLASSES, exact=False)
    np.testing.assert_array_equal(first, noisy(exact=False)[:100])


@pytest.mark.parametrize("exact", [True, False])
def test_higher_rates_flip_the_same_samples_alike(exact):
    low, high = noisy(0.2, exact=exact), noisy(0.6, exact=exact)
    flipped = low != LABELS
    np.testing.assert_array_equal(low[flipped], high[flipped])


def test_unlabelled_samples_stay():
    labels = np.where(np.arange(COUNT) % 2, LABELS, -1)
    result = noisy(1.0, labels)
    np.testing.assert_array_equal(result == -1, labels == -1)
    assert np.all(result[labels >= 0] != labels[labels >= 0])


def test_arrays_keep_dtype_and_shape_and_the_true_labels():
    labels = LABELS[:, None].astype("uint8")
    result = label_noise(labels, 0.4)
    assert type(result) is Targets
    assert result["true_labels"] is labels
    assert result["labels"].shape == labels.shape
    assert result["labels"].dtype == labels.dtype
    np.testing.assert_array_equal(result["labels"][:, 0], noisy())
    np.testing.assert_array_equal(labels[:, 0], LABELS)  # the input is left alone


def test_image_data_keeps_images_and_true_labels():
    data = ImageData(IMAGES, LABELS, tuple("abcdef"), "set/train")
    result = label_noise(data, 0.4, "symmetric", 1)
    assert isinstance(result, NoisyImageData)
    assert result.images is IMAGES
    assert (result.name, result.class_names) == (data.name, data.class_names)
    assert result.true_labels is LABELS
    assert result.flipped.sum() == 2000
    assert result.labels.max() == 5  # the sixth class, of which there is no sample
    part = result.subset(np.arange(10), "part")
    assert isinstance(part, NoisyImageData)
    assert part.name == "part"
    np.testing.assert_array_equal(part.true_labels, LABELS[:10])
    np.testing.assert_array_equal(part.labels, result.labels[:10])


def test_a_splits_training_part_alone_is_noisy():
    digits = load("digits", validation=0.2)
    result = label_noise(digits, 0.3)
    assert isinstance(result, Split)
    assert result.train.flipped.sum() == round(0.3 * len(digits.train))
    assert result.test is digits.test
    assert result.validation is digits.validation


def test_noise_on_noise_keeps_the_first_true_labels():
    data = ImageData(IMAGES, LABELS, tuple("abcde"), "set")
    twice = label_noise(label_noise(data, 0.2), 0.2, seed=1)
    assert twice.true_labels is LABELS


@pytest.mark.parametrize("kind", ["symmetric", "pairflip"])
def test_a_data_set_gets_the_noise_of_the_array(kind):
    labels, weights = LABELS[:50].astype("int32"), np.arange(50.0)
    labels[7] = -1
    samples = tf.data.Dataset.from_tensor_slices((IMAGES[:50], labels, weights))
    expected = label_noise(labels, 0.4, kind, 5, class_count=CLASSES)
    dataset = label_noise(samples, 0.4, kind, 5, class_count=CLASSES)
    assert int(dataset.cardinality()) == 50
    for i, (_, y, weight) in enumerate(dataset):
        assert type(y) is Targets
        assert y["labels"].dtype == tf.int32
        assert int(y["labels"]) == expected["labels"][i]
        assert int(y["true_labels"]) == labels[i]
        assert float(weight) == i
    with_both = next(iter(label_noise(with_ids(samples), 0.4, class_count=CLASSES)))[1]
    assert set(with_both) == {"labels", "true_labels", "ids"}


def test_a_model_trains_on_the_noisy_labels_of_an_array():
    import keras_distill as kd
    from tests.models import nets

    student = nets.mlp()
    x, labels = nets.vectors(), nets.class_ids()
    y = label_noise(labels, 0.5, class_count=nets.CLASSES)
    logits = keras.ops.convert_to_numpy(student(x))
    distiller = kd.Distiller(nets.mlp(name="teacher"), student, kd.losses.SoftTargets())
    distiller.compile("sgd", nets.cross_entropy())
    logs = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["label_loss"], nets.ce(y["labels"], logits).mean(), rtol=1e-5)


SAMPLES = tf.data.Dataset.from_tensor_slices((IMAGES[:8], LABELS[:8]))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"rate": -0.1}, "`rate` to be a share from 0 to 1. Received: rate=-0.1"),
        ({"rate": 1.1}, "`rate` to be a share from 0 to 1"),
        ({"rate": float("nan")}, "`rate` to be a share"),
        ({"rate": "0.4"}, "`rate` to be a share"),
        ({"kind": "asymmetric"}, "`kind` to be one of 'symmetric', 'pairflip'"),
        ({"seed": -1}, "`seed` to be a whole number, 0 or more"),
        ({"exact": 1}, "`exact` to be True or False"),
        ({"dataset": np.zeros(4, int)}, "`class_count` to be a whole number, 2 or more"),
        ({"class_count": 1}, "`class_count` to be a whole number, 2 or more"),
        ({"class_count": 3}, r"labels below class_count=3.*4"),
        ({"dataset": LABELS + 0.5}, "class ids, integers.*float64"),
        ({"dataset": np.eye(4, dtype=int)}, "class ids"),
        ({"dataset": np.zeros(0, int)}, "class ids"),
        ({"dataset": [0, 1]}, "ImageData.*Received: dataset of type list"),
        ({"dataset": SAMPLES}, "`class_count` for a data set"),
        ({"dataset": SAMPLES.batch(2), "class_count": 5}, "single samples.*label_noise"),
        ({"dataset": SAMPLES.repeat(), "class_count": 5}, "known number of samples"),
        (
            {"dataset": SAMPLES.map(lambda x, y: (x, tf.one_hot(y, 5))), "class_count": 5},
            "class ids",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    with pytest.raises((ValueError, TypeError), match=text):
        label_noise(**{"dataset": LABELS, "rate": 0.4, **arguments})
