"""Born-again networks: the generations, what one learns from the other, kill and resume."""

import random
import warnings

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import distribution
from tests.models import nets
from tests.oracles import generations as oracle


def linear(classes=nets.CLASSES, **options):
    inputs = keras.Input((nets.FEATURES,))
    outputs = keras.layers.Dense(classes, name="head", **options)(inputs)
    return keras.Model(inputs, outputs, name="linear")


def deep():
    """With what has state: batch normalization and dropout."""
    layers = keras.layers
    inputs = keras.Input((nets.FEATURES,))
    x = layers.Dense(8, name="hidden")(inputs)
    x = layers.BatchNormalization(momentum=0.6)(x)
    x = layers.Dropout(0.3)(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(nets.CLASSES, name="head")(x), name="deep")


def compiled(student=None, optimizer=None, compile_options=None, **options):
    wrapper = kd.BornAgain(student or linear(), **{"seed": 5, **options})
    optimizer = optimizer or keras.optimizers.SGD(0.3, momentum=0.9)
    options = {"jit_compile": False, **(compile_options or {})}
    wrapper.compile(optimizer, nets.cross_entropy(), **options)
    return wrapper


def fit(wrapper, x=None, y=None, **arguments):
    x = nets.vectors() if x is None else x
    y = nets.class_ids() if y is None else y
    return wrapper.fit(x, y, **{"batch_size": 8, "shuffle": False, "verbose": 0, **arguments})


def assert_same(one, other, **tolerance):
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        np.testing.assert_allclose(nets.array(mine), nets.array(theirs), **tolerance)


# What the generations learn.


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"label_weight": 0.5, "temperature": 3.0}, {"label_weight": 1.0}]
)
def test_three_generations_equal_the_oracle(options):
    x, y = nets.vectors(), nets.class_ids()
    wrapper = compiled(generations=2, **options)
    starts = [wrapper.student.get_weights()]
    starts += [wrapper._fresh_copy(i).get_weights() for i in (1, 2)]
    full = {"temperature": 1.0, "label_weight": 0.0, **options}
    expected, losses = oracle.train(x, y, starts, 3, 8, rate=0.3, momentum=0.9, **full)
    history = fit(wrapper, epochs=3)
    assert len(wrapper.trained_generations()) == 3
    for network, weights in zip(wrapper.trained_generations(), expected):
        for own, value in zip(network.get_weights(), weights):
            np.testing.assert_allclose(own, value, rtol=1e-4, atol=1e-6)
    for logs, values in zip(history.generations, losses):
        np.testing.assert_allclose(logs["loss"], values, rtol=1e-4)


def test_history_is_of_the_last_generation_and_holds_all():
    seen = []

    class Note(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((epoch, logs["generation"]))

    history = fit(compiled(generations=2), epochs=2, callbacks=[Note()])
    assert seen == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]
    assert history.epoch == [4, 5]
    assert history.history == history.generations[2]
    assert set(history.generations[0]) == {"loss", "label_loss", "generation"}
    assert set(history.history) == {"loss", "label_loss", "teacher", "generation"}
    assert all(len(values) == 2 for logs in history.generations for values in logs.values())


def test_a_generation_starts_afresh():
    class Slow(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.01
            iterations.append(int(nets.array(self.model.optimizer.iterations)))

    iterations, rates = [], []

    class Note(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            rates.append(float(nets.array(self.model.optimizer.learning_rate)))

    wrapper = compiled(deep(), keras.optimizers.Adagrad(0.3, initial_accumulator_value=0.2))
    first = wrapper.student.get_weights()
    fit(wrapper, epochs=2, callbacks=[Slow(), Note()])
    assert iterations == [3, 6, 3, 6]
    np.testing.assert_allclose(rates, [0.3, 0.01, 0.3, 0.01], rtol=1e-6)
    fresh = wrapper._fresh_copy(1).get_weights()
    assert np.abs(fresh[0] - first[0]).max() > 0.1
    np.testing.assert_array_equal(fresh[0], wrapper._fresh_copy(1).get_weights()[0])
    assert np.abs(fresh[0] - wrapper._fresh_copy(2).get_weights()[0]).max() > 0.1
    other = compiled(deep(), seed=6)
    assert np.abs(fresh[0] - other._fresh_copy(1).get_weights()[0]).max() > 0.1


def test_the_users_random_state_is_left_alone():
    student = linear()
    random.seed(3)
    expected = random.random()
    random.seed(3)
    kd.BornAgain(student, generations=2, seed=1)
    assert random.random() == expected


def test_no_gradient_reaches_the_teacher_which_is_the_generation_before():
    wrapper = compiled(deep(), generations=1)
    taken = []

    class Note(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            taken.append([nets.array(v) for v in self.model.student.weights])

    fit(wrapper, epochs=2, callbacks=[Note()])
    teacher, student = wrapper.trained_generations()
    for own, value in zip(teacher.weights, taken[1]):
        np.testing.assert_array_equal(nets.array(own), value)
    assert student is wrapper.student is wrapper.inference_model
    trained = {id(v) for v in wrapper.trainable_variables}
    assert trained == {id(v) for v in student.trainable_variables}
    assert not wrapper.frozen_variables


def test_generation_0_runs_without_a_teacher(monkeypatch):
    wrapper = compiled(generations=1)
    called = []
    network = wrapper._teacher_network
    monkeypatch.setattr(wrapper, "_teacher_network", lambda x: called.append(1) or network(x))

    class Note(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            counts.append(len(called))

    counts = []
    fit(wrapper, epochs=2, callbacks=[Note()])
    assert counts[:2] == [0, 0] and counts[2] > 0


def test_ensemble_of_generations_is_the_mean_of_their_probabilities():
    wrapper = compiled(generations=2)
    with pytest.raises(ValueError, match="two generations or more"):
        wrapper.ensemble_of_generations()
    fit(wrapper, epochs=2)
    x = nets.vectors()
    ensemble = wrapper.ensemble_of_generations()
    each = [nets.softmax(nets.predict(m, x)) for m in wrapper.trained_generations()]
    assert np.abs(each[0] - each[1]).max() > 1e-3
    np.testing.assert_allclose(
        nets.softmax(nets.predict(ensemble, x)), np.mean(each, axis=0), rtol=1e-5
    )


def test_another_fit_begins_with_generation_0():
    wrapper = compiled(generations=1)
    fit(wrapper, epochs=1)
    history = fit(wrapper, epochs=1)
    assert [len(logs["loss"]) for logs in history.generations] == [1, 1]
    assert "teacher" not in history.generations[0]


# Callbacks.


def test_early_stopping_ends_its_generation_alone():
    stop = keras.callbacks.EarlyStopping(monitor="loss", min_delta=100.0, patience=1)
    history = fit(compiled(generations=2), epochs=4, callbacks=[stop])
    assert [len(logs["loss"]) for logs in history.generations] == [2, 2, 2]
    assert history.epoch == [8, 9]


def test_early_stopping_begins_anew_in_each_generation():
    """The loss of a fresh student is no worsening of the one before it."""
    values = iter([1.0, 0.5, 2.0, 1.5, 3.0, 2.5])

    class Give(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["given"] = next(values)

    stop = keras.callbacks.EarlyStopping(monitor="given", patience=1, mode="min")
    history = fit(compiled(generations=2), epochs=2, callbacks=[Give(), stop])
    assert [len(logs["loss"]) for logs in history.generations] == [2, 2, 2]


@pytest.mark.parametrize("stops", [False, True])
def test_early_stopping_restores_the_best_weights_of_each_generation(stops):
    values = iter([1.0, 2.0, 1.0, 2.0])
    weights = []

    class Give(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["given"] = next(values)
            weights.append(self.model.student.get_weights())

    stop = keras.callbacks.EarlyStopping(
        monitor="given", patience=1 if stops else 5, mode="min", restore_best_weights=True
    )
    wrapper = compiled(generations=1)
    fit(wrapper, epochs=3 if stops else 2, callbacks=[Give(), stop])
    for network, best in zip(wrapper.trained_generations(), (weights[0], weights[2])):
        for own, value in zip(network.get_weights(), best):
            np.testing.assert_array_equal(own, value)


def test_another_callback_that_stops_ends_it_all():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 2

    wrapper = compiled(generations=2)
    history = fit(wrapper, epochs=2, callbacks=[Stop()])
    assert [len(logs.get("loss", ())) for logs in history.generations] == [2, 1, 0]
    assert wrapper.generation == 1


@pytest.mark.slow
def test_restore_best_teaches_with_the_best_epoch():
    x, y = nets.vectors(), nets.class_ids()
    weights, losses = [], []

    class Note(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weights.append(self.model.student.get_weights())
            losses.append(logs["val_loss"])

    wrapper = compiled(restore_best="val_loss", label_weight=1.0)
    with pytest.raises(ValueError, match="Expected `validation_data`"):
        fit(wrapper, epochs=2)
    # Labels that training makes ever less likely: the best epoch is not the last.
    fit(wrapper, epochs=4, validation_data=(x, (y + 1) % nets.CLASSES), callbacks=[Note()])
    best = [int(np.argmin(losses[:4])), 4 + int(np.argmin(losses[4:]))]
    assert best[0] < 3
    for network, epoch in zip(wrapper.trained_generations(), best):
        for own, value in zip(network.get_weights(), weights[epoch]):
            np.testing.assert_array_equal(own, value)


def test_restore_best_names_a_log():
    with pytest.raises(ValueError, match="`best_mode` to be 'min' or 'max'"):
        compiled(restore_best="val_f1")
    wrapper = compiled(restore_best="val_accuracy")
    assert wrapper.best_mode == "max"
    with pytest.raises(ValueError, match="one of the logs"):
        fit(wrapper, validation_data=(nets.vectors(), nets.class_ids()))


# Kill and resume.


class Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Killed


@pytest.fixture(scope="module")
def undisturbed():
    """Three generations of two epochs, weights by the best epoch."""
    keras.utils.set_random_seed(3)
    wrapper = resumable()
    fit(wrapper, epochs=2)
    return wrapper


def resumable():
    keras.utils.set_random_seed(3)
    return compiled(
        deep(),
        keras.optimizers.Adam(0.05),
        {"run_eagerly": True},
        generations=2,
        restore_best="loss",
    )


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5])
def test_killed_in_any_epoch_and_resumed_equals_undisturbed(epoch, undisturbed, tmp_path):
    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    with pytest.raises(Killed):
        fit(resumable(), epochs=2, callbacks=[backup(), Kill(epoch)])
    resumed = resumable()
    history = fit(resumed, epochs=2, callbacks=[backup()])
    assert sum(len(logs.get("loss", ())) for logs in history.generations) == 6 - epoch
    assert_same(undisturbed, resumed, rtol=1e-6, atol=1e-7)
    for mine, theirs in zip(undisturbed.optimizer.variables, resumed.optimizer.variables):
        np.testing.assert_allclose(nets.array(mine), nets.array(theirs), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("epoch", [2, 3])
def test_one_data_set_of_all_epochs_and_our_backup(epoch, tmp_path):
    """The pipeline goes on through the generations, and so does a resumed run."""
    x, y = nets.vectors(), nets.class_ids()

    def run(start=0, callbacks=(), wrapper=None):
        wrapper = wrapper or resumable()
        batches = kd.data.batches(x, y, 8, epochs=6, start_epoch=start, seed=1)
        wrapper.fit(
            batches,
            epochs=2,
            initial_epoch=start,
            steps_per_epoch=3,
            shuffle=False,
            verbose=0,
            callbacks=list(callbacks),
        )
        return wrapper

    undisturbed = run()
    with pytest.raises(Killed):
        run(callbacks=[kd.callbacks.Backup(tmp_path), Kill(epoch)])
    wrapper = resumable()
    start = kd.callbacks.restore(wrapper, tmp_path)
    assert start == epoch
    assert_same(undisturbed, run(start, wrapper=wrapper), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_saved_in_generation_1_and_loaded_goes_on(undisturbed, tmp_path):
    wrapper = resumable()
    with pytest.raises(Killed):
        fit(wrapper, epochs=2, callbacks=[Kill(3)])
    wrapper.optimizer.learning_rate = 0.01  # as a callback would: generation 2 begins at 0.05
    wrapper.save(tmp_path / "model.keras")
    wrapper.optimizer.learning_rate = 0.05
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.generation == 1
    assert float(nets.array(loaded.optimizer.learning_rate)) == pytest.approx(0.01)
    loaded.optimizer.learning_rate = 0.05
    fit(loaded, epochs=2, initial_epoch=3)
    assert_same(undisturbed, loaded, rtol=1e-6, atol=1e-7)


def test_loaded_wrapper_begins_generations_at_the_compiled_rate(tmp_path):
    wrapper = compiled(generations=2)
    fit(wrapper, epochs=1)
    wrapper.optimizer.learning_rate = 0.01
    wrapper.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.begin_generation(1)
    loaded.begin_generation(2)
    assert float(nets.array(loaded.optimizer.learning_rate)) == pytest.approx(0.3)


# The variants.


def taught(variant, **options):
    """A wrapper in generation 1, with its teacher's and student's logits."""
    wrapper = compiled(variant=variant, **options)
    x = nets.vectors()
    fit(wrapper, epochs=2)
    wrapper.begin_generation(0)
    wrapper.begin_generation(1)
    teacher, student = wrapper.trained_generations()
    return wrapper, nets.predict(teacher, x), nets.predict(student, x)


def test_cwtm_weighs_labels_by_the_teachers_largest_probability():
    wrapper, teacher, student = taught("cwtm")
    x, y = nets.vectors(), nets.class_ids()
    logs = wrapper.train_on_batch(x, y, return_dict=True)
    expected = oracle.confidence_weighted(teacher.astype("float64"), y, student.astype("float64"))
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(logs["teacher"], expected, rtol=1e-5)
    assert abs(logs["label_loss"] - expected) > 1e-4


@pytest.mark.slow
@pytest.mark.tensorflow
def test_cwtm_of_two_replicas_equals_one_device(two_replicas):
    import tensorflow as tf

    def run(strategy):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            wrapper = compiled(variant="cwtm")
        history = fit(wrapper, epochs=2)
        return wrapper, history.history

    one, logs = run(tf.distribute.get_strategy())
    both, other = run(two_replicas)
    assert_same(one, both, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logs["teacher"], other["teacher"], rtol=1e-5)


def test_dkpp_permutes_all_but_the_largest():
    wrapper, teacher, _ = taught("dkpp")
    teacher = np.random.default_rng(0).normal(size=(400, nets.CLASSES)).astype("float32")
    permuted = nets.array(wrapper._permuted(teacher))
    np.testing.assert_array_equal(np.sort(permuted), np.sort(teacher))
    largest = teacher.argmax(-1)
    np.testing.assert_array_equal(permuted.argmax(-1), largest)
    # Each of the 6 orders of the other three comes about as often.
    rest = np.array([np.delete(row, i) for row, i in zip(teacher, largest)])
    drawn = np.array([np.delete(row, i) for row, i in zip(permuted, largest)])
    orders = [tuple(np.argsort(a)[np.argsort(np.argsort(b))]) for a, b in zip(rest, drawn)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6 and min(counts) > 35
    assert np.abs(nets.array(wrapper._permuted(teacher)) - permuted).max() > 0


@pytest.mark.slow
def test_dkpp_resumed_draws_as_undisturbed(tmp_path):
    def fresh():
        keras.utils.set_random_seed(4)
        wrapper = compiled(variant="dkpp", compile_options={"run_eagerly": True})
        return wrapper, [keras.callbacks.BackupAndRestore(tmp_path / "backup")]

    undisturbed, _ = fresh()
    fit(undisturbed, epochs=2)
    wrapper, callbacks = fresh()
    with pytest.raises(Killed):
        fit(wrapper, epochs=2, callbacks=[*callbacks, Kill(3)])
    wrapper, callbacks = fresh()
    fit(wrapper, epochs=2, callbacks=callbacks)
    assert_same(undisturbed, wrapper, rtol=1e-6, atol=1e-7)


def test_dkpp_is_evaluated_without_a_draw():
    x, y = nets.vectors(), nets.class_ids()
    options = {"compile_options": {"evaluate_terms": True}}
    wrapper, teacher, student = taught("dkpp", **options)
    before = [nets.array(v) for v in wrapper.variables]
    logs = wrapper.evaluate(x, y, verbose=0, return_dict=True)
    expected = nets.kd(teacher, student, 1.0).mean()
    np.testing.assert_allclose(logs["teacher"], expected, rtol=1e-4)
    for variable, value in zip(wrapper.variables, before):
        if "metric" not in variable.path:
            np.testing.assert_array_equal(nets.array(variable), value)


# Networks and bad input.


@pytest.mark.slow
def test_several_outputs_and_a_student_without_a_graph():
    y = [nets.class_ids(), nets.class_ids() % 3]
    wrapper = kd.BornAgain(nets.two_heads())
    wrapper.compile("sgd", [nets.cross_entropy(), nets.cross_entropy()])
    assert np.isfinite(fit(wrapper, y=y, epochs=1).history["loss"]).all()

    student = nets.Subclassed()
    with pytest.raises(ValueError, match="Call it on a batch first"):
        kd.BornAgain(student)
    student(nets.vectors())
    wrapper = compiled(student)
    fit(wrapper, epochs=2)
    fresh = wrapper._fresh_copy(1).get_weights()
    assert [w.shape for w in fresh] == [w.shape for w in student.get_weights()]
    assert len(wrapper.ensemble_of_generations().members) == 2


def test_bad_arguments():
    for options, message in (
        ({"generations": 0}, "positive whole number"),
        ({"temperature": 0.0}, "positive finite number"),
        ({"label_weight": -1.0}, "0 or more"),
        ({"variant": "ban"}, "one of 'kd', 'cwtm', 'dkpp'"),
    ):
        with pytest.raises(ValueError, match=message):
            kd.BornAgain(linear(), **options)
    for student in (nets.two_heads(), nets.mlp("sigmoid")):
        with pytest.raises(ValueError, match="one output over classes"):
            kd.BornAgain(student, variant="cwtm")
    with pytest.raises(ValueError, match="which generation 0 learns from"):
        kd.BornAgain(linear()).compile("sgd")
    with pytest.raises(ValueError, match="Restore a backup"):
        fit(compiled(generations=2), epochs=2, initial_epoch=4)


def test_several_processes_need_one_seed(monkeypatch):
    monkeypatch.setattr(distribution, "in_several_processes", lambda strategy: True)
    with pytest.raises(ValueError, match="Pass the same number in all"):
        kd.BornAgain(linear())
    assert kd.BornAgain(linear(), seed=0).seed == 0


def test_a_student_with_fixed_seeds_is_told():
    fixed = linear(kernel_initializer=keras.initializers.GlorotUniform(seed=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kd.BornAgain(fixed)
    assert ["starts from the same weights" in str(w.message) for w in caught].count(True) == 1
