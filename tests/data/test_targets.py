"""`Targets` keeps its type wherever Keras and TensorFlow pass it through."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill.data import Targets
from keras_distill.data import with_ids

LOSS = keras.losses.SparseCategoricalCrossentropy


def make_targets(count=4):
    return Targets(
        labels=np.arange(count, dtype="int32"),
        ids=np.arange(count, dtype="int64") + 10,
        teacher=np.ones((count, 3), "float32"),
    )


def make_dataset(count=8):
    x = np.random.default_rng(0).normal(size=(count, 5)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, make_targets(count)))


class Probe(keras.Model):
    """Records the types of `y` that reach `compute_loss`."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(8)
        self.seen = []

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.seen.append((type(y), sorted(y)))
        # Ids above 2**24 would collide as floats.
        self.seen.append(keras.backend.standardize_dtype(y["ids"].dtype))
        return super().compute_loss(x, y["labels"], y_pred, sample_weight)


def check_probe(model):
    names = ["ids", "labels", "teacher"]
    assert model.seen
    for kind, entries in model.seen[::2]:
        assert kind is Targets
        assert entries == names


def test_is_a_dict_with_labels():
    targets = make_targets()
    assert isinstance(targets, dict)
    np.testing.assert_array_equal(targets.labels, [0, 1, 2, 3])
    np.testing.assert_array_equal(targets["ids"], [10, 11, 12, 13])
    assert repr(Targets(labels=3)) == "Targets({'labels': 3})"


def test_labels_are_required():
    with pytest.raises(ValueError, match=r"Expected `Targets` to have `labels`.*\['ids'\].*-1"):
        Targets(ids=np.arange(3))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda t: t.copy()])
def test_copies_keep_the_type(duplicate):
    copied = duplicate(make_targets())
    assert type(copied) is Targets
    assert sorted(copied) == ["ids", "labels", "teacher"]


def test_pickle_keeps_the_type():
    restored = pickle.loads(pickle.dumps(make_targets()))
    assert type(restored) is Targets
    np.testing.assert_array_equal(restored["ids"], make_targets()["ids"])


def test_keras_tree_keeps_the_type_and_pairs_entries_by_name():
    first = Targets(labels=1, ids=2)
    second = Targets(ids=20, labels=10)
    added = keras.tree.map_structure(lambda a, b: a + b, first, second)
    assert type(added) is Targets
    assert dict(added) == {"labels": 11, "ids": 22}
    nested = keras.tree.map_structure(lambda a: -a, (0, {"y": first}))
    assert type(nested[1]["y"]) is Targets
    assert keras.tree.flatten(first) == [2, 1]  # sorted by name: ids, labels
    assert keras.tree.is_nested(first)
    packed = keras.tree.pack_sequence_as(first, [5, 6])
    assert type(packed) is Targets and dict(packed) == {"ids": 5, "labels": 6}
    # Masks and specs pass through as well.
    assert type(keras.tree.map_structure(lambda a: None, first)) is Targets


def test_labels_may_be_nested():
    targets = Targets(labels={"a": 1, "b": (2, 3)}, ids=4)
    doubled = keras.tree.map_structure(lambda a: 2 * a, targets)
    assert type(doubled) is Targets
    assert doubled.labels == {"a": 2, "b": (4, 6)}


def test_tf_data_keeps_the_type():
    dataset = make_dataset().map(lambda x, y: (x, y)).shuffle(8, seed=0).batch(4).prefetch(1)
    assert type(dataset.element_spec[1]) is Targets
    for _, y in dataset:
        assert type(y) is Targets
        np.testing.assert_array_equal(y["ids"], y["labels"] + 10)


def test_tf_function_keeps_the_type():
    seen = []

    @tf.function
    def step(targets):
        seen.append(type(targets))
        return Targets(labels=targets["labels"] + 1, ids=targets["ids"])

    result = step(make_targets())
    assert seen == [Targets]
    assert type(result) is Targets
    np.testing.assert_array_equal(result["labels"], [1, 2, 3, 4])


@pytest.mark.parametrize("as_dataset", [True, False])
@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_fit_keeps_the_type(steps_per_execution, as_dataset):
    model = Probe()
    model.compile("sgd", LOSS(from_logits=True), steps_per_execution=steps_per_execution)
    if as_dataset:
        model.fit(make_dataset().batch(2), shuffle=False, verbose=0)
    else:
        x = np.ones((8, 5), "float32")
        model.fit(x, make_targets(8), batch_size=2, shuffle=False, verbose=0)
    check_probe(model)


@pytest.mark.tensorflow
def test_ids_stay_integers_in_fit():
    model = Probe()
    model.compile("sgd", LOSS(from_logits=True))
    model.fit(make_dataset().batch(2), shuffle=False, verbose=0)
    assert set(model.seen[1::2]) == {"int64"}


@pytest.mark.tensorflow
def test_strategy_keeps_the_type(two_replicas):
    strategy = two_replicas
    distributed = strategy.experimental_distribute_dataset(make_dataset().batch(4))
    seen = []

    @tf.function
    def step(element):
        def replica(x, y):
            seen.append(type(y))
            return y

        return strategy.run(replica, element)

    ids = []
    for element in distributed:
        assert type(element[1]) is Targets
        result = step(element)
        assert type(result) is Targets
        ids += [
            part.numpy().tolist() for part in strategy.experimental_local_results(result["ids"])
        ]
    assert set(seen) == {Targets}
    assert ids == [[10, 11], [12, 13], [14, 15], [16, 17]]

    with strategy.scope():
        model = Probe()
        model.compile("sgd", LOSS(from_logits=True))
    model.fit(make_dataset().batch(4), shuffle=False, verbose=0)
    check_probe(model)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="registered on the JAX backend only")
def test_jax_trees_keep_the_type():
    import jax

    seen = []

    @jax.jit
    def step(targets):
        seen.append(type(targets))
        return Targets(labels=targets["labels"] + 1, ids=targets["ids"])

    result = step(make_targets())
    assert seen == [Targets] and type(result) is Targets
    np.testing.assert_array_equal(result["labels"], [1, 2, 3, 4])
    paths = jax.tree_util.tree_flatten_with_path(Targets(labels=1, ids=2))[0]
    assert [jax.tree_util.keystr(path) for path, _ in paths] == ["['ids']", "['labels']"]


def test_with_ids_numbers_the_samples():
    x, y = np.arange(6.0)[:, None], np.array([2, 0, 1, 2, 0, 1])
    dataset = with_ids(tf.data.Dataset.from_tensor_slices((x, y)))
    assert int(dataset.cardinality()) == 6
    elements = list(dataset)
    assert [type(target) for _, target in elements] == [Targets] * 6
    assert [int(target["ids"]) for _, target in elements] == list(range(6))
    assert [int(target["labels"]) for _, target in elements] == y.tolist()
    assert elements[0][1]["ids"].dtype == tf.int64


def test_with_ids_keeps_weights_and_extra_entries():
    weights = np.arange(8, dtype="float32")
    dataset = make_dataset().map(
        lambda x, y: (x, Targets(labels=y["labels"], teacher=y["teacher"]))
    )
    dataset = tf.data.Dataset.zip(dataset, tf.data.Dataset.from_tensor_slices(weights))
    dataset = with_ids(dataset.map(lambda element, weight: (*element, weight)))
    for i, (_, target, weight) in enumerate(dataset):
        assert sorted(target) == ["ids", "labels", "teacher"]
        assert int(target["ids"]) == i
        assert float(weight) == i


def test_with_ids_takes_several_outputs():
    y = {"a": np.arange(4), "b": np.arange(4.0)}
    dataset = with_ids(tf.data.Dataset.from_tensor_slices((np.zeros((4, 2)), y))).batch(2)
    target = next(iter(dataset))[1]
    assert sorted(target) == ["ids", "labels"]
    assert sorted(target.labels) == ["a", "b"]


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        (lambda d: d.filter(lambda x, y: True), "known number of samples.*unknown"),
        (lambda d: d.repeat(), "known number of samples.*infinite"),
        (lambda d: d.batch(2), "single samples.*before `batch`"),
        (lambda d: d.map(lambda x, y: x), r"yield \(x, y\) or \(x, y, sample_weight\)"),
    ],
)
def test_with_ids_says_what_is_wrong(dataset, text):
    with pytest.raises(ValueError, match=text):
        with_ids(dataset(make_dataset()))


def test_with_ids_wants_a_dataset():
    with pytest.raises(TypeError, match="`dataset` to be a `tf.data.Dataset`"):
        with_ids(np.zeros(3))
