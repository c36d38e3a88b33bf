"""The settings of a cluster, and what becomes of it when a worker is missing."""

import importlib.util
import json
import os
import socket

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill import _cluster
from keras_distill import distribution
from tests.programs.cluster import ROOT
from tests.programs.cluster import ends
from tests.programs.cluster import finish
from tests.programs.cluster import free_ports
from tests.programs.cluster import slurm_task
from tests.programs.cluster import start
from tests.programs.cluster import task

SCRIPT = ROOT / "scripts" / "train_distributed.py"
KILLED = ROOT / "tests" / "programs" / "killed.py"
TWO = {"worker": ["a:1", "b:1"]}
FIRST = {"type": "worker", "index": 0}


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name in list(os.environ):
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("text", ["", "{}", '{"environment": "cloud", "cluster": {}, "task": {}}'])
def test_no_cluster(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    assert _cluster.read() is None
    assert distribution.is_chief()


def test_the_chief_comes_first_and_an_index_may_be_text(monkeypatch):
    cluster = {"worker": ["b:2", "[::1]:3"], "chief": ["a:1"]}
    config = {"cluster": cluster, "task": {"type": "worker", "index": "1"}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    found = _cluster.read()
    assert found.tasks == (("chief", 0), ("worker", 0), ("worker", 1))
    assert found.addresses == ("a:1", "b:2", "[::1]:3")
    assert (found.own, found.own_port) == (2, 3)


@pytest.mark.parametrize(
    "config, named",
    [
        ('{"cluster": ', r"to be JSON\. Received: TF_CONFIG='\{.*does not parse: Expecting value"),
        ([1], r"to be an object\. Received: TF_CONFIG=\[1\]"),
        ({"task": FIRST}, r'to have a "cluster".*Received: cluster=None'),
        ({"cluster": ["a:1"], "task": FIRST}, r'to have a "cluster"'),
        ({"cluster": {**TWO, "ps": ["c:1"]}, "task": FIRST}, r'of "worker" \(and "chief"\)'),
        ({"cluster": {"worker": "a:1"}, "task": FIRST}, r'addresses of "worker".*worker=\'a:1\''),
        ({"cluster": {"worker": ["a:1", "b"]}, "task": FIRST}, r"Received: address='b'"),
        ({"cluster": {"worker": ["a:1", "b:0x"]}, "task": FIRST}, r"Received: address='b:0x'"),
        ({"cluster": {"worker": ["a:1", "b:70000"]}, "task": FIRST}, r"address='b:70000'"),
        ({"cluster": {"worker": ["a:1", "a:1"]}, "task": FIRST}, r"an address for each worker"),
        ({"cluster": {"chief": ["a:1", "b:1"]}, "task": FIRST}, r"to have one chief"),
        ({"cluster": TWO}, r'"task" with "type" and "index"\. Received: task=None'),
        ({"cluster": TWO, "task": {"type": "worker"}}, r'"task" with "type" and "index"'),
        ({"cluster": TWO, "task": {"type": "chief", "index": 0}}, r"type is in its cluster"),
        ({"cluster": TWO, "task": {"type": "worker", "index": 2}}, r"from 0 to 1\. .*index=2"),
        ({"cluster": TWO, "task": {"type": "worker", "index": -1}}, r"from 0 to 1\. .*index=-1"),
        ({"cluster": TWO, "task": {"type": "worker", "index": True}}, r"from 0 to 1"),
    ],
)
def test_a_wrong_tf_config_is_told(monkeypatch, config, named):
    text = config if isinstance(config, str) else json.dumps(config)
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=named) as caught:
        distribution.is_chief()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"An example: {_cluster.EXAMPLE}")


@pytest.mark.tensorflow
def test_a_port_in_use_is_told(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("TF_CONFIG", task(1, [1, port])["TF_CONFIG"])
        with pytest.raises(
            distribution.ClusterError, match=rf"'127.0.0.1:{port}'.*Address already"
        ):
            distribution.choose_strategy()


@pytest.mark.tensorflow
def test_devices_are_not_for_a_cluster(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", task(0, [1, 2])["TF_CONFIG"])
    with pytest.raises(ValueError, match="no `devices`.*`gpus` limits them"):
        distribution.choose_strategy(["CPU:0"])


@pytest.mark.tensorflow
def test_slurm_nodes_whose_names_sort_otherwise(monkeypatch):
    """TensorFlow sorts n8 to n11 as n10, n11, n8, n9; Slurm's ranks follow the numbers."""
    addresses = []
    for rank, node in enumerate(["n8", "n9", "n10", "n11"]):
        monkeypatch.delenv("TF_CONFIG", raising=False)
        told = {"STEP_NODELIST": "n[8-11]", "STEP_TASKS_PER_NODE": "1(x4)", "LOCALID": "0"}
        told |= {"STEP_NUM_TASKS": "4", "PROCID": str(rank)}
        for name, value in told.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        monkeypatch.setenv("SLURMD_NODENAME", node)
        _cluster.take_from_slurm(7000)
        cluster = _cluster.read()
        addresses.append(cluster.addresses[cluster.own])
        assert cluster.addresses == ("n10:7000", "n11:7000", "n8:7000", "n9:7000")
    assert addresses == ["n8:7000", "n9:7000", "n10:7000", "n11:7000"]


@pytest.mark.tensorflow
def test_slurm_variables_that_do_not_fit_are_told(monkeypatch):
    for name, value in {**slurm_task(0, 2), "SLURM_STEP_TASKS_PER_NODE": "3"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="`srun` tells of 2 tasks.*Requested 2 tasks but only 3"):
        _cluster.take_from_slurm(7000)


def test_one_slurm_task_is_no_cluster(monkeypatch):
    for name, value in slurm_task(0, 1).items():
        monkeypatch.setenv(name, value)
    _cluster.take_from_slurm(7000)
    assert _cluster.read() is None


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "raised, told",
    [
        (
            "Error reported from /job:worker/task:2: The following tasks are unhealthy (stopped "
            "sending heartbeats):\n/job:worker/replica:0/task:2\nThe tasks have crashed.",
            "of 3 workers, worker 2 (127.0.0.1:3) is lost",
        ),
        (
            "Collective ops is aborted by: Socket closed\nAdditional GRPC error information from "
            "remote target /job:worker/replica:0/task:1 while calling RecvBuf:",
            "of 3 workers, worker 1 (127.0.0.1:2) is lost",
        ),
        (
            "The first task at the barrier: /job:worker/replica:0/task:0. Some timed out task "
            "names:\n/job:worker/replica:0/task:1\n/job:worker/replica:0/task:2\n",
            "of 3 workers, worker 1 (127.0.0.1:2) and worker 2 (127.0.0.1:3) are lost",
        ),
        ("Collective ops is aborted by: ?", "of 3 workers, another is lost"),
    ],
)
def test_the_workers_that_tensorflow_names_are_told(monkeypatch, raised, told):
    import tensorflow as tf

    monkeypatch.setenv("TF_CONFIG", task(0, [1, 2, 3])["TF_CONFIG"])
    with pytest.raises(distribution.ClusterError) as caught:
        with distribution.failures_told():
            raise tf.errors.UnavailableError(None, None, raised)
    assert told in str(caught.value)
    with pytest.raises(tf.errors.UnavailableError, match="of another kind"):
        with distribution.failures_told():
            raise tf.errors.UnavailableError(None, None, "of another kind")


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "how",
    [
        "with a different incarnation. It has likely restarted.",
        "while it is already in error. ResetTask() should be called before a subsequent connect "
        "attempt. Existing error: ",
    ],
)
def test_a_worker_that_started_again_before_the_others_ended_is_told(monkeypatch, how):
    import tensorflow as tf

    monkeypatch.setenv("TF_CONFIG", task(1, [1, 2, 3])["TF_CONFIG"])
    text = f"/job:worker/replica:0/task:1 unexpectedly tried to connect {how}"
    with pytest.raises(distribution.ClusterError, match="have not ended yet.*Start the same"):
        with distribution.failures_told(wait_seconds=5):
            raise tf.errors.AbortedError(None, None, text)
    monkeypatch.setenv("TF_CONFIG", task(0, [1, 2, 3])["TF_CONFIG"])
    with pytest.raises(distribution.ClusterError, match=r"worker 1 \(127.0.0.1:2\) is lost"):
        with distribution.failures_told():
            raise tf.errors.AbortedError(None, None, text)


@pytest.mark.tensorflow
def test_a_cluster_that_is_formed_does_not_look_for_its_own_port(monkeypatch):
    from tensorflow.python.eager import context

    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        monkeypatch.setenv("TF_CONFIG", task(1, [1, own.getsockname()[1]])["TF_CONFIG"])
        formed = type("Context", (), {"coordination_service": object()})()
        monkeypatch.setattr(context, "context", lambda: formed)
        assert _cluster.prepare(_cluster.read(), 1) is None


def test_what_ends_the_program_is_told_in_a_line_with_its_status(capsys):
    program = importlib.util.spec_from_file_location("train_distributed", SCRIPT)
    module = importlib.util.module_from_spec(program)
    program.loader.exec_module(module)
    for error, status, said in [
        (KeyboardInterrupt(), 130, "Interrupted. The same command on all workers goes on"),
        (distribution.ClusterError("Expected all."), 75, "Expected all."),
        (kd.callbacks.NonFiniteLoss("Expected finite\nlosses."), 2, "Expected finite losses."),
        (MemoryError("9 GiB"), 2, "The memory does not hold this step"),
        (ValueError("Expected JSON."), 2, "Expected JSON."),
    ]:
        assert module.told(error) == status
        line = capsys.readouterr().err
        assert line.startswith(f"train_distributed: {said}") and line.count("\n") == 1
    assert module.told(ZeroDivisionError("by zero")) == 1
    assert "Traceback" in (found := capsys.readouterr().err) or "ZeroDivisionError" in found


def last_line(output):
    return output.strip().splitlines()[-1]


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_worker_that_never_comes_is_named_in_one_line(tmp_path):
    """Of two clusters one process each; beside them a process with a wrong `TF_CONFIG`."""
    ports = free_ports(4)
    command = [SCRIPT, "--wait-seconds", 2, "--out", tmp_path / "run"]
    processes = [start(command, **task(i, ports[2 * i : 2 * i + 2])) for i in range(2)]
    processes.append(start(command, TF_CONFIG="{"))
    (*alone, (wrong, said)) = ends(processes)
    for i, (status, output) in enumerate(alone):
        absent = f"worker {1 - i} (127.0.0.1:{ports[2 * i + 1 - i]})"
        assert last_line(output).startswith("train_distributed: Expected all workers within 2 sec")
        assert absent in last_line(output)
        assert status == 75
    assert last_line(said).startswith("train_distributed: Expected `TF_CONFIG` to be JSON.")
    assert wrong == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.tensorflow
@pytest.mark.slow
def test_killed_workers_start_again_and_end_as_if_undisturbed(tmp_path):
    """The undisturbed one is Slurm's; of the other first worker 1 is killed, then the chief."""
    pytest.importorskip("sklearn")
    options = ["--epochs", 3, "--members", 2, "--limit", 128]

    def command(name, i):
        # Folders of their own: what worker 1 would write, or read, is not the chief's.
        return [SCRIPT, *options, "--out", tmp_path / f"{name}_{i}"]

    ports = free_ports(2)
    port = ["--slurm-port", ports[0]]
    outputs = finish([start([*command("whole", i), *port], **slurm_task(i, 2)) for i in range(2)])
    assert all("2 replicas" in output for output in outputs)
    for victim, training in [(1, "teacher"), (0, "distilled")]:
        ports = free_ports(2)
        commands = [command("killed", i) for i in range(2)]
        commands[victim] = [KILLED, training, 2, *commands[victim]]
        processes = [start(commands[i], **task(i, ports)) for i in range(2)]
        found = ends(processes)
        assert found[victim][0] == -9
        status, output = found[1 - victim]
        assert status == 75, output[-3000:]
        lost = f"worker {victim} (127.0.0.1:{ports[victim]}) is lost. Start the same command again"
        assert lost in last_line(output)
        assert not (tmp_path / "killed_0" / "student.keras").exists()
    outputs = finish([start(command("killed", i), **task(i, ports)) for i in range(2)])
    assert "distilled: goes on after epoch 1" in outputs[0]
    assert_same_run(tmp_path / "killed_0", tmp_path / "whole_0")
    assert not (tmp_path / "killed_1").exists() and not (tmp_path / "whole_1").exists()


def assert_same_run(one, other):
    networks = [keras.saving.load_model(path / "student.keras") for path in (one, other)]
    for mine, theirs in zip(*(network.get_weights() for network in networks), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    logs = [lines_of(path) for path in (one, other)]
    assert [line.keys() for line in logs[0]] == [line.keys() for line in logs[1]]
    for mine, theirs in zip(*logs):
        for name, value in mine.items():
            assert value == (theirs[name] if name == "model" else pytest.approx(theirs[name], 1e-5))


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name != "seconds"} for line in lines]
