"""Writes the README's figures from `results/`: the picture, what methods gain, what a step costs.

    python scripts/readme_figures.py          # after scripts/reproduce.py, scripts/benchmark.py
    python scripts/readme_figures.py --check  # an error where the README says something else

Gains are those of the experiments in `SHOWN`, in their order: of each row that has a page in
`docs/methods/`, the gain over the first row of its group, as the file holds it. Times are those of
`results/benchmark/cpu.json`. The words of the picture are those of `results/compression.json`.
"""

import argparse
import json
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
SHOWN = (
    "mutual",
    "self_distillation",
    "label_noise",
    "further_schemes",
    "losses_predictions",
    "losses_layers",
)
GAIN_HEADS = ("| method | row | gain, points | seeds |", "| --- | --- | ---: | ---: |")
SPEED_HEADS = ("| | logits | logits and three taps |", "| --- | ---: | ---: |")
# Rows of the picture's experiment, and what its words call them.
PICTURED = {
    "teacher": "the teacher",
    "baseline": "the student alone",
    "distillation": "the student, distilled",
    "int8_after": "the same file in int8",
}
# Rows of the table of times, and the figures of the benchmark that fill them.
TIMES = {
    "keras_distill": ("KD, logits / the parts", "KD, 3 taps / the parts"),
    '`teacher_dtype="bfloat16"`': ("KD, logits, bfloat16 teacher / the parts", None),
    "keras.distillation": (
        "keras.distillation, logits / the parts",
        "keras.distillation, 3 taps / the parts",
    ),
    "PyTorch loop": ("PyTorch KD / the parts", None),
    "PyTorch loop, channels-last": ("PyTorch KD, channels-last / the parts", None),
}


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


def alone(results):
    """What each group's gains refer to: the accuracy of its first row, ± standard deviation."""
    first = {}
    for entry in results["comparison"]:
        first.setdefault(entry["group"], entry["accuracy"])
    return ", ".join(
        f"{100 * found['mean']:.2f} ± {100 * found['deviation']:.2f} %"
        f"{f' ({group})' if group else ''}"
        for group, found in first.items()
    )


def gains(folder=RESULTS):
    """The Markdown of what the methods gained."""
    known, parts = methods(), []
    for name in SHOWN:
        path = folder / f"{name}.json"
        if path.exists():
            results = json.loads(path.read_text(encoding="utf-8"))
            data = results["dataset"]
            training = results["comparison"][0]["records"][0]["settings"]["training"]
            parts.append(
                f"**[{results['title']}](results/{name}.md)** ({data['name']}, {data['train']:,} "
                f"training images, {training['epochs']} epochs of SGD from "
                f"{training['learning_rate']:g}; alone {alone(results)}; "
                f"`{results['command']}`):"
            )
            parts.append("\n".join([*GAIN_HEADS, *lines(results, known)]))
    return "\n\n".join(parts)


def speed(folder=RESULTS):
    """The Markdown of what a step costs."""
    path = folder / "benchmark" / "cpu.json"
    if not path.exists():
        return ""
    run = json.loads(path.read_text(encoding="utf-8"))
    settings, versions = run["settings"]["steps"], run["versions"]

    def cell(figure):
        if figure not in run["figures"]:
            return ""
        found = run["figures"][figure]
        return f"{found['processor']['median']:.2f} / {found['wall']['median']:.2f}"

    rows = [
        f"| {name} | {cell(one)} | {cell(two)} |"
        for name, (one, two) in TIMES.items()
        if one in run["figures"]
    ]
    peers = f", PyTorch {versions['torch']}" if versions.get("torch") else ""
    about = (
        f"ResNet-{settings['teacher_depth']} to ResNet-{settings['student_depth']}, batch "
        f"{settings['batch_size']}, medians of {settings['rounds']} interleaved rounds on "
        f"{run['machine']['cores']} cores, Keras {versions['keras']}, TensorFlow "
        f"{versions['tensorflow']}{peers} "
        "([JSON](results/benchmark/cpu.json), `python scripts/benchmark.py --all`)"
    )
    return f"{about}:\n\n" + "\n".join([*SPEED_HEADS, *rows])


def picture(folder=RESULTS):
    """The Markdown of the picture: accuracy against size and latency, and what it shows."""
    path = folder / "compression.json"
    if not path.exists():
        return ""
    results = json.loads(path.read_text(encoding="utf-8"))
    entries = {entry["id"]: entry for entry in results["comparison"]}
    data = results["dataset"]

    def said(name, words):
        records = entries[name]["records"]
        size = statistics.mean(record["bytes"] for record in records)
        times = [1000 * record["latency_ms"] for record in records]
        found = entries[name]["accuracy"]
        return (
            f"{words} {100 * found['mean']:.1f} ± {100 * found['deviation']:.1f} %, "
            f"{size / 1000:.0f} kB, {statistics.mean(times):.1f} ± {statistics.stdev(times):.1f} µs"
        )

    shown = "; ".join(said(name, words) for name, words in PICTURED.items() if name in entries)
    return (
        f"![{results['title']}](docs/figures/compression.png)\n\n"
        f"TF Lite files for {data['name']}, {data['train']:,} training images, means of "
        f"{len(results['seeds'])} seeds ± standard deviation: {shown} an image on one core "
        f"([all rows](results/compression.md), `{results['command']}`)."
    )


BLOCKS = {"picture": picture, "gains": gains, "speed": speed}


def written(text, name, new):
    """The README's text with a block in its place.

    Raises:
        ValueError: If the marks are not there.
    """
    begin, end = f"<!-- {name}: scripts/readme_figures.py -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not found or not last:
        raise ValueError(f"Expected {begin} and {end} in the README. Received: not both.")
    return "\n\n".join(part for part in (before + begin, new, end + after) if part)


def main(given=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(given)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = text
    for name, block in BLOCKS.items():
        new = written(new, name, block())
    if options.check:
        print("README.md has the figures of results/" if new == text else "README.md differs")
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
