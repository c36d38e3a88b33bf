"""The bounds on speed and memory and what was measured, from `results/benchmark/cpu.json`."""

import json
import pathlib

MARK = "<!-- benchmark -->"
RUN = pathlib.Path(__file__).resolve().parent.parent / "results" / "benchmark" / "cpu.json"
NOTHING = "Nothing is measured here yet: there is no `results/benchmark/cpu.json`."
HEADS = (
    "| figure | bound | wall clock, median (lowest to highest) | processor | |",
    "|---|---|---|---|---|",
)


def number(value):
    """Three significant digits, without an exponent where it can be."""
    return f"{value:.3g}"


def row(bound, found):
    """The row of one bound; `found` is its figure, None where it was not measured."""
    sign = "≤" if bound["direction"] == "at most" else "≥"
    wall = processor = ""
    if found:
        spread = (number(found["wall"][key]) for key in ("median", "lowest", "highest"))
        wall = "{} ({} to {})".format(*spread)
        processor = number(found["processor"]["median"]) if found["processor"] else ""
    limit = f"{sign} {number(bound['value'])}"
    return f"| {bound['figure']} | {limit} | {wall} | {processor} | {bound['verdict']} |"


def table(run):
    """The Markdown of a run: what computed, and a row a bound."""
    machine, versions = run["machine"], run["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    verdicts = [bound["verdict"] for bound in run["bounds"]]
    about = (
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']:g} GiB; "
        f"{named}. {verdicts.count('pass')} of {len(verdicts)} bounds are met."
    )
    rows = [row(bound, run["figures"].get(bound["figure"])) for bound in run["bounds"]]
    return "\n\n".join([about, "\n".join([*HEADS, *rows])])


def on_page_markdown(markdown, **_):
    """Puts the table where the page marks it (a hook of MkDocs)."""
    if MARK not in markdown:
        return markdown
    text = table(json.loads(RUN.read_text(encoding="utf-8"))) if RUN.exists() else NOTHING
    return markdown.replace(MARK, text)
