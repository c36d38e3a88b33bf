"""BSS in a Distiller: what moves, compiled steps, replicas, files."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import losses
from tests.contract import network
from tests.contract import samples
from tests.contract import state
from tests.losses import numerics


def distiller(loss=None, batch_norm=True, label_weight=1.0, **options):
    keras.utils.set_random_seed(5)
    networks = (network(name, batch_norm=batch_norm) for name in ("teacher", "student"))
    loss = loss or losses.BoundarySupport(step_size=3.0, seed=2)
    model = kd.Distiller(*networks, loss, student_loss_weight=label_weight)
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **{"jit_compile": False, **options},
    )
    return model


def agreed(model, count=24):
    """Images, and labels that the student gives, and its near copy, the teacher, to most."""
    rng = np.random.default_rng(3)
    x, _ = samples(count)
    model.teacher.set_weights(
        [w * rng.uniform(0.7, 1.3, w.shape) for w in model.student.get_weights()]
    )
    return x, model.student.predict(x, verbose=0).argmax(axis=-1)


def fit(model, data, epochs=1, **options):
    options = {"batch_size": 8, "verbose": 0, "shuffle": False, **options}
    return model.fit(*data, epochs=epochs, **options).history


@pytest.mark.tensorflow
def test_one_step_moves_the_student_alone_and_batch_statistics_once():
    model = distiller(label_weight=0.0)
    data = agreed(model)
    alone = keras.models.clone_model(model.student)
    alone.set_weights(model.student.get_weights())
    alone.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    teacher, student = ([v.numpy() for v in m.variables] for m in (model.teacher, model.student))
    assert fit(model, data, steps_per_epoch=1)["boundary_support"][0] > 0
    alone.fit(data[0][:8], data[1][:8], batch_size=8, verbose=0)
    for own, variable in zip(teacher, model.teacher.variables):
        np.testing.assert_array_equal(own, variable.numpy())
    assert not any(
        np.array_equal(own, variable.numpy())
        for own, variable in zip(student, model.student.variables)
    )
    for own, other in zip(
        model.student.non_trainable_variables, alone.non_trainable_variables, strict=True
    ):
        np.testing.assert_allclose(own, other, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_compiled_steps_are_the_plain_ones():
    histories = []
    for options in ({}, {"jit_compile": True}, {"steps_per_execution": 3}):
        model = distiller(losses.BoundarySupport(5, 4, 3.0, score="probs", seed=2), **options)
        histories.append(fit(model, agreed(model)))
    assert histories[0]["boundary_support"][0] > 0
    for history in histories[1:]:
        for name, value in histories[0].items():
            np.testing.assert_allclose(history[name], value, rtol=1e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_loaded_it_goes_on_as_if_never_stopped(tmp_path):
    model = distiller()
    data = agreed(model)
    fit(model, data)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for both in (model, loaded):
        fit(both, data)
    assert len(state(loaded)) == len(state(model))
    for own, expected in zip(state(loaded), state(model)):
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-7)
    seed = model.terms[0].loss._seeds.state.numpy()
    assert seed[1] == 6


@pytest.mark.slow
@pytest.mark.tensorflow
def test_two_replicas_take_the_steps_of_one_device(two_replicas):
    """Unevenly many attacked images too; the draws are those of the global batch."""
    import tensorflow as tf

    def trained(strategy):
        with strategy.scope():
            # At a low temperature the images' values differ.
            loss = losses.BoundarySupport(step_size=3.0, temperature=0.1, seed=2)
            model = distiller(loss, batch_norm=False)
            x, y = agreed(model)
        y[:3] = -1
        history = fit(model, (x, y), batch_size=10)
        assert history["boundary_support"][0] > 0
        return [*model.student.get_weights(), history["boundary_support"]]

    alone, together = trained(tf.distribute.get_strategy()), trained(two_replicas)
    for one, both in zip(alone, together):
        np.testing.assert_allclose(both, one, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(numerics.BACKEND == "tensorflow", reason="about the other backends")
def test_other_backends_are_told_of_tensorflow():
    with pytest.raises(RuntimeError, match="BoundarySupport needs the TensorFlow backend"):
        kd.Term(losses.BoundarySupport())
