"""How a recipe trains: learning rates, weight decay, and what changes with the epochs."""

import keras
import numpy as np
import pytest

from keras_distill.recipes.settings import Setting
from keras_distill.recipes.settings import WarmedUp

STEPS = 10


def rates(setting, steps=STEPS):
    rate = setting.rate(steps)
    if not callable(rate):
        return [rate] * (setting.epochs * steps)
    return [float(rate(step)) for step in range(setting.epochs * steps)]


def test_rate_drops_at_the_first_step_of_an_epoch():
    setting = Setting(epochs=8, batch_size=4, learning_rate=0.1, drops=(4, 6))
    expected = [0.1] * 40 + [0.01] * 20 + [0.001] * 20
    np.testing.assert_allclose(rates(setting), expected, rtol=1e-6)


def test_drops_move_with_the_epochs():
    setting = Setting(epochs=200, batch_size=4, learning_rate=0.1, drops=(100, 150))
    shorter = setting.changed(epochs=4)
    assert shorter.drops == (2.0, 3.0)
    np.testing.assert_allclose(rates(shorter), [0.1] * 20 + [0.01] * 10 + [0.001] * 10, rtol=1e-6)
    assert setting.changed(epochs=None, learning_rate=None) == setting
    assert len(rates(setting.changed(epochs=1), steps=1)) == 1  # several drops in one step


def test_cosine_ends_at_zero_and_warm_up_rises():
    cosine = rates(Setting(epochs=3, batch_size=4, learning_rate=0.2, cosine=True))
    expected = [0.1 * (1 + np.cos(np.pi * step / 30)) for step in range(30)]
    np.testing.assert_allclose(cosine, expected, atol=1e-6)
    warm = rates(Setting(epochs=3, batch_size=4, learning_rate=0.2, drops=(2,), warm_up=1))
    np.testing.assert_allclose(warm[:10], 0.02 * np.arange(1, 11), rtol=1e-5)
    np.testing.assert_allclose(warm[10:], [0.2] * 10 + [0.02] * 10, rtol=1e-5)


def test_constant_rate_is_a_number():
    assert Setting(epochs=3, batch_size=4, learning_rate=0.2).rate(STEPS) == 0.2


def test_warmed_up_schedule_is_saved_with_what_it_warms():
    inner = keras.optimizers.schedules.CosineDecay(0.1, 100)
    for rate in (0.3, inner):
        schedule = WarmedUp(rate, 5)
        config = keras.optimizers.schedules.serialize(schedule)
        revived = keras.optimizers.schedules.deserialize(config)
        for step in (0, 3, 50):
            assert float(revived(step)) == pytest.approx(float(schedule(step)))


def test_weight_decay_shrinks_weights_as_the_papers_do():
    """PyTorch adds it to the gradient, before the momentum; Keras's SGD subtracts it beside."""
    decay, momentum, rate, steps = 5e-4, 0.9, 0.1, 400
    weight, velocity = 1.0, 0.0
    for _ in range(steps):
        velocity = momentum * velocity + decay * weight
        weight -= rate * velocity
    variable = keras.Variable(1.0)
    setting = Setting(40, 4, rate, momentum, nesterov=False, weight_decay=decay)
    optimizer = setting.optimizer(STEPS)
    optimizer.build([variable])
    for _ in range(steps):
        optimizer.apply([keras.ops.zeros(())])
    assert 1 - float(variable.value) == pytest.approx(1 - weight, rel=0.03)
    assert Setting(40, 4, rate, weight_decay=0.0).optimizer(STEPS).weight_decay is None


def test_shared_by_two_keeps_images_and_steps():
    setting = Setting(epochs=60, batch_size=64, learning_rate=0.1, drops=(30,))
    shared = setting.shared_by(2)
    assert (shared.epochs, shared.batch_size, shared.drops) == (30, 32, (15.0,))
    assert setting.shared_by(1) == setting
    assert (setting.changed(epochs=1, batch_size=1).shared_by(2).epochs) == 1


def test_augmentation_shifts_by_an_eighth():
    assert Setting(1, 1, 0.1, augment=False).augmentation((32, 32, 3)) is None
    assert callable(Setting(1, 1, 0.1).augmentation((8, 8, 1)))


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": None}]
)
def test_bad_settings(wrong):
    with pytest.raises(ValueError, match="Expected"):
        Setting(**{"epochs": 1, "batch_size": 1, "learning_rate": 0.1, **wrong})
    with pytest.raises(ValueError, match="Expected"):
        Setting(1, 1, 0.1).changed(epochs=-2)
