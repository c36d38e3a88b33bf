"""Two views of each image, each a function of (seed, epoch, sample, view)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill.data import Targets
from keras_distill.data import batches
from keras_distill.data import crop_and_flip
from keras_distill.data import label_noise
from keras_distill.data import two_views
from keras_distill.data import with_ids

COUNT = 23
IMAGES = np.arange(COUNT * 5 * 5, dtype="uint32").reshape(COUNT, 5, 5, 1).astype("uint8")
LABELS = np.arange(COUNT) % 4
SAMPLES = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))


def seeds_as_images(x, seeds):
    return tf.cast(seeds, tf.float64)[:, tf.newaxis, tf.newaxis]


def read(images=IMAGES, labels=LABELS, batch_size=5, augment=None, **arguments):
    augment = augment or crop_and_flip(1)
    arguments = {"epochs": 3, "ids": True, **arguments}
    dataset = two_views(images, labels, batch_size, augment, **arguments)
    return [
        (x.numpy(), other.numpy(), y["labels"].numpy(), y["ids"].numpy())
        for (x, other), y in dataset
    ]


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        for part_a, part_b in zip(a, b):
            np.testing.assert_array_equal(part_a, part_b)


def by_sample(elements, steps=5):
    """Maps (epoch, id) to the two views and the label."""
    return {
        (i // steps, int(index)): (one.tobytes(), other.tobytes(), label)
        for i, (x, x_other, labels, ids) in enumerate(elements)
        for one, other, label, index in zip(x, x_other, labels, ids)
    }


def test_the_first_view_is_that_of_plain_batches_and_the_other_is_another():
    options = {"epochs": 3, "seed": 5, "ids": True}
    views = two_views(IMAGES, LABELS, 5, crop_and_flip(2), **options)
    plain = batches(IMAGES, LABELS, 5, augment=crop_and_flip(2), **options)
    assert int(views.cardinality()) == int(plain.cardinality()) == 15
    differ = 0
    for ((x, other), y), (x_plain, y_plain) in zip(views, plain):
        np.testing.assert_array_equal(x, x_plain)
        np.testing.assert_array_equal(y["ids"], y_plain["ids"])
        np.testing.assert_array_equal(y["labels"], LABELS[y["ids"]])
        differ += np.sum(np.any(x != other, axis=(1, 2, 3)))
    assert differ > 0.9 * 3 * COUNT


def test_the_draws_of_both_views_differ_from_each_other_and_by_epoch_and_sample():
    first, other = set(), set()
    for x, x_other, *_ in read(augment=seeds_as_images):
        first |= {tuple(seed) for seed in x.reshape(-1, 2)}
        other |= {tuple(seed) for seed in x_other.reshape(-1, 2)}
    assert len(first) == len(other) == 3 * COUNT
    assert not first & other


def test_the_views_depend_on_seed_epoch_and_sample_alone():
    base = by_sample(read(seed=1))
    assert by_sample(read(seed=1, batch_size=7, shuffle=False), steps=4) == base
    assert by_sample(read(SAMPLES, None, seed=1)) == base
    other = by_sample(read(seed=2))
    assert np.mean([other[key] == value for key, value in base.items()]) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("source", [(IMAGES, LABELS), (SAMPLES, None)], ids=["arrays", "data set"])
@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_resumed_run_sees_what_an_undisturbed_one_sees(source, start):
    undisturbed = read(*source, seed=11)
    assert_equal(read(*source, seed=11, start_epoch=start), undisturbed[start * 5 :])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_order_of_a_data_set_does_not_depend_on_the_global_seed(seed):
    tf.random.set_seed(99)
    expected = read(SAMPLES, None)
    tf.random.set_seed(seed)
    assert_equal(read(SAMPLES, None), expected)
    orders = {np.concatenate([ids for *_, ids in expected[i : i + 5]]).tobytes() for i in (0, 5)}
    assert len(orders) == 2
    draws = []
    for _ in range(2):  # and leaves the global seed alone
        tf.random.set_seed(7)
        read(SAMPLES, None, epochs=1)
        draws.append(float(tf.random.uniform(())))
    tf.random.set_seed(7)
    assert draws == [float(tf.random.uniform(()))] * 2


@pytest.mark.parametrize("shuffle", [True, False, 4])
def test_an_epoch_of_a_data_set_holds_every_sample_once(shuffle):
    elements = read(SAMPLES, None, shuffle=shuffle)
    for i in range(0, 15, 5):
        ids = np.concatenate([ids for *_, ids in elements[i : i + 5]])
        np.testing.assert_array_equal(np.sort(ids), np.arange(COUNT))
        if shuffle is False:
            np.testing.assert_array_equal(ids, np.arange(COUNT))
        if shuffle == 4:
            assert np.all(ids < np.arange(COUNT) + 4)  # none comes before it was read
            assert not np.array_equal(ids, np.arange(COUNT))


def test_elements_of_a_data_set_keep_weights_and_targets():
    weights = np.linspace(0, 1, COUNT).astype("float32")
    samples = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS, weights))
    noisy = label_noise(samples, 0.5, class_count=4)
    dataset = two_views(noisy, None, 5, crop_and_flip(1), ids=True, class_weight={1: 3.0})
    for _, y, weight in dataset:
        ids = y["ids"].numpy()
        np.testing.assert_array_equal(y["true_labels"], LABELS[ids])
        factor = np.where(y["labels"].numpy() == 1, 3.0, 1.0)
        np.testing.assert_allclose(weight, weights[ids] * factor, rtol=1e-6)
    plain = next(iter(two_views(with_ids(samples), None, 5, crop_and_flip(1))))
    assert type(plain[1]) is Targets
    assert len(plain) == 3


def test_class_weights_of_arrays_become_sample_weights():
    weights = {0: 2.0, 2: 0.5}
    dataset = two_views(IMAGES, LABELS, 5, crop_and_flip(1), class_weight=weights, ids=True)
    for _, y, weight in dataset:
        expected = [weights.get(label, 1.0) for label in LABELS[y["ids"].numpy()]]
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("source", [(IMAGES, LABELS), (SAMPLES, None)], ids=["arrays", "data set"])
def test_cardinality_static_shapes_and_dtypes(source):
    dataset = two_views(*source, 5, crop_and_flip(1), epochs=2, drop_remainder=True)
    (x, other), y = dataset.element_spec
    assert x.shape == other.shape == (5, 5, 5, 1)
    assert x.dtype == other.dtype == tf.float32
    assert isinstance(y, tf.TensorSpec)
    assert int(dataset.cardinality()) == len(list(dataset)) == 8
    (x, other), _ = next(iter(dataset))
    assert 0.5 < max(float(tf.reduce_max(x)), float(tf.reduce_max(other))) <= 1.0
    rest = two_views(*source, 5, crop_and_flip(1), epochs=2, start_epoch=2)
    assert int(rest.cardinality()) == len(list(rest)) == 0


def test_fit_counts_its_steps():
    inputs = [keras.Input((5, 5, 1)), keras.Input((5, 5, 1))]
    flat = [keras.layers.Flatten()(x) for x in inputs]
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Concatenate()(flat)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = two_views(SAMPLES, None, 5, crop_and_flip(1), epochs=4, start_epoch=1)
    model.fit(data, epochs=4, initial_epoch=1, steps_per_epoch=5, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 15


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"labels": LABELS[:3]}, "`labels` to have 23 entries"),
        ({"augment": None}, "`augment` to be a function.*differ by it alone"),
        ({"augment": "flip"}, "`augment` to be None or a function"),
        ({"batch_size": 24, "drop_remainder": True}, "at most the 23 samples"),
        ({"start_epoch": 2}, "from 0 to epochs=1"),
        ({"shuffle": 4}, "`shuffle` to be True or False"),
        ({"class_weight": [1.0]}, "`class_weight` to be None or a dict"),
        ({"images": SAMPLES}, "no `labels` beside a data set"),
        ({"images": SAMPLES, "labels": None, "shuffle": -1}, "`shuffle` to be a positive whole"),
        (
            {"images": SAMPLES, "labels": None, "batch_size": 24, "drop_remainder": True},
            "at most the 23 samples",
        ),
        ({"images": SAMPLES.repeat(), "labels": None}, "known number of samples.*two_views"),
        ({"images": SAMPLES.batch(2), "labels": None}, "single samples"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    everything = {"images": IMAGES, "labels": LABELS, "batch_size": 5, **arguments}
    everything = {"augment": crop_and_flip(1), **everything}
    positional = [everything.pop(name) for name in ("images", "labels", "batch_size", "augment")]
    with pytest.raises((ValueError, TypeError), match=text):
        two_views(*positional, **everything)
