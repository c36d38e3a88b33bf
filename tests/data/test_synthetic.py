"""Synthetic data: what the multi-view samples show, and Gaussian images with their labels."""

import numpy as np
import pytest

from keras_distill import data
from keras_distill.data import gaussian_images
from keras_distill.data import gaussian_mixture
from keras_distill.data import multi_view

CLASSES, PATCHES, DIMENSION = 5, 9, 12


def drawn(**options):
    given = {"classes": CLASSES, "patches": PATCHES, "dimension": DIMENSION}
    return multi_view(**{"train": 400, "test": 100, **given, **options})


@pytest.fixture(scope="module")
def split():
    return drawn(single_view_share=0.25)


def projected(part, features):
    """The coefficient of each feature in each patch, (samples, patches, classes, 2)."""
    return np.einsum("npd,cvd->npcv", part.images[:, :, 0].astype("float64"), features)


def test_shapes_labels_and_parts(split):
    assert isinstance(split, data.Split) and isinstance(split.train, data.MultiViewData)
    assert split.train.images.shape == (400, PATCHES, 1, DIMENSION)
    assert split.train.images.dtype == "float32" and split.train.labels.dtype == "int64"
    assert split.train.image_shape == (PATCHES, 1, DIMENSION) and split.train.class_count == 5
    assert np.bincount(split.train.labels).tolist() == [80] * 5
    assert [part.name for part in (split.train, split.test, split.single_view)] == [
        "multi_view/train",
        "multi_view/test",
        "multi_view/single_view",
    ]
    flat = split.features.reshape(-1, DIMENSION)
    np.testing.assert_allclose(flat @ flat.T, np.eye(2 * CLASSES), atol=1e-6)
    subset = split.train.subset(np.array([3, 5]))
    assert np.array_equal(subset.strengths, split.train.strengths[[3, 5]])
    assert np.array_equal(subset.shown, split.train.shown[[3, 5]])


def test_shares_of_single_view_samples(split):
    assert np.sum(split.train.shown >= 0) == 100 and np.sum(split.test.shown >= 0) == 25
    assert np.all(split.single_view.shown >= 0)
    ones = split.single_view.shown.sum()
    assert 25 < ones < 75  # of 100 fair coins


def test_strengths_are_within_their_bounds(split):
    for part in (split.train, split.single_view):
        rows = np.arange(len(part))
        own = part.strengths[rows, part.labels]
        multi = part.shown < 0
        assert np.all((own[multi] >= 1.0) & (own[multi] <= 1.5))
        single = rows[~multi]
        shown = part.shown[single]
        assert np.all(own[single, shown] >= 1.0)
        np.testing.assert_allclose(own[single, 1 - shown], 0.1)
        rest = part.strengths.copy()
        rest[rows, part.labels] = 0.0
        present = rest[rest > 0]
        assert present.min() >= 0.1 and present.max() <= 0.4
    # Eight features of other classes, each shown with probability 0.2; 400 samples.
    count = np.sum(split.train.strengths > 0) - 2 * 400
    assert abs(count - 400 * 8 * 0.2) < 5 * np.sqrt(400 * 8 * 0.2 * 0.8)


@pytest.mark.parametrize("each", [1, 2])
def test_images_are_what_the_strengths_say(each):
    """Without noise each feature's patches hold it alone, sum to its strength, and are `each`."""
    found = drawn(noise=0.0, feature_noise=0.0, patches_per_feature=each, single_view_share=0.5)
    coefficients = projected(found.train, found.features)
    np.testing.assert_allclose(coefficients.sum(axis=1), found.train.strengths, atol=1e-5)
    held = np.abs(coefficients) > 1e-7
    assert held.reshape(400, PATCHES, -1).sum(axis=-1).max() == 1
    assert np.all(held.sum(axis=1)[found.train.strengths > 0] <= each)
    counts = held.sum(axis=1)[found.train.strengths >= 0.2]
    assert np.mean(counts == each) > 0.95  # a share may be next to nothing


def test_no_more_features_than_there_are_patches():
    found = drawn(other_probability=1.0)
    assert set(np.sum(found.train.strengths > 0, axis=(1, 2))) == {PATCHES}


def test_noise_and_feature_noise():
    plain = drawn(noise=0.0, feature_noise=0.0)
    noisy = drawn(noise=0.3, feature_noise=0.0)
    difference = (noisy.train.images - plain.train.images).ravel()
    assert abs(difference.mean()) < 5 * 0.3 / np.sqrt(difference.size)
    assert abs(difference.std() - 0.3) < 5 * 0.3 / np.sqrt(2 * difference.size)
    mixed = projected(drawn(noise=0.0, feature_noise=0.2).train, plain.features)
    assert mixed.min() >= -1e-6 and 0.19 < mixed[mixed < 0.2].max()
    # Patches without a feature hold nothing but noise.
    empty = np.abs(mixed).sum(axis=(2, 3)) == 0
    expected = PATCHES - np.sum(plain.train.strengths > 0, axis=(1, 2))
    assert empty.sum() > 0 and abs(empty.sum() - expected.sum()) < 0.02 * expected.sum()


def test_functions_of_their_seed():
    one, again, other = drawn(train=20), drawn(train=20), drawn(train=20, seed=1)
    for part in ("train", "test", "single_view"):
        assert np.array_equal(getattr(one, part).images, getattr(again, part).images)
        assert not np.array_equal(getattr(one, part).images, getattr(other, part).images)
    assert np.array_equal(one.single_view.images, drawn(train=30).single_view.images)


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": 0},
        {"dimension": 9},
        {"classes": 1},
        {"patches": 1},
        {"single_view_share": 1.5},
        {"other_probability": -0.1},
        {"main": (2.0, 1.0)},
        {"noise": -1.0},
        {"seed": -1},
    ],
)
def test_wrong_multi_view(wrong):
    with pytest.raises(ValueError, match="Expected"):
        drawn(**wrong)


def linear(images):
    """A network in NumPy whose raw logits favour class 0 for nearly all images."""
    weights = np.random.default_rng(3).normal(size=(16, 4))
    return np.asarray(images, "float64").reshape(-1, 16) @ weights + np.array([50.0, 0, 0, 0])


def test_gaussian_images_have_the_network_s_centred_labels():
    split = gaussian_images(linear, train=2000, test=700, image_shape=(4, 4, 1), seed=2)
    images = split.train.images
    assert images.shape == (2000, 4, 4, 1) and images.dtype == "float32"
    assert abs(images.mean()) < 5 / np.sqrt(images.size)
    assert abs(images.std() - 1) < 5 / np.sqrt(2 * images.size)
    logits = linear(images)
    mean, deviation = logits.mean(axis=0), logits.std(axis=0)
    for part in (split.train, split.test):
        expected = ((linear(part.images) - mean) / deviation).argmax(axis=-1)
        assert np.array_equal(part.labels, expected) and part.labels.dtype == "int64"
        assert part.class_count == 4
        assert np.bincount(part.labels, minlength=4).min() > 0.1 * len(part)
    again = gaussian_images(linear, train=2000, test=10, image_shape=(4, 4, 1), seed=2)
    assert np.array_equal(again.train.images, images)


def test_a_keras_network_labels_for_inference():
    import keras

    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.9),
            keras.layers.Dense(3),
        ]
    )
    one, two = (gaussian_images(model, 600, 5, image_shape=(4, 4, 1)) for _ in range(2))
    assert np.array_equal(one.train.labels, two.train.labels)
    assert set(one.train.labels) == {0, 1, 2}


def test_gaussian_mixture_and_its_best_classifier():
    """The class of the nearest mean errs as often as theory says for two classes."""
    split = gaussian_mixture(4000, 4000, classes=2, image_shape=(3, 3, 1), distance=2.0, seed=1)
    train, test = (part.images.reshape(-1, 9) for part in (split.train, split.test))
    means = np.stack([train[split.train.labels == label].mean(axis=0) for label in (0, 1)])
    assert abs(np.linalg.norm(means[0] - means[1]) - 2.0) < 0.15
    distances = np.linalg.norm(test[:, np.newaxis] - means, axis=-1)
    accuracy = np.mean(distances.argmin(axis=-1) == split.test.labels)
    # The normal distribution function at distance / 2 = 1 is 0.8413.
    assert abs(accuracy - 0.8413) < 5 * np.sqrt(0.8413 * 0.1587 / 4000)
    assert np.bincount(split.train.labels).tolist() == [2000, 2000]


@pytest.mark.parametrize(
    "make",
    [
        lambda: gaussian_images(linear, 0, 1, image_shape=(4, 4, 1)),
        lambda: gaussian_images(linear, 9, 1, image_shape=(4, 4)),
        lambda: gaussian_images(lambda x: np.zeros((len(x), 3)), 9, 1, image_shape=(4, 4, 1)),
        lambda: gaussian_images(lambda x: np.zeros(len(x)), 9, 1, image_shape=(4, 4, 1)),
        lambda: gaussian_mixture(9, 9, classes=17, image_shape=(4, 4, 1)),
        lambda: gaussian_mixture(9, 9, distance=0.0),
        lambda: gaussian_mixture(9, 9, seed=-1),
    ],
)
def test_wrong_gaussian(make):
    with pytest.raises(ValueError, match="Expected"):
        make()
