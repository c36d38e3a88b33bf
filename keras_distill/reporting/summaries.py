"""What the pictures show, as plain data: numbers, names and places of images, ready for JSON.

Each function takes arrays or the entries of `results.json` and returns a dict that holds
nothing but strings, numbers, lists and dicts; `drawing` makes figures of them. Images are named
by their place among those given.
"""

import collections
import re

import numpy as np

from keras_distill._checks import is_number
from keras_distill._checks import message
from keras_distill.metrics import calibration_bins
from keras_distill.metrics import teacher_agreement
from keras_distill.reporting import style
from keras_distill.reporting.tables import mean_and_error

NO_CURVE = ("model", "seed", "epoch", "seconds", "learning_rate")
KINDS = {"": "training images", "val_": "validation images", "test_": "test images"}
MOST_CLASSES = 12
MOST_PANELS = 12


def training_curves(records, colours=None):
    """Each logged value (loss, every term, accuracy) over the epochs.

    Args:
        records: The lines of `metrics.jsonl`: dicts with `epoch` and numbers.
        colours: A dict of model -> colour.

    Returns:
        `panels`: a list of `name` and `curves`, each with `model`, `colour`, `kind` (of images)
        and `seeds`, a list of `seed`, `epochs` (from 1) and `values`; `left_out`: number of
        values beyond the first twelve. None where nothing was logged.
    """
    records = [record for record in records if is_number(record.get("epoch"))]
    models = list(dict.fromkeys(str(record.get("model", "")) for record in records))
    colours = style.colours([*(colours or {}), *models]) | (colours or {})
    together = _of_members(records)
    logged = {}
    for record in records:
        model, seed = (str(record.get(key, "")) for key in ("model", "seed"))
        for name, value in record.items():
            if name not in NO_CURVE and is_number(value) and np.isfinite(value):
                kind = next((prefix for prefix in KINDS if prefix and name.startswith(prefix)), "")
                bare = name.removeprefix(kind)
                panel = together.get(bare, bare)
                line = seed if panel == bare else f"{seed} {bare}"
                curves = logged.setdefault(panel, {}).setdefault((model, kind), {})
                curves.setdefault(line, []).append((record["epoch"], value))
    order = sorted(logged, key=lambda name: (name != "loss", name != "accuracy"))
    if not order:
        return None
    panels = [
        {
            "name": name,
            "curves": [
                {
                    "model": model,
                    "colour": colours[model],
                    "kind": KINDS[kind],
                    "seeds": [
                        {
                            "seed": seed,
                            "epochs": [epoch + 1 for epoch, _ in points],
                            "values": [value for _, value in points],
                        }
                        for seed, points in seeds.items()
                    ],
                }
                for (model, kind), seeds in logged[name].items()
            ],
        }
        for name in order[:MOST_PANELS]
    ]
    return {"panels": panels, "left_out": len(order) - len(panels)}


def _of_members(records):
    """A dict of name -> common name, of losses that three or more members log: `member1_loss`."""
    names = {name for record in records for name in record}
    groups = collections.defaultdict(list)
    for name in names:
        match = re.fullmatch(r"([A-Za-z]+)\d+_loss", name)
        if match:
            groups[f"{match[1]}_loss"].append(name)
    several = {common: own for common, own in groups.items() if len(own) > 2}
    return {name: common for common, own in several.items() for name in own if common not in names}


def accuracies(models, colours=None):
    """Accuracy of each model: `mean`, `error` (of the mean), `values` (one a seed), in percent.

    Args:
        models: The entries `models` of the results.
        colours: A dict of name -> colour.
    """
    colours = colours or style.colours(model["name"] for model in models)
    entries = []
    for model in models:
        values = [100 * value for value in model["accuracy"]]
        mean, error = mean_and_error(values)
        entry = {"name": model["name"], "colour": colours[model["name"]]}
        entries.append({**entry, "mean": mean, "error": error, "values": values})
    return {"models": entries}


def accuracy_by_cost(models, exports, cost, colours=None):
    """Accuracy in percent against bytes or milliseconds.

    Args:
        models: The entries `models` of the results.
        exports: Its entries `exports`.
        cost: "bytes" or "latency_ms".
        colours: A dict of name -> colour.

    Returns:
        `cost`, and `points`: a list of `name`, `kind` ("model" or "file"), `colour`, `cost` and
        `accuracy`. None where no entry has both.
    """
    names = [model["name"] for model in models]
    colours = dict(colours or style.colours(names))
    files = [export["file"] for export in exports]
    free = [colour for colour in style.OTHERS if colour not in colours.values()] or style.OTHERS
    of_files = {name: free[i % len(free)] for i, name in enumerate(files)}
    points = []
    for kind, key, entries, palette in (
        ("model", "name", models, colours),
        ("file", "file", exports, of_files),
    ):
        for entry in entries:
            shares = entry.get("accuracy")
            shares = [shares] if is_number(shares) else shares
            if shares and is_number(entry.get(cost)) and entry[cost] > 0:
                mean = 100 * mean_and_error(shares)[0]
                point = {"name": entry[key], "kind": kind, "colour": palette[entry[key]]}
                points.append({**point, "cost": entry[cost], "accuracy": mean})
    return {"cost": cost, "points": points} if points else None


def reliability(labels, probabilities, colours=None, bins=15):
    """Confidence against accuracy, by bins of confidence.

    Args:
        labels: int array of shape (samples,); negative ones are left out.
        probabilities: A dict of name -> array of shape (samples, classes).
        colours: A dict of name -> colour.
        bins: Number of bins.

    Returns:
        `models`: a list of `name`, `colour`, `error` (expected calibration error, a share), and
        for each bin that is not empty `shares` (of the samples), `confidence`, `accuracy`.
    """
    colours = colours or style.colours(probabilities)
    models = []
    for name, outputs in probabilities.items():
        counts, confidence, accuracy = calibration_bins(labels, outputs, bins, from_logits=False)
        shares = counts / counts.sum()
        models.append(
            {
                "name": name,
                "colour": colours[name],
                "error": float(np.sum(shares * np.abs(accuracy - confidence))),
                "shares": shares[counts > 0].tolist(),
                "confidence": confidence[counts > 0].tolist(),
                "accuracy": accuracy[counts > 0].tolist(),
            }
        )
    return {"models": models, "samples": int(np.sum(np.asarray(labels) >= 0)), "bins": bins}


def agreement(probabilities):
    """The share of samples on which each two models name the same class.

    Args:
        probabilities: A dict of name -> array of shape (samples, classes).

    Returns:
        `names`, `shares` (a square table) and `samples`.
    """
    outputs = list(probabilities.values())
    shares = [[teacher_agreement(a, b, from_logits=False) for b in outputs] for a in outputs]
    return {"names": list(probabilities), "shares": shares, "samples": len(outputs[0])}


def soft_targets(labels, targets, class_names, temperature=None):
    """The mean soft target of each class's images: what the teacher tells beside the label.

    Args:
        labels: int array of shape (samples,).
        targets: The teacher's probabilities, shape (samples, classes).
        class_names: Names by label.
        temperature: Of the soft targets.

    Returns:
        `classes`: a list of `name`, `label`, `image` (the one whose target is nearest to the
        mean) and `shares` (of the classes listed); `temperature`, `samples` and `left_out`,
        the number of classes that occur beyond the first twelve.
    """
    labels, targets = _checked(labels, targets)
    found = np.unique(labels[labels >= 0])
    shown, classes = found[:MOST_CLASSES], []
    for label in shown:
        mine = np.flatnonzero(labels == label)
        mean = targets[mine].mean(axis=0)
        classes.append(
            {
                "name": class_names[label],
                "label": int(label),
                "image": int(mine[np.argmin(np.abs(targets[mine] - mean).sum(axis=1))]),
                "shares": mean[shown].tolist(),
            }
        )
    return {
        "classes": classes,
        "temperature": None if temperature is None else float(temperature),
        "samples": len(labels),
        "left_out": len(found) - len(shown),
    }


def confusions(labels, targets, class_names, most=6, examples=4):
    """The pairs of classes that the teacher finds nearest, and the images that show it.

    Args:
        labels, targets, class_names: As in `soft_targets`.
        most: At most so many pairs, those with the largest mean soft target first.
        examples: Images a pair: of the class, those with most for the other one.

    Returns:
        `pairs`: a list of `true`, `other` (names), `share` (mean soft target of the other
        class) and `examples`, a list of `image` and `share`.
    """
    labels, targets = _checked(labels, targets)
    pairs = []
    for label in np.unique(labels[labels >= 0]):
        mine = np.flatnonzero(labels == label)
        mean = targets[mine].mean(axis=0)
        mean[label] = -1.0
        other = int(mean.argmax())
        nearest = mine[np.argsort(-targets[mine, other], kind="stable")][:examples]
        pairs.append(
            {
                "true": class_names[label],
                "other": class_names[other],
                "share": float(mean[other]),
                "examples": [{"image": int(i), "share": float(targets[i, other])} for i in nearest],
            }
        )
    return {"pairs": sorted(pairs, key=lambda pair: -pair["share"])[:most]}


def disagreements(labels, first, second, class_names, names=("teacher", "student"), most=12):
    """The images on which two models differ most, and what each of them says.

    Args:
        labels: int array of shape (samples,); a negative one is unknown.
        first, second: Their probabilities, shape (samples, classes).
        class_names: Names by label.
        names: What the two are called.
        most: At most so many images, those first whose distributions differ most.

    Returns:
        `names`, `samples`, `count` (of images with different answers), `right` (of those, how
        many each gets right) and `examples`: a list of `image`, `true` (None: unknown) and
        `answers`, two of `class` and `share`.
    """
    labels, first, second = _checked(labels, first, second)
    said = first.argmax(-1), second.argmax(-1)
    differing = np.flatnonzero(said[0] != said[1])
    distance = np.abs(first - second).sum(-1)[differing]
    chosen = differing[np.argsort(-distance, kind="stable")][:most]
    return {
        "names": list(names),
        "samples": len(labels),
        "count": len(differing),
        "right": [int(np.sum(one[differing] == labels[differing])) for one in said],
        "examples": [
            {
                "image": int(i),
                "true": class_names[labels[i]] if labels[i] >= 0 else None,
                "answers": [
                    {"class": class_names[one[i].argmax()], "share": float(one[i].max())}
                    for one in (first, second)
                ],
            }
            for i in chosen
        ],
    }


def _checked(labels, *outputs):
    """Arrays of one length, one sample or more."""
    labels, outputs = np.asarray(labels), [np.asarray(one, "float64") for one in outputs]
    if len(labels) == 0 or any(len(one) != len(labels) for one in outputs):
        sizes = [len(labels), *map(len, outputs)]
        raise ValueError(message("as many probabilities as labels, one or more", "sizes", sizes))
    return (labels, *outputs)
