"""Peak memory of one process that fits a linear probe, as a multiple of the features it keeps.

    python -m benchmarks.probe_memory [--solver lbfgs] [--processes 1] [--examples 200000]

Features are noise, 512 wide, of 100 classes. CPU devices, two over all processes; the processes of
`--processes 2` run on this machine and each keeps its own half. L-BFGS takes three iterations for
each of two fits and SGD one epoch with BatchNorm: memory does not grow with them. Read from VmHWM,
with malloc set as in a run, after a probe of 4,000 rows has loaded what is needed; what the process
had before the features is taken off, programs compiled for the measured size are not. Linux.
"""

import argparse
import functools
import pathlib
import socket
import subprocess
import sys

import numpy as np

WIDTH, CLASSES, TEST = 512, 100, 2_000
BLOCK = 1_000  # rows drawn from one seed, whichever process draws them
RECIPE = {"epochs": 1, "learning_rates": (0.1, 0.01), "batch_norm": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--solver", choices=("lbfgs", "sgd"), default="lbfgs")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, default=-1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.processes == 1 or args.process >= 0:
        return work(args)
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.probe_memory", *sys.argv[1:], f"--port={port}"]
    started = [subprocess.Popen([*command, f"--process={p}"]) for p in range(args.processes)]
    sys.exit(max(process.wait() for process in started))


def work(args: argparse.Namespace) -> None:
    """One process: measures and prints a line."""
    from ssl_jax.processes import host

    host.keep_memory_pages()
    import jax

    jax.config.update("jax_num_cpu_devices", 2 // args.processes)
    if args.processes > 1:
        jax.distributed.initialize(f"localhost:{args.port}", args.processes, args.process)
    from ssl_jax.evaluate.probes import linear

    linear.fit = functools.partial(linear.fit, max_steps=3)
    linear.RANGE = (1.0, 1.0)  # one C, no further ones
    measure(args.solver, 4_000)
    before, own, peak = measure(args.solver, args.examples)
    whole = 4 * WIDTH * args.examples / 2**20
    print(
        f"{args.solver}, process {jax.process_index()} of {args.processes}: keeps {own:.0f} MiB of "
        f"{whole:.0f}; peak {peak:.0f} MiB, {before:.0f} of them before: "
        f"{(peak - before) / own:.2f} times what it keeps, {(peak - before) / whole:.2f} times all",
        flush=True,
    )


def measure(solver: str, n: int) -> tuple[float, float, float]:
    """(memory before the features, features kept, peak), MiB."""
    from ssl_jax.devices import layout
    from ssl_jax.evaluate.features import apart
    from ssl_jax.evaluate.probes import linear, linear_sgd

    y = np.random.default_rng(0).integers(0, CLASSES, n).astype(np.int32)
    test = (noise(np.arange(TEST)), y[:TEST], CLASSES)
    before = memory("VmRSS")
    train = apart.extract(lambda rows: (noise(rows), y[rows]), np.arange(n), layout.mesh())
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    if solver == "lbfgs":
        linear.probe_apart(train, *test, grid=(1.0,))
    else:
        linear_sgd.probe(lambda epoch: train, train, *test, RECIPE)
    return before, train.own.nbytes / 2**20, memory("VmHWM")


def noise(rows: np.ndarray) -> np.ndarray:
    """Features float32 [r, WIDTH] of consecutive rows, the first a multiple of BLOCK."""
    x = np.empty((len(rows), WIDTH), np.float32)
    for start in range(0, len(rows), BLOCK):
        generator = np.random.default_rng(rows[start])
        x[start : start + BLOCK] = generator.standard_normal(
            (min(BLOCK, len(rows) - start), WIDTH), np.float32
        )
    return x


def memory(field: str) -> float:
    """A field of /proc/self/status, MiB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
