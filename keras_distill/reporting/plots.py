"""Pictures of arrays and results, for notebooks and scripts: each function returns a figure.

What a figure shows stands in `summaries` as plain data, how it is drawn in `drawing`. One colour
a model: blue for the teacher, orange for the student alone, green for the distilled one, in this
order where `colours` does not say otherwise.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_distill._checks import message
from keras_distill.reporting import drawing
from keras_distill.reporting import drawing_images
from keras_distill.reporting import style
from keras_distill.reporting import summaries
from keras_distill.reporting.style import colours
from keras_distill.reporting.style import save

__all__ = [
    "accuracies",
    "accuracy_by_latency",
    "accuracy_by_size",
    "agreement",
    "colours",
    "confusions",
    "dark_knowledge",
    "disagreements",
    "reliability_diagram",
    "save",
    "training_curves",
]


def training_curves(
    records: Sequence[Mapping[str, Any]], colours: Mapping[str, str] | None = None
) -> Any:
    """Each logged value (loss, every term, accuracy) over the epochs, a panel each.

    Args:
        records: The lines of `metrics.jsonl`. Thin lines are seeds, thick ones their
            mean, dashed ones validation.
        colours: A dict of model -> colour.

    Returns:
        A figure, or None where nothing was logged.
    """
    data = summaries.training_curves(records, colours)
    return None if data is None else drawing.training_curves(data)


def accuracies(
    models: Sequence[Mapping[str, Any]], colours: Mapping[str, str] | None = None
) -> Any:
    """The accuracy of each model: mean, standard error, and a dot for each seed.

    Args:
        models: The entries `models` of the results.
        colours: A dict of name -> colour.

    Returns:
        A figure.
    """
    return drawing.accuracies(summaries.accuracies(models, colours))


def reliability_diagram(
    labels: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    bins: int = 15,
    colours: Mapping[str, str] | None = None,
) -> Any:
    """Accuracy over confidence; a calibrated model lies on the diagonal.

    Args:
        labels: int array of shape (samples,).
        probabilities: A dict of name -> array of shape (samples, classes).
        bins: Number of bins of confidence.
        colours: A dict of name -> colour.

    Returns:
        A figure; areas tell the share of the samples in a bin.
    """
    return drawing.reliability(summaries.reliability(labels, probabilities, colours, bins))


def agreement(probabilities: Mapping[str, np.ndarray]) -> Any:
    """The share of samples on which each two models name the same class.

    Args:
        probabilities: A dict of name -> array of shape (samples, classes).

    Returns:
        A figure.
    """
    return drawing.agreement(summaries.agreement(probabilities))


def dark_knowledge(
    images: np.ndarray,
    labels: np.ndarray,
    soft_targets: np.ndarray,
    class_names: Sequence[str],
    temperature: float | None = None,
) -> Any:
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
    data = summaries.soft_targets(labels, soft_targets, class_names, temperature)
    figure = drawing_images.soft_targets(data, images)
    at = "" if temperature is None else f" at temperature {float(temperature):g}"
    figure.axes[0].set_title(f"Mean soft targets{at}", fontsize=style.TEXT)
    return figure


def confusions(
    images: np.ndarray,
    labels: np.ndarray,
    soft_targets: np.ndarray,
    class_names: Sequence[str],
    most: int = 6,
) -> Any:
    """The pairs of classes that the teacher finds nearest, with the images that show it.

    Args:
        images, labels, soft_targets, class_names: As in `dark_knowledge`.
        most: At most so many pairs.

    Returns:
        A figure.
    """
    _check_samples(images, labels, soft_targets)
    data = summaries.confusions(labels, soft_targets, class_names, most)
    return drawing_images.confusions(data, images)


def disagreements(
    images: np.ndarray,
    labels: np.ndarray,
    teacher_probabilities: np.ndarray,
    student_probabilities: np.ndarray,
    class_names: Sequence[str],
    most: int = 12,
) -> Any:
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
    said = teacher_probabilities, student_probabilities
    data = summaries.disagreements(labels, *said, class_names, most=most)
    return drawing_images.disagreements(data, images)


def accuracy_by_size(
    models: Sequence[Mapping[str, Any]],
    exports: Sequence[Mapping[str, Any]],
    colours: Mapping[str, str] | None = None,
) -> Any:
    """Accuracy over bytes on disk, of the models and of the exported files.

    Args:
        models: The entries `models` of the results.
        exports: Its entries `exports`.
        colours: A dict of name -> colour.

    Returns:
        A figure, or None where no entry has both.
    """
    return _by_cost(models, exports, "bytes", colours)


def accuracy_by_latency(
    models: Sequence[Mapping[str, Any]],
    exports: Sequence[Mapping[str, Any]],
    colours: Mapping[str, str] | None = None,
) -> Any:
    """Accuracy over milliseconds an image, as `accuracy_by_size`."""
    return _by_cost(models, exports, "latency_ms", colours)


def _by_cost(models, exports, cost, colours):
    data = summaries.accuracy_by_cost(models, exports, cost, colours)
    return None if data is None else drawing.accuracy_by_cost(data)


def _check_samples(images, *arrays):
    if len(images) == 0 or any(len(array) != len(images) for array in arrays):
        sizes = [len(images), *map(len, arrays)]
        raise ValueError(message("as many labels and probabilities as images", "sizes", sizes))
