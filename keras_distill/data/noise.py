"""Label noise for experiments on robustness, with the true labels kept beside."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_distill._checks import instance
from keras_distill._checks import is_number
from keras_distill._checks import message
from keras_distill._checks import one_of
from keras_distill._types import Dataset
from keras_distill.data.images import ImageData
from keras_distill.data.images import Split
from keras_distill.data.pipeline import map_in_order
from keras_distill.data.targets import Targets
from keras_distill.data.targets import check_samples

KINDS = ("symmetric", "pairflip")


@dataclasses.dataclass(frozen=True, eq=False)
class NoisyImageData(ImageData):
    """`ImageData` with noisy `labels`, made by `label_noise`.

    Attributes:
        true_labels: int64 array of shape (samples,), the labels before.
    """

    true_labels: np.ndarray

    @property
    def flipped(self) -> np.ndarray:
        """Where the label is not the true one, a boolean array of shape (samples,)."""
        return self.labels != self.true_labels

    def subset(
        self, indices: np.ndarray | Sequence[int], name: str | None = None
    ) -> "NoisyImageData":
        """The samples at `indices`, as a new `NoisyImageData`."""
        true_labels = self.true_labels[indices]
        return _noisy(super().subset(indices, name), self.labels[indices], true_labels)


def label_noise(
    dataset: ImageData | Split | np.ndarray | Dataset,
    rate: float,
    kind: str = "symmetric",
    seed: int = 0,
    *,
    class_count: int | None = None,
    exact: bool = True,
) -> Any:
    """Replaces a share of the labels by wrong ones.

    `"symmetric"`: by any of the other classes, each as likely as the next. `"pairflip"`: by
    the next class, the last one's being class 0. A replaced label is never the true one, so
    that `rate` is the share of wrong labels. Codes that draw among all classes, the true one
    included, have `rate * (classes - 1) / classes` of them wrong.

    What becomes of a sample's label is a function of (seed, its index). The samples that are
    flipped at one rate are flipped alike at every higher one. Samples without a label (-1)
    stay as they are. Labels that are noisy already keep their first true labels.

    Args:
        dataset: What has labels:
            an `ImageData`, for a `NoisyImageData` with `true_labels`;
            a `Split`, for a `Split` whose training part alone is noisy;
            a NumPy array of class ids, `(samples,)` or `(samples, 1)`, for
            `Targets(labels=..., true_labels=...)`;
            a `tf.data.Dataset` of single samples `(x, y)` or `(x, y, sample_weight)` of known
            cardinality, before `shuffle` and `batch`, for one of the same elements with
            `y = Targets(labels=..., true_labels=...)`.
        rate: Share of the labels to replace, from 0 to 1.
        kind: `"symmetric"` or `"pairflip"`.
        seed: Whole number, 0 or more.
        class_count: Number of classes, 2 or more. An `ImageData` knows it, an array has its
            largest label plus 1; a data set needs it.
        exact: Whether `round(rate * samples)` labels are replaced, those with the smallest
            draws; else each is with probability `rate`, whatever becomes of the others.

    Returns:
        A new object, see `dataset`; the labels keep dtype and shape.

    Raises:
        TypeError: If `dataset` is none of these.
        ValueError: If an argument is out of its range, or labels are not class ids below
            `class_count`.

    Reference:
        Han et al., 2018, https://arxiv.org/abs/1804.06872; transition matrices of
        bhanML/Co-teaching.
        Deviation: their code draws each label by itself, here `exact=False`.

    Example:
        >>> digits = load("digits")
        >>> noisy = label_noise(digits, 0.4)
        >>> float(noisy.train.flipped.mean())
        0.4
    """
    if not is_number(rate) or not 0 <= rate <= 1:
        raise ValueError(message("`rate` to be a share from 0 to 1", "rate", rate))
    one_of("kind", kind, KINDS)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(message("`seed` to be a whole number, 0 or more", "seed", seed))
    instance("exact", exact, bool, "True or False")
    settings = {"rate": rate, "kind": kind, "seed": int(seed), "exact": exact}

    if isinstance(dataset, Split):
        train = label_noise(dataset.train, class_count=class_count, **settings)
        return dataclasses.replace(dataset, train=train)
    if isinstance(dataset, ImageData):
        count = dataset.class_count if class_count is None else class_count
        true_labels = getattr(dataset, "true_labels", dataset.labels)
        return _noisy(dataset, _with_noise(dataset.labels, count, **settings), true_labels)
    if hasattr(dataset, "element_spec"):
        return _noisy_dataset(dataset, class_count, **settings)
    if not isinstance(dataset, np.ndarray):
        raise TypeError(
            "Expected `dataset` to be an ImageData, a Split, an array of class ids or a "
            f"tf.data.Dataset. Received: dataset of type {type(dataset).__name__}."
        )
    return Targets(labels=_with_noise(dataset, class_count, **settings), true_labels=dataset)


def _noisy(data, labels, true_labels):
    return NoisyImageData(data.images, labels, data.class_names, data.name, true_labels)


def _with_noise(labels, class_count, **settings):
    """The noisy labels of an array of class ids."""
    flat = labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)
    if not flat or not np.issubdtype(labels.dtype, np.integer) or len(labels) == 0:
        received = f"{labels.dtype} {labels.shape}"
        raise ValueError(
            message("labels that are class ids, integers of shape (samples,)", "labels", received)
        )
    class_count = labels.max() + 1 if class_count is None else class_count
    _check_class_count(class_count)
    if labels.max() >= class_count:
        raise ValueError(
            message(f"labels below class_count={class_count}", "labels.max()", int(labels.max()))
        )
    shifts = _shifts(len(labels), class_count, **settings).reshape(labels.shape)
    noisy = (labels.astype("int64") + shifts) % class_count
    return np.where(labels < 0, labels, noisy).astype(labels.dtype)


def _noisy_dataset(dataset, class_count, **settings):
    import tensorflow as tf

    sample_count = check_samples(dataset, "label_noise")
    if class_count is None:
        raise ValueError(
            message("`class_count` for a data set, which does not tell it", "class_count", None)
        )
    _check_class_count(class_count)
    y = dataset.element_spec[1]
    spec = y["labels"] if isinstance(y, Targets) else y
    if not isinstance(spec, tf.TensorSpec) or not spec.dtype.is_integer:
        raise ValueError(message("labels that are class ids, whole numbers", "element_spec", spec))
    with tf.device("CPU:0"):
        shifts = tf.constant(_shifts(sample_count, class_count, **settings))

    def add_noise(index, element):
        x, y, *weight = element
        targets = Targets(y if isinstance(y, Targets) else {"labels": y})
        labels = tf.cast(targets.labels, tf.int64)
        noisy = tf.where(labels < 0, labels, (labels + shifts[index]) % class_count)
        targets.setdefault("true_labels", targets.labels)
        targets["labels"] = tf.cast(noisy, targets.labels.dtype)
        return (x, targets, *weight)

    noisy = map_in_order(dataset.enumerate(), add_noise)
    return noisy.apply(tf.data.experimental.assert_cardinality(sample_count))


def _shifts(sample_count, class_count, rate, kind, seed, exact):
    """How many classes further each label goes, int64 `(samples,)`; 0 where it stays.

    The draws are those of the first samples of one stream, whatever their number.
    """
    draws = np.random.default_rng([seed, 0]).random(sample_count)
    others = np.random.default_rng([seed, 1]).random(sample_count)
    if exact:
        flipped = np.zeros(sample_count, bool)
        flipped[np.argsort(draws, kind="stable")[: round(rate * sample_count)]] = True
    else:
        flipped = draws < rate
    shifts = 1 if kind == "pairflip" else 1 + (others * (class_count - 1)).astype("int64")
    return np.where(flipped, shifts, 0).astype("int64")


def _check_class_count(class_count):
    whole = isinstance(class_count, (int, np.integer)) and not isinstance(class_count, bool)
    if not whole or class_count < 2:
        raise ValueError(
            message("`class_count` to be a whole number, 2 or more", "class_count", class_count)
        )
