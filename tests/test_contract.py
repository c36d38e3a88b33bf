"""Every wrapper keeps the same promises (design: the contracts)."""

import contextlib

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.heads import head_of
from tests.contract import WRAPPERS
from tests.contract import network
from tests.contract import samples
from tests.contract import state

on_tensorflow = keras.backend.backend() == "tensorflow"


# The fast suite is theirs, the whole one is all's.
FAST = ("Distiller",)


@pytest.fixture(
    params=[
        pytest.param(wrapper, id=name, marks=[] if name in FAST else pytest.mark.slow)
        for name, wrapper in WRAPPERS.items()
    ]
)
def wrapper(request):
    return request.param


def fit(model, wrapper, epochs=1, batch_size=8, **arguments):
    x, y = wrapper.element(*samples())
    arguments = {"verbose": 0, "shuffle": False, **wrapper.fit, **arguments}
    return model.fit(x, y, epochs=epochs, batch_size=batch_size, **arguments).history


def train_alone(teacher, epochs=30):
    """Trains a frozen teacher on labels; the wrapper does not notice."""
    softmax = keras.tree.flatten(head_of(teacher)) == ["softmax"]
    teacher.compile(
        keras.optimizers.Adam(0.03),
        keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax),
    )
    teacher.fit(*samples(), batch_size=8, epochs=epochs, verbose=0)


def assert_same_state(one, other, **tolerance):
    assert len(one) == len(other)
    for a, b in zip(one, other):
        np.testing.assert_allclose(a, b, **tolerance)


def test_fit_learns_and_logs(wrapper):
    model = wrapper.compiled()
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    history = fit(model, wrapper, epochs=6)
    assert all(np.isfinite(values).all() for values in history.values())
    assert history["loss"][-1] < history["loss"][0]
    after = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, after))


def test_steps_per_execution_changes_nothing(wrapper):
    plain, several = wrapper.compiled(), wrapper.compiled(compile={"steps_per_execution": 3})
    logs, other = fit(plain, wrapper, epochs=2), fit(several, wrapper, epochs=2)
    assert_same_state(state(plain), state(several), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(logs["loss"], other["loss"], rtol=1e-5)


def test_xla_trains_the_same(wrapper):
    plain, compiled = wrapper.compiled(), wrapper.compiled(compile={"jit_compile": True})
    assert compiled.jit_compile
    logs, other = fit(plain, wrapper), fit(compiled, wrapper)
    assert_same_state(state(plain), state(compiled), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logs["loss"], other["loss"], rtol=1e-4)


def test_eager_trains_the_same(wrapper):
    plain, eager = wrapper.compiled(), wrapper.compiled(compile={"run_eagerly": True})
    fit(plain, wrapper)
    fit(eager, wrapper)
    assert_same_state(state(plain), state(eager), rtol=1e-4, atol=1e-5)


def test_gradient_accumulation_equals_the_larger_batch(wrapper):
    if not wrapper.splits:
        pytest.skip("a term is a statistic of the whole batch")

    def optimizer(steps):
        return keras.optimizers.SGD(0.05, gradient_accumulation_steps=steps)

    options = {"batch_norm": False}
    accumulated = wrapper.compiled(compile={"optimizer": optimizer(2)}, **options)
    whole = wrapper.compiled(compile={"optimizer": optimizer(None)}, **options)
    fit(accumulated, wrapper, batch_size=4)
    fit(whole, wrapper, batch_size=8)
    trained = [keras.ops.convert_to_numpy(v) for v in accumulated.trainable_variables]
    expected = [keras.ops.convert_to_numpy(v) for v in whole.trainable_variables]
    assert_same_state(trained, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains(wrapper, policy):
    model = wrapper.compiled(dtype=policy)
    assert model.dtype_policy.name == policy
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")
    history = fit(model, wrapper, epochs=6)
    assert all(np.isfinite(values).all() for values in history.values())
    assert history["loss"][-1] < history["loss"][0]
    logged = [variable for metric in model.metrics for variable in metric.variables]
    assert {v.dtype for v in [*model.trainable_variables, *logged]} == {"float32"}
    if is_scaled:  # no step of these was skipped
        scale = keras.ops.convert_to_numpy(model.optimizer.dynamic_scale)
        assert float(scale) == model.optimizer.initial_scale


def test_same_seed_same_weights(wrapper):
    runs = []
    for _ in range(2):
        model = wrapper.compiled(dropout=0.5)
        fit(model, wrapper, shuffle=True)
        runs.append(state(model))
    assert_same_state(*runs, rtol=1e-6, atol=1e-7)


def test_load_and_fit_on_equals_uninterrupted(wrapper, tmp_path):
    model = wrapper.compiled(dropout=0.5)
    fit(model, wrapper)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [(v.name, v.shape) for v in loaded.trainable_variables] == [
        (v.name, v.shape) for v in model.trainable_variables
    ]
    x, _ = samples()
    predicted, other = (wrapper.prediction(m.predict(x, verbose=0)) for m in (model, loaded))
    np.testing.assert_allclose(predicted, other, rtol=1e-5, atol=1e-6)
    logs, other = fit(model, wrapper, epochs=2), fit(loaded, wrapper, epochs=2)
    assert_same_state(state(model), state(loaded), rtol=1e-5, atol=1e-6)
    for name in logs:
        np.testing.assert_allclose(logs[name], other[name], rtol=1e-4)


def test_weights_file_restores_all_but_the_frozen(wrapper, tmp_path):
    model = wrapper.compiled()
    fit(model, wrapper)
    model.save_weights(tmp_path / "state.weights.h5")
    other = wrapper.compiled(seed=8)
    frozen = {id(v) for v in other.frozen_variables}
    teacher = [keras.ops.convert_to_numpy(v) for v in other.frozen_variables]
    other.load_weights(tmp_path / "state.weights.h5")
    for mine, theirs in zip(model.variables, other.variables):
        if id(theirs) not in frozen:
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(theirs)
            )
    for before, variable in zip(teacher, other.frozen_variables):
        np.testing.assert_array_equal(before, keras.ops.convert_to_numpy(variable))
    for mine, theirs in zip(model.optimizer.variables, other.optimizer.variables):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(theirs)
        )


def test_clone_from_config_is_fresh_and_trains(wrapper):
    model = wrapper.compiled()
    clone = type(model).from_config(model.get_config())
    assert not {id(v) for v in clone.variables} & {id(v) for v in model.variables}
    assert [v.shape for v in clone.variables] == [v.shape for v in model.variables]
    clone.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert np.isfinite(fit(clone, wrapper)["loss"]).all()


def test_backup_and_restore_from_the_first_epoch(wrapper, tmp_path):
    class Killed(RuntimeError):
        pass

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2 + 4 * (wrapper.rounds - 1):  # in the last training
                raise Killed

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    undisturbed = wrapper.compiled()
    fit(undisturbed, wrapper, epochs=4)
    with pytest.raises(Killed):
        fit(wrapper.compiled(), wrapper, epochs=4, callbacks=[backup(), Kill()])
    resumed = wrapper.compiled(seed=7)
    history = fit(resumed, wrapper, epochs=4, callbacks=[backup()])
    assert len(history["loss"]) == 2
    assert_same_state(state(undisturbed), state(resumed), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("evaluate_terms", [False, True])
def test_evaluate_and_predict_change_nothing(wrapper, evaluate_terms):
    model = wrapper.compiled(dropout=0.5, compile={"evaluate_terms": evaluate_terms})
    fit(model, wrapper)
    before = state(model)
    x, y = samples()
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    assert_same_state(before, state(model), rtol=0, atol=0)


def test_evaluate_is_the_inference_model_alone(wrapper):
    model = wrapper.compiled()
    x, y = samples()
    plain = model.inference_model
    plain.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    expected = plain.evaluate(x, y, verbose=0, return_dict=True)
    logs = wrapper.logs(model.evaluate(x, y, verbose=0, return_dict=True))
    assert logs.keys() == expected.keys()
    for name in logs:
        np.testing.assert_allclose(logs[name], expected[name], rtol=1e-5)


@pytest.mark.tensorflow
def test_train_step_equals_keras_own(wrapper, monkeypatch):
    def keras_own_step(self, *args):
        logs = keras.Model.train_step(self, *args)
        self.after_update()
        return logs

    ours = wrapper.compiled(dropout=0.5)
    fit(ours, wrapper, epochs=2)
    monkeypatch.setattr(kd.models.DistillationModel, "train_step", keras_own_step)
    keras_own = wrapper.compiled(dropout=0.5)
    fit(keras_own, wrapper, epochs=2)
    assert_same_state(state(ours), state(keras_own), rtol=0, atol=0)


def test_two_devices_equal_one(wrapper, two_devices):
    def run(scope):
        with scope:
            # On TensorFlow, batch statistics are each replica's own.
            model = wrapper.compiled(batch_norm=not on_tensorflow)
            x, y = wrapper.element(*samples(40))
            arguments = {"batch_size": 8, "shuffle": False, "verbose": 0, **wrapper.fit}
            history = model.fit(x, y, **arguments).history
            logs = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
            weights = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
        return weights, history, logs

    weights, history, logs = run(contextlib.nullcontext())
    both, history_of_both, logs_of_both = run(two_devices.scope())
    assert_same_state(weights, both, rtol=1e-5, atol=1e-7 if on_tensorflow else 1e-6)
    for name in history:
        np.testing.assert_allclose(
            history[name], history_of_both[name], rtol=1e-5, atol=1e-7, err_msg=name
        )
    for name in logs:
        np.testing.assert_allclose(logs[name], logs_of_both[name], rtol=1e-5, err_msg=name)


@pytest.mark.tensorflow
def test_saved_model_of_the_inference_model(wrapper, tmp_path):
    import tensorflow as tf

    model = wrapper.compiled()
    x, _ = samples()
    kd.export.saved_model(model, tmp_path / "saved")
    served = tf.saved_model.load(str(tmp_path / "saved"))
    predicted = wrapper.prediction(model.predict(x, verbose=0))
    np.testing.assert_allclose(served.serve(x).numpy(), predicted, rtol=1e-4, atol=1e-5)
    expected = sum(int(np.prod(v.shape)) for v in model.inference_model.weights)
    assert sum(int(np.prod(v.shape)) for v in served.variables) == expected


@pytest.mark.tensorflow
@pytest.mark.slow
def test_tflite_of_the_inference_model(wrapper, tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = wrapper.compiled()
    # A network that knows its classes: one that has learnt nothing has ties, which int8 breaks.
    for name in model.frozen_attributes:
        train_alone(getattr(model, name))
    fit(model, wrapper, epochs=30)
    x, y = samples(64)
    # Every kind of one wrapper's; tests/export writes every kind of many networks.
    others = ("float16", "dynamic") if wrapper is WRAPPERS["Distiller"] else ()
    for quantize in (None, *others, "int8"):
        path = tmp_path / f"{quantize}.tflite"
        kd.export.tflite(model, path, quantize=quantize, representative_data=x)
        limits = {"min_agreement": 0.9} if quantize in ("int8", "dynamic") else {}
        report = kd.export.check_parity(model, path, x, **limits)
        assert report.samples == 64


LOSSES = [
    name
    for name in kd.losses.__all__
    if isinstance(getattr(kd.losses, name), type) and name != "DistillationLoss"
]

ARGUMENTS = {
    "AlphaDivergence": {"alpha": 0.5},
    "ContrastiveRepresentation": {"samples": 8, "negatives": 3},
}
# What losses of features are offered: the first that a loss can compare is what it gets.
OFFERED = ["pool", "features", ["stem", "features"], ["stem", "features", "pool", "logits"]]


def layers_for(loss, model):
    """The layers of `network` that a loss compares."""
    shapes = kd.taps.list_taps(model)
    for layers in OFFERED:
        own = shapes[layers] if isinstance(layers, str) else [shapes[name] for name in layers]
        if loss.misfit(own, own) is None:
            return layers
    raise AssertionError(f"{loss.name} can compare none of {OFFERED}")


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_one_wrapped_step(name):
    loss = getattr(kd.losses, name)(**ARGUMENTS.get(name, {}))
    if loss.on_inputs and keras.backend.backend() != "tensorflow":
        with pytest.raises(RuntimeError, match="needs the TensorFlow backend"):
            kd.Term(loss)
        return
    wiring = {}
    if not (loss.on_logits or loss.on_inputs):
        layers = layers_for(loss, network("teacher", 5))
        wiring = {"teacher": layers, "student": layers, "connector": "auto"}
    student = network("student")
    distiller = kd.Distiller(network("teacher", 5), student, kd.Term(loss, **wiring))
    label_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.1), label_loss)
    before = [keras.ops.convert_to_numpy(v) for v in student.trainable_variables]
    x, y = samples(8)
    y = kd.data.Targets(labels=y, ids=np.arange(8)) if loss.needs_ids else y
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert np.isfinite(logs["loss"])
    after = [keras.ops.convert_to_numpy(v) for v in student.trainable_variables]
    assert any(np.abs(a - b).max() > 0 for a, b in zip(before, after))
