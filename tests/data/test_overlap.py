"""Overlapping halves: composition, appearances, seams, weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import data
from keras_distill.data.overlap import overlap_epoch

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 6, 6, 1), dtype="uint8")
LABELS = np.arange(11) % 4
SOURCES = {
    "arrays": lambda: (IMAGES, LABELS),
    "samples": lambda: tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)),
}


@pytest.fixture(params=SOURCES.values(), ids=SOURCES.keys())
def source(request):
    return request.param()


def read(source, size=3, augment=None, **options):
    options = {"seed": 5, "epochs": 2, "ids": True, **options}
    return list(data.overlap_batches(source, size, augment, **options).as_numpy_iterator())


def ids(elements, half):
    return [y[half]["ids"] for _, y, _ in elements]


@pytest.mark.parametrize("carry", [True, False])
def test_composition(source, carry):
    dataset = data.overlap_batches(source, 3, carry=carry, seed=5, epochs=2, ids=True)
    elements = list(dataset.as_numpy_iterator())
    assert int(dataset.cardinality()) == len(elements) == 6
    assert dataset.element_spec[0][0].shape == (3, 6, 6, 1)
    new, last = ids(elements, 1), ids(elements, 0)
    absent = [0] if carry else [0, 3]
    for t, (x, y, w) in enumerate(elements):
        np.testing.assert_array_equal(last[t], new[t] if t in absent else new[t - 1])
        np.testing.assert_array_equal(w[0], np.full(3, float(t not in absent)))
        np.testing.assert_array_equal(w[1], np.ones(3))
        for half in (0, 1):
            np.testing.assert_allclose(x[half], IMAGES[y[half]["ids"]] / 255.0, rtol=1e-6)
            np.testing.assert_array_equal(y[half]["labels"], LABELS[y[half]["ids"]])
    for epoch in np.split(np.array(new), 2):
        assert len(set(epoch.ravel())) == 9  # Each sample once, but for the remainder.
    assert not np.array_equal(new[:3], new[3:])


def test_all_ids_are_new_once_an_epoch_where_halves_divide_them(source):
    new = np.array(ids(read(source, 11), 1))
    for epoch in new:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(11))


def test_appearances_are_augmented_independently_and_repeatably(source):
    augment = data.crop_and_flip(2)
    first, again = read(source, augment=augment), read(source, augment=augment)
    for one, other in zip(first, again):
        keras.tree.map_structure(np.testing.assert_array_equal, one, other)
    for t in range(1, 6):
        assert not np.array_equal(first[t][0][0], first[t - 1][0][1])
    np.testing.assert_array_equal(first[0][0][0], first[0][0][1])  # Absent: a copy.


def test_new_halves_are_those_of_batches():
    options = {"augment": data.crop_and_flip(2), "seed": 5, "epochs": 2}
    plain = data.batches(IMAGES, LABELS, 3, drop_remainder=True, **options)
    ours = data.overlap_batches((IMAGES, LABELS), 3, **options)
    for (x, y), (x_ours, y_ours, _) in zip(plain, ours):
        np.testing.assert_array_equal(x, x_ours[1])
        np.testing.assert_array_equal(y, y_ours[1])


@pytest.mark.slow
@pytest.mark.parametrize("carry", [True, False])
def test_a_resumed_stream_differs_by_the_carried_half_alone(source, carry):
    options = {"augment": data.crop_and_flip(2), "carry": carry, "epochs": 3}
    whole, resumed = read(source, **options)[3:], read(source, start_epoch=1, **options)
    assert len(whole) == len(resumed) == 6
    for t, (one, other) in enumerate(zip(whole, resumed)):
        halves = (1,) if carry and t == 0 else (0, 1)
        for half in halves:
            for part, other_part in zip(one, other):
                keras.tree.map_structure(
                    np.testing.assert_array_equal, part[half], other_part[half]
                )
    assert resumed[0][2][0].sum() == 0


def test_weights_and_class_weight():
    weights = np.arange(11, dtype="float64") + 1
    elements = read((IMAGES, LABELS, weights), class_weight={0: 0.0, 1: 3.0})
    table = np.array([0.0, 3.0, 1.0, 1.0])
    for t, (_, y, w) in enumerate(elements):
        for half in (0, 1):
            expected = weights[y[half]["ids"]] * table[y[half]["labels"]] * (t + half > 0)
            np.testing.assert_allclose(w[half], expected)


@pytest.mark.slow
@pytest.mark.parametrize("mix", [keras.layers.CutMix(), keras.layers.MixUp(0.8)])
def test_the_mixing_of_a_half_is_reused(source, mix):
    first = read(source, mix=mix, class_count=4)
    for t in range(1, 6):
        np.testing.assert_array_equal(first[t][0][0], first[t - 1][0][1])
        np.testing.assert_array_equal(first[t][1][0]["labels"], first[t - 1][1][1]["labels"])
    labels = np.concatenate([y[1]["labels"] for _, y, _ in first])
    np.testing.assert_allclose(labels.sum(axis=-1), 1.0, rtol=1e-6)
    assert ((labels > 0).sum(axis=-1) > 1).any()
    for one, other in zip(first, read(source, mix=mix, class_count=4)):
        keras.tree.map_structure(np.testing.assert_array_equal, one, other)


def test_random_erasing_is_independent(source):
    cutout = keras.layers.RandomErasing((1.0, 1.0), scale=(0.3, 0.3), value_range=(0, 1))
    elements = read(source, augment=cutout)
    assert all(not np.array_equal(elements[t][0][0], elements[t - 1][0][1]) for t in range(1, 6))


def test_samples_are_read_once_an_epoch():
    count = tf.Variable(0)

    def counted(x, y):
        count.assign_add(1)
        return x, y

    samples = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).map(counted)
    read(samples)
    assert int(count) <= 22


def test_the_epochs_of_fit_are_the_stream():
    now = [0, True]
    dataset = overlap_epoch((IMAGES, LABELS), 3, lambda: now, seed=5)
    elements = []
    for epoch in range(2):
        now[:] = epoch, epoch == 0
        elements += list(dataset.as_numpy_iterator())
    stream = data.overlap_batches((IMAGES, LABELS), 3, seed=5, epochs=2).as_numpy_iterator()
    for (x, y, w), (x_stream, y_stream, w_stream) in zip(elements, stream, strict=True):
        for half in (0, 1):
            np.testing.assert_allclose(x[half] / 255.0, x_stream[half], rtol=1e-6)
            np.testing.assert_array_equal(y[half], y_stream[half])
            np.testing.assert_array_equal(w[half], w_stream[half])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"half_batch_size": 12}, "at most the 11 samples"),
        ({"half_batch_size": 0}, "positive whole number"),
        ({"seed": 0.5}, "`seed` to be a whole number"),
        ({"start_epoch": 3}, "from 0 to epochs=1"),
        ({"mix": keras.layers.CutMix()}, "`class_count`"),
        ({"augment": keras.layers.CutMix()}, "change each image alone"),
        ({"augment": keras.layers.AugMix()}, "layers made of others|Layers made of others"),
        ({"class_weight": {0: -1.0}}, "class_weight"),
        ({"dataset": (IMAGES, LABELS[:3])}, "arrays of one length"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    arguments = {"dataset": (IMAGES, LABELS), "half_batch_size": 3, **arguments}
    with pytest.raises((TypeError, ValueError), match=text):
        data.overlap_batches(**arguments)
