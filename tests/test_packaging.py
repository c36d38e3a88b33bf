"""The wheel, the pinned versions and the Makefile's set-up."""

import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def requirements(extra):
    """The requirements of an extra, those of the extras that it names included."""
    for text in EXTRAS[extra]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            for inner in requirement.extras:
                yield from requirements(inner)
        else:
            yield requirement


def names(extra):
    return {canonicalize_name(requirement.name) for requirement in requirements(extra)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-1000:]
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def read(archive, name):
    (path,) = [entry for entry in archive.namelist() if entry.endswith(f".dist-info/{name}")]
    return archive.read(path).decode()


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel):
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "keras_distill").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files == sources
    assert {"keras_distill/_version.py", "keras_distill/py.typed"} <= files


@pytest.mark.slow
def test_wheel_metadata(wheel):
    metadata = email.message_from_string(read(wheel, "METADATA"))
    from keras_distill import _version

    assert metadata["Name"] == "keras-distill"
    assert metadata["Version"] == _version.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == set(EXTRAS)
    base = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    assert {r.name for r in base if r.marker is None} == {"keras", "numpy", "tensorflow", "typer"}
    assert "keras-distill = keras_distill.cli:main" in read(wheel, "entry_points.txt")
    assert "Apache License" in read(wheel, "licenses/LICENSE")


def test_extras_are_those_that_errors_name():
    expected = {"gpu", "data", "cv", "hub", "plots", "litert", "demo", "jax", "docs"}
    expected |= {"test", "dev", "all"}
    assert set(EXTRAS) == expected
    text = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "keras_distill").rglob("*.py"))
    assert set(re.findall(r"keras-distill\[([a-z]+)\]", text)) <= expected


def test_extras_hold_each_other():
    assert names("demo") >= names("plots") | names("litert") | {"scikit-learn"}
    assert names("test") >= names("demo") | names("data") | names("cv") | names("hub")
    assert names("test") >= names("docs")
    assert names("dev") >= names("test") | {"ruff", "pre-commit"}
    assert names("all") == set().union(*(names(extra) for extra in EXTRAS if extra != "gpu"))
    assert "and-cuda" not in {extra for r in requirements("all") for extra in r.extras}


def test_constraints_are_plain_pins():
    """`name==version` lines alone: no path, no address, no option of one machine."""
    assert [
        line for line in PINS if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)
    ] == []
    pinned = [canonicalize_name(line.split("==")[0]) for line in PINS]
    assert len(pinned) == len(set(pinned))
    assert {"keras-distill", "pip"} & set(pinned) == set()


@pytest.mark.parametrize("extra", ["base", *sorted(set(EXTRAS) - {"gpu"})])
def test_constraints_pin_every_requirement(extra):
    pins = {canonicalize_name(name): version for name, version in (p.split("==") for p in PINS)}
    wanted = requirements(extra) if extra != "base" else map(Requirement, PROJECT["dependencies"])
    for requirement in wanted:
        version = pins.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(version, prereleases=True), str(requirement)


@pytest.fixture
def checkout(tmp_path):
    """The Makefile on a clean checkout; `install(extra)` makes believe that make did it."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def install(*extras):
        environment = tmp_path / ".venv"
        (environment / "bin").mkdir(parents=True, exist_ok=True)
        (environment / "bin" / "python").touch()
        for extra in extras:
            (environment / f".ready-{extra}").touch()

    return tmp_path, install


def installs(folder, target):
    """The extras that `make target` would install."""
    # A test run that make itself started hands its own flags down.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    result = subprocess.run(
        ["make", "--dry-run", target],
        capture_output=True,
        text=True,
        cwd=folder,
        env={key: value for key, value in environment.items() if key != "MFLAGS"},
    )
    assert result.returncode == 0, result.stderr
    return re.findall(r'--editable "\.\[(\w+)\]"', result.stdout)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
@pytest.mark.parametrize(
    ("target", "extra"),
    [("demo", "demo"), ("docs", "docs"), ("test", "test"), ("test-fast", "test"), ("lint", "dev")],
)
def test_make_installs_once(checkout, target, extra):
    folder, install = checkout
    assert installs(folder, target) == [extra]
    install(extra)
    assert installs(folder, target) == []


@needs_make
@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_make_installs_again_when_the_pins_change(checkout, changed):
    folder, install = checkout
    install("demo")
    later = (folder / ".venv" / ".ready-demo").stat().st_mtime + 10
    os.utime(folder / changed, (later, later))
    assert installs(folder, "demo") == ["demo"]


def test_make_stamps_what_a_larger_set_holds():
    """After `make test`, `make demo` installs nothing."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    stamps = dict(
        re.findall(r"^\$\(READY\)-(\w+):.*\n.*\n\t@touch (.*)$", text, flags=re.MULTILINE)
    )
    assert stamps == {
        "demo": "$@",
        "docs": "$@",
        "test": "$(READY)-demo $(READY)-docs $@",
        "dev": "$(READY)-demo $(READY)-docs $(READY)-test $@",
    }


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^(?:exec )?make test$", script.read_text(encoding="utf-8"), re.MULTILINE)
