"""The documentation: it builds without a warning, leaves no name out, and its Python runs."""

import importlib
import importlib.util
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import types
import warnings

import keras
import pytest
import typer

import keras_distill as kd
from keras_distill import cli
from keras_distill import losses
from tests.test_public_api import PUBLIC_PACKAGES
from tests.test_readme import fenced_blocks
from tests.test_readme import named_commands

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
METHODS = [page for page in PAGES if page.parent.name == "methods" and page.name != "index.md"]
SET_UP = DOCS / "methods" / "index.md"
SECTIONS = ["Idea", "Formula", "When to use it", "Smallest example", "Measured here"]
SECTIONS.append("Paper and API")
NO_RUN = re.compile(r"python\s+no-run:\s*\S+")  # followed by the reason


def tool(name):
    """A module of `docs/`, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def each(pages):
    names = [page.relative_to(DOCS).with_suffix("").as_posix() for page in pages]
    return [pytest.param(page, id=name) for page, name in zip(pages, names)]


def python_blocks(page):
    """`(line, code)` of a page's Python; a block that is not to run says why."""
    blocks = fenced_blocks(page.read_text(encoding="utf-8"))
    python = [block for block in blocks if block[1].startswith("python")]
    assert [b[1] for b in python if b[1] != "python" and not NO_RUN.match(b[1])] == []
    return [(line, code) for line, language, code, _ in python if language == "python"]


def offered(module):
    """The public functions, classes and values of a module, modules left out."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if (inspect.isfunction(value) or inspect.isclass(value))
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
    return {name for name in names if not isinstance(getattr(module, name), types.ModuleType)}


def test_api_pages_leave_no_name_out():
    parts = tool("reference").parts()
    modules = {n for n in kd.__all__ if isinstance(getattr(kd, n), types.ModuleType)}
    expected = {"", *modules, *PUBLIC_PACKAGES}
    assert {dotted.removeprefix("keras_distill").lstrip(".") for dotted in parts} == expected
    for dotted, names in parts.items():
        assert len(names) == len(set(names)), dotted
        # What the package offers itself has its entry on the package's page.
        elsewhere = set(parts["keras_distill"]) if dotted == "keras_distill.models" else set()
        missing = offered(importlib.import_module(dotted)) - set(names) - elsewhere
        assert missing == set(), dotted


@pytest.mark.parametrize("page", each(METHODS))
def test_method_page_is_complete(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == SECTIONS
    idea = text.partition("## Idea")[2].partition("## Formula")[0].strip()
    assert len(re.findall(r"[.?!](?:\s|$)", idea)) == 3, "three sentences"
    assert "$$" in text.partition("## Formula")[2].partition("## When")[0]
    assert python_blocks(page)
    assert "<!-- measured -->" in text
    paper = text.partition("## Paper and API")[2]
    assert re.search(r"\]\(https://", paper)
    assert "][keras_distill." in paper
    assert f"({page.name})" in SET_UP.read_text(encoding="utf-8"), "the table of all methods"


def test_every_method_has_its_page():
    """Each loss and each wrapper; a new one needs a page like the others in `docs/methods`."""
    text = "".join(page.read_text(encoding="utf-8") for page in METHODS)
    bases = {"DistillationLoss", "Term", "Stage"}
    names = [n for n in losses.__all__ if inspect.isclass(getattr(losses, n))]
    methods = {f"keras_distill.losses.{n}" for n in names if n not in bases}
    methods |= {
        f"keras_distill.{n}"
        for n in kd.__all__
        if inspect.isclass(getattr(kd, n)) and n not in bases
    }
    assert {name for name in methods if f"][{name}]" not in text} == set()


@pytest.mark.slow
def test_builds_without_a_warning(tmp_path):
    """As `make docs` does: broken links, anchors and names are warnings, and these are errors."""
    pytest.importorskip("mkdocs", reason='needs pip install "keras-distill[docs]"')
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        timeout=300,
    )
    said = result.stdout + result.stderr
    assert result.returncode == 0, said[-3000:]
    assert "WARNING" not in said
    reference = tool("reference")
    for dotted, names in reference.parts().items():
        html = (tmp_path / reference.page_name(dotted)).with_suffix(".html").read_text("utf-8")
        assert {n for n in names if f'id="{dotted}.{n}"' not in html} == set(), dotted
    for path in tmp_path.rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        assert 'class="arithmatex"' not in html, f"{path.name}: a formula that is not drawn"
        # Nothing is fetched from elsewhere when a page is opened.
        fetched = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://[^\"]+", html)
        assert [tag for tag in fetched if 'rel="canonical"' not in tag] == [], path.name
    assert "<math" in (tmp_path / "methods" / "soft_targets.html").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("page", each(PAGES))
def test_python_runs(page, tmp_path, monkeypatch, capsys):
    """All Python of a page in its order; of a method behind the set-up of them all.

    Steps run eagerly, as the graph of each would take longer than the few steps of an example.
    """
    import tensorflow as tf

    blocks = python_blocks(page)
    if page in METHODS:
        blocks = python_blocks(SET_UP) + blocks
    monkeypatch.chdir(tmp_path)
    tf.config.run_functions_eagerly(True)
    namespace = {"__name__": page.stem}
    with warnings.catch_warnings():
        # That data sets are traced all the same.
        warnings.filterwarnings("ignore", ".*run_functions_eagerly.*", UserWarning)
        for line, code in blocks:
            # Empty rows in front: a failure names the page's own line.
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
    capsys.readouterr()
    histories = [v for v in namespace.values() if isinstance(v, keras.callbacks.History)]
    assert all(history.epoch for history in histories)
    assert not blocks or "kd" in namespace


def test_commands_and_options_exist():
    """Every `keras-distill X --option` of a page is one of the command line's."""
    program = typer.main.get_command(cli.app)
    known = {"": program, **program.commands}
    named = {}
    for page in PAGES:
        for command, options in named_commands(page.read_text(encoding="utf-8")).items():
            named.setdefault(command, set()).update(options)
    assert {"demo", "train", "export", "compare", "cache"} & set(named)
    for command, options in named.items():
        taken = {o for p in known[command].params for o in (*p.opts, *p.secondary_opts)}
        assert options - {"--help"} <= taken, f"keras-distill {command}"


def test_results_become_a_table(tmp_path):
    """What `compare_recipes` returns; without a file of the method the page says so."""
    measured = tool("measured")
    assert measured.table(["mutual"], tmp_path) == measured.NOTHING
    accuracy = {"mean": 0.9, "error": 0.001, "values": [0.899, 0.901]}
    results = {
        "command": "keras-distill compare",
        "dataset": {"name": "digits", "train": 400},
        "comparison": [
            {"name": "baseline", "accuracy": {"mean": 0.88, "error": None, "values": [0.88]}},
            {
                "name": "mutual",
                "accuracy": accuracy,
                "gain": {"mean": 0.02, "error": 0.004},
                "records": [{"images": {"student": 4000, "before": 500}}],
            },
            {"name": "dlb", "accuracy": accuracy, "gain": {"mean": -0.01, "error": 0.004}},
            {"name": "baseline", "group": "noise", "accuracy": accuracy, "id": "noise/baseline"},
            {"name": "dlb", "group": "noise", "accuracy": accuracy, "id": "noise/dlb"},
            {"name": "dlb", "group": "memory alone"},
        ],
    }
    (tmp_path / "digits.json").write_text(json.dumps(results))
    (tmp_path / "other.json").write_text(json.dumps({"models": []}))
    table = measured.table(["mutual"], tmp_path)
    assert "`keras-distill compare`" in table
    assert "| digits, 400 images | baseline | 88.00 |  | 1 |  |" in table
    assert "| digits, 400 images | mutual | 90.00 ± 0.10 | +2.00 ± 0.40 | 2 | 4,500 |" in table
    assert "dlb" not in table
    assert table.count("<circle") == 3
    assert ">88.00 %<" in table
    assert ">90.10 %<" in table
    table = measured.table(["dlb"], tmp_path)
    assert "| digits, 400 images | dlb | 90.00 ± 0.10 | -1.00 ± 0.40 | 2 |" in table
    assert "| digits, 400 images, noise | baseline | 90.00 ± 0.10 |" in table
    assert "| digits, 400 images, noise | dlb | 90.00 ± 0.10 |" in table
    assert ">noise/dlb<" in table
    assert table.count("<circle") == 7
    assert "memory" not in table


def test_experiments_become_pages(tmp_path):
    """Without results the index says so; a JSON without a page is none of an experiment."""
    pages = tool("experiments")
    assert pages.NOTHING in pages.index(pages.found(tmp_path))
    claim = {"claim": "It helps.", "verdict": "cannot be told"}
    results = {"experiment": "x", "title": "Title", "question": "Does it?", "claims": [claim]}
    results |= {"dataset": {"name": "digits", "train": 1000}, "seeds": [0, 1], "scale": "small"}
    (tmp_path / "x.json").write_text(json.dumps(results))
    (tmp_path / "other.json").write_text(json.dumps({"models": []}))
    assert pages.found(tmp_path) == []
    (tmp_path / "x.md").write_text("# Title\n\n![figure](../docs/figures/x.png)\n")
    index = pages.index(pages.found(tmp_path))
    assert "## [Title](x.md)\n\nDoes it?" in index
    assert "digits, 1,000 training images, 2 seeds, scale `small`." in index
    assert "Claims judged here: 1, each on its own at the 5 % level." in index
    assert "| It helps. | cannot be told |" in index
    assert "![figure](../figures/x.png)" in pages.page(tmp_path / "x.json")


def test_bounds_become_a_table(monkeypatch, tmp_path):
    """A bound that is not met stands there as one; without a file the page says so."""
    benchmarks = tool("benchmarks")
    wall = {"median": 1.0512, "lowest": 0.9, "highest": 1.234}
    run = {
        "machine": {"cores": 2, "processor": "X", "memory_gib": 8.0},
        "versions": {"keras": "3.15.1", "jax": None},
        "figures": {"a / b": {"wall": wall, "processor": {"median": 0.912}}},
        "bounds": [
            {"figure": "a / b", "direction": "at most", "value": 1.05, "verdict": "short"},
            {"figure": "c", "direction": "at least", "value": 0.95, "verdict": "not measured"},
        ],
    }
    text = benchmarks.table(run)
    assert "2 cores of X, 8 GiB; keras 3.15.1. 0 of 2 bounds are met." in text
    assert "| a / b | ≤ 1.05 | 1.05 (0.9 to 1.23) | 0.912 | short |" in text
    assert "| c | ≥ 0.95 |  |  | not measured |" in text
    monkeypatch.setattr(benchmarks, "RUN", tmp_path / "cpu.json")
    page = (DOCS / "guides" / "speed.md").read_text(encoding="utf-8")
    assert benchmarks.NOTHING in benchmarks.on_page_markdown(page)
    assert benchmarks.on_page_markdown("# Other") == "# Other"


def test_docstrings_for_pages():
    """Deviations are paragraphs, sessions are fenced, names are linked."""
    docstrings = pytest.importorskip("griffe") and tool("docstrings")
    text = "Reference:\n    A paper.\n    Deviation: one\n    line.\n\nDeviation: two\n    lines."
    assert docstrings.with_paragraphs(text) == (
        "Reference:\n    A paper.\n\n    **Deviation:** one\n    line.\n\n\n"
        "**Deviation:** two\nlines."
    )
    assert docstrings.with_sessions("Example:\n    >>> f()\n    1\n\nMore.") == (
        "Example:\n    ```pycon\n    >>> f()\n    1\n    ```\n\nMore."
    )
    linked = docstrings.with_links("A `Term`, see `hint`; not `hint`, `Hint`.", "Hint")
    assert linked == (
        "A [`Term`][keras_distill.Term], see [`hint`][keras_distill.losses.hint]; "
        "not `hint`, `Hint`."
    )


def test_formulas_are_drawn_while_building():
    pytest.importorskip("latex2mathml")
    draw = tool("formulas").on_page_content
    html = draw(r'<p>of <span class="arithmatex">\(T^2 &lt; 3\)</span></p>')
    assert html.startswith("<p>of <math")
    assert "<mo>&#x0003C;</mo>" in html
    assert "<msup>" in html
    block = draw('<div class="arithmatex">\\[\nL = 1\n\\]</div>')
    assert block.startswith('<div class="formula"><math')
    assert 'display="block"' in block
