"""What the host costs: images read batch by batch against images in device memory.

    python -m benchmarks.resident [--config configs/quickstart.py] [--rounds 3] [--out FILE]
    python -m benchmarks.resident --config configs/simclr.py:cifar10 --batch 1024 \\
        --examples 50000 --dtype bfloat16                                        # on a GPU

The training loop of `ssl_jax.main` with everything that feeds it, without logs, monitors and
checkpoints, in three ways: a step a call with batches of the loader; a step a call with images in
device memory; several steps a call with them. Beside it the compiled step alone, on a batch that is
there: what is missing to its rate is the host's. Every measurement is a process of its own, the
ways take turns. With --examples the images are synthetic, as many.
"""

import argparse
import collections
import itertools
import json
import time

from benchmarks import assembled, harness, tables

WAYS = {"a batch that is there": None, "streamed": (False, 1), "in device memory": (True, 1)}


def measure(a: argparse.Namespace, at_once: int | None, resident: bool | None) -> dict:
    """One way, in this process.

    Args:
      a: flags config, batch, examples, dtype, steps.
      at_once: steps of a call; None: the step alone.
      resident: images in device memory.

    Returns:
      {'rate': images a second, 'device'}.
    """
    from ssl_jax.processes import host

    host.keep_memory_pages()
    import jax

    from ssl_jax.jobs import pretrain
    from ssl_jax.runs import config as configs
    from ssl_jax.train import experiment, loop

    c, _ = configs.load(a.config)
    c.batch, c.model.dtype = a.batch or c.batch, a.dtype or c.model.dtype
    if a.examples:
        c.data.source, c.data.examples = "synthetic", a.examples
        c.evaluate.split = "holdout"
    k = at_once or 1
    calls = a.steps // k
    c.steps = (calls + 2) * k
    c.data.resident, c.steps_at_once = bool(resident), k
    e, state, fixed = assembled.fixed(c)
    step = experiment.compile_step(e)
    batches = itertools.repeat(fixed, calls + 2)
    if at_once is not None:
        batches = pretrain.feed_of(e, 0, "begin").calls
    in_flight = collections.deque()
    for call, batch in enumerate(batches):  # as loop.train
        if call == 2:  # the first two are not timed
            jax.block_until_ready(state)
            start = time.perf_counter()
        state, metrics = step(state, batch)
        in_flight.append(metrics)
        if len(in_flight) > loop.IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    return {"rate": calls * k * c.batch / seconds, "device": device}


FLAGS = ("config", "batch", "examples", "dtype", "steps", "at-once")


def main() -> None:
    """Runs the ways in turn, prints the table, writes JSON."""
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--batch", type=int, help="images of a step, instead of the config's")
    parser.add_argument("--examples", type=int, help="synthetic images, instead of the data")
    parser.add_argument("--dtype", help="of the network, instead of the config's")
    parser.add_argument("--steps", type=int, default=60, help="timed in a measurement")
    parser.add_argument("--at-once", type=int, default=10, help="steps of a call, in the last way")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    a = harness.parse(parser, examples=1_000, batch=32, steps=20)
    ways = {**WAYS, f"in device memory, {a.at_once} steps a call": (True, a.at_once)}
    if a.way:
        resident, at_once = ways[a.way] or (None, None)
        print(json.dumps(measure(a, at_once, resident)))
        return
    words = harness.again(a, *FLAGS)
    found = harness.in_turn(
        ways, a.rounds, lambda way: harness.measured("benchmarks.resident", *words, "--way", way)
    )
    base = [r["rate"] for r in found["a batch that is there"]]
    print(f"{found['streamed'][0]['device']}; {a.rounds} rounds of {a.steps} steps\n")
    rates = {way: [r["rate"] for r in runs] for way, runs in found.items()}
    rows = [(way, tables.middle(r, 0), tables.ratio(r, base)) for way, r in rates.items()]
    print(tables.table(("", "images/s", "of the step alone"), rows))
    harness.write(a.out, found)


if __name__ == "__main__":
    main()
