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
import concurrent.futures
import json
import os
import statistics

from benchmarks import assembled, harness, tables

KINDS = ("devices", "processes")


def measure(a: argparse.Namespace) -> dict[str, float]:
    """Seconds of one compiled step, in this process.

    Args:
      a: flags config, rows, steps, cores; measure and counts: of KINDS, and how many; process: the
        number of this one; port: where they meet.

    Returns:
      {'wall': median over the steps, 'cpu': of this process, mean over the steps}.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: a.cores])
    import jax

    from ssl_jax.processes import host, talk
    from ssl_jax.runs import config as configs
    from ssl_jax.train import experiment

    host.keep_memory_pages()
    n = a.counts[0]
    processes = n if a.measure == "processes" else 1
    if processes > 1:
        jax.distributed.initialize(f"localhost:{a.port}", processes, a.process)
    c, _ = configs.load(a.config)
    c.batch, c.accumulate, c.cpu_devices = a.rows * n, 1, n // processes
    e, state, batch = assembled.fixed(c, processes, a.process)
    step = experiment.compile_step(e)
    # Processes on one core are done with compiling minutes apart; Gloo waits half of one.
    talk.meet("weak_scaling")

    def once():
        nonlocal state
        state, _ = step(state, batch)
        return state

    wall, cpu, _ = harness.clock(once, a.steps, wait=jax.block_until_ready)
    return {"wall": wall, "cpu": cpu}


def launch(a: argparse.Namespace, kind: str, n: int) -> dict[str, float]:
    """One measurement in processes of its own: the slowest one's wall time, the sum of CPU time."""
    words = ["--measure", kind, "--counts", str(n), "--port", str(harness.free_port())]
    words += harness.again(a, "config", "rows", "steps", "cores")

    def one(process):
        return harness.measured("benchmarks.weak_scaling", *words, "--process", str(process))

    processes = n if kind == "processes" else 1
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(one, range(processes)))
    return {"wall": max(f["wall"] for f in found), "cpu": sum(f["cpu"] for f in found)}


def lines(found: dict[tuple[str, int], list[dict[str, float]]], cores: int) -> list[list[str]]:
    """A line for each case.

    The ratio to ideal is that of medians; in brackets the range of the ratios within a round. Ideal
    for n devices is n / min(n, cores) times the wall time, and n times the CPU time, of one.
    """
    rows = []
    for (kind, n), runs in found.items():
        base = found.get((kind, 1))
        cells = [f"{n} {kind}" if n > 1 else f"1 of {kind}"]
        cells += [f"{1e3 * statistics.median(r[k] for r in runs):.1f}" for k in ("wall", "cpu")]
        for key, ideal in (("wall", n / min(n, cores)), ("cpu", n)):
            of = base and [b[key] * ideal for b in base]
            cells.append(tables.ratio([r[key] for r in runs], of, sign="") if of else "")
        rows.append(cells)
    return rows


COLUMNS = ("step (ms)", "CPU (ms)", "wall / ideal", "CPU / ideal")


def main() -> None:
    """Runs the cases in turn and prints the table."""
    parser = harness.parser(__doc__, rounds=5)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rows", type=int, default=32, help="of one device")
    parser.add_argument("--cores", type=int, default=1, help="that all of them share")
    parser.add_argument("--steps", type=int, default=10, help="timed in a measurement")
    parser.add_argument("--config", default="configs/simclr.py:digits")
    parser.add_argument("--measure", choices=KINDS, help="once, in this process")
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    a = harness.parse(parser, counts=[1, 2], rows=8, steps=2)
    if a.measure:
        print(json.dumps(measure(a)))
        return
    cases = [(kind, n) for kind in a.kinds for n in a.counts]
    found = harness.in_turn(cases, a.rounds, lambda case: launch(a, *case))
    print(f"{a.config} on {a.cores} core(s), median of {a.rounds} rounds of {a.steps} steps\n")
    print(tables.table((f"{a.rows} rows a device", *COLUMNS), lines(found, a.cores)))
    runs = [{"kind": k, "n": n, "runs": r} for (k, n), r in found.items()]
    asked = {"config": a.config, "rows": a.rows, "cores": a.cores, "steps": a.steps}
    harness.write(a.out, {**asked, "cases": runs})


if __name__ == "__main__":
    main()
