"""What `benchmark.py --angles` measures: RelationalAngle beside the plain formula of all triplets.

Peak memory and time of a value with its gradient, features (512, 128), each in a process of its
own; ours at a batch of 1024 too. And its error: features with duplicates, far from zero, against
the formula in float64.
"""

import json
import statistics
import subprocess
import sys
import time

import numpy as np
from benchmark_measure import figure
from benchmark_measure import is_asked
from benchmark_measure import is_here
from benchmark_measure import peak_memory

import keras_distill as kd

FEATURES = 128
BATCH = 512
TIMES = 5
OFFSET, CHECKED_BATCH, DUPLICATES = 1e3, 24, 4
MEMORY = "RelationalAngle / plain formula, peak memory"
TIME = "RelationalAngle / plain formula, time"
LARGE = "RelationalAngle of 1024 samples, finite"
ERROR = "RelationalAngle, error against float64"


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


def measured_form(name, batch):
    """What one form takes in this process; "peak": mebibytes above the imports."""
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
    before = peak_memory()
    seconds, processor = [], []
    for _ in range(TIMES + 1):
        start, start_processor = time.perf_counter(), time.process_time()
        value, gradient = both(teacher, student)
        finite = bool(np.isfinite(gradient.numpy()).all() and np.isfinite(value.numpy()))
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    return {
        "peak": peak_memory() - before,
        "seconds": statistics.median(seconds[1:]),
        "processor": statistics.median(processor[1:]),
        "finite": finite,
    }


def alone(name, batch):
    """The same in a process of its own."""
    command = [sys.executable, __file__, name, str(batch)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def error():
    """The largest difference of a value to the formula in float64, duplicates and offset in it."""
    rng = np.random.default_rng(0)
    pair = [rng.normal(size=(CHECKED_BATCH, FEATURES)).astype("float32") for _ in range(2)]
    for features in pair:
        features[-DUPLICATES:] = features[:DUPLICATES]
        features += np.float32(OFFSET)
    own = keras_array(kd.losses.relational_angle(*pair))

    def cosines(x):
        gaps = x[None] - x[:, None]
        lengths = np.linalg.norm(gaps, axis=-1, keepdims=True)
        unit = gaps / np.where(lengths > 0.0, lengths, 1.0)
        return unit @ unit.transpose(0, 2, 1)

    teacher, student = (cosines(features.astype("float64")) for features in pair)
    gaps = np.abs(student - teacher)
    exact = np.where(gaps < 1.0, 0.5 * gaps**2, gaps - 0.5)
    return abs(float(own.mean()) - float(exact.mean()))


def keras_array(value):
    import keras

    return np.asarray(keras.ops.convert_to_numpy(value), "float64")


class Suite:
    """Four figures."""

    def names(self):
        return [MEMORY, TIME, LARGE, ERROR]

    def measured(self, settings, words=()):
        asked = [name for name in self.names() if is_asked(name, words)]
        found = {ERROR: figure([error()])} if ERROR in asked else {}
        if not is_here("tensorflow"):
            return {"figures": found, "speeds": {}}
        if {MEMORY, TIME} & set(asked):
            rounds = [(alone("ours", BATCH), alone("plain", BATCH)) for _ in range(settings.rounds)]

            def over(key):
                return [one[key] / other[key] for one, other in rounds]

            found[MEMORY] = figure(over("peak"))
            found[TIME] = figure(over("seconds"), over("processor"))
        if LARGE in asked:
            finite = alone("ours", 2 * BATCH)["finite"]
            found[LARGE] = figure([finite], more_is_better=True)
        return {"figures": found, "speeds": {}}


def suite(settings):
    return Suite()


if __name__ == "__main__":
    print(json.dumps(measured_form(sys.argv[1], int(sys.argv[2]))))
