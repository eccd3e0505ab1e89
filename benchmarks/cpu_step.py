"""What one device a core, malloc's settings and our convolutions' gradients bring to a step on CPU.

    python -m benchmarks.cpu_step [--config configs/quickstart.py] [--rounds 5]

Each variant is a process of its own; the variants take turns, so that a drift of the machine falls
on all of them alike. Prints the median and the range over the rounds, and ratios to the default.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from ssl_jax.processes import malloc

HEAP, AS_IT_COMES = "malloc keeps its pages", "malloc as it comes"
VARIANTS = ("default", "one device", HEAP, AS_IT_COMES, "XLA's gradients")


def measure(config: str, variant: str, steps: int = 10) -> float:
    """Median seconds of one compiled step on a fixed batch, in this process."""
    from ssl_jax.processes import host

    if variant == HEAP:
        host.keep_memory_pages()
    import jax
    import numpy as np

    from ssl_jax.devices import layout
    from ssl_jax.models import conv
    from ssl_jax.runs import config as configs
    from ssl_jax.train import experiment

    if variant == "XLA's gradients":
        conv.convolve = conv._forward
    c, _ = configs.load(config)
    if variant == "one device":
        c.cpu_devices = 1
    e = experiment.assemble(c, host.Cluster(1, 0, 1), None)
    state = e.create(jax.random.key(0))
    rows = e.train.read(np.arange(c.batch))
    batch = {k: x.reshape(c.accumulate, -1, *x.shape[1:]) for k, x in rows.items()}
    batch = layout.put_batch(batch, e.mesh, c.parallel)
    seconds = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        state, _ = e.step(state, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def main() -> None:
    """Runs the variants in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variant", choices=VARIANTS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.config, arguments.variant)))
        return
    found = {v: [] for v in VARIANTS}
    for _ in range(arguments.rounds):
        for variant in VARIANTS:
            command = [sys.executable, "-m", "benchmarks.cpu_step"]
            command += ["--config", arguments.config, "--variant", variant]
            environment = dict(os.environ)
            if variant not in (HEAP, AS_IT_COMES):
                environment["GLIBC_TUNABLES"] = malloc.TUNABLE
            out = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            ).stdout
            found[variant].append(json.loads(out.splitlines()[-1]))
    base = statistics.median(found["default"])
    for variant, seconds in found.items():
        median = statistics.median(seconds)
        spread = f"{min(seconds):.3f} … {max(seconds):.3f} s"
        print(f"{variant:<24}{median:.3f} s  {spread:<20}  × {median / base:.2f}")


if __name__ == "__main__":
    main()
