"""Tables: means, standard errors and gains against numbers worked out by hand."""

import math
import re
from html.parser import HTMLParser

import pytest

from keras_distill.reporting import Table
from keras_distill.reporting import exports_table
from keras_distill.reporting import gain_sentence
from keras_distill.reporting import mean_and_error
from keras_distill.reporting import models_table
from keras_distill.reporting import paired_gain

RESULTS = {
    "models": [
        {"name": "teacher", "accuracy": [0.97], "parameters": 123456, "bytes": 1_250_000},
        {
            "name": "alone",
            "accuracy": [0.90, 0.88, 0.89],
            "agreement": [0.91, 0.9, 0.89],
            "parameters": 987,
            "bytes": 4321,
        },
        {
            "name": "distilled",
            "accuracy": [0.92, 0.92, 0.92],
            "agreement": [0.93, 0.94, 0.95],
            "parameters": 987,
            "bytes": 4321,
        },
    ],
    "gain": {"baseline": "alone", "model": "distilled"},
    "exports": [
        {
            "file": "student.tflite",
            "quantization": None,
            "bytes": 4000,
            "latency_ms": 0.01234,
            "accuracy": 0.92,
            "agreement": 1.0,
            "largest_difference": 2.5e-6,
        }
    ],
}


def test_mean_and_error_by_hand():
    assert mean_and_error([3.0]) == (3.0, None)
    mean, error = mean_and_error([1.0, 2.0, 6.0])
    assert mean == pytest.approx(3.0)
    assert error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))


def test_paired_gain_by_hand():
    gain = paired_gain([0.90, 0.88, 0.89], [0.92, 0.92, 0.92])
    assert gain.mean == pytest.approx(0.03)
    assert gain.error == pytest.approx(0.01 / math.sqrt(3))
    assert gain.seeds == 3
    assert gain.exceeds
    # The same spread on both sides cancels: pairing is what shows the gain.
    paired = paired_gain([0.5, 0.9], [0.51, 0.91])
    assert paired.error == pytest.approx(0, abs=1e-12) and paired.exceeds


@pytest.mark.parametrize(
    ("baseline", "model", "text", "exceeds"),
    [
        ([0.8, 0.8], [0.9, 0.86], r"\+8\.0 ± 2\.0 points .* 2 seeds: the gain exceeds twice", True),
        ([0.8, 0.8], [0.9, 0.82], r"\+6\.0 ± 4\.0 points .*does not exceed twice.*none", False),
        ([0.9, 0.8], [0.8, 0.8], r"-5\.0 ± 5\.0 points .*: there is no gain", False),
        ([0.8], [0.9], r"\+10\.0 points of accuracy with one seed, which tells nothing", False),
    ],
)
def test_the_sentence_says_whether_the_gain_exceeds_twice_its_error(baseline, model, text, exceeds):
    results = {
        "models": [{"name": "a", "accuracy": baseline}, {"name": "b", "accuracy": model}],
        "gain": {"baseline": "a", "model": "b"},
    }
    sentence = gain_sentence(results)
    assert re.search(text, sentence), sentence
    assert sentence.startswith("b against a: ")
    assert paired_gain(baseline, model).exceeds is exceeds
    assert gain_sentence({"models": results["models"]}) == ""


def test_unequal_seeds_are_an_error():
    with pytest.raises(ValueError, match="as many seeds as the baseline's 2.*seeds=3"):
        paired_gain([0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="one or more"):
        paired_gain([], [])


def test_models_table_holds_the_numbers_of_the_data():
    table = models_table(RESULTS)
    assert table.columns == (
        "model", "accuracy %", "agrees with teacher %", "seeds", "parameters", "size",
    )  # fmt: skip
    assert table.rows == (
        ("teacher", "97.0", "–", "1", "123,456", "1.2 MB"),
        ("alone", "89.0 ± 0.6", "90.0 ± 0.6", "3", "987", "4.3 kB"),
        ("distilled", "92.0 ± 0.0", "94.0 ± 0.6", "3", "987", "4.3 kB"),
    )


def test_exports_table():
    table = exports_table(RESULTS)
    assert table.rows == (
        ("student.tflite", "float32", "4.0 kB", "0.0123", "92.0", "100.0", "2.5e-06"),
    )
    assert exports_table({"models": RESULTS["models"]}) is None


@pytest.mark.parametrize("width", [20, 80, 200])
def test_text_cuts_nothing_off(width):
    table = exports_table(RESULTS)
    text = table.text(width)
    for cell in ("Exported files", *table.rows[0]):
        assert cell in text
    words = " ".join(table.columns).split()
    assert all(word in text for word in words)
    if width >= 80:
        assert max(map(len, text.splitlines())) <= width
    assert table.text().splitlines()[1].endswith(" largest difference")


ODD = Table("<b>", ("a|b", "<i>"), (("[bold]x[/bold] | <script>", "1"), ("y\\", "2")))


def test_markup_in_names_is_text_everywhere():
    assert "[bold]x[/bold] | <script>" in ODD.text()
    lines = ODD.markdown().splitlines()
    assert lines[0] == "| a\\|b | &lt;i&gt; |"
    assert lines[1] == "| --- | ---: |"
    assert lines[2] == "| [bold]x[/bold] \\| &lt;script&gt; | 1 |"

    found = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append(tag)

        def handle_data(self, data):
            found.append(("text", data))

    Parser().feed(ODD.html())
    assert "script" not in found and "b" not in found and "i" not in found
    assert ("text", "[bold]x[/bold] | <script>") in found
