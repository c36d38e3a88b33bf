"""Several devices and several machines: the strategy, and what Keras's step misses there.

TensorFlow only; on other backends every function is a no-op or names TensorFlow.
"""

import json
import os

import keras


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


def choose_strategy(devices=None):
    """The `tf.distribute` strategy that fits this machine and its environment.

    * `TF_CONFIG` with a cluster of several workers: `MultiWorkerMirroredStrategy`;
    * more than one GPU, or more than one device in `devices`: `MirroredStrategy`;
    * else TensorFlow's default strategy, one device.

    It must be called before any other TensorFlow operation where `TF_CONFIG` is set. Wrappers
    and models are then created inside `strategy.scope()`.

    Args:
        devices: Names of devices, such as `["GPU:0", "GPU:1"]`. Defaults to all GPUs.

    Returns:
        A `tf.distribute.Strategy`.
    """
    require_tensorflow("`choose_strategy`")
    import tensorflow as tf

    cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    if sum(len(cluster.get(role, [])) for role in ("chief", "worker")) > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if devices is None:
        devices = [device.name for device in tf.config.list_logical_devices("GPU")]
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy(devices)
    if devices:
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.get_strategy()


def global_batch_size(per_replica, strategy):
    """`per_replica` times the number of replicas: what a dataset is batched with."""
    return per_replica * strategy.num_replicas_in_sync


def is_chief():
    """Whether this process is the one that writes files (always, outside a cluster)."""
    task = json.loads(os.environ.get("TF_CONFIG") or "{}").get("task")
    if not task:
        return True
    cluster = json.loads(os.environ["TF_CONFIG"]).get("cluster", {})
    if cluster.get("chief"):
        return task["type"] == "chief"
    return task["type"] == "worker" and task["index"] == 0


def in_several_processes(strategy):
    """Whether `strategy` spans more than one worker process."""
    if not is_tensorflow() or strategy is None:
        return False
    import tensorflow as tf

    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and strategy.extended._in_multi_worker_mode()
    )


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
