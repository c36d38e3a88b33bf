"""Random draws of which several replicas make those of one device."""

from keras import ops

from keras_distill import distribution


def of_own_rows(draw, rows):
    """This replica's rows of one draw for the samples of all replicas.

    The seeds of the replicas stand alike: each draws for all samples, and takes its own rows, so
    that the samples get what they would on one device.

    Args:
        draw: A function of a number of rows that draws a tensor `(rows, ...)`. It is called once.
        rows: The number of samples here.
    """
    context = distribution.replica_context()
    if context is None:
        return draw(rows)
    sizes = context.all_gather(ops.cast(ops.reshape(rows, (1,)), "int32"), axis=0)
    start = ops.sum(sizes[: context.replica_id_in_sync_group])
    return draw(ops.sum(sizes))[start : start + rows]
