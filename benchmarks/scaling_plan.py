"""A plan on paper for 8, 64 and 1,024 devices: what a step sends, reads and saves, and how long.

    python -m benchmarks.scaling_plan [--preset imagenet] [--collectives FILE] [--loader RATE]

Nothing is measured here. Exact are the bytes: of the state, by `jax.eval_shape` of every method at
the preset's size; of the collectives and their number where FILE is given, which
`python -m benchmarks.collectives --out FILE` has written. Bandwidths are their vendors', images a
second and device are the authors' on their own machines (RECIPES), and what nobody states is
assumed: LATENCY and STORAGE. RATE is images a second and core of the loader, if you have measured
it.

    time of an all-reduce    2 (n − 1)/n · bytes / bandwidth   + number of operations · latency
    share                    time of the collectives / (time of the collectives + rows / rate),
                             as if nothing overlapped
"""

import json
import math
import pathlib
from typing import NamedTuple

from kit.hlo.collectives import Collective

from benchmarks import assembled, harness, tables
from benchmarks.collectives import summary
from benchmarks.tables import short

DEVICES = (8, 64, 1024)
EXAMPLES = 1_281_167  # of ImageNet-1k
STORAGE = 1e9  # bytes a second that one host writes or reads; assumed
LATENCY = 5e-6  # seconds of one collective, for every doubling of the devices; assumed


class Network(NamedTuple):
    """What connects devices.

    Attributes:
      name: of the machine.
      inside: bytes a second that a device sends to those of its group, in one direction.
      group: devices that are so connected.
      across: bytes a second that a whole group sends to the other groups, in one direction.
      host: devices of one host.
      source: of the figures.
    """

    name: str
    inside: float
    group: int
    across: float
    host: int
    source: str


NETWORKS = (
    Network(
        "TPU v4, ICI",
        1.1e15 / 4096,
        4096,
        math.inf,
        4,
        "all-reduce bandwidth 1.1 PB/s a pod of 4,096 chips (cloud.google.com/tpu/docs/v4); "
        "4 chips a host",
    ),
    Network(
        "TPU v5e, ICI; pods by DCN",
        51.2e12 / 256,
        256,
        6.4e12 / 8,
        8,
        "all-reduce bandwidth 51.2 TB/s and data centre network 6.4 Tb/s a pod of 256 chips, "
        "8 chips a host (cloud.google.com/tpu/docs/v5e)",
    ),
    Network(
        "8 × H100, NVLink; 8 × 400 Gb/s",
        900e9 / 2,
        8,
        8 * 400e9 / 8,
        8,
        "NVLink 900 GB/s a GPU in both directions together, 400 Gb/s InfiniBand (system "
        "descriptions of NVIDIA and Dell in MLCommons inference_results v4.1, v3.1)",
    ),
    Network(
        "8 × H100, NVLink; 1 × 100 Gb/s",
        900e9 / 2,
        8,
        100e9 / 8,
        8,
        "NVLink as above; one 100 Gb/s Ethernet port a host: assumed",
    ),
)


class Recipe(NamedTuple):
    """A config of the plan.

    Attributes:
      method: name of its config.
      rate: images a second and device.
      batches: for each of DEVICES.
      source: of the rate.
    """

    method: str
    rate: float
    batches: tuple[int, int, int]
    source: str


RECIPES = (
    Recipe(
        "simclr",
        2 * 100 * EXAMPLES / (1.5 * 3600) / 128,
        (4096, 4096, 32768),
        "100 epochs in 1.5 h on 128 TPU v3 cores, 2 a chip (Chen et al. 2020, section 2.2)",
    ),
    Recipe(
        "moco_v2",
        200 * EXAMPLES / (53 * 3600) / 8,
        (256, 2048, 32768),
        "200 epochs in 53 h on 8 V100 (README of facebookresearch/moco)",
    ),
    Recipe(
        "dino",
        300 * EXAMPLES / (72.6 * 3600) / 16,
        (512, 4096, 32768),
        "300 epochs in 72.6 h on 16 V100, 10 local crops (Caron et al. 2021, table 8)",
    ),
    Recipe(
        "mae",
        3 * 800 * EXAMPLES / (42 * 3600) / 64,
        (4096, 4096, 32768),
        "ViT-L: 800 epochs in 42 h on 64 V100 (PRETRAIN.md of facebookresearch/mae); ViT-B 3 times "
        "as fast: assumed",
    ),
)
FASTER = 4  # a second column of rates, for devices of today: assumed


def all_reduce(size: float, n: int, network: Network) -> float:
    """Seconds of an all-reduce of `size` bytes on n devices, latency aside.

    Within a group as a ring over its devices, between groups as a ring over them with all that a
    group can send: what a hierarchical all-reduce reaches at best.
    """
    inside, groups = min(n, network.group), math.ceil(n / network.group)
    seconds = 2 * (inside - 1) / inside * size / network.inside
    if groups > 1:
        seconds += 2 * (groups - 1) / groups * size / network.across
    return seconds


def states(preset: str) -> dict[str, dict[str, int]]:
    """Exact bytes of every method's state at the preset's size, by part."""
    import jax

    from ssl_jax.methods import METHODS

    result = {}
    for name in METHODS:
        e = assembled.preset(name, preset, 1, "shard_map")
        state = jax.eval_shape(e.create, jax.random.key(0))
        result[name] = {
            "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
            "params": assembled.size(state.params),
            "opt_state": assembled.size(state.opt_state),
            "state": assembled.size(state.state),
            "total": assembled.size(state),
        }
    return result


def state_table(found: dict[str, dict[str, int]]) -> str:
    """Markdown: a line for each method."""
    columns = ("method", "parameters", "gradients", "optimizer", "method's own state")
    rows = []
    for name, s in found.items():
        cells = [name, f"{s['parameters'] / 1e6:.1f} M"]
        cells += [short(s[k]) for k in ("params", "opt_state", "state")]
        rows.append([*cells, f"{s['total']:,}", f"{s['total'] / STORAGE:.2f} s"])
    return tables.table([*columns, "checkpoint (bytes)", f"at {short(STORAGE)}/s"], rows)


def time_table(found: dict[str, dict[str, int]], sent: dict[str, dict]) -> str:
    """Markdown: a line for each recipe, number of devices and network."""
    columns = ("method", "devices", "batch (rows a device)", "network", "gradients", "all else")
    columns += ("latency", "compute at the cited rate", "share")
    rows = []
    for recipe in RECIPES:
        for n, batch in zip(DEVICES, recipe.batches, strict=True):
            for network in NETWORKS:
                gradients = all_reduce(found[recipe.method]["params"], n, network)
                others, operations = rest(sent.get(recipe.method), batch)
                other = all_reduce(others, n, network)
                latency = operations * LATENCY * math.log2(n)
                compute = batch / n / recipe.rate
                total = gradients + other + latency
                shares = [total / (total + compute / factor) for factor in (1, FASTER)]
                cells = [recipe.method, f"{n:,}", f"{batch:,} ({batch // n})", network.name]
                cells += [f"{1e3 * seconds:.2f} ms" for seconds in (gradients, other, latency)]
                cells += [f"{1e3 * compute:.0f} ms", *(f"{100 * s:.1f} %" for s in shares)]
                rows.append(cells)
    return tables.table([*columns, f"share at {FASTER} times the rate"], rows)


def rest(sent: dict | None, batch: int) -> tuple[float, int]:
    """Bytes besides gradients, as of an all-reduce, and the number of operations.

    Rows of embeddings and queues grow with the batch; a gather or scatter moves half of what an
    all-reduce of the same array does.
    """
    if sent is None:
        return 0.0, 0
    grow = batch / sent["batch"]
    found = summary([Collective(*c) for c in sent["collectives"]])
    parts = {k: b for k, b in found["parts"].items() if k != "gradients"}
    rows = sum(parts.pop(k, 0) for k in ("embeddings", "queue"))
    operations = sum(k["operations"] for k in found["kinds"].values())
    return sum(parts.values()) + rows * grow / 2, operations


def limit_table(preset: str) -> str:
    """Markdown: what grows with the batch B, on every device of n, b = B / n rows each."""
    from ssl_jax.runs import config as configs

    simclr, moco, swav = (
        configs.load(f"configs/{name}.py:{preset}")[0].method
        for name in ("simclr", "moco_v2", "swav")
    )
    d, outputs, queue = simclr.projector.widths[-1], swav.prototypes, moco.queue
    columns = ("devices", "batch", "SimCLR: logits, 4·2b·2B", "SimCLR: candidates, 4·2B·d")
    columns += ("SwAV: scores of all rows, 4·2B·K", "SwAV: their products, 4·B·d·K FLOP")
    rows = []
    for n, batch in ((8, 4096), (64, 4096), (64, 32768), (1024, 32768), (1024, 131072)):
        arrays = (16 * (batch // n) * batch, 8 * batch * d, 8 * batch * outputs)
        products = f"{4 * batch * d * outputs / 1e9:.0f} G"
        rows.append([f"{n:,}", f"{batch:,}", *map(short, arrays), products, f"{queue / batch:g}"])
    return tables.table([*columns, "MoCo: steps that the queue spans"], rows)


def input_table(loader: float | None) -> str:
    """Markdown: images a second that a host must read and decode."""
    columns = ("method", "images/s a device (cited)", "a host of 4", "a host of 8")
    columns += (f"a host of 8, {FASTER} times the rate", "uint8 to the devices there")
    rows = []
    for recipe in RECIPES:
        fast = 8 * recipe.rate * FASTER
        cores = f"{math.ceil(fast / loader)}" if loader else "loader not measured"
        rates = (recipe.rate, 4 * recipe.rate, 8 * recipe.rate, fast)
        cells = [f"{rate:,.0f}" for rate in rates]
        rows.append([recipe.method, *cells, f"{short(fast * 256 * 256 * 3)}/s", cores])
    return tables.table([*columns, "cores for that"], rows)


def main() -> None:
    """Prints the tables and where the figures come from."""
    parser = harness.parser(__doc__)
    parser.add_argument("--preset", default="imagenet")
    parser.add_argument("--collectives", type=pathlib.Path, help="of benchmarks.collectives --out")
    parser.add_argument("--loader", type=float, help="images a second and core, as measured")
    a = harness.parse(parser, preset="digits")
    sent = json.loads(a.collectives.read_text()) if a.collectives else []
    sent = {r["method"]: r for r in sent if r["mode"] == "shard_map" and r["preset"] == a.preset}
    found = states(a.preset)
    harness.write(a.out, found)
    print(f"The state, preset {a.preset}\n\n{state_table(found)}")
    print(f"\nThe collectives of a step\n\n{time_table(found, sent)}")
    print(f"\nWhat grows with the batch\n\n{limit_table(a.preset)}")
    print(f"\nThe input\n\n{input_table(a.loader)}")
    print("\nWhere the figures come from\n")
    for item in (*NETWORKS, *RECIPES):
        rate = f" ({item.rate:.0f} images/s a device)" if isinstance(item, Recipe) else ""
        print(f"- {item[0]}: {item.source}{rate}")
    print(f"- storage {short(STORAGE)}/s a host: assumed")
    print(f"- latency of a collective {1e6 * LATENCY:.0f} µs · log2(devices): assumed")


if __name__ == "__main__":
    main()
