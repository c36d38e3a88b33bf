"""What pictures show, against numbers worked out by hand."""

import json

import numpy as np
import pytest

from keras_distill.reporting import style
from keras_distill.reporting import summaries

TEACHER = np.array([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
STUDENT = np.array([[0.6, 0.3, 0.1], [0.2, 0.1, 0.7], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
LABELS = np.array([0, 0, 1, -1])
NAMES = ("cat", "dog", "eel")


def test_agreement_is_a_square_of_shares():
    data = summaries.agreement({"teacher": TEACHER, "student": STUDENT})
    assert data == {
        "names": ["teacher", "student"],
        "shares": [[1.0, 0.5], [0.5, 1.0]],
        "samples": 4,
    }


def test_soft_targets_and_the_confusions_in_them():
    data = summaries.soft_targets(LABELS, TEACHER, NAMES, 4)
    assert [entry["name"] for entry in data["classes"]] == ["cat", "dog"]  # those that occur
    np.testing.assert_allclose(data["classes"][0]["shares"], [0.6, 0.15])
    assert [entry["image"] for entry in data["classes"]] == [0, 2]
    assert (data["temperature"], data["samples"], data["left_out"]) == (4.0, 4, 0)
    pairs = summaries.confusions(LABELS, TEACHER, NAMES)["pairs"]
    assert [(pair["true"], pair["other"]) for pair in pairs] == [("dog", "eel"), ("cat", "eel")]
    assert pairs[1]["share"] == pytest.approx(0.25)
    assert [example["image"] for example in pairs[1]["examples"]] == [1, 0]


def test_disagreements_count_who_is_right():
    data = summaries.disagreements(LABELS, TEACHER, STUDENT, NAMES)
    assert (data["count"], data["right"]) == (2, [2, 0])
    assert [example["image"] for example in data["examples"]] == [2, 1]  # the farthest first
    assert data["examples"][0]["answers"] == [
        {"class": "dog", "share": 0.6},
        {"class": "cat", "share": 0.5},
    ]


def test_reliability_by_hand():
    found = summaries.reliability(LABELS, {"teacher": TEACHER}, bins=2)
    (model,) = found["models"]
    # Three samples have labels: confidences 0.7 and 0.6 above the middle, 0.5 in the lower bin.
    assert model["accuracy"] == [1.0, 1.0] and found["samples"] == 3
    np.testing.assert_allclose(model["confidence"], [0.5, 0.65])
    assert model["error"] == pytest.approx((0.5 + 2 * 0.35) / 3)


def test_training_curves_by_model_kind_and_seed():
    records = [
        {"model": model, "seed": seed, "epoch": epoch, "loss": epoch + seed, "test_accuracy": 0.5}
        for model in ("a", "b")
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    records += [{"model": "c", "epoch": 0, "loss": None, "seconds": 1.0}]
    records += [{"model": "t", "epoch": 0, **{f"member{i}_loss": i / 10 for i in (1, 2, 3)}}]
    data = summaries.training_curves(records, {"b": "#123456"})
    assert [panel["name"] for panel in data["panels"]] == ["loss", "accuracy", "member_loss"]
    loss, accuracy, members = (panel["curves"] for panel in data["panels"])
    assert [curve["colour"] for curve in loss][1] == "#123456"
    assert loss[0]["seeds"][1] == {"seed": "1", "epochs": [1, 2], "values": [1, 2]}
    assert {curve["kind"] for curve in accuracy} == {"test images"}
    assert [seed["values"] for seed in members[0]["seeds"]] == [[0.1], [0.2], [0.3]]
    json.dumps(data, allow_nan=False)
    assert summaries.training_curves([{"epoch": 0, "loss": None}]) is None


def test_accuracy_by_cost_takes_what_has_both():
    models = [
        {"name": "teacher", "accuracy": [0.9, 0.7], "bytes": 10},
        {"name": "student", "accuracy": [0.6], "latency_ms": 2.0},
    ]
    exports = [{"file": "a", "accuracy": 0.5, "bytes": 3}, {"file": "b", "bytes": 3}]
    data = summaries.accuracy_by_cost(models, exports, "bytes")
    assert [(point["name"], point["kind"]) for point in data["points"]] == [
        ("teacher", "model"), ("a", "file"),
    ]  # fmt: skip
    assert data["points"][0]["accuracy"] == pytest.approx(80.0)
    assert summaries.accuracy_by_cost(models[:1], exports, "latency_ms") is None


def test_each_role_has_one_colour_and_no_two_models_share_one():
    names = ["x", "net", "teacher", "y"]
    found = style.colours(names, {"teacher": "teacher", "net": "distilled"})
    assert found["teacher"] == style.ROLES["teacher"]
    assert found["net"] == style.ROLES["distilled"]
    assert len(set(found.values())) == 4
    assert list(style.colours(["a", "b", "c"]).values()) == list(style.ROLES.values())
    assert style.colours([]) == {}


@pytest.mark.parametrize("name", ["_hidden", "$x$", "a\x00b\n", "é" * 50])
def test_labels_are_shown_as_they_are(name):
    label = style.label(name)
    assert not label.startswith("_") and len(label) <= 30
    assert "$" not in label.replace(r"\$", "")
    assert label.isprintable()


def test_in_the_dark_hues_stay_and_photographs_do_too():
    pytest.importorskip("matplotlib")
    figure, axis = style.single(2.0, 2.0)
    style.blank(axis)
    axis.set_xlim(0, 2)
    axis.set_ylim(1, 0)
    axis.set_aspect("equal")
    style.photograph(axis, np.full((2, 2, 3), (200, 40, 90), "uint8"), 0, 0)
    axis.fill([1.2, 2, 2, 1.2], [0, 0, 1, 1], color=style.ROLES["teacher"])
    light, dark = (_pixels(png) for png in style.png(figure))
    photo, patch = (light == (200, 40, 90)).all(-1), (light == (0, 0x72, 0xB2)).all(-1)
    assert photo.sum() > 1000 and patch.sum() > 1000
    assert (dark[photo] == (200, 40, 90)).all()
    red, green, blue = dark[patch].mean(axis=0)
    assert red < green < blue and blue > 0xB2  # lighter, and blue still
    assert (dark[0, 0] == style.DARK_PAPER).all()


def _pixels(png):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)))
