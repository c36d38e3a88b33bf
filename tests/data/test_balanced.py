"""Class-uniform and superclass-uniform batches: who is in them, how often, and each time anew."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

import keras_distill as kd
from keras_distill.data import Targets
from keras_distill.data import balanced_batches
from keras_distill.data import batches
from keras_distill.data import crop_and_flip
from keras_distill.data import steps_per_epoch
from keras_distill.data import superclass_batches

COUNT = 48
IMAGES = np.arange(COUNT * 5 * 5, dtype="uint32").reshape(COUNT, 5, 5, 1).astype("uint8")
LABELS = np.arange(COUNT) % 6  # eight samples of each of six classes


def numbered(labels):
    """Images that tell their index."""
    return np.arange(len(labels), dtype="float32")[:, None]


def read(images=IMAGES, labels=LABELS, batch_size=8, *arguments, **options):
    dataset = balanced_batches(images, labels, batch_size, *arguments, ids=True, **options)
    return [(x.numpy(), y["labels"].numpy(), y["ids"].numpy()) for x, y in dataset]


def ids_of(labels, batch_size, each, **options):
    """The ids of a training, `(epochs, steps, batch_size)`."""
    found = [ids for *_, ids in read(numbered(labels), labels, batch_size, each, **options)]
    return np.reshape(found, (options.get("epochs", 1), -1, batch_size))


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        for part_a, part_b in zip(a, b):
            np.testing.assert_array_equal(part_a, part_b)


def assert_even(counts, total):
    """`counts` add up to `total`, and none is more than one above another."""
    assert np.sum(counts) == total
    assert np.max(counts) - np.min(counts) <= 1


def assert_by_the_rule(ids, labels, each):
    """What the docstring promises of one epoch, `(steps, batch_size)`."""
    steps, batch_size = ids.shape
    classes, sizes = np.unique(labels, return_counts=True)
    drawn = {c: 0 for c in classes}
    for row in ids:
        groups = row.reshape(-1, each)
        own = labels[groups]
        assert (own == own[:, :1]).all()  # side by side
        assert len(set(own[:, 0])) == batch_size // each  # no class twice
        for c, group in zip(own[:, 0], groups):
            drawn[c] += 1
            assert_even([np.sum(group == i) for i in np.flatnonzero(labels == c)], each)
    assert_even(list(drawn.values()), steps * batch_size // each)
    for c in classes:
        seen = np.bincount(ids.ravel(), minlength=len(labels))[labels == c]
        assert_even(seen, drawn[c] * each)


@pytest.mark.parametrize(("batch_size", "each"), [(8, 4), (8, 2), (12, 2), (6, 1), (24, 8)])
def test_equal_classes_are_seen_whole_once_an_epoch(batch_size, each):
    for ids in ids_of(LABELS, batch_size, each, epochs=3):
        assert ids.shape == (COUNT // batch_size, batch_size)
        np.testing.assert_array_equal(np.sort(ids.ravel()), np.arange(COUNT))
        assert_by_the_rule(ids, LABELS, each)


UNEQUAL = np.repeat([3, 9, 4, 7, 0], [1, 2, 3, 14, 30])  # some smaller than four


@pytest.mark.parametrize("each", [1, 2, 4])
@pytest.mark.parametrize("drop_remainder", [False, True])
def test_unequal_classes_come_in_equally_many_batches(each, drop_remainder):
    ids = ids_of(UNEQUAL, 4 * each, each, epochs=4, drop_remainder=drop_remainder)
    steps = steps_per_epoch(len(UNEQUAL), 4 * each, drop_remainder)
    assert ids.shape == (4, steps, 4 * each)
    for epoch in ids:
        assert_by_the_rule(epoch, UNEQUAL, each)
    rare, common = (np.sum(UNEQUAL[ids] == label) for label in (3, 0))
    assert abs(int(rare) - int(common)) <= 4 * each


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    each=st.integers(1, 5),
    share=st.floats(0, 1),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_any_classes_keep_the_rule(sizes, each, share, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    batch_size = each * max(1, round(share * len(sizes)))
    ids = ids_of(labels, batch_size, each, seed=seed)[0]
    assert len(ids) == steps_per_epoch(len(labels), batch_size)
    assert_by_the_rule(ids, labels, each)


def test_samples_of_a_large_class_take_turns_over_the_epochs():
    """30 of a class, 12 an epoch: others each time, all of them seen before long."""
    labels = np.repeat([0, 1, 2], [30, 3, 3])
    seen = [set(epoch[labels[epoch] == 0]) for epoch in ids_of(labels, 6, 2, epochs=12)]
    assert all(len(own) == 12 for own in seen)
    assert len(set(map(frozenset, seen))) == 12
    assert set.union(*seen) == set(range(30))


def test_pairs_of_a_class_are_mixed():
    """Any two samples of a class meet, also where the turns of a class end within a group."""
    labels = np.repeat([0, 1], 7)
    met = np.zeros((14, 14))
    for group in ids_of(labels, 4, 2, epochs=300).reshape(-1, 2):
        met[group, group[::-1]] += 1
    assert np.diag(met).sum() == 0
    pairs = met[:7, :7][~np.eye(7, dtype=bool)]
    assert pairs.min() > 0.75 * pairs.mean() and pairs.max() < 1.25 * pairs.mean()


def test_images_and_labels_belong_to_the_ids():
    for x, labels, ids in read(numbered(LABELS), epochs=2):
        np.testing.assert_array_equal(x[:, 0], ids)
        np.testing.assert_array_equal(labels, LABELS[ids])


def test_labels_as_columns_and_one_hot_give_the_same_batches():
    for labels in (LABELS[:, None], np.eye(6)[LABELS], LABELS.astype("float32")):
        for one, other in zip(read(labels=labels), read()):
            np.testing.assert_array_equal(one[2], other[2])
            assert one[1].shape == (8, *labels.shape[1:])


@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_resumed_run_sees_what_an_undisturbed_one_sees(start):
    options = {"augment": crop_and_flip(1), "seed": 11, "epochs": 3}
    undisturbed = read(labels=np.minimum(LABELS, 3), **options)
    resumed = read(labels=np.minimum(LABELS, 3), start_epoch=start, **options)
    assert_equal(resumed, undisturbed[start * 6 :])


def test_epochs_and_seeds_differ():
    first, second = np.split(np.array([ids for *_, ids in read(epochs=2)]), 2)
    assert not np.array_equal(first, second)
    other = np.array([ids for *_, ids in read(seed=1)])
    assert not np.array_equal(first, other)
    assert_equal(read(seed=-3), read(seed=-3))


def test_a_sample_is_augmented_as_in_plain_batches_and_anew_when_it_comes_again():
    augment = crop_and_flip(2)
    options = {"augment": augment, "seed": 4, "epochs": 2}
    plain = batches(IMAGES, LABELS, COUNT, ids=True, **options)
    expected = [dict(zip(y["ids"].numpy(), x.numpy())) for x, y in plain]
    again = 0
    labels = np.repeat([0, 1], [3, COUNT - 3])  # a class of three: each about eight times
    for i, (x, _, ids) in enumerate(read(IMAGES, labels, **options)):
        epoch = i // 6
        if i % 6 == 0:
            seen = {}
        for image, index in zip(x, ids):
            if index in seen:
                again += np.array_equal(image, expected[epoch][index])
            else:
                np.testing.assert_array_equal(image, expected[epoch][index])
            seen.setdefault(index, set()).add(image.tobytes())
        if i % 6 == 5:
            # 2 * 25 augmentations: 24 / 3 draws of one sample hardly agree.
            assert all(len(seen[index]) >= 6 for index in range(3))
    assert again <= 8


def test_elements_are_static_of_known_number_and_plain_without_ids():
    dataset = balanced_batches(IMAGES[:45], LABELS[:45], 8, epochs=5, start_epoch=2)
    x, y = dataset.element_spec
    assert x.shape == (8, 5, 5, 1) and y.shape == (8,) and isinstance(y, tf.TensorSpec)
    assert int(dataset.cardinality()) == len(list(dataset)) == 3 * 6
    x = next(iter(dataset))[0]
    assert x.dtype == tf.float32 and float(tf.reduce_max(x)) <= 1.0
    assert type(next(iter(balanced_batches(IMAGES, LABELS, 8, ids=True)))[1]) is Targets
    assert int(balanced_batches(IMAGES, LABELS, 8, start_epoch=1).cardinality()) == 0


def test_correlation_congruence_trains_with_it():
    """The spec's use, a known number of steps, and the same weights when resumed."""
    inputs = keras.Input((5, 5, 1))
    hidden = keras.layers.Dense(6, name="pool")(keras.layers.Flatten()(inputs))
    teacher = keras.Model(inputs, keras.layers.Dense(6)(hidden))

    def trained(ends):
        keras.utils.set_random_seed(2)
        student = keras.models.clone_model(teacher)
        term = kd.Term(kd.losses.CorrelationCongruence(), "pool", "pool", weight=100.0)
        distiller = kd.Distiller(teacher, student, term)
        distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        for start, end in zip([0, *ends], ends):
            data = balanced_batches(IMAGES, LABELS, 8, epochs=end, start_epoch=start)
            distiller.fit(
                data,
                epochs=end,
                initial_epoch=start,
                steps_per_epoch=6,
                shuffle=False,
                verbose=0,
            )
        assert int(distiller.optimizer.iterations) == 18
        return student.get_weights()

    for one, other in zip(trained([3]), trained([1, 3])):
        np.testing.assert_allclose(one, other, rtol=1e-6)


# Superclasses.

CENTERS = np.array([[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0], [0.0, -4.0]])
SUPERCLASS = np.random.default_rng(3).integers(0, 4, COUNT)
FEATURES = CENTERS[SUPERCLASS] + 0.1 * np.random.default_rng(4).standard_normal((COUNT, 2))


def read_superclasses(features=FEATURES, batch_size=8, clusters=4, *arguments, **options):
    dataset = superclass_batches(
        numbered(LABELS), LABELS, features, batch_size, clusters, *arguments, ids=True, **options
    )
    return [(x.numpy(), y["labels"].numpy(), y["ids"].numpy()) for x, y in dataset]


@pytest.mark.parametrize("features", [FEATURES, FEATURES.astype("float16")[:, None, :]])
def test_superclasses_are_the_clusters_of_the_features(features):
    elements = read_superclasses(features, epochs=2)
    assert len(elements) == 12
    for epoch in np.reshape([ids for *_, ids in elements], (2, 6, 8)):
        assert_by_the_rule(epoch, SUPERCLASS, 4)
    for x, labels, ids in elements:
        np.testing.assert_array_equal(x[:, 0], ids)
        np.testing.assert_array_equal(labels, LABELS[ids])


def test_superclasses_are_resumed_and_take_unlabelled_samples():
    options = {"epochs": 3, "seed": -5}
    assert_equal(read_superclasses(start_epoch=1, **options), read_superclasses(**options)[6:])
    unlabelled = np.full(COUNT, -1)
    dataset = superclass_batches(numbered(LABELS), unlabelled, FEATURES, 8, 4, ids=True)
    for (_, y), (_, _, ids) in zip(dataset, read_superclasses()):
        np.testing.assert_array_equal(y["ids"], ids)
        np.testing.assert_array_equal(y["labels"], -1)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"keras-distill\[demo\]"):
        read_superclasses()


# Bad input.


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"labels": LABELS[:3]}, "`labels` to have 48 entries"),
        ({"labels": LABELS + 0.5}, "one class id a sample"),
        ({"labels": np.where(LABELS == 2, -1, LABELS)}, "a class for each sample.*8 have none"),
        ({"batch_size": 10}, "`batch_size` to be a multiple of samples_per_class=4.*=10"),
        ({"batch_size": 28}, r"at least batch_size / samples_per_class = 7 classes.*at most 24"),
        ({"batch_size": 0}, "`batch_size` to be a positive whole number"),
        ({"samples_per_class": 0}, "`samples_per_class` to be a positive whole number"),
        ({"samples_per_class": 2.0}, "`samples_per_class` to be a positive whole number"),
        ({"batch_size": 54, "samples_per_class": 9, "drop_remainder": True}, "most the 48 samples"),
        ({"start_epoch": 2}, "from 0 to epochs=1"),
        ({"augment": "flip"}, "`augment` to be None or a function"),
        ({"seed": 0.5}, "`seed` to be a whole number"),
    ],
)
def test_bad_arguments_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        balanced_batches(**{"images": IMAGES, "labels": LABELS, "batch_size": 8, **options})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"features": FEATURES[:7]}, r"`features` to be finite numbers, of shape \(48, \.\.\.\)"),
        ({"features": FEATURES[:, 0]}, "`features` to be finite"),
        ({"features": FEATURES * np.nan}, "`features` to be finite"),
        ({"clusters": 0}, "`clusters` to be a positive whole number"),
        ({"clusters": 49}, "at most 48 clusters"),
        ({"clusters": 1}, "at least batch_size / samples_per_cluster = 2 clusters.*clusters=1"),
        ({"batch_size": 9}, "multiple of samples_per_cluster=4"),
    ],
)
def test_bad_arguments_of_superclasses_are_named(options, text):
    arguments = {"features": FEATURES, "batch_size": 8, "clusters": 4, **options}
    with pytest.raises(ValueError, match=text):
        superclass_batches(IMAGES, LABELS, **arguments)
