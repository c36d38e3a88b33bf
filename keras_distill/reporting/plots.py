"""The pictures of a report: each function returns a matplotlib figure of its own."""

import numpy as np

from keras_distill._checks import message
from keras_distill.metrics import calibration_bins
from keras_distill.reporting.tables import mean_and_error

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#555555")
NO_CURVE = ("model", "seed", "epoch", "seconds", "learning_rate")
WIDTH = 4.8  # inches: so narrow that the text is readable on a phone
MOST_CLASSES = 12
MOST_PANELS = 12


def training_curves(records):
    """Each logged value (loss, every term, accuracy) over the epochs, a panel each.

    Args:
        records: The lines of `metrics.jsonl`. Thin lines are seeds, thick ones their
            mean, dashed ones validation.

    Returns:
        A figure, or None where nothing was logged.
    """
    logged = {}
    for record in records:
        for name, value in record.items():
            if name not in NO_CURVE and isinstance(value, (int, float)):
                logged.setdefault(name.removeprefix("val_"), True)
    panels = sorted(logged, key=lambda name: (name != "loss", name != "accuracy"))
    if not panels:
        return None
    models = list(dict.fromkeys(str(record.get("model", "")) for record in records))
    figure, axes = _grid(min(len(panels), MOST_PANELS), columns=2, width=2.5, height=2.1)
    for axis, panel in zip(axes, panels):
        for i, model in enumerate(models):
            mine = [record for record in records if str(record.get("model", "")) == model]
            for name, style in ((panel, "-"), (f"val_{panel}", "--")):
                _curve(axis, mine, name, style, _colour(i))
        axis.set_title(_label(panel, 30), fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.xaxis.get_major_locator().set_params(integer=True)
    handles = [_line(_colour(i), "-") for i in range(len(models))]
    labels = [_label(model) or "model" for model in models]
    if any(name.startswith("val_") for record in records for name in record):
        handles.append(_line("#555555", "--"))
        labels.append("validation")
    if len(panels) > MOST_PANELS:
        handles.append(_line("none", "-"))
        labels.append(f"and {len(panels) - MOST_PANELS} more in metrics.jsonl")
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def accuracies(models):
    """The accuracy of each model: mean, standard error, and a dot for each seed.

    Args:
        models: The entries `models` of the results.

    Returns:
        A figure.
    """
    figure, axis = _single(WIDTH, 0.9 + 0.5 * len(models))
    for i, model in enumerate(models):
        values = 100 * np.asarray(model["accuracy"], "float64")
        mean, error = mean_and_error(values)
        axis.errorbar(mean, i, xerr=error, fmt="o", markersize=7, capsize=4, color=_colour(i))
        axis.scatter(values, np.full(len(values), i), s=12, color=_colour(i), alpha=0.4)
        text = f"{mean:.1f}" if error is None else f"{mean:.1f} ± {error:.1f}"
        axis.annotate(text, (mean, i), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axis.set_yticks(range(len(models)), [_label(model["name"]) for model in models])
    axis.set_ylim(len(models) - 0.4, -0.7)
    axis.margins(x=0.12)
    axis.set_xlabel("test accuracy in %; small dots: seeds", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    return figure


def reliability_diagram(labels, probabilities, bins=15):
    """Accuracy over confidence; a calibrated model lies on the diagonal.

    Args:
        labels: int array of shape (samples,).
        probabilities: A dict of name -> array of shape (samples, classes).
        bins: Number of bins of confidence.

    Returns:
        A figure; areas tell the share of the samples in a bin.
    """
    figure, axis = _single(WIDTH, 4.2)
    axis.plot([0, 1], [0, 1], color="#888888", linestyle=":", linewidth=1)
    for i, (name, outputs) in enumerate(probabilities.items()):
        counts, confidence, accuracy = calibration_bins(labels, outputs, bins, from_logits=False)
        error = float(np.sum(counts * np.abs(accuracy - confidence)) / counts.sum())
        filled = counts > 0
        axis.plot(
            confidence[filled],
            accuracy[filled],
            color=_colour(i),
            label=f"{_label(name)}: calibration error {100 * error:.1f} %",
        )
        areas = 10 + 250 * counts[filled] / counts.sum()
        axis.scatter(confidence[filled], accuracy[filled], areas, color=_colour(i), alpha=0.5)
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(-0.03, 1.05))
    axis.legend(fontsize=8, loc="best")
    return figure


def dark_knowledge(images, labels, soft_targets, class_names, temperature=None):
    """What the teacher tells beside the label: its mean soft target for each class.

    Args:
        images: Array (samples, height, width, channels), uint8 or in 0..1.
        labels: int array of shape (samples,).
        soft_targets: The teacher's probabilities, shape (samples, classes).
        class_names: Names by label.
        temperature: Of the soft targets, for the title.

    Returns:
        A figure: a row a class, with the image whose soft target is nearest to the mean;
        the colour is the square root of the share, so that small ones are seen. Classes
        beyond the first 12 that occur are left out, as rows and as columns.
    """
    _check_samples(images, labels, soft_targets)
    shown = np.unique(labels[labels >= 0])[:MOST_CLASSES]
    means = np.stack([soft_targets[labels == label].mean(axis=0) for label in shown])
    grid = means[:, shown]
    count = len(shown)
    figure, axis = _single(max(1.2 + 0.38 * (count + 1), 3.0), 1.1 + 0.38 * count)
    axis.imshow(np.sqrt(grid), cmap="Blues", vmin=0, vmax=1, zorder=0)
    for row, label in enumerate(shown):
        mine = np.flatnonzero(labels == label)
        nearest = mine[np.argmin(np.abs(soft_targets[mine] - means[row]).sum(axis=1))]
        picture, options = _picture(images[nearest])
        axis.imshow(picture, extent=(-1.6, -0.65, row + 0.47, row - 0.47), **options)
        for column in range(count):
            share = 100 * grid[row, column]
            if share >= 0.5:
                colour = "white" if share > 35 else "black"
                axis.text(
                    column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=7
                )
    axis.set_xlim(-1.7, count - 0.5)
    axis.set_ylim(count - 0.5, -0.5)
    names = [_label(class_names[label], 14) for label in shown]
    axis.set_xticks(range(count), names, rotation=45 if max(map(len, names)) > 3 else 0)
    axis.set_yticks(range(count), names)
    axis.tick_params(labelsize=8, length=0)
    axis.set_xlabel("the teacher's soft target in %", fontsize=9)
    axis.set_ylabel("true class", fontsize=9)
    at = "" if temperature is None else f" at temperature {float(temperature):g}"
    axis.set_title(f"Mean soft targets{at}", fontsize=10)
    return figure


def disagreements(
    images, labels, teacher_probabilities, student_probabilities, class_names, most=12
):
    """The images on which student and teacher differ most, and what each of them says.

    Args:
        images: Array (samples, height, width, channels), uint8 or in 0..1.
        labels: int array of shape (samples,).
        teacher_probabilities: Shape (samples, classes).
        student_probabilities: Shape (samples, classes).
        class_names: Names by label.
        most: At most so many images, those first whose distributions differ most.

    Returns:
        A figure; it says so where the two never disagree.
    """
    _check_samples(images, labels, teacher_probabilities, student_probabilities)
    teacher, student = teacher_probabilities.argmax(-1), student_probabilities.argmax(-1)
    differing = np.flatnonzero(teacher != student)
    distance = np.abs(teacher_probabilities - student_probabilities).sum(-1)[differing]
    chosen = differing[np.argsort(-distance, kind="stable")][:most]
    heading = f"{len(differing)} of {len(labels)} images get different answers"
    if not len(chosen):
        figure, axis = _single(5.0, 1.2)
        axis.axis("off")
        axis.text(0.5, 0.5, heading, ha="center", va="center")
        return figure
    figure, axes = _grid(len(chosen), columns=3, width=1.6, height=2.1)
    for axis, i in zip(axes, chosen):
        picture, options = _picture(images[i])
        axis.imshow(picture, **options)
        axis.set_axis_off()
        truth = class_names[labels[i]] if labels[i] >= 0 else "unknown"
        axis.set_title(
            f"true: {_label(truth, 14)}\n"
            f"teacher: {_label(class_names[teacher[i]], 14)} "
            f"({100 * teacher_probabilities[i].max():.0f} %)\n"
            f"student: {_label(class_names[student[i]], 14)} "
            f"({100 * student_probabilities[i].max():.0f} %)",
            fontsize=7,
            loc="left",
        )
    figure.suptitle(heading, fontsize=10)
    return figure


def accuracy_by_size(models, exports):
    """Accuracy over bytes on disk, of the models and of the exported files.

    Args:
        models: The entries `models` of the results.
        exports: Its entries `exports`.

    Returns:
        A figure, or None where no entry has both.
    """
    points = [
        (entry["bytes"], 100 * mean_and_error(accuracy)[0], name, marker)
        for entries, key, marker in ((models, "name", "o"), (exports, "file", "s"))
        for entry in entries
        if entry.get("bytes")
        and (accuracy := _as_list(entry.get("accuracy")))
        and (name := entry[key])
    ]
    if not points:
        return None
    figure, axis = _single(WIDTH, 4.4)
    from matplotlib import ticker

    for i, (size, accuracy, name, marker) in enumerate(points):
        axis.scatter(
            size / 1e3, accuracy, 60, color=_colour(i), marker=marker, label=_label(name, 40)
        )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.set(xlabel="kB on disk (logarithmic)", ylabel="test accuracy in %")
    axis.margins(0.12)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def save(figure, path):
    """Writes a figure as PNG, 192 dots an inch, on white."""
    import warnings

    with warnings.catch_warnings():
        # Names in scripts that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(path, format="png", dpi=192, facecolor="white")


def _figure(width, height):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Pictures need matplotlib: pip install "keras-distill[plots]"') from error
    # Not through pyplot: no global state, no window, nothing to close.
    return Figure(figsize=(width, height), layout="constrained")


def _single(width, height):
    figure = _figure(width, height)
    return figure, figure.add_subplot()


def _grid(count, columns, width, height):
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = _figure(max(width * columns, 3.2), height * rows + 0.6)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _colour(i):
    return COLOURS[i % len(COLOURS)]


def _line(colour, style):
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=style)


def _curve(axis, records, name, style, colour):
    """Draws one logged value of one model: a line a seed, and their mean."""
    seeds, by_epoch = {}, {}
    for record in records:
        value = record.get(name)
        if isinstance(value, (int, float)):
            seeds.setdefault(record.get("seed"), []).append((record["epoch"] + 1, value))
            by_epoch.setdefault(record["epoch"] + 1, []).append(value)
    if len(seeds) > 1:
        for points in seeds.values():
            axis.plot(*zip(*points), linestyle=style, color=colour, linewidth=0.6, alpha=0.35)
    if by_epoch:
        epochs = sorted(by_epoch)
        means = [np.mean(by_epoch[epoch]) for epoch in epochs]
        marker = "o" if len(epochs) == 1 else None
        axis.plot(epochs, means, linestyle=style, color=colour, linewidth=1.5, marker=marker)


def _picture(image):
    """An image as `imshow` takes it, with the options for grey ones."""
    image = np.asarray(image)
    if image.shape[-1] == 1:
        return image[..., 0], {
            "cmap": "gray",
            "vmin": 0,
            "vmax": 255 if image.dtype.kind == "u" else 1,
        }
    if image.dtype.kind == "f":
        image = np.clip(image, 0.0, 1.0)
    return image[..., :3], {}


def _label(text, most=28):
    """A name as matplotlib shows it unchanged: cut, no mathematics, no hidden legend entry."""
    text = " ".join(str(text).split())
    text = text if len(text) <= most else text[: most - 1] + "…"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _as_list(value):
    return [value] if isinstance(value, (int, float)) else list(value or [])


def _check_samples(images, *arrays):
    if len(images) == 0 or any(len(array) != len(images) for array in arrays):
        sizes = [len(images), *map(len, arrays)]
        raise ValueError(message("as many labels and probabilities as images", "sizes", sizes))
