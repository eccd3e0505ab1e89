"""Which processes there are: every environment, every way it can be damaged, and a real join."""

import os
import socket
import subprocess
import sys
import time

import pytest
from jax._src import clusters
from kit import tiny_run

from ssl_jax.errors import UserError
from ssl_jax.processes import find, join
from ssl_jax.processes.find import Flags

NONE = Flags()
# What srun leaves on the sixth of eight tasks, three nodes (SLURM 23, task/affinity).
SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NODELIST": "gpu[003-004,9]",
    "SLURM_JOB_NODELIST": "gpu[001,003-004,9]",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),2",
    "SLURM_TASKS_PER_NODE": "3(x2),2",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "2",
}
# sbatch --ntasks=8, python without srun.
BATCH = {
    "SLURM_JOB_ID": "17",
    "SLURM_NTASKS": "8",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_NODELIST": "gpu[003-004]",
    "SLURM_TASKS_PER_NODE": "4(x2)",
}
# salloc --ntasks=8 where the shell is a step of its own (LaunchParameters=use_interactive_step).
INTERACTIVE = {
    **BATCH,
    "SLURM_STEP_ID": "4294967290",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_NODELIST": "gpu003",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}
MPIRUN4 = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1,10.108.0.1:34911",
}
MPIRUN5 = {
    **{k: v for k, v in MPIRUN4.items() if "orte" not in k},
    "PMIX_NAMESPACE": "prterun-f5-n18-3903919@1",
    "PMIX_SERVER_URI41": "prterun-f5-n18-3903919@0.2;tcp4://10.20.160.173:57983",
}
JOBSET = {
    "JOBSET_NAME": "digits",
    "JOB_COMPLETION_INDEX": "2",
    "JAX_PROCESS_COUNT": "4",
    "JAX_COORDINATOR_ADDRESS": "digits-worker-0-0.digits:12345",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
}


def found(environment, flags=NONE, tpu=False):
    """kind, coordinator, processes, process, here."""
    return find.find(flags, environment, tpu)[:5]


ALONE = ("alone", None, 1, 0, 1)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        ({"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf"}, ALONE),
        (SRUN, ("slurm", "gpu003:61457", 8, 5, 3)),  # 61440 + 17
        ({**SRUN, "SLURM_NODEID": "2", "SLURM_PROCID": "7", "SLURM_LOCALID": "1"},)
        + (("slurm", "gpu003:61457", 8, 7, 2),),  # two tasks on the last node
        ({**SRUN, "SLURM_STEP_ID": "2"}, ("slurm", "gpu003:63451", 8, 5, 3)),  # + 2 · 997
        ({**SRUN, "SLURM_JOB_ID": "8209"}, ("slurm", "gpu003:61457", 8, 5, 3)),  # 17 + 2 · 4096
        ({**SRUN, "JAX_COORDINATOR_PORT": "5000"}, ("slurm", "gpu003:5000", 8, 5, 3)),
        ({**SRUN, "JAX_COORDINATOR_ADDRESS": "ib0:5"}, ("slurm", "ib0:5", 8, 5, 3)),
        (  # an older SLURM says less
            {k: SRUN[k] for k in SRUN if "STEP" not in k}
            | {"SLURM_STEP_ID": "0", "SLURM_NTASKS_PER_NODE": "4"},
            ("slurm", "gpu001:61457", 8, 5, 4),
        ),
        (
            {k: v for k, v in SRUN.items() if "TASKS_PER_NODE" not in k},
            ("slurm", "gpu003:61457", 8, 5, 3),  # ⌈8 / 3⌉
        ),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, ALONE),
        (BATCH, ALONE),
        ({**BATCH, "SLURM_STEP_ID": "4294967291"}, ALONE),
        (INTERACTIVE, ALONE),
        ({"SLURM_JOB_ID": "17", "SLURM_NTASKS": "8"}, ALONE),  # salloc, a shell where it was typed
        (MPIRUN4, ("openmpi", "10.96.0.1:62624", 4, 3, 2)),  # 1531576320 / 4096 mod 4096 = 1184
        (MPIRUN5, ("openmpi", "f5-n18:61871", 4, 3, 2)),  # 3903919 mod 4096 = 431
        (
            {**MPIRUN4, "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp6://[fe80::b9b:ac5d,26::2]:43"},
            ("openmpi", "[fe80::b9b:ac5d]:62880", 4, 3, 2),  # 1314521088 / 4096 mod 4096 = 1440
        ),
        ({**MPIRUN4, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, ("openmpi", "localhost:62624", 4, 3, 4)),
        ({**MPIRUN4, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, ALONE),
        # mpirun inside an allocation: what it starts inherits its daemon's SLURM_PROCID.
        ({**SRUN, **MPIRUN4}, ("openmpi", "10.96.0.1:62624", 4, 3, 2)),
        ({**BATCH, **MPIRUN5}, ("openmpi", "f5-n18:61871", 4, 3, 2)),
        (JOBSET, ("kubernetes", "digits-worker-0-0.digits:12345", 4, 2, 1)),
        ({**JOBSET, "JAX_PROCESS_INDEX": "3"},)
        + (("kubernetes", "digits-worker-0-0.digits:12345", 4, 3, 1),),
        ({"JOB_COMPLETION_INDEX": "2"}, ALONE),  # a plain indexed job: every index is a run
    ],
)
def test_the_environment_decides(environment, expected):
    assert found(environment) == expected


@pytest.mark.parametrize(
    ("environment", "jax_finds"),
    [
        (SRUN, clusters.SlurmCluster),
        ({**SRUN, "SLURM_STEP_NODELIST": "node[001,007-015],host2"}, clusters.SlurmCluster),
        ({**SRUN, "SLURM_STEP_NODELIST": "big1,node[001-015]"}, clusters.SlurmCluster),
        (MPIRUN4, clusters.OmpiCluster),
    ],
)
def test_jax_finds_the_same(environment, jax_finds, monkeypatch):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert jax_finds.is_env_present()
    ours = find.find(NONE, environment)
    assert ours.coordinator == jax_finds.get_coordinator_address(None, None)
    assert (ours.processes, ours.process) == (
        jax_finds.get_process_count(),
        jax_finds.get_process_id(),
    )
    assert ours.gpus == (jax_finds.get_local_process_id(),), "one process a GPU"


@pytest.mark.parametrize(
    ("environment", "tpu", "kind"),
    [
        ({}, True, "tpu"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True, "tpu"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, True, "alone"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True, "tpu"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, "alone"),
        ({"JAX_PLATFORMS": "cpu"}, True, "alone"),
        ({"JAX_PLATFORMS": "tpu,cpu"}, True, "tpu"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False, "alone"),  # no chips here
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True, "tpu"),  # JAX itself reads it
        (JOBSET, True, "kubernetes"),
    ],
)
def test_tpu_pods_are_left_to_jax(environment, tpu, kind):
    assert find.find(NONE, environment, tpu).kind == kind


def test_flags_win_over_every_environment():
    flags = Flags("host1:1234", 4, 3)
    for environment in ({}, SRUN, MPIRUN4, JOBSET):
        assert found(environment, flags, tpu=True) == ("flags", "host1:1234", 4, 3, 1)
    for name in ("localhost", "127.0.0.1", "[::1]"):
        assert found({}, Flags(f"{name}:1", 4, 3))[4] == 4, "all of them are here"


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (Flags(process=0), {}, "give all three"),
        (Flags("a:1", 2), {}, "give all three"),
        (Flags(None, 2, 1), SRUN, "give all three"),
        (Flags("a", 2, 1), {}, "--coordinator is 'a'; it must be HOST:PORT"),
        (Flags("a:x", 2, 1), {}, "must be HOST:PORT"),
        (Flags("a:70000", 2, 1), {}, "must be HOST:PORT"),
        (Flags("a:1", 2, 2), {}, "--process=2 of --processes=2: they count from 0 to 1"),
        (Flags("a:1", 2, -1), {}, "--process=-1"),
        (Flags("a:1", 0, 0), {}, "--processes=0"),
        (NONE, {**SRUN, "SLURM_PROCID": "8"}, "SLURM_PROCID=8, but there are 8"),
        (NONE, {**SRUN, "SLURM_PROCID": "two"}, "SLURM_PROCID='two' is not a number"),
        (NONE, {**SRUN, "SLURM_PROCID": "-1"}, "SLURM_PROCID='-1' is not a number"),
        (NONE, {**SRUN, "SLURM_LOCALID": "3"}, "SLURM_LOCALID=3, but there are 3"),
        (NONE, {**SRUN, "SLURM_JOB_ID": "x17"}, "SLURM_JOB_ID='x17' is not a number"),
        (NONE, {**SRUN, "SLURM_STEP_NUM_TASKS": "0"}, "SLURM_STEP_NUM_TASKS=0"),
        (NONE, {**SRUN, "SLURM_STEP_NODELIST": "gpu[003-004"}, "a bracket is not closed"),
        (NONE, {**SRUN, "SLURM_STEP_NODELIST": ",a"}, "starts with no host's name"),
        (NONE, {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "3(x"}, "is no list of task counts"),
        (NONE, {**BATCH, "SLURM_PROCID": "3"}, "no SLURM_STEP_ID says that srun started"),
        (
            NONE,
            {k: v for k, v in SRUN.items() if "NODELIST" not in k},
            "set JAX_COORDINATOR_ADDRESS=HOST:PORT",
        ),
        (NONE, {**SRUN, "JAX_COORDINATOR_PORT": "http"}, "must be HOST:PORT"),
        (NONE, {**MPIRUN4, "OMPI_COMM_WORLD_RANK": "4"}, "OMPI_COMM_WORLD_RANK=4, but there are 4"),
        (NONE, {**MPIRUN4, "OMPI_COMM_WORLD_SIZE": "4.0"}, "'4.0' is not a number"),
        (NONE, {**MPIRUN4, "OMPI_MCA_orte_hnp_uri": "?"}, "set JAX_COORDINATOR_ADDRESS=HOST:PORT"),
        (
            NONE,
            {k: v for k, v in MPIRUN4.items() if k != "OMPI_COMM_WORLD_RANK"},
            "lacks OMPI_COMM_WORLD_RANK",
        ),
        (NONE, {**JOBSET, "JOB_COMPLETION_INDEX": "4"}, "JOB_COMPLETION_INDEX=4, but there are 4"),
        (NONE, {**JOBSET, "JAX_PROCESS_COUNT": ""}, "but not JAX_PROCESS_COUNT"),
        (NONE, {"JOBSET_NAME": "digits"}, "JAX_COORDINATOR_ADDRESS and JAX_PROCESS_COUNT"),
        (NONE, {"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_PROCESS_COUNT and JOB_COMPLETION_INDEX"),
        (NONE, {**JOBSET, "JAX_COORDINATOR_ADDRESS": "a"}, "must be HOST:PORT"),
    ],
)
def test_a_damaged_or_contradictory_environment_is_one_line(flags, environment, message):
    with pytest.raises(UserError) as error:
        find.find(flags, environment)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[001,007-015],host2", "node001"),
        ("rack[1-3]n[01-04]", "rack1n01"),
        ("big1,node[001-015]", "big1"),
        ("node[7]-ib.cluster.org", "node7-ib.cluster.org"),
    ],
)
def test_first_host_of_a_node_list(nodes, host):
    assert find.first_host(nodes) == host


def test_tasks_per_node():
    assert find.tasks_per_node("2(x3),1", "K") == [2, 2, 2, 1]
    assert find.tasks_per_node("8", "K") == [8]


@pytest.mark.parametrize(
    ("environment", "here", "local", "gpus"),
    [
        ({}, 1, 0, None),  # alone on the host: all of them
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 1, 0, None),
        ({}, 4, 3, (3,)),  # nothing counts them: one process a GPU
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 4, 3, (3,)),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, 2, 1, (2, 3)),  # indices among the visible
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, 2, 1, (1,)),  # equal shares; the third is idle
        ({"CUDA_VISIBLE_DEVICES": "5"}, 4, 3, None),  # srun --gpus-per-task=1, launch/local.sh
        ({"CUDA_VISIBLE_DEVICES": ""}, 4, 3, None),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 4, 3, None),
        ({"ROCR_VISIBLE_DEVICES": "0,1"}, 2, 1, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "JAX_PLATFORMS": "cpu"}, 4, 3, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "JAX_PLATFORMS": "cuda,cpu"}, 2, 1, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "JAX_LOCAL_DEVICE_IDS": "1"}, 2, 1, None),
    ],
)
def test_gpus_of_a_process(environment, here, local, gpus):
    assert find.own_gpus(environment, here, local) == gpus


def test_gpus_and_cores_reach_the_decision():
    visible = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5"}
    assert find.find(NONE, {**SRUN, **visible}).gpus == (4, 5)
    assert find.find(NONE, {**MPIRUN4, **visible}).gpus == (3, 4, 5)
    assert find.find(Flags("localhost:1", 6, 5), visible).gpus == (5,)
    with pytest.raises(UserError, match="3 processes on this host, but CUDA_VISIBLE_DEVICES=0,1 "):
        find.find(NONE, {**SRUN, "CUDA_VISIBLE_DEVICES": "0,1"})
    assert not find.find(NONE, SRUN).bound
    bound = {"SLURM_CPU_BIND_TYPE": "mask_cpu:", "SLURM_CPU_BIND_LIST": "0x30000000"}
    assert find.find(NONE, {**SRUN, **bound}).bound
    assert not find.find(NONE, {**SRUN, "SLURM_CPU_BIND_TYPE": "none"}).bound


def test_a_process_that_srun_did_not_start_says_so_and_goes_on(capsys):
    for environment in (BATCH, {**BATCH, "SLURM_STEP_ID": "4294967291"}):
        assert join.join(find.find(NONE, environment)) == (1, 0, 1)
        line = capsys.readouterr().out
        assert line.startswith("SLURM job 17 has 8 tasks, but srun did not start this process")
        assert line.count("\n") == 1
    assert join.join(find.find(NONE, {})) == (1, 0, 1)
    assert capsys.readouterr().out == "", "alone is nothing to talk about"


JOIN = """
import os, sys
from ssl_jax.processes import find as cluster, join as joining
def run(argv):
    members = joining.join(cluster.find(cluster.Flags(), os.environ), timeout=int(argv[0]))
    print("members", *members, flush=True)
    if argv[1:] == ["fail"] and members.process == 1:
        return 2
    import jax
    print("devices", jax.process_index(), jax.device_count())
    if argv[1:] == ["fail"]:
        from jax.experimental import multihost_utils
        multihost_utils.sync_global_devices("wait for the other")
    return 0
joining.leave(run, sys.argv[1:])
"""


def start(environment, *argv):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI", "JAX"))}
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, *argv],
        env={**inherited, "JAX_PLATFORMS": "cpu", **environment},
        cwd=tiny_run.REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return str(s.getsockname()[1])


def srun(process, port):
    """Two tasks of one node, which is this machine."""
    return {
        **{"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost"},
        **{"SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"},
        **{"SLURM_PROCID": str(process), "SLURM_LOCALID": str(process)},
        "JAX_COORDINATOR_PORT": port,
    }


def test_two_tasks_of_srun_join_and_one_says_so():
    port = free_port()
    tasks = [start(srun(p, port), "60") for p in range(2)]
    (first, _), (second, _) = (t.communicate(timeout=120) for t in tasks)
    assert [t.returncode for t in tasks] == [0, 0]
    line = f"joined 2 processes of SLURM job 17; coordinator localhost:{port}\n"
    assert first == f"{line}members 2 0 2\ndevices 0 2\n"
    assert second == "members 2 1 2\ndevices 1 2\n"


def test_a_process_that_fails_ends_at_once():
    began, port = time.monotonic(), free_port()
    leader, worker = (start(srun(p, port), "60", "fail") for p in range(2))
    try:
        worker.communicate(timeout=200)
        assert worker.returncode == 2
        # Without `leave` it would sit in JAX's shutdown barrier for 300 s, and the other wait.
        assert time.monotonic() - began < 100 and leader.poll() is None
    finally:
        leader.kill()
        leader.communicate()


def test_nobody_answers_is_one_line_and_its_own_exit_code():
    closed = free_port()
    worker = start(srun(1, closed), "2")
    nowhere = start({**srun(1, closed), "JAX_COORDINATOR_ADDRESS": "no-such-host.invalid:1"}, "2")
    leader = start(srun(0, free_port()), "2")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        barred = start({**srun(0, port), "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}"}, "2")
        said = [t.communicate(timeout=60)[1] for t in (worker, nowhere, leader, barred)]
    assert [t.returncode for t in (worker, nowhere, leader, barred)] == [join.EXIT_UNJOINED] * 4
    assert f"error: waited 2 s for process 0 at localhost:{closed}: Connection refused" in said[0]
    assert "error: waited 2 s for process 0 at no-such-host.invalid:1: " in said[1]
    assert "error: waited 2 s for all 2 processes at localhost" in said[2]
    assert f"error: could not listen at localhost:{port}: Address already in use" in said[3]
    for text in said:
        assert "Traceback" not in text and "stack trace" not in text
        assert sum(line.startswith("error: ") for line in text.splitlines()) == 1
