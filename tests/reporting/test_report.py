"""The report: one self-contained page, escaped, with pictures that show something."""

import base64
import io
import json
import re
import struct
from html.parser import HTMLParser

import numpy as np
import pytest

from keras_distill.reporting import RunFolder
from keras_distill.reporting import gain_sentence
from keras_distill.reporting import plots
from keras_distill.reporting import report

pytest.importorskip("matplotlib")

EVIL = "<script>alert('x')</script> & $\\frac"
NAMES = ["zero", EVIL, "_two", "deux \u4e8c"]
FIGURES = [
    "accuracies",
    "accuracy_by_size",
    "accuracy_by_latency",
    "training_curves",
    "reliability",
    "agreement",
    "dark_knowledge",
    "confusions",
    "disagreements",
]


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def make_pictures(count=40, channels=1):
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 4
    logits = generator.normal(size=(count, 4)) + 3 * np.eye(4)[labels]
    return {
        "images": generator.integers(0, 256, (count, 6, 6, channels)).astype("uint8"),
        "labels": labels,
        "teacher_probabilities": softmax(logits),
        "student_probabilities": softmax(generator.normal(size=(count, 4)) + np.eye(4)[labels]),
        "soft_targets": softmax(logits / 4),
        "temperature": np.float64(4),
    }


def make_results(**entries):
    return {
        "title": f"A run of {EVIL}",
        "command": "keras-distill demo --out 'a&b'",
        "dataset": {"name": EVIL, "train": 400, "test": 1397, "image_shape": [6, 6, 1]},
        "class_names": NAMES,
        "models": [
            {"name": f"teacher {EVIL}", "accuracy": [0.969], "bytes": 90_000},
            {"name": "_alone", "accuracy": [0.88, 0.9], "agreement": [0.9, 0.91], "bytes": 5000},
            {"name": "distilled", "accuracy": [0.92, 0.93], "latency_ms": 0.02, "bytes": 5000},
        ],
        "gain": {"baseline": "_alone", "model": "distilled"},
        "exports": [
            {"file": EVIL, "quantization": "int8", "bytes": 3000, "accuracy": 0.91},
            {"file": "b.tflite", "quantization": None, "bytes": 4000},
        ],
        **entries,
    }


def make_run(path, pictures=True, metrics=True, **entries):
    run = RunFolder(path)
    run.start({"note": EVIL, "epochs": 3})
    run.write_results(make_results(**entries))
    if pictures:
        run.write_pictures(**make_pictures())
    if metrics:
        for model in (EVIL, "_alone"):
            for seed in (0, 1):
                for epoch in range(3):
                    logs = {"loss": 2.0 / (epoch + 1) + seed, "soft_targets": 0.3, "kl$": None}
                    logs |= {"accuracy": 0.3 * epoch, "val_accuracy": 0.25 * epoch}
                    run.append_metrics({"model": model, "seed": seed, "epoch": epoch, **logs})
    return run


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The folder of one full report, to look at only."""
    folder = tmp_path_factory.mktemp("reported")
    report(make_run(folder))
    return folder


@pytest.fixture(scope="module")
def text(reported):
    return (reported / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects tags, their attributes and the text; checks that tags are closed."""

    VOID = ("meta", "img", "source")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def pixels(png):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), "float64")


def decoded(uri):
    return base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)


def test_report_is_one_page_with_every_figure(reported, text):
    page = Page(text)
    figures = reported / "figures"
    assert [figure["id"] for figure in page.named("figure")] == FIGURES
    light = [decoded(image["src"]) for image in page.named("img")]
    dark = [decoded(source["srcset"]) for source in page.named("source")]
    assert light == [(figures / f"{name}.png").read_bytes() for name in FIGURES]
    assert dark == [(figures / f"{name}-dark.png").read_bytes() for name in FIGURES]
    endings = (".json", ".png", "-dark.png")
    written = {file.name for file in figures.iterdir()}
    assert written == {f"{name}{ending}" for name in FIGURES for ending in endings}
    assert all(image["alt"] for image in page.named("img"))
    assert {source["media"] for source in page.named("source")} == {"(prefers-color-scheme: dark)"}


def test_headings_are_in_order_and_what_is_missing_is_said(text):
    page = Page(text)
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert levels[:3] == [1, 2, 3] and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    shown = "".join(page.text)
    for title in ("What channels respond to", "Similarity of layers"):
        assert f"{title}: it needs 1 or more of the models" in shown
    assert "Accuracy against computation: no model of the run has exits" in shown


def test_every_figure_has_ink_on_paper_in_light_and_dark(reported):
    for name in FIGURES:
        for ending, paper in ((".png", 255), ("-dark.png", 16)):
            png = (reported / "figures" / f"{name}{ending}").read_bytes()
            width, height = struct.unpack(">II", png[16:24])
            assert 300 < width < 2000 and 100 < height < 2500, name
            image = pixels(png)
            assert abs(image[0, 0] - paper) < 2, name
            middle = image[height // 8 : -height // 8, width // 8 : -width // 8]
            assert middle.std() > 2, name


def test_the_numbers_of_each_figure_stand_beside_it(reported):
    def of(name):
        return json.loads((reported / "figures" / f"{name}.json").read_text(encoding="utf-8"))

    pictures = make_pictures()
    assert [model["name"] for model in of("accuracies")["models"]][2] == "distilled"
    soft = of("dark_knowledge")
    assert soft["temperature"] == 4
    zero = pictures["soft_targets"][pictures["labels"] == 0].mean(axis=0)
    np.testing.assert_allclose(soft["classes"][0]["shares"], zero)
    teacher, student = (pictures[f"{name}_probabilities"] for name in ("teacher", "student"))
    alike = float(np.mean(teacher.argmax(-1) == student.argmax(-1)))
    assert of("agreement")["shares"] == [[1.0, alike], [alike, 1.0]]
    assert of("disagreements")["count"] == round(40 * (1 - alike))
    colours = {model["name"]: model["colour"] for model in of("reliability")["models"]}
    assert colours == {f"teacher {EVIL}": "#0072B2", "distilled": "#009E73"}


def test_a_picture_that_is_no_longer_there_is_removed(tmp_path):
    run = make_run(tmp_path, metrics=False)
    report(run)
    (tmp_path / "pictures.npz").unlink()
    text = report(run).read_text(encoding="utf-8")
    kept = {"accuracies", "accuracy_by_size", "accuracy_by_latency"}
    assert {path.name.partition(".")[0] for path in tmp_path.glob("figures/*.json")} == kept
    assert "Calibration: the folder holds no test images, and its settings name no data" in text
    assert "Training curves by term: metrics.jsonl logs no epoch." in text


def test_nothing_comes_from_the_network_and_no_script_runs(text):
    page = Page(text)
    assert not page.named("script") and not page.named("link") and not page.named("iframe")
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    without_images = re.sub(r'src(set)?="data:[^"]*"', "", text)
    assert "http" not in without_images and "@import" not in without_images
    assert "url(" not in without_images


def test_names_are_escaped_and_shown_as_they_are(text):
    page = Page(text)
    text = "".join(page.text)
    assert f"A run of {EVIL}" in text
    assert f"teacher {EVIL}" in text
    assert (
        text.count("<script>alert('x')</script>") >= 5
    )  # title twice, data, model, file, settings


def test_page_fits_a_phone_and_the_dark(text):
    page = Page(text)
    viewport = next(meta for meta in page.named("meta") if meta.get("name") == "viewport")
    assert viewport["content"] == "width=device-width, initial-scale=1"
    style = "".join(page.text)
    assert "@media (prefers-color-scheme: dark)" in style
    assert re.search(r"img \{[^}]* width: 100%", style)
    assert re.search(r"\.table \{ overflow-x: auto", style)  # wide tables scroll, not the page
    assert len([d for d in page.named("div") if d.get("class") == "table"]) == len(
        page.named("table")
    )


def test_numbers_come_from_the_data(text):
    shown = "".join(Page(text).text)
    for number in ("96.9", "89.0 ± 1.0", "92.5 ± 0.5", "90.5 ± 0.5", "90.0 kB", "3.0 kB", "0.02"):
        assert number in shown
    assert gain_sentence(make_results()) in shown
    assert "+3.5 ± 0.5 points of accuracy over 2 seeds: the gain exceeds" in shown


def test_report_of_results_alone(tmp_path):
    run = RunFolder(tmp_path)
    run.write_results({"models": [{"name": "student", "accuracy": [0.5]}]})
    path = report(str(tmp_path))
    assert path == tmp_path / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.named("img")) == 1
    assert "Distillation report" in "".join(page.text)


def test_report_again_replaces_the_page(tmp_path):
    run = make_run(tmp_path, pictures=False, metrics=False)
    first = report(run).read_text(encoding="utf-8")
    assert report(run).read_text(encoding="utf-8") == first
    run.write_results(make_results(title="another"))
    assert "<h1>another</h1>" in report(run).read_text(encoding="utf-8")
    assert not [path for path in tmp_path.rglob(".writing-*")]


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"models": []}, "to list one model or more"),
        ({"models": [{"name": "a"}]}, "`name` and a list of shares `accuracy`"),
        ({"models": [{"name": "a", "accuracy": [92.4]}]}, r"list of shares .*92\.4"),
        ({"models": [{"name": "a", "accuracy": [None]}]}, "list of shares"),
        ({"gain": {"baseline": "none", "model": "distilled"}}, "`gain` to name one of.*'none'"),
        ({"gain": {"baseline": f"teacher {EVIL}", "model": "distilled"}}, "as many seeds"),
        ({"exports": [{"bytes": 3}]}, "each of `exports` to name its `file`"),
        ({"class_names": ["a", "b"]}, "`class_names` to be 4 names"),
    ],
)
def test_results_of_another_form_are_an_error(tmp_path, entries, text):
    with pytest.raises(ValueError, match=text):
        report(make_run(tmp_path, metrics=False, **entries))
    assert not (tmp_path / "report.html").exists()


def test_missing_pieces_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        report(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        report(tmp_path)
    run = make_run(tmp_path, pictures=False, metrics=False)
    run.write_pictures(images=np.zeros((1, 2, 2, 1)))
    with pytest.raises(ValueError, match=r"`pictures\.npz` to hold.*'labels'"):
        report(run)
    for images, labels in (("a", [0]), (np.zeros((1, 2, 0, 1)), [0]), (np.zeros((1, 2, 2, 1)), 0)):
        run.write_pictures(images=images, labels=np.array(labels))
        with pytest.raises(ValueError, match="images and a label of each.*found="):
            report(run)
    run.write_pictures(images=np.zeros((1, 2, 2, 1)), labels=np.array([-1]))
    assert "Calibration: no test image has a label" in report(run).read_text(encoding="utf-8")


def test_pictures_in_colour_of_many_classes_and_without_disagreement(tmp_path):
    pictures = make_pictures(channels=3)
    labels, teacher = pictures["labels"], pictures["teacher_probabilities"]
    many = np.eye(30)[np.arange(60) % 30] * 0.7 + 0.01
    images = np.random.default_rng(0).uniform(size=(60, 5, 7, 3))
    names = [f"class {i}" for i in range(30)]
    figures = {
        "colour": plots.dark_knowledge(pictures["images"], labels, teacher, NAMES),
        "many": plots.dark_knowledge(images, np.arange(60) % 30, many, names),
        "agree": plots.disagreements(pictures["images"], labels, teacher, teacher, NAMES),
        "one_epoch": plots.training_curves([{"epoch": 0, "loss": 1.0}]),
        "panels": plots.training_curves([{"epoch": 0, **{f"term_{i}": i for i in range(20)}}]),
    }
    for name, figure in figures.items():
        plots.save(figure, tmp_path / name)
        assert pixels((tmp_path / name).read_bytes()).std() > 0, name
    assert len(figures["panels"].axes) == 12
    assert figures["agree"].axes[0].texts[0].get_text() == "0 of 40 images get different answers"
    assert plots.training_curves([]) is None
    assert plots.accuracy_by_size([{"name": "a", "accuracy": [0.5]}], []) is None


def test_disagreements_shows_those_that_differ_most():
    teacher = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    student = np.array([[0.1, 0.9], [0.45, 0.55], [0.3, 0.7]])
    figure = plots.disagreements(
        np.zeros((3, 2, 2, 1)), np.array([0, -1, 1]), teacher, student, "ab"
    )
    titles = [text.get_text() for text in figure.axes[0].texts]
    assert titles == [
        "true: a\nteacher: a, 90 %\nstudent: b, 90 %",
        "true: unknown\nteacher: a, 60 %\nstudent: b, 55 %",
    ]


def test_dark_knowledge_prints_the_mean_soft_targets():
    probabilities = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
    figure = plots.dark_knowledge(np.zeros((3, 2, 2, 1)), np.array([0, 0, 1]), probabilities, "ab")
    assert [text.get_text() for text in figure.axes[0].texts] == ["70", "30", "10", "90"]
    with pytest.raises(ValueError, match="as many labels and probabilities as images"):
        plots.dark_knowledge(np.zeros((2, 2, 2, 1)), np.array([0]), probabilities, "ab")


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    import sys

    run = make_run(tmp_path, pictures=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "keras-distill\[plots\]"'):
        report(run)
