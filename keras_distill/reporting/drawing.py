"""Figures of numbers: each function draws what one of `summaries` or `features` returns."""

import numpy as np

from keras_distill.reporting import style
from keras_distill.reporting.style import TEXT
from keras_distill.reporting.style import label

DASHES = {"training images": "-", "validation images": "--", "test images": ":"}
FEW = 10  # images; the accuracy of fewer is chance
COSTS = {
    "bytes": (1e-3, "kB on disk (logarithmic)"),
    "latency_ms": (1.0, "milliseconds an image (logarithmic)"),
}


def training_curves(data):
    """A panel each value: thin lines are seeds, thick ones their mean."""
    panels = data["panels"]
    figure, axes = style.grid(len(panels), columns=2, width=1.95, height=1.65)
    models, kinds = {}, {}
    for axis, panel in zip(axes, panels):
        for curve in panel["curves"]:
            models.setdefault(curve["model"], curve["colour"])
            kinds.setdefault(curve["kind"])
            _curve(axis, curve)
        axis.set_title(label(panel["name"], 26), fontsize=TEXT, loc="left")
        axis.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    last = max(1, len(axes) - 2)
    for axis in axes[last if len(axes) > 1 else 0 :]:
        axis.set_xlabel("epoch", fontsize=TEXT - 0.5)
    handles = [style.line(colour) for colour in models.values()]
    names = [label(model) or "model" for model in models]
    if len(kinds) > 1 or list(kinds) != ["training images"]:
        handles += [style.line(style.GREY, DASHES[kind]) for kind in kinds]
        names += list(kinds)
    _legend(figure, handles, names)
    return figure


def _curve(axis, curve):
    colour, dashes = curve["colour"], DASHES[curve["kind"]]
    by_epoch = {}
    for seed in curve["seeds"]:
        for epoch, value in zip(seed["epochs"], seed["values"]):
            by_epoch.setdefault(epoch, []).append(value)
        if len(curve["seeds"]) > 1:
            axis.plot(seed["epochs"], seed["values"], dashes, color=colour, lw=0.5, alpha=0.35)
    epochs = sorted(by_epoch)
    means = [np.mean(by_epoch[epoch]) for epoch in epochs]
    axis.plot(epochs, means, dashes, color=colour, lw=1.4, marker="o" if len(epochs) == 1 else None)


def accuracies(data):
    """The accuracy of each model: mean, standard error, and a dot for each seed."""
    models = data["models"]
    figure, axis = style.single(height=0.7 + 0.42 * len(models))
    for i, model in enumerate(models):
        values, mean, colour = model["values"], model["mean"], model["colour"]
        axis.scatter(values, np.full(len(values), i), s=12, color=colour, alpha=0.4, lw=0)
        axis.errorbar(mean, i, xerr=model["error"], fmt="o", ms=6, capsize=3, color=colour)
        text = f"{mean:.1f}" + ("" if model["error"] is None else f" ± {model['error']:.1f}")
        axis.annotate(
            text, (mean, i), (0, 6), textcoords="offset points", ha="center", fontsize=TEXT
        )
    axis.set_yticks(range(len(models)), [label(model["name"], 22) for model in models])
    axis.set_ylim(len(models) - 0.5, -0.75)
    axis.margins(x=0.14)
    axis.set_xlabel("test accuracy in %", fontsize=TEXT)
    axis.grid(axis="x", alpha=0.3)
    return figure


def accuracy_by_cost(data):
    """Accuracy against a cost: dots are models, squares exported files."""
    from matplotlib import ticker

    points, (scale, words) = data["points"], COSTS[data["cost"]]
    figure, axis = style.single(height=2.7 + 0.17 * len(points))
    for point in points:
        marker = {"model": "o", "file": "s"}[point["kind"]]
        # Open squares: files of one size and accuracy stay apart from the model's dot.
        face = point["colour"] if marker == "o" else "none"
        axis.scatter(
            scale * point["cost"],
            point["accuracy"],
            60,
            facecolors=face,
            edgecolors=point["colour"],
            linewidths=1.6,
            marker=marker,
            label=label(point["name"], 40),
        )
    axis.set_xscale("log")
    costs = [scale * point["cost"] for point in points]
    if max(costs) < 30 * min(costs):  # else a tick a decade will do
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    axis.set_xlabel(words, fontsize=TEXT)
    axis.set_ylabel("test accuracy in %", fontsize=TEXT)
    axis.margins(0.14)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=1, fontsize=TEXT - 0.5, frameon=False)
    return figure


def reliability(data):
    """Accuracy over confidence; a calibrated model lies on the diagonal."""
    figure, axis = style.single(height=3.6)
    axis.plot([0, 100], [0, 100], color=style.GREY, linestyle=":", lw=1)
    for model in data["models"]:
        confidence, accuracy, shares = (
            100 * np.array(model[key]) for key in ("confidence", "accuracy", "shares")
        )
        enough = shares / 100 * data["samples"] > FEW - 0.5
        if enough.any():
            confidence, accuracy, shares = (
                values[enough] for values in (confidence, accuracy, shares)
            )
        text = f"{label(model['name'])}: calibration error {100 * model['error']:.1f} %"
        axis.plot(confidence, accuracy, color=model["colour"], lw=1.4, label=text)
        axis.scatter(confidence, accuracy, 10 + 2 * shares, color=model["colour"], alpha=0.6, lw=0)
    axis.set(xlim=(0, 103), ylim=(-3, 103))
    axis.set_xlabel("confidence in %", fontsize=TEXT)
    axis.set_ylabel("accuracy in %", fontsize=TEXT)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=1, fontsize=TEXT - 0.5, frameon=False)
    return figure


def agreement(data):
    """A square for each two models: the share of images on which they say the same."""
    names = [label(name, 20) for name in data["names"]]
    side = 0.55 if len(names) < 7 else 0.36
    figure, axis = style.single(max(2.0 + side * len(names), 3.2), 1.2 + side * len(names))
    _heatmap(axis, data["shares"], names, names, least=0.005)
    return figure


def layer_similarity(data):
    """CKA of each layer of the reference (rows) with each of another network (columns)."""
    reference, maps = data["reference"], data["maps"]
    rows = _tails(reference["layers"])
    heights = [0.95 + 0.27 * len(rows)] * len(maps)
    figure = style.figure(style.WIDTH, sum(heights))
    for i, panel in enumerate(maps):
        axis = figure.add_subplot(len(maps), 1, i + 1)
        style.tidy(axis)
        _heatmap(axis, panel["values"], rows, _tails(panel["layers"]), least=-1, aspect="auto")
        axis.set_title(label(panel["name"], 40), fontsize=TEXT, loc="left")
        axis.set_ylabel(label(reference["name"], 30), fontsize=TEXT - 0.5)
    return figure


def _heatmap(axis, values, rows, columns, least, aspect="equal"):
    """A table of shares, with their percents."""
    values = np.array(values, "float64")
    axis.imshow(np.clip(values, 0, 1), cmap="Blues", vmin=0, vmax=1, aspect=aspect)
    size = TEXT - 0.5 if len(columns) < 9 else TEXT - 1.5
    for (row, column), value in np.ndenumerate(values):
        if value >= least:
            colour = "white" if value > 0.55 else "black"
            text = f"{100 * value:.0f}"
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
    style.blank(axis)
    axis.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0, labelsize=TEXT - 1)


def _tails(paths):
    """Paths of layers without their beginning, where they are long."""
    return [label(path if len(path) < 17 else "…" + path[-15:], 17) for path in paths]


def early_exits(data):
    """Accuracy over computation: the curve of thresholds, and each exit alone."""
    figure, axis = style.single(height=3.4)
    colour, curve, exits = data["colour"], data["curve"], data["exits"]
    axis.plot(
        [100 * point["compute"] for point in curve],
        [100 * point["accuracy"] for point in curve],
        color=colour,
        lw=1.4,
        marker="o",
        ms=3,
        label="each image at the first exit that is sure",
    )
    axis.scatter(
        [100 * point["compute"] for point in exits],
        [100 * point["accuracy"] for point in exits],
        50,
        marker="s",
        facecolors="none",
        edgecolors=style.GREY,
        linewidths=1.5,
        label="all images at one exit",
    )
    for point in exits:
        axis.annotate(
            label(point["name"], 18),
            (100 * point["compute"], 100 * point["accuracy"]),
            (0, -12),
            textcoords="offset points",
            ha="center",
            fontsize=TEXT - 1,
        )
    axis.axvline(100, color=style.GREY, linestyle=":", lw=1)
    axis.set_xlabel("multiply-adds in % of the network without exits", fontsize=TEXT)
    axis.set_ylabel("accuracy in %", fontsize=TEXT)
    axis.margins(0.15)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=1, fontsize=TEXT - 0.5, frameon=False)
    return figure


def _legend(figure, handles, names):
    columns = 2 if max(map(len, names)) < 24 else 1
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, fontsize=TEXT - 0.5,
        frameon=False,
    )  # fmt: skip
