"""MutualLearner with a device a student: the same numbers, and only probabilities cross."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.models import cohorts
from tests.models import nets

pytestmark = pytest.mark.tensorflow

DEVICES = ["CPU:0", "CPU:1"]


def device_of(variable):
    return variable.value.device.rsplit(":", 2)[-2] + ":" + variable.value.device[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("update", "policy"), [("simultaneous", "float32"), ("sequential", "mixed_float16")]
)
def test_the_numbers_are_those_of_one_device(update, policy):
    x, y = nets.images(12), nets.class_ids(12)
    runs = []
    for devices in (None, DEVICES):
        keras.utils.set_random_seed(3)
        keras.config.set_dtype_policy(policy)
        students = cohorts.cnns(regularized=True, dropout=0.3)
        options = {"metrics": ["accuracy"]}
        cohort = cohorts.compiled(
            students,
            keras.optimizers.Adam(0.01),
            compile_options=options,
            update=update,
            devices=devices,
        )
        history = cohorts.fit(cohort, x, y, epochs=2, validation_data=(x, y))
        runs.append((cohorts.states(cohort), history, cohort.predict(x, verbose=0)))
    (states, history, predicted), (others, other_history, other_predicted) = runs
    for a, b in zip(states, others, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for name in history:
        np.testing.assert_allclose(history[name], other_history[name], rtol=1e-4, err_msg=name)
    for name in predicted:
        np.testing.assert_allclose(predicted[name], other_predicted[name], rtol=1e-4, atol=1e-5)


def test_variables_and_their_slots_are_where_they_belong():
    cohort = cohorts.compiled(cohorts.cnns(), keras.optimizers.Adam(0.01), devices=DEVICES)
    cohorts.fit(cohort, nets.images(4), nets.class_ids(4))
    for k, (student, device) in enumerate(zip(cohort.students, DEVICES)):
        assert {device_of(variable) for variable in student.weights} == {device}
        slots = [v for v in cohort.optimizer.optimizers[k].variables if len(v.shape)]
        assert len(slots) == 2 * len(student.trainable_variables)
        assert {device_of(variable) for variable in slots} == {device}


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_only_probabilities_cross(update):
    import tensorflow as tf

    batch = 8  # As no axis of a weight.
    students = [nets.cnn(width, name, classes=7) for width, name in ((3, "a"), (5, "b"))]
    cohort = cohorts.compiled(students, update=update, devices=DEVICES)
    x, y = nets.images(batch), nets.class_ids(batch)
    cohort.train_on_batch(x, y)
    step = tf.function(cohort.train_step, autograph=False)
    graph = step.get_concrete_function((tf.constant(x), tf.constant(y))).graph
    crossing, convolutions = set(), []
    for operation in graph.get_operations():
        if "Conv2D" in operation.type:
            convolutions.append((operation.type, operation.device[-5:]))
        for tensor in operation.inputs:
            places = {operation.device[-5:], tensor.op.device[-5:]}
            data = tensor.op.type in ("Placeholder", "Const") or tensor.dtype == tf.resource
            if not data and places == set(DEVICES):
                crossing.add(tuple(tensor.shape))
    assert crossing
    assert crossing <= {(batch, 7), (batch,), ()}
    kinds = ("Conv2D", "Conv2DBackpropFilter")
    assert {pair for pair in convolutions if pair[0] in kinds} == {
        (kind, device) for kind in kinds for device in DEVICES
    }


def test_a_student_that_was_used_before_is_not_left_behind():
    """What Keras traced with the variables of the old device is traced anew."""
    x, y = nets.vectors(12), nets.class_ids(12)
    students = cohorts.linears(2)
    for student in students:
        student.compile(nets.sgd(0.1), nets.cross_entropy())
        student.evaluate(x, y, verbose=0)
        student.predict(x, verbose=0)
    before = students[1].get_weights()[0]
    cohort = cohorts.compiled(students, devices=DEVICES)
    np.testing.assert_array_equal(students[1].get_weights()[0], before)
    cohorts.fit(cohort, x, y, epochs=3)
    np.testing.assert_allclose(
        students[1].predict(x, verbose=0), cohort.predict(x, verbose=0)["net_1"], rtol=1e-5
    )
    logs = cohort.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(students[1].evaluate(x, y, verbose=0), logs["net_1_loss"], 1e-5)


def test_save_and_load(tmp_path):
    x, y = nets.vectors(), nets.class_ids()
    cohort = cohorts.compiled(cohorts.linears(2), keras.optimizers.Adam(0.1), devices=DEVICES)
    cohorts.fit(cohort, x, y)
    cohort.save(tmp_path / "cohort.keras")
    loaded = keras.saving.load_model(tmp_path / "cohort.keras")
    assert loaded.devices == DEVICES
    assert device_of(loaded.students[1].weights[0]) == "CPU:1"
    cohorts.fit(cohort, x, y)
    cohorts.fit(loaded, x, y)
    for a, b in zip(cohorts.states(cohort), cohorts.states(loaded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_machine_without_the_devices_loads_without():
    config = kd.MutualLearner(cohorts.linears(2), devices=DEVICES).get_config()
    config["devices"] = ["GPU:6", "GPU:7"]
    with pytest.warns(UserWarning, match="does not have: it is loaded without"):
        assert kd.MutualLearner.from_config(config).devices is None


@pytest.mark.parametrize(
    ("devices", "match"),
    [
        (["CPU:0"], r"a list of 2, one a student. Received: devices=\['CPU:0'\]"),
        ("CPU:0", "a list of 2, one a student"),
        (["CPU:0", "CPU:9"], r"among CPU:0, CPU:1.*Received: devices=\['CPU:0', 'CPU:9'\]"),
        (["CPU:0", 1], "among CPU:0, CPU:1"),
    ],
)
def test_devices_that_are_not_there(devices, match):
    with pytest.raises(ValueError, match=match):
        kd.MutualLearner(cohorts.linears(2), devices=devices)


def test_names_of_devices_as_tensorflow_writes_them():
    names = ["/device:CPU:0", "/job:localhost/replica:0/task:0/device:cpu:1"]
    assert kd.MutualLearner(cohorts.linears(2), devices=names).devices == DEVICES


@pytest.mark.slow
def test_a_strategy_and_xla_place_by_themselves(two_replicas):
    with two_replicas.scope(), pytest.raises(ValueError, match="without a `tf.distribute`"):
        kd.MutualLearner(cohorts.linears(2), devices=DEVICES)
    cohort = kd.MutualLearner(cohorts.linears(2), devices=DEVICES)
    with pytest.raises(ValueError, match="`jit_compile` to be False"):
        cohort.compile("sgd", nets.cross_entropy(), jit_compile=True)
