"""Writes the README's table of methods with their measured gains, from `results/*.json`.

    python scripts/readme_gains.py          # after scripts/reproduce.py
    python scripts/readme_gains.py --check  # an error where the README says something else

The figures are those of the experiments in `SHOWN`, in their order: of each row that has a page in
`docs/methods/`, the gain over the first row of its group, as the file holds it.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN = "<!-- gains: scripts/readme_gains.py -->"
END = "<!-- /gains -->"
SHOWN = ("mutual", "self_distillation", "losses_predictions", "losses_layers")
HEADS = ("| method | row | gain, points | seeds |", "| --- | --- | ---: | ---: |")


def methods(folder=ROOT / "docs" / "methods"):
    """`{name of a row: (title, file)}`, from the front matter of the pages."""
    found = {}
    for path in sorted(folder.glob("*.md")):
        _, matter, text = [*path.read_text(encoding="utf-8").split("---\n", 2), "", ""][:3]
        if matter.startswith("measured: ["):
            title = next(line[2:] for line in text.splitlines() if line.startswith("# "))
            names = matter.partition("[")[2].partition("]")[0].split(",")
            found |= {name.strip(): (title, path) for name in names}
    return found


def lines(results, known):
    """The rows of one experiment whose method has a page."""
    for entry in results["comparison"]:
        if entry["name"] in known and "gain" in entry:
            title, path = known[entry["name"]]
            gain = entry["gain"]
            error = "" if gain["error"] is None else f" ± {100 * gain['error']:.2f}"
            yield (
                f"| [{title}]({path.relative_to(ROOT).as_posix()}) | `{entry['id']}` "
                f"| {100 * gain['mean']:+.2f}{error} | {gain['seeds']} |"
            )


def block(folder=ROOT / "results"):
    """The Markdown between the two marks."""
    known, parts = methods(), [BEGIN]
    for name in SHOWN:
        path = folder / f"{name}.json"
        if path.exists():
            results = json.loads(path.read_text(encoding="utf-8"))
            first, data = results["comparison"][0], results["dataset"]
            about = (
                f"**[{results['title']}](results/{name}.md)** ({data['name']}, {data['train']:,} "
                f"training images; alone {100 * first['accuracy']['mean']:.2f} %; "
                f"`{results['command']}`):"
            )
            parts += [about, "\n".join([*HEADS, *lines(results, known)])]
    return "\n\n".join([*parts, END])


def written(text, new):
    """The README's text with the block in its place.

    Raises:
        ValueError: If the marks are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"Expected {BEGIN} and {END} in the README. Received: not both.")
    return before + new + after


def main(given=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(given)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = written(text, block())
    if options.check:
        print("README.md has the figures of results/" if new == text else "README.md differs")
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
