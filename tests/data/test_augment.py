"""Augmentations: each image is changed by its own seed, whatever stands beside it."""

import numpy as np
import pytest
import tensorflow as tf

from keras_distill.data import crop_and_flip
from keras_distill.data import random_uniform


def make_seeds(count, word=12345):
    return tf.stack([tf.fill([count], word), tf.range(count)], axis=1)


def oracle(image, row, column, mirrored, padding, mode):
    sides = [(padding, padding), (padding, padding), (0, 0)]
    padded = np.pad(image, sides, mode=mode)
    height, width = image.shape[:2]
    crop = padded[row : row + height, column : column + width]
    return crop[:, ::-1] if mirrored else crop


def test_random_uniform_is_uniform_and_uncorrelated():
    count = 20000
    draws = random_uniform(make_seeds(count), 3).numpy()
    assert draws.min() >= 0 and draws.max() < 1
    for column in draws.T:
        observed = np.histogram(column, 20, (0, 1))[0]
        assert ((observed - 1000) ** 2 / 1000).sum() < 50.8  # 0.0001 of 19 degrees of freedom
    neighbours = np.concatenate([draws[:-1], draws[1:]], axis=1)
    other_epoch = random_uniform(make_seeds(count, 12346), 3).numpy()
    for matrix in (neighbours, np.concatenate([draws, other_epoch], axis=1)):
        correlation = np.corrcoef(matrix.T) - np.eye(6)
        assert np.abs(correlation).max() < 0.03  # 4 standard errors


def test_random_uniform_of_a_sample_depends_on_its_seed_alone():
    draws = random_uniform(make_seeds(10), 4).numpy()
    np.testing.assert_array_equal(random_uniform(make_seeds(10)[7:8], 4).numpy(), draws[7:8])
    np.testing.assert_array_equal(random_uniform(make_seeds(10), 2).numpy(), draws[:, :2])


@pytest.mark.parametrize("fill", ["zeros", "reflect"])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_crop_and_flip_equals_pad_crop_and_mirror(padding, fill):
    images = np.random.default_rng(0).uniform(size=(12, 6, 4, 3)).astype("float32")
    seeds = make_seeds(12)
    result = crop_and_flip(padding, fill=fill)(tf.constant(images), seeds).numpy()
    draws = random_uniform(seeds, 3).numpy()
    mode = {"zeros": "constant", "reflect": "reflect"}[fill]
    for image, found, (row, column, mirror) in zip(images, result, draws):
        span = 2 * padding + 1
        expected = oracle(image, int(row * span), int(column * span), mirror < 0.5, padding, mode)
        np.testing.assert_array_equal(found, expected)


def test_every_shift_and_both_sides_occur():
    image = np.zeros((1, 3, 3, 1), "float32")
    image[0, 1, 0, 0] = 1
    images = tf.constant(np.repeat(image, 400, axis=0))
    result = crop_and_flip(1)(images, make_seeds(400)).numpy()
    assert set(np.unique(result)) <= {0.0, 1.0}
    seen = {tuple(np.argwhere(one[..., 0])[0]) if one.any() else None for one in result}
    # Column 0 moves to 0 or 1 or out; mirrored to 2 or 1 or out.
    assert seen == {None} | {(row, column) for row in range(3) for column in range(3)}


def test_without_flip_nothing_is_mirrored():
    images = tf.constant(np.random.default_rng(0).uniform(size=(30, 4, 4, 1)).astype("float32"))
    np.testing.assert_array_equal(crop_and_flip(0, flip=False)(images, make_seeds(30)), images)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"padding": -1}, "`padding` to be a whole number, 0 or more.*padding=-1"),
        ({"padding": 1.5}, "padding=1.5"),
        ({"fill": "wrap"}, "`fill` to be one of 'zeros', 'reflect'"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        crop_and_flip(**arguments)
