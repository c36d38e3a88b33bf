"""`runs/*.json`, changed in any way: the record, or one clear line."""

import json

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_distill.recipes import running
from keras_distill.reporting import RunFolder

SETTINGS = {"setting": "small", "training": {"augment": False, "drops": []}, "epochs": None}
RECORD = {
    "recipe": "dlb",
    "seed": 0,
    "settings": SETTINGS,
    "accuracy": 0.5,
    "best_accuracy": 0.75,
    "best_epoch": 1,
    "loss": None,
    "calibration_error": 0.1,
    "parameters": 600,
    "seconds": 1.5,
    "epochs": 2,
    "steps": 8,
    "images": {"student": 40, "peers": 0, "frozen": 0, "before": 0},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@pytest.mark.parametrize("examples", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_records_of_any_content(tmp_path, examples):
    path = tmp_path / "record.json"

    @settings(max_examples=examples, derandomize=True, database=None, deadline=None)
    @given(st.sampled_from(sorted(RECORD)), JSON, st.booleans(), st.integers(0, 10**4))
    def holds(entry, value, removed, cut):
        record = {**RECORD, entry: value}
        if removed:
            del record[entry]
        text = json.dumps(record)
        for content in (text, text[: cut % len(text)], json.dumps(value)):
            path.write_text(content)
            try:
                found = running._read(path, SETTINGS)
            except ValueError as error:
                assert str(error).startswith("Expected ") and "\n" not in str(error)
                continue
            assert found["settings"] == SETTINGS
            assert 0 <= found["accuracy"] <= 1 and found["seconds"] + found["parameters"] >= 0
            assert sum(found["images"].values()) >= 0

    holds()
    path.write_text(json.dumps(RECORD))
    assert running._read(path, SETTINGS) == RECORD


@pytest.mark.parametrize("entry", ["seconds", "test_accuracy"])
def test_lines_of_metrics_that_cannot_be_measured_are_told(tmp_path, entry):
    run = RunFolder(tmp_path)
    line = {"model": "dlb", "seed": 0, "epoch": 0, "seconds": 1.0, "test_accuracy": 0.5}
    run.append_metrics(line)
    assert running._lines(run, {"model": "dlb", "seed": 0}) == [line]
    run.append_metrics({**line, "epoch": 1, entry: "x"})
    with pytest.raises(ValueError, match="lines of metrics with `seconds`.*--restart"):
        running._lines(run, {"model": "dlb", "seed": 0})
