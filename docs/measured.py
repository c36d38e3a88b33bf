"""What this project has measured of a method, from `results/*.json`: a table and a figure.

A page names what it is about in its front matter, `measured: [mutual]`, and shows it where
`<!-- measured -->` stands. A results file is what `scripts/reproduce.py` writes, or what
`kd.recipes.compare_recipes` returns with the `command` that made it: of its `comparison`, the
entries of these names are shown, next to the first entry of their group, which the gains refer to.
A page without such a file says that nothing is measured.
"""

import html
import json
import pathlib

MARK = "<!-- measured -->"
NOTHING = (
    "Not measured here yet: no file in `results/` holds this method. Take figures of papers as "
    "figures of their own networks, schedules and data."
)
WIDTH, LEFT, ROW = 640, 170, 30  # of a figure, its names and its rows
RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"
HEADS = ("data", "trained by", "test accuracy, %", "gain, points", "seeds", "images, all")
COLUMNS = f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}"


def points(found, sign=""):
    """A share with its standard error in percent, `92.40 ± 0.10`."""
    text = f"{100 * found['mean']:{sign}.2f}"
    return text if found.get("error") is None else f"{text} ± {100 * found['error']:.2f}"


def entries_of(results, names):
    """What is shown of one results file: of each group its first entry and those of `names`."""
    groups = {}
    for entry in results.get("comparison") or []:
        if "accuracy" in entry:
            groups.setdefault(entry.get("group", ""), []).append(entry)
    shown = []
    for first, *others in groups.values():
        own = [entry for entry in others if entry["name"] in names]
        shown += [first, *own] if own or first["name"] in names else []
    return shown


def images(entry):
    """How many images all networks forward, those of trainings before among them."""
    counts = (entry.get("records") or [{}])[0].get("images")
    return f"{sum(counts.values()):,}" if counts else ""


def rows(results, entries):
    """The rows of the table, one an entry."""
    data = results["dataset"]
    about = f"{data['name']}, {data['train']:,} images"
    return [
        f"| {about}{', ' + entry['group'] if entry.get('group') else ''} | {entry['name']} "
        f"| {points(entry['accuracy'])} "
        f"| {points(entry['gain'], '+') if 'gain' in entry else ''} "
        f"| {len(entry['accuracy']['values'])} | {images(entry)} |"
        for entry in entries
    ]


def figure(entries):
    """An SVG of each entry's seeds as dots, with a bar at the mean.

    Args:
        entries: Entries of `comparison`.
    """
    values = [value for entry in entries for value in entry["accuracy"]["values"]]
    low, high = min(values), max(values)
    span = high - low or 1.0

    def x(value):
        return f"{LEFT + (WIDTH - LEFT - 20) * (value - low) / span:.1f}"

    height = ROW * len(entries) + 24
    parts = [f'<svg class="seeds" viewBox="0 0 {WIDTH} {height}" role="img">']
    parts.append("<title>Test accuracy of each seed, and the mean</title>")
    for row, entry in enumerate(entries):
        y, mean = ROW * row + ROW // 2, x(entry["accuracy"]["mean"])
        named = entry.get("id", entry["name"])
        parts.append(f'<text x="0" y="{y + 4}">{html.escape(named)}</text>')
        parts.append(f'<line x1="{mean}" x2="{mean}" y1="{y - 9}" y2="{y + 9}"/>')
        dots = entry["accuracy"]["values"]
        parts += [f'<circle cx="{x(value)}" cy="{y}" r="4"/>' for value in dots]
    for value, anchor in ((low, "start"), (high, "end")) if high > low else ((low, "start"),):
        label = f"{100 * value:.2f} %"
        parts.append(f'<text x="{x(value)}" y="{height - 4}" text-anchor="{anchor}">{label}</text>')
    return "".join([*parts, "</svg>"])


def table(names, folder=RESULTS):
    """The Markdown of all that is measured of these names.

    Args:
        names: Names of entries in `comparison`.
        folder: The folder of the results files.
    """
    parts = []
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        entries = entries_of(results, names)
        if entries:
            said = f"`{results['command']}`" if results.get("command") else f"`{path.name}`"
            parts.append(f"From {said}, mean ± standard error; images forwarded by all networks:")
            parts.append("\n".join([COLUMNS, *rows(results, entries)]))
            parts.append(figure(entries))
    return "\n\n".join(parts) or NOTHING


def on_page_markdown(markdown, page, **_):
    """Puts the table where the page marks it (a hook of MkDocs)."""
    return markdown.replace(MARK, table(page.meta.get("measured", [])))
