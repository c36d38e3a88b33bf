"""Distiller: saving, loading, checkpoints; a run that goes on is the run undisturbed."""

import pathlib

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests.models import nets

SOFT = kd.losses.SoftTargets


def compiled(distiller, optimizer=None, loss="ce", **kwargs):
    loss = nets.cross_entropy() if loss == "ce" else loss
    distiller.compile(optimizer or nets.sgd(), loss, jit_compile=False, **kwargs)
    return distiller


def fit(model, x, y=None, **kwargs):
    kwargs = {"batch_size": 8, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(x, y, **kwargs).history


def saved_setting():
    teacher, student = nets.cnn(6, "teacher"), nets.cnn(4, "student", dropout=0.3)
    terms = [
        kd.Term(SOFT(3.0), weight=kd.schedules.Linear(0.0, 2.0, 6)),
        kd.Term(SOFT(), weight=0.5, temperature=2.0, name="second"),
        kd.Term(kd.losses.Hint(), "stage1", "stage1", weight=0.7, connector="auto"),
    ]
    distiller = kd.Distiller(teacher, student, terms, student_loss_weight=0.5)
    return compiled(distiller, "adam", metrics=["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["save", "save_model", "weights"])
def test_saved_in_the_middle_goes_on_as_if_undisturbed(tmp_path, how):
    distiller = saved_setting()
    x, y = nets.images(16), nets.class_ids(16)
    fit(distiller, x, y)
    distiller.terms[1].weight.assign(0.25)
    distiller.terms[1].temperature.assign(5.0)
    if how == "weights":
        distiller.save_weights(tmp_path / "w.weights.h5")
        loaded = kd.Distiller.from_config(distiller.get_config())
        loaded.teacher.set_weights(distiller.teacher.get_weights())
        compiled(loaded, "adam", metrics=["accuracy"])
        loaded.load_weights(tmp_path / "w.weights.h5")
    else:
        if how == "save":
            distiller.save(tmp_path / "d.keras")
        else:
            keras.saving.save_model(distiller, tmp_path / "d.keras")
        loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert nets.difference(loaded, distiller) == 0.0
    assert loaded.student_loss_weight == 0.5
    assert int(loaded.optimizer.iterations) == 2
    ours, theirs = fit(loaded, x, y), fit(distiller, x, y)
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=name)
    nets.assert_same_weights(loaded, distiller, rtol=1e-5, atol=1e-7)
    before = [nets.array(v) for v in loaded.trainable_variables]
    fit(loaded, x, y)
    assert all(np.any(a != nets.array(v)) for a, v in zip(before, loaded.trainable_variables))


@pytest.mark.slow
def test_saved_without_its_teacher(tmp_path):
    distiller = saved_setting()
    x, y = nets.images(16), nets.class_ids(16)
    fit(distiller, x, y)
    distiller.save(tmp_path / "full.keras")
    distiller.save(tmp_path / "small.keras", include_teacher=False)
    assert distiller.teacher is not None
    small, full = (tmp_path / f"{name}.keras" for name in ("small", "full"))
    assert small.stat().st_size < full.stat().st_size
    loaded = keras.saving.load_model(small)
    assert loaded.teacher is None
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), distiller.predict(x, verbose=0))
    assert loaded.evaluate(x, y, verbose=0, return_dict=True) == distiller.evaluate(
        x, y, verbose=0, return_dict=True
    )
    with pytest.raises(ValueError, match="set_teacher"):
        fit(loaded, x, y)
    loaded.set_teacher(distiller.teacher)
    fit(loaded, x, y)
    fit(distiller, x, y)
    nets.assert_same_weights(loaded.student, distiller.student, rtol=1e-5, atol=1e-7)
    again = tmp_path / "again.keras"
    loaded.save(again)
    assert keras.saving.load_model(again).teacher is not None


def test_weights_files_leave_the_teacher_out(tmp_path):
    import h5py

    distiller = saved_setting()
    x, y = nets.images(16), nets.class_ids(16)
    fit(distiller, x, y)
    path = tmp_path / "w.weights.h5"
    distiller.save_weights(path)
    names, sizes = [], []

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            names.append(name)
            sizes.append(item.size)

    with h5py.File(path) as file:
        file.visititems(visit)
    assert not any("teacher" in name for name in names)
    student = sum(np.prod(v.shape) for v in distiller.student.variables)
    assert sum(sizes) < 5 * student + 200  # the student, two Adam slots, connector, scalars
    teacher = nets.snapshot(distiller.teacher)
    expected = nets.snapshot(distiller.student)
    distiller.student.set_weights([0 * w for w in distiller.student.get_weights()])
    distiller.load_weights(path)
    nets.assert_untouched(distiller.student, expected)
    nets.assert_untouched(distiller.teacher, teacher)


def test_clone_from_config_is_the_same_wrapper_with_fresh_weights():
    distiller = saved_setting()
    copy = kd.Distiller.from_config(distiller.get_config())
    assert [term.name for term in copy.terms] == ["soft_targets", "second", "hint"]
    assert copy.student_loss_weight == 0.5
    assert isinstance(copy.terms[0].weight, kd.schedules.Linear)
    assert float(copy.terms[1].temperature) == 2.0
    assert not {id(v) for v in copy.variables} & {id(v) for v in distiller.variables}
    assert [v.shape for v in copy.variables] == [v.shape for v in distiller.variables]


@pytest.mark.slow
@pytest.mark.parametrize("weights_only", [True, False])
def test_model_checkpoint(tmp_path, weights_only):
    distiller = saved_setting()
    x, y = nets.images(16), nets.class_ids(16)
    path = str(tmp_path / ("{epoch}.weights.h5" if weights_only else "{epoch}.keras"))
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=weights_only)
    fit(distiller, x, y, epochs=2, callbacks=[checkpoint])
    last = nets.snapshot(distiller.student)
    path = path.format(epoch=2)
    if weights_only:
        fit(distiller, x, y)
        distiller.load_weights(path)
        nets.assert_untouched(distiller.student, last)
    else:
        nets.assert_untouched(keras.saving.load_model(path).student, last)


@pytest.mark.slow
def test_backup_and_restore_works_from_the_first_epoch(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    x, y = nets.images(16), nets.class_ids(16)
    start = saved_setting()
    start.save(tmp_path / "start.keras")
    undisturbed, killed, resumed = (
        keras.saving.load_model(tmp_path / "start.keras") for _ in range(3)
    )

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    fit(undisturbed, x, y, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        fit(killed, x, y, epochs=3, callbacks=[backup(), Stop()])
    history = fit(resumed, x, y, epochs=3, callbacks=[backup()])
    assert len(history["loss"]) == 1
    nets.assert_same_weights(resumed, undisturbed, rtol=1e-5, atol=1e-7)


def test_save_keeps_the_file_that_is_there(tmp_path):
    distiller = saved_setting()
    path = tmp_path / "d.keras"
    path.write_text("mine")
    with pytest.raises(ValueError, match="overwrite"):
        distiller.save(path, overwrite=False)
    weights = tmp_path / "d.weights.h5"
    weights.write_text("mine")
    with pytest.raises(ValueError, match="overwrite"):
        distiller.save_weights(weights, overwrite=False)
    assert path.read_text() == weights.read_text() == "mine"


def test_sharded_weights_are_all_there(tmp_path):
    distiller = saved_setting()
    path = tmp_path / "d.weights.json"
    distiller.save_weights(path, max_shard_size=2e-6)
    expected = nets.snapshot(distiller.student)
    distiller.student.set_weights([0 * w for w in distiller.student.get_weights()])
    distiller.load_weights(path)
    nets.assert_untouched(distiller.student, expected)


def test_shards_of_two_savings_are_never_loaded_together(tmp_path, monkeypatch):
    """A stop between two shards leaves no index, which would join old shards and new ones."""
    distiller = saved_setting()
    path = tmp_path / "d.weights.json"
    distiller.save_weights(path, max_shard_size=2e-6)
    replace, moved = pathlib.Path.replace, []

    def stopped(shard, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        return replace(shard, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pathlib.Path, "replace", stopped)
        distiller.save_weights(path, max_shard_size=2e-6)
    assert moved and not path.exists()
    with pytest.raises(ValueError, match="no such file"):
        distiller.load_weights(path)
    distiller.save_weights(path, max_shard_size=2e-6)
    distiller.load_weights(path)


def test_a_failed_save_leaves_no_file(tmp_path, monkeypatch):
    distiller = saved_setting()
    path = tmp_path / "d.keras"
    distiller.save(path)
    whole = path.read_bytes()

    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(keras.Model, "save", broken)
    with pytest.raises(OSError):
        distiller.save(path)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["d.keras"]


def test_student_is_exported_alone(tmp_path):
    distiller = saved_setting()
    assert distiller.inference_model is distiller.student
    x = nets.images(4)
    distiller.student.save(tmp_path / "student.keras")
    alone = keras.saving.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(nets.predict(alone, x), nets.predict(distiller.student, x))
