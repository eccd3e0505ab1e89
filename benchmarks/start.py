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

import argparse
import collections
import functools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

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

    for name, phase in (
        ("assemble", "assemble"),
        ("compile_step", "compile"),
        ("begin", "state"),
    ):
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
        command = [sys.executable, "-m", "benchmarks.start", "--child", str(time.time())]
        command += [f"--config={config}", f"--workdir={folder}/run"]
        command += [f"--config.compile_cache={cache}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def imports() -> dict[str, float]:
    """Seconds by package that importing the job takes (`python -X importtime`), most first."""
    command = [sys.executable, "-X", "importtime", "-c", "import ssl_jax.jobs.pretrain"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken = collections.Counter()
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", done.stderr, re.M):
        taken[name.partition(".")[0]] += int(own) / 1e6
    return dict(taken.most_common())


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: seconds of every phase, median over the rounds; of all, with range and ratio."""
    median = statistics.median
    lines = ["| | all (s) | / no cache | CPU (s) | " + " | ".join(PHASES) + " |"]
    lines.append("|---" * (4 + len(PHASES)) + "|")
    base = found["no cache"]
    for name, runs in found.items():
        whole = [r["all"] for r in runs]
        ratios = [r["all"] / b["all"] for r, b in zip(runs, base, strict=True)]
        ratio = median(whole) / median(b["all"] for b in base)
        cells = [name, f"{median(whole):.2f} ({min(whole):.2f} … {max(whole):.2f})"]
        cells.append(f"× {ratio:.2f} ({min(ratios):.2f} … {max(ratios):.2f})")
        cells.append(f"{median(r['cpu'] for r in runs):.2f}")
        cells += [f"{median(r[phase] for r in runs):.2f}" for phase in PHASES]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the two in turn, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--imports", action="store_true", help="only what the imports take")
    parser.add_argument("--out", type=pathlib.Path, help="JSON of every measurement")
    a = parser.parse_args()
    if a.imports:
        taken = imports()
        for name, seconds in list(taken.items())[:25]:
            print(f"{name:<32}{seconds:.3f} s")
        print(f"{'all':<32}{sum(taken.values()):.3f} s")
        return
    found = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        first = launch(a.config, folder)
        for _ in range(a.rounds):
            for variant, runs in found.items():
                runs.append(launch(a.config, folder if variant == "cache" else ""))
    print(f"{a.config}, JAX {first['version']}, {a.rounds} rounds; ", end="")
    print(f"the run that filled the cache took {first['all']:.2f} s\n")
    print(table(found))
    if a.out:
        a.out.write_text(json.dumps({"config": a.config, "first": first, **found}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(float(sys.argv[2]), sys.argv[3:])
    else:
        main()
