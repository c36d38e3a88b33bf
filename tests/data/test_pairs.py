"""Each anchor's partner is of its class; all is a function of (seed, epoch, sample)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill.data import Targets
from keras_distill.data import batches
from keras_distill.data import class_pairs
from keras_distill.data import crop_and_flip
from keras_distill.data import steps_per_epoch

COUNT = 23
IMAGES = np.arange(COUNT * 5 * 5, dtype="uint32").reshape(COUNT, 5, 5, 1).astype("uint8")
LABELS = np.arange(COUNT) % 4
NUMBERED = np.arange(COUNT, dtype="float32").reshape(COUNT, 1)  # images that tell their index


def read(images=IMAGES, labels=LABELS, batch_size=5, **arguments):
    dataset = class_pairs(images, labels, batch_size, **{"epochs": 3, "ids": True, **arguments})
    return [
        (x.numpy(), pair.numpy(), y["labels"].numpy(), y["ids"].numpy(), y["pair_ids"].numpy())
        for (x, pair), y in dataset
    ]


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        for part_a, part_b in zip(a, b):
            np.testing.assert_array_equal(part_a, part_b)


def test_partners_are_of_the_anchors_class():
    partners = set()
    for x, pair, labels, ids, pair_ids in read(NUMBERED):
        np.testing.assert_array_equal(x[:, 0], ids)
        np.testing.assert_array_equal(pair[:, 0], pair_ids)
        np.testing.assert_array_equal(labels, LABELS[ids])
        np.testing.assert_array_equal(LABELS[pair_ids], labels)
        partners |= set(zip(ids, pair_ids))
    assert len(partners) > 3 * COUNT * 0.7  # another partner each epoch


def test_anchors_are_those_of_plain_batches():
    options = {"epochs": 3, "seed": 5, "augment": crop_and_flip(1), "ids": True}
    pairs = class_pairs(IMAGES, LABELS, 5, **options)
    plain = batches(IMAGES, LABELS, 5, **options)
    assert int(pairs.cardinality()) == int(plain.cardinality()) == 15
    for ((x, _), y), (x_plain, y_plain) in zip(pairs, plain):
        np.testing.assert_array_equal(x, x_plain)
        np.testing.assert_array_equal(y["ids"], y_plain["ids"])


def test_partners_are_uniform_in_their_class_the_anchor_included():
    # 400 epochs, classes of 5, 3 and 2: expected counts 80, 133 and 200 for each pair.
    labels = np.array([7, 3, 7, 3, 7, 9, 3, 7, 9, 7])
    counts = np.zeros((10, 10))
    for _, _, _, ids, pair_ids in read(NUMBERED[:10], labels, 10, epochs=400):
        counts[ids, pair_ids] += 1
    same = labels[:, None] == labels
    assert counts[~same].sum() == 0
    expected = 400 / same.sum(axis=1, keepdims=True)
    chi_squared = np.where(same, (counts - expected) ** 2 / expected, 0).sum(axis=1)
    assert chi_squared.max() < 27.9  # 1e-5 of four degrees of freedom
    assert (counts[same] > 0).all()


def test_exclude_self_is_uniform_among_the_others():
    labels = np.array([0, 0, 0, 0, 1, 1])
    counts = np.zeros((6, 6))
    for _, _, _, ids, pair_ids in read(NUMBERED[:6], labels, 6, epochs=300, exclude_self=True):
        counts[ids, pair_ids] += 1
    assert np.diag(counts).sum() == 0
    np.testing.assert_array_equal(counts[4:, 4:], [[0, 300], [300, 0]])
    others = counts[:4, :4][~np.eye(4, dtype=bool)].reshape(4, 3)
    assert ((others - 100) ** 2 / 100).sum(axis=1).max() < 23.1  # 1e-5 of two degrees of freedom


def test_partners_of_an_epoch_are_drawn_independently():
    # Two anchors of one class agree in a fifth of 300 epochs, as independent draws do.
    labels = np.zeros(5, int)
    drawn = np.zeros((300, 5), int)
    for i, (_, _, _, ids, pair_ids) in enumerate(read(NUMBERED[:5], labels, 5, epochs=300)):
        drawn[i, ids] = pair_ids
    for first in range(5):
        for second in range(first):
            agreements = np.sum(drawn[:, first] == drawn[:, second])
            assert abs(agreements - 60) < 5 * np.sqrt(300 * 0.2 * 0.8)


@pytest.mark.parametrize("exclude_self", [False, True])
def test_a_class_with_one_image_pairs_with_itself_and_is_named_once(exclude_self):
    labels = np.array([0, 0, 0, 4, 0, 6])
    with pytest.warns(UserWarning, match=r"one image.*: 4, 6 \(2 of 3\)") as record:
        elements = read(NUMBERED[:6], labels, 6, exclude_self=exclude_self)
    assert len(record) == 1
    for _, _, _, ids, pair_ids in elements:
        np.testing.assert_array_equal(pair_ids[ids == 3], 3)
        np.testing.assert_array_equal(pair_ids[ids == 5], 5)


def test_unlabelled_samples_pair_with_themselves():
    labels = np.array([0, -1, 0, -1, 1, 1])
    for _, _, _, ids, pair_ids in read(NUMBERED[:6], labels, 4, exclude_self=True):
        alone = labels[ids] == -1
        np.testing.assert_array_equal(pair_ids[alone], ids[alone])
        assert np.all(pair_ids[~alone] != ids[~alone])


def test_labels_as_columns_and_one_hot_give_the_same_pairs():
    for labels in (LABELS[:, None], np.eye(4)[LABELS], LABELS.astype("float32")):
        for one, other in zip(read(labels=labels), read()):
            np.testing.assert_array_equal(one[4], other[4])
            assert one[2].shape == (len(one[3]), *labels.shape[1:])


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_resumed_run_sees_what_an_undisturbed_one_sees(start):
    arguments = {"augment": crop_and_flip(1), "seed": 11}
    undisturbed = read(**arguments)
    assert_equal(read(start_epoch=start, **arguments), undisturbed[start * 5 :])


def test_seeds_differ_and_batch_size_and_order_do_not_matter():
    def partners(**arguments):
        found = {}
        size = arguments.get("batch_size", 5)
        for i, (_, pair, _, ids, pair_ids) in enumerate(read(**arguments)):
            for index, image, partner in zip(ids, pair, pair_ids):
                found[i // steps_per_epoch(COUNT, size), int(index)] = (partner, image.tobytes())
        return found

    base = partners(seed=1, augment=crop_and_flip(1))
    assert partners(seed=1, augment=crop_and_flip(1), batch_size=7, shuffle=False) == base
    other = partners(seed=2, augment=crop_and_flip(1))
    assert np.mean([other[key] == value for key, value in base.items()]) < 0.5


def test_partners_are_augmented_on_their_own_and_anchors_of_one_partner_differently():
    def seeds_as_images(x, seeds):
        return tf.cast(seeds, tf.float64)[:, tf.newaxis, tf.newaxis]

    anchors, partners = set(), set()
    for x, pair, *_ in read(augment=seeds_as_images):
        anchors |= {tuple(seed) for seed in x.reshape(-1, 2)}
        partners |= {tuple(seed) for seed in pair.reshape(-1, 2)}
    assert len(anchors) == len(partners) == 3 * COUNT
    assert not anchors & partners


def test_class_weights_become_sample_weights():
    weights = {0: 2.0, 2: 0.5}
    for labels in (LABELS, np.eye(4)[LABELS]):
        dataset = class_pairs(IMAGES, labels, 5, class_weight=weights, ids=True)
        for _, y, weight in dataset:
            expected = [weights.get(label, 1.0) for label in LABELS[y["ids"].numpy()]]
            np.testing.assert_array_equal(weight, expected)


def test_elements_are_static_with_drop_remainder_and_plain_without_ids():
    dataset = class_pairs(IMAGES, LABELS, 5, epochs=2, drop_remainder=True)
    (x, pair), y = dataset.element_spec
    assert x.shape == pair.shape == (5, 5, 5, 1)
    assert isinstance(y, tf.TensorSpec)
    assert int(dataset.cardinality()) == len(list(dataset)) == 8
    assert type(next(iter(class_pairs(IMAGES, LABELS, 5, ids=True)))[1]) is Targets
    x = next(iter(dataset))[0][1]
    assert x.dtype == tf.float32
    assert float(tf.reduce_max(x)) <= 1.0


def test_a_data_set_of_samples_is_read_into_memory():
    samples = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))
    assert_equal(read(samples, None, seed=3), read(seed=3))


def test_fit_counts_its_steps():
    inputs = [keras.Input((5, 5, 1)), keras.Input((5, 5, 1))]
    flat = [keras.layers.Flatten()(x) for x in inputs]
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Concatenate()(flat)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = class_pairs(IMAGES, LABELS, 5, epochs=4, start_epoch=1)
    model.fit(data, epochs=4, initial_epoch=1, steps_per_epoch=5, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 15


SAMPLES = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"labels": LABELS[:3]}, "`labels` to have 23 entries"),
        ({"labels": LABELS + 0.5}, "one class id a sample"),
        ({"labels": np.ones((COUNT, 4))}, "one class id a sample, or one-hot"),
        ({"labels": np.zeros((COUNT, 2, 2))}, "one class id a sample"),
        ({"batch_size": 24, "drop_remainder": True}, "at most the 23 samples"),
        ({"start_epoch": 2}, "from 0 to epochs=1"),
        ({"augment": "flip"}, "`augment` to be None or a function"),
        ({"seed": 0.5}, "`seed` to be a whole number"),
        ({"exclude_self": 1}, "`exclude_self` to be True or False"),
        ({"class_weight": {}}, "`class_weight` to be None or a dict"),
        ({"class_weight": {0: "heavy"}}, "`class_weight` to be None or a dict"),
        ({"class_weight": {-1: 1.0}}, "`class_weight` to be None or a dict"),
        ({"images": SAMPLES}, "no `labels` beside a data set"),
        ({"images": SAMPLES.batch(4), "labels": None}, "single samples"),
        ({"images": SAMPLES.repeat(), "labels": None}, "a known number of samples.*infinite"),
        ({"images": SAMPLES.take(0), "labels": None}, "It has 0 samples"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    everything = {"images": IMAGES, "labels": LABELS, "batch_size": 5, **arguments}
    with pytest.raises((ValueError, TypeError), match=text):
        class_pairs(everything.pop("images"), everything.pop("labels"), **everything)
