"""What the layers of a run's networks show, as plain data: channels, similarity, early exits."""

import numpy as np

from keras_distill.reporting import networks
from keras_distill.taps import check_paths

MOST_CHANNELS = 4
MOST_STRONGEST = 4
MOST_LAYERS = 10
LIVE = 1e-6  # a channel whose activations vary less is dead
THRESHOLDS = (0.0, *np.linspace(0.1, 0.9, 17).tolist(), 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)


def last_map(model):
    """The path of a network's last feature map, (height, width, channels); None without one."""
    maps = [path for path, shape in networks.layers_of(model).items() if len(shape) == 3]
    return maps[-1] if maps else None


def channel_responses(models, images, labels, class_names, layer=None):
    """Which images a few channels of each network answer most, the mean over the map.

    Of each network those channels are chosen that have least to do with one another: first the
    one that varies most, relative to its mean; then, again and again, the one whose largest
    correlation with those chosen is smallest.

    Args:
        models: A list of dicts of `name`, `colour`, `network`, and `member`: whether it is one
            of those whose channels the others are held against (the teacher, or its members).
        images: Array (samples, height, width, channels).
        labels: int array of shape (samples,).
        class_names: Names by label.
        layer: Path of a layer, as in `kd.tap`; None for the last feature map of each.

    Returns:
        `images`: their number; `networks`: a list of `name`, `colour`, `layer`, `channels` (a
        list of `channel`, `images`, strongest first, and `classes`, theirs) and `matched`: the
        mean over the members' channels (of other members, for a member) of the largest absolute
        correlation with a channel of this network, None where there is nothing to hold against;
        `left_out`: names of networks without such a layer.

    Raises:
        ValueError: If no network has the layer.

    Reference:
        Allen-Zhu and Li, 2020, https://arxiv.org/abs/2012.09816, whose figures show that the
        channels of single networks answer different features, and those of an ensemble and of a
        distilled network more of them.
    """
    found, left_out, refused = [], [], None
    for model in models:
        try:
            path = last_map(model["network"]) if layer is None else layer
            if path is None:
                left_out.append(model["name"])
                continue
            check_paths(model["network"], path, "layer")
        except (TypeError, ValueError) as error:
            refused = error
            left_out.append(model["name"])
            continue
        values = networks.features(model["network"], [path], images)[path]
        values = values.reshape(len(values), -1, values.shape[-1]).mean(axis=1)
        found.append({**model, "layer": path, "values": values, "unit": _standardized(values)})
    if not found and layer is not None and refused is not None:
        raise refused
    entries = []
    for model in found:
        others = [other["unit"] for other in found if other["member"] and other is not model]
        channels = []
        for channel in _most_differing(model["values"], model["unit"]):
            strongest = np.argsort(-model["values"][:, channel], kind="stable")[:MOST_STRONGEST]
            shown = [class_names[labels[i]] if labels[i] >= 0 else "unknown" for i in strongest]
            channels.append(
                {"channel": int(channel), "images": strongest.tolist(), "classes": shown}
            )
        matched = [np.abs(other.T @ model["unit"]).max(axis=1) for other in others]
        matched = [row[other.any(axis=0)] for row, other in zip(matched, others)]
        known = sum(map(len, matched))
        entries.append(
            {
                "name": model["name"],
                "colour": model["colour"],
                "layer": model["layer"],
                "channels": channels,
                "matched": float(np.concatenate(matched).mean()) if known else None,
            }
        )
    return {"images": len(images), "networks": entries, "left_out": left_out}


def _standardized(values):
    """Columns of mean 0 and length 1; dead ones are 0."""
    centered = values - values.mean(axis=0)
    length = np.linalg.norm(centered, axis=0)
    alive = length > LIVE * np.sqrt(len(values))
    return np.where(alive, centered / np.where(alive, length, 1.0), 0.0)


def _most_differing(values, unit):
    """Channels that have least to do with one another."""
    alive = np.flatnonzero(unit.any(axis=0))
    if not len(alive):
        return []
    spread = values[:, alive].std(axis=0) / (np.abs(values[:, alive]).mean(axis=0) + LIVE)
    chosen = [alive[spread.argmax()]]
    alike = np.abs(unit[:, alive].T @ unit)
    while len(chosen) < min(MOST_CHANNELS, len(alive)):
        nearest = alike[:, chosen].max(axis=1)
        nearest[np.isin(alive, chosen)] = np.inf
        chosen.append(alive[nearest.argmin()])
    return chosen


def layer_similarity(reference, others, images):
    """Linear CKA of each two layers of two networks, estimated without bias.

    Args:
        reference: `(name, network)`.
        others: A dict of name -> network.
        images: Array (samples, height, width, channels), four or more.

    Returns:
        `reference`: name and `layers`; `maps`: a list of `name`, `layers` and `values`, a table
        of a row for each layer of the reference; `images`: their number. At most ten layers of
        a network, at even distances.

    Reference:
        Kornblith et al., ICML 2019, https://arxiv.org/abs/1905.00414, with the estimate of
        Nguyen et al., ICLR 2021, https://arxiv.org/abs/2010.15327, as in
        `kd.losses.kernel_alignment(unbiased=True)`.
    """
    name, network = reference
    own = _kernels(network, images)
    maps = []
    for title, other in others.items():
        theirs = _kernels(other, images)
        values = [[float(np.sum(a * b)) for b in theirs.values()] for a in own.values()]
        maps.append({"name": title, "layers": list(theirs), "values": values})
    return {
        "reference": {"name": name, "layers": list(own)},
        "maps": maps,
        "images": len(images),
    }


def _kernels(network, images):
    """A dict of path -> kernel matrix of the images, U-centred and of norm 1."""
    paths = list(networks.layers_of(network))
    kept = np.linspace(0, len(paths) - 1, min(MOST_LAYERS, len(paths))).round().astype(int)
    found = networks.features(network, [paths[i] for i in kept], images)
    return {path: _kernel(values.reshape(len(values), -1)) for path, values in found.items()}


def _kernel(rows):
    rows = rows.astype("float64")
    rows = rows - rows.mean(axis=0)
    kernel, count = rows @ rows.T, len(rows)
    np.fill_diagonal(kernel, 0.0)
    means = kernel.sum(axis=1, keepdims=True) / (count - 2)
    kernel = kernel - means - means.T + kernel.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(kernel, 0.0)
    norm = np.linalg.norm(kernel)
    return kernel / norm if norm > 0 else kernel


def early_exits(distiller, images, labels):
    """What a network with exits gives at each threshold of confidence, and each exit alone.

    Args:
        distiller: A `kd.SelfDistiller`.
        images: Array (samples, height, width, channels).
        labels: int array of shape (samples,).

    Returns:
        `curve`: a list of `threshold`, `accuracy`, `compute` (relative to the network without
        exits) and `shares` (of the images that leave at each exit); `exits`: a list of `name`,
        `accuracy` and `compute` where all images leave there; `images`: their number.

    Raises:
        ValueError: If the network cannot be cut at its exits.
    """
    early = distiller.early_exit()
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    inputs = images.astype("float32") / scale
    curve = early.accuracy_compute_curve(
        inputs, labels, THRESHOLDS, batch_size=networks.batch_size(images)
    )
    exits = []
    for i, path in enumerate([*distiller.exits, "the whole network"]):
        said = networks.probabilities(distiller.exit(i), images).argmax(axis=-1)
        entry = {"name": path, "accuracy": float(np.mean(said == labels))}
        exits.append({**entry, "compute": early.compute[i]})
    return {"curve": curve, "exits": exits, "images": len(images)}
