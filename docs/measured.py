"""What this project has measured of a method, from `results/*.json`, as a table on its page.

A page names what it is about in its front matter, `measured: [mutual]`, and shows it where
`<!-- measured -->` stands. A results file is what `kd.recipes.compare_recipes` returns, with the
`command` that made it beside it: of its `comparison`, the entries of these names are shown, next to
the first entry, which all gains refer to. A page without such a file says that nothing is measured.
"""

import json
import pathlib

MARK = "<!-- measured -->"
NOTHING = (
    "Not measured here yet: no file in `results/` holds this method. Take figures of papers as "
    "figures of their own networks, schedules and data."
)
RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"
COLUMNS = "| data | trained by | test accuracy, % | gain, points | seeds |\n|---|---|---|---|---|"


def points(found, sign=""):
    """A share with its standard error in percent, `92.40 ± 0.10`."""
    text = f"{100 * found['mean']:{sign}.2f}"
    return text if found.get("error") is None else f"{text} ± {100 * found['error']:.2f}"


def rows(results, names):
    """The rows of one results file: the first entry, and those of `names`."""
    first, *others = results["comparison"]
    shown = [entry for entry in others if entry["name"] in names]
    if not shown and first["name"] not in names:
        return []
    data = results["dataset"]
    about = f"{data['name']}, {data['train']:,} images"
    return [
        f"| {about} | {entry['name']} | {points(entry['accuracy'])} "
        f"| {points(entry['gain'], '+') if 'gain' in entry else ''} "
        f"| {len(entry['accuracy']['values'])} |"
        for entry in [first, *shown]
    ]


def table(names, folder=RESULTS):
    """The Markdown of all that is measured of these names.

    Args:
        names: Names of entries in `comparison`.
        folder: The folder of the results files.
    """
    parts = []
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        found = rows(results, names) if "comparison" in results else []
        if found:
            said = f"`{results['command']}`" if results.get("command") else f"`{path.name}`"
            parts.append("\n".join([f"From {said}, mean ± standard error:", "", COLUMNS, *found]))
    return "\n\n".join(parts) or NOTHING


def on_page_markdown(markdown, page, **_):
    """Puts the table where the page marks it (a hook of MkDocs)."""
    return markdown.replace(MARK, table(page.meta.get("measured", [])))
