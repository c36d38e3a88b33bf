"""Generates the notebooks from their scripts, executes them, and writes them with their outputs.

Each `notebooks/scripts/NAME.py` (jupytext's "percent" format) becomes `notebooks/NAME.ipynb`.
What differs between two equal runs, such as times of execution, is left out.

    python scripts/make_notebooks.py              # all
    python scripts/make_notebooks.py quickstart   # one
    python scripts/make_notebooks.py --check      # do the committed ones match their scripts?
"""

import argparse
import collections
import hashlib
import os
import pathlib
import re
import sys
import tempfile

import jupytext
import nbformat

NOTEBOOKS = pathlib.Path(__file__).resolve().parents[1] / "notebooks"
SCRIPTS = NOTEBOOKS / "scripts"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
TENSORFLOW_NOTES = re.compile(r"(WARNING: All log messages before absl|I\d{4} ).*\n?")
CELL_TIMEOUT = 1800  # seconds


def convert(script):
    """The notebook of a script, without outputs; equal scripts give equal notebooks."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    earlier = collections.Counter()
    for cell in notebook.cells:
        text = f"{earlier[cell.source]} {cell.source}"
        cell.id = hashlib.sha256(text.encode()).hexdigest()[:12]
        earlier[cell.source] += 1
    return notebook


def execute(notebook):
    """Runs a notebook in place, in an empty folder; an error in a cell is raised."""
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=CELL_TIMEOUT,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute(env={**os.environ, **QUIET})


def tidy(notebook):
    """Leaves out what is noise; what cells wrote to stderr goes to ours instead."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                rest = TENSORFLOW_NOTES.sub("", output.text).strip()
                if rest:
                    print(f"Left out, after {cell.source!r}: {rest}", file=sys.stderr)
            else:
                kept.append(output)
        cell.outputs = kept


def make(script, folder):
    """Converts and executes one script; its notebook appears in `folder` whole or not at all."""
    notebook = convert(script)
    execute(notebook)
    tidy(notebook)
    nbformat.validate(notebook)
    path = folder / f"{script.stem}.ipynb"
    written = path.with_suffix(".ipynb.new")
    nbformat.write(notebook, written)
    os.replace(written, path)
    return path


def mismatch(script, folder):
    """What is wrong with the notebook of a script, as a sentence, or None."""
    path = folder / f"{script.stem}.ipynb"
    if not path.exists():
        return f"{path.name} is missing"
    cells, wanted = (
        [(cell.cell_type, cell.source) for cell in notebook.cells]
        for notebook in (nbformat.read(path, as_version=4), convert(script))
    )
    if len(cells) != len(wanted):
        return f"{path.name} has {len(cells)} cells, its script {len(wanted)}"
    for i, (cell, other) in enumerate(zip(cells, wanted)):
        if cell != other:
            return f"cell {i} of {path.name} differs from its script"
    return None


def main(arguments=None):
    known = {script.stem: script for script in sorted(SCRIPTS.glob("*.py"))}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(known)}")
    parser.add_argument("--check", action="store_true", help="compare, execute nothing")
    parser.add_argument("--out", type=pathlib.Path, default=NOTEBOOKS, help="folder to write to")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"Expected names among {', '.join(known)}. Received: {', '.join(unknown)}.")
    scripts = [known[name] for name in options.names or known]
    if options.check:
        problems = [problem for script in scripts if (problem := mismatch(script, options.out))]
        for problem in problems:
            print(f"{problem}: run `make notebooks`.")
        return int(bool(problems))
    options.out.mkdir(parents=True, exist_ok=True)
    for script in scripts:
        print(f"Executing {script.name}", flush=True)
        print(f"Wrote {make(script, options.out).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
