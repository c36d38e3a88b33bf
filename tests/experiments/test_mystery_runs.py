"""Allen-Zhu and Li's comparison: its rows from stored networks, its curve, going on with it."""

import dataclasses
import itertools
import json
import shutil

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.experiments import mystery_runs
from keras_distill.experiments.mystery_networks import StudyNetworks
from keras_distill.experiments.mystery_runs import Study
from keras_distill.recipes import running
from keras_distill.recipes import training
from keras_distill.recipes.settings import Setting
from keras_distill.reporting import RunFolder

SETTING = Setting(2, 20, 0.5, momentum=0.0, nesterov=False, weight_decay=0.0, augment=False)


@pytest.fixture(scope="module")
def split():
    return kd.data.multi_view(40, 30, classes=3, dimension=8, patches=4, noise=0.3)


def build(seed):
    return kd.backbones.multi_view_cnn((4, 1, 8), 3, channels=2, deviation=0.5, seed=seed)


@pytest.fixture(scope="module")
def study(split):
    return Study(build, split, SETTING, members=2, groups=(1,), pool=3, students=2)


def by_name(found):
    return {row["name"]: row for row in found["rows"]}


@pytest.fixture(scope="module")
def done(tmp_path_factory, study):
    """`(folder, what came of it)`."""
    folder = tmp_path_factory.mktemp("mysteries") / "run"
    return folder, mystery_runs.carry_out(folder, study, say=lambda line: None)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_rows_are_those_of_the_stored_networks(done, study):
    folder, found = done
    rows = by_name(found)
    assert list(rows) == list(mystery_runs.ROWS)
    assert found == json.loads(json.dumps(found))

    def logits(name, test):
        model = keras.models.load_model(training.model_path(folder, name), compile=False)
        return keras.ops.convert_to_numpy(model(test.images, training=False))

    def accuracy(logits, test):
        return float(np.mean(logits.argmax(-1) == test.labels))

    for part, test in study.tests.items():
        records = {name: row["records"][part] for name, row in rows.items()}
        mine = [logits(f"single_{seed}", test) for seed in (2, 3)]
        taught = [logits(f"distilled_1_{place}", test) for place in (0, 1)]
        expected = {
            "single": np.mean([accuracy(own, test) for own in mine]),
            "ensemble": accuracy(np.mean(mine, axis=0), test),
            "average": accuracy(logits("average_1", test), test),
            "distilled": np.mean([accuracy(own, test) for own in taught]),
            "self_distilled": accuracy(logits("self_distilled_1", test), test),
            "distilled_ensemble": accuracy(np.mean(taught, axis=0), test),
        }
        for name, value in expected.items():
            (record,) = records[name]
            assert record["seed"] == 1
            assert record["accuracy"] == pytest.approx(value), name
        best = max(accuracy(own, test) for own in mine)
        assert records["single"][0]["best_member"] == pytest.approx(best)
        assert [each["size"] for each in found["by_size"][part]] == [1, 2, 3, 4]
    assert found["parameters"] == build(0).count_params()
    assert len(list((folder / "runs").iterdir())) == 4 + 1 + 2 + 1


@pytest.mark.slow
@pytest.mark.tensorflow
def test_seconds_are_those_of_all_trainings_that_a_result_takes(done):
    folder, found = done

    def seconds(name):
        return json.loads((folder / "runs" / f"{name}.json").read_text())["seconds"]

    members = [seconds("single_2"), seconds("single_3")]
    taught = [seconds("distilled_1_0"), seconds("distilled_1_1")]
    expected = {
        "single": np.mean(members),
        "ensemble": sum(members),
        "average": seconds("average_1"),
        "distilled": sum(members) + np.mean(taught),
        "self_distilled": members[0] + seconds("self_distilled_1"),
        "distilled_ensemble": sum(members) + sum(taught),
    }
    for row in found["rows"]:
        first = row["records"]["single_view"][0]
        assert first["seconds"] == pytest.approx(expected[row["name"]], abs=2e-3)
    costs = {row["name"]: (row["trained"], row["run"]) for row in found["rows"]}
    assert costs["distilled"] == (3, 1) and costs["distilled_ensemble"] == (4, 2)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_students_learn_from_the_mean_logits_from_weights_of_their_own(done, study):
    """One step of SGD from a student's own start, with the ensemble run beside it."""
    folder, _ = done
    quick = dataclasses.replace(study.setting, epochs=1, batch_size=40)
    members = [
        keras.models.load_model(training.model_path(folder, f"single_{seed}"), compile=False)
        for seed in (2, 3)
    ]
    images, labels = study.data.train.images, study.data.train.labels
    teacher = np.mean([keras.ops.convert_to_numpy(m(images)) for m in members], axis=0)
    one = dataclasses.replace(study, setting=quick, pool=0, students=1)
    other = folder.parent / "one"
    copy_singles(folder, other)  # the teachers, trained longer than by `quick`
    rows = by_name(mystery_runs.carry_out(other, one, say=lambda line: None))
    assert "distilled_ensemble" not in rows
    assert rows["distilled"]["trained"] == 3 and rows["distilled"]["run"] == 1
    student = build(501)
    term = kd.Term(kd.losses.SoftTargets(4.0), weight=0.9)
    live = kd.Distiller(kd.EnsembleTeacher(members, average="logits"), student, term, 0.1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    live.compile(keras.optimizers.SGD(0.5), loss)
    mean = keras.ops.convert_to_numpy(live.teacher(images))
    np.testing.assert_allclose(mean, teacher, rtol=1e-5, atol=1e-6)
    live.fit(images, labels, batch_size=40, epochs=1, verbose=0)
    path = training.model_path(other, "distilled_1_0")
    found = keras.models.load_model(path, compile=False).get_layer("filters").kernel
    expected = keras.ops.convert_to_numpy(student.get_layer("filters").kernel)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), expected, rtol=1e-4, atol=1e-5)


def copy_singles(folder, other):
    """Makes a folder in which the networks of the first group are trained already."""
    for part, ending in (("models", "keras"), ("runs", "json"), ("answers", "npz")):
        (other / part).mkdir(parents=True)
        for seed in (2, 3):
            shutil.copy(folder / part / f"single_{seed}.{ending}", other / part)


class Killed(Exception):
    """What a kill leaves behind, without ending the tests."""


@pytest.mark.slow
@pytest.mark.tensorflow
def test_killed_lesson_goes_on_as_if_undisturbed(done, study, monkeypatch):
    folder, _ = done
    other = folder.parent / "killed"
    copy_singles(folder, other)
    first = dataclasses.replace(study, pool=0, rows=("distilled",))

    def kill(self, epoch, logs=None):
        if epoch == 1:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(running.TestAccuracy, "on_epoch_end", kill)
        with pytest.raises(Killed):
            mystery_runs.carry_out(other, first, say=lambda line: None)
    assert (other / "backups" / "distilled_1_0").exists()
    mystery_runs.carry_out(other, first, say=lambda line: None)
    for place in (0, 1):
        one, two = (
            keras.models.load_model(training.model_path(run, f"distilled_1_{place}"), compile=False)
            for run in (folder, other)
        )
        for a, b in zip(one.get_weights(), two.get_weights()):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_of_augmented_images_nothing_is_cached(done, study):
    """The teachers have to see the views that the student sees."""
    folder, _ = done
    other = folder.parent / "augmented"
    copy_singles(folder, other)
    setting = dataclasses.replace(study.setting, augment=True, epochs=1)
    live = dataclasses.replace(study, setting=setting, pool=0, students=1, rows=("distilled",))
    mystery_runs.carry_out(other, live, say=lambda line: None)
    assert not (other / "caches").exists() and (folder / "caches" / "ensemble_1").exists()
    path = training.model_path(other, "distilled_1_0")
    trained = keras.models.load_model(path, compile=False).get_weights()[0]
    assert np.abs(trained - build(501).get_weights()[0]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.tensorflow
def test_what_is_finished_is_read(done, study, monkeypatch):
    folder, found = done
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: 1 / 0)
    (folder / "runs" / "single_3.json").unlink()  # killed between the network and its record
    assert mystery_runs.carry_out(folder, study, say=lambda line: None) == found
    fewer = dataclasses.replace(study, rows=("ensemble",), pool=0)
    rows = by_name(mystery_runs.carry_out(folder, fewer, say=lambda line: None))
    assert list(rows) == ["single", "ensemble"]
    for name, row in rows.items():
        assert row["records"] == by_name(found)[name]["records"]
    with pytest.raises(ValueError, match="temperature=2.0"):
        mystery_runs.carry_out(folder, dataclasses.replace(study, temperature=2.0))


def test_accuracy_by_size_is_the_mean_over_all_ensembles():
    generator = np.random.default_rng(0)
    answers, labels = generator.normal(size=(4, 60, 3)), generator.integers(0, 3, 60)
    found = mystery_runs.accuracy_by_size(answers, labels, orders=3000)
    for size in (1, 2, 3, 4):
        every = [
            np.mean(answers[list(chosen)].mean(axis=0).argmax(-1) == labels)
            for chosen in itertools.combinations(range(4), size)
        ]
        entry = found[size - 1]
        assert entry["size"] == size
        assert entry["mean"] == pytest.approx(np.mean(every), abs=1e-9 if size in (1, 4) else 5e-3)
        assert entry["least"] == pytest.approx(min(every))
        assert entry["largest"] == pytest.approx(max(every))
    assert found[3]["deviation"] == pytest.approx(0.0)
    assert found == mystery_runs.accuracy_by_size(answers, labels, orders=3000)


def test_groups_share_no_network(split):
    study = Study(build, split, SETTING, members=3, groups=(0, 2), pool=4, students=2)
    assert study.networks == [0, 1, 2, 3, 6, 7, 8]
    assert list(study.tests) == ["test", "single_view"]
    assert study.group(0) + study.group(1) == list(range(6))
    assert study.pupils(0) + study.pupils(1) == [500, 501, 502, 503]
    assert study.settings()["network"] == ["multi_view_cnn", build(0).count_params()]


@pytest.mark.parametrize(
    "wrong",
    [
        {"members": 1},
        {"groups": ()},
        {"groups": (0, 0)},
        {"groups": (-1,)},
        {"groups": (100,)},
        {"students": 0},
        {"pool": -1},
        {"pool": 501},
        {"rows": ("mean",)},
    ],
)
def test_wrong_study(wrong, split):
    with pytest.raises(ValueError, match="Expected"):
        Study(build, split, SETTING, **wrong)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_members_of_the_average_take_steps_as_large_as_alone(split, tmp_path, monkeypatch):
    """From equal members the average moves each as the network alone moves, weight decay too."""
    plans = []
    monkeypatch.setattr(StudyNetworks, "_answers", lambda self, name, plan: plans.append(plan()))
    setting = dataclasses.replace(SETTING, weight_decay=0.1)
    study = Study(lambda seed: build(7), split, setting, members=3, groups=(0,), students=1)
    trained = StudyNetworks(RunFolder(tmp_path), study, print, 0)
    trained.single(0)
    trained.average(0)
    images, labels = split.train.images[:20], split.train.labels[:20]
    for plan in plans:
        plan.model.compile(**plan.compile)
        plan.model.train_on_batch(images, labels)
    alone, together = plans[0].network.get_weights()[0], plans[1].network.members
    assert np.abs(alone - build(7).get_weights()[0]).max() > 1e-2
    for member in together:
        np.testing.assert_allclose(member.get_weights()[0], alone, rtol=1e-4, atol=1e-6)
