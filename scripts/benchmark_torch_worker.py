"""The process in which PyTorch runs: reads a line of JSON, answers with one, see `benchmark_peers`.

`{"make": {"loop": ..., ...}}` or `{"make": {"formula": ..., ...}}` is answered with a number,
`{"run": number}` with the seconds that a run took and its last value.
"""

import json
import sys
import time
import types

import benchmark_losses_torch
import benchmark_torch


def make(loop=None, formula=None, settings=None, **options):
    if formula is not None:
        return benchmark_losses_torch.theirs(formula, **options)
    return benchmark_torch.LOOPS[loop](types.SimpleNamespace(**settings), **options)


def main():
    made = []
    for line in sys.stdin:
        asked = json.loads(line)
        if "make" in asked:
            made.append(make(**asked["make"]))
            answer = len(made) - 1
        else:
            start, start_processor = time.perf_counter(), time.process_time()
            value = made[asked["run"]]()
            answer = {
                "wall": time.perf_counter() - start,
                "processor": time.process_time() - start_processor,
                "value": value,
            }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
