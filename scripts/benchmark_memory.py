"""What `benchmark.py --memory` measures: the peak resident size of trainings, over plain fit's.

Each training is a process of its own, two epochs long. The caches are built by another process
before: who trains from a cache never has the teacher in memory.
"""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import benchmark_cache
import benchmark_schemes
import keras
from benchmark_measure import Settings
from benchmark_measure import figure
from benchmark_measure import fitting
from benchmark_measure import is_asked
from benchmark_measure import peak_memory
from benchmark_measure import samples
from benchmark_measure import teacher

import keras_distill as kd

EPOCHS = 2
PLAIN = benchmark_schemes.PLAIN
SCHEMES = {
    PLAIN: benchmark_schemes.plain,
    "DLB": benchmark_schemes.dlb,
    "PS-KD": benchmark_schemes.progressive,
    "BYOT": benchmark_schemes.own_teacher,
}
FROM_CACHE = {f"fit from a cache, {kind}": kind for kind in benchmark_cache.KINDS}
WHOLE, IN_FIT = "peak memory", "memory above the imports"


def build(settings, folder):
    """Builds a cache of each kind."""
    network, data = teacher(settings), samples(settings)
    for kind in benchmark_cache.KINDS:
        benchmark_cache.built(settings, folder / kind, network, *data, kind)
    return {}


def from_cache(settings, images, labels, folder, kind):
    augment = kd.data.crop_and_flip()
    cache = kd.data.TeacherCache(folder / kind, images, labels, augment=augment)
    wrapper = benchmark_cache.distilling(settings, cache, "student")
    return fitting(wrapper, cache.dataset(settings.batch_size))


def trained(settings, folder, name):
    """Trains; returns `{WHOLE: MiB, IN_FIT: MiB}` of this process at its highest."""
    data = samples(settings)
    before = peak_memory()
    if name in FROM_CACHE:
        run = from_cache(settings, *data, folder, FROM_CACHE[name])
    else:
        run = SCHEMES[name](settings, *data)
    for _ in range(EPOCHS):
        run()
    return {WHOLE: peak_memory(), IN_FIT: peak_memory() - before}


def alone(settings, folder, *name):
    """`build`, or `trained` with a name, in a process of its own."""
    command = [sys.executable, __file__, json.dumps(dataclasses.asdict(settings)), str(folder)]
    finished = subprocess.run([*command, *name], capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"Failed: {' '.join(name) or 'build'}.\n{finished.stderr[-2000:]}")
    return json.loads(finished.stdout.splitlines()[-1])


class Suite:
    """Peak memory of each scheme and of training from a cache, over plain fit's."""

    def names(self):
        others = [name for name in (*SCHEMES, *FROM_CACHE) if name != PLAIN]
        return [figure_name(name, unit) for name in others for unit in (WHOLE, IN_FIT)]

    def measured(self, settings, words=()):
        asked = [name for name in (*SCHEMES, *FROM_CACHE) if name != PLAIN]
        asked = [
            x for x in asked if any(is_asked(figure_name(x, u), words) for u in (WHOLE, IN_FIT))
        ]
        if not asked:
            return {"figures": {}, "speeds": {}}
        folder = pathlib.Path(tempfile.mkdtemp(prefix="benchmark-memory-"))
        mebibytes = {name: [] for name in (PLAIN, *asked)}
        try:
            alone(settings, folder)
            for i in range(settings.rounds):
                for name in mebibytes:
                    mebibytes[name].append(alone(settings, folder, name))
                print(f"  round {i + 1} of {settings.rounds}", flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        figures = {}
        for name in asked:
            pairs = list(zip(mebibytes[name], mebibytes[PLAIN]))
            for unit in (WHOLE, IN_FIT):
                ratios = [one[unit] / plain[unit] for one, plain in pairs]
                figures[figure_name(name, unit)] = figure(ratios)
        return {"figures": figures, "speeds": {}, "mebibytes": mebibytes}


def figure_name(name, unit):
    return f"{name} / {PLAIN}, {unit}"


def suite(settings):
    return Suite()


def main():
    settings, folder = Settings(**json.loads(sys.argv[1])), pathlib.Path(sys.argv[2])
    keras.config.set_dtype_policy(settings.dtype)
    name = sys.argv[3:]
    print(json.dumps(trained(settings, folder, *name) if name else build(settings, folder)))


if __name__ == "__main__":
    main()
