"""The cluster that this process is a worker of: from `TF_CONFIG` or Slurm, and how it fails.

TensorFlow's own engine forms it and watches over it; here its settings are checked, its waiting
gets a limit, and what it raises when a worker is missing becomes one line that names the worker.
"""

import contextlib
import dataclasses
import json
import os
import re
import socket
from collections.abc import Iterator

from keras_distill import _checks

ROLES = ("chief", "worker")
EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)

# Where TensorFlow 2.21 names workers that are missing, the surest first.
_TASKS = r"((?:/job:\S+\s*)+)"
_NAMED = (
    rf"timed out task names:\s*{_TASKS}",
    rf"stopped sending heartbeats\):\s*{_TASKS}",
    r"[Ee]rror reported from (/job:\S+?):?\s",
    r"remote target (/job:\S+)",
    r"(/job:\S+) unexpectedly tried to connect",
)
# A worker that started again, where the others still are the cluster that it was lost from.
_RESTARTED = "unexpectedly tried to connect"


class ClusterError(RuntimeError):
    """A cluster that did not come together, or that lost a worker. Its message is one line."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a cluster, and which of them this one is.

    Attributes:
        tasks: `((role, index), ...)`, the chief first.
        addresses: "host:port" of each.
        own: The place of this process among them.
    """

    tasks: tuple
    addresses: tuple
    own: int

    @property
    def own_port(self):
        """The port at which this process listens."""
        return int(self.addresses[self.own].rpartition(":")[2])

    def told(self, places):
        """What an error calls some of the tasks, by their places."""
        names = [f"{' '.join(map(str, self.tasks[i]))} ({self.addresses[i]})" for i in places]
        return f"of {len(self.tasks)} workers, {' and '.join(names) or 'another'}"


def read():
    """The cluster that `TF_CONFIG` describes; `None` where it describes none.

    Raises:
        ValueError: If it does not parse, or its parts do not fit each other.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    try:
        config = json.loads(text or "{}")
    except ValueError as error:
        raise _misfit("to be JSON", "TF_CONFIG", text, f"It does not parse: {error}.") from None
    if not isinstance(config, dict):
        raise _misfit("to be an object", "TF_CONFIG", config)
    cluster, task = config.get("cluster"), config.get("task")
    if not cluster and not task:
        return None
    if not isinstance(cluster, dict) or not cluster or not set(cluster) <= set(ROLES):
        raise _misfit('to have a "cluster" of "worker" (and "chief")', "cluster", cluster)
    roles = [role for role in ROLES if role in cluster]
    tasks, addresses = [], []
    for role in roles:
        if not isinstance(cluster[role], list) or not cluster[role]:
            raise _misfit(f'to list the addresses of "{role}"', role, cluster[role])
        tasks += [(role, index) for index in range(len(cluster[role]))]
        addresses += cluster[role]
    for address in addresses:
        if not _is_address(address):
            raise _misfit('to have addresses "host:port"', "address", address)
    if len(set(addresses)) < len(addresses):
        raise _misfit("to have an address for each worker", "cluster", cluster)
    if tasks.count(("chief", 0)) and len(cluster["chief"]) > 1:
        raise _misfit("to have one chief", "chief", cluster["chief"])
    if not isinstance(task, dict) or not {"type", "index"} <= set(task):
        raise _misfit('to have a "task" with "type" and "index"', "task", task)
    if task["type"] not in roles:
        raise _misfit(f"to have a task whose type is in its cluster ({roles})", "task", task)
    count, index = len(cluster[task["type"]]), task["index"]
    if isinstance(index, bool) or not re.fullmatch(r"\d+", str(index)) or int(index) >= count:
        raise _misfit(f"to have a task whose index is from 0 to {count - 1}", "index", index)
    return Cluster(tuple(tasks), tuple(addresses), tasks.index((task["type"], int(index))))


def _misfit(expected, name, value, hint="An example:"):
    hint = hint if hint.endswith(":") else f"{hint} An example:"
    return ValueError(_checks.message(f"`TF_CONFIG` {expected}", name, value, f"{hint} {EXAMPLE}"))


def _is_address(address):
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    return bool(host) and port.isascii() and port.isdecimal() and 0 < int(port) < 2**16


def take_from_slurm(port):
    """Writes `TF_CONFIG` for a process that `srun` started as one of several tasks.

    Does nothing where `TF_CONFIG` is there already, or Slurm started one task.

    Args:
        port: The port of the first task on each node; the others' follow it.

    Raises:
        ValueError: If Slurm's variables do not fit each other.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "TF_CONFIG" in os.environ or "SLURM_PROCID" not in os.environ or int(tasks) < 2:
        return
    import tensorflow as tf

    # Which GPUs a task sees is Slurm's matter: the resolver gives the addresses alone. It needs
    # a GPU for each of them, so it is told of enough.
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=port, gpus_per_node=2**16, gpus_per_task=1, auto_set_gpu=False
        )
        addresses = resolver.cluster_spec().job_tasks("worker")
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"Expected what `srun` tells of {tasks} tasks. Received: {error} Start with `srun`, or "
            "set TF_CONFIG='{}' for processes that have nothing to do with each other."
        ) from error
    # It sorts the nodes by name, so that "n10" comes before "n9"; Slurm's ranks do not.
    node, local = (os.environ.get(f"SLURM{name}", "") for name in ("D_NODENAME", "_LOCALID"))
    own = f"{node}:{port + int(local or 0)}"
    index = addresses.index(own) if own in addresses else resolver.task_id
    task = {"type": "worker", "index": index}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})


def prepare(cluster, wait_seconds):
    """Readies TensorFlow's coordination service, which forms the cluster, to wait so long.

    By itself the first worker waits for the others without a limit.

    Raises:
        ClusterError: If the port of this process is not free.
    """
    from tensorflow.python.eager import context  # no public way to its settings

    runtime = context.context()
    if runtime.coordination_service is not None:
        return  # its server has the port
    _check_port(cluster)
    roles = [role for role, _ in cluster.tasks]
    job = context.coordination_config_pb2.CoordinatedJob
    runtime.configure_coordination_service(
        "standalone",
        service_leader=f"/job:{roles[0]}/replica:0/task:0",
        cluster_register_timeout_in_ms=round(wait_seconds * 1000),
        coordinated_jobs=[job(name=name, num_tasks=roles.count(name)) for name in sorted({*roles})],
    )
    runtime.coordination_service.cluster_register_with_barrier = True


def _check_port(cluster):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as TensorFlow's server does
        try:
            probe.bind(("", cluster.own_port))
        except OSError as error:
            raise ClusterError(
                f"Expected to listen at {cluster.addresses[cluster.own]!r}, this worker's address. "
                f"Received: {error.strerror} (port {cluster.own_port}). End the process that has "
                "the port, or give this worker another one."
            ) from None


@contextlib.contextmanager
def failures_told(wait_seconds: float | None = None) -> Iterator[None]:
    """Turns what TensorFlow raises inside, when a worker is missing, into a `ClusterError`.

    Args:
        wait_seconds: How long the cluster had time to form; `None` where it has formed.
    """
    try:
        yield
    except Exception as error:
        told = _told(error, wait_seconds)
        if told is None:
            raise
        raise ClusterError(told) from error


def _told(error, wait_seconds):
    """The line for an error, where it is TensorFlow's of a missing worker; else `None`."""
    import tensorflow as tf

    cluster = read() if isinstance(error, tf.errors.OpError) else None
    if cluster is None or len(cluster.tasks) < 2:
        return None
    if wait_seconds is not None and _RESTARTED in str(error):
        return (
            f"Expected {len(cluster.tasks)} workers that start together. Received: others that "
            "have not ended yet, after this worker was lost. Start the same command again on all "
            "of them."
        )
    missing = _missing(cluster, str(error))
    if not missing and "Collective ops is aborted" not in str(error):
        return None
    if not missing and len(cluster.tasks) == 2:
        missing = [1 - cluster.own]
    who = cluster.told(missing)
    if wait_seconds is not None:
        return (
            f"Expected all workers within {wait_seconds:g} seconds. Received: {who} did not come. "
            "Start the same command on all of them; `wait_seconds` gives them more time."
        )
    return (
        f"Expected all workers to go on. Received: {who} {'are' if len(missing) > 1 else 'is'} "
        "lost. Start the same command again on all of them: it goes on after the last epoch that "
        "was backed up."
    )


def _missing(cluster, text):
    """Places of the tasks that an error of TensorFlow names as missing."""
    for pattern in _NAMED:
        match = re.search(pattern, text)
        named = re.findall(r"/job:(\w+)(?:/replica:\d+)?/task:(\d+)", match[1]) if match else []
        tasks = [(role, int(index)) for role, index in named]
        places = [i for i, task in enumerate(cluster.tasks) if task in tasks and i != cluster.own]
        if places:
            return places
    return []
