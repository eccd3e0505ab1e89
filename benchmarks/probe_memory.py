"""Peak memory of one process that fits a linear probe, as a multiple of the features it keeps.

    python -m benchmarks.probe_memory [--solver lbfgs] [--processes 1] [--examples 200000]

Features are noise, 512 wide, of 100 classes. CPU devices, two over all processes; the processes of
`--processes 2` run on this machine and each keeps its own half. L-BFGS takes three iterations for
each of two fits and SGD one epoch with BatchNorm: memory does not grow with them. Read from VmHWM,
with malloc set as in a run, after a probe of 4,000 rows has loaded what is needed; what the process
had before the features is taken off, programs compiled for the measured size are not. Linux.
"""

import argparse
import concurrent.futures
import functools
import json

import numpy as np

from benchmarks import harness

WIDTH, CLASSES, TEST = 512, 100, 2_000
BLOCK = 1_000  # rows drawn from one seed, whichever process draws them
RECIPE = {"epochs": 1, "learning_rates": (0.1, 0.01), "batch_norm": True}


def main() -> None:
    """Starts the processes and prints a line for each."""
    parser = harness.parser(__doc__)
    parser.add_argument("--solver", choices=("lbfgs", "sgd"), default="lbfgs")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, default=-1, help=argparse.SUPPRESS)
    args = harness.parse(parser, examples=8_000)
    if args.process >= 0:
        print(json.dumps(work(args)))
        return
    args.port = harness.free_port()
    words = harness.again(args, "solver", "processes", "examples", "port")

    def one(process):
        return harness.measured("benchmarks.probe_memory", *words, f"--process={process}")

    with concurrent.futures.ThreadPoolExecutor(args.processes) as pool:
        found = list(pool.map(one, range(args.processes)))
    for process, f in enumerate(found):
        taken = f["peak"] - f["before"]
        print(
            f"{args.solver}, process {process} of {args.processes}: keeps {f['keeps']:.0f} MiB of "
            f"{f['all']:.0f}; peak {f['peak']:.0f} MiB, {f['before']:.0f} of them before: "
            f"{taken / f['keeps']:.2f} times what it keeps, {taken / f['all']:.2f} times all"
        )
    harness.write(args.out, found)


def work(args: argparse.Namespace) -> dict[str, float]:
    """One process: MiB before the features, of its own, at the peak, and of all features."""
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
    return {"before": before, "keeps": own, "peak": peak, "all": whole}


def measure(solver: str, n: int) -> tuple[float, float, float]:
    """(memory before the features, features kept, peak), MiB."""
    from ssl_jax.devices import layout
    from ssl_jax.evaluate.features import apart
    from ssl_jax.evaluate.probes import linear, linear_sgd

    y = np.random.default_rng(0).integers(0, CLASSES, n).astype(np.int32)
    test = (noise(np.arange(TEST)), y[:TEST], CLASSES)
    before = harness.proc("VmRSS") / 2**20
    train = apart.extract(lambda rows: (noise(rows), y[rows]), np.arange(n), layout.mesh())
    harness.forget_peak()
    if solver == "lbfgs":
        linear.probe_apart(train, *test, grid=(1.0,))
    else:
        linear_sgd.probe(lambda epoch: train, train, *test, RECIPE)
    return before, train.own.nbytes / 2**20, harness.proc("VmHWM") / 2**20


def noise(rows: np.ndarray) -> np.ndarray:
    """Features float32 [r, WIDTH] of consecutive rows, the first a multiple of BLOCK."""
    x = np.empty((len(rows), WIDTH), np.float32)
    for start in range(0, len(rows), BLOCK):
        generator = np.random.default_rng(rows[start])
        x[start : start + BLOCK] = generator.standard_normal(
            (min(BLOCK, len(rows) - start), WIDTH), np.float32
        )
    return x


if __name__ == "__main__":
    main()
