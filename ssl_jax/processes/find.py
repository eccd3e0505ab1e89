"""Which processes the run has, found in the flags or in the environment.

`find` decides and touches nothing: flags and environment in, a `Found` out; `join.join` makes it
so. JAX's own detection reads the same variables; here a damaged environment is one line, GPUs that
the scheduler has already divided are left as they are, and a process that srun did not start does
not wait for others. On TPUs JAX's own detection is used: only it knows the pod's metadata.

The environments: `srun --help` and https://slurm.schedmd.com/srun.html (output environment
variables), https://docs.open-mpi.org (OMPI_COMM_WORLD_*), https://kubernetes.io/docs/concepts/
workloads/controllers/job/#completion-mode, and jax/_src/clusters/*.py.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from ssl_jax.errors import UserError

_GPUS = ("cuda", "gpu", "rocm")
_NODES = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
# Linux gives ports 32768 … 60999 to outgoing connections: these are free of them.
_FIRST_PORT, _PORTS = 61440, 4096
# Step ids above are SLURM's own: the batch script, an interactive shell, the extern step.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


class Flags(NamedTuple):
    """--coordinator, --processes, --process as given; None where not."""

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


class Found(NamedTuple):
    """What there is to join.

    Attributes:
      kind: 'alone', 'flags', 'slurm', 'openmpi', 'kubernetes' or 'tpu'.
      coordinator: 'host:port' where process 0 listens; None alone, and on a TPU, where JAX asks
        the pod's metadata.
      processes: how many there are; None on a TPU.
      process: which this is, 0 … processes − 1; None on a TPU.
      here: how many of them run on this host.
      bound: the scheduler gave this process cores of its own.
      gpus: which of the visible GPUs are its own; None: all of them.
      name: what was found, for people: 'SLURM job 17'; for 'alone' a remark, or ''.
    """

    kind: str
    coordinator: str | None
    processes: int | None
    process: int | None
    here: int
    bound: bool = False
    gpus: tuple[int, ...] | None = None
    name: str = ""


ALONE = Found("alone", None, 1, 0, 1)


def find(flags: Flags, environment: Mapping[str, str], tpu: bool = False) -> Found:
    """Decides what this process belongs to. The innermost launcher wins.

    The order is: flags, Open MPI, SLURM, coordinator variables (Kubernetes), TPU, alone. (mpirun
    starts its daemons by srun, and what it starts inherits the daemon's SLURM_PROCID: Open MPI is
    asked first, as JAX does.)

    Args:
      flags: what the command line says.
      environment: os.environ.
      tpu: whether this is a Cloud TPU VM.

    Returns:
      what to join.

    Raises:
      UserError: flags given in part, or an environment that is damaged or contradicts itself.
    """
    if any(v is not None for v in flags):
        return _from_flags(flags, environment)
    if _size(environment, "OMPI_COMM_WORLD_SIZE") > 1:
        return _from_open_mpi(environment)
    remark = ""
    if environment.get("SLURM_JOB_ID"):
        found = _from_slurm(environment)
        if found.kind != "alone":
            return found
        remark = found.name
    tpu = tpu and _may_use(environment, "tpu")
    wanted = ("JAX_PROCESS_COUNT", "JOBSET_NAME") + (() if tpu else ("JAX_COORDINATOR_ADDRESS",))
    if any(environment.get(k) for k in wanted):
        return _from_kubernetes(environment)
    if tpu and _pod(environment):
        return Found("tpu", None, None, None, 1, name="a TPU pod")
    if not remark and environment.get("JOB_COMPLETION_INDEX"):
        remark = (
            f"index {environment['JOB_COMPLETION_INDEX']} of a Kubernetes job runs alone: "
            "JAX_COORDINATOR_ADDRESS and JAX_PROCESS_COUNT would join the others"
        )
    return ALONE._replace(name=remark)


def _from_flags(flags: Flags, environment) -> Found:
    if any(v is None for v in flags):
        raise UserError("--coordinator, --processes and --process belong together; give all three")
    coordinator, processes, process = flags
    _check_address(coordinator, "--coordinator")
    if processes < 1:
        raise UserError(f"--processes={processes}: there is at least one")
    if not 0 <= process < processes:
        raise UserError(
            f"--process={process} of --processes={processes}: they count from 0 to {processes - 1}"
        )
    here = processes if is_local(coordinator) else 1
    gpus = own_gpus(environment, here, process)
    return Found("flags", coordinator, processes, process, here, gpus=gpus)


def _from_slurm(environment) -> Found:
    job = environment["SLURM_JOB_ID"]
    number = _number(environment, "SLURM_JOB_ID")
    process = _number(environment, "SLURM_PROCID", 0)
    step = _number(environment, "SLURM_STEP_ID", -1)
    in_step = step < _FIRST_SPECIAL_STEP and (step >= 0 or "SLURM_STEP_NODELIST" in environment)
    if not in_step:
        if process > 0:
            raise UserError(
                f"SLURM_PROCID={process}, but no SLURM_STEP_ID says that srun started this process;"
                " start it with srun, or unset SLURM_JOB_ID to run alone"
            )
        tasks = _size(environment, "SLURM_NTASKS")
        if tasks < 2:
            return ALONE
        return ALONE._replace(
            name=f"SLURM job {job} has {tasks} tasks, but srun did not start this process: "
            "it runs alone (srun python -m ssl_jax.main … starts them all)"
        )
    # In an interactive shell's step SLURM_NTASKS is still the allocation's.
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    processes = _size(environment, count)
    if processes == 1 and process == 0:
        return ALONE
    process = _index(environment, "SLURM_PROCID", processes, count)
    here = _slurm_here(environment, processes)
    local = _index(environment, "SLURM_LOCALID", here, "tasks on this node")
    nodes = next((environment[k] for k in _NODES if environment.get(k)), None)
    host = first_host(nodes) if nodes else None
    port = number + 997 * max(step, 0)  # steps of one job may share a host
    binding = environment.get("SLURM_CPU_BIND_TYPE", "")
    return Found(
        "slurm",
        _coordinator(environment, host, port, "SLURM_STEP_NODELIST"),
        processes,
        process,
        here,
        binding.startswith(("mask_cpu", "map_cpu")),
        own_gpus(environment, here, local),
        f"SLURM job {job}",
    )


def _slurm_here(environment, processes: int) -> int:
    for key in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"):
        if environment.get(key):
            counts = tasks_per_node(environment[key], key)
            node = _number(environment, "SLURM_NODEID", 0)
            # SLURM_NTASKS_PER_NODE is one number, for every node.
            return min(counts[node] if node < len(counts) else counts[-1], processes)
    nodes = _size(environment, "SLURM_STEP_NUM_NODES")
    return -(-processes // nodes)


def _from_open_mpi(environment) -> Found:
    processes = _size(environment, "OMPI_COMM_WORLD_SIZE")
    process = _index(environment, "OMPI_COMM_WORLD_RANK", processes, "OMPI_COMM_WORLD_SIZE")
    here = min(_size(environment, "OMPI_COMM_WORLD_LOCAL_SIZE"), processes)
    local = _index(environment, "OMPI_COMM_WORLD_LOCAL_RANK", here, "OMPI_COMM_WORLD_LOCAL_SIZE")
    host, number = open_mpi_head(environment)
    if here == processes:
        host = "localhost"
    return Found(
        "openmpi",
        _coordinator(environment, host, number, "OMPI_MCA_orte_hnp_uri or PMIX_NAMESPACE"),
        processes,
        process,
        here,
        gpus=own_gpus(environment, here, local),
        name="mpirun",
    )


def _from_kubernetes(environment) -> Found:
    index = "JAX_PROCESS_INDEX" if environment.get("JAX_PROCESS_INDEX") else "JOB_COMPLETION_INDEX"
    needed = ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_COUNT", index)
    missing = [k for k in needed if not environment.get(k)]
    if missing:
        raise UserError(
            f"the environment names a cluster, but not {' and '.join(missing)}; "
            "launch/kubernetes.yaml sets all it takes"
        )
    processes = _size(environment, "JAX_PROCESS_COUNT")
    process = _index(environment, index, processes, "JAX_PROCESS_COUNT")
    name = environment.get("JOBSET_NAME")
    address = environment["JAX_COORDINATOR_ADDRESS"]
    _check_address(address, "JAX_COORDINATOR_ADDRESS")
    here = processes if is_local(address) else 1
    return Found(
        "kubernetes",
        address,
        processes,
        process,
        here,
        gpus=own_gpus(environment, here, process),
        name=f"JobSet {name}" if name else "JAX_COORDINATOR_ADDRESS",
    )


def _pod(environment) -> bool:
    """Whether a TPU VM may have company: there is metadata to ask, or a list of several hosts."""
    if environment.get("MEGASCALE_NUM_SLICES", "1") != "1":
        return True
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return "," in hosts
    return not environment.get("TPU_SKIP_MDS_QUERY")


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: 'gpu[003-007,9],big1' -> 'gpu003'.

    Raises:
      UserError: a bracket that is not closed, or no name.
    """
    if nodes.count("[") != nodes.count("]"):
        raise UserError(f"the SLURM node list {nodes!r} is damaged: a bracket is not closed")
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes).group()
    host = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)
    if not re.fullmatch(r"[\w.:-]+", host):
        raise UserError(f"the SLURM node list {nodes!r} is damaged: it starts with no host's name")
    return host


def tasks_per_node(counts: str, key: str) -> list[int]:
    """Expands SLURM's '2(x3),1' to [2, 2, 2, 1].

    Raises:
      UserError: anything else; names `key`.
    """
    expanded = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None or int(match[1]) < 1:
            raise UserError(f"{key}={counts!r} is no list of task counts such as 2(x3),1")
        expanded += [int(match[1])] * int(match[2] or 1)
    return expanded


def open_mpi_head(environment: Mapping[str, str]) -> tuple[str | None, int]:
    """Host and a number of the job, from what mpirun leaves in the environment.

    Open MPI 4 (ORTE): OMPI_MCA_orte_hnp_uri = '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911'.
    Open MPI 5 (PRRTE): PMIX_NAMESPACE = 'prterun-HOST-PID@1'. mpirun starts rank 0 on its own host,
    unless told otherwise; then JAX_COORDINATOR_ADDRESS must name that host.

    Returns:
      (host or None, number).
    """
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    match = re.match(r"(\d+)\.\d+;(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri)
    if match:
        # The job's number is a multiple of 2^12.
        return match[2] or f"[{match[3]}]", int(match[1]) >> 12
    match = re.match(r"prterun-(.+)-(\d+)@", environment.get("PMIX_NAMESPACE", ""))
    if match:
        return match[1], int(match[2])
    return None, int(re.sub(r"\D", "", uri)[:9] or 0)


def own_gpus(environment: Mapping[str, str], here: int, local: int) -> tuple[int, ...] | None:
    """Which of the visible GPUs a process takes, where several processes share a host.

    Args:
      environment: os.environ. CUDA_VISIBLE_DEVICES and its like count the GPUs; the scheduler, or
        launch/local.sh, may have left one to each process. JAX_LOCAL_DEVICE_IDS is left to JAX.
      here: processes of this host.
      local: which of them this is.

    Returns:
      indices among the visible ones, an equal share each; None: all of them. Where nothing counts
      them, one process a GPU, as JAX assumes.

    Raises:
      UserError: fewer GPUs than processes.
    """
    if here == 1 or environment.get("JAX_LOCAL_DEVICE_IDS") or not _may_use(environment, *_GPUS):
        return None
    keys = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    key = next((k for k in keys if k in environment), None)
    if key is None:
        return (local,)
    visible = [v for v in environment[key].split(",") if v.strip() not in ("", "-1", "NoDevFiles")]
    if len(visible) < 2:  # none, or its own already
        return None
    if len(visible) < here:
        raise UserError(
            f"{here} processes on this host, but {key}={environment[key]} names {len(visible)} "
            "GPUs; start fewer processes, or set JAX_PLATFORMS=cpu"
        )
    share = len(visible) // here
    return tuple(range(local * share, (local + 1) * share))


def _may_use(environment, *platforms: str) -> bool:
    wanted = environment.get("JAX_PLATFORMS", "").lower().split(",")
    return wanted == [""] or any(p in wanted for p in platforms)


def _coordinator(environment, host: str | None, number: int, source: str) -> str:
    """The address of process 0: JAX's own variables, or a host and a port that the job's number
    gives: the same on every process, another for another job."""
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address:
        _check_address(address, "JAX_COORDINATOR_ADDRESS")
        return address
    if host is None:
        raise UserError(
            f"no {source} says where process 0 runs; set JAX_COORDINATOR_ADDRESS=HOST:PORT"
        )
    port = environment.get("JAX_COORDINATOR_PORT") or _FIRST_PORT + number % _PORTS
    _check_address(f"{host}:{port}", "JAX_COORDINATOR_PORT")
    return f"{host}:{port}"


def _check_address(address: str, source: str) -> None:
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"{source} is {address!r}; it must be HOST:PORT, such as host1:12345")


def is_local(address: str) -> bool:
    """Whether 'host:port' is on this machine."""
    return address.rpartition(":")[0] in _LOCAL


def _number(environment, key: str, default: int | None = None) -> int:
    text = environment.get(key)
    if not text and default is not None:
        return default
    if not text:
        raise UserError(f"the environment lacks {key}")
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"the environment is damaged: {key}={text!r} is not a number")
    return int(text)


def _size(environment, key: str) -> int:
    value = _number(environment, key, 1)
    if value < 1:
        raise UserError(f"the environment is damaged: {key}={value}")
    return value


def _index(environment, key: str, size: int, of: str) -> int:
    value = _number(environment, key)
    if value >= size:
        raise UserError(
            f"the environment contradicts itself: {key}={value}, but there are {size} ({of})"
        )
    return value


def on_tpu_vm() -> bool:
    """Whether JAX sees TPU chips on this machine and has libtpu to drive them."""
    from jax._src import cloud_tpu_init  # no public name; set when jax is imported

    return cloud_tpu_init.running_in_cloud_tpu_vm
