"""Reading model inputs out of arrays, datasets and iterables of batches."""

import itertools

import keras
import numpy as np

from keras_distill import _checks

CHUNK = 64


def batches(inputs, data, name):
    """Yields the model inputs in `data`, labels dropped, batch by batch.

    Args:
        inputs: The network's `Inputs`.
        data: An array (or the dict, list or tuple of arrays that the network takes), a pair
            `(x, y)` of these, or an iterable of batches of either kind: a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a list, a generator.
        name: What the caller calls `data`, for errors.

    Yields:
        A list of NumPy arrays, one an input in order, each of shape `(batch, ...)`.
    """
    found = False
    for element in _elements(inputs, data, name):
        arrays = _arrays(inputs, element, name)
        for start in range(0, len(arrays[0]), CHUNK):
            found = True
            yield [array[start : start + CHUNK] for array in arrays]
    if not found:
        raise ValueError(f"Expected `{name}` to hold at least one sample. Received: none.")


def require_finite(data, name):
    """Raises for a data set that says that it never ends."""
    cardinality = getattr(data, "cardinality", None)
    endless = isinstance(data, keras.utils.PyDataset) and data.num_batches is None
    # tf.data.INFINITE_CARDINALITY is -1.
    if endless or (callable(cardinality) and int(cardinality()) == -1):
        raise ValueError(
            f"Expected `{name}` to end. Received: an endless data set. Use `dataset.take(...)`."
        )


def take(inputs, data, name, count):
    """At most `count` samples: evenly spaced ones of arrays, else the first of the stream.

    Returns:
        A list of NumPy arrays, one an input in order, each of shape `(samples, ...)`.
    """
    if _is_element(inputs, data):
        arrays = _arrays(inputs, data, name)
        if len(arrays[0]) > count:
            chosen = np.linspace(0, len(arrays[0]) - 1, count).astype(int)
            arrays = [array[chosen] for array in arrays]
        data = inputs.pack(arrays)
    taken, size = [], 0
    for arrays in batches(inputs, data, name):
        taken.append(arrays)
        size += len(arrays[0])
        if size >= count:
            break
    return [np.concatenate(column)[:count] for column in zip(*taken, strict=True)]


def _is_array(value):
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_structure(inputs, value):
    """Whether `value` looks like the inputs of one batch, whatever their shapes."""
    if len(inputs.items) == 1 and _is_array(value):
        return True
    if isinstance(value, dict):
        return True
    return (
        isinstance(value, (list, tuple))
        and inputs.kind is not None
        and len(value) == len(inputs.items)
        and all(_is_array(leaf) for leaf in value)
    )


def _without_labels(inputs, value):
    """`x` of a tuple `(x,)`, `(x, y)` or `(x, y, sample_weight)`, else the value itself."""
    if isinstance(value, tuple) and 1 <= len(value) <= 3 and not _is_structure(inputs, value):
        return value[0]
    return value


def _is_element(inputs, value):
    return _is_structure(inputs, _without_labels(inputs, value))


def _elements(inputs, data, name):
    if data is None or isinstance(data, (str, bytes)):
        raise TypeError(
            _checks.message(f"`{name}` to be arrays or an iterable of batches", name, data)
        )
    if _is_element(inputs, data):
        return [data]
    if isinstance(data, keras.utils.PyDataset):
        count = data.num_batches
        indices = itertools.count() if count is None else range(count)
        return (data[index] for index in indices)
    try:
        return iter(data)
    except TypeError:
        raise TypeError(
            f"Expected `{name}` to be arrays or an iterable of batches. "
            f"Received: an object of type {type(data).__name__}."
        ) from None


def _arrays(inputs, element, name):
    """One batch as checked NumPy arrays of the network's dtypes, in the network's order."""
    element = _without_labels(inputs, element)
    if isinstance(element, dict):
        leaves = [_entry(element, item, name) for item in inputs.items]
    elif isinstance(element, (list, tuple)) and inputs.kind is not None:
        leaves = list(element)
    else:
        leaves = [element]
    if len(leaves) != len(inputs.items):
        raise ValueError(
            f"Expected `{name}` to hold {len(inputs.items)} inputs a batch. "
            f"Received: {len(leaves)}."
        )
    arrays = [_array(leaf, item, name) for leaf, item in zip(leaves, inputs.items, strict=True)]
    if len({len(array) for array in arrays}) > 1:
        sizes = ", ".join(str(len(array)) for array in arrays)
        raise ValueError(f"Expected the inputs of `{name}` to be equally long. Received: {sizes}.")
    return arrays


def _entry(element, item, name):
    for key in (item.key, item.name):
        if key in element:
            return element[key]
    raise ValueError(
        f"Expected `{name}` to have the input {item.name!r}. Received: {sorted(map(str, element))}."
    )


def _array(leaf, item, name):
    try:
        array = np.asarray(leaf).astype(item.dtype, copy=False)
    except (TypeError, ValueError):
        raise ValueError(
            f"Expected `{name}` to hold arrays of dtype {item.dtype}. "
            f"Received: a value of type {type(leaf).__name__}."
        ) from None
    fits = array.ndim == len(item.shape) and all(
        expected is None or expected == size
        for expected, size in zip(item.shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        expected = ("samples", *item.shape[1:])
        hint = "Batch the data set." if array.shape == item.shape[1:] else ""
        raise ValueError(
            f"Expected `{name}` to hold arrays of shape {expected} for the input {item.name!r}. "
            f"Received: shape {array.shape}. {hint}".rstrip()
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"Expected `{name}` to be finite. Received: values with NaN or infinity.")
    return array
