"""Ids of the training samples, for tables and memory banks: looked at before training."""

import keras
import numpy as np
from keras import ops

from keras_distill import _keras
from keras_distill.data.targets import Targets

HINT = "Use kd.data.with_ids(dataset), or kd.data.batches(..., ids=True)."


def check(x, y, user, check_rows):
    """Raises where ids are missing or, as far as that can be seen, have no row.

    Args:
        x, y: As in `fit`. Of a data set the first batch is seen, of a generator nothing.
        user: What needs the ids, for the message.
        check_rows: A function of an array of ids that raises where one has no row.
    """
    if hasattr(x, "element_spec"):
        y = _keras.unpack_x_y_sample_weight(x.element_spec)[1]
    elif isinstance(x, keras.utils.PyDataset):
        y = _keras.unpack_x_y_sample_weight(x[0])[1]
    elif not are_arrays(x):
        return  # A generator: the first step tells.
    require(y, user)
    if hasattr(x, "element_spec") and hasattr(x, "take"):
        for element in x.take(1):
            y = _keras.unpack_x_y_sample_weight(element)[1]
    if hasattr(x, "element_spec") and not hasattr(x, "take"):
        return  # Batches of several devices, or an iterator.
    check_rows(np.asarray(ops.convert_to_numpy(y["ids"])))


def require(y, user):
    """Raises unless `y` is `Targets` with `ids`."""
    if not isinstance(y, Targets) or "ids" not in y:
        received = sorted(y) if isinstance(y, Targets) else type(y).__name__
        raise ValueError(
            f"Expected `y` to be Targets with `ids`, for {user}. Received: y={received}. {HINT}"
        )


def are_arrays(x):
    """Whether `fit`'s `x` is arrays, not a data set or a generator."""
    if hasattr(x, "element_spec") or isinstance(x, keras.utils.PyDataset):
        return False
    leaves = keras.tree.flatten(x)
    return bool(leaves) and all(hasattr(leaf, "shape") for leaf in leaves)
