"""What users of other libraries suffer, each guarded by a test of that name.

D1 to D20 are measured defects of keras.distillation 3.15.1, C1 to C34 complaints collected from
issue trackers. Those about one loss's formula, the data functions, the exports and recipes are
tested there.
"""

import contextlib
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_distill as kd
from tests.models import nets

SOFT = kd.losses.SoftTargets


def compiled(wrapper, loss="ce", optimizer=None, **kwargs):
    loss = nets.cross_entropy() if loss == "ce" else loss
    wrapper.compile(optimizer or nets.sgd(), loss, jit_compile=False, **kwargs)
    return wrapper


def distiller(terms=None, teacher=None, student=None, loss="ce", optimizer=None, **kwargs):
    teacher = teacher or nets.sharpen(nets.mlp(width=12, name="teacher"))
    student = student or nets.mlp(name="student")
    return compiled(kd.Distiller(teacher, student, terms or SOFT(3.0), **kwargs), loss, optimizer)


def fit(wrapper, x, y=None, **kwargs):
    kwargs = {"batch_size": 8, "shuffle": False, "verbose": 0, **kwargs}
    return wrapper.fit(x, y, **kwargs).history


def step(wrapper, x=None, y=None, **kwargs):
    x = nets.vectors(8) if x is None else x
    return wrapper.train_on_batch(x, y, return_dict=True, **kwargs)


def counting(record):
    """A layer that notes the `training` argument of its calls."""

    class Counting(layers.Layer):
        def call(self, inputs, training=None):
            record.append(bool(training))
            return inputs

    return Counting()


def counting_cnn(record, name, width=4):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(width, 3, name="conv")(counting(record)(inputs))
    x = layers.BatchNormalization(momentum=0.5, name="bn")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(nets.CLASSES, name="head")(x), name=name)


# D1 to D20.


def test_the_default_loss_is_distillation():
    """D1, C1, C2: softmax of logits over T, KL(teacher || student), times T^2; no clipping."""
    wrapper = distiller(SOFT(3.0), loss=None)
    x = nets.vectors(8)
    t, s = nets.predict(wrapper.teacher, x), nets.predict(wrapper.student, x)
    expected = nets.kd(t, s, 3.0).mean()
    assert step(wrapper, x)["soft_targets"] == pytest.approx(expected, rel=1e-5)
    assert expected > 0
    converted = kd.Distiller.from_keras(
        keras.distillation.Distiller(
            nets.mlp(), nets.mlp(name="s"), keras.distillation.LogitsDistillation(temperature=3.0)
        )
    )
    assert isinstance(converted.terms[0].loss, SOFT)


def test_pure_distillation_learns_what_the_teacher_says():
    """D1: with keras.distillation's default 11.7 % agreed, chance being 10 %."""
    wrapper = distiller(SOFT(3.0), loss=None, optimizer=keras.optimizers.Adam(0.02))
    x = nets.vectors(256)
    fit(wrapper, x, batch_size=32, epochs=20)
    t, s = nets.predict(wrapper.teacher, x), nets.predict(wrapper.student, x)
    assert np.mean(t.argmax(-1) == s.argmax(-1)) > 0.9


def test_the_student_runs_once_a_step_for_labels_logits_and_features():
    """D2: two calls a step, batch statistics twice as far, two dropout masks."""
    calls = {"teacher": [], "student": []}
    teacher = counting_cnn(calls["teacher"], "teacher", 6)
    student = counting_cnn(calls["student"], "student")
    terms = [SOFT(2.0)] + [
        kd.Term(kd.losses.Hint(), path, path, connector="auto") for path in ("conv", "bn", "drop")
    ]
    wrapper = kd.Distiller(teacher, student, terms)
    wrapper.compile(nets.sgd(0.0), nets.cross_entropy(), run_eagerly=True)
    x, y = nets.images(8), nets.class_ids(8)
    step(wrapper, x, y)
    mean = nets.array(student.get_layer("bn").moving_mean)
    batch = nets.predict(student.get_layer("conv"), x).mean((0, 1, 2))
    for record in calls.values():
        record.clear()
    step(wrapper, x, y)
    assert calls == {"teacher": [False], "student": [True]}
    moved = nets.array(student.get_layer("bn").moving_mean)
    np.testing.assert_allclose(moved, 0.5 * mean + 0.5 * batch, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("evaluate_terms", [False, True])
def test_validation_never_changes_the_student(evaluate_terms):
    """D3: one `evaluate` moved the batch statistics by 0.137."""
    terms = [SOFT(2.0), kd.Term(kd.losses.Hint(), "stage1", "stage1", connector="auto")]
    wrapper = kd.Distiller(nets.cnn(6, "teacher"), nets.cnn(4, "student", dropout=0.5), terms)
    compiled(wrapper, evaluate_terms=evaluate_terms)
    x, y = nets.images(12), nets.class_ids(12)
    before = nets.snapshot(wrapper)
    first = wrapper.evaluate(x, y, verbose=0)
    assert wrapper.evaluate(x, y, verbose=0) == first  # no dropout either
    wrapper.predict(x, verbose=0)
    nets.assert_untouched(wrapper, before)


def test_sample_and_class_weights_and_masks_reach_the_terms():
    """D4: all-zero sample weights gave identical losses."""
    wrapper = distiller(SOFT(3.0), optimizer=nets.sgd(0.1))
    x, y = nets.vectors(8), nets.class_ids(8)
    before = nets.snapshot(wrapper.student)
    logs = step(wrapper, x, y, sample_weight=np.zeros(8, "float32"))
    assert logs["loss"] == logs["soft_targets"] == logs["label_loss"] == 0.0
    logs = step(wrapper, x, y, class_weight={i: 0.0 for i in range(nets.CLASSES)})
    assert logs["loss"] == logs["soft_targets"] == 0.0
    nets.assert_untouched(wrapper.student, before)
    tokens = compiled(kd.Distiller(nets.tagger(7, "t"), nets.tagger(5, "s"), SOFT(2.0)), None)
    ids = nets.token_ids()
    short = tokens.evaluate(ids, verbose=0)
    padded = tokens.evaluate(np.pad(ids, ((0, 0), (0, 9))), verbose=0)
    np.testing.assert_allclose(padded, short, rtol=1e-5)


class OwnLoss(kd.losses.DistillationLoss):
    """A user's subclass, one value a sample."""

    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1)


def scalar(teacher, student):
    return ops.mean(ops.square(teacher - student))


@pytest.mark.slow
@pytest.mark.tensorflow
def test_replicas_take_the_step_and_show_the_losses_of_one_device(two_replicas):
    """D5, C3, C4: strings and own losses took an N-fold step, logs shrank by N."""
    forms = ["mse", OwnLoss(), scalar, SOFT(2.0), keras.losses.MeanSquaredError()]
    forms.append(SOFT(2.0, reduction="sum"))
    x, y = nets.vectors(16), nets.class_ids(16)
    start = nets.mlp(name="student", regularizer=keras.regularizers.L2(0.01)).get_weights()
    guide = nets.sharpen(nets.mlp(width=12)).get_weights()
    logs, weights = [], []
    for scope in (contextlib.nullcontext(), two_replicas.scope()):
        with scope:
            teacher = nets.mlp(width=12, name="teacher")
            student = nets.mlp(name="student", regularizer=keras.regularizers.L2(0.01))
            teacher.set_weights(guide)
            student.set_weights(start)
            terms = [kd.Term(loss, weight=0.1 * (i + 1)) for i, loss in enumerate(forms)]
            terms.append(
                kd.Term("mse", "hidden", "hidden", 0.5, connector=layers.Dense(12, name="fit"))
            )
            wrapper = kd.Distiller(teacher, student, terms)
            connector = wrapper.terms[-1].connectors[0]
            connector.set_weights([np.full((8, 12), 0.1, "float32"), np.zeros(12, "float32")])
            compiled(wrapper, metrics=["accuracy"])
        logs.append(fit(wrapper, x, y, batch_size=16, epochs=2))
        weights.append(student.get_weights())
    assert set(logs[0]) == set(logs[1])
    for name in logs[0]:
        np.testing.assert_allclose(logs[1][name], logs[0][name], rtol=1e-5, err_msg=name)
    for one, two in zip(*weights):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-7)
    assert any(np.any(a != b) for a, b in zip(weights[0], start))


def test_regularisers_and_added_losses_of_the_student_count():
    """D6: the distiller's loss was 11.0 where the student's alone was 6647."""
    student = nets.cnn(4, "student", regularized=True)
    alone = compiled(nets.copy_of(student))
    wrapper = distiller(kd.Term(SOFT(), weight=0.0), nets.cnn(6, "teacher"), student)
    x, y = nets.images(8), nets.class_ids(8)
    np.testing.assert_allclose(step(wrapper, x, y)["loss"], step(alone, x, y)["loss"], rtol=1e-6)


def test_regularisers_of_the_teacher_stay_out():
    """D6's other side: 9210 for 1.6 where a teacher's penalties leak in."""
    teacher = nets.cnn(6, "teacher", regularized=True)
    wrapper = distiller(SOFT(2.0), teacher, nets.cnn(4, "student"))
    x, y = nets.images(8), nets.class_ids(8)
    for _ in range(2):
        wrapper.reset_metrics()
        logs = step(wrapper, x, y)
        parts = logs["label_loss"] + logs["soft_targets"]
        np.testing.assert_allclose(logs["loss"], parts, rtol=1e-6)


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_lists_and_dicts_of_losses_train(kind):
    """D7, C12: ValueError "Custom node type mismatch" in each of four forms."""
    teacher, student = nets.two_heads(kind, "teacher"), nets.two_heads(kind, "student")
    ce = nets.cross_entropy()
    forms = {
        "list": [[ce, ce], {"zebra": ce, "apple": ce}, ce],
        "dict": [{"zebra": ce, "apple": ce}, {"zebra": ce, "apple": None}, ce],
    }[kind]
    x, zebra, apple = nets.vectors(8), nets.class_ids(8), nets.class_ids(8) % 3
    y = [zebra, apple] if kind == "list" else {"zebra": zebra, "apple": apple}
    wrapper = kd.Distiller(teacher, student, SOFT(2.0))
    for loss in forms:
        assert np.isfinite(step(compiled(wrapper, loss), x, y)["loss"])


def test_connectors_and_layers_of_a_loss_are_trained():
    """D8, C14: a projector that is not in the optimizer stays where it is."""
    term = kd.Term(kd.losses.Hint(), "hidden", "hidden", connector="auto")
    wrapper = distiller(term)
    connector = wrapper.terms[0].connectors[0]
    before = [np.array(w) for w in connector.get_weights()]
    variables = {id(v) for v in wrapper.trainable_variables}
    assert {id(v) for v in connector.trainable_variables} <= variables
    step(wrapper, y=nets.class_ids(8))
    assert all(np.any(a != b) for a, b in zip(before, connector.get_weights()))


def test_features_of_different_sizes_are_fitted_or_refused():
    """D9, C15: cosine raised, and width 1 against 16 was broadcast silently."""
    teacher, student = nets.mlp(width=16, name="teacher"), nets.mlp(width=1, name="student")
    for loss in ("mse", "cosine_similarity", kd.losses.Hint()):
        with pytest.raises(ValueError, match="same shape.*connector='auto'"):
            kd.Distiller(teacher, student, kd.Term(loss, "hidden", "hidden"))
        term = kd.Term(loss, "hidden", "hidden", connector="auto")
        logs = step(distiller(term, teacher, student), y=nets.class_ids(8))
        assert np.isfinite(logs[term.name])


def test_networks_of_different_precision_size_and_classes():
    """D10, C16, C28, C30: refused; and losses were computed in float16."""
    keras.config.set_dtype_policy("mixed_float16")
    student = nets.cnn(4, "student")
    keras.config.set_dtype_policy("float32")
    inner = nets.cnn(6, "inner", classes=6, size=12)
    teacher = keras.Sequential([keras.Input((8, 8, 1)), layers.Resizing(12, 12), inner])
    inner.get_layer("head").kernel.assign(3e4 * inner.get_layer("head").kernel)
    wrapper = distiller(SOFT(4.0), teacher, student, class_map=[0, 1, 2, 5])
    logs = step(wrapper, nets.images(8), nets.class_ids(8))
    t = nets.predict(teacher, nets.images(8))[:, [0, 1, 2, 5]]
    assert np.abs(t).max() > 1000 and np.isfinite(list(logs.values())).all()
    assert logs["soft_targets"] > 0


def test_a_loaded_wrapper_goes_on_training(tmp_path):
    """D11, C22: load_model lost the compile state; BackupAndRestore refused."""
    wrapper = distiller(SOFT(3.0), optimizer="adam")
    x, y = nets.vectors(16), nets.class_ids(16)
    fit(wrapper, x, y)
    wrapper.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert fit(loaded, x, y)["loss"] == pytest.approx(fit(wrapper, x, y)["loss"], rel=1e-5)
    assert int(nets.array(loaded.optimizer.iterations)) == 4
    fresh = distiller(SOFT(3.0))
    fit(fresh, x, y, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")])


def test_checkpoints_leave_the_teacher_out(tmp_path):
    """D11, C5: the "compressed" model was larger than before."""
    teacher = nets.mlp(width=400, name="teacher")
    wrapper = distiller(SOFT(), teacher)
    wrapper.save_weights(tmp_path / "w.weights.h5")
    wrapper.save(tmp_path / "full.keras")
    wrapper.save(tmp_path / "small.keras", include_teacher=False)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    weight = 4 * sum(int(np.prod(v.shape)) for v in teacher.variables)
    assert sizes["full.keras"] > weight
    assert sizes["full.keras"] - sizes["small.keras"] > 0.9 * weight
    assert sizes["small.keras"] < sizes["full.keras"] / 2
    assert sizes["w.weights.h5"] < sizes["full.keras"] - 0.5 * weight


@pytest.mark.tensorflow
def test_weights_and_temperatures_change_without_a_retrace():
    """D12: a callback's change did nothing, and there was no warm-up."""
    traces = []

    def traced(teacher, student):
        traces.append(1)
        return ops.mean(ops.square(teacher - student), axis=-1)

    wrapper = distiller(traced, loss=None, optimizer=nets.sgd(0.0))
    first = step(wrapper)
    count = len(traces)
    wrapper.terms[0].weight.assign(0.25)
    wrapper.reset_metrics()
    second = step(wrapper)
    assert len(traces) == count
    assert second["loss"] == pytest.approx(0.25 * first["loss"], rel=1e-5)
    assert second["traced"] == pytest.approx(first["traced"], rel=1e-5)
    warm = kd.Term(SOFT(), weight=kd.schedules.WarmUp(8.0, 4))
    wrapper = distiller(warm, loss=None, optimizer=nets.sgd(0.0))
    for expected in (2.0, 4.0, 6.0, 8.0, 8.0):
        wrapper.reset_metrics()
        logs = step(wrapper)
        assert logs["loss"] / logs["soft_targets"] == pytest.approx(expected, rel=1e-5)


def test_weights_are_independent_of_each_other_and_loss_weights_count():
    """D13: the weight of a single loss was dropped, weights were tied to 1 - alpha."""
    wrapper = distiller(kd.Term(SOFT(3.0), weight=7.0), student_loss_weight=0.3)
    wrapper.compile(nets.sgd(), nets.cross_entropy(), loss_weights=[2.0], jit_compile=False)
    x, y = nets.vectors(8), nets.class_ids(8)
    t, s = nets.predict(wrapper.teacher, x), nets.predict(wrapper.student, x)
    expected = 0.3 * 2.0 * nets.ce(y, s).mean() + 7.0 * nets.kd(t, s, 3.0).mean()
    assert step(wrapper, x, y)["loss"] == pytest.approx(expected, rel=1e-5)


def test_layers_inside_nested_backbones_are_reached():
    """D14, C10: "Graph disconnected" and names that were not found."""

    def classifier(width, name):
        inputs = keras.Input((8, 8, 1))
        features = nets.cnn(width, "backbone")(inputs)
        return keras.Model(inputs, layers.Dense(nets.CLASSES)(features), name=name)

    term = kd.Term(kd.losses.Hint(), "backbone/stage1", "backbone/stage1", connector="auto")
    wrapper = distiller([term, SOFT()], classifier(6, "teacher"), classifier(4, "student"))
    assert step(wrapper, nets.images(8), nets.class_ids(8))["hint"] > 0


def test_a_softmax_head_is_found_and_a_contradicting_loss_refused():
    """D15, C2: probabilities were taken for logits without a word."""
    teacher, student = nets.mlp("softmax", width=12), nets.mlp("softmax", name="student")
    wrapper = distiller(SOFT(3.0), teacher, student, "sparse_categorical_crossentropy")
    x, y = nets.vectors(8), nets.class_ids(8)
    t, s = np.log(nets.predict(teacher, x)), np.log(nets.predict(student, x))
    expected = nets.kd(t, s, 3.0).mean()
    assert step(wrapper, x, y)["soft_targets"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="reads logits"):
        distiller(SOFT(), loss="sparse_categorical_crossentropy")


def test_the_gradient_lives_where_teacher_and_student_disagree():
    """D16: through clipped probabilities it was [0, 0] for [-1, 1]."""
    student = keras.Sequential([keras.Input((2,)), layers.Dense(2, use_bias=False)])
    teacher = nets.copy_of(student)
    student.set_weights([np.diag([-10.0, 10.0]).astype("float32")])
    teacher.set_weights([np.diag([10.0, -10.0]).astype("float32")])
    wrapper = distiller(SOFT(1.0), teacher, student, None, nets.sgd(1.0))
    step(wrapper, np.ones((1, 2), "float32"))
    moved = student.get_weights()[0] - np.diag([-10.0, 10.0])
    np.testing.assert_allclose(moved, [[1.0, -1.0], [1.0, -1.0]], rtol=1e-5)


def test_labels_are_not_needed():
    """D17, C9, C34: `loss=None` was refused, `y` missing failed."""
    wrapper = distiller(SOFT(3.0), loss=None)
    assert set(fit(wrapper, nets.vectors(8))) == {"loss", "soft_targets"}
    assert wrapper.evaluate(nets.vectors(8), verbose=0, return_dict=True)["loss"] > 0


@pytest.mark.slow
def test_the_teacher_is_left_untouched():
    """D18, C13: `trainable=False` stayed; batch statistics and dropout woke up."""
    teacher = nets.cnn(6, "teacher", regularized=True, dropout=0.5)
    compiled(teacher, optimizer="adam", metrics=["accuracy"])
    teacher.get_layer("conv1").trainable = False
    x, y = nets.images(16), nets.class_ids(16)
    fit(teacher, x, y)
    optimizer = [nets.array(v) for v in teacher.optimizer.variables]
    expected, before = nets.predict(teacher, x), nets.snapshot(teacher)
    wrapper = kd.Distiller(teacher, nets.cnn(4, "student"), SOFT(2.0))
    compiled(wrapper, metrics=["accuracy"])
    logs = fit(wrapper, x, y, epochs=2, validation_data=(x, y))
    nets.assert_untouched(teacher, before)
    np.testing.assert_array_equal(nets.predict(teacher, x), expected)
    for old, new in zip(optimizer, teacher.optimizer.variables):
        np.testing.assert_array_equal(nets.array(new), old)
    assert teacher.trainable and len(teacher.trainable_variables) == 6  # of 8
    alone = teacher.evaluate(x, y, verbose=0, return_dict=True)
    assert set(alone) == {"loss", "accuracy"}
    assert set(logs) >= {"loss", "label_loss", "soft_targets", "accuracy", "val_accuracy"}
    fit(teacher, x, y)  # and it still trains


def test_a_teacher_that_shares_with_the_student_is_refused():
    """D18: the student was frozen, with 0 trainable weights."""
    net = nets.mlp()
    with pytest.raises(ValueError, match="same model"):
        kd.Distiller(net, net, SOFT())
    shared = keras.Model(net.input, layers.Dense(4)(net.get_layer("hidden").output))
    with pytest.raises(ValueError, match="share no variables"):
        kd.Distiller(net, shared, SOFT())
    assert net.trainable and len(net.trainable_variables) == 4


def test_each_loss_has_its_log_and_they_add_up_on_a_ragged_batch():
    """D19, C25: "loss" and "total_loss" disagreed; terms were summed in one log."""
    terms = [kd.Term(SOFT(3.0), weight=2.0), kd.Term("mse", weight=0.5), SOFT(1.0)]
    wrapper = distiller(terms, optimizer=nets.sgd(0.0))
    logs = fit(wrapper, nets.vectors(19), nets.class_ids(19))
    logs = {name: values[0] for name, values in logs.items()}
    assert set(logs) == {
        "loss", "label_loss", "soft_targets", "mean_squared_error", "soft_targets_1",
    }  # fmt: skip
    parts = logs["label_loss"] + 2.0 * logs["soft_targets"]
    parts += 0.5 * logs["mean_squared_error"] + logs["soft_targets_1"]
    assert logs["loss"] == pytest.approx(parts, rel=1e-5)


def test_validation_does_not_run_the_teacher():
    """D19, C18: the teacher ran on every validation batch."""
    record = []
    teacher = counting_cnn(record, "teacher")
    wrapper = kd.Distiller(teacher, nets.cnn(4, "student"), SOFT())
    wrapper.compile("sgd", nets.cross_entropy(), run_eagerly=True)
    x, y = nets.images(8), nets.class_ids(8)
    record.clear()
    wrapper.evaluate(x, y, verbose=0)
    wrapper.predict(x, verbose=0)
    assert record == []
    wrapper.fit(x, y, batch_size=8, validation_data=(x, y), verbose=0)
    assert record == [False]


def test_an_ensemble_teaches():
    """D20, C21: a list was refused; averaged logits were taken for averaged probabilities."""
    members = [nets.sharpen(nets.mlp(width=8 + i, name=f"m{i}")) for i in range(3)]
    wrapper = distiller(SOFT(3.0), kd.EnsembleTeacher(members))
    x, y = nets.vectors(8), nets.class_ids(8)
    soft = np.mean([nets.softmax(nets.predict(m, x) / 3.0) for m in members], 0)
    expected = nets.kd(3.0 * np.log(soft), nets.predict(wrapper.student, x), 3.0).mean()
    assert step(wrapper, x, y)["soft_targets"] == pytest.approx(expected, rel=1e-4)


# C1 to C34, where they are not among the above.


def test_temperature_keeps_the_size_of_the_gradient():
    """C1: without T^2 the balance of terms moves with T."""
    t, s = nets.vectors(8)[:, :4], nets.vectors(8, seed=3)[:, :4]
    values = [float(nets.array(SOFT(temperature)(t, s))) for temperature in (4.0, 8.0, 16.0)]
    assert max(values) / min(values) < 1.2


def test_the_student_alone_is_saved_and_smaller(tmp_path):
    """C5, C6: how do I get only the student?"""
    wrapper = distiller(SOFT(), nets.mlp(width=200, name="teacher"))
    wrapper.student.save(tmp_path / "student.keras")
    wrapper.save(tmp_path / "wrapper.keras")
    student, whole = (tmp_path / f"{name}.keras" for name in ("student", "wrapper"))
    assert student.stat().st_size < whole.stat().st_size
    assert len(keras.saving.load_model(student).variables) == 4
    assert wrapper.inference_model is wrapper.student


def test_swapping_teacher_and_student_is_not_silent():
    """C7: the official example swapped them; here each message and attribute names its role."""
    teacher, student = nets.mlp(width=12, name="big"), nets.mlp(name="small")
    wrapper = distiller(SOFT(), teacher, student)
    assert (wrapper.teacher.name, wrapper.student.name) == ("big", "small")
    assert {id(v) for v in wrapper.trainable_variables} == {
        id(v) for v in student.trainable_variables
    }
    with pytest.raises(ValueError, match="teacher 3, student 4"):
        kd.Distiller(nets.mlp(classes=3), nets.mlp(), SOFT())


def test_compile_takes_what_keras_takes():
    """C8, C27: `compile() got an unexpected argument`; training without distillation."""
    wrapper = distiller(SOFT())
    wrapper.compile(
        optimizer=keras.optimizers.SGD(0.1),
        loss=nets.cross_entropy(),
        loss_weights=[1.0],
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
        run_eagerly=False,
        steps_per_execution=2,
        jit_compile=False,
        auto_scale_loss=True,
    )
    logs = fit(wrapper, nets.vectors(16), nets.class_ids(16))
    assert {"accuracy", "weighted_accuracy"} <= set(logs)


def test_subclassed_models_distil_predictions_and_say_what_taps_need():
    """C11: refused for features; here for taps only, with the way out."""
    teacher, student = nets.Subclassed(width=12), nets.Subclassed()
    logs = step(distiller(SOFT(), teacher, student), y=nets.class_ids(8))
    assert np.isfinite(list(logs.values())).all()
    with pytest.raises(ValueError, match="functional"):
        kd.Distiller(teacher, student, kd.Term(kd.losses.Hint(), "hidden", "hidden"))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_neither_crashes_nor_overflows(policy):
    """C16: fp32 connectors on fp16 features, epsilons that underflow."""
    keras.config.set_dtype_policy(policy)
    teacher, student = nets.cnn(6, "teacher"), nets.cnn(4, "student")
    terms = [SOFT(4.0), kd.Term(kd.losses.Hint(), "stage1", "stage1", connector="auto")]
    wrapper = distiller(terms, teacher, student)
    logs = fit(wrapper, nets.images(12), nets.class_ids(12), epochs=2)
    assert all(np.isfinite(values).all() for values in logs.values())


def test_the_log_says_whose_accuracy_it_is():
    """C25: teacher, student, distilled? It is the student's, in training and validation."""
    wrapper = compiled(
        kd.Distiller(nets.mlp(width=12), nets.mlp(name="s"), SOFT()),
        optimizer=nets.sgd(0.0),
        metrics=["accuracy"],
    )
    x, y = nets.vectors(24), nets.class_ids(24)
    logs = fit(wrapper, x, y, validation_data=(x, y))
    expected = np.mean(nets.predict(wrapper.student, x).argmax(-1) == y)
    assert logs["accuracy"][0] == logs["val_accuracy"][0] == pytest.approx(expected)


def test_distillation_can_be_turned_off():
    """C27: one tool for the baseline too, with the same student and data."""
    wrapper = distiller(kd.Term(SOFT(), weight=0.0))
    alone = compiled(nets.copy_of(wrapper.student))
    x, y = nets.vectors(16), nets.class_ids(16)
    fit(wrapper, x, y)
    fit(alone, x, y)
    assert nets.difference(wrapper.student, alone) == 0.0


def test_any_keras_model_is_a_teacher():
    """C29: own teachers were refused."""
    teachers = [
        keras.Sequential([keras.Input((nets.FEATURES,)), layers.Dense(nets.CLASSES)]),
        keras.Sequential([layers.Dense(8), layers.Dense(nets.CLASSES)]),
        nets.Subclassed(),
        kd.EnsembleTeacher([nets.mlp(name="a"), nets.mlp(name="b")]),
        nets.mlp("softmax"),
    ]
    for teacher in teachers:
        assert step(distiller(SOFT(), teacher), y=nets.class_ids(8))["soft_targets"] > 0


def test_train_on_batch_works():
    """C34: `train_on_batch() missing y`."""
    wrapper = distiller(SOFT())
    x, y = nets.vectors(8), nets.class_ids(8)
    assert isinstance(wrapper.train_on_batch(x, y), list)
    assert set(step(wrapper, x, y)) == {"loss", "label_loss", "soft_targets"}
    assert set(wrapper.test_on_batch(x, y, return_dict=True)) == {"loss"}
    assert wrapper.predict_on_batch(x).shape == (8, nets.CLASSES)


@pytest.mark.slow
def test_every_defect_has_its_test():
    """The list of field.md section D, D1 to D20."""
    text = pathlib.Path(__file__).read_text(encoding="utf-8")
    named = {int(number) for number in re.findall(r'"""[^"]*?\bD(\d+)', text)}
    assert named >= set(range(1, 21))
