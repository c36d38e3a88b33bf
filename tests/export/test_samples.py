import keras
import numpy as np
import pytest

from keras_distill.export._network import inputs_of
from keras_distill.export._samples import batches
from keras_distill.export._samples import require_finite
from keras_distill.export._samples import take

X = np.arange(100 * 4, dtype="float32").reshape(100, 4)
Y = np.arange(100)


def single():
    return inputs_of(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))


def pair(kind):
    left, right = keras.Input((4,), name="left"), keras.Input((2,), name="right")
    total = keras.layers.Concatenate()([left, right])
    tensors = {"left": left, "right": right} if kind is dict else kind([left, right])
    return inputs_of(keras.Model(tensors, total))


@pytest.mark.parametrize(
    "data",
    [
        X,
        X.astype("float64"),
        (X, Y),
        (X, Y, np.ones(100)),
        (X,),
        [X[:30], X[30:]],
        [(X[:30], Y[:30]), (X[30:], Y[30:])],
        iter([X[:99], X[99:]]),
        ((X[i : i + 1], Y[i : i + 1]) for i in range(100)),
    ],
)
def test_one_input(data):
    arrays = list(batches(single(), data, "data"))
    np.testing.assert_array_equal(np.concatenate([batch[0] for batch in arrays]), X)
    assert all(len(batch) == 1 and batch[0].dtype == "float32" for batch in arrays)
    assert max(len(batch[0]) for batch in arrays) <= 99


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_two_inputs(kind):
    inputs = pair(kind)
    other = X[:, :2]
    whole = {"right": other, "left": X} if kind is dict else kind([X, other])

    def part(a, b):
        left, right = X[a:b], other[a:b]
        return {"right": right, "left": left} if kind is dict else kind([left, right])

    sources = [whole, (whole, Y), [part(0, 50), part(50, 100)]]
    sources.append([(part(0, 50), Y[:50]), (part(50, 100), Y[50:])])
    for data in sources:
        arrays = list(batches(inputs, data, "data"))
        np.testing.assert_array_equal(np.concatenate([batch[0] for batch in arrays]), X)
        np.testing.assert_array_equal(np.concatenate([batch[1] for batch in arrays]), other)


def test_take_spreads_over_an_array_and_heads_a_stream():
    taken = take(single(), (X, Y), "data", 4)[0]
    np.testing.assert_array_equal(taken, X[[0, 33, 66, 99]])
    taken = take(single(), (X[i : i + 3] for i in range(0, 99, 3)), "data", 4)[0]
    np.testing.assert_array_equal(taken, X[:4])
    assert len(take(single(), X, "data", 1000)[0]) == 100


def test_errors_name_the_data():
    with pytest.raises(ValueError, match="`data` to hold 2 inputs a batch. Received: 1"):
        list(batches(pair(list), [X], "data"))
    with pytest.raises(ValueError, match="`data` to have the input 'right'. Received: .'left'"):
        list(batches(pair(dict), {"left": X}, "data"))
    with pytest.raises(ValueError, match="equally long. Received: 100, 99"):
        list(batches(pair(list), [X, X[:99, :2]], "data"))
    with pytest.raises(ValueError, match="`data` to be finite"):
        list(batches(single(), np.full((3, 4), np.inf), "data"))
    with pytest.raises(TypeError, match="`data` to be arrays .* Received: data=None"):
        list(batches(single(), None, "data"))


@pytest.mark.tensorflow
def test_an_endless_data_set_is_an_error():
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(X).batch(10)
    require_finite(dataset, "data")
    with pytest.raises(ValueError, match="Expected `data` to end"):
        require_finite(dataset.repeat(), "data")
