"""One process of a cluster, or the only one: trains wrappers and writes what came of each.

    python worker.py FOLDER WRAPPER [WRAPPER ...]

What the first one leaves is in FOLDER/0.npz and FOLDER/0.json, and so on. The cluster is in
`TF_CONFIG`; without one, a single device trains on the same global batch.
"""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main(folder, *wrappers):
    from keras_distill import distribution

    strategy = distribution.choose_strategy()
    from tests.contract import WRAPPERS

    os.makedirs(folder)
    for i, name in enumerate(wrappers):
        train(WRAPPERS[name], strategy, os.path.join(folder, str(i)))


def train(wrapper, strategy, out):
    import numpy as np

    from tests.contract import samples

    with strategy.scope():
        model = wrapper.compiled(batch_norm=False)
    x, y = wrapper.element(*samples(40))
    arguments = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0, **wrapper.fit}
    history = model.fit(x, y, **arguments).history
    logs = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    weights = {str(i): v.numpy() for i, v in enumerate(model.trainable_variables)}
    np.savez(f"{out}.npz", **weights)
    with open(f"{out}.json", "w") as file:
        replicas = strategy.num_replicas_in_sync
        json.dump({"history": history, "evaluate": logs, "replicas": replicas}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
