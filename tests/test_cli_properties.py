"""The command line under hypothesis: any text for an option is one clear line, never more."""

import dataclasses
import re

import keras
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

import keras_distill as kd
from keras_distill import cli
from keras_distill.backbones import small_cnn
from keras_distill.recipes import commands
from keras_distill.recipes import comparing
from keras_distill.recipes import demo
from keras_distill.recipes import distillation
from keras_distill.recipes import evaluation
from keras_distill.recipes import loss_names
from keras_distill.recipes import loss_terms
from keras_distill.recipes import networks
from keras_distill.recipes import running
from keras_distill.recipes import schemes
from keras_distill.recipes import training

pytestmark = pytest.mark.tensorflow


class Reached(Exception):
    """The command line understood its options, and would begin to work."""


# A whole command, and options that it also takes; what stands in POOLS is tried for each.
LINES = {
    "distil": ["train", "--dataset", "digits", "--teacher", "small-2", "--student", "small-2"],
    "recipe": ["train", "--dataset", "digits", "--recipe", "dlb", "--student", "small-2"],
    "recipes": ["compare", "--dataset", "digits", "--recipe", "dlb", "--student", "small-2"],
    "files": ["compare", "FILE", "--dataset", "digits"],
    "evaluate": ["evaluate", "FILE", "--dataset", "digits"],
    "export": ["export", "FILE"],
    "cache": ["cache", "OUT", "--teacher", "FILE", "--dataset", "digits"],
    "described": ["cache", "OUT"],
    "demo": ["demo"],
}
SHARED = ("--dataset", "--image-size", "--limit", "--out")
TRAINED = ("--epochs", "--ensemble", "--seed", "--setting", "--student", "--teacher")
OPTIONS = {
    "distil": [
        *SHARED,
        *TRAINED,
        "--loss",
        "--temperature",
        "--weight",
        "--label-weight",
        "--teacher-layer",
        "--student-layer",
        "--batch-size",
        "--learning-rate",
        "--teacher-epochs",
    ],
    "recipe": [*SHARED, *TRAINED, "--recipe", "--batch-size", "--learning-rate"],
    "recipes": [*SHARED, *TRAINED, "--recipe", "--seeds", "--budget", "--test-limit"],
    "files": [*SHARED[:3], "--teacher", "--seeds"],
    "evaluate": [*SHARED[:3], "--teacher"],
    "export": [*SHARED[:3], "--format", "--quantize", "--batch-size"],
    "cache": [
        "--views",
        "--mix",
        "--top-k",
        "--temperature",
        "--feature",
        "--dtype",
        "--batch-size",
        "--seed",
        "--worker",
        "--limit",
    ],
    "described": ["--verify", "--views"],
    "demo": ["--seeds", "--seed", "--epochs"],
}
POOLS = {
    "--dataset": ["nosuch", "../x", "/etc", "~nobody/x", "x/", "digits/train"],
    "--teacher": ["small-0", "resnet9", "wrn-9999-1", "none.keras", "small-" + "9" * 5000],
    "--student": ["small-0", "small-2-2", "resnet" + "0" * 9 + "8", "FILE", "small-٣"],
    "--recipe": ["DLB", "baseline", "born_again"],
    "--loss": [*loss_names.names(), "Softtargets"],
    "--teacher-layer": ["stage1", "stem,stage1", ",", "nowhere", "stage1,"],
    "--student-layer": ["stage1", "stem,stage1", ",", "nowhere", "/"],
    "--worker": ["0/2", "2/2", "0/0", "1/2/3", "/", "٣/٤", "-1/2"],
    "--feature": ["stage1", "nowhere", "image"],
}
TEXT = st.text(st.characters(codec=None, exclude_characters="\0"), max_size=9)
NUMBERS = st.sampled_from(
    ["0", "1", "-1", "2.5", "nan", "inf", "1e400", "9" * 30, "4294967296", "1_0", "٣", "", "0x1"]
)


@st.composite
def lines(draw):
    kind = draw(st.sampled_from(sorted(LINES)))
    line = list(LINES[kind])
    for _ in range(draw(st.integers(1, 2))):
        option = draw(st.sampled_from(OPTIONS[kind]))
        pool = st.sampled_from(POOLS[option]) if option in POOLS else NUMBERS
        line += [option, draw(st.one_of(pool, pool, NUMBERS, TEXT))]
    return line


@pytest.fixture
def stopped(monkeypatch, tmp_path):
    """The commands up to where they would begin to train, run, convert or write."""

    def reached(*args, **kwargs):
        raise Reached

    monkeypatch.setattr(training, "make_deterministic", lambda: None)
    for module, name in (
        (training, "train"),
        (training, "begin"),
        (running, "carry_out"),
        (demo, "demo"),
        (evaluation, "probabilities"),
        (kd.export, "tflite"),
        (kd.export, "saved_model"),
    ):
        monkeypatch.setattr(module, name, reached)
    monkeypatch.setattr(kd.data.TeacherCache, "build", staticmethod(reached))
    monkeypatch.chdir(tmp_path)
    small_cnn((8, 8, 1), 10, 2).save(tmp_path / "file.keras")
    return tmp_path


@pytest.mark.parametrize("examples", [8, pytest.param(40, marks=pytest.mark.slow)])
def test_any_text_for_an_option_is_one_clear_line(stopped, capsys, examples):
    counts = {"reached": 0, "told": 0}

    @settings(max_examples=examples, derandomize=True, database=None, deadline=None)
    @given(lines())
    def holds(line):
        places = {"FILE": "file.keras", "OUT": "cache"}
        capsys.readouterr()
        try:
            status = cli.main([places.get(word, word) for word in line])
        except Reached:
            counts["reached"] += 1
            return
        said = capsys.readouterr()
        counts["told"] += 1
        assert status == 2
        assert said.err.count("\n") == 1 and said.err.startswith("keras-distill")
        assert len(said.err) < 800 and "Traceback" not in said.err
        assert "Expected " in said.err or "--help" in said.err or "Errno" in said.err
        keras.backend.clear_session(free_memory=False)

    holds()
    assert counts["reached"] > 0 and counts["told"] > examples // 3
    assert "file.keras" in [path.name for path in stopped.iterdir()]


@pytest.mark.parametrize("examples", [50, pytest.param(500, marks=pytest.mark.slow)])
def test_names_of_networks_recipes_losses_and_workers(monkeypatch, examples):
    """Any text is known, and then to the last digit, or a `ValueError`."""
    built = {pattern: lambda shape, classes, *numbers: numbers for pattern in networks.FAMILIES}
    monkeypatch.setattr(networks, "FAMILIES", built)

    @settings(max_examples=examples, derandomize=True, database=None, deadline=None)
    @given(TEXT | st.from_regex(r"\A(small|resnet|wrn)-?[0-9x-]{0,9}\Z"), NUMBERS | TEXT)
    def holds(name, number):
        for parse in (schemes.named, loss_names.check):
            with pytest.raises(ValueError, match="Expected ") as caught:
                parse(name)
            assert len(str(caught.value)) < 700
        try:
            numbers = networks.build(name, (8, 8, 1), 3)
        except ValueError as error:
            assert str(error).startswith("Expected a network's name") and len(str(error)) < 300
        else:
            assert all(0 <= found <= networks.MOST for found in numbers) and name.isascii()
            assert [int(text) for text in re.findall(r"[0-9]+", name.removesuffix("x4"))] == [
                *numbers
            ]
        for text in (name, f"{number}/", f"{number}/2"):
            try:
                worker, workers = commands._worker(text)
            except ValueError as error:
                assert str(error).startswith("Expected --worker")
            else:
                assert f"{worker}/{workers}".isascii() and worker >= 0 and "/" in text

    holds()
    for worker, workers in ((0, 1), (3, 17), (10**20, 10**30)):
        assert commands._worker(f"{worker}/{workers}") == (worker, workers)


def test_what_is_listed_is_known(capsys):
    assert cli.main(["losses"]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    known = [line.split()[0] for line in listed if "(in Python: " not in line]
    assert [loss_names.check(name) for name in known] == [None] * len(known)
    for line in listed:
        if "(in Python: " in line:
            with pytest.raises(ValueError, match="Use that one in Python"):
                loss_names.check(line.split()[0])
    assert cli.main(["recipes"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert [schemes.named(name).name for name in names] == names == schemes.names()
    assert all(networks.build(name, (16, 16, 1), 3) for name in networks.EXAMPLES[:3])


def test_the_settings_that_a_run_tells_mean_the_same_again():
    """Layers as they stand in settings.json, given by hand: the same wiring."""
    images = kd.data.load("digits", limit=40).train
    teacher, student = small_cnn((8, 8, 1), 10, 4), small_cnn((8, 8, 1), 10, 2)
    again = 0
    for name in loss_names.names():
        if loss_names.unknown_arguments(name):
            continue
        given = distillation.Settings("digits", "small-4", "small-2", loss=name)
        wiring = loss_terms.wired(given, teacher, student, images)
        layers = {name: wiring.settings()[name] for name in ("teacher_layer", "student_layer")}
        told = dataclasses.replace(given, **layers)
        other = loss_terms.wired(told, teacher, student, images)
        assert str(other) == str(wiring) and other.settings() == wiring.settings()
        again += 1
    assert again > 25


@pytest.mark.parametrize("seed", [-1, 2**31, 2**32, 10**30, 1.5, True])
def test_seeds_that_keras_refuses_later_are_told_before_a_run_begins(tmp_path, seed):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="`seed` to be a whole number from 0 to 2147483647"):
        distillation.Settings("digits", "small-2", "small-2", seed=seed)
    with pytest.raises(ValueError, match="`seed` to be a whole number from 0 to 2147483647"):
        running.train_recipe("baseline", kd.data.load("digits", limit=20), seed=seed, out=out)
    with pytest.raises(ValueError, match="`seed` to be a whole number from 0 to 2147483647"):
        demo.demo(out, seed=seed)
    assert not out.exists()


def test_more_seeds_than_can_be_told_apart_are_told():
    for count in (1001, 10**30):
        with pytest.raises(ValueError, match="at most 1000 seeds"):
            comparing.seeds_from(0, count)
    assert comparing.seeds_from(3, 2) == [3, 4]
