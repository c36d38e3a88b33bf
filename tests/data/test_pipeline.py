"""What all pipelines of `kd.data` share."""

import numpy as np
import pytest

import keras_distill as kd

IMAGES = np.zeros((24, 8, 8, 1), "uint8")
LABELS = np.arange(24) % 3

PIPELINES = {
    "batches": lambda: kd.data.batches(IMAGES, LABELS, 4),
    "overlap_batches": lambda: kd.data.overlap_batches((IMAGES, LABELS), 4),
    "class_pairs": lambda: kd.data.class_pairs(IMAGES, LABELS, 4),
    "two_views": lambda: kd.data.two_views(
        IMAGES, LABELS, 4, augment=kd.data.crop_and_flip(1, flip=False)
    ),
    "balanced_batches": lambda: kd.data.balanced_batches(IMAGES, LABELS, 6, 2),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_an_epoch_does_not_wait_for_the_tuner(name):
    """tf.data's tuner sleeps up to a minute, and the end of an epoch often waits for it."""
    dataset = PIPELINES[name]()
    assert dataset.options().autotune.enabled is False
    # What is built upon it ends as early.
    assert dataset.map(lambda *element: element).options().autotune.enabled is False


def test_the_tuner_of_other_pipelines_is_left_alone():
    import tensorflow as tf

    kd.data.batches(IMAGES, LABELS, 4)
    assert tf.data.Dataset.range(3).options().autotune.enabled is None
