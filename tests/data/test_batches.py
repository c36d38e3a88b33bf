"""The order is a function of (seed, epoch), the augmentation of (seed, epoch, sample)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill.data import Targets
from keras_distill.data import batches
from keras_distill.data import crop_and_flip
from keras_distill.data import steps_per_epoch

COUNT = 23
IMAGES = np.arange(COUNT * 5 * 5, dtype="uint32").reshape(COUNT, 5, 5, 1).astype("uint8")
LABELS = np.arange(COUNT) % 4
ALL = {"batch_size": 5, "epochs": 4, "ids": True}


def read(**arguments):
    return [
        (x.numpy(), y["ids"].numpy(), y["labels"].numpy())
        for x, y in batches(IMAGES, LABELS, **{**ALL, **arguments})
    ]


def ids_by_epoch(elements, steps):
    return [
        np.concatenate([ids for _, ids, _ in elements[i : i + steps]])
        for i in range(0, len(elements), steps)
    ]


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        for part_a, part_b in zip(a, b):
            np.testing.assert_array_equal(part_a, part_b)


@pytest.mark.parametrize("mix", [keras.layers.MixUp(1.0), keras.layers.CutMix(1.0)])
def test_mixed_batches_can_be_repeated_and_hold_their_own_samples(mix):
    mixed = {"mix": mix, "class_count": 4, "augment": crop_and_flip(1)}
    one, two, plain = read(**mixed), read(**mixed), read(augment=crop_and_flip(1))
    assert_equal(one, two)
    assert_equal(one[5:], read(start_epoch=1, **mixed))
    for (x, ids, labels), (own, own_ids, own_labels) in zip(one, plain):
        np.testing.assert_array_equal(ids, own_ids)
        assert labels.shape == (len(ids), 4)
        np.testing.assert_allclose(labels.sum(axis=1), 1.0, rtol=1e-5)
        # What is mixed is a permutation: each sample's own share, and its partner's.
        one_hot = np.eye(4)[own_labels]
        assert ((labels > 0) <= (one_hot.sum(axis=0) > 0)).all()
        assert x.min() >= own.min() - 1e-6 and x.max() <= own.max() + 1e-6
    with pytest.raises(ValueError, match="class_count"):
        batches(IMAGES, LABELS, 5, mix=mix)
    with pytest.raises(TypeError, match="mix"):
        batches(IMAGES, LABELS, 5, mix=keras.layers.RandomFlip(), class_count=4)


def test_an_epoch_holds_every_sample_once_and_batches_do_not_cross_it():
    elements = read()
    assert [len(ids) for _, ids, _ in elements] == [5, 5, 5, 5, 3] * 4
    for ids in ids_by_epoch(elements, 5):
        np.testing.assert_array_equal(np.sort(ids), np.arange(COUNT))


def test_images_labels_and_ids_belong_together():
    for x, ids, labels in read():
        np.testing.assert_array_equal(labels, LABELS[ids])
        np.testing.assert_allclose(x, IMAGES[ids] / 255.0, rtol=1e-6)
        assert x.dtype == np.float32


def test_epochs_and_seeds_differ_and_the_same_seed_repeats():
    orders = ids_by_epoch(read(seed=3), 5)
    assert len({order.tobytes() for order in orders}) == 4
    assert_equal(read(seed=3), read(seed=3))
    other = ids_by_epoch(read(seed=4), 5)
    assert all(not np.array_equal(a, b) for a, b in zip(orders, other))


def test_shuffling_is_uniform():
    # 600 epochs: each sample stands first about 100 times of 600, and no order is preferred.
    orders = [y["ids"].numpy() for _, y in batches(IMAGES[:6], LABELS[:6], 6, epochs=600, ids=True)]
    counts = np.array([np.bincount(column, minlength=6) for column in np.array(orders).T])
    chi_squared = ((counts - 100) ** 2 / 100).sum(axis=1)
    assert chi_squared.max() < 25.7  # 0.0001 of 5 degrees of freedom
    assert len({order.tobytes() for order in orders}) > 350  # of 720 orders


def test_without_shuffle_the_order_is_that_of_the_arrays():
    for ids in ids_by_epoch(read(shuffle=False), 5):
        np.testing.assert_array_equal(ids, np.arange(COUNT))


@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_resumed_run_sees_what_an_undisturbed_one_sees(start, drop_remainder):
    arguments = {"augment": crop_and_flip(1), "seed": 11, "drop_remainder": drop_remainder}
    steps = steps_per_epoch(COUNT, 5, drop_remainder)
    undisturbed = read(**arguments)
    assert_equal(read(start_epoch=start, **arguments), undisturbed[start * steps :])


def test_nothing_is_left_after_the_last_epoch():
    dataset = batches(IMAGES, LABELS, 5, epochs=4, start_epoch=4)
    assert int(dataset.cardinality()) == 0
    assert list(dataset) == []


@pytest.mark.parametrize(
    ("arguments", "cardinality"),
    [
        ({}, 5),
        ({"epochs": 4}, 20),
        ({"epochs": 4, "start_epoch": 3}, 5),
        ({"epochs": 3, "drop_remainder": True}, 12),
    ],
)
def test_cardinality_is_known_and_true(arguments, cardinality):
    dataset = batches(IMAGES, LABELS, 5, **arguments)
    assert int(dataset.cardinality()) == cardinality
    assert len(list(dataset)) == cardinality


def test_drop_remainder_gives_full_batches_of_static_size():
    dataset = batches(IMAGES, LABELS, 5, epochs=2, drop_remainder=True)
    assert dataset.element_spec[0].shape == (5, 5, 5, 1)
    assert {len(x) for x, _ in dataset} == {5}


def test_plain_labels_without_ids_and_targets_with():
    x, y = next(iter(batches(IMAGES, LABELS, 5)))
    assert isinstance(y, tf.Tensor)
    assert type(next(iter(batches(IMAGES, LABELS, 5, ids=True)))[1]) is Targets
    assert x.shape == (5, 5, 5, 1)


def test_float_images_are_not_scaled_and_labels_may_be_vectors():
    images = np.full((6, 3), 7.0, "float64")
    labels = np.eye(6, dtype="float32")
    x, y = next(iter(batches(images, labels, 4, shuffle=False)))
    assert x.dtype == tf.float32
    np.testing.assert_array_equal(x, images[:4])
    np.testing.assert_array_equal(y, labels[:4])


def test_augmentation_depends_on_seed_epoch_and_sample_alone():
    def seeds_of(images, labels, size, **arguments):
        """Maps (epoch, id) to the seed that the sample's augmentation gets."""
        taken = {}
        dataset = batches(
            images,
            labels,
            size,
            ids=True,
            augment=lambda x, seeds: tf.cast(seeds, tf.float64)[:, tf.newaxis, tf.newaxis],
            epochs=2,
            **arguments,
        )
        steps = steps_per_epoch(len(images), size)
        for i, (x, y) in enumerate(dataset):
            for seed, sample in zip(x.numpy().reshape(-1, 2), y["ids"].numpy()):
                taken[i // steps, int(sample)] = tuple(seed)
        return taken

    base = seeds_of(IMAGES, LABELS, 5, seed=1)
    assert len(set(base.values())) == 2 * COUNT  # epochs and samples differ
    assert seeds_of(IMAGES, LABELS, 7, seed=1, shuffle=False) == base  # order and batch do not
    other = seeds_of(IMAGES, LABELS, 5, seed=2)
    assert not set(other.values()) & set(base.values())


def test_fit_counts_its_steps_and_takes_each_epoch_once():
    class Recorder(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.steps = []

        def on_train_batch_end(self, batch, logs=None):
            self.steps.append(batch)

    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    recorder = Recorder()
    model.fit(
        batches(IMAGES, LABELS, 5, epochs=4, start_epoch=1),
        epochs=4,
        initial_epoch=1,
        steps_per_epoch=5,
        shuffle=False,
        verbose=0,
        callbacks=[recorder],
    )
    assert recorder.steps == list(range(5)) * 3
    assert int(model.optimizer.iterations) == 15


def test_resumed_weights_equal_undisturbed_ones():
    def train(*ranges):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        for start, end in ranges:
            data = batches(
                IMAGES, LABELS, 5, epochs=end, start_epoch=start, augment=crop_and_flip(1)
            )
            model.fit(
                data, epochs=end, initial_epoch=start, steps_per_epoch=5, shuffle=False, verbose=0
            )
        return model.get_weights()

    for whole, parts in zip(train((0, 4)), train((0, 2), (2, 4))):
        np.testing.assert_allclose(parts, whole, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"non-empty array.*\(0, 5, 5, 1\)"),
        ({"labels": LABELS[:3]}, r"`labels` to have 23 entries.*\(3,\)"),
        ({"labels": np.array(["a"] * COUNT)}, "`labels` to be numbers"),
        ({"batch_size": 0}, "`batch_size` to be a positive whole number"),
        ({"batch_size": 24, "drop_remainder": True}, "at most the 23 samples.*batch_size=24"),
        ({"epochs": 0}, "`epochs` to be a positive whole number"),
        ({"start_epoch": 5}, "from 0 to epochs=4.*start_epoch=5"),
        ({"start_epoch": -1}, "start_epoch=-1"),
        ({"augment": "flip"}, "`augment` to be None or a function"),
        ({"seed": 0.5}, "`seed` to be a whole number"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    everything = {"images": IMAGES, "labels": LABELS, "batch_size": 5, "epochs": 4, **arguments}
    with pytest.raises(ValueError, match=text):
        batches(everything.pop("images"), everything.pop("labels"), **everything)


def test_steps_per_epoch():
    assert steps_per_epoch(10, 5) == 2
    assert steps_per_epoch(11, 5) == 3
    assert steps_per_epoch(11, 5, drop_remainder=True) == 2
