"""Features that a relation loss cannot relate: told before training, with term and shapes."""

import keras
import pytest

import keras_distill as kd
from keras_distill import losses

MAP, VECTOR = (4, 4, 3), (6,)


def network(name, channels=3, classes=4):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(channels, 3, padding="same", name="first")(inputs)
    x = keras.layers.Conv2D(channels, 3, strides=2, padding="same", name="last")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="head")(x), name=name)


def distiller(loss, teacher_layers, student_layers, teacher=None, **options):
    term = kd.Term(loss, teacher_layers, student_layers, name="mine", **options)
    return kd.Distiller(teacher or network("teacher", 5), network("student"), term)


OF_VECTORS = [
    losses.ProbabilisticTransfer,
    losses.CorrelationCongruence,
    losses.RelationalDistance,
    losses.RelationalAngle,
]
OF_ANY = [losses.SimilarityPreserving, losses.RepresentationalSimilarity, losses.KernelAlignment]


@pytest.mark.parametrize("cls", OF_VECTORS)
def test_maps_where_vectors_are_asked(cls):
    shapes = r"teacher \(None, 5\), student \(None, 4, 4, 3\)"
    with pytest.raises(ValueError, match=rf"one vector of .* 'mine'\. Received: {shapes}"):
        distiller(cls(), "pool", "last")
    # A connector makes a vector of the student's map.
    assert distiller(cls(), "pool", "last", connector="auto").terms[0].connectors[0] is not None


@pytest.mark.parametrize("cls", OF_VECTORS + OF_ANY)
def test_several_features_where_one_is_asked(cls):
    with pytest.raises(
        ValueError, match=r"one (vector|feature) of .* 'mine'\. Received: teacher \["
    ):
        distiller(cls(), ["pool", "head"], ["pool", "head"])


@pytest.mark.parametrize("cls", OF_ANY)
def test_losses_that_flatten_take_maps_against_vectors(cls):
    assert distiller(cls(), "pool", "last").terms[0].on_features


def test_neighbors_ask_for_one_size():
    loss = losses.CorrelationCongruence(mode="neighbors")
    with pytest.raises(ValueError, match="of the same shape for the term 'mine'.*connector='auto'"):
        distiller(loss, "pool", "pool")
    assert distiller(loss, "pool", "pool", connector="auto").terms[0].on_features


FOUR = ["first", "last", "pool", "head"]


@pytest.mark.parametrize(
    ("layers", "classes", "expected"),
    [
        (FOUR[:3], 4, r"four features from both, \(earlier map, later map, pooled"),
        (FOUR[::-1], 4, "four features from both"),
        (FOUR, 3, "logits of as many classes from both"),
        (["last", "first", "pool", "head"], 4, "the later one no larger than the earlier one"),
    ],
)
def test_a_graph_of_instances_asks_for_four_features(layers, classes, expected):
    teacher = network("teacher", 5, classes)
    with pytest.raises(ValueError, match=rf"Expected .*{expected}.* 'mine'\. Received: teacher \["):
        distiller(losses.InstanceGraph(), layers, layers, teacher)
    assert distiller(losses.InstanceGraph(), FOUR, FOUR).terms[0].on_features
