"""What one device a core, malloc's settings and our convolutions' gradients bring to a step on CPU.

    python -m benchmarks.cpu_step [--config configs/quickstart.py] [--rounds 5]

Each variant is a process of its own; the variants take turns, so that a drift of the machine falls
on all of them alike. Prints the median and the range over the rounds, and ratios to the default.
"""

import json
import statistics

from benchmarks import assembled, harness
from ssl_jax.processes import malloc

HEAP, AS_IT_COMES = "malloc keeps its pages", "malloc as it comes"
VARIANTS = ("default", "one device", HEAP, AS_IT_COMES, "XLA's gradients")


def measure(config: str, variant: str, steps: int) -> float:
    """Median seconds of one compiled step on a fixed batch, in this process."""
    from ssl_jax.processes import host

    if variant == HEAP:
        host.keep_memory_pages()
    import jax

    from ssl_jax.models import conv
    from ssl_jax.runs import config as configs

    if variant == "XLA's gradients":
        conv.convolve = conv._forward
    c, _ = configs.load(config)
    if variant == "one device":
        c.cpu_devices = 1
    e, state, batch = assembled.fixed(c)

    def once():
        nonlocal state
        state, _ = e.step(state, batch)
        return state

    return harness.clock(once, steps, wait=jax.block_until_ready)[0]


def launch(config: str, variant: str, steps: int) -> float:
    """`measure` in a process of its own."""
    huge = {} if variant in (HEAP, AS_IT_COMES) else {"GLIBC_TUNABLES": malloc.TUNABLE}
    words = ("--config", config, "--variant", variant, "--steps", str(steps))
    return harness.measured("benchmarks.cpu_step", *words, environment=huge)


def main() -> None:
    """Runs the variants in turn and prints the table."""
    parser = harness.parser(__doc__, rounds=5)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--steps", type=int, default=10, help="timed in a measurement")
    parser.add_argument("--variant", choices=VARIANTS, help="once, in this process")
    a = harness.parse(parser, steps=2)
    if a.variant:
        print(json.dumps(measure(a.config, a.variant, a.steps)))
        return
    found = harness.in_turn(VARIANTS, a.rounds, lambda v: launch(a.config, v, a.steps))
    base = statistics.median(found["default"])
    for variant, seconds in found.items():
        median = statistics.median(seconds)
        spread = f"{min(seconds):.3f} … {max(seconds):.3f} s"
        print(f"{variant:<24}{median:.3f} s  {spread:<20}  × {median / base:.2f}")
    harness.write(a.out, {"config": a.config, "variants": found})


if __name__ == "__main__":
    main()
