"""The choice of a strategy; several devices, and several workers on loopback, against one."""

import json

import keras
import numpy as np
import pytest

from keras_distill import distribution
from tests.contract import WRAPPERS
from tests.programs.cluster import ROOT
from tests.programs.cluster import finish
from tests.programs.cluster import free_ports
from tests.programs.cluster import start
from tests.programs.cluster import task

WORKER = ROOT / "tests" / "programs" / "worker.py"


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)


@pytest.mark.tensorflow
def test_one_device_without_cluster_and_gpu():
    import tensorflow as tf

    assert distribution.choose_strategy(devices=[]) is tf.distribute.get_strategy()
    one = distribution.choose_strategy(devices=["/device:cpu:0"])
    assert isinstance(one, tf.distribute.OneDeviceStrategy)
    assert distribution.global_batch_size(16, one) == 16
    assert distribution.writes_files(one)
    assert distribution.from_chief(b"of the only process", one) == b"of the only process"


@pytest.mark.tensorflow
@pytest.mark.parametrize("length", [0, 1, 8, 21])
def test_bytes_go_to_all_replicas_in_parts(two_replicas, monkeypatch, length):
    monkeypatch.setattr(distribution, "in_several_processes", lambda strategy: True)
    monkeypatch.setattr(distribution, "CHUNK", 8)
    content = bytes(range(200, 200 + length))
    assert distribution.from_chief(content, two_replicas) == content


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"devices": ["CPU:0", "GPU:7"]}, r"among CPU:0, CPU:1, each once.*'GPU:7'"),
        ({"devices": ["CPU:0", "CPU:0"]}, r"among CPU:0, CPU:1, each once"),
        ({"devices": "CPU:0"}, r"a list of devices"),
        ({"gpus": 99}, r"`gpus` to be at most \d+, .*Received: gpus=99\. GPUs: "),
        ({"gpus": 1, "devices": ["CPU:0"]}, r"either `devices` or `gpus`"),
        ({"wait_seconds": 0}, r"`wait_seconds` to be a positive"),
    ],
)
def test_devices_that_are_not_there(arguments, named):
    with pytest.raises(ValueError, match=named):
        distribution.choose_strategy(**arguments)


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


TOGETHER = 7  # wrappers a process: most of what it takes is its start


@pytest.mark.tensorflow
@pytest.mark.slow
@pytest.mark.parametrize(
    "wrappers",
    [list(WRAPPERS)[i : i + TOGETHER] for i in range(0, len(WRAPPERS), TOGETHER)],
    ids=", ".join,
)
def test_four_devices_and_two_workers_equal_one_device(wrappers, tmp_path):
    finish([start([WORKER, tmp_path / "four", 4, *wrappers])])
    assert_alike(tmp_path / "four", tmp_path / "four" / "alone", wrappers, 4)
    in_processes = [name for name in wrappers if WRAPPERS[name].several_processes]
    ports = free_ports(2)
    commands = [[WORKER, tmp_path / f"{i}", 1, *in_processes] for i in range(2)]
    finish([start(command, **task(i, ports)) for i, command in enumerate(commands)])
    for i in range(2):
        assert_alike(
            tmp_path / f"{i}",
            tmp_path / "four" / "alone",
            in_processes,
            2,
            places=[wrappers.index(name) for name in in_processes],
        )


@pytest.mark.tensorflow  # once, beside the tests of all wrappers on JAX in `make test-jax`
@pytest.mark.slow
def test_four_devices_equal_one_on_jax(tmp_path):
    pytest.importorskip("jax")
    wrappers = ["Distiller of an ensemble", "MutualLearner", "SelfDistiller"]
    finish([start([WORKER, tmp_path, 4, *wrappers], KERAS_BACKEND="jax")])
    assert_alike(tmp_path, tmp_path / "alone", wrappers, 4)
    assert len(list(tmp_path.glob("*.npz"))) == len(wrappers)


def assert_alike(folder, alone, wrappers, replicas, places=None):
    """What a worker left of each wrapper is what one device left, at `places`."""
    for i, name in enumerate(wrappers):
        expected, expected_logs = written(alone, i if places is None else places[i])
        found, logs = written(folder, i)
        assert logs["replicas"] == replicas
        assert found.files == expected.files
        for file in expected.files:
            np.testing.assert_allclose(
                found[file], expected[file], rtol=1e-5, atol=1e-7, err_msg=name
            )
        for part in ("history", "evaluate"):
            for log, values in expected_logs[part].items():
                np.testing.assert_allclose(
                    logs[part][log], values, rtol=1e-5, atol=1e-7, err_msg=f"{name}: {log}"
                )


def written(folder, place):
    """The weights and logs that a worker left of the wrapper at this place."""
    return np.load(folder / f"{place}.npz"), json.loads((folder / f"{place}.json").read_text())
