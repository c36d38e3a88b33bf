"""Names from elsewhere and results of any form: text stays text, and what is wrong is one line."""

import copy
import html
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_distill.reporting import RunFolder
from keras_distill.reporting import page
from keras_distill.reporting import plots
from keras_distill.reporting import report
from keras_distill.reporting import style
from keras_distill.reporting import summaries
from keras_distill.reporting import tables
from keras_distill.reporting.checks import check_results
from keras_distill.reporting.pictures import PICTURES

pytest.importorskip("matplotlib")

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "</pre></title></style><b>",
    "&lt;&amp;&#60;",
    "$\\frac{1",
    "$a$ \\$ $$",
    "_hidden",
    "\\N{x} %s {0} {",
    "a\nb\tc\x00\x1b[2J\x7f",
    "\ud800 \udcff",
    "\u202eright to left\u2066",
    "\u4e8c \U0001f600",
    "",
    " ",
    "a" * 3000,
]
TEXT = st.sampled_from(HOSTILE) | st.text(
    st.sampled_from("<>&\"'$\\_^{}%#\n\x00\ud800=/ ab") | st.characters(codec=None), max_size=12
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats(-2, 2) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


def searched(examples):
    """Hypothesis's settings: the same examples each time."""
    return settings(max_examples=examples, derandomize=True, database=None, deadline=None)


def few_and(more, few):
    """A test with a few examples, and a slow one with more."""
    return pytest.mark.parametrize("examples", [few, pytest.param(more, marks=pytest.mark.slow)])


def results_of(texts):
    """Whole results, every text in them from an iterator."""
    teacher, student = f"{next(texts)}", f"{next(texts)} "
    student = student if student != teacher else f"{student}2"
    return {
        "title": next(texts),
        "command": next(texts),
        "dataset": {"name": next(texts), "train": 4, "test": 6, "image_shape": [6, 6, 1]},
        "class_names": [next(texts) for _ in range(3)],
        "models": [
            {"name": teacher, "accuracy": [0.9], "bytes": 900, "role": "teacher"},
            {
                "name": student,
                "accuracy": [0.8, 0.7],
                "agreement": [0.5, None],
                "calibration_error": [0.1, 0.2],
                "parameters": 60,
                "latency_ms": 0.5,
                "file": next(texts),
            },
        ],
        "gain": {"baseline": student, "model": student},
        "exports": [{"file": next(texts), "quantization": next(texts), "bytes": 9}],
        "remarks": [next(texts)],
    }


class Structure(HTMLParser):
    """The tags of a page with their attributes but the texts for people, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, [(name, value) for name, value in attributes if name != "alt"]))

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")

    def handle_data(self, data):
        self.text.append(data)


def page_of(texts):
    return page.render(
        results_of(texts),
        [(PICTURES[0], next(texts), b"light", b"dark")],
        [(PICTURES[1], next(texts))],
        {next(texts): next(texts)},
    )


@few_and(60, few=10)
def test_no_text_becomes_a_tag_or_an_attribute(examples):
    """The page of any names has the tags of the page of harmless ones, and shows the names."""

    @searched(examples)
    @given(st.lists(TEXT.filter(str.strip), min_size=30, max_size=30))
    def holds(texts):
        harmless = Structure(page_of(iter([f"name {i}" for i in range(30)])))
        found = Structure(page_of(iter(texts)))
        assert found.tags == harmless.tags
        shown = "".join(found.text)
        for text in texts[4:5]:  # the data set's, the classes' beside it are only counted
            assert html.unescape(html.escape(text)) in shown or "\r" in text or "\x00" in text

    holds()


@few_and(60, few=10)
def test_tables_show_any_name(examples):
    @searched(examples)
    @given(st.lists(TEXT, min_size=30, max_size=30))
    def holds(texts):
        results = results_of(iter(texts))
        for table in (tables.models_table(results), tables.exports_table(results)):
            written = Structure(table.html())
            kinds = {tag[0] for tag in written.tags if isinstance(tag, tuple)}
            assert kinds == {"div", "table", "caption", "thead", "tbody", "tr", "th", "td"}
            assert "<" not in table.markdown()
            assert len(table.markdown().split("\n")) >= 2 + len(table.rows)
            assert table.text() and table.text(width=30)

    holds()


@few_and(12, few=3)
def test_figures_draw_any_name(examples):
    """No mathematics, no missing glyph, no legend entry that hides."""

    @searched(examples)
    @given(st.lists(TEXT, min_size=30, max_size=30))
    def holds(texts):
        results = results_of(iter(texts))
        figure = plots.accuracies(results["models"])
        light, dark = style.png(figure)
        assert light[:4] == dark[:4] == b"\x89PNG"
        for text in texts:
            shown = style.label(text)
            assert len(shown) <= 60 and "\n" not in shown and not shown.startswith("_")
            assert shown.count("$") == shown.count(r"\$")

    holds()


def test_a_whole_report_of_hostile_names(tmp_path):
    """Through the files, all pictures, and names that are no Unicode."""
    run = RunFolder(tmp_path / "run")
    texts = iter([text for text in HOSTILE if text.strip()] * 4)
    run.start({"dataset": next(texts), "name": next(texts)})
    results = results_of(texts)
    results["class_names"] = HOSTILE[:3]
    run.write_results(results)
    rng = np.random.default_rng(0)
    said = rng.dirichlet(np.ones(3), (2, 12))
    run.write_pictures(
        images=rng.integers(0, 256, (12, 6, 6, 1)).astype("uint8"),
        labels=np.arange(12) % 3,
        teacher_probabilities=said[0],
        student_probabilities=said[1],
    )
    for epoch in range(2):
        run.append_metrics({"epoch": epoch, "model": HOSTILE[1], "seed": 0, HOSTILE[0]: 1.0 / 3})
    text = report(run).read_text(encoding="utf-8")
    kinds = {tag[0] for tag in Structure(text).tags if isinstance(tag, tuple)}
    assert kinds.isdisjoint({"script", "b", "iframe"}) and "img" in kinds
    for tag in Structure(text).tags:
        if isinstance(tag, tuple):
            assert not any(name.startswith("on") for name, _ in tag[1])
    assert len(list((run.path / "figures").glob("*.png"))) >= 8


def places(value, path=()):
    """The paths of all values in a JSON value, but its own."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from places(value[key], (*path, key))


@few_and(200, few=50)
def test_results_of_any_form_are_drawn_or_one_clear_line(examples):
    whole = results_of(iter([f"name {i}" for i in range(30)]))
    every = list(places(whole))

    @searched(examples)
    @given(st.integers(0, 10**6), st.booleans(), JSON)
    def holds(place, remove, value):
        results = copy.deepcopy(whole)
        *outer, last = every[place % len(every)]
        inside = results
        for key in outer:
            inside = inside[key]
        if remove:
            del inside[last]
        else:
            inside[last] = value
        try:
            check_results(results)
        except ValueError as error:
            text = str(error)
            assert text.startswith("Expected ") and "Received: " in text and "\n" not in text
            assert len(text) < 700
            return
        assert "<h1>" in page.render(results, [], [], {})
        assert tables.models_table(results).text() and isinstance(
            tables.gain_sentence(results), str
        )
        exports = results.get("exports") or []
        assert tables.exports_table(results) is None or exports
        for summary in (
            summaries.accuracies(results["models"]),
            summaries.accuracy_by_cost(results["models"], exports, "bytes"),
        ):
            json.dumps(summary, allow_nan=False)

    holds()
    assert check_results(whole) is whole
