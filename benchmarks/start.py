"""From the start of the process to the end of the first step: with and without compiled programs
kept from the run before.

    python -m benchmarks.start [--config configs/quickstart.py] [--rounds 5] [--out FILE]
    python -m benchmarks.start --imports                 # what the imports take, package by package

Each measurement is a process of its own that does what `python -m ssl_jax.main --config …` does, in
a new workdir, and leaves after the first step. 'cache' has a folder of compiled programs that one
run before it filled, 'no cache' none (`--config.compile_cache=`). They take turns. The phases:
Python itself and the imports; the data and the assembly of the run; until the loop begins, in which
the step compiles on one core while the other makes the state; the first step. 'loop' is when the
loop begins, counted from the start of the process. Compiling and making the state overlap, so that
they do not add up.
"""

import collections
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import harness, tables

VARIANTS = ("cache", "no cache")
PHASES = ("python", "imports", "assemble", "compile", "state", "loop", "first step")


def child(began: float, arguments: list[str]) -> None:
    """Runs main on a command line, prints the phases after the first step, and leaves.

    Args:
      began: `time.time()` when the parent started this process.
      arguments: of `ssl_jax.main`.
    """
    here = time.time()
    from ssl_jax import main
    from ssl_jax.jobs import pretrain  # main would import it a moment later

    found = {"python": here - began, "imports": time.time() - here}

    def timed(name, f):
        @functools.wraps(f)
        def g(*args):
            start = time.time()
            result = f(*args)
            found[name] = time.time() - start
            return result

        return g

    for name, phase in (("assemble", "assemble"), ("compile_step", "compile"), ("begin", "state")):
        setattr(pretrain, name, timed(phase, getattr(pretrain, name)))

    def train(step, state, batches, **_):
        import jax

        start = time.time()
        found["loop"] = start - began
        _, metrics = step(state, next(batches))
        loss = float(jax.block_until_ready(metrics)["loss"])
        found.update({"first step": time.time() - start, "all": time.time() - began})
        found.update({"cpu": time.process_time(), "loss": loss, "version": jax.__version__})
        print("\n" + json.dumps(found), flush=True)
        os._exit(0)

    pretrain.loop.train = train
    sys.exit(main.main(arguments))


def launch(config: str, cache: str) -> dict[str, float]:
    """One measurement in a process of its own.

    Args:
      config: file[:preset].
      cache: folder of compiled programs, '' for none.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = (f"--config={config}", f"--workdir={folder}/run", f"--config.compile_cache={cache}")
        return harness.measured("benchmarks.start", "--child", str(time.time()), *run)


def imports() -> dict[str, float]:
    """Seconds by package that importing the job takes (`python -X importtime`), most first."""
    command = [sys.executable, "-X", "importtime", "-c", "import ssl_jax.jobs.pretrain"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken = collections.Counter()
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", done.stderr, re.M):
        taken[name.partition(".")[0]] += int(own) / 1e6
    return dict(taken.most_common())


def lines(found: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """Seconds of every phase, median over the rounds; of all, with range and ratio."""
    median, rows = statistics.median, []
    for name, runs in found.items():
        every = [r["all"] for r in runs]
        cells = [name, tables.middle(every, 2)]
        cells += [tables.ratio(every, [b["all"] for b in found["no cache"]])]
        rows.append(cells + [f"{median(r[k] for r in runs):.2f}" for k in ("cpu", *PHASES)])
    return rows


def main() -> None:
    """Runs the two in turn, prints the table, writes JSON."""
    parser = harness.parser(__doc__, rounds=5)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--imports", action="store_true", help="only what the imports take")
    a = harness.parse(parser)
    if a.imports:
        taken = imports()
        for name, seconds in [*list(taken.items())[:25], ("all", sum(taken.values()))]:
            print(f"{name:<32}{seconds:.3f} s")
        return harness.write(a.out, taken)
    with tempfile.TemporaryDirectory() as folder:
        cache = {"cache": folder, "no cache": ""}
        first = launch(a.config, folder)
        found = harness.in_turn(VARIANTS, a.rounds, lambda v: launch(a.config, cache[v]))
    print(f"{a.config}, JAX {first['version']}, {a.rounds} rounds; ", end="")
    print(f"the run that filled the cache took {first['all']:.2f} s\n")
    print(tables.table(("", "all (s)", "/ no cache", "CPU (s)", *PHASES), lines(found)))
    harness.write(a.out, {"config": a.config, "first": first, **found})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(float(sys.argv[2]), sys.argv[3:])
    else:
        main()
