"""Several devices and several machines: the strategy, and what Keras's step misses there.

TensorFlow only; on other backends every function is a no-op or names TensorFlow. On JAX,
`keras.distribution.DataParallel` needs nothing of this.
"""

from collections.abc import Sequence

import keras

from keras_distill import _checks
from keras_distill import _cluster
from keras_distill._cluster import ClusterError
from keras_distill._cluster import failures_told
from keras_distill._types import Strategy

__all__ = [
    "ClusterError",
    "choose_strategy",
    "failures_told",
    "from_chief",
    "global_batch_size",
    "is_chief",
    "writes_files",
]

CHUNK = 2**28  # bytes that `from_chief` sends at once


def is_tensorflow():
    """Whether Keras runs on TensorFlow."""
    return keras.backend.backend() == "tensorflow"


def require_tensorflow(what):
    """Raises an error that names TensorFlow where another backend runs."""
    if not is_tensorflow():
        raise RuntimeError(
            f"{what} needs the TensorFlow backend. Received: "
            f"KERAS_BACKEND={keras.backend.backend()!r}. "
            "Set KERAS_BACKEND=tensorflow before Python starts."
        )


def choose_strategy(
    devices: Sequence[str] | None = None,
    *,
    gpus: int | None = None,
    wait_seconds: float = 600,
    slurm_port: int = 8888,
) -> Strategy:
    """The `tf.distribute` strategy that fits this machine and its environment.

    * `TF_CONFIG` with a cluster of several workers, or several tasks that Slurm's `srun` started:
      `MultiWorkerMirroredStrategy`, on all GPUs that each process sees;
    * more than one GPU, or more than one device in `devices`: `MirroredStrategy`;
    * else TensorFlow's default strategy, one device.

    In a cluster it must be called before any other TensorFlow operation. Wrappers and models are
    then created inside `strategy.scope()`. A `fit` inside `with failures_told():` ends in one
    line where another worker is lost.

    Args:
        devices: Names of devices, such as `["GPU:0", "GPU:1"]`. Defaults to all GPUs.
        gpus: How many GPUs this process is to use, the first ones. Defaults to all.
        wait_seconds: How long to wait for the other workers of a cluster.
        slurm_port: Under Slurm, the port of each node's first task.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: If `TF_CONFIG` does not parse or does not fit, or there are no such devices.
        ClusterError: If this worker's port is in use, or another worker does not come in time.
    """
    require_tensorflow("`choose_strategy`")
    import tensorflow as tf

    wait_seconds = _checks.positive("wait_seconds", wait_seconds)
    if devices is not None and gpus is not None:
        raise ValueError(
            _checks.message("either `devices` or `gpus`", "gpus", gpus, f"And devices={devices!r}.")
        )
    _cluster.take_from_slurm(_checks.positive_integer("slurm_port", slurm_port))
    cluster = _cluster.read()
    if gpus is not None:
        _limit_gpus(gpus)
    if cluster is not None and len(cluster.tasks) > 1:
        if devices is not None:
            hint = "In a cluster each process uses the GPUs that it sees; `gpus` limits them."
            raise ValueError(_checks.message("no `devices`", "devices", devices, hint))
        _cluster.prepare(cluster, wait_seconds)
        with failures_told(wait_seconds):
            return tf.distribute.MultiWorkerMirroredStrategy()
    names = _checked_names(devices)
    if len(names) > 1:
        return tf.distribute.MirroredStrategy(names)
    if names:
        return tf.distribute.OneDeviceStrategy(names[0])
    return tf.distribute.get_strategy()


def _limit_gpus(count):
    """Hides all GPUs of this machine but the first."""
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    if _checks.positive_integer("gpus", count) > len(found):
        there = ", ".join(f"GPU:{i}" for i in range(len(found))) or "none"
        expected = f"`gpus` to be at most {len(found)}, as many as this process sees"
        raise ValueError(_checks.message(expected, "gpus", count, f"GPUs: {there}."))
    tf.config.set_visible_devices(found[:count], "GPU")


def _checked_names(devices):
    """Names such as "GPU:0" of devices that are there; by default of all GPUs."""
    import tensorflow as tf

    def names_of(kind=None):
        found = tf.config.list_logical_devices(kind)
        return [device.name.removeprefix("/device:") for device in found]

    if devices is None:
        return names_of("GPU")
    is_list = isinstance(devices, (list, tuple))
    names = [str(name).rsplit("/", 1)[-1].upper() for name in devices] if is_list else []
    names = [name.removeprefix("DEVICE:") for name in names]
    if not is_list or len(set(names) & set(names_of())) < len(names):
        expected = f"`devices` to be a list of devices among {', '.join(names_of())}, each once"
        raise ValueError(_checks.message(expected, "devices", devices))
    return names


def global_batch_size(per_replica: int, strategy: Strategy) -> int:
    """`per_replica` times the number of replicas: what a dataset is batched with."""
    return per_replica * strategy.num_replicas_in_sync


def is_chief() -> bool:
    """Whether this process is the one that writes files (always, outside a cluster)."""
    cluster = _cluster.read()
    return cluster is None or cluster.own == 0


def in_several_processes(strategy):
    """Whether `strategy` spans more than one worker process."""
    if not is_tensorflow() or strategy is None:
        return False
    import tensorflow as tf

    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and strategy.extended._in_multi_worker_mode()
    )


def writes_files(strategy: Strategy) -> bool:
    """Whether this process writes the files of a training under `strategy`: the chief does."""
    return not in_several_processes(strategy) or is_chief()


def from_chief(content: bytes | None, strategy: Strategy) -> bytes:
    """The chief's bytes in every process of `strategy`, which all have to call this.

    Args:
        content: Bytes, or in any process but the chief `None`.
        strategy: A `tf.distribute.Strategy`.

    Returns:
        The bytes that the chief passed.
    """
    if not in_several_processes(strategy):
        return content
    import numpy as np
    import tensorflow as tf

    @tf.function
    def summed(numbers):
        def of_first():
            context = tf.distribute.get_replica_context()
            is_first = context.replica_id_in_sync_group == 0
            return context.all_reduce("SUM", tf.where(is_first, numbers, 0))

        return strategy.run(of_first)

    # As whole numbers, which lose nothing: the others add zeros.
    content = content if is_chief() else b""

    def sent(numbers):
        return first_local(summed(tf.constant(numbers, tf.int32))).numpy()

    # Its length in two numbers, as it may be too large for one.
    high, low = map(int, sent([len(content) >> 30, len(content) % 2**30]))
    length, parts = (high << 30) + low, []
    for start in range(0, length, CHUNK):
        size = min(CHUNK, length - start)
        part = content[start : start + size].ljust(size + -size % 4, b"\0")
        parts.append(sent(np.frombuffer(part, "int32")).tobytes()[:size])
    return b"".join(parts)


def first_local(value):
    """A per-replica value's first copy in this process; any other value as it is."""
    import tensorflow as tf

    return value.values[0] if isinstance(value, tf.distribute.DistributedValues) else value


def logs_for_reduction(logs, strategy):
    """Logs as Keras 3.15's step can reduce them under `MultiWorkerMirroredStrategy`.

    Keras reduces what a step returns with `axis=0`, which fails on scalars (keras issue 20585).
    A leading axis of one serves: the mean over it is the mean over the workers.
    """
    if not in_several_processes(strategy):
        return logs
    return {name: keras.ops.reshape(value, (1,)) for name, value in logs.items()}


def sum_over_replicas(value):
    """The sum of a tensor over all replicas, seen by each; the tensor itself on one device.

    Its gradient is that of the sum.
    """
    context = replica_context()
    return value if context is None else context.all_reduce("SUM", value)


def of_all_replicas(value):
    """The rows of a tensor of all replicas, one after another; the tensor itself on one device."""
    context = replica_context()
    return value if context is None else context.all_gather(value, axis=0)


def replica_context():
    """The `tf.distribute.ReplicaContext` of a strategy of several replicas, or `None`."""
    if not is_tensorflow():
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None
