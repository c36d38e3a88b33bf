"""The README, run: its Python is executed, its commands and links exist."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SKIP = "<!-- no test -->"
SHELLS = {"", "sh", "bash", "shell", "console"}


def fenced_blocks(text):
    """Every fenced block as `(line of its first row, language, code, skipped)`."""
    blocks = []
    lines = text.splitlines()
    start = None
    for number, line in enumerate(lines, start=1):
        if not line.strip().startswith("```"):
            continue
        if start is None:
            start = number
        else:
            language = lines[start - 1].strip().removeprefix("```").strip()
            before = [row.strip() for row in lines[: start - 1] if row.strip()]
            skipped = bool(before) and before[-1] == SKIP
            blocks.append((start + 1, language, "\n".join(lines[start : number - 1]), skipped))
            start = None
    assert start is None, f"README.md:{start}: a fenced block is not closed"
    return blocks


def shell_commands(text):
    """The commands that the shell blocks show, without prompts and comments, in their order."""
    commands = []
    for _, language, code, _ in fenced_blocks(text):
        if language in SHELLS:
            joined = code.replace("\\\n", " ")
            rows = [
                re.sub(r"(^|\s)#.*", "", row).strip().removeprefix("$ ")
                for row in joined.splitlines()
            ]
            commands += [row for row in rows if row]
    return commands


def named_commands(text):
    """`{subcommand: options}` of every `keras-distill ...` in a shell block or in `code`."""
    inline = re.findall(r"`(keras-distill [^`\n]+)`", text)
    shown = [c for c in shell_commands(text) if re.match(r"(\S+/)?keras-distill\s", c)]
    named = {}
    for command in inline + shown:
        words = command.split()[1:]
        subcommands = words[0].split("|") if words and re.match(r"[a-z]", words[0]) else [""]
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        for subcommand in subcommands:
            named.setdefault(subcommand, set()).update(options)
    return named


def command_line(*arguments):
    """The text that `keras-distill` prints."""
    program = "import sys; from keras_distill.cli import main; sys.exit(main())"
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def heading_anchors(text):
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+\s+(.+?)\s*$", text, flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.fixture(scope="module")
def readme():
    return README.read_text(encoding="utf-8")


def test_opens_with_the_two_commands(readme):
    assert shell_commands(readme)[:2] == ["make demo", "make test"]
    # Before the first section: a newcomer need not scroll.
    first_section = readme.find("\n## ")
    assert readme.find("make demo") < readme.find("make test")
    assert first_section == -1 or readme.find("make test") < first_section


def test_make_targets_exist(readme):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = re.findall(r"`make ([a-z-]+)", readme)
    named += [c.split()[1] for c in shell_commands(readme) if re.match(r"make [a-z-]", c)]
    assert {"demo", "test"} <= set(named) <= targets


@pytest.mark.tensorflow
def test_python_blocks_run(readme, tmp_path, monkeypatch):
    """All Python blocks in their order, in one namespace, as a reader would paste them."""
    blocks = [b for b in fenced_blocks(readme) if b[1] == "python" and not b[3]]
    if not blocks:
        pytest.skip("the README shows no Python")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    for line, _, code, _ in blocks:
        # Empty rows in front: a failure names the README's own line.
        exec(compile("\n" * (line - 1) + code, str(README), "exec"), namespace)
    assert "keras_distill" in {getattr(value, "__name__", "") for value in namespace.values()}


@pytest.mark.slow
def test_commands_and_options_exist(readme):
    """Every `keras-distill X --option` that the README names is in the help."""
    named = named_commands(readme)
    if not named:
        return
    listed = command_line("--help")
    for subcommand, options in named.items():
        assert re.search(rf"(?<![\w-]){re.escape(subcommand)}(?![\w-])", listed)
        text = command_line(subcommand, "--help") if subcommand else listed
        missing = {o for o in options if not re.search(rf"{re.escape(o)}(?![\w-])", text)}
        assert missing == set(), f"keras-distill {subcommand}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_point_to_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    without_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", without_code)
    links += re.findall(r"<img[^>]+src=\"([^\"]+)\"", without_code)
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = ROOT / path if path else ROOT / page
        if not target.exists():
            broken.append(link)
        elif anchor and target.suffix == ".md":
            if anchor not in heading_anchors(target.read_text(encoding="utf-8")):
                broken.append(link)
    assert broken == []


def test_block_parser():
    """The parsers themselves, on a page with all cases."""
    page = (
        "# A\n```sh\n$ make demo  # first\nkeras-distill train \\\n  --dataset digits\n```\n"
        "Use `keras-distill export --int8`.\n<!-- no test -->\n\n```python\n1 / 0\n```\n"
        "```python\nx = 1\n```\n"
    )
    assert [(b[0], b[1], b[3]) for b in fenced_blocks(page)] == [
        (3, "sh", False),
        (11, "python", True),
        (14, "python", False),
    ]
    assert shell_commands(page) == ["make demo", "keras-distill train    --dataset digits"]
    assert named_commands(page) == {"train": {"--dataset"}, "export": {"--int8"}}
    assert heading_anchors("## What `kd.tap` does\n") == {"what-kdtap-does"}


def test_figures_are_those_of_the_results():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "readme_figures.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_figures_of_the_readme_come_from_their_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    figures = importlib.import_module("readme_figures")
    assert figures.gains(tmp_path) == figures.speed(tmp_path) == figures.picture(tmp_path) == ""

    def entry(name, gain):
        return {
            "id": name,
            "name": name,
            "group": "",
            "accuracy": {"mean": 0.8, "deviation": 0.002},
            "gain": {"mean": gain, "error": 0.0041, "seeds": 5},
        }

    results = {
        "title": "Mutual learning",
        "command": "python scripts/reproduce.py mutual",
        "dataset": {"name": "digits", "train": 1000},
        "comparison": [
            {
                "id": "a",
                "name": "baseline",
                "group": "",
                "accuracy": {"mean": 0.78125, "deviation": 0.0},
                "records": [{"settings": {"training": {"epochs": 60, "learning_rate": 0.1}}}],
            },
            {
                "id": "b",
                "name": "baseline",
                "group": "shifted",
                "accuracy": {"mean": 0.75, "deviation": 0.01},
            },
            entry("mutual", 0.0123),
            entry("without_a_page", 0.5),
        ],
    }
    (tmp_path / "mutual.json").write_text(json.dumps(results))
    made = figures.gains(tmp_path)
    row = "| [Mutual learning (DML)](docs/methods/mutual_learning.md) | `mutual` "
    assert row + "| +1.23 ± 0.41 | 5 |" in made
    assert "digits, 1,000 training images, 60 epochs of SGD from 0.1;" in made
    assert "; alone 78.12 ± 0.00 %, 75.00 ± 1.00 % (shifted);" in made
    assert "without_a_page" not in made
    records = [{"bytes": 7000, "latency_ms": 0.005}, {"bytes": 9000, "latency_ms": 0.007}]
    results["comparison"] = [{**entry("int8_after", 0.01), "records": records}]
    (tmp_path / "compression.json").write_text(json.dumps({**results, "seeds": [0, 1]}))
    shown = figures.picture(tmp_path)
    assert "![Mutual learning](docs/figures/compression.png)" in shown
    assert (
        "± standard deviation: the same file in int8 80.0 ± 0.2 %, 8 kB, 6.0 ± 1.4 µs an image"
        in shown
    )
    marks = "a <!-- gains: scripts/readme_figures.py -->\nold\n<!-- /gains --> b"
    new = figures.written(marks, "gains", made)
    assert made in new and "old" not in new and new.startswith("a ") and new.endswith(" b")
    assert figures.written(new, "gains", made) == new
    with pytest.raises(ValueError, match="speed"):
        figures.written(marks, "speed", "")


def test_what_is_counted_is_there(readme):
    import keras

    import keras_distill
    from keras_distill.recipes import loss_names

    found = {
        value
        for value in vars(keras_distill).values()
        if isinstance(value, type) and issubclass(value, keras.Model)
    }
    wrappers = len(found - {keras_distill.EnsembleTeacher})
    assert f"{len(loss_names.names())} losses" in readme
    assert f"{wrappers} wrappers" in readme


def test_the_version_to_cite_is_this_one():
    import keras_distill

    assert f"version = {{{keras_distill.__version__}}}" in README.read_text(encoding="utf-8")
