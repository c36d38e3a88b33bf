"""Stages of a Distiller: what each trains, its terms, its optimizer, resuming in the middle."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.contract import network
from tests.contract import samples

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def hint(**options):
    term = kd.Term(kd.losses.Hint(), "features", "features", connector="auto")
    return kd.Stage("hint", 2, term, student_loss_weight=0, **options)


def soft(epochs=2, **options):
    return kd.Stage("kd", epochs, kd.losses.SoftTargets(2.0), **options)


def distiller(stages, seed=0, **options):
    keras.utils.set_random_seed(seed)
    wrapper = kd.Distiller(network("teacher", 5), network("student", **options), stages=stages)
    wrapper.compile(keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01), CE)
    return wrapper


def values(variables):
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def fit(wrapper, **options):
    x, y = samples(16)
    return wrapper.fit(x, y, batch_size=8, shuffle=False, verbose=0, **options)


def test_one_fit_runs_all_stages_and_says_which():
    wrapper = distiller([hint(), soft()])
    history = fit(wrapper)
    assert history.epoch == [0, 1, 2, 3]
    assert history.history["stage"] == [0, 0, 1, 1]
    assert wrapper.stage == 1
    assert len(history.history["hint"]) == len(history.history["soft_targets"]) == 2


def test_hint_stage_trains_the_student_up_to_the_tapped_layer_and_the_regressor():
    wrapper = distiller([hint(), soft()])
    head = wrapper.student.get_layer("logits").weights
    stem = wrapper.student.get_layer("stem").weights
    helpers = wrapper.terms[0].trainable_variables
    before = [values(group) for group in (head, stem, helpers)]
    fit(wrapper, epochs=2)
    after = [values(group) for group in (head, stem, helpers)]
    assert helpers
    # Weight decay included: the head is no variable of this stage's optimizer.
    assert [same(*pair) for pair in zip(before, after)] == [True, False, False]
    fit(wrapper, initial_epoch=2)
    final = [values(group) for group in (head, stem, helpers)]
    # The next stage trains all of the student, and leaves the first stage's regressor alone.
    assert [same(*pair) for pair in zip(after, final)] == [False, False, True]


@pytest.mark.slow
def test_a_stage_equals_a_distiller_with_its_terms():
    staged = distiller([hint(), soft()])
    fit(staged)
    plain = distiller([hint()])
    fit(plain)
    follower = kd.Distiller(plain.teacher, plain.student, kd.losses.SoftTargets(2.0))
    follower.compile(keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01), CE)
    x, y = samples(16)
    follower.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for ours, theirs in zip(values(staged.student.weights), values(plain.student.weights)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_optimizer_of_a_stage_is_fresh_its_own_or_continued():
    stages = [
        soft(1),
        kd.Stage("labels", 1, [], optimizer=keras.optimizers.Adam(0.01)),
        kd.Stage("more", 1, kd.losses.SoftTargets(), optimizer="continue"),
    ]
    wrapper = distiller(stages)
    sgd, adam = wrapper.optimizer.optimizers
    assert isinstance(adam, keras.optimizers.Adam)
    assert wrapper.optimizer.of_stage() is sgd
    fit(wrapper, epochs=1)
    assert (int(sgd.iterations), int(adam.iterations)) == (2, 0)
    fit(wrapper, initial_epoch=1)
    assert (int(sgd.iterations), int(adam.iterations)) == (2, 4)
    assert wrapper.optimizer.of_stage() is adam


@pytest.mark.slow
def test_labels_alone_are_a_stage():
    wrapper = distiller([soft(1), kd.Stage("labels", 1, [])])
    history = fit(wrapper).history
    assert len(history["soft_targets"]) == 1
    plain = distiller([soft(1)])
    fit(plain)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01)
    plain.student.compile(optimizer, CE)
    x, y = samples(16)
    plain.student.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for ours, theirs in zip(values(wrapper.student.weights), values(plain.student.weights)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_trainable_names_the_part_that_is_trained():
    wrapper = distiller([soft(1, trainable="features"), soft_only_helpers()])
    head = wrapper.student.get_layer("logits").weights
    stem = wrapper.student.get_layer("stem").weights
    before = values(head), values(stem)
    fit(wrapper, epochs=1)
    assert same(before[0], values(head)) and not same(before[1], values(stem))
    middle = values(head), values(stem), values(wrapper.terms[1].trainable_variables)
    fit(wrapper, initial_epoch=1)
    assert same(middle[0], values(head)) and same(middle[1], values(stem))
    assert not same(middle[2], values(wrapper.terms[1].trainable_variables))


def soft_only_helpers():
    term = kd.Term(kd.losses.Hint(), "features", "features", connector="auto")
    return kd.Stage("regressor", 1, term, trainable=[], student_loss_weight=0)


def test_teacher_assistant_is_trained_then_teaches():
    keras.utils.set_random_seed(0)
    assistant = network("assistant", 4)
    stages = [
        kd.Stage("assistant", 1, kd.losses.SoftTargets(), student=assistant),
        kd.Stage("student", 1, kd.losses.SoftTargets(), teacher=assistant),
    ]
    wrapper = distiller(stages)
    before = values(assistant.weights), values(wrapper.student.weights)
    fit(wrapper, epochs=1)
    middle = values(assistant.weights), values(wrapper.student.weights)
    assert not same(before[0], middle[0]) and same(before[1], middle[1])
    fit(wrapper, initial_epoch=1)
    after = values(assistant.weights), values(wrapper.student.weights)
    assert same(middle[0], after[0]) and not same(middle[1], after[1])
    assert len(wrapper.assistants) == 1


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_in_the_middle_equals_undisturbed(stop, tmp_path):
    def stages():
        return [hint(), soft(optimizer=keras.optimizers.Adam(0.01))]

    whole = distiller(stages(), dropout=0.3)
    fit(whole)
    first = distiller(stages(), dropout=0.3)
    fit(first, epochs=stop, callbacks=[kd.callbacks.Backup(tmp_path)])
    second = distiller(stages(), dropout=0.3, seed=1)
    second.teacher.set_weights(first.teacher.get_weights())
    assert kd.callbacks.restore(second, tmp_path) == stop
    assert second.stage == (0 if stop <= 2 else 1)
    fit(second, initial_epoch=stop)
    for ours, theirs in zip(values(whole.student.weights), values(second.student.weights)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_saved_in_the_middle_and_loaded_goes_on(tmp_path):
    keras.utils.set_random_seed(0)
    assistant = network("assistant", 4)
    stages = [
        kd.Stage("assistant", 2, kd.losses.SoftTargets(), student=assistant),
        kd.Stage("student", 2, kd.losses.SoftTargets(), teacher=assistant),
    ]
    wrapper = distiller(stages)
    fit(wrapper, epochs=3)
    wrapper.save(tmp_path / "wrapper.keras")
    loaded = keras.models.load_model(tmp_path / "wrapper.keras")
    assert loaded.stage == 1
    assert [stage.name for stage in loaded.stages] == ["assistant", "student"]
    assert loaded.stages[0].student is loaded.stages[1].teacher is loaded.assistants[0]
    for one in (wrapper, loaded):
        fit(one, initial_epoch=3)
    for ours, theirs in zip(values(wrapper.student.weights), values(loaded.student.weights)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_schedules_and_learning_rate_are_those_of_the_stage():
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.5, 0.0])
    stages = [soft(2), kd.Stage("last", 1, kd.losses.SoftTargets(), optimizer="sgd")]
    stages[0].optimizer = keras.optimizers.SGD(rate)
    wrapper = distiller(stages)
    fit(wrapper)
    assert float(wrapper.optimizer.learning_rate) == pytest.approx(0.01)
    wrapper.optimizer.learning_rate = 0.25
    assert float(wrapper.optimizer.of_stage().learning_rate) == pytest.approx(0.25)
    assert float(wrapper.optimizer.optimizers[0].learning_rate) == 0.0


def test_evaluate_and_export_are_the_students():
    wrapper = distiller([hint(), soft()])
    fit(wrapper)
    x, y = samples(16)
    wrapper.student.compile(loss=CE)
    loss = wrapper.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(wrapper.student.evaluate(x, y, verbose=0), rel=1e-5)
    assert wrapper.inference_model is wrapper.student


def test_begin_stage_serves_train_on_batch():
    wrapper = distiller([hint(), soft()])
    x, y = samples(8)
    logs = wrapper.train_on_batch(x, y, return_dict=True)
    assert "hint" in logs and "soft_targets" not in logs
    wrapper.begin_stage(1)
    logs = wrapper.train_on_batch(x, y, return_dict=True)
    assert "hint" not in logs and "soft_targets" in logs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kd.Stage("a", 0, []), "`epochs` to be"),
        (lambda: kd.Stage("a", 1, [], student_loss_weight=0), "terms or a label loss"),
        (lambda: distiller([]), "`stages` to be at least one"),
        (lambda: distiller([soft(), soft()]), "each with its own name"),
        (lambda: distiller(["kd"]), "stages"),
        (lambda: distiller([soft(optimizer="continue")]), "in the first stage"),
        (lambda: distiller([soft(trainable=[])]), "to train something"),
        (lambda: distiller([soft(trainable="nowhere")]), "trainable"),
        (lambda: distiller([soft(teacher=network("other"))]), "of an earlier stage"),
        (
            lambda: kd.Distiller(
                network("teacher"), network("student"), kd.losses.SoftTargets(), stages=[soft()]
            ),
            "`distillation_losses` or `stages`",
        ),
    ],
)
def test_errors_come_before_training(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("options", [{"jit_compile": True}, {"steps_per_execution": 2}])
def test_compiled_otherwise_gives_the_same(options):
    plain = distiller([hint(), soft()])
    other = distiller([hint(), soft()])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01)
    other.compile(optimizer, CE, **options)
    fit(plain)
    fit(other)
    for ours, theirs in zip(values(plain.student.weights), values(other.student.weights)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.tensorflow
def test_mixed_precision_scales_the_loss_of_each_stage():
    keras.utils.set_random_seed(0)
    student = network("student", dtype="mixed_float16")
    wrapper = kd.Distiller(network("teacher", 5), student, stages=[hint(), soft()])
    wrapper.compile("sgd", CE)
    assert isinstance(wrapper.optimizer, keras.optimizers.LossScaleOptimizer)
    history = fit(wrapper).history
    assert history["stage"] == [0, 0, 1, 1]
    assert np.isfinite(history["loss"]).all()


@pytest.mark.slow
@pytest.mark.tensorflow
def test_two_replicas_take_the_step_of_one_device(two_replicas):
    # Batch statistics are each replica's own, as in plain Keras.
    one = distiller([hint(), soft()], batch_norm=False)
    with two_replicas.scope():
        two = distiller([hint(), soft()], batch_norm=False)
    fit(one)
    fit(two)
    for ours, theirs in zip(values(one.student.weights), values(two.student.weights)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


# The sequences of the papers, on a network with stages.

TAPS = ["stem", "stage1", "stage2", "stage3"]
PRE = ["stage1_pre", "stage2_pre", "stage3_pre"]
BEFORE = {
    "boundaries, then soft targets": (
        kd.Term(kd.losses.ActivationBoundary(), PRE, PRE, weight=3e-3, connector="auto"),
        kd.losses.SoftTargets(3.0),
    ),
    "flow, then labels": (kd.Term(kd.losses.FlowOfSolution(), TAPS, TAPS, connector="auto"), []),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BEFORE)
def test_papers_two_stages(name):
    first, second = BEFORE[name]
    keras.utils.set_random_seed(0)
    resnet = kd.backbones.resnet
    teacher = resnet(8, 4, input_shape=(8, 8, 2), width=3, name="teacher")
    student = resnet(8, 4, input_shape=(8, 8, 2), width=2, name="student")
    stages = [
        kd.Stage("features", 1, first, student_loss_weight=0),
        kd.Stage("classes", 1, second, optimizer=keras.optimizers.SGD(0.05)),
    ]
    wrapper = kd.Distiller(teacher, student, stages=stages)
    wrapper.compile(keras.optimizers.SGD(1e-3), CE)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 8, 8, 2)).astype("float32"), rng.integers(0, 4, 8)
    dense = next(layer for layer in student.layers if isinstance(layer, keras.layers.Dense))
    body, head = student.get_layer("stem_conv").weights, dense.weights
    before = values(body), values(head)
    wrapper.fit(x, y, batch_size=4, epochs=1, verbose=0)
    middle = values(body), values(head)
    assert [same(*pair) for pair in zip(before, middle)] == [False, True]
    history = wrapper.fit(x, y, batch_size=4, initial_epoch=1, verbose=0).history
    assert not same(middle[1], values(head))
    assert np.isfinite(history["loss"]).all() and history["stage"] == [1]


@pytest.mark.slow
def test_a_file_of_another_backend_tells_the_stage():
    wrapper, other = (distiller([soft(1), kd.Stage("labels", 1, [])]) for _ in range(2))
    wrapper.begin_stage(1)
    store = {}
    wrapper.save_own_variables(store)
    store.pop("step", None)  # JAX's counter of steps
    other.load_own_variables(store)
    assert other.stage == 1
    assert other.optimizer.of_stage() is other.optimizer.optimizers[1]
