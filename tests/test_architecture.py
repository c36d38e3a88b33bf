"""The layout of `design.md` section 1, enforced: ranks, sizes, imports, docstrings."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "keras_distill"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))

# A module imports only from lower ranks or from its own package. The helpers, whose names begin
# with an underscore, may be imported from everywhere.
RANKS = {
    "_version": 0,
    "_types": 0,
    "_checks": 0,
    "_cluster": 0,
    "_ops": 0,
    "_keras": 0,
    "_files": 0,
    "_memory": 0,
    "_precision": 0,
    "_quantization": 0,
    "_rows": 1,
    "_terminal": 0,
    "_graph": 0,
    "distribution": 0,
    "folding": 0,
    "heads": 0,
    "schedules": 0,
    "connectors": 1,
    "regressors": 1,
    "taps": 1,
    "losses": 2,
    "data": 2,
    "backbones": 2,
    "models": 3,
    "metrics": 3,
    "callbacks": 4,
    "export": 4,
    "reporting": 4,
    "recipes": 5,
    "experiments": 6,
    "search": 5,
    "datafree": 5,
    "trees": 5,
    "cli_errors": 5,
    "cli_options": 5,
    "cli_start": 6,
    "cli_deploy": 7,
    "cli": 8,
    "__main__": 9,
    "__init__": 10,
}
LINE_LIMIT = 400

# Installed by an extra, or only sometimes needed: imported by the function that needs them.
OPTIONAL = {
    "IPython",
    "PIL",
    "ai_edge_litert",
    "keras_cv",
    "keras_hub",
    "matplotlib",
    "scipy",
    "sklearn",
    "tensorflow_datasets",
    "torch",
}


def relative(path):
    return path.relative_to(ROOT).as_posix()


def each(paths):
    return [pytest.param(path, id=relative(path)) for path in paths]


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def part_of(dotted):
    """`keras_distill.losses.base` -> `losses`; the root itself, or a name in it, -> `__init__`."""
    parts = dotted.split(".")[1:]
    if parts and ((PACKAGE / parts[0]).is_dir() or (PACKAGE / f"{parts[0]}.py").is_file()):
        return parts[0]
    return "__init__"


def dotted_name(path):
    """The module's name in imports; a package's is its folder's."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path):
    """Every `(line, dotted name)` that a module imports, in functions too."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = dotted_name(path).split(".")
                if path.name != "__init__.py":
                    package = package[:-1]
                package = package[: len(package) - node.level + 1]
                base = ".".join([*package, base] if base else package)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def imports_at_top_level(tree):
    """Import statements that run when the module is imported: all but those in functions."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        waiting.extend(ast.iter_child_nodes(node))


def rank_violations(path):
    own = part_of(dotted_name(path))
    for line, name in imported_names(path):
        if name.split(".")[0] != "keras_distill":
            continue
        other = part_of(name)
        helper = other.startswith("_") and RANKS.get(other) == 0
        if other != own and not helper and RANKS.get(other, 99) >= RANKS[own]:
            yield (
                f"{relative(path)}:{line}: {own} (rank {RANKS[own]}) imports {name} "
                f"(rank {RANKS.get(other)})"
            )


@pytest.mark.parametrize("path", each(MODULES))
def test_every_module_has_a_rank(path):
    own = part_of(dotted_name(path))
    assert own in RANKS, (
        f"`{own}` is not in the table of ranks. Add it to RANKS in tests/test_architecture.py, "
        "above everything it imports."
    )


@pytest.mark.parametrize("path", each(MODULES))
def test_imports_point_to_lower_ranks(path):
    assert list(rank_violations(path)) == []


def test_rank_check_sees_violations(tmp_path, monkeypatch):
    """The check itself: upward, sideways, relative and hidden imports are all seen."""
    root = tmp_path / "keras_distill"
    (root / "losses").mkdir(parents=True)
    (root / "models").mkdir()
    for name in ("_checks", "_ops", "taps", "schedules", "connectors"):
        (root / f"{name}.py").write_text("")
    for name in ("losses", "models"):
        (root / name / "__init__.py").write_text("")
    path = root / "losses" / "response.py"
    path.write_text(
        "from keras_distill import _checks\n"  # a helper
        "from keras_distill.connectors import Connector\n"  # lower
        "from keras_distill.losses.base import DistillationLoss\n"  # its own package
        "from . import base\n"
        "import keras_distill.models\n"  # upward
        "from ..models import base\n"  # upward, relative
        "def later():\n"
        "    from keras_distill import Distiller\n"  # the root, hidden in a function
    )
    taps = root / "taps.py"
    taps.write_text("from keras_distill import connectors\n")  # sideways
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", root)
    lines = [message.split(":")[1] for message in rank_violations(path)]
    assert sorted(lines) == ["5", "6", "8"]
    assert len(list(rank_violations(taps))) == 1


def test_only_dlb_builds_overlapping_batches():
    """`models/dlb.py` alone calls `data.overlap`."""
    importers = {
        relative(path)
        for path in PACKAGE.joinpath("models").rglob("*.py")
        for _, name in imported_names(path)
        if name.startswith("keras_distill.data.overlap")
        or name == "keras_distill.data.overlap_batches"
    }
    assert importers <= {"keras_distill/models/dlb.py"}


@pytest.mark.parametrize("path", each(MODULES + SCRIPTS))
def test_files_stay_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LINE_LIMIT, (
        f"{relative(path)} has {lines} lines. Give the largest paper or piece a file of its own."
    )


@pytest.mark.parametrize("path", each(MODULES + SCRIPTS))
def test_no_drawer_for_everything(path):
    assert path.stem not in {"utils", "util", "helpers", "misc", "common"}


@pytest.mark.parametrize("path", each(MODULES + SCRIPTS))
def test_nothing_is_left_undone(path):
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"\b(?:TODO|FIXME|XXX)\b", text) == []
    # A bare `NotImplementedError()` says nothing to the user who meets it.
    bare = [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Raise)
        and node.exc is not None
        and ast.unparse(node.exc) in {"NotImplementedError", "NotImplementedError()"}
    ]
    assert bare == []


@pytest.mark.parametrize("path", each(MODULES + SCRIPTS))
def test_no_path_of_one_machine(path):
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"(?<![\w.])/(?:work|root|home|tmp|Users)/", text) == []


@pytest.mark.parametrize("path", each(MODULES))
def test_optional_packages_are_imported_in_functions(path):
    found = set()
    for node in imports_at_top_level(parse(path)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[0] for name in names}
    assert found & OPTIONAL == set()


@pytest.mark.parametrize("path", each(MODULES))
def test_private_keras_names_stay_in_one_module(path):
    """`keras.src` is private: `_keras.py` alone leans on it."""
    private = [name for _, name in imported_names(path) if name.startswith("keras.src")]
    assert private == [] or path.name == "_keras.py"


@pytest.mark.parametrize("path", each(MODULES))
def test_public_names_have_docstrings(path):
    tree = parse(path)
    missing = [] if ast.get_docstring(tree) else ["the module itself"]
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                missing.append(f"line {node.lineno}: {node.name}")
    assert missing == []


def modules_after(statement, backend):
    """The top-level names in `sys.modules` of a fresh interpreter that ran `statement`."""
    script = f"{statement}; import sys; print(*sorted({{n.split('.')[0] for n in sys.modules}}))"
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return set(result.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_import_brings_keras_and_numpy_only(backend):
    """Nothing beyond what Keras itself imports: no extra, and no TensorFlow on JAX."""
    # Keras imports matplotlib and scikit-learn by itself where they are installed.
    before = modules_after("import keras, numpy", backend)
    after = modules_after("import keras_distill", backend)
    ours = after - before - set(sys.stdlib_module_names)
    assert {name for name in ours if not name.startswith("_")} == {"keras_distill"}
    assert after & {"keras_cv", "keras_hub", "tensorflow_datasets", "ai_edge_litert"} == set()
    assert "tensorflow" not in after or backend == "tensorflow"
