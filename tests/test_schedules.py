"""Schedules against their formulas, and through a config."""

import math

import keras
import numpy as np
import pytest

from keras_distill import schedules

FORMULAS = [
    (schedules.Constant(2.5), lambda step: 2.5),
    (schedules.Linear(1.0, 3.0, 10), lambda step: 1.0 + 2.0 * min(step / 10, 1.0)),
    (schedules.Linear(4.0, 0.0, 3), lambda step: 4.0 * (1 - min(step / 3, 1.0))),
    (
        schedules.Cosine(4.0, 1.0, 10),
        lambda step: 1.0 + 3.0 * 0.5 * (1 + math.cos(math.pi * min(step / 10, 1.0))),
    ),
    (schedules.WarmUp(8.0, 4), lambda step: 8.0 * min((step + 1) / 4, 1.0)),
    (
        schedules.SigmoidRamp(3.0, 10),
        lambda step: 3.0 * math.exp(-5 * (1 - min(step, 10) / 10) ** 2),
    ),
    (schedules.Stop(2.0, 5), lambda step: 2.0 if step < 5 else 0.0),
]
IDS = [type(schedule).__name__ for schedule, _ in FORMULAS]


@pytest.mark.parametrize("schedule, formula", FORMULAS, ids=IDS)
@pytest.mark.parametrize("dtype", ["int32", "float32", None])
def test_values(schedule, formula, dtype):
    for step in (0, 1, 2, 3, 4, 5, 9, 10, 11, 10**6):
        given = step if dtype is None else keras.ops.convert_to_tensor(step, dtype=dtype)
        value = schedule(given)
        assert keras.backend.standardize_dtype(value.dtype) == "float32"
        np.testing.assert_allclose(keras.ops.convert_to_numpy(value), formula(step), atol=1e-5)


@pytest.mark.parametrize("schedule, formula", FORMULAS, ids=IDS)
def test_config_round_trip(schedule, formula):
    assert isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
    config = keras.saving.serialize_keras_object(schedule)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(schedule)
    assert copy.get_config() == schedule.get_config()


@pytest.mark.parametrize(
    "make, argument",
    [
        (lambda: schedules.Constant(float("nan")), "value"),
        (lambda: schedules.Constant("1"), "value"),
        (lambda: schedules.Linear(float("inf"), 0.0, 3), "start"),
        (lambda: schedules.Linear(1.0, None, 3), "end"),
        (lambda: schedules.Linear(1.0, 0.0, 0), "steps"),
        (lambda: schedules.Cosine(1.0, 0.0, 2.5), "steps"),
        (lambda: schedules.WarmUp(1.0, -1), "steps"),
        (lambda: schedules.WarmUp(True, 3), "value"),
        (lambda: schedules.SigmoidRamp(None, 3), "value"),
        (lambda: schedules.SigmoidRamp(1.0, 0), "steps"),
        (lambda: schedules.Stop(1.0, True), "steps"),
        (lambda: schedules.number_or_schedule("weight", -1.0), "weight"),
    ],
)
def test_bad_input(make, argument):
    with pytest.raises(ValueError, match=f"Expected `{argument}`.*Received: {argument}="):
        make()


def test_number_or_schedule():
    assert schedules.number_or_schedule("weight", 2) == 2.0
    ramp = schedules.SigmoidRamp(2.0, 4)
    assert schedules.number_or_schedule("weight", ramp) is ramp
    with pytest.raises(ValueError, match="`weight, a schedule, at step 1000000000`"):
        schedules.number_or_schedule("weight", schedules.Linear(1.0, -1.0, 4))
    assert float(keras.ops.convert_to_numpy(schedules.value_at(2.0, 7))) == 2.0
    assert float(keras.ops.convert_to_numpy(schedules.value_at(ramp, 4))) == 2.0


def test_they_serve_as_learning_rates():
    optimizer = keras.optimizers.SGD(schedules.Linear(1.0, 0.0, 2))
    variable = keras.Variable([0.0])
    for _ in range(3):
        optimizer.apply([keras.ops.ones((1,))], [variable])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), [-1.5])
