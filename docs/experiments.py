"""The pages of the experiments, from `results/`: one each, and one that lists all claims."""

import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
FIGURES = "../docs/figures/"  # as `results/NAME.md` names them
ABOUT = """# Results

What the articles behind this project claim, and what came out here: each experiment has its
question, data, networks and seeds on its page, with every mean and its deviation. A claim agrees,
or does not, where the difference, taken seed by seed, exceeds what so many seeds could show; else
it cannot be told. `python scripts/reproduce.py NAME` makes each of them again, and
`--scale full` has the papers' recipes."""
MULTIPLICITY = """Claims judged here: {count}, each on its own at the 5 % level. Where there was
nothing to find, about one comparison in twenty would agree or disagree by chance."""
NOTHING = "Nothing is measured here yet: there is no experiment in `results/`."


def found(folder=RESULTS):
    """`(file, results)` of each experiment that has its page beside it, by its title."""
    every = []
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        if "experiment" in results and path.with_suffix(".md").exists():
            every.append((path, results))
    return sorted(every, key=lambda each: each[1]["title"])


def conditions(results):
    """Data, seeds and scale of an experiment in a line."""
    data, seeds = results["dataset"], len(results["seeds"])
    return (
        f"{data['name']}, {data['train']:,} training images, {seeds} "
        f"seed{'s' if seeds > 1 else ''}, scale `{results['scale']}`."
    )


def index(every):
    """The Markdown of the page that lists the claims.

    Args:
        every: What `found` returns.
    """
    if not every:
        return f"{ABOUT}\n\n{NOTHING}\n"
    count = sum(len(results["claims"]) for _, results in every)
    parts = [ABOUT, MULTIPLICITY.format(count=count)]
    for path, results in every:
        parts.append(f"## [{results['title']}]({path.stem}.md)")
        parts.append(results["question"])
        parts.append(conditions(results))
        rows = [f"| {each['claim']} | {each['verdict']} |" for each in results["claims"]]
        if rows:
            parts.append("\n".join(["| claim | here |", "| --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def page(path):
    """The Markdown of an experiment's page; figures lie elsewhere there."""
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    return text.replace(f"({FIGURES}", "(../figures/")


def on_files(files, config, **_):
    """Adds the pages, and puts them into the menu (a hook of MkDocs)."""
    from mkdocs.structure.files import File

    every = found()
    pages = {"results/index.md": index(every)}
    pages |= {f"results/{path.stem}.md": page(path) for path, _ in every}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    named = [{results["title"]: f"results/{path.stem}.md"} for path, results in every]
    config.nav = [*config.nav, {"Results": ["results/index.md", *named]}]
    return files
