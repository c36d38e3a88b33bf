"""Batches of some classes with equally many samples each: those of correlation congruence."""

import numpy as np

from keras_distill._checks import message
from keras_distill._checks import positive_integer
from keras_distill._types import Augment
from keras_distill._types import Dataset
from keras_distill.data.pipeline import as_float
from keras_distill.data.pipeline import check_arrays
from keras_distill.data.pipeline import check_pipeline
from keras_distill.data.pipeline import class_of_each
from keras_distill.data.pipeline import made_ahead
from keras_distill.data.pipeline import on_host
from keras_distill.data.pipeline import sample_seeds
from keras_distill.data.pipeline import steps_per_epoch
from keras_distill.data.targets import Targets

CLUSTERING_BATCH = 4096
CLUSTERING_STARTS = 10


def balanced_batches(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    samples_per_class: int = 4,
    *,
    epochs: int = 1,
    start_epoch: int = 0,
    augment: Augment | None = None,
    seed: int = 0,
    ids: bool = False,
    drop_remainder: bool = False,
) -> Dataset:
    """Class-uniform batches: `batch_size / samples_per_class` classes, equally many samples each.

    For losses that relate samples to one another, such as `CorrelationCongruence`, which the
    paper trains so with 2 or 4 samples a class:

        steps = steps_per_epoch(len(images), batch_size)
        dataset = balanced_batches(
            images, labels, batch_size, epochs=epochs, start_epoch=start
        )
        distiller.fit(
            dataset, epochs=epochs, initial_epoch=start, steps_per_epoch=steps, shuffle=False
        )

    An epoch has the steps of `batches`, all of them whole batches, so that it holds the data
    set's number of samples rounded up (or down) to a multiple of `batch_size`. Within an epoch

    - each class is in equally many batches, or in one more than another;
    - each sample of a class is seen equally often, or once more than another of its class. With
      classes of one size that is once, but for rounding; those of a smaller class come more
      often, not all of those of a larger one come in an epoch, and it is others each time;
    - within a batch a sample comes once, unless its class has fewer than `samples_per_class`,
      which then come in turns.

    The samples of a class stand side by side: replicas that share a batch get whole classes where
    the numbers divide. Classes and samples are a function of (seed, epoch), the augmentation one
    of (seed, epoch, sample, how often the sample has been seen in this epoch), for its first time
    that of `batches`.

    Args:
        images: NumPy array `(samples, ...)`, as in `batches`.
        labels: Class ids `(samples,)` or `(samples, 1)`, or one-hot labels.
        batch_size: Samples in a batch (the global batch under a strategy), a multiple of
            `samples_per_class`.
        samples_per_class: Samples of each class in a batch.
        epochs, start_epoch, augment, seed: As in `batches`.
        ids: Whether `y` is `Targets(labels=..., ids=...)`, ids the index in `images`.
        drop_remainder: Whether the steps of an epoch are rounded down rather than up.

    Returns:
        A `tf.data.Dataset` of (images, labels), images float32, with a known cardinality of
        `(epochs - start_epoch) * steps`.

    Raises:
        ValueError: As `batches`; if a sample has no class (-1), `batch_size` is no multiple of
            `samples_per_class`, or there are fewer classes than a batch asks for.

    Reference:
        The class-uniform sampler (CUR) of Peng et al. ICCV 2019, https://arxiv.org/abs/1904.01802.
        Deviation: the paper does not say how a batch's classes are drawn, nor what becomes of
        small classes: even turns, as above.
    """
    check_pipeline(epochs, start_epoch, augment, seed)
    images, labels = check_arrays(images, labels)
    classes = class_of_each(labels)
    if classes.min() < 0:
        raise ValueError(
            message(
                "a class for each sample",
                "labels",
                labels[classes < 0][:1],
                f"{np.sum(classes < 0)} have none: leave them out, or take `superclass_batches`.",
            )
        )
    turns = _Turns(classes, "classes", batch_size, samples_per_class, seed, drop_remainder)
    return _batches(images, labels, turns, epochs, start_epoch, augment, ids)


def superclass_batches(
    images: np.ndarray,
    labels: np.ndarray,
    features: np.ndarray,
    batch_size: int,
    clusters: int,
    samples_per_cluster: int = 4,
    *,
    epochs: int = 1,
    start_epoch: int = 0,
    augment: Augment | None = None,
    seed: int = 0,
    ids: bool = False,
    drop_remainder: bool = False,
) -> Dataset:
    """Superclass-uniform batches: `balanced_batches` of clusters of the teacher's features.

    A batch holds `batch_size / samples_per_cluster` clusters, equally many samples of each; the
    labels are only carried along, and may be missing (-1). The features are those of the
    teacher for the images as they are, for instance

        twin = kd.tap(teacher, "pool")
        features = twin.predict(images / 255.0)["features"]["pool"]

    They are clustered once, at the call, by scikit-learn's `MiniBatchKMeans` as they are: scale
    them to unit length where angles should count. The same features and seed give the same
    clusters, so a run that is resumed has to be given the same features.

    Args:
        images, batch_size, epochs, start_epoch, augment, seed, ids, drop_remainder: As in
            `balanced_batches`.
        labels: NumPy array with `samples` entries, of any shape beyond the first axis.
        features: NumPy array `(samples, ...)` of finite numbers; what is behind the first axis
            is flattened.
        clusters: Number of clusters.
        samples_per_cluster: Samples of each cluster in a batch.

    Returns:
        A `tf.data.Dataset`, as `balanced_batches` gives.

    Raises:
        ValueError: As `balanced_batches`, of clusters in the place of classes; if there is not
            one feature a sample.
        ImportError: If scikit-learn is missing.

    Reference:
        The superclass-uniform sampler (SUR) of Peng et al. ICCV 2019,
        https://arxiv.org/abs/1904.01802. The number of clusters in the paper is not known to us.
    """
    check_pipeline(epochs, start_epoch, augment, seed)
    images, labels = check_arrays(images, labels)
    found = _clusters(features, len(images), clusters, seed)
    turns = _Turns(found, "clusters", batch_size, samples_per_cluster, seed, drop_remainder)
    return _batches(images, labels, turns, epochs, start_epoch, augment, ids)


class _Turns:
    """Who is in which batch of an epoch.

    Args:
        groups: The class or cluster of each sample, int64 `(samples,)`.
        kind: What the groups are, "classes" or "clusters", for the errors.
        batch_size, seed, drop_remainder: As in `balanced_batches`.
        each: Samples of a group in a batch.
    """

    def __init__(self, groups, kind, batch_size, each, seed, drop_remainder):
        each_name = "samples_per_class" if kind == "classes" else "samples_per_cluster"
        self.each = positive_integer(each_name, each)
        self.steps = steps_per_epoch(len(groups), batch_size, drop_remainder)
        self.batch_size, self.seed = int(batch_size), int(seed)
        self.groups_per_batch = self.batch_size // self.each
        sizes = np.unique(groups, return_counts=True)[1]
        self.members = np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1])
        if self.batch_size % self.each:
            expected = f"`batch_size` to be a multiple of {each_name}={self.each}"
            raise ValueError(message(expected, "batch_size", batch_size))
        if self.groups_per_batch > len(sizes):
            raise ValueError(
                message(
                    f"at least batch_size / {each_name} = {self.groups_per_batch} {kind}",
                    kind,
                    len(sizes),
                    f"Lower `batch_size` to at most {len(sizes) * self.each}, or raise "
                    f"`{each_name}`.",
                )
            )
        if self.steps == 0:
            expected = f"`batch_size` to be at most the {len(groups)} samples"
            hint = "Or leave `drop_remainder` off."
            raise ValueError(message(expected, "batch_size", batch_size, hint))

    def of_epoch(self, epoch):
        """`(indices, times)`, int64 `(steps, batch_size)`: a function of (seed, epoch).

        `times` is how often the sample has come before in this epoch.
        """
        rng = np.random.default_rng([self.seed % 2**64, int(epoch)])
        turns = _even_draws(rng, len(self.members), self.steps, self.groups_per_batch).ravel()
        indices = np.empty((len(turns), self.each), "int64")
        counts = np.bincount(turns, minlength=len(self.members))
        places = np.split(np.argsort(turns, kind="stable"), np.cumsum(counts)[:-1])
        for members, own in zip(self.members, places):
            indices[own] = members[_even_draws(rng, len(members), len(own), self.each)]
        shape = self.steps, self.batch_size
        return indices.reshape(shape), _times_before(indices.ravel()).reshape(shape)


def _even_draws(rng, count, rows, size):
    """`(rows, size)` numbers from 0 to `count - 1`, each as often as another or once more.

    So in all, and in each row, in which therefore none comes twice where `count >= size`.
    Permutations follow one another; where one ends within a row, the next begins with those
    that are not in the row yet.
    """
    draws, length = [], 0
    row = np.zeros(0, "int64")
    while length < rows * size:
        order = rng.permutation(count)
        if len(row):
            used = np.bincount(row, minlength=count)[order]
            first = np.argsort(used, kind="stable")[: size - len(row)]
            order = np.concatenate([order[first], np.delete(order, first)])
        draws.append(order)
        length += count
        tail = np.concatenate([row, order])
        row = tail[len(tail) - length % size :]
    return np.concatenate([*draws, np.zeros(0, "int64")])[: rows * size].reshape(rows, size)


def _times_before(indices):
    """How often each entry stands before itself."""
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    starts = np.maximum.accumulate(np.where(is_first, np.arange(len(indices)), 0))
    times = np.empty_like(indices)
    times[order] = np.arange(len(indices)) - starts
    return times


def _batches(images, labels, turns, epochs, start_epoch, augment, ids):
    import tensorflow as tf

    def of_epoch(epoch):
        parts = tf.numpy_function(turns.of_epoch, [epoch], [tf.int64, tf.int64])
        parts = [tf.ensure_shape(part, (turns.steps, turns.batch_size)) for part in parts]
        rows = tf.data.Dataset.from_tensor_slices(tuple(parts))
        return rows.map(lambda indices, times: (epoch, indices, times))

    images, labels = on_host(images, labels)

    def take(epoch, indices, times):
        x = as_float(tf.gather(images, indices))
        if augment is not None:
            x = augment(x, _seeds(turns.seed, epoch, indices, times))
        y = tf.gather(labels, indices)
        return x, Targets(labels=y, ids=indices) if ids else y

    dataset = tf.data.Dataset.range(start_epoch, epochs).flat_map(of_epoch)
    total = (epochs - start_epoch) * turns.steps
    return made_ahead(dataset.apply(tf.data.experimental.assert_cardinality(total)), take)


def _seeds(seed, epoch, indices, times):
    """`sample_seeds`, and others for each time that a sample comes again."""
    import tensorflow as tf

    seeds = sample_seeds(seed, epoch, indices)
    # An odd factor, so that no number of times less than 2**32 gives the same again.
    again = tf.cast(times, tf.int32) * 1640531527
    return tf.stack([seeds[:, 0] + again, seeds[:, 1]], axis=1)


def _clusters(features, count, clusters, seed):
    """The cluster of each sample, int64 `(samples,)`."""
    clusters = positive_integer("clusters", clusters)
    features = np.asarray(features)
    is_array = features.ndim >= 2 and features.dtype.kind in "biuf"
    if not is_array or len(features) != count or not np.isfinite(features).all():
        received = (features.shape, str(features.dtype))
        raise ValueError(
            message(
                f"`features` to be finite numbers, of shape ({count}, ...)", "features", received
            )
        )
    if clusters > count:
        raise ValueError(message(f"at most {count} clusters", "clusters", clusters))
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise ImportError(
            'Clusters of features need scikit-learn: pip install "keras-distill[demo]"'
        ) from error
    if features.dtype.kind != "f" or features.dtype.itemsize < 4:
        features = features.astype("float32")
    # Unlike `KMeans`, it adds up in one order whatever the number of threads.
    means = MiniBatchKMeans(
        clusters,
        batch_size=CLUSTERING_BATCH,
        n_init=CLUSTERING_STARTS,
        random_state=int(seed) % 2**32,
    )
    return means.fit_predict(features.reshape(count, -1)).astype("int64")
