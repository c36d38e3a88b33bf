"""PerNetworkOptimizer: routing, state, saving, learning rates."""

import keras
import numpy as np
import pytest

from keras_distill.models.per_network import PerNetworkOptimizer
from tests.models import nets


def networks():
    return [nets.mlp(width=4 + i, name=f"net_{i}") for i in range(2)]


def routed(optimizers, parts):
    container = PerNetworkOptimizer(optimizers)
    container.route([part.trainable_variables for part in parts])
    container.build([v for part in parts for v in part.trainable_variables])
    return container


def gradients(part, value):
    return [keras.ops.full(v.shape, value) for v in part.trainable_variables]


def test_each_network_takes_its_own_step():
    parts, alone = networks(), networks()
    for part, one in zip(parts, alone):
        one.set_weights(part.get_weights())
    make = [lambda: keras.optimizers.Adam(0.1, global_clipnorm=0.5), lambda: nets.sgd(0.01)]
    container = routed([one() for one in make], parts)
    variables = [v for part in parts for v in part.trainable_variables]
    for _ in range(3):
        container.apply(gradients(parts[0], 2.0) + gradients(parts[1], 3.0), variables)
    for part, one, optimizer, value in zip(parts, alone, make, (2.0, 3.0)):
        optimizer = optimizer()
        for _ in range(3):
            optimizer.apply(gradients(one, value), one.trainable_variables)
        nets.assert_same_weights(part, one, rtol=1e-6)
    assert int(nets.array(container.iterations)) == 3


def test_order_of_the_variables_does_not_matter():
    parts = networks()
    container = routed([nets.sgd(1.0), nets.sgd(0.0)], parts)
    before = [nets.snapshot(part) for part in parts]
    variables = [*parts[1].trainable_variables, *parts[0].trainable_variables]
    container.apply(gradients(parts[1], 1.0) + gradients(parts[0], 1.0), variables)
    nets.assert_untouched(parts[1], before[1])
    np.testing.assert_allclose(parts[0].get_weights()[0], before[0][0][0] - 1.0, rtol=1e-6)


def test_learning_rate_sets_all():
    container = routed([nets.sgd(0.1), nets.sgd(0.2)], networks())
    assert float(nets.array(container.learning_rate)) == pytest.approx(0.1)
    container.learning_rate = 0.5
    assert [float(nets.array(o.learning_rate)) for o in container.optimizers] == [0.5, 0.5]


def test_config_round_trip():
    optimizers = [keras.optimizers.Adam(0.1), keras.optimizers.SGD(0.2, momentum=0.5)]
    container = PerNetworkOptimizer(optimizers)
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(container))
    assert [type(o).__name__ for o in copy.optimizers] == ["Adam", "SGD"]
    assert copy.optimizers[1].momentum == 0.5
    assert copy.name == container.name


def test_copies_are_fresh():
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5))
    container = PerNetworkOptimizer.copies_of(optimizer, 2)
    assert optimizer not in container.optimizers
    rates = [o.get_config()["learning_rate"]["config"] for o in container.optimizers]
    assert [rate["decay_rate"] for rate in rates] == [0.5, 0.5]


def test_variables_are_all_tracked_once():
    container = routed([keras.optimizers.Adam(), keras.optimizers.Adam()], networks())
    ids = [id(v) for v in container.variables]
    assert len(ids) == len(set(ids))
    momenta = sum(len(part.trainable_variables) for part in networks())
    assert len(ids) >= 2 * momenta + 4


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_optimizers_as_networks(count):
    container = PerNetworkOptimizer([nets.sgd() for _ in range(count)])
    with pytest.raises(ValueError, match=f"one optimizer a network.*{count} optimizers"):
        container.route([part.trainable_variables for part in networks()])


def test_one_optimizer_cannot_serve_two_networks():
    optimizer = nets.sgd()
    with pytest.raises(ValueError, match="optimizers"):
        PerNetworkOptimizer([optimizer, optimizer])
    with pytest.raises(ValueError, match="at least one optimizer"):
        PerNetworkOptimizer([])
