"""`TeacherCache`: the views and outputs that it replays, resuming, and files that are not right."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.data import cache_manifest
from keras_distill.data import cache_store
from keras_distill.data.cache_store import CacheError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLES, CLASSES = 40, 5
CROP = kd.data.crop_and_flip(1)


def images(seed=0, samples=SAMPLES):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (samples, 6, 6, 3)).astype("uint8")
    return pixels, rng.integers(0, CLASSES, samples)


def network(name="teacher", activation=None, seed=0, classes=CLASSES):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(3, 3, activation="relu", name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(
        classes, activation=activation, kernel_initializer="glorot_normal", name="logits"
    )(x)
    return keras.Model(inputs, outputs, name=name)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 16 samples, so that there are several."""
    from keras_distill.data import teacher_cache

    monkeypatch.setattr(teacher_cache, "_block", lambda record_bytes, samples: min(16, samples))


def build(path, teacher=None, **options):
    x, y = images()
    return kd.data.TeacherCache.build(
        path, network() if teacher is None else teacher, x, y, batch_size=7, **options
    )


def epoch_of(cache, epoch=0, batch_size=9, **options):
    """All of an epoch by id: images, labels, the teacher's fields."""
    dataset = cache.dataset(
        batch_size, start_epoch=epoch, epochs=epoch + 1, shuffle=True, seed=3, **options
    )
    batches = [(x.numpy(), tf.nest.map_structure(lambda t: t.numpy(), dict(y))) for x, y in dataset]
    ids = np.concatenate([y["ids"] for _, y in batches])
    order = np.argsort(ids)
    assert sorted(ids) == list(range(SAMPLES))
    fields = {
        name: np.concatenate([y["teacher"][name] for _, y in batches])[order]
        for name in batches[0][1]["teacher"]
    }
    return (
        np.concatenate([x for x, _ in batches])[order],
        np.concatenate([y["labels"] for _, y in batches])[order],
        fields,
    )


AUGMENTED = {
    "plain": {},
    "crop": {"augment": CROP},
    "keras layers": {
        "augment": kd.data.keras_augment(
            CROP,
            keras.layers.RandomErasing(1.0, value_range=(0, 1)),
            keras.layers.RandomRotation(0.2),
        )
    },
    "rand augment": {
        "augment": kd.data.keras_augment(keras.layers.RandAugment(value_range=(0, 1)))
    },
    "mixup": {"augment": CROP, "mix": keras.layers.MixUp(0.8)},
    "cutmix": {"mix": keras.layers.CutMix(1.0)},
}


@pytest.mark.parametrize("name", AUGMENTED)
def test_the_teacher_says_of_the_replayed_view_what_is_stored(tmp_path, name):
    teacher = network()
    cache = build(tmp_path / "cache", teacher, views=2, dtype="float32", **AUGMENTED[name])
    views = []
    for epoch in range(3):
        x, _, fields = epoch_of(cache, epoch)
        np.testing.assert_allclose(fields["prediction_0"], teacher(x), rtol=1e-4, atol=1e-5)
        views.append(x)
    np.testing.assert_array_equal(views[0], views[2])  # Two cached epochs in turn.
    assert (name == "plain") == np.array_equal(views[0], views[1])


@pytest.mark.parametrize("name", ["crop", "keras layers", "mixup", "cutmix"])
def test_views_depend_on_no_batch_and_are_those_after_opening(tmp_path, name):
    cache = build(tmp_path / "cache", views=2, seed=4, **AUGMENTED[name])
    x, y = images()
    opened = kd.data.TeacherCache(tmp_path / "cache", x, y, **AUGMENTED[name])
    for one, other in zip(epoch_of(cache, 1)[:2], epoch_of(opened, 1, batch_size=40)[:2]):
        np.testing.assert_array_equal(one, other)


def test_mixup_by_hand(tmp_path):
    cache = build(tmp_path / "cache", mix=keras.layers.MixUp(0.8))
    x, y = images()
    records = cache.read(0)
    view, labels, _ = epoch_of(cache)
    own = records["amount"][:, None]
    assert 0 < own.min() and own.max() < 1
    assert sorted(records["partner"]) == list(range(SAMPLES))
    np.testing.assert_array_equal(records["partner_seed"], records["seed"][records["partner"]])
    one_hot = np.eye(CLASSES)[y]
    np.testing.assert_allclose(
        labels, own * one_hot + (1 - own) * one_hot[records["partner"]], rtol=1e-5
    )
    flat = x.reshape(SAMPLES, -1) / 255
    expected = own * flat + (1 - own) * flat[records["partner"]]
    np.testing.assert_allclose(view.reshape(SAMPLES, -1), expected, rtol=1e-4, atol=1e-6)


def test_cutmix_takes_a_box_of_the_partner_and_weighs_by_its_area(tmp_path):
    cache = build(tmp_path / "cache", mix=keras.layers.CutMix(1.0))
    x, y = images()
    partner = cache.read(0)["partner"]
    view, labels, _ = epoch_of(cache)
    own, other = (np.float32(x) / 255), (np.float32(x[partner]) / 255)
    inside = (view == other).all(-1)
    assert ((view == own).all(-1) | inside).all()
    areas = []
    for i in range(SAMPLES):
        if partner[i] == i:
            continue
        share = inside[i].mean()
        rows, columns = np.flatnonzero(inside[i].any(1)), np.flatnonzero(inside[i].any(0))
        if share:
            assert len(rows) == np.ptp(rows) + 1 and len(columns) == np.ptp(columns) + 1
            assert share * 36 == len(rows) * len(columns)
        expected = (1 - share) * np.eye(CLASSES)[y[i]] + share * np.eye(CLASSES)[y[partner[i]]]
        np.testing.assert_allclose(labels[i], expected, atol=1e-6)
        areas.append(share)
    assert min(areas) < 0.2 < 0.5 < max(areas)


@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
def test_logits_are_those_before_the_activation(tmp_path, activation):
    teacher = network(activation=activation)
    cache = build(tmp_path / "cache", teacher, features=["conv"])
    x, _, fields = epoch_of(cache)
    twin = kd.tap(teacher, ["conv"], logits=True)
    outputs = twin(x)
    assert fields["prediction_0"].dtype == "float16"
    np.testing.assert_allclose(fields["prediction_0"], outputs["logits"], rtol=2e-3, atol=1e-4)
    pooled = np.mean(outputs["features"]["conv"], axis=(1, 2))
    np.testing.assert_allclose(fields["feature_0"], pooled, rtol=2e-3, atol=1e-4)


def test_a_global_policy_does_not_reach_the_teacher(tmp_path):
    teacher, before = network(), keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        cache = build(tmp_path / "cache", teacher, dtype="float32")
    finally:
        keras.config.set_dtype_policy(before)
    x, _, fields = epoch_of(cache)
    np.testing.assert_allclose(fields["prediction_0"], teacher(x), rtol=1e-5, atol=1e-6)


def test_top_k_at_each_temperature(tmp_path):
    teacher = network()
    cache = build(tmp_path / "cache", teacher, top_k=2, temperatures=[1.0, 4.0])
    x, _, fields = epoch_of(cache)
    for i, temperature in enumerate((1.0, 4.0)):
        probabilities = tf.nn.softmax(teacher(x) / temperature).numpy()
        order = np.argsort(-probabilities, axis=1)[:, :2]
        np.testing.assert_array_equal(fields[f"prediction_{i}_classes"], order)
        expected = np.take_along_axis(probabilities, order, 1)
        np.testing.assert_allclose(fields[f"prediction_{i}"], expected, rtol=1e-3)
    assert cache.manifest["record_bytes"] == 4 + 2 * 2 * (2 + 2)


def test_an_ensemble_is_stored_at_its_temperatures(tmp_path):
    members = [network("a"), network("b", seed=1)]
    ensemble = kd.EnsembleTeacher(members)
    with pytest.raises(ValueError, match="`temperatures` for an ensemble"):
        build(tmp_path / "cache", ensemble)
    cache = build(tmp_path / "cache", ensemble, temperatures=[4.0], dtype="float32")
    x, _, fields = epoch_of(cache)
    np.testing.assert_allclose(
        fields["prediction_0"], ensemble.soft_outputs(x, 4.0), rtol=1e-4, atol=1e-5
    )


def test_nothing_is_left_of_a_finished_training(tmp_path):
    cache = build(tmp_path / "cache", views=2)
    assert len(cache.dataset(8, start_epoch=3, epochs=3)) == 0
    assert len(cache.dataset(8, epochs=3)) == 3 * cache.steps_per_epoch(8) == 15


def test_a_data_set_of_samples_gives_what_arrays_give(tmp_path):
    x, y = images()
    samples = tf.data.Dataset.from_tensor_slices((x, y, np.linspace(0, 1, SAMPLES)))
    teacher = network()
    of_arrays = build(tmp_path / "arrays", teacher, augment=CROP)
    cache = kd.data.TeacherCache.build(
        tmp_path / "samples", teacher, samples, augment=CROP, batch_size=7
    )
    np.testing.assert_array_equal(cache.read(0), of_arrays.read(0))
    view, targets, weight = next(iter(cache.dataset(SAMPLES, shuffle=16)))
    expected = epoch_of(of_arrays)
    np.testing.assert_array_equal(view, expected[0][targets["ids"]])
    np.testing.assert_allclose(weight, targets["ids"].numpy() / (SAMPLES - 1))
    assert kd.data.TeacherCache(tmp_path / "samples", samples, augment=CROP).outputs.classes == 5
    with pytest.raises(ValueError, match="`mix` with arrays only"):
        kd.data.TeacherCache.build(tmp_path / "other", teacher, samples, mix=keras.layers.MixUp())


def test_the_size_is_the_formula_of_the_docstring(tmp_path):
    build(tmp_path / "cache", views=3, top_k=2, temperatures=4.0)
    files = sorted((tmp_path / "cache").glob("view-*.bin"))
    assert [file.stat().st_size for file in files] == [SAMPLES * (4 + 2 * (2 + 2))] * 3
    assert kd.data.TeacherCache.inspect(tmp_path / "cache")["bytes"] == 3 * SAMPLES * 12


@pytest.mark.parametrize(
    ("samples", "classes", "views", "top_k", "printed"),
    [
        (50_000, 10, 30, None, "34.3 MiB"),
        (50_000, 100, 240, None, "2.28 GiB"),
        (1_281_167, 1_000, 1, None, "2.39 GiB"),
        (1_281_167, 1_000, 300, 10, "15.7 GiB"),
        (14_200_000, 21_841, 90, 100, "481 GiB"),
    ],
)
def test_the_table_of_the_docstring(samples, classes, views, top_k, printed):
    from keras_distill.data.cache_records import Records
    from keras_distill.data.cache_records import StoredOutputs

    stored = StoredOutputs(classes, top_k=top_k, temperatures=top_k and 1.0)
    total = samples * views * Records(stored).dtype.itemsize
    unit = {"MiB": 2**20, "GiB": 2**30}[printed.split()[1]]
    assert f"{total / unit:.3g}" == printed.split()[0]
    row = f"| {samples:,} | {classes:,} | {views} |"
    lines = [line for line in kd.data.TeacherCache.__doc__.splitlines() if row in line]
    assert len(lines) == 1 and printed in lines[0]


# Building in parts.


def test_workers_share_the_blocks_and_any_order_gives_the_same(tmp_path):
    teacher = network()
    whole = build(tmp_path / "whole", teacher, views=2, augment=CROP)
    assert build(tmp_path / "parts", teacher, views=2, augment=CROP, worker=1, workers=2) is None
    assert kd.data.TeacherCache.inspect(tmp_path / "parts")["blocks_written"] == 3
    x, y = images()
    with pytest.raises(CacheError, match=r"Received: 3 of 6 blocks.*build again"):
        kd.data.TeacherCache(tmp_path / "parts", x, y, augment=CROP)
    parts = build(tmp_path / "parts", teacher, views=2, augment=CROP, worker=0, workers=2)
    for view in range(2):
        np.testing.assert_array_equal(whole.read(view), parts.read(view))
    assert not (tmp_path / "parts" / "marks").exists()


def test_a_build_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    teacher, written = network(), []
    whole = build(tmp_path / "whole", teacher, views=2)
    write = cache_store.Store.write

    def counted(store, view, block, records):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append((view, block))
        write(store, view, block, records)

    monkeypatch.setattr(cache_store.Store, "write", counted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "stopped", teacher, views=2)
    assert written == [(0, 0), (0, 1), (0, 2), (1, 0)]
    written.clear()
    resumed = build(tmp_path / "stopped", teacher, views=2)
    assert written == [(1, 1), (1, 2)]
    for view in range(2):
        np.testing.assert_array_equal(whole.read(view), resumed.read(view))
    written.clear()
    build(tmp_path / "stopped", teacher, views=2)
    assert not written


def test_a_damaged_mark_is_a_block_to_make_again(tmp_path):
    build(tmp_path / "cache", views=2, worker=1, workers=2)
    mark = sorted((tmp_path / "cache" / "marks").iterdir())[0]
    mark.write_text(mark.read_text()[:-4])
    assert kd.data.TeacherCache.inspect(tmp_path / "cache")["blocks_written"] == 2


# Caches that do not fit.


@pytest.mark.slow
def test_another_teacher_data_or_augmentation_is_named(tmp_path):
    path = tmp_path / "cache"
    cache = build(path, augment=CROP)
    x, y = images()
    other, _ = images(seed=1)
    with pytest.raises(CacheError, match="teacher.*stale or foreign"):
        build(path, network(seed=1), augment=CROP)
    with pytest.raises(CacheError, match="other weights|another fingerprint"):
        cache.check_teacher(network(seed=1))
    cache.check_teacher(network())
    with pytest.raises(CacheError, match="data.*images"):
        kd.data.TeacherCache(path, other, y, augment=CROP)
    with pytest.raises(CacheError, match="data.*labels"):
        kd.data.TeacherCache(path, x, y[::-1], augment=CROP)
    with pytest.raises(CacheError, match="data"):
        kd.data.TeacherCache(path, x[:-1], y[:-1], augment=CROP)
    for augment in (None, kd.data.crop_and_flip(1, flip=False), kd.data.crop_and_flip(2)):
        with pytest.raises(CacheError, match="augmentation that the cache was built with"):
            kd.data.TeacherCache(path, x, y, augment=augment)
    with pytest.raises(CacheError, match="augmentation.*mix"):
        kd.data.TeacherCache(path, x, y, augment=CROP, mix=keras.layers.MixUp())
    with pytest.raises(CacheError, match="settings.*views"):
        build(path, augment=CROP, views=2)
    with pytest.raises(CacheError, match="settings.*outputs"):
        build(path, augment=CROP, top_k=2, temperatures=1.0)
    with pytest.raises(CacheError, match="settings.*seed"):
        build(path, augment=CROP, seed=1)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CacheError, match="holds something else"):
        build(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(CacheError, match=r"manifest\.json.*No such file"):
        kd.data.TeacherCache(tmp_path, *images())


@pytest.mark.parametrize("missing", [0, 1, 30])
def test_truncated_files(tmp_path, missing):
    build(tmp_path / "cache")
    file = next((tmp_path / "cache").glob("view-*.bin"))
    data = file.read_bytes()
    file.write_bytes(data[: len(data) - missing] if missing else data + b"\0")
    with pytest.raises(CacheError, match="truncated or foreign"):
        kd.data.TeacherCache(tmp_path / "cache", *images())
    file.unlink()
    with pytest.raises(CacheError, match="no such file"):
        kd.data.TeacherCache(tmp_path / "cache", *images())


@pytest.mark.slow
def test_no_flip_of_a_byte_passes_unseen(tmp_path):
    """A hundred flips anywhere: an error that names the file, or nothing changed."""
    original = build(tmp_path / "cache", views=2, top_k=2, temperatures=4.0).read(1)
    rng = np.random.default_rng(0)
    files = sorted(p for p in (tmp_path / "cache").iterdir() if p.is_file())
    sizes = np.array([file.stat().st_size for file in files])
    found = 0
    for _ in range(100):
        file = files[rng.choice(len(files), p=sizes / sizes.sum())]
        data = bytearray(file.read_bytes())
        place = rng.integers(len(data))
        before = bytes(data)
        data[place] ^= int(rng.integers(1, 256))
        file.write_bytes(data)
        try:
            again = kd.data.TeacherCache(tmp_path / "cache", *images())
        except CacheError as error:
            assert "Expected" in str(error) and "Received" in str(error)
            found += 1
        else:
            np.testing.assert_array_equal(again.read(1), original)
        file.write_bytes(before)
    assert found > 50


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"checksum": 0}', "nul", "[" * 100_000, '{"checksum": "x"}']
)
def test_manifests_that_are_none(tmp_path, content):
    build(tmp_path / "cache")
    (tmp_path / "cache" / "manifest.json").write_text(content)
    with pytest.raises(CacheError, match=r"manifest\.json"):
        kd.data.TeacherCache(tmp_path / "cache", *images())


def test_a_newer_format_is_told(tmp_path):
    build(tmp_path / "cache")
    path = tmp_path / "cache" / "manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    cache_store.write_json(path, {**content, "version": 2})
    with pytest.raises(CacheError, match="version 2"):
        kd.data.TeacherCache(tmp_path / "cache", *images())


def test_checksums_of_another_shape(tmp_path):
    build(tmp_path / "cache")
    cache_store.write_json(tmp_path / "cache" / "checksums.json", {"crc32": [[1]]})
    with pytest.raises(CacheError, match="views of 3 blocks"):
        kd.data.TeacherCache(tmp_path / "cache", *images())


def test_the_view_of_another_cache_is_found(tmp_path):
    build(tmp_path / "one")
    build(tmp_path / "two", seed=1)
    target = next((tmp_path / "one").glob("view-*.bin"))
    shutil.copy(next((tmp_path / "two").glob("view-*.bin")), target)
    with pytest.raises(CacheError, match="corrupt"):
        kd.data.TeacherCache(tmp_path / "one", *images())


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="`top_k` to be at most the teacher's 5 classes"):
        build(tmp_path / "a", top_k=6, temperatures=1.0)
    with pytest.raises(ValueError, match="`temperatures` with `top_k`"):
        build(tmp_path / "a", top_k=2)
    with pytest.raises(ValueError, match="independent labels"):
        build(tmp_path / "a", network(activation="sigmoid"), top_k=2, temperatures=1.0)
    with pytest.raises(ValueError, match="temperatures"):
        build(tmp_path / "a", top_k=2, temperatures=[1.0, 1.0])
    with pytest.raises(ValueError, match="views"):
        build(tmp_path / "a", views=0)
    with pytest.raises(ValueError, match="`worker` below `workers`"):
        build(tmp_path / "a", worker=2, workers=2)
    with pytest.raises(ValueError, match="residual"):
        build(tmp_path / "a", residual="drop")
    with pytest.raises(ValueError, match="dtype"):
        build(tmp_path / "a", dtype="int8")
    with pytest.raises(ValueError, match="nowhere"):
        build(tmp_path / "a", features=["nowhere"])
    with pytest.raises(ValueError, match="augment"):
        build(tmp_path / "a", augment="crop")
    x, y = images()
    named = tf.data.Dataset.from_tensor_slices(({"a": x}, y))
    with pytest.raises(ValueError, match="one tensor as x"):
        kd.data.TeacherCache.build(tmp_path / "a", network(), named)
    assert not (tmp_path / "a").exists()


def test_outputs_that_float16_does_not_hold(tmp_path):
    teacher = network()
    teacher.get_layer("logits").bias.assign(np.full(CLASSES, 1e5))
    with pytest.raises(ValueError, match=r'prediction_0.*dtype="float32"'):
        build(tmp_path / "a", teacher)
    build(tmp_path / "b", teacher, dtype="float32")


def test_checksums_are_those_of_zlib(tmp_path):
    cache = build(tmp_path / "cache")
    records = cache.read(0)
    sums = json.loads((tmp_path / "cache" / "checksums.json").read_text())["crc32"]
    assert sums == [[zlib.crc32(records[i : i + 16].tobytes()) for i in range(0, SAMPLES, 16)]]


# Kills and full disks, in processes of their own.


def caching_program(folder, kills):
    command = [sys.executable, "-m", "tests.programs.caching", str(folder), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.tensorflow
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_builds_end_as_the_undisturbed_one(tmp_path, kills):
    """SIGKILL at moments spread over the length of an undisturbed build; and a full disk."""
    found, errors = caching_program(tmp_path, kills)
    assert found["equal"] == kills
    assert found["inside"] == kills
    assert found["full"] == 3 and found["after_full"]
    assert "Expected room for" in errors and "make room" in errors


# Workers that meet.


def test_a_worker_that_counts_while_another_one_ends_finds_nothing_missing(tmp_path, monkeypatch):
    whole = build(tmp_path / "cache")
    store = whole._store
    answers = [False, True]  # before the marks are listed, and after
    monkeypatch.setattr(cache_store.Store, "is_complete", property(lambda _: answers.pop(0)))
    assert store.missing() == [] and not answers


def test_workers_that_end_together_both_end(tmp_path, monkeypatch):
    """The other drops the marks while this one reads them."""
    whole = build(tmp_path / "cache", views=2)
    answers = [False, True]
    with monkeypatch.context() as patch:
        patch.setattr(cache_store.Store, "is_complete", property(lambda _: answers.pop(0)))
        whole._store.finish()
    (tmp_path / "cache" / "checksums.json").unlink()
    with pytest.raises(CacheError, match="No such file"):
        whole._store.finish()


def test_the_first_manifest_in_a_folder_counts(tmp_path, monkeypatch):
    """Of two workers that found none there."""
    build(tmp_path / "one")
    found = cache_manifest.read_manifest(tmp_path / "one")
    manifest = {name: value for name, value in found.items() if name != "id"}
    probe = [value * (1 + 1e-7) for value in found["augmentation"]["probe"]]
    other = {**manifest, "augmentation": {**found["augmentation"], "probe": probe}}
    assert cache_manifest.identity(other) != found["id"]
    path = tmp_path / "two"
    exists, answers = pathlib.Path.exists, [False]

    def late(file):
        return answers.pop() if file.name == "manifest.json" and answers else exists(file)

    assert cache_manifest.begun(path, manifest).manifest["id"] == found["id"]
    monkeypatch.setattr(cache_manifest, "_is_unwritten", lambda entry: True)
    monkeypatch.setattr(pathlib.Path, "exists", late)
    assert cache_manifest.begun(path, other).manifest["id"] == found["id"]
    assert [file.name for file in path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ENOSPC])
def test_only_a_full_disk_is_called_one(tmp_path, monkeypatch, number):
    def failing(store, view):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cache_store.Store, "allocate", failing)
    with pytest.raises(OSError) as error:
        build(tmp_path / "cache")
    assert error.value.errno == number
    assert ("Expected room" in str(error.value)) == (number == errno.ENOSPC)


@pytest.mark.parametrize("name", ["manifest.json", "checksums.json", "view-*.bin"])
def test_what_is_said_of_a_damaged_cache_mends_it(tmp_path, name):
    """`build` alone would find the same damage again."""
    build(tmp_path / "cache")
    file = next((tmp_path / "cache").glob(name))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CacheError, match=r"remove the folder '.*cache' and build"):
        build(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    build(tmp_path / "cache")
