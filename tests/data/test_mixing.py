"""Keras's image layers with seeds that a run repeats."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import data

IMAGES = np.random.default_rng(0).random((8, 6, 6, 3)).astype("float32")


def apply(augment, seed):
    seeds = tf.constant([[seed, i] for i in range(8)], tf.int32)
    dataset = tf.data.Dataset.from_tensors((IMAGES, seeds)).map(augment)
    return next(iter(dataset)).numpy()


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.RandomErasing(1.0, value_range=(0, 1)),
        keras.layers.RandomTranslation(0.3, 0.3),
        keras.layers.RandomFlip(),
    ],
    ids=lambda layer: layer.name,
)
def test_draws_are_a_function_of_the_seed(layer):
    augment = data.keras_augment(layer)
    first = apply(augment, 1)
    np.testing.assert_array_equal(first, apply(augment, 1))
    assert not np.array_equal(first, apply(augment, 2))
    assert not np.array_equal(first, IMAGES)


def test_every_image_is_erased_where_keras_is_told_both_bounds():
    """Of one number as `factor` Keras draws the probability: `RandomErasing(1.0)` leaves half."""
    shared = {"scale": (0.3, 0.3), "fill_value": 0.0, "value_range": (0, 1)}
    always, sometimes = (
        data.keras_augment(keras.layers.RandomErasing(factor, **shared))
        for factor in ((1.0, 1.0), 1.0)
    )
    erased = [np.any(apply(always, seed) != IMAGES, axis=(1, 2, 3)) for seed in range(8)]
    assert np.all(erased)
    found = apply(always, 0)
    assert np.all(found[found != IMAGES] == 0.0)
    some = [np.any(apply(sometimes, seed) != IMAGES, axis=(1, 2, 3)) for seed in range(8)]
    assert 0.25 < np.mean(some) < 0.75


def test_layers_and_functions_are_applied_in_turn():
    layer = keras.layers.RandomFlip()
    both = data.keras_augment(lambda images, seeds: images + 1.0, layer)
    one = data.keras_augment(lambda images, seeds: images, layer)
    np.testing.assert_allclose(apply(both, 1), apply(one, 1) + 1.0, rtol=1e-6)


def test_two_layers_of_one_kind_draw_differently():
    once = data.keras_augment(keras.layers.RandomFlip("horizontal"))
    twice = data.keras_augment(*(keras.layers.RandomFlip("horizontal") for _ in range(2)))
    assert not np.array_equal(apply(twice, 1), IMAGES)
    assert not np.array_equal(apply(twice, 1), apply(once, 1))
