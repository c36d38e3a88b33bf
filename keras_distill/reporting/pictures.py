"""The pictures of a report: from what they are made, how they are drawn, and how to read them."""

import dataclasses
from collections.abc import Callable

from keras_distill.reporting import drawing
from keras_distill.reporting import drawing_images
from keras_distill.reporting import features
from keras_distill.reporting import summaries
from keras_distill.reporting.source import Missing

MOST_MEMBERS = 3  # of an ensemble, in the picture of channels
MOST_NETWORKS = 6
FOR_CHANNELS = 512  # images
FOR_SIMILARITY = 256
LEAST = 4  # images


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: Of its files, `figures/NAME.png`, `NAME-dark.png` and `NAME.json`.
        section: The heading under which it stands.
        title: Its own heading.
        gather: A function of a `Source` that returns plain data, or raises `Missing`.
        draw: A function of that data, and of the images if `with_images`, that returns a figure.
        words: A function of that data: one or two sentences, what is shown and how to read it.
        with_images: Whether it shows example images.
    """

    name: str
    section: str
    title: str
    gather: Callable
    draw: Callable
    words: Callable
    with_images: bool = False


def _accuracies(source):
    return summaries.accuracies(source.models, source.colours)


def _accuracies_words(data):
    return (
        "Large dots are means over seeds, bars their standard error, small dots the seeds. A "
        "difference that is not larger than the bars is no difference."
    )


def _by_cost(cost, reason):
    def gather(source):
        exports = source.results.get("exports") or []
        data = summaries.accuracy_by_cost(source.models, exports, cost, source.colours)
        if data is None:
            raise Missing(reason)
        return data

    return gather


def _cost_words(data):
    what = "bytes on disk" if data["cost"] == "bytes" else "the time of one image"
    return (
        f"Accuracy against {what}: the better, the further up and to the left. Dots are models, "
        "squares exported files. A dot is the mean over seeds, a file is of one of them."
    )


def _training_curves(source):
    data = summaries.training_curves(source.records, source.colours)
    if data is None:
        raise Missing("metrics.jsonl logs no epoch")
    return data


def _training_words(data):
    kinds = {curve["kind"] for panel in data["panels"] for curve in panel["curves"]}
    held_out = " Broken lines are images that were not trained on." if len(kinds) > 1 else ""
    more = f" {data['left_out']} more values stand in metrics.jsonl." if data["left_out"] else ""
    return (
        "The loss, accuracy, and each term of the loss over the epochs. Thick lines are means over "
        f"seeds, thin ones the seeds; each term is shown without its weight.{held_out}{more}"
    )


def _reliability(source):
    if (source.labels < 0).all():
        raise Missing("no test image has a label")
    return summaries.reliability(source.labels, source.need_probabilities(), source.colours)


def _reliability_words(data):
    return (
        f"How sure a model is against how often it is right, on {data['samples']:,} test images; "
        f"larger dots stand for more images, groups of fewer than {drawing.FEW} are left out. A "
        "calibrated model lies on the dotted diagonal, one below it is too sure of itself. Of "
        "several seeds the first is shown."
    )


def _agreement(source):
    return summaries.agreement(source.need_probabilities(2))


def _agreement_words(data):
    return (
        f"In how many percent of {data['samples']:,} test images two models name the same class, "
        "right or wrong. A student that learned from the teacher should agree with it more than "
        "one that learned alone. Of several seeds the first is shown."
    )


def _soft_targets(source):
    targets, temperature = source.soft_targets
    data = summaries.soft_targets(source.labels, targets, source.class_names, temperature)
    if not data["classes"]:
        raise Missing("no test image has a label")
    return data


def _soft_words(data):
    at = "" if data["temperature"] is None else f" at temperature {data['temperature']:g}"
    left_out = f" {data['left_out']} more classes are left out." if data["left_out"] else ""
    return (
        f"What the teacher says{at} of the images of each class, on average. Beside the right "
        "class (the diagonal) stands what a label cannot tell: which classes look alike. The "
        f"image is the most typical one.{left_out}"
    )


def _confusions(source):
    targets, _ = source.soft_targets
    data = summaries.confusions(source.labels, targets, source.class_names)
    if not data["pairs"]:
        raise Missing("no test image has a label")
    return data


def _confusions_words(data):
    return (
        "The classes that the teacher finds nearest to each other, and the images of the first "
        "that look most to it like the second. The percent is the soft target of the second class."
    )


def _disagreements(source):
    (first, second), words = source.pair
    said = source.probabilities[first], source.probabilities[second]
    return summaries.disagreements(source.labels, *said, source.class_names, words)


def _disagreements_words(data):
    first, second = data["names"]
    text = f"The images on which {first} and {second} differ most, with the answers of both."
    if not data["count"]:
        return text
    right = [f"{count:,}" for count in data["right"]]
    return (
        f"{text} Of the {data['count']:,} images with different answers the {first} gets "
        f"{right[0]} right, the {second} {right[1]}."
    )


def _channels(source):
    members = source.teacher_members
    names = source.need_networks()
    teacher = source.with_role("teacher")
    shown = [
        {"name": name, "colour": source.colours[teacher], "network": network, "member": True}
        for name, network in members[:MOST_MEMBERS]
    ]
    shown += [
        {"name": name, "colour": source.colours[name], "network": network, "member": False}
        for name, network in names.items()
        if name != teacher
    ]
    count = min(FOR_CHANNELS, len(source.images))
    data = features.channel_responses(
        shown[:MOST_NETWORKS],
        source.images[:count],
        source.labels[:count],
        source.class_names,
        source.layer,
    )
    if not data["networks"]:
        raise Missing("no network of the run has a feature map")
    return data


def _channels_words(data):
    layers = list(dict.fromkeys(entry["layer"] for entry in data["networks"]))
    text = (
        f"For each network, the channels of {' or '.join(layers)} that differ most, and the four "
        f"of {data['images']} test images to which each responds most; below them the number of "
        "the channel and the classes of its images. Nets that see the data from several sides "
        "have channels of more kinds."
    )
    if any(entry["matched"] is not None for entry in data["networks"]):
        text += (
            " Match: how well, on average, the channels of the teacher (of its other members) are "
            "found in this net, by the largest correlation over the images."
        )
    if data["left_out"]:
        text += f" Without such a layer: {', '.join(data['left_out'])}."
    return text


def _layer_similarity(source):
    found = source.need_networks()
    count = min(FOR_SIMILARITY, len(source.images))
    if count < LEAST:
        raise Missing(f"it needs {LEAST} test images or more")
    teacher = source.with_role("teacher")
    others = {name: network for name, network in found.items() if name != teacher}
    if source.teacher_members:
        reference = source.teacher_members[0]
    else:
        source.need_networks(2)
        first = next(iter(others))
        reference = first, others.pop(first)
    if not others:
        raise Missing("there is only one network to look into")
    others = dict(list(others.items())[:2])
    try:
        return features.layer_similarity(reference, others, source.images[:count])
    except (TypeError, ValueError) as error:  # a network without a graph of layers
        raise Missing(str(error).splitlines()[0]) from error


def _similarity_words(data):
    return (
        f"Linear CKA in percent between layers of {data['reference']['name']} (rows, from input to "
        f"output) and of each other network (columns), on {data['images']} test images: 100 is the "
        "same geometry of the images, 0 none in common. A strong diagonal means that layers do the "
        "same work at the same depth."
    )


def _early_exits(source):
    name, distiller = source.distiller
    try:
        data = features.early_exits(distiller, source.images, source.labels)
    except ValueError as error:
        raise Missing(str(error).splitlines()[0]) from error
    return {"model": name, "colour": source.colours[name], **data}


def _early_words(data):
    return (
        "Each dot is a threshold of confidence: an image leaves at the first exit that is surer, "
        "and saves the computation beyond. Squares send all images to one exit."
    )


PICTURES = (
    Picture(
        "accuracies", "Side by side", "Accuracy", _accuracies, drawing.accuracies, _accuracies_words
    ),
    Picture(
        "accuracy_by_size",
        "Size and speed",
        "Accuracy against size",
        _by_cost("bytes", "no size of a model is known"),
        drawing.accuracy_by_cost,
        _cost_words,
    ),
    Picture(
        "accuracy_by_latency",
        "Size and speed",
        "Accuracy against latency",
        _by_cost("latency_ms", "no latency was measured (keras-distill compare FILE ... does)"),
        drawing.accuracy_by_cost,
        _cost_words,
    ),
    Picture(
        "training_curves",
        "How it was trained",
        "Training curves by term",
        _training_curves,
        drawing.training_curves,
        _training_words,
    ),
    Picture(
        "reliability",
        "Calibration and agreement",
        "Calibration",
        _reliability,
        drawing.reliability,
        _reliability_words,
    ),
    Picture(
        "agreement",
        "Calibration and agreement",
        "Agreement",
        _agreement,
        drawing.agreement,
        _agreement_words,
    ),
    Picture(
        "dark_knowledge",
        "Dark knowledge",
        "Soft targets by class",
        _soft_targets,
        drawing_images.soft_targets,
        _soft_words,
        with_images=True,
    ),
    Picture(
        "confusions",
        "Dark knowledge",
        "Nearest confusions",
        _confusions,
        drawing_images.confusions,
        _confusions_words,
        with_images=True,
    ),
    Picture(
        "disagreements",
        "Where they disagree",
        "Disagreements",
        _disagreements,
        drawing_images.disagreements,
        _disagreements_words,
        with_images=True,
    ),
    Picture(
        "channels",
        "Inside the networks",
        "What channels respond to",
        _channels,
        drawing_images.channel_responses,
        _channels_words,
        with_images=True,
    ),
    Picture(
        "layer_similarity",
        "Inside the networks",
        "Similarity of layers",
        _layer_similarity,
        drawing.layer_similarity,
        _similarity_words,
    ),
    Picture(
        "early_exits",
        "Early exit",
        "Accuracy against computation",
        _early_exits,
        drawing.early_exits,
        _early_words,
    ),
)
