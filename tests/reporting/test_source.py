"""What a report makes of a run's folder: all of it, or the rest where pieces are missing."""

import json

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.reporting import pictures
from keras_distill.reporting.source import Missing
from keras_distill.reporting.source import Source
from keras_distill.reporting.source import load_test
from keras_distill.reporting.style import ROLES

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]

COLOURS = dict(zip(("teacher", "student alone", "student distilled"), ROLES.values()))


def source_of(folder, **options):
    run = kd.reporting.RunFolder(folder)
    return Source(run, run.read_results(), **options)


def colours_in(value, key="name"):
    """All pairs of a model's name and a colour in a JSON value."""
    if isinstance(value, dict):
        name = value.get("model", value.get("name"))
        if "colour" in value:
            yield name, value["colour"]
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from colours_in(entry)


def test_a_whole_run_shows_every_picture_in_one_colour_a_model(whole_run):
    found = {}
    for picture in pictures.PICTURES:
        path = whole_run / "figures" / f"{picture.name}.json"
        found[picture.name] = json.loads(path.read_text(encoding="utf-8"))
    pairs = [pair for data in found.values() for pair in colours_in(data)]
    assert len(pairs) > 15
    for name, colour in pairs:
        assert colour == COLOURS[name.partition(":")[0]], name
    members = ["teacher: member1", "teacher: member2"]
    rows = [entry["name"] for entry in found["channels"]["networks"]]
    assert rows == [*members, "student alone", "student distilled"]
    assert all(entry["layer"] == "stage2" for entry in found["channels"]["networks"])
    assert found["layer_similarity"]["reference"]["name"] == members[0]
    assert found["early_exits"]["model"] == "student distilled"
    assert found["agreement"]["names"] == list(COLOURS)
    assert "Not shown" not in (whole_run / "report.html").read_text(encoding="utf-8")
    files = [model["file"] for model in source_of(whole_run).models]
    assert files == [f"models/{name}.keras" for name in ("teacher", "student_alone", "student")]


def test_networks_that_are_gone_or_damaged_leave_the_rest(own_run):
    (own_run / "models" / "teacher.keras").unlink()
    (own_run / "models" / "student_alone.keras").write_bytes(b"PK damaged")
    text = kd.reporting.report(own_run).read_text(encoding="utf-8")
    drawn = {path.stem for path in (own_run / "figures").glob("*.json")}
    assert {"dark_knowledge", "disagreements", "reliability", "channels"} <= drawn
    assert "Similarity of layers: it needs 2 or more of the models" in text
    assert "student alone: " in text.partition("Not shown")[2]
    agreement = json.loads((own_run / "figures" / "agreement.json").read_text(encoding="utf-8"))
    assert agreement["names"] == ["teacher", "student distilled"]  # whose answers were kept
    # At hand, they need no files.
    at_hand = {"student alone": keras.models.load_model(own_run / "models" / "student.keras")}
    found = source_of(own_run, at_hand=at_hand)
    assert list(found.probabilities) == list(COLOURS) and not found.problems
    # A training that went astray is named, and takes nothing else with it.
    astray = keras.models.clone_model(at_hand["student alone"])
    astray.set_weights([np.full_like(weight, np.nan) for weight in astray.get_weights()])
    found = source_of(own_run, at_hand={"student alone": astray})
    assert list(found.probabilities) == ["teacher", "student distilled"]
    with pytest.raises(Missing, match="student alone: not all of its answers are finite"):
        found.need_probabilities(3)


def test_a_layer_by_name(own_run):
    found = pictures._channels(source_of(own_run, layer="stage1"))
    assert {entry["layer"] for entry in found["networks"]} == {"stage1"}
    with pytest.raises(ValueError, match="`layer` to name a layer of the model.*'stage9'"):
        pictures._channels(source_of(own_run, layer="stage9"))


def test_test_images_are_loaded_again_from_the_settings(own_run, change):
    kept = source_of(own_run)
    (own_run / "pictures.npz").unlink()
    found = source_of(own_run)
    np.testing.assert_array_equal(found.images, kept.images)
    np.testing.assert_array_equal(found.labels, kept.labels)
    said = kept.probabilities["student distilled"]
    np.testing.assert_allclose(found.probabilities["student distilled"], said, atol=1e-6)
    assert found.soft_targets[1] == 4.0  # the loss's temperature, or the report's own
    change("settings.json", dataset="./nothing here")
    with pytest.raises(
        Missing, match="no test images, and ./nothing here is not at hand: Expected"
    ):
        source_of(own_run).need_probabilities()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "its settings name no data set"),
        ({"data": {"test": {"name": "digits/test", "images": 7}}}, "at hand has 1397.*had 7"),
        ({"dataset": "digits", "image_size": -1}, "not at hand: Expected `image_size`"),
    ],
)
def test_why_there_are_no_images(settings, reason):
    with pytest.raises(Missing, match=reason):
        load_test(settings)


def test_images_of_a_recipe_and_of_the_demo():
    test = load_test({"data": {"test": {"name": "digits/test", "images": 1397}}})
    assert test.images.shape == load_test({"command": "demo"}).images.shape == (1397, 8, 8, 1)
