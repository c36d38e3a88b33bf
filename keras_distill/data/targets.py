"""`Targets`: what the terms need beside the label, and the ids of samples."""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import Self

import keras

from keras_distill import _keras
from keras_distill._checks import instance
from keras_distill._checks import message
from keras_distill._types import Dataset
from keras_distill._types import Structure
from keras_distill.data.pipeline import map_in_order


class Targets(dict):
    """The labels of a batch, and what the loss terms need beside them.

    A `Targets` stands where Keras expects `y`. The wrappers hand `labels` alone to the
    compiled loss and metrics, and the other entries to the terms that ask for them; a
    plain dict is always the outputs of a model with several heads. The type is kept by
    `tf.data`, `tf.function`, `steps_per_execution`, `tf.distribute`, `keras.tree` and,
    on the JAX backend, `jax.tree_util`.

    Args:
        entries: A mapping or pairs, as for `dict`.
        **named_entries: `labels`, what the compiled loss gets as `y`: a tensor, or a
            nested structure for a model with several outputs; `ids`, the int64 index of
            each sample in its data set, shape `(batch,)`; `teacher`, cached outputs of
            the teacher; any other tensor with the batch first.

    Example:
        >>> targets = Targets(labels=np.array([3, 1]), ids=np.array([10, 42]))
        >>> targets["ids"]
        array([10, 42])
    """

    def __init__(
        self, entries: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **named_entries: Any
    ) -> None:
        super().__init__(entries, **named_entries)
        # TensorFlow makes an empty one and fills it, so no entry at all is let through.
        if self and "labels" not in self:
            raise ValueError(
                message("`Targets` to have `labels`", "entries", sorted(self))
                + " Samples without a label take -1."
            )

    @property
    def labels(self) -> Structure:
        """The entry `labels`."""
        return self["labels"]

    def copy(self) -> Self:
        """A shallow copy of the same type (that of `dict` is a plain dict)."""
        return type(self)(self)

    def __repr__(self):
        return f"Targets({super().__repr__()})"


def _flatten(targets):
    names = tuple(sorted(targets))
    return [targets[name] for name in names], names, names


def _unflatten(names, values):
    # Trees pass through states that the constructor would refuse (masks, None, specs).
    targets = Targets()
    targets.update(zip(names, values))
    return targets


_keras.register_tree_node(Targets, _flatten, _unflatten)
if keras.backend.backend() == "jax":
    import jax

    jax.tree_util.register_pytree_with_keys(
        Targets,
        lambda targets: (
            tuple((jax.tree_util.DictKey(name), targets[name]) for name in sorted(targets)),
            tuple(sorted(targets)),
        ),
        _unflatten,
    )


def with_ids(dataset: Dataset) -> Dataset:
    """Gives each sample its index in the data set, as `Targets(labels=y, ids=index)`.

    The ids are those of the order in which `dataset` yields, so it has to be called
    before `shuffle` and `batch`, on a data set whose order is always the same.

    Args:
        dataset: A `tf.data.Dataset` of single samples `(x, y)` or `(x, y, sample_weight)`
            whose number of samples is known. Where `y` is a `Targets`, `ids` is added.

    Returns:
        A data set of the same elements and the same cardinality with
        `y = Targets(labels=y, ids=index)`, `index` an int64 scalar from 0.

    Raises:
        TypeError: If `dataset` is not a `tf.data.Dataset`.
        ValueError: If its cardinality is unknown or infinite, its elements have no `y`,
            or they are batches.

    Example:
        >>> dataset = tf.data.Dataset.from_tensor_slices((images, labels))
        >>> dataset = with_ids(dataset).shuffle(1000).batch(128)
    """
    import tensorflow as tf

    count = check_samples(dataset, "with_ids")

    def add(index, element):
        x, y, *weight = element
        targets = Targets(y if isinstance(y, Targets) else {"labels": y})
        targets["ids"] = index
        return (x, targets, *weight)

    with_index = map_in_order(dataset.enumerate(), add)
    return with_index.apply(tf.data.experimental.assert_cardinality(count))


def check_samples(dataset, caller):
    """The number of samples of a data set of single, labelled samples.

    Args:
        dataset: As in `with_ids`.
        caller: Name of the function that asks, for the messages.

    Raises:
        TypeError, ValueError: As in `with_ids`.
    """
    import tensorflow as tf

    instance("dataset", dataset, tf.data.Dataset, "a `tf.data.Dataset`")
    count = int(dataset.cardinality())
    if count < 0:
        kind = "infinite" if count == tf.data.INFINITE_CARDINALITY else "unknown"
        raise ValueError(
            message("`dataset` to have a known number of samples", "cardinality", kind)
            + f" Call `{caller}` before `repeat`, or use `tf.data.experimental.assert_cardinality`."
        )
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(
            message("`dataset` to yield (x, y) or (x, y, sample_weight)", "element_spec", spec)
            + " Samples without a label take y = -1."
        )
    if _is_batched(spec):
        raise ValueError(
            message("`dataset` to yield single samples", "element_spec", spec)
            + f" Call `{caller}` before `batch`."
        )
    return count


def check_no_labels(labels):
    """Raises where a data set comes with labels beside it."""
    if labels is not None:
        raise ValueError(
            message("no `labels` beside a data set, which has its own", "labels", type(labels))
            + " Pass None."
        )


def _is_batched(spec):
    """Whether each component has a first axis of unknown size, as `batch` leaves it."""
    import tensorflow as tf

    shapes = [component.shape for component in tf.nest.flatten(spec)]
    return all(shape.rank and shape[0] is None for shape in shapes)
