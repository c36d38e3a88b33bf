"""Synthetic data of Allen-Zhu and Li: Gaussian inputs, and classes with several views."""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

from keras_distill import _checks
from keras_distill._types import Tensor
from keras_distill.data.images import ImageData
from keras_distill.data.images import Split

CHUNK = 512  # samples that a network labels at a time


@dataclasses.dataclass(frozen=True, eq=False)
class MultiViewData(ImageData):
    """`ImageData` of `multi_view`, with what each sample shows.

    Attributes:
        strengths: float32 array of shape (samples, classes, 2): how much of each feature there
            is in a sample, summed over its patches; 0 where it is absent.
        shown: int64 array of shape (samples,): which of its class's features a single-view
            sample shows, 0 or 1; -1 for multi-view samples, which show both.
    """

    strengths: np.ndarray
    shown: np.ndarray

    def subset(
        self, indices: np.ndarray | Sequence[int], name: str | None = None
    ) -> "MultiViewData":
        """The samples at `indices`, as a new `MultiViewData`."""
        plain = super().subset(indices, name)
        names = plain.class_names, plain.name
        strengths, shown = self.strengths[indices], self.shown[indices]
        return MultiViewData(plain.images, plain.labels, *names, strengths, shown)


@dataclasses.dataclass(frozen=True, eq=False)
class MultiViewSplit(Split):
    """The parts of `multi_view`.

    Attributes:
        train, test, validation: As in `Split`.
        single_view: A second test part, of single-view samples alone.
        features: float32 array of shape (classes, 2, dimension), orthonormal: the features.
    """

    single_view: MultiViewData | None = None
    features: np.ndarray | None = None


def multi_view(
    train: int = 300,
    test: int = 1000,
    *,
    classes: int = 6,
    dimension: int = 60,
    patches: int = 8,
    patches_per_feature: int = 1,
    single_view_share: float = 0.2,
    main: tuple[float, float] = (1.0, 1.5),
    others: tuple[float, float] = (0.1, 0.4),
    faint: float = 0.1,
    other_probability: float = 0.2,
    feature_noise: float = 0.05,
    noise: float = 0.1,
    seed: int = 0,
) -> MultiViewSplit:
    """Draws Allen-Zhu and Li's multi-view distribution: two features tell a class, one is enough.

    There are two features a class, all orthonormal. A sample of class y shows both of y's
    features ("multi-view"), or one of them, chosen at random, and next to nothing of the other
    ("single-view"); and some features of other classes, weakly. Each feature that it shows lies in
    patches of its own; patch p of feature v is

        x_p = z_p v + sum_u a_pu u + noise,  a_pu uniform in 0..feature_noise over all features u

    with z_p a random share of the feature's strength in the sample. The other patches hold noise
    alone. A network that has learned only one of a class's features fails on the single-view
    samples that lack it; which one it learns depends on its initial weights.

    Args:
        train: Number of training samples.
        test: Number of samples in each of the two test parts.
        classes: Number of classes (k), 2 or more.
        dimension: Numbers in a patch (d), at least two a class.
        patches: Patches of a sample (P).
        patches_per_feature: Patches that each feature lies in (C_p).
        single_view_share: Share of single-view samples in `train` and `test` (mu).
        main: Least and largest strength of the label's features.
        others: The same for features of other classes.
        faint: Strength of the feature that a single-view sample lacks (rho).
        other_probability: With which each feature of another class is shown (s / k). Those for
            which no patch is left are not, chosen at random.
        feature_noise: Largest a_pu (gamma).
        noise: Standard deviation of the Gaussian noise in each number (sigma).
        seed: Whole number, 0 or more. The features are its own; so is each part.

    Returns:
        A `MultiViewSplit` of `train`, `test` (as `train`) and `single_view`. Images are float32
        `(samples, patches, 1, dimension)`, which `kd.data.batches` leaves unscaled; labels are
        even over the classes.

    Raises:
        ValueError: If an argument is out of its range, or there is no room for the features.

    Reference:
        Allen-Zhu and Li, 2020, https://arxiv.org/abs/2012.09816, definitions of D_m, D_s and D.
        Deviations: the paper's constants are asymptotic in the number of classes, ours are
        numbers; strengths are uniform between their bounds, single-view samples show the features
        of other classes as multi-view ones do; labels are even, not drawn.

    Example:
        >>> split = multi_view(train=30, test=10)
        >>> split.train.images.shape, len(split.single_view)
        ((30, 8, 1, 60), 10)
    """
    counts = {"train": train, "test": test, "classes": classes, "dimension": dimension}
    counts |= {"patches": patches, "patches_per_feature": patches_per_feature}
    for name, value in counts.items():
        _checks.positive_integer(name, value)
    _check_shares(single_view_share=single_view_share, other_probability=other_probability)
    _check_seed(seed)
    for name, bounds in (("main", main), ("others", others)):
        low, high = (_checks.non_negative(name, bound) for bound in bounds)
        if low > high:
            expected = f"`{name}` to be (least, largest)"
            raise ValueError(_checks.message(expected, name, bounds))
    for name, value in (("faint", faint), ("feature_noise", feature_noise), ("noise", noise)):
        _checks.non_negative(name, value)
    if classes < 2 or dimension < 2 * classes:
        expected = "`classes` to be 2 or more, and `dimension` at least two a class"
        raise ValueError(_checks.message(expected, "classes, dimension", (classes, dimension)))
    if patches < 2 * patches_per_feature:
        expected = f"at least {2 * patches_per_feature} `patches`, for the label's two features"
        raise ValueError(_checks.message(expected, "patches", patches))
    drawn = np.random.default_rng([seed, 0]).normal(size=(dimension, 2 * classes))
    features = np.linalg.qr(drawn)[0].T.reshape(classes, 2, dimension)

    def part(number, count, share, name):
        generator = np.random.default_rng([seed, number])
        labels = generator.permutation(np.arange(count) % classes)
        single = generator.permutation(np.arange(count) < round(share * count))
        shown = np.where(single, generator.integers(0, 2, count), -1)
        strengths = _strengths(
            generator,
            labels,
            shown,
            classes,
            (main, others, faint, other_probability),
            patches // patches_per_feature,
        )
        coefficients = _spread(generator, strengths, patches, patches_per_feature, feature_noise)
        images = coefficients @ features.reshape(2 * classes, dimension)
        images += generator.normal(scale=noise, size=images.shape)
        names = tuple(f"class{label}" for label in range(classes))
        return MultiViewData(
            images[:, :, np.newaxis].astype("float32"),
            labels.astype("int64"),
            names,
            f"multi_view/{name}",
            strengths.astype("float32"),
            shown.astype("int64"),
        )

    return MultiViewSplit(
        train=part(1, train, single_view_share, "train"),
        test=part(2, test, single_view_share, "test"),
        single_view=part(3, test, 1.0, "single_view"),
        features=features.astype("float32"),
    )


def _strengths(generator, labels, shown, classes, bounds, room):
    """How much of each feature is in each sample, (samples, classes, 2)."""
    main, others, faint, probability = bounds
    count = len(labels)
    present = generator.random((count, classes, 2)) < probability
    strengths = generator.uniform(*others, size=present.shape)
    rows = np.arange(count)
    present[rows, labels] = False
    # Of the features of other classes no more than there are patches for, chosen at random.
    order = np.where(present, generator.random(present.shape), 2.0).reshape(count, -1)
    places = order.argsort(axis=-1).argsort(axis=-1).reshape(present.shape)
    present &= places < room - 2
    present[rows, labels] = True
    strengths[rows, labels] = generator.uniform(*main, size=(count, 2))
    single = shown >= 0
    strengths[rows[single], labels[single], 1 - shown[single]] = faint
    return np.where(present, strengths, 0.0)


def _spread(generator, strengths, patches, each, feature_noise):
    """The coefficient of each feature in each patch, (samples, patches, 2 * classes)."""
    strengths = strengths.reshape(len(strengths), -1)
    coefficients = np.zeros((len(strengths), patches, strengths.shape[1]))
    for sample, strength in enumerate(strengths):
        found = np.flatnonzero(strength)
        own = generator.permutation(patches)[: len(found) * each].reshape(-1, each)
        shares = generator.dirichlet(np.ones(each), len(found))
        coefficients[sample, own, found[:, np.newaxis]] = strength[found, np.newaxis] * shares
        held = own.ravel()
        feature = generator.uniform(0.0, feature_noise, (len(held), strengths.shape[1]))
        coefficients[sample, held] += feature
    return coefficients


def gaussian_images(
    network: Callable[[np.ndarray], Tensor],
    train: int = 1000,
    test: int = 1000,
    *,
    image_shape: tuple[int, ...] = (8, 8, 1),
    seed: int = 0,
) -> Split:
    """Draws images of independent Gaussian noise, labelled by a network.

    There is one view: what tells the classes is the same for every sample. Allen-Zhu and Li find
    that an ensemble does not help here, although its members differ.

    The label is the class whose logit is largest, once each class's logits have mean 0 and
    standard deviation 1 over the training images: a network's logits at its initial weights
    otherwise favour a class or two.

    Args:
        network: A function of float32 images `(batch, *image_shape)` that returns logits `(batch,
            classes)`, such as a `keras.Model` with random weights; it is run for inference where
            it is a `keras.Model`.
        train: Number of training samples, two or more.
        test: Number of test samples.
        image_shape: Shape of an image.
        seed: Whole number, 0 or more, for the images.

    Returns:
        A `Split`. Images are float32 of mean 0 and deviation 1, which `kd.data.batches` leaves
        unscaled.

    Raises:
        ValueError: If an argument is out of its range, the network does not return logits of two
            classes or more, or a class's logit is the same for all images.

    Reference:
        Allen-Zhu and Li, 2020, https://arxiv.org/abs/2012.09816, the experiments on Gaussian-like
        inputs; their targets come, as we recall it, from dense, convolutional and residual
        networks.
        Deviation: how the paper balances the classes is not known to us.
    """
    images = _gaussian_parts(train, test, image_shape, seed)
    logits = [_labelled_by(network, part) for part in images]
    mean, deviation = logits[0].mean(axis=0), logits[0].std(axis=0)
    if not np.all(deviation > 0):
        expected = "`network` to answer differently for different images"
        raise ValueError(_checks.message(expected, "deviation of logits", deviation))
    labels = [((part - mean) / deviation).argmax(axis=-1) for part in logits]
    return _split(images, labels, len(mean), "gaussian_images")


def gaussian_mixture(
    train: int = 1000,
    test: int = 1000,
    *,
    classes: int = 10,
    image_shape: tuple[int, ...] = (8, 8, 1),
    distance: float = 4.0,
    seed: int = 0,
) -> Split:
    """Draws a mixture of Gaussians, one a class, with means at equal distances.

    `x = mean of the class + N(0, 1)` in each pixel; the means are orthogonal random directions
    of length `distance / sqrt(2)`. The best classifier is linear: the class of the nearest mean.

    Args:
        train: Number of training samples.
        test: Number of test samples.
        classes: Number of classes, 2 or more, at most as many as there are pixels.
        image_shape: Shape of an image.
        distance: Between two means, in standard deviations.
        seed: Whole number, 0 or more. The means are its own; so is each part.

    Returns:
        A `Split`, images float32, labels even over the classes.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        Allen-Zhu and Li, 2020, https://arxiv.org/abs/2012.09816: mixtures of Gaussians are among
        the "Gaussian-like" inputs for which ensembles are said not to help.
    """
    images = _gaussian_parts(train, test, image_shape, seed)
    pixels = int(np.prod(image_shape))
    _checks.positive_integer("classes", classes)
    _checks.positive("distance", distance)
    if not 2 <= classes <= pixels:
        expected = f"`classes` to be from 2 to the number of pixels, {pixels}"
        raise ValueError(_checks.message(expected, "classes", classes))
    drawn = np.random.default_rng([seed, 0]).normal(size=(pixels, classes))
    means = np.linalg.qr(drawn)[0].T.reshape(classes, *image_shape) * distance / np.sqrt(2.0)
    labels = [
        np.random.default_rng([seed, 3 + number]).permutation(np.arange(len(part)) % classes)
        for number, part in enumerate(images)
    ]
    images = [part + means[own].astype("float32") for part, own in zip(images, labels)]
    return _split(images, labels, classes, "gaussian_mixture")


def _gaussian_parts(train, test, image_shape, seed):
    for name, count in (("train", train), ("test", test)):
        _checks.positive_integer(name, count)
    if len(image_shape) != 3:
        expected = "`image_shape` to be (height, width, channels)"
        raise ValueError(_checks.message(expected, "image_shape", image_shape))
    _check_seed(seed)
    return [
        np.random.default_rng([seed, 1 + number])
        .standard_normal((count, *image_shape))
        .astype("float32")
        for number, count in enumerate((train, test))
    ]


def _labelled_by(network, images):
    import keras

    options = {"training": False} if isinstance(network, keras.Model) else {}
    parts = [
        keras.ops.convert_to_numpy(network(images[start : start + CHUNK], **options))
        for start in range(0, len(images), CHUNK)
    ]
    logits = np.concatenate(parts).astype("float64")
    if logits.ndim != 2 or logits.shape[-1] < 2:
        expected = "`network` to return logits (batch, classes) of two classes or more"
        raise ValueError(_checks.message(expected, "shape", logits.shape))
    return logits


def _split(images, labels, classes, name):
    names = tuple(f"class{label}" for label in range(classes))
    train, test = (
        ImageData(part, own.astype("int64"), names, f"{name}/{of}")
        for part, own, of in zip(images, labels, ("train", "test"))
    )
    return Split(train, test)


def _check_shares(**shares):
    for name, share in shares.items():
        if not _checks.is_number(share) or not 0 <= share <= 1:
            raise ValueError(_checks.message(f"`{name}` to be a share from 0 to 1", name, share))


def _check_seed(seed):
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(_checks.message("`seed` to be a whole number, 0 or more", "seed", seed))
