"""The files of a run's folder, changed in any way: one clear line, or what was written."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_distill.reporting import RunFolder

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([10**400, -1, 0, 1e308])
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(st.characters(codec=None), max_size=8)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "epoch", "seed", "model", "<b>"]), inner)
    ),
    max_leaves=8,
)
RECORD = {"model": "student", "seed": 0, "epoch": 1, "loss": 0.5, "per_class": [0.1, None]}


def searched(examples):
    """Hypothesis's settings: the same examples each time."""
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None)


few_and_many = pytest.mark.parametrize("examples", [40, pytest.param(150, marks=pytest.mark.slow)])


def refused(read):
    """`None` where `read()` raises one clear line; else what it gives."""
    try:
        return read()
    except ValueError as error:
        text = str(error)
        assert text.startswith("Expected ") and "Received: " in text and "\n" not in text
        assert "Remove it" in text and len(text) < 500
        return None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return RunFolder(tmp_path_factory.mktemp("run"))


def changed(data, how, first, second, new):
    """Bytes with some flipped, cut out or put in."""
    data = bytearray(data)
    first, second = sorted((first % len(data), second % len(data)))
    if how == "flip":
        data[first] ^= new[0]
    elif how == "cut":
        del data[first:second]
    else:
        data[first:first] = new
    return bytes(data)


CHANGES = {
    "how": st.sampled_from(["flip", "cut", "insert"]),
    "first": st.integers(0, 10**6),
    "second": st.integers(0, 10**6),
    "new": st.binary(min_size=1, max_size=6),
}


@few_and_many
def test_what_json_holds_is_read_as_it_was_written(run, examples):
    """Numbers that are not finite as null; names that are no Unicode written out."""

    @searched(examples)
    @given(st.dictionaries(st.text(st.characters(codec=None), max_size=5), JSON, max_size=4))
    def holds(content):
        try:
            run.write_results(content)
        except (ValueError, OverflowError):
            assert "1000000000000000000000" in repr(content)
            return
        text = (run.path / "results.json").read_bytes().decode()
        found = refused(run.read_results)
        huge = "0" * 400 in text
        assert huge or found == json.loads(text)
        assert huge or len(found) <= len(content)
        assert "NaN" not in text or "NaN" in repr(content)
        run.start(content)
        if not huge:
            assert run.start(content) is True  # the same settings again
        (run.path / "settings.json").unlink()

    holds()


@few_and_many
@pytest.mark.parametrize("name", ["settings.json", "results.json"])
def test_files_of_one_object_of_any_content(run, name, examples):
    read = run.read_settings if name == "settings.json" else run.read_results

    @searched(examples)
    @given(JSON, st.none() | st.binary(max_size=30), st.fixed_dictionaries(CHANGES))
    def holds(content, raw, change):
        data = json.dumps({"a": content}).encode()
        for variant in (json.dumps(content).encode(), changed(data, **change), raw or b""):
            (run.path / name).write_bytes(variant)
            found = refused(read)
            assert found is None or isinstance(found, dict)
            assert found is None or json.loads(variant) == found
        (run.path / name).unlink()

    holds()


@few_and_many
def test_metrics_of_any_content(run, examples):
    """Lines cut by a kill are passed over; whole ones that are no metrics are told."""
    good = json.dumps(RECORD)

    @searched(examples)
    @given(JSON, st.sampled_from(sorted(RECORD)), st.fixed_dictionaries(CHANGES))
    def holds(content, entry, change):
        changes = changed(good.encode(), **change)
        for middle in (json.dumps(content), json.dumps({**RECORD, entry: content})):
            for line in (middle.encode(), changes):
                data = b"\n".join([good.encode(), line, good.encode(), b""])
                (run.path / "metrics.jsonl").write_bytes(data)
                found = refused(run.read_metrics)
                if found is None:
                    continue
                assert found[0] == found[-1] == RECORD and len(found) <= 4
                for record in found:
                    assert type(record["epoch"]) is int and record["epoch"] >= 0
                    json.dumps(record, allow_nan=False)
                run.forget_metrics(1, model="student", seed=0)
                assert all(r["epoch"] < 1 or r != RECORD for r in run.read_metrics())

    holds()
    (run.path / "metrics.jsonl").unlink()


def test_a_record_without_an_epoch_is_not_written(run):
    for record in ({}, {"epoch": 1.5}, {"epoch": True}, {"epoch": 0, "seed": [1]}):
        with pytest.raises(ValueError, match="Expected a record with `epoch`"):
            run.append_metrics(record)
    assert run.read_metrics() == []
    run.append_metrics({"epoch": np.int64(0), "f1": np.array([0.5, np.nan])})
    assert run.read_metrics() == [{"epoch": 0, "f1": [0.5, None]}]
    (run.path / "metrics.jsonl").unlink()


@few_and_many
def test_pictures_of_any_bytes(run, examples):
    arrays = {"images": np.arange(60).reshape(3, 4, 5, 1), "labels": np.arange(3)}
    run.write_pictures(**arrays)
    whole = (run.path / "pictures.npz").read_bytes()

    @searched(examples)
    @given(**CHANGES)
    def holds(**change):
        (run.path / "pictures.npz").write_bytes(changed(whole, **change))
        found = refused(run.read_pictures)
        for name in set(found or ()) & set(arrays):
            np.testing.assert_array_equal(found[name], arrays[name])

    holds()


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 400 + b"1" + b"}" * 400])
def test_endless_nesting_is_told(run, content):
    for name, read in (("settings.json", run.read_settings), ("results.json", run.read_results)):
        (run.path / name).write_bytes(content)
        with pytest.raises(ValueError, match="to be readable"):
            read()
    (run.path / "settings.json").unlink()
    (run.path / "metrics.jsonl").write_bytes(content + b"\n")
    assert refused(run.read_metrics) in ([], None)
    (run.path / "metrics.jsonl").unlink()


def test_pickles_are_never_read(run):
    """An array of objects needs pickle: refused, and nothing in it is run."""
    trace = run.path / "ran"

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(trace),))

    with open(run.path / "pictures.npz", "wb") as file:
        np.savez(file, images=np.array([Payload()], dtype=object))
    with pytest.raises(ValueError, match=r"pictures\.npz' to be readable.*allow_pickle"):
        run.read_pictures()
    assert not trace.exists()
    np.load(run.path / "pictures.npz", allow_pickle=True)["images"]
    assert trace.exists()  # so the file does what it is meant to
    trace.rmdir()
