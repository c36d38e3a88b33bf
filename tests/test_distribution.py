"""The choice of a strategy, and two worker processes on loopback against one."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_distill import distribution
from tests.contract import WRAPPERS

ROOT = pathlib.Path(__file__).parents[1]
WORKER = ROOT / "tests" / "programs" / "worker.py"


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(command, index=None, ports=()):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    environment.pop("TF_CONFIG", None)
    if index is not None:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        task = {"type": "worker", "index": index}
        environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def finish(processes):
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs):
        assert process.returncode == 0, output[-3000:]
    return outputs


@pytest.mark.tensorflow
def test_one_device_without_cluster_and_gpu():
    import tensorflow as tf

    assert distribution.choose_strategy(devices=[]) is tf.distribute.get_strategy()
    one = distribution.choose_strategy(devices=["CPU:0"])
    assert isinstance(one, tf.distribute.OneDeviceStrategy)
    assert distribution.global_batch_size(16, one) == 16


@pytest.mark.parametrize(
    "cluster, task, chief",
    [
        (None, None, True),
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 0}, True),
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 1}, False),
        ({"chief": ["a:1"], "worker": ["b:1"]}, {"type": "worker", "index": 0}, False),
        ({"chief": ["a:1"], "worker": ["b:1"]}, {"type": "chief", "index": 0}, True),
    ],
)
def test_only_the_chief_writes(monkeypatch, cluster, task, chief):
    if cluster is not None:
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    assert distribution.is_chief() == chief


@pytest.mark.slow
def test_another_backend_is_told_to_use_tensorflow(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=tensorflow"):
        distribution.choose_strategy()


IN_PROCESSES = [name for name, wrapper in WRAPPERS.items() if wrapper.several_processes]
TOGETHER = 5  # wrappers a cluster: most of what a process takes is its start


@pytest.mark.tensorflow
@pytest.mark.slow
@pytest.mark.parametrize(
    "wrappers",
    [IN_PROCESSES[i : i + TOGETHER] for i in range(0, len(IN_PROCESSES), TOGETHER)],
    ids=", ".join,
)
def test_two_workers_equal_one_process(wrappers, tmp_path):
    ports = free_ports(2)
    finish([start([WORKER, tmp_path / "alone", *wrappers])])
    finish([start([WORKER, tmp_path / f"{i}", *wrappers], i, ports) for i in range(2)])
    for place, wrapper in enumerate(wrappers):
        expected, expected_logs = written(tmp_path / "alone", place)
        for i in range(2):
            found, logs = written(tmp_path / f"{i}", place)
            assert logs["replicas"] == 2
            assert found.files == expected.files
            for name in expected.files:
                np.testing.assert_allclose(
                    found[name], expected[name], rtol=1e-5, atol=1e-7, err_msg=wrapper
                )
            for part in ("history", "evaluate"):
                for name, values in expected_logs[part].items():
                    np.testing.assert_allclose(
                        logs[part][name], values, rtol=1e-5, err_msg=f"{wrapper}: {name}"
                    )


def written(folder, place):
    """The weights and logs that a worker left of the wrapper at this place."""
    return np.load(folder / f"{place}.npz"), json.loads((folder / f"{place}.json").read_text())


@pytest.mark.tensorflow
@pytest.mark.slow
def test_the_script_on_two_workers_writes_once(tmp_path):
    pytest.importorskip("sklearn")
    script = [ROOT / "scripts" / "train_distributed.py", "--epochs", 1, "--members", 2]
    script += ["--limit", 128, "--out", tmp_path / "run"]
    ports = free_ports(2)
    outputs = finish([start(script, i, ports) for i in range(2)])
    assert all("2 replicas" in output for output in outputs)
    assert sum("student and history in" in output for output in outputs) == 1
    student = keras.saving.load_model(tmp_path / "run" / "student.keras")
    assert student.predict(np.zeros((2, 8, 8, 1), "float32"), verbose=0).shape == (2, 10)
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert np.isfinite(history["loss"]).all()
