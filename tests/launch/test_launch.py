"""The launchers: what they would do, what they do with stand-ins, and real runs that are killed."""

import fcntl
import json
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest
import yaml
from kit import tiny_run

from ssl_jax.logs import metrics
from ssl_jax.processes import find

LAUNCH = tiny_run.REPOSITORY / "launch"
LOCAL, TPU, SLURM = LAUNCH / "local.sh", LAUNCH / "tpu_pod.sh", LAUNCH / "slurm.sbatch"
CONFIG = ("--config", "configs/simclr.py:digits")


def environment(path=None, **more):
    """This one without GPUs and clusters; `path` comes first in PATH."""
    foreign = ("SLURM", "OMPI", "JAX", "CUDA", "DRY_RUN")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    # The interpreter of the tests is `python`.
    paths = [*([str(path)] if path else []), str(pathlib.Path(sys.executable).parent)]
    return {**kept, "PATH": ":".join([*paths, kept["PATH"]]), **more}


def run(*command, path=None, timeout=60, **more):
    return subprocess.run(
        [str(c) for c in command],
        cwd=tiny_run.REPOSITORY,
        env=environment(path, **more),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def stand_in(folder, name, text):
    """Puts a shell script called `name` into `folder`."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/usr/bin/env bash\n{text}")
    file.chmod(0o755)
    return file


def snapshot():
    return {p: p.stat().st_mtime_ns for p in LAUNCH.parent.iterdir()}


def test_the_scripts_pass_shellcheck():
    checker = shutil.which("shellcheck", path=environment()["PATH"])
    assert checker, "pip install -r requirements-test.txt brings shellcheck"
    done = run(checker, *sorted(LAUNCH.glob("*.sh")), SLURM)
    assert done.returncode == 0, done.stdout
    assert len(list(LAUNCH.glob("*.sh"))) == 2


@pytest.mark.parametrize("file", [LOCAL, TPU, SLURM, LAUNCH / "kubernetes.yaml"])
def test_every_launcher_says_how_to_use_it_and_what_it_needs(file):
    head = file.read_text().partition("\nset -u")[0].partition("\napiVersion")[0]
    comment = "\n".join(line for line in head.splitlines() if line.startswith("#"))
    assert f"launch/{file.stem}" in comment and "Needs:" in comment and "--config" in comment
    assert "a mistake" in comment.replace("\n# ", " "), "which exit codes end it"


# --- dry runs


@pytest.mark.parametrize("name", ["local.sh", "tpu_pod.sh"])
def test_help_is_the_lines_on_top(name):
    done = run(LAUNCH / name, "--help")
    assert done.returncode == 0 and f"launch/{name} " in done.stdout and "--dry-run" in done.stdout
    assert "#" not in done.stdout and "set -u" not in done.stdout


def test_dry_run_of_local():
    before = snapshot()
    for more, how in (((), {"DRY_RUN": "1"}), (("--dry-run",), {})):
        done = run(LOCAL, 2, *more, "--restarts", 7, "--", *CONFIG, "--workdir", "a b", **how)
        assert done.returncode == 0, done.stderr
        first, second, policy = done.stdout.splitlines()
        command = "python -m ssl_jax.main --config configs/simclr.py:digits --workdir a\\ b "
        assert first == f"{command}--coordinator=localhost:PORT --processes=2 --process=0 &"
        assert second == f"{command}--coordinator=localhost:PORT --processes=2 --process=1 &"
        assert "at most 7 times" in policy
    assert snapshot() == before


def test_local_gives_each_process_a_gpu(tmp_path):
    stand_in(tmp_path, "nvidia-smi", "seq 0 3")
    dry = (LOCAL, 2, "--dry-run", "--", *CONFIG)
    lines = run(*dry, path=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines[:2]] == [f"CUDA_VISIBLE_DEVICES={i}" for i in (0, 1)]
    lines = run(*dry, path=tmp_path, CUDA_VISIBLE_DEVICES="5,7,3").stdout.splitlines()
    assert [line.split()[0] for line in lines[:2]] == [f"CUDA_VISIBLE_DEVICES={i}" for i in (5, 7)]
    assert "CUDA" not in run(*dry, path=tmp_path, JAX_PLATFORMS="cpu").stdout
    assert "CUDA" not in run(LOCAL, 1, *dry[2:], path=tmp_path).stdout, "it keeps them all"
    done = run(LOCAL, 5, *dry[2:], path=tmp_path)
    assert done.returncode == 2 and "5 processes, but 4 GPUs" in done.stderr


def test_dry_run_of_tpu_pod():
    before = snapshot()
    options = ("--name", "ssl1", "--zone", "z1", "--type", "v5litepod-16", "--setup", "mount 'x'")
    flags = (*CONFIG, "--workdir", "/runs/a b")
    plain = run(TPU, *options, "--dry-run", "--", *flags)
    queued = run(TPU, *options, "--queued", "--spot", "--", *flags, DRY_RUN="1")
    assert plain.returncode == queued.returncode == 0, plain.stderr + queued.stderr
    assert snapshot() == before and not (tiny_run.REPOSITORY / "logs").exists()
    gcloud = "gcloud compute tpus"
    create = f"{gcloud} tpu-vm create ssl1 --zone=z1 --accelerator-type=v5litepod-16 --version="
    assert create in plain.stdout
    assert f"{gcloud} queued-resources create ssl1 --node-id=ssl1" in queued.stdout
    assert "--spot" in queued.stdout and "--spot" not in plain.stdout
    for text in (plain.stdout, queued.stdout):
        positions = [
            text.index(part)
            for part in (
                " create ssl1",
                "tar -czf",
                "tpu-vm scp",
                f"jax[tpu]=={pinned('jax')}",
                "mount '\\''x'\\''",
                r"ssl_jax.main --config configs/simclr.py:digits --workdir /runs/a\ b",
                "cat ssl_jax.code",
                r"--exclude=checkpoints /runs/a\ b",
                " delete ssl1",
            )
        ]
        assert positions == sorted(positions)


def pinned(package):
    text = (tiny_run.REPOSITORY / "requirements.txt").read_text()
    return re.search(rf"^{package}==(.*)$", text, re.M)[1]


def test_dry_run_of_slurm():
    text = run("bash", SLURM, *CONFIG, DRY_RUN="1", SLURM_CPUS_PER_TASK="8").stdout
    assert text.startswith("srun ") and "--cpus-per-task=8 python -m ssl_jax.main" in text
    assert "--config configs/simclr.py:digits" in text and "scontrol requeue" in text
    header = SLURM.read_text()
    assert "#SBATCH --requeue" in header and "#SBATCH --signal=TERM@120" in header


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((LOCAL,), "how many processes?"),
        ((LOCAL, "0", "--", "x"), "how many processes?"),
        ((LOCAL, 2), "what to run?"),
        ((LOCAL, 2, *CONFIG), "--config is no option of local.sh; flags of the run come after --"),
        ((LOCAL, 2, "--restarts", "many", "--", *CONFIG), "--restarts needs a number"),
        ((TPU, "--name", "a", "--", *CONFIG), "--name, --zone and --type say which TPU"),
        ((TPU, "--nmae", "a"), "--nmae is no option"),
        ((TPU, "--name", "a", "--zone"), "--zone needs a value"),
        ((TPU, "--name", "a", "--zone", "z", "--type", "t"), "what to run?"),
        (("bash", SLURM), "what to run?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command, message):
    done = run(*command)
    assert done.returncode == 2 and message in done.stderr, done
    assert done.stderr.count("\n") == 1 and not done.stdout


# --- kubernetes.yaml

KUBERNETES = ("--name=digits", "--image=host/ssl_jax:1", "--claim=runs", "--processes=3")


def rendered(*more, flags=CONFIG):
    done = run(sys.executable, LAUNCH / "kubernetes.py", *KUBERNETES, *more, "--", *flags)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_kubernetes_yaml_restarts_all_pods_and_stops_at_a_mistake():
    yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())  # valid with its placeholders as well
    jobset = rendered("--gpus=4")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = jobset["spec"]
    assert spec["failurePolicy"]["maxRestarts"] > 0
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert spec["network"]["enableDNSHostnames"] is True
    (worker,) = spec["replicatedJobs"]
    assert worker["replicas"] == 1, "JOB_COMPLETION_INDEX counts within one job"
    job = worker["template"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 3, 3)
    assert job["backoffLimit"] == 0, "one pod alone cannot join again: all must start anew"
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "as podFailurePolicy demands"
    (box,) = pod["containers"]
    (policy,) = job["podFailurePolicy"]["rules"]
    assert policy["onExitCodes"] == {
        "containerName": box["name"],
        "operator": "In",
        "values": [2],
    }
    assert box["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert {m["name"] for m in box["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_cluster_py_reads_what_kubernetes_yaml_sets():
    jobset = rendered()
    network, (worker,) = jobset["spec"]["network"], jobset["spec"]["replicatedJobs"]
    (box,) = worker["template"]["spec"]["template"]["spec"]["containers"]
    variables = {e["name"]: e["value"] for e in box["env"]}
    assert all(isinstance(v, str) for v in variables.values())
    for index in range(3):  # JOB_COMPLETION_INDEX comes from Kubernetes
        found = find.find(find.Flags(), {**variables, "JOB_COMPLETION_INDEX": str(index)}, False)
        host = f"digits-{worker['name']}-0-0.{network['subdomain']}"
        assert found.coordinator == f"{host}:{box['ports'][0]['containerPort']}"
        assert (found.kind, found.processes, found.process) == ("kubernetes", 3, index)
        assert found.name == "JobSet digits"


def test_kubernetes_arguments_arrive_as_they_are():
    flags = (*CONFIG, "--config.model.blocks=(1,)", '--config.data.source=folder:/a "b" #: é')
    (worker,) = rendered(flags=flags)["spec"]["replicatedJobs"]
    (box,) = worker["template"]["spec"]["template"]["spec"]["containers"]
    assert box["args"] == [*flags, "--workdir=/runs/digits"]
    (worker,) = rendered(flags=(*CONFIG, "--workdir=/runs/x"))["spec"]["replicatedJobs"]
    (box,) = worker["template"]["spec"]["template"]["spec"]["containers"]
    assert box["args"] == [*CONFIG, "--workdir=/runs/x"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--name=Digits",), "--name 'Digits'"),
        (("--name=" + "a" * 41,), "up to 40"),
        (("--processes=0",), "--processes is at least 1"),
        (("--image=a b",), "is no image's name"),
        (("--memory=lots",), "--memory 'lots'"),
        (("--cpus=many",), "--cpus 'many'"),
    ],
)
def test_kubernetes_py_names_mistakes(more, message):
    done = run(sys.executable, LAUNCH / "kubernetes.py", *KUBERNETES, *more, "--", *CONFIG)
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr and done.stderr.count("\n") == 1


# --- what they do, with stand-ins for python, srun, gcloud

# `python` that asks the script in $BEHAVES what process $p does at its $try-th start.
PYTHON = """
[[ $1 == -c ]] && { echo 4711; exit; }
p=${*: -1}; p=${p#--process=}
echo >> $HERE/starts$p; try=$(wc -l < $HERE/starts$p)
echo "$p $try $*" >> $HERE/commands
nap() { sleep "$1" > /dev/null 2>&1 & wait $!; }
. $BEHAVES
"""


def local(folder, behaves, *more, before=lambda: None, **how):
    (folder / "behaves").write_text(behaves)
    stand_in(folder, "python", PYTHON)

    def prepare():
        # Under nohup, or behind a shell's &, the tests inherit signals that are ignored, and bash
        # cannot trap what it finds ignored.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        before()

    return subprocess.Popen(
        [str(c) for c in (LOCAL, 3, *more, "--", "--config=x")],
        env=environment(folder, HERE=str(folder), BEHAVES=str(folder / "behaves")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=prepare,
        **how,
    )


def starts(folder):
    return [len((folder / f"starts{p}").read_text().split("\n")) - 1 for p in range(3)]


def wait_for(what, seconds=60):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("behaves", "more", "code", "tries"),
    [
        ("exit 0", (), 0, 1),
        # The others would sleep for a minute: they are ended.
        ("[[ $p$try == 11 ]] && exit 9; [[ $try == 1 ]] && exec sleep 60; exit 0", (), 0, 2),
        ("[[ $p$try == 11 ]] && kill -9 $$; [[ $try == 1 ]] && exec sleep 60; exit 0", (), 0, 2),
        ("[[ $p == 2 ]] && exit 9; nap 60", ("--restarts", 1), 9, 2),
        ("[[ $p == 2 ]] && exit 9; nap 60", ("--restarts", 0), 9, 1),
        ("exit 2", (), 2, 1),  # a mistake is not repeated
        ("[[ $p == 0 ]] && exit 2; nap 60", (), 2, 1),
        # One was told to stop, they agreed on a step: nobody disturbs those who still save.
        (
            "trap 'exit 9' TERM; [[ $try == 2 ]] && exit 0; [[ $p == 1 ]] || nap 1; exit 143",
            (),
            0,
            2,
        ),
    ],
)
def test_local_ends_the_others_and_restarts(behaves, more, code, tries, tmp_path):
    began = time.monotonic()
    process = local(tmp_path, behaves, *more)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code, out
    assert starts(tmp_path) == [tries] * 3 and time.monotonic() - began < 40
    for line in (tmp_path / "commands").read_text().splitlines():
        p = line.split()[0]
        end = f"--config=x --coordinator=localhost:4711 --processes=3 --process={p}"
        assert line.endswith(end)


@pytest.mark.long
def test_local_kills_who_does_not_end(tmp_path):
    behaves = "[[ $p == 1 ]] && exit 9; trap '' TERM; while :; do sleep 0.2; done"
    process = local(tmp_path, behaves, "--restarts", 0)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 9 and out.count("ended with code 137") == 2, out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_local_passes_the_request_to_stop_on_and_does_not_restart(number, tmp_path):
    heard = "trap 'echo $p >> $HERE/heard; nap 0.5; exit 143' TERM; echo >> $HERE/ready; nap 60"
    process = local(tmp_path, heard)
    ready = tmp_path / "ready"
    wait_for(lambda: ready.exists() and ready.stat().st_size == 3)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "the same command continues" in out
    assert sorted((tmp_path / "heard").read_text().split()) == ["0", "1", "2"], "once each"
    assert starts(tmp_path) == [1, 1, 1]


def test_local_passes_ctrl_c_on_a_terminal_on_once(tmp_path):
    heard = "trap 'echo $p-TERM >> $HERE/heard; nap 0.5; exit 143' TERM; "
    heard += "trap 'echo $p-INT >> $HERE/heard' INT; echo >> $HERE/ready; nap 60; nap 60"
    keyboard, screen = pty.openpty()
    process = local(
        tmp_path,
        heard,
        stdin=screen,
        start_new_session=True,
        before=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(screen)
    ready = tmp_path / "ready"
    wait_for(lambda: ready.exists() and ready.stat().st_size == 3)
    os.write(keyboard, b"\x03")
    out, _ = process.communicate(timeout=60)
    os.close(keyboard)
    assert process.returncode == 143, out
    # A second signal ends a process at once, without saving: the terminal's would be one.
    assert sorted((tmp_path / "heard").read_text().split()) == ["0-TERM", "1-TERM", "2-TERM"]


SRUN = 'echo "srun $*" >> $HERE/log; . $BEHAVES'


@pytest.mark.parametrize(
    ("behaves", "restarts", "code", "requeued"),
    [
        ("exit 0", 0, 0, False),
        ("exit 2", 0, 2, False),
        ("exit 143", 3, 0, True),
        ("exit 137", 3, 0, True),
        ("exit 143", 100, 143, False),  # MAX_RESTARTS
        ("kill -TERM $PPID; sleep 0.5; exit 143", 0, 143, False),  # scancel tells the script, too
    ],
)
def test_slurm_queues_itself_again_unless_finished(behaves, restarts, code, requeued, tmp_path):
    (tmp_path / "behaves").write_text(behaves)
    stand_in(tmp_path, "srun", SRUN)
    stand_in(tmp_path, "scontrol", 'echo "scontrol $*" >> $HERE/log')
    done = run(
        *("bash", SLURM, *CONFIG),
        path=tmp_path,
        HERE=str(tmp_path),
        BEHAVES=str(tmp_path / "behaves"),
        SLURM_JOB_ID="17",
        SLURM_RESTART_COUNT=str(restarts),
    )
    assert done.returncode == code, done.stderr
    log = (tmp_path / "log").read_text().splitlines()
    assert log[0].endswith("python -m ssl_jax.main --config configs/simclr.py:digits")
    assert log[1:] == (["scontrol requeue 17"] if requeued else [])


# `gcloud` with one TPU: its state in a file, and what its workers do at the i-th run in $BEHAVES.
GCLOUD = r"""
echo "$*" >> $HERE/log
state() { cat $HERE/state 2>/dev/null; }
case "$*" in
  *"tpu-vm describe"*)
    [[ -n $(state) ]] || { echo "ERROR: NOT_FOUND: no TPU" >&2; exit 1; }
    state ;;
  *"queued-resources describe"*) echo "ERROR: NOT_FOUND: none" >&2; exit 1 ;;
  *" create "*) echo READY > $HERE/state ;;
  *" delete "*) rm $HERE/state ;;
  *"--command=rm -f ssl_jax.code"*)
    echo >> $HERE/tries; try=$(wc -l < $HERE/tries)
    . $BEHAVES ;;
  *"--command=cat ssl_jax.code"*) cat $HERE/codes 2>/dev/null ;;
  *"kill -TERM \$(cat ssl_jax.pid)"*) touch $HERE/stopped ;;
  *"--command=tar "*)
    cd $HERE && mkdir -p runs/a && echo done > runs/a/metrics.jsonl && tar -czf - runs/a ;;
esac
"""


def tpu(folder, behaves, *more):
    (folder / "behaves").write_text(behaves)
    stand_in(folder, "gcloud", GCLOUD)
    options = ("--name=x", "--zone=z", "--type=t")
    options = [part for o in options for part in o.split("=")]
    command = (TPU, *options, *more, "--fetch", folder / "logs", "--", *CONFIG, "--workdir=runs/a")
    return subprocess.Popen(
        [str(c) for c in command],
        env=environment(
            folder,
            HERE=str(folder),
            BEHAVES=str(folder / "behaves"),
            POLL="0.1",
            TMPDIR=str(folder),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def verbs(folder):
    """What was done, in order, without the questions."""
    names = {
        " create ": "create",
        " delete ": "delete",
        " scp ": "copy",
        "pip install": "install",
        "--command=mount": "setup",
        "=rm -f ssl_jax.code": "run",
        "--command=tar": "fetch",
    }
    log = (folder / "log").read_text()
    return [name for line in log.splitlines() for key, name in names.items() if key in line]


NEW = ["create", "copy", "install"]


@pytest.mark.parametrize(
    ("behaves", "more", "code", "expected"),
    [
        ("printf '0\n0\n' > $HERE/codes", (), 0, [*NEW, "run", "fetch"]),
        (
            "printf '0\n0\n' > $HERE/codes",
            ("--setup", "mount it", "--delete", "--queued"),
            0,
            [*NEW, "setup", "run", "fetch", "delete"],
        ),
        (  # preempted in the first run: made, installed and run anew
            "[[ $try == 1 ]] && { echo PREEMPTED > $HERE/state; exit 1; }; echo 0 > $HERE/codes",
            (),
            0,
            [*NEW, "run", "delete", *NEW, "run", "fetch"],
        ),
        (  # stopped and saved: the TPU is still there
            "printf '143\n143\n' > $HERE/codes; [[ $try == 1 ]] || echo 0 > $HERE/codes",
            (),
            0,
            [*NEW, "run", "run", "fetch"],
        ),
        ("printf '2\n134\n' > $HERE/codes", (), 2, [*NEW, "run", "fetch"]),
        ("printf '1\n' > $HERE/codes", ("--restarts", 2), 1, [*NEW, "run", "run", "run", "fetch"]),
    ],
)
def test_tpu_pod_makes_installs_runs_fetches_and_survives(behaves, more, code, expected, tmp_path):
    process = tpu(tmp_path, behaves, *more)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code, out
    assert verbs(tmp_path) == expected
    assert (tmp_path / "logs" / "runs" / "a" / "metrics.jsonl").read_text() == "done\n"
    assert not list(tmp_path.glob("*.tgz"))


def test_tpu_pod_takes_the_tpu_that_is_there_and_passes_a_request_to_stop_on(tmp_path):
    (tmp_path / "state").write_text("READY\n")
    behaves = "touch $HERE/running; while [[ ! -f $HERE/stopped ]]; do sleep 0.1; done; "
    process = tpu(tmp_path, behaves + "echo 143 > $HERE/codes")
    wait_for((tmp_path / "running").exists)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143, out
    assert verbs(tmp_path) == ["copy", "install", "run", "fetch"]


# --- real runs

SHORT = (
    "--config.cpu_devices=2",
    # After the first checkpoint there is time enough to look and to send a signal.
    "--config.steps=80",
    "--config.checkpoint.every_steps=10",
    "--config.evaluate.train_examples=100",
    "--config.evaluate.test_examples=50",
    "--config.monitor.train_examples=100",
    "--config.monitor.test_examples=50",
)


def start(workdir):
    return subprocess.Popen(
        [str(LOCAL), "2", "--restarts", "3", "--", *tiny_run.arguments(workdir, *SHORT)],
        cwd=tiny_run.REPOSITORY,
        env=environment(JAX_PLATFORMS="cpu"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def logged(workdir):
    """The newest step in metrics.jsonl."""
    return max([0, *(r["step"] for r in metrics.read(workdir / "metrics.jsonl") if "loss" in r)])


def fingerprint(workdir):
    return json.loads((workdir / "result.json").read_text())["fingerprint"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The fingerprint of the run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(folder)
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    assert "joined 2 processes; coordinator localhost:" in out and "restart" not in out
    assert "on 4 cpu devices of 2 processes" in out
    return fingerprint(folder)


@pytest.mark.long
def test_a_run_is_made_up_for_when_killed_and_saves_and_continues_when_asked_to_stop(
    undisturbed, tmp_path
):
    disturbed = start(tmp_path)
    seen = []

    def line_with(text):
        for line in disturbed.stdout:
            seen.append(line)
            if text in line:
                return line
        raise AssertionError("".join(seen))

    victim = int(line_with("started processes").split()[-1])
    wait_for((tmp_path / "checkpoints" / "10").is_dir, 600)
    os.kill(victim, signal.SIGKILL)
    line_with("restart 1 of 3")
    begun = logged(tmp_path)
    wait_for(lambda: logged(tmp_path) > begun, 600)
    disturbed.send_signal(signal.SIGTERM)
    out = "".join(seen) + disturbed.communicate(timeout=600)[0]
    assert disturbed.returncode == 143, out
    assert "process 1 ended with code 137" in out
    assert out.count("started processes") == 2 and "restart 2" not in out
    (step,) = re.findall(r"stopped and saved at step (\d+)", out)
    assert (tmp_path / "checkpoints" / step).is_dir() and not (tmp_path / "result.json").exists()
    for process in range(2):
        assert f"process {process} ended with code 143" in out
    assert "asked to stop; the same command continues" in out

    continued = start(tmp_path)
    out, _ = continued.communicate(timeout=900)
    assert continued.returncode == 0 and f"continuing at step {step}" in out, out
    assert "restart" not in out
    assert fingerprint(tmp_path) == undisturbed
