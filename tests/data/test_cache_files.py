"""The files of a `TeacherCache`, changed in any way: reading is as before, or a `CacheError`."""

import copy
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

import keras_distill as kd
from keras_distill.data import cache_manifest
from keras_distill.data import cache_store
from keras_distill.data import teacher_cache
from keras_distill.data.cache_store import CacheError

pytestmark = pytest.mark.tensorflow

SAMPLES = 10


def searched(examples):
    """Hypothesis's settings: the same examples each time."""
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None)


def few_and(more, few):
    """A test with a few examples, and a slow one with more."""
    return pytest.mark.parametrize("examples", [few, pytest.param(more, marks=pytest.mark.slow)])


class Whole:
    """A cache of two views in blocks of 4 records, and ways to break it and mend it again."""

    def __init__(self, path):
        rng = np.random.default_rng(0)
        self.path = path
        self.data = rng.integers(0, 256, (SAMPLES, 3, 3, 1)).astype("uint8"), np.arange(SAMPLES) % 5
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3, 3, 1))
        flat = keras.layers.Flatten(name="flat")(inputs)
        self.teacher = keras.Model(inputs, keras.layers.Dense(5)(flat))
        self.options = {
            "views": 2,
            "mix": keras.layers.MixUp(0.8),
            "top_k": 2,
            "temperatures": [1.0, 4.0],
            "features": ["flat"],
        }
        self.cache = kd.data.TeacherCache.build(path, self.teacher, *self.data, **self.options)
        self.records = [self.cache.read(view) for view in range(2)]
        self.files = {file.name: file.read_bytes() for file in path.iterdir()}
        self.manifest = cache_store.read_json(path / "manifest.json")

    def mend(self):
        shutil.rmtree(self.path)
        self.path.mkdir()
        for name, content in self.files.items():
            (self.path / name).write_bytes(content)

    def opened(self):
        """The cache, or `None` where that is a `CacheError`; any other error is raised."""
        try:
            return kd.data.TeacherCache(self.path, *self.data, mix=self.options["mix"])
        except CacheError as error:
            text = str(error)
            assert text.startswith("Expected ") and "Received" in text and "\n" not in text
            assert len(text) < 600
            return None

    def is_as_before(self, cache):
        same = all(np.array_equal(cache.read(v), self.records[v]) for v in range(2))
        return same and cache.outputs.get_config() == self.cache.outputs.get_config()

    def reads_as_before_or_refuses(self):
        cache = self.opened()
        return cache is None or self.is_as_before(cache)

    def write_manifest(self, content, mended):
        """Writes a manifest whose checksum, or also whose id, is right."""
        if "id" in mended and isinstance(content, dict):
            content["id"] = cache_manifest.identity(content)
            for file in list(self.path.glob("view-*.bin")):
                file.rename(file.with_name(f"{file.name[:10]}-{content['id']}.bin"))
        if "checksum" in mended and isinstance(content, dict):
            cache_store.write_json(self.path / "manifest.json", content)
        else:
            checksum = {"checksum": json.loads(self.files["manifest.json"])["checksum"]}
            content = {**content, **checksum} if isinstance(content, dict) else content
            (self.path / "manifest.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_cache, "_block", lambda record_bytes, samples: min(4, samples))
        yield Whole(tmp_path_factory.mktemp("whole") / "cache")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, 2, -1, 10**30, 10**400, 2**31, 2**63, 1e308, "..", "/etc/passwd"])
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(st.characters(codec=None), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def places(value, path=()):
    """The paths of all values in a JSON value, its own first."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def mutated(content, path, how, new):
    """A JSON value with the value at a path replaced, removed, added beside, or reordered."""
    content = copy.deepcopy(content)
    if not path:
        return new
    *outer, last = path
    inside = content
    for key in outer:
        inside = inside[key]
    if how == "remove":
        del inside[last]
    elif how == "add" and isinstance(inside, dict):
        inside[str(new)[:9]] = new
    elif how == "reorder" and isinstance(inside, dict):
        inside[last] = inside.pop(last)
    elif how == "double" and isinstance(inside, list):
        inside.append(inside[last])
    else:
        inside[last] = new
    return content


MUTATIONS = {
    "path": st.integers(0, 10**6),
    "how": st.sampled_from(["replace"] * 5 + ["remove", "add", "reorder", "double"]),
    "new": JSON,
}


@few_and(150, few=30)
@pytest.mark.parametrize("mended", ["", "checksum"])
def test_a_manifest_changed_anywhere_is_refused_or_means_the_same(whole, mended, examples):
    @searched(examples)
    @given(**MUTATIONS)
    def holds(path, how, new):
        every = list(places(whole.manifest))
        content = mutated(whole.manifest, every[path % len(every)], how, new)
        whole.write_manifest(content, mended)
        try:
            assert whole.reads_as_before_or_refuses()
        finally:
            whole.mend()

    holds()


@few_and(150, few=30)
def test_a_forged_manifest_is_another_cache_or_refused(whole, examples):
    """Checksum and id are right: what it says may be another cache's, never nonsense."""

    @searched(examples)
    @given(**MUTATIONS)
    def holds(path, how, new):
        every = list(places(whole.manifest))
        content = mutated(whole.manifest, every[path % len(every)], how, new)
        whole.write_manifest(content, "checksum id")
        try:
            cache = whole.opened()
            if cache is not None:
                assert all(np.array_equal(cache.read(v), whole.records[v]) for v in range(2))
            try:
                found = kd.data.TeacherCache.inspect(whole.path)
            except CacheError:
                assert cache is None
            else:
                assert 0 <= found["blocks_written"] <= found["blocks"]
        finally:
            whole.mend()

    holds()


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("id", "../../../etc"),
        ("id", "/etc/passwd"),
        ("id", "a\0b"),
        ("views", 10**12),
        ("samples", 10**18),
        ("block", 10**9),
        ("version", True),
        ("format", "other\n"),  # found by scripts/fuzz_cache.py: an error of two lines
        ("record_bytes", 1),
    ],
)
@pytest.mark.parametrize("mended", ["", "checksum", "checksum id"])
def test_manifests_that_lead_elsewhere_or_ask_for_too_much(whole, entry, value, mended):
    whole.write_manifest({**whole.manifest, entry: value}, mended)
    if entry == "id" and "id" in mended:  # as the forger cannot have it
        cache_store.write_json(whole.path / "manifest.json", {**whole.manifest, entry: value})
    try:
        cache = whole.opened()
        assert cache is None or (entry in ("block", "version") and whole.is_as_before(cache))
    finally:
        whole.mend()


@few_and(150, few=30)
def test_bytes_of_any_file_changed_cut_added_or_swapped(whole, examples):
    """Found or harmless. With blocks of 4 records, a swap of two blocks is among them."""

    @searched(examples)
    @given(
        file=st.sampled_from(sorted(whole.files)),
        how=st.sampled_from(["flip", "cut", "insert", "swap", "remove", "other"]),
        first=st.integers(0, 10**6),
        second=st.integers(0, 10**6),
        new=st.binary(min_size=1, max_size=9),
    )
    def holds(file, how, first, second, new):
        data = bytearray(whole.files[file])
        first, second = first % len(data), second % len(data)
        if how == "flip":
            data[first] ^= new[0]
        elif how == "cut":
            del data[min(first, second) : max(first, second)]
        elif how == "insert":
            data[first:first] = new
        elif how == "swap":
            size = 4 * whole.manifest["record_bytes"]
            i, j = (place // size * size for place in (first, second))
            data[i : i + size], data[j : j + size] = data[j : j + size], data[i : i + size]
        elif how == "other":
            data = bytearray(whole.files[sorted(whole.files)[second % len(whole.files)]])
        (whole.path / file).write_bytes(data)
        if how == "remove":
            (whole.path / file).unlink()
        try:
            assert whole.reads_as_before_or_refuses()
        finally:
            whole.mend()

    holds()


@few_and(1, few=7)
def test_a_manifest_cut_anywhere_is_refused(whole, examples):
    data, refused = whole.files["manifest.json"], 0
    for end in range(0, len(data), examples):
        (whole.path / "manifest.json").write_bytes(data[:end])
        try:
            cache_manifest.read_manifest(whole.path)
        except CacheError:
            refused += 1
    whole.mend()
    assert refused == len(range(0, len(data), examples)) > 100


@few_and(80, few=15)
@pytest.mark.parametrize("name", ["checksums.json", "marks"])
def test_checksums_and_marks_of_any_content(whole, name, examples):
    """Whole JSON files with a checksum of their own, and anything in them."""

    @searched(examples)
    @given(st.dictionaries(st.sampled_from(["crc32", "other"]), JSON, max_size=2), st.booleans())
    def holds(content, deep):
        file = whole.path / "checksums.json"
        if name == "marks":
            file.unlink()
            file = whole.path / "marks" / "00000-00000.json"
            file.parent.mkdir()
        elif deep:
            content["crc32"] = [[content.get("crc32")] * 3] * 2
        cache_store.write_json(file, content)
        try:
            assert whole.reads_as_before_or_refuses()
            if name == "marks":
                checksum = content.get("crc32")
                good = isinstance(checksum, int) and not isinstance(checksum, bool)
                written = kd.data.TeacherCache.inspect(whole.path)["blocks_written"]
                assert written == (good and 0 <= checksum < 2**32)
        finally:
            whole.mend()

    holds()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe{}",
        b'{"format": "\xe4"}',
        b'{"a": ' * 50_000,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b'{"checksum": 1' + b"0" * 5000 + b"}",
        b'{"checksum": NaN}',
        b"\0" * 100,
    ],
    ids=["utf-16", "latin-1", "deep and open", "deep", "long number", "nan", "zeros"],
)
def test_manifests_of_strange_bytes(whole, content):
    (whole.path / "manifest.json").write_bytes(content)
    try:
        with pytest.raises(CacheError, match=r"manifest\.json"):
            cache_manifest.read_manifest(whole.path)
    finally:
        whole.mend()


def test_a_folder_or_too_large_a_file_in_the_place_of_a_file(whole, monkeypatch):
    try:
        for name in sorted(whole.files):
            (whole.path / name).unlink()
            (whole.path / name).mkdir()
            assert whole.opened() is None
            whole.mend()
        monkeypatch.setattr(cache_store, "MOST_JSON_BYTES", 100)
        with pytest.raises(CacheError, match="more than 100 bytes"):
            cache_manifest.read_manifest(whole.path)
    finally:
        whole.mend()


def test_the_order_of_features_is_that_of_their_paths(tmp_path):
    """Else a second worker, or a manifest sorted by hand, would swap them in silence."""
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, name="b")(inputs)
    teacher = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(4, name="a")(x)))
    images, labels = np.random.default_rng(0).normal(size=(6, 3)), np.zeros(6)
    for folder, features in (("one", ["a", "b"]), ("two", ["b", "a"])):
        kd.data.TeacherCache.build(
            tmp_path / folder, teacher, images, labels, features=features, dtype="float32"
        )
    cache = kd.data.TeacherCache.build(
        tmp_path / "one", teacher, images, labels, features=["b", "a"], dtype="float32"
    )
    other = kd.data.TeacherCache(tmp_path / "two", images, labels)
    assert list(cache.outputs.features) == list(other.outputs.features) == ["a", "b"]
    np.testing.assert_array_equal(cache.read(0), other.read(0))
    expected = kd.tap(teacher, ["a"])(images.astype("float32"))["features"]["a"]
    np.testing.assert_allclose(cache.read(0)["feature_0"], expected, rtol=1e-5, atol=1e-6)


def test_a_manifest_that_a_kill_left_half_written_is_begun_anew(whole, tmp_path):
    (tmp_path / "cache" / ".writing-abc").mkdir(parents=True)
    (tmp_path / "cache" / ".writing-abc" / "manifest.json").write_text("{")
    cache = kd.data.TeacherCache.build(
        tmp_path / "cache", whole.teacher, *whole.data, **whole.options
    )
    np.testing.assert_array_equal(cache.read(1), whole.records[1])
    assert not list((tmp_path / "cache").glob(".writing-*"))


def test_images_that_are_no_numbers_are_told_before_a_file_is_written(whole, tmp_path):
    images = whole.data[0].astype("float32")
    images[3] = np.nan
    with pytest.raises(ValueError, match="finite float32 numbers"):
        kd.data.TeacherCache.build(tmp_path / "cache", whole.teacher, images, whole.data[1])
    assert not (tmp_path / "cache").exists()


def test_checksums_are_of_the_content_whatever_its_order(whole):
    """A manifest written again by another program, sorted and without spaces, is the same."""
    content = json.loads(whole.files["manifest.json"])
    (whole.path / "manifest.json").write_text(json.dumps(content, sort_keys=True))
    cache = whole.opened()
    whole.mend()
    assert cache is not None and whole.is_as_before(cache)
    del content["checksum"]
    assert zlib.crc32(json.dumps(content, sort_keys=True).encode()) == json.loads(
        whole.files["manifest.json"]
    ).pop("checksum")


def test_the_fuzzing_program_says_what_it_lacks():
    """It is run by hand: `atheris` is no dependency of the tests."""
    if importlib.util.find_spec("atheris"):
        pytest.skip("atheris is installed: scripts/fuzz_cache.py would run without end")
    program = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "fuzz_cache.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("Expected atheris") and "pip install atheris" in done.stderr
