"""What every benchmark does: take turns, in processes of their own, and say medians and ranges.

It imports nothing but Python, so that the process of a peer stays without JAX.
"""

import argparse
import concurrent.futures
import importlib.metadata
import json
import os
import pathlib
import queue
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any


def parser(
    doc: str, rounds: int | None = None, out: str = "JSON of every measurement"
) -> argparse.ArgumentParser:
    """The flags that all have: --out and --tiny, and --rounds where they take turns.

    Args:
      doc: of the module; its first line describes the command.
      rounds: how often everything is measured; None: there are no rounds.
      out: what --out is.
    """
    made = argparse.ArgumentParser(description=doc.partition("\n")[0])
    made.add_argument("--out", type=pathlib.Path, help=out)
    made.add_argument("--tiny", action="store_true", help="sizes that only try the benchmark")
    if rounds:
        made.add_argument("--rounds", type=int, default=rounds)
    return made


def parse(made: argparse.ArgumentParser, **tiny: Any) -> argparse.Namespace:
    """The flags as given; under --tiny, `tiny` are the defaults of those that are not given."""
    a, more = parse_known(made, **tiny)
    if more:
        made.error(f"unrecognized arguments: {' '.join(more)}")
    return a


def parse_known(made: argparse.ArgumentParser, **tiny: Any) -> tuple[argparse.Namespace, list[str]]:
    """`parse`, and the words that are no flags of the benchmark."""
    if "--tiny" in sys.argv[1:]:
        # Short runs lie apart: those of the usual folder are taken for whole ones.
        made.set_defaults(**{"rounds": 1, "runs": pathlib.Path("runs") / "tiny", **tiny})
    a, more = made.parse_known_args()
    if a.out:
        a.out.parent.mkdir(parents=True, exist_ok=True)
    return a, more


def run_flags(made: argparse.ArgumentParser, methods: Iterable[str], runs: str, jobs: str) -> None:
    """Adds the flags of benchmarks that train; `runs` is a folder, `jobs` what shares the cores."""
    names = list(methods)
    if names:
        made.add_argument("--methods", nargs="+", choices=names, default=names)
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--at-once", type=int, default=1, help=f"{jobs} that share the cores")
    made.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs") / runs)


# A run that only shows that a benchmark works.
TINY_RUN = (
    *("--config.steps=5", "--config.batch=32"),
    *("--config.monitor.train_examples=100", "--config.monitor.test_examples=100"),
    *("--config.evaluate.train_examples=100", "--config.evaluate.test_examples=100"),
)


def again(a: argparse.Namespace, *names: str) -> list[str]:
    """The words that give these flags the same values in another process; None is left out."""
    words = []
    for name in names:
        value = getattr(a, name.replace("-", "_"))
        values = value if isinstance(value, list) else [value]
        if value is not None and value is not False:
            words += [f"--{name}", *([] if value is True else map(str, values))]
    return words


def write(file: pathlib.Path | None, found: Any) -> None:
    """JSON of what was found, where --out asks for it."""
    if file:
        replace(file, json.dumps(found, indent=1) + "\n")


def replace(file: pathlib.Path, text: str) -> None:
    """Writes a file, which is whole or as it was."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text)
    new.replace(file)


def in_turn(names: Iterable, rounds: int, measure: Callable[[Any], Any]) -> dict[Any, list]:
    """Every name once in every round, so that a drift of the machine falls on all alike."""
    found = {name: [] for name in names}
    for _ in range(rounds):
        for name, runs in found.items():
            runs.append(measure(name))
    return found


def clock(
    f: Callable[[], Any],
    steps: int,
    each: int = 1,
    wait: Callable[[Any], Any] = lambda out: out,
    warmed: Callable[[], Any] = lambda: None,
    warm: int = 2,
) -> tuple[float, float, Any]:
    """Times f: (median seconds of a call, mean of its CPU seconds, what it returned last).

    Args:
      f: without arguments.
      steps: how often the clock is looked at.
      each: calls between two looks.
      wait: for what a call returned.
      warmed: called when the clock starts.
      warm: looks before that, which do not count.
    """
    seconds = []
    for i in range(steps + warm):
        if i == warm:
            warmed()
            cpu = time.process_time()
        start = time.perf_counter()
        for _ in range(each):
            out = f()
        wait(out)
        seconds.append((time.perf_counter() - start) / each)
    cpu = (time.process_time() - cpu) / steps / each
    return statistics.median(seconds[warm:]), cpu, out


def attempt(
    module: str,
    words: Sequence[str],
    text: str | None = None,
    environment: Mapping[str, str] | None = None,
    limit: float | None = None,
) -> dict:
    """One measurement in a process of its own.

    Args:
      module: 'benchmarks.step', say.
      words: its command line.
      text: what it reads.
      environment: what is other than here.
      limit: seconds after which it and all that it started are ended.

    Returns:
      {'output': all that it printed, 'process': its seconds}, or {'failed': why}, 'out of memory'
      among the reasons.
    """
    command, start = [sys.executable, "-m", module, *words], time.perf_counter()
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env={**os.environ, **(environment or {})},
        start_new_session=limit is not None,
    ) as process:
        try:
            out, err = process.communicate(text, timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started: torch's compilers
            process.communicate()
            return {"failed": f"not done after {limit:.0f} s"}
    if process.returncode:
        if re.search(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|OutOfMemory|MemoryError", err):
            return {"failed": "out of memory"}
        last = "\n".join(err.strip().splitlines()[-6:])
        return {"failed": f"ended with {process.returncode}: {last}"}
    return {"output": out, "process": time.perf_counter() - start}


def measured(module: str, *words: str, environment: Mapping[str, str] | None = None) -> Any:
    """What a measurement of `attempt` found: the JSON in the last line that it printed.

    Raises:
      SystemExit: it failed.
    """
    found = attempt(module, words, environment=environment)
    if "failed" in found:
        sys.exit(f"python -m {module} {' '.join(words)}\n{found['failed']}")
    return last(found)


def last(found: dict) -> Any:
    """The JSON in the last line that a process of `attempt` printed."""
    return json.loads(found["output"].splitlines()[-1])


def train(*words: str) -> None:
    """`python -m ssl_jax.main` in a process of its own.

    Raises:
      SystemExit: it failed; its output is shown.
    """
    command = [sys.executable, "-m", "ssl_jax.main", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}")


def at_once(count: int, jobs: Mapping[Any, Sequence[Callable[[], Any]]]) -> Iterator:
    """Runs jobs whose child processes keep to a share of the cores.

    Args:
      count: jobs at a time, and shares that this process's cores are dealt into, one by one.
      jobs: name -> jobs.

    Yields:
      (name, results) in the order of `jobs`, each as soon as it is complete.
    """
    cores, shares = sorted(os.sched_getaffinity(0)), queue.Queue()
    for i in range(count):
        shares.put(cores[i::count])

    def take_cores():
        os.sched_setaffinity(0, shares.get())  # of this thread; its processes inherit them

    with concurrent.futures.ThreadPoolExecutor(count, initializer=take_cores) as pool:
        started = {name: [pool.submit(job) for job in some] for name, some in jobs.items()}
        try:
            for name, some in started.items():
                yield name, [job.result() for job in some]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def proc(field: str, file: str = "/proc/self/status") -> int:
    """Bytes of a line of /proc ('VmHWM:  12 kB'). VmHWM is the peak, VmRSS what is held now."""
    with open(file) as lines:
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(f"{field}:"))


def forget_peak() -> None:
    """VmHWM of this process begins anew."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def free_port() -> int:
    """A port of localhost at which nobody listens."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def cores() -> int:
    """Of this process."""
    return len(os.sched_getaffinity(0))


def versions(*packages: str) -> dict[str, str]:
    """Of these packages."""
    return {p: importlib.metadata.version(p) for p in packages}


# What host.keep_memory_pages sets, read by glibc itself: a process of torch's needs no JAX for it.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**63 - 1),
    "MALLOC_ARENA_MAX": "1",
}


def setting(module: str, load: float, known: Mapping[str, str]) -> dict[str, Any]:
    """What the figures depend on, printed and for --out.

    `load` is `os.getloadavg()[0]` before the first measurement, `known` are versions.
    """
    found = {
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "cores": cores(),
        "load": (load, os.getloadavg()[0]),
        "versions": dict(known),
    }
    print(f"{found['command']}: {cores()} cores, load {load:.1f} before and ", end="")
    print(f"{found['load'][1]:.1f} after,\n{', '.join(f'{k} {v}' for k, v in known.items())};")
    return found
