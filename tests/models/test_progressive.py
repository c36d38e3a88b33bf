"""PS-KD: the schedule of targets, the table, ids, replicas, files."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.models.prediction_table import PredictionTable
from tests.models import nets
from tests.oracles import progressive as oracle


def linear(classes=nets.CLASSES):
    inputs = keras.Input((nets.FEATURES,))
    return keras.Model(inputs, keras.layers.Dense(classes, name="head")(inputs), name="linear")


def compiled(student=None, samples=24, compile_options=None, loss=None, **options):
    wrapper = kd.ProgressiveDistiller(student or linear(), samples, **options)
    compile_options = {"jit_compile": False, **(compile_options or {})}
    wrapper.compile(nets.sgd(0.5), loss or nets.cross_entropy(), **compile_options)
    return wrapper


def fit(wrapper, x, y=None, **arguments):
    return wrapper.fit(x, y, **{"batch_size": 8, "shuffle": False, "verbose": 0, **arguments})


def table_of(wrapper, i=0):
    return nets.array(wrapper.tables[i].probabilities)


def with_ids(y, ids=None):
    return kd.data.Targets(labels=y, ids=np.arange(len(y)) if ids is None else np.asarray(ids))


# The schedule.


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"steps_per_execution": 3}])
def test_losses_weights_and_table_of_four_epochs_equal_the_oracle(options):
    x, y = nets.vectors(), nets.class_ids()
    wrapper = compiled(compile_options=options)
    batches = [np.split(np.arange(24), 3)] * 4
    weights, table, expected = oracle.train(
        x, y, wrapper.student.get_weights(), batches, alpha=0.8, rate=0.5
    )
    history = fit(wrapper, x, y, epochs=4).history
    for name, column in zip(("loss", "label_loss", "past_predictions"), expected.T):
        np.testing.assert_allclose(history[name], column, rtol=1e-5, err_msg=name)
    for own, value in zip(wrapper.student.get_weights(), weights):
        np.testing.assert_allclose(own, value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(table_of(wrapper), table, rtol=1e-4, atol=1e-6)


@pytest.mark.tensorflow
def test_shuffled_batches_of_the_pipeline_equal_the_oracle():
    x, y = nets.vectors(), nets.class_ids()
    wrapper = compiled()
    data = {"batch_size": 10, "epochs": 3, "seed": 3, "ids": True}
    batches = [[], [], []]
    for i, (_, targets) in enumerate(kd.data.batches(x, y, **data)):
        batches[i // 3].append(targets["ids"].numpy())
    weights, table, expected = oracle.train(
        x, y, wrapper.student.get_weights(), batches, alpha=0.8, rate=0.5
    )
    history = wrapper.fit(
        kd.data.batches(x, y, **data), epochs=3, steps_per_epoch=3, shuffle=False, verbose=0
    ).history
    np.testing.assert_allclose(history["loss"], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(table_of(wrapper), table, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(wrapper.student.get_weights()[0], weights[0], rtol=1e-4, atol=1e-6)


def test_the_first_epoch_is_plain_fit():
    x, y = nets.vectors(), nets.class_ids()
    wrapper = compiled(nets.mlp())
    alone = nets.copy_of(wrapper.student)
    alone.compile(nets.sgd(0.5), nets.cross_entropy())
    fit(wrapper, x, y)
    alone.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    nets.assert_same_weights(wrapper.student, alone, rtol=1e-6, atol=1e-7)


def test_shares_follow_the_epochs_of_fit_or_of_the_wrapper():
    x, y = nets.vectors(), nets.class_ids()

    def shares(wrapper, **arguments):
        seen = []

        class Note(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                seen.append(1.0 - float(nets.array(wrapper.student_loss_weight)))

        fit(wrapper, x, y, callbacks=Note(), **arguments)
        return seen

    wrapper = compiled(alpha=0.6)
    np.testing.assert_allclose(shares(wrapper, epochs=3), [0.0, 0.4, 0.6], rtol=1e-6)
    np.testing.assert_allclose(shares(wrapper, epochs=4, initial_epoch=2), [0.45, 0.6], rtol=1e-6)
    pieces = compiled(alpha=0.6, epochs=4)
    np.testing.assert_allclose(shares(pieces, epochs=2), [0.0, 0.3], rtol=1e-6)
    np.testing.assert_allclose(shares(pieces, epochs=4, initial_epoch=2), [0.45, 0.6], rtol=1e-6)


def test_the_share_changes_without_another_trace(monkeypatch):
    traced = []
    own = kd.ProgressiveDistiller.term_values

    def counted(self, *args):
        traced.append(1)
        return own(self, *args)

    monkeypatch.setattr(kd.ProgressiveDistiller, "term_values", counted)
    wrapper = compiled(compile_options={"jit_compile": True})
    fit(wrapper, nets.vectors(), nets.class_ids(), epochs=5)
    assert len(traced) <= 2


def test_an_unknown_sample_learns_from_its_label_alone():
    """In a resumed run whose table is empty the target of each sample is its label."""
    x, y = nets.vectors(8), nets.class_ids(8)
    wrapper = compiled()
    logs = fit(wrapper, x, y, epochs=3, initial_epoch=2).history
    np.testing.assert_allclose(logs["past_predictions"], logs["label_loss"], rtol=1e-6)
    np.testing.assert_allclose(logs["loss"], logs["label_loss"], rtol=1e-6)
    assert (table_of(wrapper)[8:] == -1).all() and (table_of(wrapper)[:8] >= 0).all()


def test_unlabelled_samples_learn_from_the_past_once_there_is_one():
    x, y = nets.vectors(8), nets.class_ids(8)
    y[:4] = -1
    wrapper = compiled()
    wrapper.set_epoch(1, 2)
    weights = [w.astype("float64") for w in wrapper.student.get_weights()]
    wrapper.train_on_batch(x, with_ids(y))
    kernel, bias = weights
    logits = x @ kernel + bias
    gradient = oracle.softmax(logits) - np.eye(nets.CLASSES)[y]
    gradient[:4] = 0.0
    weights = [kernel - 0.5 * x.T @ gradient / 8, bias - 0.5 * gradient.mean(0)]
    np.testing.assert_allclose(wrapper.student.get_weights()[0], weights[0], rtol=1e-4, atol=1e-6)

    past = oracle.softmax(logits)
    kernel, bias = weights
    logits = x @ kernel + bias
    wrapper.train_on_batch(x, with_ids(y))
    share = 0.8
    gradient = (1 - share) * (oracle.softmax(logits) - np.eye(nets.CLASSES)[y])
    gradient[:4] = 0.0
    gradient = gradient + share * (oracle.softmax(logits) - past)
    expected = kernel - 0.5 * x.T @ gradient / 8
    np.testing.assert_allclose(wrapper.student.get_weights()[0], expected, rtol=1e-4, atol=1e-6)


def test_class_weights_on_arrays_are_sample_weights():
    x, y = nets.vectors(), nets.class_ids()
    weight = {0: 2.0, 2: 0.5}
    one, other = compiled(), compiled()
    other.student.set_weights(one.student.get_weights())
    fit(one, x, y, epochs=2, class_weight=weight)
    fit(other, x, y, epochs=2, sample_weight=np.array([weight.get(label, 1.0) for label in y]))
    nets.assert_same_weights(one.student, other.student)


# The table.


@pytest.mark.parametrize("storage", ["float32", "float16", 2])
def test_rows_are_read_as_written(storage):
    rng = np.random.default_rng(0)
    table = PredictionTable(6, (5,), storage)
    rows = rng.dirichlet(np.ones(5), 2).astype("float32")
    table.write(np.array([4, 1]), rows)
    probabilities, written = table.read(np.array([1, 4, 0]))
    np.testing.assert_array_equal(nets.array(written)[:, 0], [True, True, False])
    expected = rows[::-1]
    if storage == 2:  # The two largest, the rest even.
        order = np.argsort(-expected, axis=-1)
        kept = np.take_along_axis(expected, order[:, :2], -1)
        rest = (1 - kept.sum(-1, keepdims=True)) / 3
        expected = np.repeat(rest, 5, axis=-1)
        np.put_along_axis(expected, order[:, :2], kept, -1)
    tolerance = 1e-7 if storage == "float32" else 2e-3
    np.testing.assert_allclose(nets.array(probabilities)[:2], expected, rtol=tolerance)
    arrays = [nets.array(variable) for variable in table.weights]
    bytes_per_row = sum(array.dtype.itemsize * array.shape[-1] for array in arrays)
    assert bytes_per_row == {"float32": 20, "float16": 10, 2: 8}[storage]


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["float16", 3])
def test_smaller_tables_train_nearly_the_same_and_are_saved(storage, tmp_path):
    x, y = nets.vectors(), nets.class_ids()
    wrapper, exact = compiled(table=storage), compiled()
    exact.student.set_weights(wrapper.student.get_weights())
    fit(exact, x, y, epochs=3)
    fit(wrapper, x, y, epochs=3)
    for own, value in zip(wrapper.student.get_weights(), exact.student.get_weights()):
        np.testing.assert_allclose(own, value, atol=2e-3)
    wrapper.save(tmp_path / "model.keras")
    wrapper.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    resumed = compiled(table=storage)
    resumed.load_weights(tmp_path / "model.weights.h5")
    for model in (wrapper, loaded, resumed):
        fit(model, x, y, epochs=5, initial_epoch=3)
    for model in (loaded, resumed):
        for mine, theirs in zip(wrapper.weights, model.weights, strict=True):
            np.testing.assert_allclose(nets.array(mine), nets.array(theirs), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["float32", 3])
def test_killed_in_any_epoch_and_resumed_equals_undisturbed(storage, tmp_path):
    x, y = nets.vectors(), nets.class_ids()
    start = linear().get_weights()

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise InterruptedError

    def fresh():
        wrapper = compiled(table=storage)
        wrapper.student.set_weights(start)
        return wrapper, [keras.callbacks.BackupAndRestore(tmp_path / "backup")]

    undisturbed, _ = fresh()
    fit(undisturbed, x, y, epochs=5)
    wrapper, callbacks = fresh()
    with pytest.raises(InterruptedError):
        fit(wrapper, x, y, epochs=5, callbacks=[*callbacks, Kill()])
    wrapper, callbacks = fresh()
    history = fit(wrapper, x, y, epochs=5, callbacks=callbacks)
    assert history.epoch == [3, 4]
    for mine, theirs in zip(undisturbed.weights, wrapper.weights, strict=True):
        np.testing.assert_array_equal(nets.array(mine), nets.array(theirs))


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("storage", ["float32", 3])
def test_every_replica_keeps_all_predictions(storage, two_replicas):
    import tensorflow as tf

    x, y = nets.vectors(), nets.class_ids()
    alone = compiled(table=storage)
    with two_replicas.scope():
        both = compiled(table=storage)
    both.student.set_weights(alone.student.get_weights())
    rng = np.random.default_rng(0)
    ids = np.concatenate([rng.permutation(24) for _ in range(3)])
    dataset = tf.data.Dataset.from_tensor_slices((x[ids], with_ids(y[ids], ids))).batch(8)
    arguments = {"epochs": 3, "steps_per_epoch": 3, "shuffle": False, "verbose": 0}
    one, other = (model.fit(dataset, **arguments).history for model in (alone, both))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, err_msg=name)
    nets.assert_same_weights(alone.student, both.student, rtol=1e-5, atol=1e-6)
    for expected, table in zip(alone.tables[0].weights, both.tables[0].weights):
        copies = two_replicas.experimental_local_results(table.value)
        assert len(copies) == 2
        for copy in copies:
            np.testing.assert_allclose(copy.numpy(), nets.array(expected), rtol=1e-3, atol=1e-6)


def test_evaluation_knows_no_past():
    x, y = nets.vectors(), nets.class_ids()
    wrapper = compiled(compile_options={"evaluate_terms": True})
    fit(wrapper, x, y, epochs=2, validation_data=(x, y))
    before = table_of(wrapper)
    for labels in (y, with_ids(y[::-1])):
        logs = wrapper.evaluate(x, labels, verbose=0, return_dict=True)
        assert set(logs) == {"loss", "label_loss"}
    np.testing.assert_array_equal(before, table_of(wrapper))
    assert not [v for v in wrapper.trainable_variables if "table" in v.path]


# Heads and data.


def test_several_outputs_have_a_table_each():
    x = nets.vectors()
    y = [nets.class_ids(), nets.class_ids() % 3]
    wrapper = compiled(nets.two_heads(), loss=[nets.cross_entropy(), nets.cross_entropy()])
    fit(wrapper, x, y, epochs=2)
    logits = nets.predict(wrapper.student, x)
    assert [table_of(wrapper, i).shape for i in range(2)] == [(24, 4), (24, 3)]
    fit(wrapper, x, y, epochs=3, initial_epoch=2, batch_size=24)
    for i in range(2):
        np.testing.assert_allclose(table_of(wrapper, i), oracle.softmax(logits[i]), rtol=1e-4)


@pytest.mark.parametrize("units", [1, 3])
def test_independent_labels_have_a_binary_past(units):
    x = nets.vectors()
    y = np.random.default_rng(1).integers(0, 2, (24, units)).astype("float32")
    wrapper = compiled(
        nets.mlp("sigmoid", classes=units), loss=keras.losses.BinaryCrossentropy(from_logits=False)
    )
    fit(wrapper, x, y, epochs=1, batch_size=24)
    past = table_of(wrapper)
    p = nets.predict(wrapper.student, x)
    logs = fit(wrapper, x, y, epochs=2, initial_epoch=1, batch_size=24).history
    expected = np.mean(-(past * np.log(p) + (1 - past) * np.log(1 - p)))
    np.testing.assert_allclose(logs["past_predictions"], expected, rtol=1e-5)


def test_predictions_in_a_map_have_a_row_of_their_shape():
    inputs = keras.Input((3, nets.FEATURES))
    student = keras.Model(inputs, keras.layers.Dense(nets.CLASSES)(inputs))
    x, y = nets.vectors(24).reshape(8, 3, -1), nets.class_ids((8, 3))
    wrapper = compiled(student, samples=8, table=2)
    logs = fit(wrapper, x, y, epochs=3).history
    assert table_of(wrapper).shape == (8, 3, 2)
    assert logs["loss"][-1] < logs["loss"][0]


def test_a_student_without_a_graph_names_its_classes():
    with pytest.raises(ValueError, match="Pass the number of its classes"):
        compiled(nets.Subclassed())
    wrapper = compiled(nets.Subclassed(), classes=nets.CLASSES, student_from_logits=True)
    fit(wrapper, nets.vectors(), nets.class_ids(), epochs=2)
    assert (table_of(wrapper) >= 0).all()


class Sequence(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 3

    def __getitem__(self, i):
        ids = np.arange(8 * i, 8 * i + 8)
        return self.x[ids], with_ids(self.y[ids], ids)


def test_a_py_dataset_trains_as_the_arrays():
    x, y = nets.vectors(), nets.class_ids()
    one, other = compiled(), compiled()
    other.student.set_weights(one.student.get_weights())
    fit(one, x, y, epochs=2)
    other.fit(Sequence(x, y), epochs=2, shuffle=False, verbose=0)
    nets.assert_same_weights(one.student, other.student, rtol=1e-6, atol=1e-7)


# Bad input.


def test_bad_arguments():
    for options, message in (
        ({"samples": 0}, "positive whole number"),
        ({"alpha": 1.5}, "from 0 to 1"),
        ({"epochs": 0}, "positive whole number"),
        ({"table": "int8"}, "'float32', 'float16' or a number"),
        ({"table": 4}, "fewer than the 4 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            kd.ProgressiveDistiller(linear(), **{"samples": 24, **options})
    with pytest.raises(ValueError, match="fixed shape"):
        kd.ProgressiveDistiller(nets.tagger(), 24)
    wrapper = kd.ProgressiveDistiller(linear(), 24)
    with pytest.raises(ValueError, match="Expected a label `loss`"):
        wrapper.compile(nets.sgd())


def test_ids_that_do_not_fit_are_one_line_before_training():
    x, y = nets.vectors(), nets.class_ids()
    wrapper = compiled(samples=20)
    before = nets.snapshot(wrapper.student)
    with pytest.raises(ValueError, match="samples=20 rows. Received: ids from 0 to 23"):
        fit(wrapper, x, y)
    with pytest.raises(ValueError, match="Received: ids from -1 to 7"):
        fit(wrapper, x[:9], with_ids(y[:9], np.arange(-1, 8)))
    with pytest.raises(ValueError, match="ids from 0 to 40"):
        fit(wrapper, x[:2], with_ids(y[:2], [0, 40]))
    nets.assert_untouched(wrapper.student, before)


@pytest.mark.tensorflow
def test_ids_of_a_data_set():
    import tensorflow as tf

    x, y = nets.vectors(), nets.class_ids()
    samples = tf.data.Dataset.from_tensor_slices((x, y))
    wrapper = compiled(samples=20)
    with pytest.raises(ValueError, match="Targets with `ids`.*kd.data.with_ids"):
        wrapper.fit(samples.batch(8), shuffle=False, verbose=0)
    numbered = kd.data.with_ids(samples)
    with pytest.raises(ValueError, match="ids from 0 to 23"):
        wrapper.fit(numbered.batch(24), shuffle=False, verbose=0)
    # Beyond the first batch the run ends, or its loss is no number.
    with pytest.raises(tf.errors.InvalidArgumentError, match="not in"):
        wrapper.fit(numbered.batch(8), shuffle=False, verbose=0)
    compiled_by_xla = compiled(samples=20, compile_options={"jit_compile": True})
    logs = compiled_by_xla.fit(numbered.batch(8), shuffle=False, verbose=0).history
    assert np.isnan(logs["loss"][0])


@pytest.mark.slow
def test_train_on_batch_wants_an_epoch():
    x, y = nets.vectors(8), nets.class_ids(8)
    wrapper = compiled()
    with pytest.raises(ValueError, match="Call set_epoch"):
        wrapper.train_on_batch(x, with_ids(y))
    with pytest.raises(ValueError, match="`epochs`, over which alpha rises"):
        wrapper.set_epoch(0)
    wrapper.set_epoch(0, 4)
    with pytest.raises(ValueError, match="Targets with `ids`"):
        wrapper.train_on_batch(x, y)
    assert np.isfinite(wrapper.train_on_batch(x, with_ids(y), return_dict=True)["loss"])
