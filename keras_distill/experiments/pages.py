"""The page and the figure of an experiment, made from its `results/NAME.json` alone."""

from keras_distill import reporting
from keras_distill.experiments import claims
from keras_distill.reporting import drawing_rows
from keras_distill.reporting import tables

DEVIATION = 0.8  # points
COPIES = (
    "In the prepared CIFAR-10 behind this project's own figures 41,664 of 50,000 training and "
    "8,983 of 10,000 test images are JPEG copies of the originals: compare the rows with each "
    "other, not with published figures."
)


def page(results, experiment=None, figure=None):
    """The Markdown of an experiment: question, data, figure, tables and verdicts.

    Args:
        results: What `results/NAME.json` holds.
        experiment: The `Experiment`, for its own columns and tables; None for the common ones.
        figure: The address of the figure, as the page names it; None for none.
    """
    parts = [f"# {results['title']}", results["question"]]
    parts.append(f"Made by `{results['command']}`. {conditions(results)}")
    parts += _planned(results)
    if figure:
        parts.append(f"![Figure: {results['title']}]({figure})")
    columns = experiment.columns if experiment else {}
    own = experiment.tables(results) if experiment and experiment.tables else []
    for table in [*comparison_tables(results, columns), *own]:
        parts.append(f"**{table.title}**")
        parts.append(table.markdown())
    parts.append("\n".join(_legend(results)))
    if results["claims"]:
        parts += ["## The claims", verdicts(results), _on_verdicts(results)]
    if results["remarks"]:
        parts.append("## What to keep in mind")
        parts.append("\n".join(f"- {line}" for line in results["remarks"]))
    return "\n\n".join(parts) + "\n"


def conditions(results):
    """Sentences: data, networks, epochs and seeds, and what computed."""
    data, seeds = results["dataset"], len(results["seeds"])
    sides = " x ".join(map(str, data["image_shape"]))
    lines = [
        f"{data['name']}: {data['train']:,} training images of {sides} and {data['test']:,} test "
        f"images; {_count(seeds, 'seed')}; scale `{results['scale']}`",
        *_networks(results),
        ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    ]
    text = "; ".join(lines) + "."
    return f"{text} {COPIES}" if data["name"].startswith("cifar10") else text


def _planned(results):
    """What the seeds were expected to show, from the deviations of a study before."""
    seeds = len(results["seeds"])
    # The study before had the networks of the options, not those that `networks` tells.
    if seeds < 2 or not _has_accuracy(results) or "networks" in results:
        return []
    fewer = {}
    for entry in results["comparison"]:
        if len(entry["records"]) < seeds:
            fewer.setdefault(len(entry["records"]), []).append(entry["id"])
    others = [
        f"{_count(count, 'seed')} ({', '.join(names)}) {_shown_by(count)}"
        for count, names in sorted(fewer.items(), reverse=True)
    ]
    return [
        f"Planned before the runs: a study before had deviations of about {DEVIATION:g} points "
        f"between paired seeds, so that {seeds} seeds can show {_shown_by(seeds)}"
        f"{''.join(f', {other}' for other in others)}; what they could show in fact stands beside "
        "each difference."
    ]


def _shown_by(seeds):
    if seeds < 2:
        return "none"
    return f"a difference of {claims.limit(seeds) * DEVIATION / seeds**0.5:.1f} points"


def _has_accuracy(results):
    return any("accuracy" in entry for entry in results["comparison"])


def _count(number, thing):
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _networks(results):
    """What `networks` of the results says, or else the options and the first row's training."""
    if "networks" in results:
        return [results["networks"]]
    options = results["settings"]["options"]
    lines = [f"students `{options['student']}`"]
    if options["teacher"] != options["student"]:
        lines.append(f"larger networks `{options['teacher']}`")
    training = results["comparison"][0]["records"][0]["settings"]["training"]
    rate = "falling to 0 along half a cosine" if training["cosine"] else "falling in steps"
    lines.append(
        f"{_count(training['epochs'], 'epoch')} of batch {training['batch_size']}, SGD from "
        f"{training['learning_rate']:g}, {rate}, weight decay {training['weight_decay']:g}, "
        f"{'with' if training['augment'] else 'without'} augmentation"
    )
    return lines


def comparison_tables(results, columns=None):
    """A `kd.reporting.Table` for each group of the comparison.

    Args:
        results: What `results/NAME.json` holds.
        columns: As in `Experiment`.
    """
    groups = {}
    for entry in results["comparison"]:
        groups.setdefault(entry["group"], []).append(entry)
    return [_table(group, entries, columns or {}) for group, entries in groups.items()]


def _table(group, entries, columns):
    cells = {
        "last %": lambda entry: _spread(entry.get("accuracy")),
        "best %": lambda entry: _spread(entry.get("best_accuracy")),
        "gain, last": lambda entry: _points(entry.get("gain")),
        "gain, best": lambda entry: _points(entry.get("best_gain")),
        "seeds could show": _smallest,
        **columns,
        "seeds": lambda entry: str(len(entry["records"])),
        "images, student": lambda entry: _images(entry, ("student",)),
        "images, all": lambda entry: _images(entry, ("student", "peers", "frozen", "before")),
        "seconds": _seconds,
    }
    found = {head: [cell(entry) for entry in entries] for head, cell in cells.items()}
    kept = {head: own for head, own in found.items() if set(own) != {tables.MISSING}}
    names = [entry["name"] for entry in entries]
    title = group[:1].upper() + group[1:] if group else "Rows"
    return reporting.Table(title, ("row", *kept), tuple(zip(names, *kept.values())))


def spread(values, digits=2, scale=1.0):
    """Mean ± standard deviation of the numbers of an entry's records, as a cell.

    Args:
        values: Numbers, one a seed; None among them, or no number, leave the cell empty.
        digits: Behind the point.
        scale: Factor of all.
    """
    values = list(values)
    if not values or None in values:
        return tables.MISSING
    mean, error = tables.mean_and_error([scale * value for value in values])
    text = f"{mean:.{digits}f}"
    return text if error is None else f"{text} ± {error * len(values) ** 0.5:.{digits}f}"


def column(key, digits=2, scale=1.0):
    """A cell of a number that records have, for `Experiment.columns`."""
    return lambda entry: spread(
        [record.get(key) for record in entry["records"]], digits=digits, scale=scale
    )


def _spread(found):
    if found is None:
        return tables.MISSING
    text = f"{100 * found['mean']:.2f}"
    return text if found["deviation"] is None else f"{text} ± {100 * found['deviation']:.2f}"


def _points(found):
    if found is None:
        return tables.MISSING
    text = f"{100 * found['mean']:+.2f}"
    return text if found["error"] is None else f"{text} ± {100 * found['error']:.2f}"


def _smallest(entry):
    gain = entry.get("gain") or {}
    if gain.get("error") is None:
        return tables.MISSING
    return f"{100 * claims.limit(gain['seeds']) * gain['error']:.2f}"


def _images(entry, kinds):
    images = entry["records"][0].get("images")
    return tables.MISSING if images is None else f"{sum(images[kind] for kind in kinds):,}"


def _seconds(entry):
    seconds = [record["seconds"] for record in entry["records"] if "seconds" in record]
    return f"{sum(seconds) / len(seconds):.0f}" if seconds else tables.MISSING


def _legend(results):
    rows = [f"- {entry['id']}: {entry['what']}" for entry in results["comparison"] if entry["what"]]
    if not _has_accuracy(results):
        return rows
    every = results["comparison"]
    best = any("best_accuracy" in entry for entry in every)
    images = any(_images(entry, ("student",)) != tables.MISSING for entry in every)
    looks = ", and the best of the epochs looked at (chosen on the test images, so too high for all"
    forwarded = (
        " Images forwarded: by the student with a gradient, and by all networks, those trained "
        "before among them."
    )
    about = (
        f"Accuracy on the test images after the last epoch{f'{looks} rows)' if best else ''}: mean "
        "± standard deviation over the seeds. Gains in points over the first row of a table, seed "
        "by seed, ± standard error; what the seeds could show is the smallest gain of the last "
        "epoch that they would tell from none. All seeds train on the same images, so that "
        "deviations and errors are those of initial weights and order"
        f"{_noise(results)}, not of the choice of images.{forwarded if images else ''} Seconds: of "
        "one result, with all trainings that it takes."
    )
    return [about, "", *rows] if rows else [about]


def _noise(results):
    records = [record for entry in results["comparison"] for record in entry["records"]]
    noisy = any(record.get("noise") for record in records)
    return " and, where labels are wrong, of which ones are" if noisy else ""


def verdicts(results):
    """The table of claims as Markdown."""
    rows = []
    for claim in results["claims"]:
        measured = "; ".join(claims.said(found) for found in claim["differences"])
        rows.append((claim["claim"], claim["source"], claim["verdict"], measured))
    heads = ("claim", "source", "here", "measured: mean difference ± standard error")
    lines = reporting.Table("", heads, tuple(rows)).markdown().split("\n")
    lines[1] = "| --- | --- | --- | --- |"  # all of it is text
    return "\n".join(lines)


def _on_verdicts(results):
    count = len(results["claims"])
    return (
        "A claim agrees, or does not, where the mean difference, taken seed by seed, exceeds "
        "Student's 95 % limit for its seeds, the smallest difference that they could show; else it "
        "cannot be told. One comparison in twenty exceeds it by chance where there is nothing; "
        f"here are {_count(count, 'claim')}. A claim of several parts agrees "
        "where each part does."
    )


def figure(results):
    """The rows' accuracies, a panel each group.

    Raises:
        ImportError: If matplotlib is missing; it names the extra.
    """
    panels = {}
    for entry in results["comparison"]:
        values = [100 * value for value in entry["accuracy"]["values"]]
        mean, error = tables.mean_and_error(values)
        row = {"name": entry["name"], "values": values, "mean": mean, "error": error}
        panels.setdefault(entry["group"], []).append(row)
    return drawing_rows.rows(
        [{"title": group, "rows": rows} for group, rows in panels.items()],
        "test accuracy in %",
    )
