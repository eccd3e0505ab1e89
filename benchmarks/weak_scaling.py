"""Weak scaling on one machine: the same rows a device, on more and more devices and processes.

    python -m benchmarks.weak_scaling [--counts 1 2 4 8] [--kinds devices processes] [--rows 32]
                                      [--cores 1] [--rounds 5] [--config configs/simclr.py:digits]

'devices': n CPU devices of one process. 'processes': n processes of one device each, joined by
`jax.distributed`, whose collectives go through gloo on localhost. Each device has `rows` rows, so n
devices have n times the work. They share the cores that are there: ideal is n times the time of
one device on one core, and what a step takes beyond that is the price of being many: collectives,
waiting for each other, what every device does again for itself (optimizer, EMA). Time that a real
network takes, and how fast n machines are, it does not show.

Every measurement starts processes of its own, on `cores` cores; the cases take turns in every
round, so that a drift of the machine falls on all of them alike. Prints medians over the rounds and
their ratio to ideal, in wall time and in CPU time of all processes, which other programs on the
machine disturb less.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

KINDS = ("devices", "processes")


def measure(
    config: str, rows: int, steps: int, kind: str, n: int, process: int, port: int
) -> dict[str, float]:
    """Seconds of one compiled step, in this process.

    Args:
      config: its method, network and optimizer.
      rows: of one device.
      steps: that are timed; two before them are not.
      kind, n: of KINDS, and how many.
      process: number of this one, where there are several.
      port: where they meet.

    Returns:
      {'wall': median over the steps, 'cpu': of this process, mean over the steps}.
    """
    import jax
    import numpy as np

    from ssl_jax.devices import layout
    from ssl_jax.processes import host, talk
    from ssl_jax.runs import config as configs
    from ssl_jax.train import experiment

    host.keep_memory_pages()
    processes = n if kind == "processes" else 1
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, process)
    c, _ = configs.load(config)
    c.batch, c.accumulate, c.cpu_devices = rows * n, 1, n // processes
    e = experiment.assemble(c, host.Cluster(processes, process, processes), None)
    state = e.create(jax.random.key(0))
    here = c.batch // processes
    read = e.train.read(np.arange(here) + process * here)
    batch = layout.put_batch({k: x[None] for k, x in read.items()}, e.mesh, c.parallel)
    step = experiment.compile_step(e)
    # Processes on one core are done with compiling minutes apart; Gloo waits half of one.
    talk.meet("weak_scaling")
    wall = []
    for i in range(steps + 2):
        if i == 2:
            cpu = time.process_time()
        start = time.perf_counter()
        state, _ = step(state, batch)
        jax.block_until_ready(state)
        wall.append(time.perf_counter() - start)
    return {"wall": statistics.median(wall[2:]), "cpu": (time.process_time() - cpu) / steps}


def launch(a: argparse.Namespace, kind: str, n: int) -> dict[str, float]:
    """One measurement in processes of its own: the slowest one's wall time, the sum of CPU time.

    Raises:
      SystemExit: a process failed.
    """
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    cores = set(sorted(os.sched_getaffinity(0))[: a.cores])
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.weak_scaling", "--measure", kind),
                *("--counts", str(n), "--process", str(p), "--port", str(port)),
                *("--config", a.config, "--rows", str(a.rows), "--steps", str(a.steps)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        for p in range(n if kind == "processes" else 1)
    ]
    outs = [p.communicate()[0] for p in started]
    if any(p.returncode for p in started):
        sys.exit(f"{n} {kind}: a process failed")
    found = [json.loads(out.splitlines()[-1]) for out in outs]
    return {"wall": max(f["wall"] for f in found), "cpu": sum(f["cpu"] for f in found)}


def table(found: dict[tuple[str, int], list[dict[str, float]]], rows: int, cores: int) -> str:
    """Markdown: a line for each case.

    The ratio to ideal is that of medians; in brackets the range of the ratios within a round. Ideal
    for n devices is n / min(n, cores) times the wall time, and n times the CPU time, of one.
    """
    lines = [
        f"| {rows} rows a device | step (ms) | CPU (ms) | wall / ideal | CPU / ideal |",
        "|---|---|---|---|---|",
    ]
    for (kind, n), runs in found.items():
        base = found.get((kind, 1))
        cells = [f"{n} {kind}" if n > 1 else f"1 of {kind}"]
        cells += [f"{1e3 * statistics.median(r[k] for r in runs):.1f}" for k in ("wall", "cpu")]
        for key, ideal in (("wall", n / min(n, cores)), ("cpu", n)):
            if base is None:
                cells.append("")
                continue
            ratios = [r[key] / b[key] / ideal for r, b in zip(runs, base, strict=True)]
            medians = [statistics.median(r[key] for r in some) for some in (runs, base)]
            ratio = medians[0] / medians[1] / ideal
            cells.append(f"{ratio:.2f} ({min(ratios):.2f} … {max(ratios):.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the cases in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rows", type=int, default=32, help="of one device")
    parser.add_argument("--cores", type=int, default=1, help="that all of them share")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="timed in a measurement")
    parser.add_argument("--config", default="configs/simclr.py:digits")
    parser.add_argument("--out", type=pathlib.Path, help="JSON of every measurement")
    parser.add_argument("--measure", choices=KINDS, help="once, in this process")
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    a = parser.parse_args()
    if a.measure:
        n = a.counts[0]
        print(json.dumps(measure(a.config, a.rows, a.steps, a.measure, n, a.process, a.port)))
        return
    found = {(kind, n): [] for kind in a.kinds for n in a.counts}
    for _ in range(a.rounds):
        for kind, n in found:
            found[kind, n].append(launch(a, kind, n))
    print(f"{a.config} on {a.cores} core(s), median of {a.rounds} rounds of {a.steps} steps\n")
    print(table(found, a.rows, a.cores))
    if a.out:
        runs = [{"kind": k, "n": n, "runs": r} for (k, n), r in found.items()]
        asked = {"config": a.config, "rows": a.rows, "cores": a.cores, "steps": a.steps}
        a.out.write_text(json.dumps({**asked, "cases": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
