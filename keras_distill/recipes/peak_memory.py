"""A program: what one training of a recipe needs of memory at most, in a process of its own.

    python -m keras_distill.recipes.peak_memory JSON

prints `{"peak_mib": ..., "training_mib": ..., "seconds": ...}`: the process at its highest, and how
much of that the training added to what imports and data took.
"""

import json
import pathlib
import re
import subprocess
import sys
import time

from keras_distill import data
from keras_distill.recipes import networks
from keras_distill.recipes import running
from keras_distill.recipes import schemes

KIBIBYTES = 1024.0
STATUS = pathlib.Path("/proc/self/status")


def measure(recipe, options, dataset, data_dir=None, limit=None, seed=0):
    """Trains a recipe in a new process, and returns what it printed as a dict.

    Args:
        recipe: A recipe's name.
        options: A dict of the arguments of `recipes.schemes.Options`.
        dataset, data_dir, limit: As in `kd.data.load`.
        seed: Whole number.

    Raises:
        RuntimeError: If the process fails; its last words are in the message.
    """
    known = {"recipe": recipe, "options": options, "dataset": dataset, "data_dir": data_dir}
    given = json.dumps({**known, "limit": limit, "seed": seed})
    command = [sys.executable, "-m", "keras_distill.recipes.peak_memory", given]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(
            f"Expected a training of {recipe} in a process of its own. Received: exit status "
            f"{finished.returncode}.\n{finished.stderr[-2000:]}"
        )
    return json.loads(finished.stdout.splitlines()[-1])


def trained(recipe, options, dataset, data_dir, limit, seed):
    """Trains in this process; the arguments are those of `measure`. Returns its dict.

    A teacher is as it is initialised: what it costs does not depend on what it knows.
    """
    scheme = schemes.named(recipe)
    options = schemes.Options(**options).filled()
    images = data.load(dataset, data_dir, "train", limit=limit)
    task = running.task_of(scheme, images, options, seed)
    before, start = _peak(), time.perf_counter()
    teacher = None
    if scheme.first:
        teacher = networks.get(options.teacher, images.image_shape, images.class_count, seed + 1)
        teacher.name = "teacher"
    plan = scheme.plan(task, options, teacher)
    plan.model.compile(**plan.compile)
    plan.model.fit(
        plan.data(0), epochs=plan.epochs, steps_per_epoch=plan.steps, shuffle=False, verbose=0
    )
    seconds = round(time.perf_counter() - start, 3)
    return {"peak_mib": _peak(), "training_mib": _peak() - before, "seconds": seconds}


def _peak():
    """Mebibytes of this process at its highest; Linux tells them."""
    return int(re.search(r"VmHWM:\s+(\d+)", STATUS.read_text())[1]) / KIBIBYTES


if __name__ == "__main__":
    print(json.dumps(trained(**json.loads(sys.argv[1]))))
