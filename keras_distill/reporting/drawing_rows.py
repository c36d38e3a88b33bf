"""Figures of experiments: rows of seeds with their means, and curves with their spread."""

from keras_distill.reporting import style
from keras_distill.reporting.style import TEXT
from keras_distill.reporting.style import label

INCHES = 0.27  # of a row


def rows(panels, words):
    """Each row's seeds as dots and their mean with its standard error; a dashed line at the first.

    Args:
        panels: Dicts of `title` and `rows`: dicts of `name`, `values`, `mean`, `error` (of the
            mean, or None), as in `summaries.accuracies`.
        words: What the values are, below the axis.

    Returns:
        A figure, its panels one below the other.
    """
    heights = [0.45 + INCHES * len(panel["rows"]) for panel in panels]
    figure = style.figure(1.5 * style.WIDTH, sum(heights) + 0.4)
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    axes = [figure.add_subplot(grid[i]) for i in range(len(panels))]
    for axis, panel in zip(axes, panels):
        style.tidy(axis)
        own = panel["rows"]
        axis.axvline(own[0]["mean"], color=style.GREY, linestyle="--", lw=0.8)
        for i, row in enumerate(own):
            colour = style.GREY if i == 0 else style.ROLES["teacher"]
            axis.scatter(row["values"], [i] * len(row["values"]), s=9, color=colour, alpha=0.4)
            axis.errorbar(row["mean"], i, xerr=row["error"], fmt="|", ms=9, capsize=2, color=colour)
        axis.set_yticks(range(len(own)), [label(row["name"], 32) for row in own])
        axis.set_ylim(len(own) - 0.5, -0.5)
        axis.margins(x=0.06)
        axis.grid(axis="x", alpha=0.3)
        if panel["title"]:
            axis.set_title(label(panel["title"], 60), fontsize=TEXT, loc="left")
    axes[-1].set_xlabel(words, fontsize=TEXT)
    return figure


def curves(panels, x, y):
    """Lines with dots, and a bar of their error at each; a panel a group, with axes of its own.

    Args:
        panels: Dicts of `title` and `lines`: dicts of `name`, `x`, `y` and `error` (numbers, or
            None for no bars), `line` (whether the dots are joined).
        x, y: Words for the axes.

    Returns:
        A figure.
    """
    names = list(dict.fromkeys(line["name"] for panel in panels for line in panel["lines"]))
    wide = 1.3 * style.WIDTH if len(panels) == 1 else style.WIDTH
    figure, axes = style.grid(len(panels), 2, wide, 2.4, 0.6 + 0.15 * len(names))
    colours = style.colours(names, roles={})
    shown = {}
    for axis, panel in zip(axes, panels):
        for line in panel["lines"]:
            shown[label(line["name"], 48)] = axis.errorbar(
                line["x"],
                line["y"],
                yerr=line.get("error"),
                fmt="-o" if line.get("line", True) else "o",
                ms=4,
                lw=1.2,
                capsize=2,
                color=colours[line["name"]],
            )
        axis.set_title(panel["title"], fontsize=TEXT, loc="left")
        axis.set_xlabel(x, fontsize=TEXT)
        axis.set_ylabel(y, fontsize=TEXT)
        axis.grid(alpha=0.3)
        axis.margins(0.08)
    figure.legend(
        shown.values(),
        shown,
        loc="outside lower center",
        ncols=min(2, len(panels)),
        fontsize=TEXT - 0.5,
        frameon=False,
    )
    return figure


def against_costs(points, costs, words):
    """Values against each of several costs, a panel each; a line joins what nothing beats.

    Args:
        points: Dicts of `name`, `mean`, `error` (or None) and `costs`, a dict of positive numbers.
        costs: A dict of the costs' names -> words for their axes.
        words: What the values are.

    Returns:
        A figure.
    """
    from matplotlib import ticker

    figure, axes = style.grid(len(costs), 2, 1.35 * style.WIDTH, 3.0, 0.2 + 0.16 * len(points))
    colours = style.colours([point["name"] for point in points], roles={})
    marks, taken = {}, []  # a colour that comes again has another shape
    for name, colour in colours.items():
        marks[name] = "os^v"[taken.count(colour) % 4]
        taken.append(colour)
    for axis, (cost, about) in zip(axes, costs.items()):
        best = front([(point["costs"][cost], point["mean"]) for point in points])
        axis.step(*zip(*best), where="post", color=style.GREY, lw=0.8, linestyle="--")
        for point in points:
            axis.errorbar(
                point["costs"][cost],
                point["mean"],
                yerr=point["error"],
                fmt=marks[point["name"]],
                ms=5,
                capsize=2,
                color=colours[point["name"]],
                label=label(point["name"], 48),
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_xlabel(f"{about} (logarithmic)", fontsize=TEXT)
        axis.grid(alpha=0.3)
        axis.margins(0.1)
    axes[0].set_ylabel(words, fontsize=TEXT)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=2, fontsize=TEXT - 0.5, frameon=False
    )
    return figure


def front(points):
    """The (cost, value) pairs that no other beats in both, the cheapest first."""
    best = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best
