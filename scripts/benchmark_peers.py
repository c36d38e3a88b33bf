"""The peers in PyTorch, run by a process of their own.

One process cannot hold both frameworks wherever Triton is installed: its LLVM and TensorFlow's
end it. Nor do the threads of the one then wait for work while the other is timed. PyTorch's spin
while they wait for each other: on a machine that is not quiet both its clocks grow many times.
"""

import atexit
import functools
import json
import pathlib
import subprocess
import sys

from benchmark_measure import Took

WORKER = pathlib.Path(__file__).parent / "benchmark_torch_worker.py"


class Worker:
    """A process that makes loops of PyTorch and runs them when asked."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.end)

    def ask(self, **message):
        """Sends a line, returns the answer to it."""
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("The process with PyTorch ended: its last lines stand above.")
        return json.loads(answer)

    def end(self):
        self._process.stdin.close()
        self._process.wait()


worker = functools.cache(Worker)


def made(**what):
    """A function that runs a loop or a formula once and returns what it `Took`."""
    number = worker().ask(make=what)

    def run():
        return Took(**worker().ask(run=number))

    return run
