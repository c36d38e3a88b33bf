"""One recipe in a run's folder: its record, going on after a kill, and never mixing settings."""

import json

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.recipes import running
from keras_distill.recipes import schemes
from keras_distill.recipes import training
from keras_distill.recipes.schemes import Options
from keras_distill.reporting import RunFolder

pytestmark = pytest.mark.tensorflow

OPTIONS = Options(student="small-2", epochs=3, batch_size=16, ensemble=2, looks=2).filled()


@pytest.fixture(scope="module")
def digits():
    return kd.data.load("digits", limit=40, test_limit=50)


class Killed(Exception):
    """What a kill leaves behind, without ending the tests."""


class Kill(keras.callbacks.Callback):
    """Ends the training of one model in the middle of an epoch."""

    def __init__(self, kind, epoch):
        super().__init__()
        self.kind, self.epoch, self.now = kind, epoch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if type(self.model).__name__ == self.kind and self.now == self.epoch:
            raise Killed


def carry_out(folder, name, digits, **options):
    return running.carry_out(
        RunFolder(folder), schemes.named(name), digits, OPTIONS, seed=2, **options
    )


def without_time(record):
    """What a resumed run has in common with one that was not killed; numbers not all digits."""
    return {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in record.items()
        if key != "seconds"
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "killed", "epoch"),
    [
        ("distillation", "Distiller", 1),
        pytest.param("distillation", "EnsembleTeacher", 2, marks=pytest.mark.slow),
        ("born_again", "BornAgain", 7),
        pytest.param("dlb", "DLBModel", 1, marks=pytest.mark.slow),
        pytest.param("ps_kd", "ProgressiveDistiller", 2, marks=pytest.mark.slow),
        pytest.param("mean_teacher", "MeanTeacher", 1, marks=pytest.mark.slow),
        pytest.param("self_distillation", "SelfDistiller", 1, marks=pytest.mark.slow),
        pytest.param("mutual", "MutualLearner", 1, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_undisturbed(name, killed, epoch, tmp_path, digits):
    undisturbed = carry_out(tmp_path / "a", name, digits)
    with pytest.raises(Killed):
        carry_out(tmp_path / "b", name, digits, callbacks=[Kill(killed, epoch)])
    assert not running.record_path(tmp_path / "b", f"{name}_seed2").exists()
    resumed = carry_out(tmp_path / "b", name, digits)
    file = f"{name}_seed2"
    one, two = (
        keras.models.load_model(training.model_path(tmp_path / folder, file)) for folder in "ab"
    )
    for a, b in zip(one.get_weights(), two.get_weights()):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    assert without_time(resumed) == without_time(undisturbed)
    epochs = [
        [(line["model"], line["epoch"]) for line in RunFolder(tmp_path / folder).read_metrics()]
        for folder in "ab"
    ]
    assert epochs[0] == epochs[1]


@pytest.fixture(scope="module")
def done(tmp_path_factory, digits):
    """A finished `mean_teacher`: `(folder, record)`."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("running") / "run"
    return folder, carry_out(folder, "mean_teacher", digits)


def test_record_says_what_was_measured_and_what_it_cost(done, digits):
    folder, record = done
    assert json.loads((folder / "runs" / "mean_teacher_seed2.json").read_text()) == record
    assert record["recipe"] == "mean_teacher" and record["seed"] == 2
    assert record["epochs"] == 3 and record["steps"] == 9
    assert record["images"] == {"student": 120, "peers": 0, "frozen": 120, "before": 0}
    assert record["parameters"] == kd.backbones.small_cnn((8, 8, 1), 10, 2).count_params()
    assert record["seconds"] > 0
    assert record["settings"]["training"]["drops"] == []
    model = keras.models.load_model(folder / "models" / "mean_teacher_seed2.keras")
    images = digits.test.images.astype("float32") / 255
    right = keras.ops.convert_to_numpy(model(images)).argmax(-1) == digits.test.labels
    assert record["accuracy"] == pytest.approx(right.mean())
    assert record["settings"]["training"]["learning_rate"] == schemes.SMALL.learning_rate
    assert record["settings"]["data"]["train"]["images"] == 40


def test_looks_are_spread_evenly_and_end_with_the_last_epoch(done):
    folder, record = done
    lines = RunFolder(folder).read_metrics()
    looks = {line["epoch"] + 1: line["test_accuracy"] for line in lines if "test_accuracy" in line}
    assert list(looks) == [2, 3]
    assert looks[3] == pytest.approx(record["accuracy"])
    assert record["best_accuracy"] == pytest.approx(max(looks.values()))
    assert record["best_epoch"] == max(looks, key=lambda epoch: (looks[epoch], -epoch))
    assert record["seconds"] == pytest.approx(sum(line["seconds"] for line in lines), abs=2e-3)


def test_finished_training_is_read(done, digits, monkeypatch):
    folder, record = done
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: 1 / 0)
    assert carry_out(folder, "mean_teacher", digits) == record


def test_model_without_record_is_measured_not_trained(done, digits, monkeypatch):
    """Killed between the last epoch and the record."""
    folder, record = done
    running.record_path(folder, "mean_teacher_seed2").unlink()
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: 1 / 0)
    assert carry_out(folder, "mean_teacher", digits) == record


def test_records_of_other_settings_are_never_mixed(done, digits):
    folder, _ = done
    recipe = schemes.named("mean_teacher")
    other = Options(student="small-2", epochs=4, batch_size=16, ensemble=2, looks=2).filled()
    with pytest.raises(ValueError, match="others for epochs, training.*--restart"):
        running.carry_out(RunFolder(folder), recipe, digits, other, seed=2)
    fewer = kd.data.load("digits", limit=39, test_limit=50)
    with pytest.raises(ValueError, match="others for data"):
        running.carry_out(RunFolder(folder), recipe, fewer, OPTIONS, seed=2)


def test_unreadable_record_is_told(tmp_path, digits):
    path = running.record_path(tmp_path, "mean_teacher_seed2")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(ValueError, match="readable"):
        carry_out(tmp_path, "mean_teacher", digits)


@pytest.mark.slow
def test_train_recipe_leaves_a_whole_run_and_its_student(tmp_path, digits):
    lines = []
    options = Options(student="small-2", epochs=2, ensemble=2)
    arguments = ("distillation", digits, options)
    results = running.train_recipe(*arguments, out=tmp_path, verbose=0, say=lines.append)
    names = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert names == ["student.keras", "teacher.keras"]
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert results["record"]["epochs"] == 2  # the scheme's own, as given
    text = "\n".join(lines)
    assert "1503.02531" in text and "Report: " in text
    assert "80 images forwarded by the student" in text and "400 in all" in text
    # The teachers' two epochs on 40 images each, and their answers to the student's.
    assert results["record"]["images"]["before"] == 160
    with pytest.raises(ValueError, match="seed=1.*--restart"):
        running.train_recipe(*arguments, seed=1, out=tmp_path, verbose=0)


def test_teacher_from_a_file_is_not_trained(tmp_path, digits):
    keras.utils.set_random_seed(5)
    teacher = kd.backbones.small_cnn((8, 8, 1), 10, 3)
    teacher.save(tmp_path / "teacher.keras")
    options = Options(student="small-2", teacher=str(tmp_path / "teacher.keras"), epochs=1)
    out = tmp_path / "run"
    results = running.train_recipe("distillation", digits, options, out=out, verbose=0, say=len)
    assert results["record"]["images"] == {"student": 40, "peers": 0, "frozen": 40, "before": 0}
    assert [path.name for path in (out / "models").iterdir()] == ["student.keras"]


@pytest.mark.parametrize(
    ("recipe", "options", "seed", "said"),
    [
        ("dbl", {}, 0, "Nearest: dlb"),
        ("baseline", {"student": "smal-2"}, 0, "small-4"),
        ("distillation", {"teacher": "resnet9"}, 0, "depth"),
        ("distillation", {"teacher": "missing.keras"}, 0, "missing.keras"),
        ("dlb", {"batch_size": 41}, 0, "batch_size"),
        ("baseline", {}, -1, "seed"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    recipe, options, seed, said, tmp_path, digits
):
    out = tmp_path / "run"
    with pytest.raises((ValueError, OSError), match=said):
        running.train_recipe(recipe, digits, Options(**options), seed, out)
    assert not out.exists()
