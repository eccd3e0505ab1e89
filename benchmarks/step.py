"""The whole training step against PyTorch with kornia: augmentation, forward, backward, optimizer.

    pip install -e '.[bench]' && python -m benchmarks.step [--cases resnet18 vit_tiny] [--out FILE]
    python -m benchmarks.step --device gpu [--cases …] [--largest]       # one GPU, bfloat16
    python -m benchmarks.step --device gpu --tiny                        # that harness, on any CPU

Both sides build the same from one config: network, head, loss, optimizer, and the policy of the
augmentation (torchvision's meaning of it, drawn for every image on its own). Ours is the step that
`ssl_jax.main` runs, with its metrics, its check for values that are not finite and its devices; of
the peer (step_torch.py) it is what its authors advise: channels_last for convolutions, fused
optimizers, as many threads as cores; on a GPU autocast and torch.compile besides. On a CPU malloc
is in huge pages for both (processes/malloc.py); the peer's keeps its pages besides, with which it
is faster. The batch is on the device before the clock starts, as uint8.

Every measurement is a process of its own, torch and JAX never in one, and the two take turns. A
process gives the median of its steps, after two that are not timed. Both say how many parameters
they learn; should the numbers differ, it is an error. A measurement that fails or takes too long
is said and costs only itself.

On a GPU both multiply float32 in TF32 where they ask for no more (XLA's default; of the peer
`set_float32_matmul_precision` and cuDNN's), the network itself in bfloat16. Memory is the most that
the allocator had given out, the peer's after its warm-up, in which cuDNN tries algorithms; ours
counts those tries the first time a program is compiled, so `program` in the JSON has what XLA plans
for the step itself.

--largest: the config's batch and its double run, the line through their memory says which further
doubling should fit, and that one runs. What is said to fit has run.

python -m benchmarks.gpu does all that a GPU is asked for at once.
"""

import argparse
import json
import os
import statistics
import sys
import time

from kit.profile import planning
from kit.profile.flops import flops, peak_of

from benchmarks import assembled, harness, step_cases, tables
from benchmarks.step_cases import ON
from ssl_jax.processes import malloc

PEERS = ("ssl_jax", "torch")


def measure(c, steps: int, each: int, gpu: bool) -> dict:
    """Our step on a fixed batch, in this process.

    Args:
      c: config.
      steps: how often the clock is looked at.
      each: steps between two looks.
      gpu: there must be one.

    Returns:
      {'seconds': of a step, 'cpu': seconds of it on all cores, 'views': of its augmentation alone,
      'parameters', 'memory': bytes at the peak (of the device; of the process on CPU), 'program':
      bytes that XLA plans for the step, 'limit': bytes there are for it, or None, 'flops': of a
      step (`flops`), 'started': seconds from the first import to a traced program, 'compiled':
      seconds of compiling it, 'loss', 'device', 'versions'}.

    Raises:
      SystemExit: there is no GPU.
    """
    start = time.perf_counter()
    from ssl_jax.processes import host

    host.keep_memory_pages()
    import flax
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import PartitionSpec as P

    from ssl_jax.contract.method import Context
    from ssl_jax.devices import layout

    if gpu and jax.default_backend() != "gpu":
        sys.exit("JAX finds no GPU here; --device gpu --tiny tries the harness without one")
    e, state, batch = assembled.fixed(c)
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    traced = e.step.trace(state, batch)
    count = flops(traced.jaxpr, "cpu" if jax.default_backend() == "cpu" else "cuda")
    lowered = traced.lower()
    started = time.perf_counter() - start
    step = lowered.compile()
    compiled = time.perf_counter() - start - started
    plan = step.memory_analysis()

    def draw(key, rows):
        zero = jnp.zeros((), jnp.int32)
        ctx = Context(zero, zero, jnp.zeros(()), key, layout.AXIS)
        return e.method.views(key, {k: x[0] for k, x in rows.items()}, ctx)

    specs = {"in_specs": (P(), P(None, layout.AXIS)), "out_specs": P(layout.AXIS)}
    draw = jax.jit(jax.shard_map(draw, mesh=e.mesh, check_vma=False, **specs))
    key = jax.random.key(0)

    metrics = {}

    def once():
        nonlocal state, metrics
        state, metrics = step(state, batch)
        return state

    seconds, cpu, _ = harness.clock(once, steps, each, jax.block_until_ready)
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    views, _, _ = harness.clock(lambda: draw(key, batch), steps, each, jax.block_until_ready)
    return {
        "seconds": seconds,
        "cpu": cpu,
        "views": views,
        "parameters": parameters,
        "memory": stats.get("peak_bytes_in_use") or harness.proc("VmHWM"),
        "program": plan
        and plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes,
        "limit": stats.get("bytes_limit"),
        "flops": count,
        "started": started,
        "compiled": compiled,
        "loss": float(metrics["loss"]),
        "device": f"{jax.device_count()} × {device.device_kind}",
        "versions": {m.__name__: m.__version__ for m in (jax, flax, optax)},
    }


def launch(module: str, text: str, words: list[str], device: str, limit: float) -> dict:
    """One measurement in a process of its own.

    Args:
      module: 'benchmarks.step', say; reads the config, prints JSON as its last line.
      text: JSON of the config.
      words: of its command line.
      device: of ON.
      limit: seconds after which it is ended.

    Returns:
      what it printed, with 'process': its seconds; or {'failed': why}, 'out of memory' among them.
    """
    if device == "cpu":
        given = {"GLIBC_TUNABLES": malloc.TUNABLE}  # as ssl_jax.main does
        forced = {"JAX_PLATFORMS": "cpu"}
    else:
        given, forced = {"CUDA_VISIBLE_DEVICES": "0"}, {}  # the peer knows one card
        if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # the old name; both are an error
            given["XLA_CLIENT_MEM_FRACTION"] = "0.95"  # the peer may have all
    environment = {k: v for k, v in given.items() if k not in os.environ} | forced
    words = ["--measure", "--device", device, *words]
    found = harness.attempt(module, words, text, environment, limit)
    return found if "failed" in found else harness.last(found) | {"process": found["process"]}


def run_peer(peer: str, text: str, a: argparse.Namespace) -> dict:
    """`launch` for one of PEERS, with the flags device, steps, each, tiny, compile and limit."""
    words = harness.again(a, "steps", "tiny", "each")
    words += ["--compile"] if peer == "torch" and a.compile else []
    module = "benchmarks.step" if peer == "ssl_jax" else "benchmarks.step_torch"
    return launch(module, text, words, a.device, a.limit)


def largest(peer: str, text: str, a: argparse.Namespace) -> dict:
    """`planning.largest` for one of PEERS, with as few steps as there can be."""
    few = argparse.Namespace(**{**vars(a), "steps": 1, "each": 1})
    return planning.largest(lambda text: run_peer(peer, text, few), text, a.gib)


def table(found: dict[str, dict[str, list[dict]]], batches: dict[str, int]) -> str:
    """Markdown: a line for each case and peer that was measured.

    The ratio is that of the median seconds to the peer's; in brackets the range of the ratios
    within a round. The augmentation's share is of the medians, too. 'Of the peak' are the FLOP of
    `flops`, for both sides those of our program, per second of the device's data sheet.
    """
    median, rows = statistics.median, []
    for case, peers in found.items():
        count = next((r["flops"] for runs in peers.values() for r in runs if "flops" in r), None)
        base = [r["seconds"] for r in peers.get("torch", ())]
        for peer, runs in peers.items():
            if not runs:
                continue
            seconds = [r["seconds"] for r in runs]
            views, cpu, memory = (median(r[k] for r in runs) for k in ("views", "cpu", "memory"))
            peak = peak_of(runs[0]["device"]) if case in ON["gpu"] else None
            cells = [case, peer, tables.middle(seconds, 1, 1e3)]
            cells += [f"{batches[case] / median(seconds):,.0f}"]
            cells += [tables.ratio(seconds, base) if base else "", f"{1e3 * cpu:,.1f}"]
            cells += [f"{1e3 * views:,.1f}", f"{100 * views / median(seconds):.1f} %"]
            share = f"{100 * count / median(seconds) / peak[0]:.0f} %" if count and peak else ""
            rows.append([*cells, f"{memory / 2**30:.2f}", share])
    columns = ("case", "", "step (ms)", "images/s", "time / torch", "CPU (ms)")
    columns += ("augmentation alone (ms)", "share of the step", "memory (GiB)", "of the peak")
    return tables.table(columns, rows)


def largest_table(fits: dict[str, dict[str, dict]]) -> str:
    """Markdown: a line for each case and peer, from `largest`."""
    rows = []
    for case, peers in fits.items():
        for peer, r in peers.items():
            memory = {int(batch): m for batch, m in r["memory"].items()}  # keys of JSON are text
            numbers = (memory.get(r["batch"]), r["next"], r["limit"])
            cells = [f"{n / 2**30:.1f}" if n else "" for n in numbers]
            rows.append([case, peer, f"{r['batch']:,}", *cells])
    columns = ("case", "", "largest batch that ran", "GiB it takes", "GiB the double would")
    return tables.table([*columns, "of GiB"], rows)


def main() -> None:
    """Runs the two in turn, prints the table, writes JSON after every measurement."""
    parser = step_cases.flags(__doc__, rounds=3)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--steps", type=int, default=3, help="looks at the clock in a measurement")
    parser.add_argument("--each", type=int, help="steps between two; default 1, on a GPU 10")
    parser.add_argument("--compile", action="store_true", help="torch.compile on CPU as well")
    parser.add_argument("--largest", action="store_true", help="also the largest batch that fits")
    parser.add_argument("--gib", type=float, help="memory for --largest; on a GPU all there is")
    a = harness.parse(parser)
    if a.measure:
        each = a.each or (1 if a.device == "cpu" else 10)
        gpu = a.device == "gpu" and not a.tiny
        print(json.dumps(measure(step_cases.read(), a.steps, each, gpu)))
        return
    if a.largest and a.gib is None and (a.device == "cpu" or a.tiny):
        parser.error("--largest on a CPU needs --gib: how much memory it may take")

    cases = a.cases or ON[a.device]
    texts = step_cases.describe(cases, a.batch, a.tiny)
    batches = {case: json.loads(text)["batch"] for case, text in texts.items()}
    found = {case: {peer: [] for peer in a.peers} for case in cases}
    failed, fits, versions, devices = {}, {}, {}, {}

    def write():
        asked = {"device": a.device, "tiny": a.tiny, "steps": a.steps, "batch": batches}
        results = {"versions": versions, "failed": failed, "largest": fits, "cases": found}
        harness.write(a.out, {**asked, **results})

    for _ in range(a.rounds):
        for case, peers in found.items():
            for peer, runs in peers.items():
                if f"{case}, {peer}" in failed:
                    continue
                run = run_peer(peer, texts[case], a)
                if "failed" in run:
                    failed[f"{case}, {peer}"] = run["failed"]
                    print(f"{case}: {peer}: {run['failed']}", file=sys.stderr)
                    continue
                runs.append(run)
                versions |= run["versions"]
                devices[peer] = run["device"]
                counts = {peer: runs[0]["parameters"] for peer, runs in peers.items() if runs}
                if len(set(counts.values())) > 1:
                    sys.exit(f"{case}: not the same network, the parameters are {counts}")
                write()
    print(*(f"{peer}: {device}" for peer, device in devices.items()), sep="\n")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"batch {batches}; median of {a.rounds} rounds of {a.steps} steps\n")
    print(table(found, batches))
    if a.largest:
        for case in cases:
            fits[case] = {peer: largest(peer, texts[case], a) for peer in a.peers}
            write()
        print(f"\n{largest_table(fits)}")
    write()
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
