"""What `benchmark.py --angles` measures: RelationalAngle beside the plain formula of all triplets.

Peak memory and time of a value with its gradient, features (512, 128), each in a process of its
own; ours at a batch of 1024 too.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

import keras_distill as kd

FEATURES = 128
BATCH = 512
TIMES = 5
KIBIBYTES = 1024.0  # in a mebibyte


def plain(teacher, student):
    """Park et al. 2019: the cosines of all triplets in one tensor, `(batch, batch, batch)`."""
    import tensorflow as tf

    def cosines(x):
        differences = x[tf.newaxis] - x[:, tf.newaxis]
        unit = tf.math.l2_normalize(differences, axis=-1, epsilon=1e-24)
        return tf.matmul(unit, unit, transpose_b=True)

    gaps = tf.abs(cosines(student) - tf.stop_gradient(cosines(teacher)))
    return tf.where(gaps < 1.0, 0.5 * gaps**2, gaps - 0.5)


def ours(teacher, student):
    return kd.losses.relational_angle(teacher, student)


FORMS = {"plain": plain, "ours": ours}


def measured(name, batch):
    """`{"peak": MiB above the imports, "seconds": median, "value": the mean}` of this process."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    teacher, student = (
        tf.constant(rng.normal(size=(batch, FEATURES)), tf.float32) for _ in range(2)
    )

    @tf.function
    def both(teacher, student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = tf.reduce_mean(FORMS[name](teacher, student))
        return value, tape.gradient(value, student)

    tf.matmul(teacher, student, transpose_b=True)  # The library's own threads and pools.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        value, gradient = both(teacher, student)
        gradient.numpy()
        seconds.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / KIBIBYTES
    return {"peak": peak, "seconds": statistics.median(seconds[1:]), "value": float(value)}


def compared():
    """The figures of both forms."""
    found = {}
    for name, batch in (("plain", BATCH), ("ours", BATCH), ("ours", 2 * BATCH)):
        command = [sys.executable, __file__, name, str(batch)]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        found[f"{name}, batch {batch}"] = json.loads(finished.stdout.splitlines()[-1])
    return found


def show(found):
    """Prints a row a form."""
    print(f"\n{'form':20} {'MiB':>8} {'seconds':>8} {'mean':>9}")
    for name, figures in found.items():
        print(f"{name:20} {figures['peak']:8.0f} {figures['seconds']:8.2f} {figures['value']:9.6f}")
    plain, own = (found[f"{name}, batch {BATCH}"] for name in ("plain", "ours"))
    memory, seconds = (own[key] / plain[key] for key in ("peak", "seconds"))
    print(f"ours over plain: memory {memory:.3f}, time {seconds:.2f}")


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]))))
