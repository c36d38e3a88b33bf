"""The notebooks: true to their scripts, executed without error, with pictures one can see."""

import ast
import base64
import importlib
import io
import os
import pathlib
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAKE = ROOT / "scripts" / "make_notebooks.py"
SCRIPTS = sorted((ROOT / "notebooks" / "scripts").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NO_PROGRESS_BAR = re.compile(r"\d+/\d+ [━=]|\x08|\x1b\[")
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/<])/(?:home|root|tmp|usr|opt|work|var|Users|mnt)\b|[A-Z]:\\\\"
)
WARNING = re.compile(r"WARNING:|\bWarning\b|INFO:")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def make_notebooks(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(MAKE), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "tensorflow", **environment},
    )


def outputs_of(path):
    """The outputs of a notebook's code cells."""
    notebook = nbformat.read(path, as_version=4)
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def texts_of(outputs):
    """Every text in outputs: streams, and data that is no picture."""
    for output in outputs:
        if output.output_type == "stream":
            yield output.text
        for kind, data in output.get("data", {}).items():
            if kind != "image/png":
                yield str(data)


def pictures_of(outputs):
    """The PNGs among outputs, as arrays (height, width, 3)."""
    from PIL import Image

    for output in outputs:
        if "image/png" in output.get("data", {}):
            file = io.BytesIO(base64.b64decode(output.data["image/png"]))
            with Image.open(file) as image:
                yield np.asarray(image.convert("RGB"))


def check_outputs(outputs, pictures):
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    for text in texts_of(outputs):
        for unwanted in (ABSOLUTE_PATH, NO_PROGRESS_BAR, WARNING):
            assert not unwanted.search(text), text
    found = list(pictures_of(outputs))
    assert len(found) >= pictures
    for picture in found:
        assert min(picture.shape[:2]) > 200
        ink = (picture < 200).any(axis=-1).mean()
        assert 0.005 < ink < 0.9, ink


def test_every_script_has_its_notebook():
    assert SCRIPTS
    assert [path.stem for path in SCRIPTS] == [path.stem for path in NOTEBOOKS]


def test_notebooks_match_their_scripts():
    done = make_notebooks("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_names_the_cell_that_differs(tmp_path):
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[2].source += "\nchanged = True"
        nbformat.write(notebook, tmp_path / path.name)
    done = make_notebooks("quickstart", "--check", "--out", tmp_path)
    assert done.returncode == 1
    assert "cell 2 of quickstart.ipynb differs" in done.stdout
    assert "make notebooks" in done.stdout
    done = make_notebooks("--check", "--out", tmp_path / "empty")
    assert done.returncode == 1
    assert "quickstart.ipynb is missing" in done.stdout


def test_an_unknown_name_is_one_line():
    done = make_notebooks("quickstar")
    assert done.returncode == 2
    assert "quickstart" in done.stderr and "Received: quickstar." in done.stderr
    assert "Traceback" not in done.stderr


@each_notebook
def test_was_executed_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not any("execution" in cell.metadata for cell in notebook.cells)


@each_notebook
def test_outputs_are_clean_and_have_pictures(path):
    check_outputs(outputs_of(path), pictures=1)


@each_notebook
def test_reads_as_a_lesson(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.splitlines()[0].startswith("# ")
    assert cells[0].source.splitlines()[0].endswith("?")
    assert "What to try" in cells[-1].source
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert max(len(text.split()) for text in prose) < 200


def test_quickstart_shows_all_its_parts():
    outputs = outputs_of(ROOT / "notebooks" / "quickstart.ipynb")
    check_outputs(outputs, pictures=4)
    text = "\n".join(texts_of(outputs))
    for part in ("teacher", "student alone", "student distilled", "standard error", "int8"):
        assert part in text


def names_used(script):
    """Every dotted name of a script that begins with something imported from the library."""
    tree = ast.parse(script.read_text())
    roots = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {a.asname: a.name for a in node.names if a.name == "keras_distill"}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("keras_distill"):
            roots |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    yield from roots.values()
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in roots:
            yield ".".join([roots[node.id], *parts])


def is_there(name):
    """Whether a dotted name of the library leads to something."""
    found, *parts = importlib.import_module("keras_distill"), *name.split(".")[1:]
    for part in parts:
        found = getattr(found, part, None)
    return found is not None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_lesson_uses_only_names_that_are_there(script):
    names = set(names_used(script))
    assert len(names) >= 5
    assert not {name for name in names if not is_there(name)}


def test_a_name_that_is_not_there_is_found(tmp_path):
    script = tmp_path / "lesson.py"
    script.write_text("import keras_distill as kd\nkd.losses.SoftTarget(4.0)\n")
    assert {name for name in names_used(script) if not is_there(name)} == {
        "keras_distill.losses.SoftTarget"
    }


# In one process, for each costs seconds to start: the one that splits the processor first. Eagerly,
# for what is run a few times takes longer to trace.
RUN_LESSONS = """
import runpy, sys
import tensorflow as tf

for script in sys.argv[1:]:
    tf.config.run_functions_eagerly("several_gpus" not in script)
    runpy.run_path(script)
    print("ran", script)
"""


@pytest.mark.slow
@pytest.mark.tensorflow
def test_the_further_lessons_run(tmp_path):
    # Of keras-cv's the import alone takes as long as a lesson; its wiring is tested elsewhere.
    left_out = {"quickstart", "feature_distillation"}
    scripts = [path for path in SCRIPTS if path.stem not in left_out]
    scripts.sort(key=lambda path: path.stem != "several_gpus")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN_LESSONS, *map(str, scripts)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            "KERAS_DISTILL_QUICK": "1",
            "MPLBACKEND": "Agg",
            "CUDA_VISIBLE_DEVICES": "-1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ran = re.findall(r"^ran (.*)$", done.stdout, re.MULTILINE)
    assert ran == list(map(str, scripts))


@pytest.mark.slow
@pytest.mark.tensorflow
def test_quickstart_runs(tmp_path):
    done = make_notebooks("quickstart", "--out", tmp_path, KERAS_DISTILL_QUICK="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart.ipynb"]
    check_outputs(outputs_of(tmp_path / "quickstart.ipynb"), pictures=4)
