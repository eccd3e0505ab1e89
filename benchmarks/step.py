"""The whole training step against PyTorch with kornia: augmentation, forward, backward, optimizer.

    pip install -e '.[bench]' && python -m benchmarks.step [--cases resnet18 vit_tiny] [--out FILE]
    python -m benchmarks.step --device gpu [--cases …] [--largest]       # one GPU, bfloat16
    python -m benchmarks.step --device gpu --tiny                        # that harness, on any CPU

Both sides build the same from one config: network, head, loss, optimizer, and the policy of the
augmentation (torchvision's meaning of it, drawn for every image on its own). Ours is the step that
`ssl_jax.main` runs, with its metrics, its check for values that are not finite and its devices; of
the peer (step_torch.py) it is what its authors advise: channels_last for convolutions, fused
optimizers, as many threads as cores, the same settings of malloc; on a GPU autocast and
torch.compile besides. The batch is on the device before the clock starts, as uint8.

Every measurement is a process of its own, torch and JAX never in one, and the two take turns. A
process gives the median of its steps, after two that are not timed. Both say how many parameters
they learn; should the numbers differ, it is an error.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

PEERS = ("ssl_jax", "torch")
ON = {
    "cpu": ("vit_tiny", "resnet18"),
    "gpu": ("simclr_resnet50", "moco_v2_resnet50", "dino_vit_s16", "mae_vit_b16", "resnet18_32px"),
}
# Dense bfloat16, FLOP/s, without sparsity (NVIDIA's data sheets, SXM).
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def config(case: str, batch: int | None, tiny: bool):
    """The config of a case, from the presets in configs/.

    Args:
      case: of ON.
      batch: images of a step; None: that of the case.
      tiny: sizes at which any machine runs the case in seconds. Of no use for timing.

    Returns:
      ConfigDict.
    """
    from ml_collections import ConfigDict

    from ssl_jax import config as configs
    from ssl_jax.augment import policies
    from ssl_jax.train import optimizers

    # What kornia draws: torchvision's colours and boxes, bilinear without antialias.
    kornia = {"box": "torchvision", "interpolation": "bilinear", "antialias": False}
    kornia["semantics"] = "torchvision"

    presets = {
        "vit_tiny": "simclr.py:cifar10",
        "resnet18": "simclr.py:cifar10",
        "resnet18_32px": "simclr.py:cifar10",
        "simclr_resnet50": "simclr.py:imagenet",
        "moco_v2_resnet50": "moco_v2.py:imagenet",
        "dino_vit_s16": "dino.py:imagenet",
        "mae_vit_b16": "mae.py:imagenet",
    }
    batches = {"vit_tiny": 128, "resnet18": 128, "resnet18_32px": 1024, "dino_vit_s16": 128}
    c, _ = configs.load(f"configs/{presets[case]}")
    c.batch = batch or (8 if tiny else batches.get(case, 256))
    c.data.source, c.data.examples, c.data.classes = "synthetic", 100 * c.batch, 0
    c.evaluate.split = "holdout"
    c.model.dtype = "bfloat16" if case in ON["gpu"] else "float32"
    for name, view in c.views.items():
        p = view.to_dict() | kornia
        c.views[name] = ConfigDict(policies.make("none", **p)._asdict())

    # torch has no LARS: the SGD that its users take. All else is the preset's.
    momentum = {"name": "sgd", "learning_rate": 0.03, "weight_decay": 1e-4}
    adam = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-2}
    if c.method.name == "simclr":
        c.optimizer = optimizers.defaults()
        c.optimizer.update(adam if case == "vit_tiny" else momentum)
    if case == "vit_tiny":
        c.model = ConfigDict({"name": "vit_tiny", "depth": 6, "size": 32, "patch": 4})
        c.model.update({"positions": "learned", "initial": "dino", "dtype": "float32"})
    if c.method.name == "moco_v2":  # BatchNorm over the whole batch, as the peer on one device
        c.method.group, c.method.shuffle = 0, 1
    if c.method.name == "dino":  # the last layer learns from the first step on
        c.optimizer.groups = ConfigDict()
    if tiny:
        c.data.size = min(c.data.size, 64)
        for view in c.views.values():
            view.size = 16 if view.size < 200 else 32
            view.blur_radius = min(view.blur_radius, 3)
        if c.model.name.startswith("vit"):
            c.model.update({"width": 24, "depth": 2, "heads": 2, "size": 32, "patch": 8})
        else:
            c.model.width = 8
        if c.method.name == "moco_v2":
            c.method.queue = 64
        if c.method.name == "mae":
            c.method.decoder = ConfigDict({"width": 16, "depth": 1, "heads": 2, "mlp": 4.0})
        if c.method.name == "dino":
            c.method.projector.out, c.method.projector.hidden = 128, 32
    return c


def measure(c, steps: int, gpu: bool) -> dict:
    """Our step on a fixed batch, in this process.

    Args:
      c: config.
      steps: that are timed.
      gpu: there must be one.

    Returns:
      {'seconds': of a step, 'cpu': seconds of it on all cores, 'views': of its augmentation alone,
      'parameters', 'memory': bytes at the peak (of the device; of the process on CPU), 'flops': of
      a step, 'loss', 'device', 'versions'}.

    Raises:
      SystemExit: there is no GPU.
    """
    from ssl_jax import host

    host.keep_memory_pages()
    import flax
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import PartitionSpec as P

    from ssl_jax import experiment, parallel
    from ssl_jax.methods.protocol import Context

    if gpu and jax.default_backend() != "gpu":
        sys.exit("JAX finds no GPU here; --device gpu --tiny tries the harness without one")
    e = experiment.assemble(c, host.Cluster(1, 0, 1), None)
    state = e.create(jax.random.key(c.seed))
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    rows = e.train.read(np.arange(c.batch))
    batch = parallel.put_batch({k: x[None] for k, x in rows.items()}, e.mesh, c.parallel)
    lowered = e.step.lower(state, batch)
    # Of the program as it is written: after XLA's passes, what runs in libraries counts as nothing.
    flops = (lowered.cost_analysis() or {}).get("flops")
    step = lowered.compile()

    def draw(key, rows):
        zero = jnp.zeros((), jnp.int32)
        ctx = Context(zero, zero, jnp.zeros(()), key, parallel.AXIS)
        return e.method.views(key, {k: x[0] for k, x in rows.items()}, ctx)

    specs = {"in_specs": (P(), P(None, parallel.AXIS)), "out_specs": P(parallel.AXIS)}
    draw = jax.jit(jax.shard_map(draw, mesh=e.mesh, check_vma=False, **specs))
    key = jax.random.key(0)
    each = 1 if jax.default_backend() == "cpu" else 10  # steps between two looks at the clock

    def timed(f):
        """Seconds of f() -> what to wait for: the median, and the mean of CPU time."""
        seconds = []
        for i in range(steps + 2):
            if i == 2:
                cpu = time.process_time()
            start = time.perf_counter()
            for _ in range(each):
                out = f()
            jax.block_until_ready(out)
            if i > 1:
                seconds.append((time.perf_counter() - start) / each)
        return statistics.median(seconds), (time.process_time() - cpu) / steps / each

    metrics = {}

    def once():
        nonlocal state, metrics
        state, metrics = step(state, batch)
        return state

    seconds, cpu = timed(once)
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "seconds": seconds,
        "cpu": cpu,
        "views": timed(lambda: draw(key, batch))[0],
        "parameters": parameters,
        "memory": memory or peak_of_process(),
        "flops": flops,
        "loss": float(metrics["loss"]),
        "device": f"{jax.device_count()} × {device.device_kind}",
        "versions": {m.__name__: m.__version__ for m in (jax, flax, optax)},
    }


def peak_of_process() -> int:
    """Bytes that this process had in memory at most (VmHWM)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def launch(peer: str, text: str, a: argparse.Namespace) -> dict | None:
    """One measurement in a process of its own; None, and its last lines shown, if it fails.

    Args:
      peer: of PEERS.
      text: JSON of the config.
      a: flags: device, steps, tiny, compile.
    """
    module = "benchmarks.step" if peer == "ssl_jax" else "benchmarks.step_torch"
    command = [sys.executable, "-m", module, "--measure", "--device", a.device]
    command += ["--steps", str(a.steps), *(["--tiny"] if a.tiny else [])]
    command += ["--compile"] if peer == "torch" and a.compile else []
    environment = dict(os.environ)
    if a.device == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    elif peer == "ssl_jax":  # as much of the card as the peer may have
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(*done.stderr.strip().splitlines()[-3:], sep="\n", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def largest(peer: str, text: str, a: argparse.Namespace) -> int:
    """The largest batch that fits: that of the config, doubled until its process fails; 0: none."""
    c, fits = json.loads(text), 0
    while launch(peer, json.dumps(c), argparse.Namespace(**{**vars(a), "steps": 1})):
        fits = c["batch"]
        c["batch"] *= 2
        c["data"]["examples"] = 100 * c["batch"]
    return fits


def table(found: dict[str, dict[str, list[dict]]], batches: dict[str, int]) -> str:
    """Markdown: a line for each case and peer.

    The ratio is that of the median seconds to the peer's; in brackets the range of the ratios
    within a round. The augmentation's share is of the medians, too.
    """
    median = statistics.median
    lines = [
        "| case | | step (ms) | images/s | time / torch | CPU (ms) | augmentation alone (ms) "
        "| share of the step | memory (GiB) | of the peak |",
        "|---" * 10 + "|",
    ]
    for case, peers in found.items():
        flops = next((r[0]["flops"] for r in peers.values() if r[0].get("flops")), None)
        for peer, runs in peers.items():
            seconds, views = ([r[k] for r in runs] for k in ("seconds", "views"))
            ratio = ""
            if base := peers.get("torch"):
                ratios = [r["seconds"] / b["seconds"] for r, b in zip(runs, base, strict=True)]
                ratio = median(seconds) / median(b["seconds"] for b in base)
                ratio = f"× {ratio:.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
            peak = next((p for k, p in PEAKS.items() if k in runs[0]["device"]), None)
            share = f"{100 * flops / median(seconds) / peak:.0f} %" if flops and peak else ""
            lines.append(
                f"| {case} | {peer} | {1e3 * median(seconds):,.1f} ({1e3 * min(seconds):,.1f} … "
                f"{1e3 * max(seconds):,.1f}) | {batches[case] / median(seconds):,.0f} | {ratio} "
                f"| {1e3 * median(r['cpu'] for r in runs):,.1f} | {1e3 * median(views):,.1f} "
                f"| {100 * median(views) / median(seconds):.1f} % "
                f"| {max(r['memory'] for r in runs) / 2**30:.2f} | {share} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Runs the two in turn, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=ON, default="cpu")
    parser.add_argument("--cases", nargs="+", choices=ON["cpu"] + ON["gpu"], help="default: all")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--batch", type=int, help="images of a step, instead of the case's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed in a measurement")
    parser.add_argument("--compile", action="store_true", help="torch.compile on CPU as well")
    parser.add_argument("--largest", action="store_true", help="also the largest batch that fits")
    parser.add_argument("--tiny", action="store_true", help="sizes that only try the harness")
    parser.add_argument("--out", type=pathlib.Path, help="JSON of every measurement")
    parser.add_argument("--describe", action="store_true", help="print a case's config")
    parser.add_argument("--measure", action="store_true", help="ours, once, in this process")
    a = parser.parse_args()
    if a.describe:
        from ssl_jax import config as configs

        print(configs.to_json(config(a.cases[0], a.batch, a.tiny)))
        return
    if a.measure:
        from ssl_jax import config as configs

        c = configs.from_json(sys.stdin.read())
        print(json.dumps(measure(c, a.steps, a.device == "gpu" and not a.tiny)))
        return

    cases = a.cases or ON[a.device]
    texts = {}
    for case in cases:  # by a process of its own: this one stays without JAX
        command = [sys.executable, "-m", "benchmarks.step", "--describe", "--cases", case]
        command += ["--batch", str(a.batch)] if a.batch else []
        command += ["--tiny"] if a.tiny else []
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        texts[case] = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=environment
        ).stdout
    batches = {case: json.loads(text)["batch"] for case, text in texts.items()}
    found = {case: {peer: [] for peer in a.peers} for case in cases}
    for _ in range(a.rounds):
        for case, peers in found.items():
            for peer, runs in peers.items():
                run = launch(peer, texts[case], a)
                if run is None:
                    sys.exit(f"{case}: {peer} failed")
                runs.append(run)
    for case, peers in found.items():
        counts = {peer: runs[0]["parameters"] for peer, runs in peers.items()}
        if len(set(counts.values())) > 1:
            sys.exit(f"{case}: not the same network, the parameters are {counts}")
    versions = {}
    for runs in found[cases[0]].values():
        versions |= runs[0]["versions"]
        print(f"{runs[0]['device']}")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"batch {batches}; median of {a.rounds} rounds of {a.steps} steps\n")
    print(table(found, batches))
    fits = {}
    if a.largest:
        fits = {k: {peer: largest(peer, texts[k], a) for peer in a.peers} for k in cases}
        print(f"\nlargest batch, by doubling: {fits}")
    if a.out:
        asked = {"device": a.device, "tiny": a.tiny, "steps": a.steps, "batch": batches}
        found = {"versions": versions, "largest": fits, "cases": found}
        a.out.write_text(json.dumps({**asked, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
