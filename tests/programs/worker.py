"""Trains wrappers on one device, on several, or as one worker of a cluster.

    python worker.py FOLDER DEVICES WRAPPER [WRAPPER ...]

What the first wrapper leaves is in FOLDER/0.npz and FOLDER/0.json, and so on. The cluster is in
`TF_CONFIG`. Without one, and with DEVICES above 1, the CPU is so many devices (`MirroredStrategy`,
on JAX `keras.distribution.DataParallel`); one of them trains first, into FOLDER/alone, on the same
global batches.
"""

import contextlib
import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main(folder, devices, *wrappers):
    count = int(devices)
    if count > 1:  # JAX reads it when it is imported.
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
    several = strategy_of(count)
    if count > 1:
        train_all(wrappers, None, os.path.join(folder, "alone"))
    train_all(wrappers, several, folder)


def strategy_of(count):
    """What places a training on `count` devices of this machine, or on the cluster."""
    import keras

    if keras.backend.backend() == "jax":
        return keras.distribution.DataParallel()
    import tensorflow as tf

    from keras_distill import distribution

    if count == 1:
        return distribution.choose_strategy()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration() for _ in range(count)],
    )
    return distribution.choose_strategy([f"CPU:{i}" for i in range(count)])


def train_all(wrappers, strategy, folder):
    from tests.contract import WRAPPERS

    os.makedirs(folder, exist_ok=True)
    for i, name in enumerate(wrappers):
        with contextlib.nullcontext() if strategy is None else strategy.scope():
            train(WRAPPERS[name], os.path.join(folder, str(i)))


def train(wrapper, out):
    import keras
    import numpy as np

    from tests.contract import samples

    model = wrapper.compiled(batch_norm=False)
    x, y = wrapper.element(*samples(40))
    arguments = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0, **wrapper.fit}
    history = model.fit(x, y, **arguments).history
    logs = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    variables = model.trainable_variables
    weights = {str(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}
    np.savez(f"{out}.npz", **weights)
    with open(f"{out}.json", "w") as file:
        replicas = replicas_of(variables[0].value)
        json.dump({"history": history, "evaluate": logs, "replicas": replicas}, file)


def replicas_of(value):
    """On how many devices a variable has its copies."""
    if hasattr(value, "sharding"):
        return len(value.sharding.device_set)
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


if __name__ == "__main__":
    main(*sys.argv[1:])
