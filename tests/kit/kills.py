"""kill -9 at random moments, and the same command again, until a run is done.

The run is a tiny SimCLR on digits with a checkpoint every 2 steps. A kill hits one of its
processes, drawn from all of them (process 0 is the coordinator), at a moment drawn from three
kinds: some time after the start, some steps after the last checkpoint, some milliseconds after a
save began. Where it really fell is told from what lies in the folder.
"""

import collections
import json
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

FIELDS = (
    *("--config.batch=16", "--config.model.width=8", "--config.model.blocks=(1,)"),
    *(
        "--config.log_every=1",
        "--config.monitor.every_steps=5",
        "--config.checkpoint.every_steps=2",
    ),
    *("--config.monitor.train_examples=100", "--config.monitor.test_examples=100"),
    *("--config.evaluate.train_examples=100", "--config.evaluate.test_examples=100"),
    *("--config.evaluate.batch=50", "--config.report=False", "--config.cpu_devices=2"),
)
STEPS_A_KILL = 6  # the run is so long that it is not done before its last kill
LIMIT = 1_200  # seconds that a start may take to get anywhere, on a very busy machine
KINDS = ("start", "step", "save")


class Kill(NamedTuple):
    """One kill and what followed.

    Attributes:
      where: 'start', 'step' or 'save'.
      process: which was killed.
      seconds: since the start.
      alone: seconds until the others had ended by themselves; None: they were killed.
      step: of the newest checkpoint.
      unreadable: what the checkpoints that could not be read said.
    """

    where: str
    process: int
    seconds: float
    alone: float | None
    step: int
    unreadable: list[str]


def start(folder: pathlib.Path, steps: int, processes: int, more=()) -> list[subprocess.Popen]:
    """Starts the processes of the run; what they say goes to <folder>.<process>.log."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    started = []
    for process in range(processes):
        cluster = (f"--coordinator=localhost:{port}", f"--processes={processes}")
        cluster = (*cluster, f"--process={process}") if processes > 1 else ()
        command = [
            *(sys.executable, "-m", "ssl_jax.main", "--config=configs/simclr.py:digits"),
            *(*FIELDS, f"--config.steps={steps}", f"--workdir={folder}", *cluster, *more),
        ]
        with open(f"{folder}.{process}.log", "w") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    return started


def said(folder: pathlib.Path, processes: int) -> str:
    """What the processes of the last start said."""
    logs = [pathlib.Path(f"{folder}.{p}.log") for p in range(processes)]
    return "\n".join(f"{log.name}:\n{log.read_text()}" for log in logs if log.exists())


def logged(folder: pathlib.Path) -> list[int]:
    """The steps in metrics.jsonl with a loss, a torn last line aside."""
    file = folder / "metrics.jsonl"
    found = []
    for line in file.read_text().splitlines() if file.exists() else ():
        if line.endswith("}") and '"loss"' in line:
            found.append(json.loads(line)["step"])
    return found


def saved(folder: pathlib.Path) -> list[int]:
    """Steps of the finished checkpoints."""
    found = (folder / "checkpoints").glob("*")
    return sorted(int(f.name) for f in found if f.name.isdigit())


def saving(folder: pathlib.Path) -> set[str]:
    """Checkpoints that are being written, or were when a process was killed."""
    return {f.name for f in (folder / "checkpoints").glob("*tmp*")}


def wait(processes: list[subprocess.Popen], done, seconds: float) -> bool:
    """Waits until done() or a process has ended or the time is over; whether done()."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and all(p.poll() is None for p in processes):
        if done():
            return True
        time.sleep(0.002)
    return done()


def end(processes: list[subprocess.Popen], patience: float) -> float | None:
    """Waits for processes to end, then kills them.

    Returns:
      seconds until the last had ended by itself; None: killed.
    """
    begun = time.monotonic()
    while any(p.poll() is None for p in processes):
        if time.monotonic() - begun > patience:
            for p in processes:
                p.kill()
                p.wait()
            return None
        time.sleep(0.01)
    return time.monotonic() - begun


def readable(folder: pathlib.Path, like) -> list[str]:
    """Reads every finished checkpoint whole; what went wrong."""
    from ssl_jax.checkpoints import reading, store
    from ssl_jax.errors import UserError

    wrong = []
    if not (folder / "checkpoints").is_dir():
        return wrong
    with store.open_manager(folder / "checkpoints", 2, read_only=True) as manager:
        for step in manager.all_steps():
            try:
                reading.restore(manager, step, like)
            except UserError as error:
                wrong.append(str(error))
    return wrong


def state_like(folder: pathlib.Path):
    """The shapes of the run's state, on the devices of this process."""
    import jax

    from ssl_jax.processes import host
    from ssl_jax.runs import workdir
    from ssl_jax.train import experiment

    config = workdir.read_config(folder).config
    config.cpu_devices, config.compile_cache = jax.local_device_count(), ""
    return experiment.like(experiment.assemble(config, host.Cluster(1, 0, 1), None))


def finish(folder: pathlib.Path, steps: int, processes: int, more=()) -> str:
    """Runs to the end; the fingerprint.

    Raises:
      SystemExit: it failed.
    """
    running = start(folder, steps, processes, more)
    codes = [p.wait() for p in running]
    if any(codes):
        sys.exit(f"exit codes {codes}\n{said(folder, processes)}")
    return json.loads((folder / "result.json").read_text())["fingerprint"]


def kill(folder, steps, processes, rng: random.Random, patience: float, like, more=()):
    """Starts the run, kills one of its processes, reads the checkpoints.

    Returns:
      a Kill; or what the run said, where it ended before it was killed.
    """
    before, torn = (saved(folder) or [0])[-1], saving(folder)
    begun = time.monotonic()
    running = start(folder, steps, processes, more)
    kind = rng.choice(KINDS)
    if kind == "start":
        wait(running, lambda: False, rng.uniform(0, 12))
    elif kind == "step":
        target = before + rng.randint(1, STEPS_A_KILL - 1)
        wait(running, lambda: (logged(folder) or [0])[-1] >= target, LIMIT)
        time.sleep(rng.uniform(0, 0.02))
    else:
        wait(running, lambda: saving(folder) - torn, LIMIT)
        time.sleep(rng.uniform(0, 0.1))
    victim = rng.randrange(processes)
    if any(p.poll() is not None for p in running):
        end(running, patience)
        return said(folder, processes)
    running[victim].send_signal(signal.SIGKILL)
    running[victim].wait()
    seconds = time.monotonic() - begun
    where = "save" if saving(folder) - torn else "step"
    if not re.search(r"step +\d+/", said(folder, processes)):
        where = "start"
    alone = end(running, patience)
    wrong = readable(folder, like)
    return Kill(where, victim, seconds, alone, (saved(folder) or [0])[-1], wrong)


def campaign(
    root: pathlib.Path, kills: int, processes: int, seed: int, patience: float, more=()
) -> tuple[list[Kill], list[str]]:
    """The undisturbed run, the killed one, and what is not as it must be.

    Args:
      root: folder for both.
      kills: how many.
      processes: of each run, of two CPU devices each.
      seed: of moments and victims.
      patience: seconds that the others of a killed process have to end.
      more: further words of the command line.

    Returns:
      (kills, faults): a line each.
    """
    rng, folder, steps = random.Random(seed), root / "killed", STEPS_A_KILL * (kills + 1)
    want = finish(root / "undisturbed", steps, processes, more)
    like = state_like(root / "undisturbed")
    done, faults = [], []
    while len(done) < kills:
        one = kill(folder, steps, processes, rng, patience, like, more)
        if isinstance(one, str):
            print(f"a start that ended by itself:\n{one}", flush=True)
            faults.append("a start that ended by itself, see above")
            if (folder / "result.json").exists() or len(faults) > kills:
                return done, faults
            continue
        done.append(one)
        ended = "killed" if one.alone is None else f"ended after {one.alone:.1f} s"
        others = f", the others {ended}" if processes > 1 else ""
        print(
            f"kill {len(done)}: process {one.process} in {one.where}, {one.seconds:.1f} s after "
            f"the start{others}; newest checkpoint {one.step}",
            flush=True,
        )
        faults += one.unreadable
    got = finish(folder, steps, processes, more)
    if got != want:
        faults.append(f"the final fingerprint is {got}, of the undisturbed run {want}")
    if logged(folder) != list(range(1, steps + 1)):
        twice = [s for s, n in collections.Counter(logged(folder)).items() if n > 1]
        faults.append(f"{len(logged(folder))} of {steps} steps are logged, twice: {twice}")
    return done, faults
