"""Processes of a cluster on loopback, for the tests that need several."""

import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def free_ports(count):
    """Ports of this machine, one after another, at which nothing listens."""
    for base in range(20000 + os.getpid() * 8 % 8000, 32000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for i, one in enumerate(sockets):
                one.bind(("", base + i))
            return list(range(base, base + count))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise RuntimeError("no free ports")


def task(index, ports):
    """`TF_CONFIG` of a worker."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    return {
        "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
    }


def slurm_task(index, count):
    """What `srun` tells a task, all of them on this machine."""
    return {
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_TASKS_PER_NODE": str(count),
        "SLURMD_NODENAME": "127.0.0.1",
    }


def start(command, **environment):
    """Starts a Python program; `environment` adds to this process's."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name != "TF_CONFIG" and not name.startswith("SLURM")
    }
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**inherited, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def ends(processes, seconds=900):
    """`[(exit status, output), ...]`; a process that lives on for so long is killed."""
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs)]


def finish(processes):
    """What processes printed that have to end well."""
    found = ends(processes)
    for status, output in found:
        assert status == 0, output[-3000:]
    return [output for _, output in found]
