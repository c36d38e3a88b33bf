"""Rows of a table of samples: read and written without a copy of the whole variable.

A dense read or write of a TensorFlow variable that is also written by rows copies all of it: rows
go through its handle, which is each replica's own.
"""

import keras
from keras import ops

from keras_distill import distribution


def read_rows(bank, ids):
    """The rows `ids` of a bank: a `keras.Variable`, or an array."""
    if not (isinstance(bank, keras.Variable) and distribution.is_tensorflow()):
        return ops.take(bank, ids, axis=0)
    import tensorflow as tf

    return tf.raw_ops.ResourceGather(
        resource=bank.value.handle, indices=ids, dtype=bank.value.dtype
    )


def write_rows(bank, ids, rows):
    """Writes the rows `ids` of a bank, a `keras.Variable`; of a repeated id any one."""
    rows = ops.cast(ops.stop_gradient(rows), bank.dtype)
    if not distribution.is_tensorflow():
        bank.assign(ops.scatter_update(bank.value, ops.expand_dims(ids, -1), rows))
        return
    import tensorflow as tf

    tf.raw_ops.ResourceScatterUpdate(resource=bank.value.handle, indices=ids, updates=rows)
