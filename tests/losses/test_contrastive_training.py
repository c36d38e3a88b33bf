"""CRD in a Distiller: what moves, compiled steps, replicas, files."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.contract import network
from tests.contract import samples
from tests.contract import state
from tests.losses import numerics

COUNT = 24


def distiller(
    batch_norm=True, weight=0.8, label_weight=1.0, term=None, compile_options=None, **options
):
    """A compiled Distiller with CRD between the pooled layers, from a fixed seed."""
    keras.utils.set_random_seed(5)
    options = {"dimension": 4, "negatives": 6, "labels": samples(COUNT)[1], "seed": 3, **options}
    loss = kd.losses.ContrastiveRepresentation(COUNT, **options)
    teacher = network("teacher", 5, batch_norm=batch_norm)
    student = network("student", batch_norm=batch_norm)
    term = kd.Term(loss, "pool", "pool", weight=weight, **(term or {}))
    model = kd.Distiller(teacher, student, term, student_loss_weight=label_weight)
    compile_with(model, **(compile_options or {}))
    return model


def compile_with(model, **options):
    options = {"jit_compile": False, "loss": cross_entropy(), **options}
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), **options)


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(model, epochs=1, batch_size=8, **options):
    x, y = samples(COUNT)
    targets = kd.data.Targets(labels=y, ids=np.arange(COUNT))
    options = {"shuffle": False, "verbose": 0, **options}
    return model.fit(x, targets, batch_size=batch_size, epochs=epochs, **options).history


def arrays(variables):
    return [numerics.to_numpy(variable) for variable in variables]


def moved(before, variables):
    """The paths of the variables that differ from what they were."""
    pairs = zip(before, variables, strict=True)
    return {v.path for own, v in pairs if not np.array_equal(own, numerics.to_numpy(v))}


def test_one_step_moves_the_student_its_helpers_and_their_state():
    model = distiller(weight=10.0, label_weight=0.0)
    loss, student = model.terms[0].loss, model.student
    parts = [model.teacher, student, loss.teacher_embedding, loss.student_embedding]
    before = [arrays(part.variables) for part in parts]
    bank = numerics.to_numpy(loss.teacher_bank)
    fit(model, steps_per_epoch=1)
    moves = [moved(own, part.variables) for own, part in zip(before, parts)]
    # The term stands on the pooled layer: all before it learns, the logits do not.
    still = {"logits/kernel", "logits/bias"}
    assert moves[0] == set() and moves[1] == {v.path for v in student.variables} - still
    assert [len(own) for own in moves[2:]] == [2, 2]
    assert {id(v) for part in parts[1:] for v in part.trainable_variables} == {
        id(v) for v in model.trainable_variables
    }
    changed = (numerics.to_numpy(loss.teacher_bank) != bank).any(axis=1)
    np.testing.assert_array_equal(changed, np.arange(COUNT) < 8)
    norms = np.linalg.norm(numerics.to_numpy(loss.student_bank)[:8], axis=1)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-5)


def test_batch_statistics_move_once():
    model = distiller(weight=0.0)
    alone = keras.models.clone_model(model.student)
    alone.set_weights(model.student.get_weights())
    compile_with(alone)
    x, y = samples(COUNT)
    fit(model)
    alone.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for own, other in zip(model.student.variables, alone.variables):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-7, err_msg=own.path)


@pytest.mark.slow
def test_the_loss_falls():
    history = fit(distiller(weight=0.1), epochs=12)["contrastive_representation"]
    assert history[-1] < 0.85 * history[1]


@pytest.mark.slow
def test_compiled_steps_are_the_plain_ones():
    plain, jit, several = (
        distiller(compile_options=options)
        for options in ({}, {"jit_compile": True}, {"steps_per_execution": 3})
    )
    logs, *others = [fit(model, epochs=2) for model in (plain, jit, several)]
    for model, other_logs in zip((jit, several), others):
        for name in logs:
            np.testing.assert_allclose(other_logs[name], logs[name], rtol=1e-4, err_msg=name)
        for own, expected in zip(state(model), state(plain)):
            np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_loaded_it_goes_on_as_if_never_stopped(tmp_path):
    model = distiller(mode="relax")
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.terms[0].loss is not model.terms[0].loss
    for own, expected in zip(state(loaded), state(model), strict=True):
        np.testing.assert_array_equal(own, expected)
    for both in (model, loaded):
        fit(both)
    for own, expected in zip(state(loaded), state(model), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-7)


def test_weights_files_hold_banks_constants_and_seed(tmp_path):
    model, other = distiller(), distiller(seed=9)
    fit(model)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    own, expected = (m.terms[0].loss for m in (other, model))
    assert float(numerics.to_numpy(own.normalizers_known)) == 1.0
    assert len(own.variables) == 9
    for variable, value in zip(own.variables, arrays(expected.variables), strict=True):
        np.testing.assert_array_equal(numerics.to_numpy(variable), value, variable.path)


def test_student_files_and_exports_hold_no_helper(tmp_path):
    model = distiller()
    fit(model)
    model.student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    assert [v.path for v in loaded.variables] == [v.path for v in model.student.variables]
    assert model.inference_model is model.student
    prediction = model.predict(samples(COUNT)[0], verbose=0)
    np.testing.assert_allclose(loaded.predict(samples(COUNT)[0], verbose=0), prediction, rtol=1e-5)


@pytest.mark.slow
def test_evaluation_changes_nothing():
    model = distiller(compile_options={"evaluate_terms": True})
    fit(model)
    x, y = samples(COUNT)
    targets = kd.data.Targets(labels=y, ids=np.arange(COUNT))
    metrics = {id(v) for v in model.metrics_variables}
    tracked = [v for v in model.variables if id(v) not in metrics]
    before = arrays(tracked)
    logs = [model.evaluate(x, targets, return_dict=True, verbose=0) for _ in range(2)]
    assert logs[0] == logs[1] and logs[0]["contrastive_representation"] > 0
    assert moved(before, tracked) == set()


@pytest.mark.slow
def test_a_temperature_of_the_term_is_scheduled():
    fixed = distiller(temperature=0.5)
    scheduled = distiller(term={"temperature": kd.schedules.Constant(0.5)})
    name = "contrastive_representation"
    np.testing.assert_allclose(fit(scheduled)[name], fit(fixed)[name], rtol=1e-5)


def test_without_ids_or_on_maps_it_names_the_term():
    x, y = samples(COUNT)
    with pytest.raises(ValueError, match="with `ids`, for the term 'contrastive_rep"):
        distiller().fit(x, y, verbose=0)
    loss = kd.losses.ContrastiveRepresentation(COUNT)
    shapes = r"teacher \(None, 4, 4, 5\), student \(None, 4, 4, 3\)"
    with pytest.raises(ValueError, match=f"one vector .* 'contrastive_representation'.*{shapes}"):
        kd.Distiller(
            network("teacher", 5), network("student"), kd.Term(loss, "features", "features")
        )


def test_half_precision_students_train():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = distiller()
    history = fit(model, epochs=2)["contrastive_representation"]
    assert np.isfinite(history).all()
    assert model.terms[0].loss.teacher_bank.dtype == "float32"
    assert model.terms[0].loss.student_embedding.compute_dtype == "float32"


@pytest.mark.slow
@pytest.mark.tensorflow
def test_two_replicas_take_the_steps_of_one_device(two_replicas):
    """Draws, Z, banks and weights; the last batch, of four, too."""
    import tensorflow as tf

    def trained(strategy):
        with strategy.scope():
            model = distiller(batch_norm=False)
        return model, fit(model, epochs=2, batch_size=10)

    alone, logs = trained(tf.distribute.get_strategy())
    together, other_logs = trained(two_replicas)
    assert two_replicas.num_replicas_in_sync == 2
    for name in logs:
        np.testing.assert_allclose(other_logs[name], logs[name], rtol=1e-4, err_msg=name)
    for own, expected in zip(state(together), state(alone)):
        np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-5)
    loss = together.terms[0].loss
    for variable in (loss.teacher_bank, loss.student_bank, loss.log_normalizers):
        copies = [copy.numpy() for copy in variable.value.values]
        assert len(copies) == 2
        np.testing.assert_array_equal(*copies)


@pytest.mark.tensorflow
def test_banks_are_read_by_rows_where_they_are_large(monkeypatch):
    """The step holds no tensor of the bank's size but its rows."""
    import tensorflow as tf

    loss = kd.losses.ContrastiveRepresentation(7001, 3, 4, seed=1)
    loss.build_for((None, 2), (None, 2))
    step = tf.function(lambda t, ids, s: loss.call((t, ids), s))
    features = tf.ones((5, 2))
    graph = step.get_concrete_function(features, tf.constant([1, 2, 3, 4, 7000]), features).graph
    floats = [t for op in graph.get_operations() for t in op.outputs if t.dtype.is_floating]
    assert not any(7001 in tuple(t.shape) for t in floats)
    kinds = {op.type for op in graph.get_operations()}
    assert {"ResourceGather", "ResourceScatterUpdate"} <= kinds
    values = step(features, tf.constant([1, 2, 3, 4, 7000]), features)
    numerics.assert_finite(values)
