"""The private names of Keras that `_graph` reads: this tells when Keras changes them."""

import keras
from keras import layers

from keras_distill import _graph


def test_calls_in_running_order_with_arguments():
    inputs = keras.Input((4,), name="x")
    dense = layers.Dense(4, name="dense")
    x = dense(inputs, training=False) if dense._call_has_training_arg else dense(inputs)
    x = layers.Add(name="add")([dense(x), inputs])
    x = layers.BatchNormalization(name="bn")(x, training=False)
    model = keras.Model(inputs, x)
    graph = _graph.Graph(model)
    assert list(graph.names) == ["x", "dense@0", "dense@1", "add", "bn"]
    assert graph.names["x"].is_input
    assert [t is inputs for t in graph.names["dense@0"].inputs] == [True]
    assert graph.names["bn"].kwargs == {"training": False}
    assert graph.names["bn"].only_input is graph.names["add"].outputs[0]
    assert graph.names["add"].only_input is None
    assert graph.producer[id(graph.output)] == (graph.names["bn"], 0)
    assert graph.uses[id(inputs)] == 2
    assert graph.uses[id(x)] == 1


def test_calls_are_numbered_as_they_were_made():
    first, second = keras.Input((4,)), keras.Input((4,))
    dense = layers.Dense(2, name="dense")
    one, two = dense(first), dense(second)
    dense(first)  # not in the model
    graph = _graph.Graph(keras.Model([first, second], [one, two]))
    assert graph.names["dense@0"].inputs[0] is first
    assert graph.names["dense@1"].inputs[0] is second


def test_which_models_have_a_graph():
    class Subclassed(keras.Model):
        pass

    sequential = keras.Sequential([layers.Dense(2)])
    assert not _graph.has_graph(sequential)
    sequential.build((None, 3))
    assert _graph.has_graph(sequential)
    assert not _graph.has_graph(Subclassed())
    assert not _graph.has_graph(layers.Dense(2))
