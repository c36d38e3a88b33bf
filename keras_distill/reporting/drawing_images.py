"""Figures with example images: each function draws what one of `summaries` or `features` returns.

All take the images too, an array (samples, height, width, channels), whose places the data names.
"""

import numpy as np

from keras_distill.reporting import style
from keras_distill.reporting.style import TEXT
from keras_distill.reporting.style import label

SMALL = TEXT - 1


def soft_targets(data, images):
    """A row a class: an image of it, and the mean soft target as a table.

    The colour is the square root of the share, so that small ones are seen.
    """
    classes = data["classes"]
    count = len(classes)
    shares = np.array([entry["shares"] for entry in classes], "float64")
    cell = max(0.3, min(0.5, 3.0 / (count + 1)))
    figure, axis = style.single(max(1.0 + cell * (count + 1.2), 3.2), 0.9 + cell * count)
    axis.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    for row, entry in enumerate(classes):
        style.photograph(axis, images[entry["image"]], -1.65, row - 0.47, 0.94)
        for column in range(count):
            share = 100 * shares[row, column]
            if share >= 0.5:
                colour = "white" if share > 35 else "black"
                axis.text(
                    column, row, f"{share:.0f}", ha="center", va="center", color=colour,
                    fontsize=SMALL,
                )  # fmt: skip
    style.blank(axis)
    axis.set_xlim(-1.75, count - 0.5)
    axis.set_ylim(count - 0.5, -0.5)
    names = [label(entry["name"], 12) for entry in classes]
    turned = max(map(len, names)) > 3
    axis.set_xticks(
        range(count), names, rotation=40 if turned else 0, ha="right" if turned else "center",
        rotation_mode="anchor",
    )  # fmt: skip
    axis.set_yticks(range(count), names)
    axis.tick_params(labelsize=SMALL, length=0)
    axis.set_xlabel("the teacher's mean soft target in %", fontsize=TEXT)
    axis.set_ylabel("true class", fontsize=TEXT)
    return figure


def confusions(data, images):
    """A row a pair of classes: the images of the one that look most like the other."""
    pairs = data["pairs"]
    most = max(len(pair["examples"]) for pair in pairs)
    figure, axis = _gallery(1.7 + most, 1.24 * len(pairs))
    for row, pair in enumerate(pairs):
        top = 1.24 * row
        words = f"{label(pair['true'], 14)}\nas {label(pair['other'], 14)}"
        _words(axis, 0, top + 0.1, f"{words}\n{100 * pair['share']:.0f} % on average")
        for i, example in enumerate(pair["examples"]):
            style.photograph(axis, images[example["image"]], 1.7 + i, top, 0.94)
            _words(axis, 2.17 + i, top + 0.97, f"{100 * example['share']:.0f} %", ha="center")
    return figure


def disagreements(data, images):
    """The images on which two models differ most, with the answers of both."""
    heading = f"{data['count']} of {data['samples']} images get different answers"
    examples = data["examples"]
    if not examples:
        figure, axis = style.single(style.WIDTH, 0.8)
        style.blank(axis)
        axis.text(0.5, 0.5, heading, ha="center", va="center", fontsize=TEXT)
        return figure
    columns = min(3, len(examples))
    rows = -(-len(examples) // columns)
    figure, axis = _gallery(1.5 * 3, 1.72 * rows)
    for i, example in enumerate(examples):
        left, top = 1.5 * (i % columns), 1.72 * (i // columns)
        style.photograph(axis, images[example["image"]], left, top, 1.15)
        truth = "unknown" if example["true"] is None else label(example["true"], 14)
        lines = [f"true: {truth}"]
        for name, answer in zip(data["names"], example["answers"]):
            share = f"{100 * answer['share']:.0f} %"
            lines.append(f"{label(name, 9)}: {label(answer['class'], 8)}, {share}")
        _words(axis, left, top + 1.18, "\n".join(lines))
    axis.set_title(heading, fontsize=TEXT, loc="left")
    return figure


def channel_responses(data, images):
    """A row a network: for each of a few channels the four images that it answers most."""
    entries = data["networks"]
    step, tall = 1.12, 1.6
    most = max([len(entry["channels"]) for entry in entries] + [1])
    figure, axis = _gallery(step * most, tall * len(entries))
    for row, entry in enumerate(entries):
        top = tall * row
        matched = entry["matched"]
        note = "" if matched is None else f", match {100 * matched:.0f} %"
        axis.text(
            0, top + 0.02, f"{label(entry['name'], 40)}{note}", ha="left", va="top", fontsize=TEXT,
            color=entry["colour"], fontweight="bold",
        )  # fmt: skip
        if not entry["channels"]:
            _words(axis, 0, top + 0.3, "no channel responds")
        for i, channel in enumerate(entry["channels"]):
            for k, place in enumerate(channel["images"]):
                left, below = step * i + 0.5 * (k % 2), top + 0.25 + 0.5 * (k // 2)
                style.photograph(axis, images[place], left, below, 0.48)
            classes = list(dict.fromkeys(channel["classes"]))
            words = f"{channel['channel']}: {', '.join(map(str, classes))}"
            _words(axis, step * i, top + 1.27, label(words, 16))
    return figure


def _gallery(wide, tall):
    """A figure of the usual width whose y grows downwards, in units of an image's side."""
    unit = style.WIDTH / wide
    figure, axis = style.single(style.WIDTH, unit * tall + 0.25)
    style.blank(axis)
    axis.set_aspect("equal")
    axis.set_autoscale_on(False)
    axis.set_xlim(0, wide)
    axis.set_ylim(tall, 0)
    return figure, axis


def _words(axis, left, top, text, ha="left"):
    axis.text(left, top, text, ha=ha, va="top", fontsize=SMALL, linespacing=1.15)
