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
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time

from kit.profile import planning
from kit.profile.flops import flops, peak_of

from ssl_jax.processes import malloc

PEERS = ("ssl_jax", "torch")
ON = {
    "cpu": ("vit_tiny", "resnet18"),
    "gpu": ("simclr_resnet50", "moco_v2_resnet50", "dino_vit_s16", "mae_vit_b16", "resnet18_32px"),
}


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

    from ssl_jax.augment import policies
    from ssl_jax.optim import optimizers
    from ssl_jax.runs import config as configs

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
    import numpy as np
    import optax
    from jax.sharding import PartitionSpec as P

    from ssl_jax.contract.method import Context
    from ssl_jax.devices import layout
    from ssl_jax.train import experiment

    if gpu and jax.default_backend() != "gpu":
        sys.exit("JAX finds no GPU here; --device gpu --tiny tries the harness without one")
    e = experiment.assemble(c, host.Cluster(1, 0, 1), None)
    state = e.create(jax.random.key(c.seed))
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    rows = e.train.read(np.arange(c.batch))
    batch = layout.put_batch({k: x[None] for k, x in rows.items()}, e.mesh, c.parallel)
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
    stats = device.memory_stats() or {}
    return {
        "seconds": seconds,
        "cpu": cpu,
        "views": timed(lambda: draw(key, batch))[0],
        "parameters": parameters,
        "memory": stats.get("peak_bytes_in_use") or peak_of_process(),
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


def peak_of_process() -> int:
    """Bytes that this process had in memory at most (VmHWM)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def launch(module: str, text: str, arguments: list[str], device: str, limit: float) -> dict:
    """One measurement in a process of its own.

    Args:
      module: 'benchmarks.step', say; reads the config, prints JSON as its last line.
      text: JSON of the config.
      arguments: of the module.
      device: of ON.
      limit: seconds after which it is ended.

    Returns:
      what it printed, with 'process': its seconds; or {'failed': why}, 'out of memory' among them.
    """
    command = [sys.executable, "-m", module, "--measure", "--device", device, *arguments]
    environment = dict(os.environ)
    if device == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
        environment.setdefault("GLIBC_TUNABLES", malloc.TUNABLE)  # as ssl_jax.main does
    else:
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the peer knows one card
        if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in environment:  # the old name; both are an error
            environment.setdefault("XLA_CLIENT_MEM_FRACTION", "0.95")  # the peer may have all
    start = time.perf_counter()
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(text, timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started: torch's compilers
            process.communicate()
            return {"failed": f"not done after {limit:.0f} s"}
    if process.returncode:
        if re.search(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|OutOfMemory|MemoryError", err):
            return {"failed": "out of memory"}
        last = "\n".join(err.strip().splitlines()[-6:])
        return {"failed": f"ended with {process.returncode}: {last}"}
    return json.loads(out.splitlines()[-1]) | {"process": time.perf_counter() - start}


def run_peer(peer: str, text: str, a: argparse.Namespace) -> dict:
    """`launch` for one of PEERS, with the flags device, steps, each, tiny, compile and limit."""
    arguments = ["--steps", str(a.steps), *(["--tiny"] if a.tiny else [])]
    arguments += ["--each", str(a.each)] if a.each else []
    arguments += ["--compile"] if peer == "torch" and a.compile else []
    module = "benchmarks.step" if peer == "ssl_jax" else "benchmarks.step_torch"
    return launch(module, text, arguments, a.device, a.limit)


def largest(peer: str, text: str, a: argparse.Namespace) -> dict:
    """`planning.largest` for one of PEERS, with as few steps as there can be."""
    few = argparse.Namespace(**{**vars(a), "steps": 1, "each": 1})
    return planning.largest(lambda text: run_peer(peer, text, few), text, a.gib)


def describe(cases: list[str], batch: int | None, tiny: bool) -> dict[str, str]:
    """JSON of the config of every case, by a process of its own: this one stays without JAX."""
    command = [sys.executable, "-m", "benchmarks.step", "--describe", "--cases", *cases]
    command += ["--batch", str(batch)] if batch else []
    command += ["--tiny"] if tiny else []
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return dict(zip(cases, done.stdout.splitlines(), strict=True))


def table(found: dict[str, dict[str, list[dict]]], batches: dict[str, int]) -> str:
    """Markdown: a line for each case and peer that was measured.

    The ratio is that of the median seconds to the peer's; in brackets the range of the ratios
    within a round. The augmentation's share is of the medians, too. 'Of the peak' are the FLOP of
    `flops`, for both sides those of our program, per second of the device's data sheet.
    """
    median = statistics.median
    lines = [
        "| case | | step (ms) | images/s | time / torch | CPU (ms) | augmentation alone (ms) "
        "| share of the step | memory (GiB) | of the peak |",
        "|---" * 10 + "|",
    ]
    for case, peers in found.items():
        count = next((r["flops"] for runs in peers.values() for r in runs if "flops" in r), None)
        for peer, runs in peers.items():
            if not runs:
                continue
            seconds, views = ([r[k] for r in runs] for k in ("seconds", "views"))
            ratio = ""
            if base := peers.get("torch"):
                ratios = [r["seconds"] / b["seconds"] for r, b in zip(runs, base, strict=False)]
                ratio = median(seconds) / median(b["seconds"] for b in base)
                ratio = f"× {ratio:.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
            peak = peak_of(runs[0]["device"]) if case in ON["gpu"] else None
            share = f"{100 * count / median(seconds) / peak[0]:.0f} %" if count and peak else ""
            lines.append(
                f"| {case} | {peer} | {1e3 * median(seconds):,.1f} ({1e3 * min(seconds):,.1f} … "
                f"{1e3 * max(seconds):,.1f}) | {batches[case] / median(seconds):,.0f} | {ratio} "
                f"| {1e3 * median(r['cpu'] for r in runs):,.1f} | {1e3 * median(views):,.1f} "
                f"| {100 * median(views) / median(seconds):.1f} % "
                f"| {median(r['memory'] for r in runs) / 2**30:.2f} | {share} |"
            )
    return "\n".join(lines)


def largest_table(fits: dict[str, dict[str, dict]]) -> str:
    """Markdown: a line for each case and peer, from `largest`."""
    lines = [
        "| case | | largest batch that ran | GiB it takes | GiB the double would | of GiB |",
        "|---" * 6 + "|",
    ]
    for case, peers in fits.items():
        for peer, r in peers.items():
            memory = {int(batch): m for batch, m in r["memory"].items()}  # keys of JSON are text
            numbers = (memory.get(r["batch"]), r["next"], r["limit"])
            cells = [f"{n / 2**30:.1f}" if n else "" for n in numbers]
            lines.append(f"| {case} | {peer} | {r['batch']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the two in turn, prints the table, writes JSON after every measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=ON, default="cpu")
    parser.add_argument("--cases", nargs="+", choices=ON["cpu"] + ON["gpu"], help="default: all")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--batch", type=int, help="images of a step, instead of the case's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="looks at the clock in a measurement")
    parser.add_argument("--each", type=int, help="steps between two; default 1, on a GPU 10")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for a measurement")
    parser.add_argument("--compile", action="store_true", help="torch.compile on CPU as well")
    parser.add_argument("--largest", action="store_true", help="also the largest batch that fits")
    parser.add_argument("--gib", type=float, help="memory for --largest; on a GPU all there is")
    parser.add_argument("--tiny", action="store_true", help="sizes that only try the harness")
    parser.add_argument("--out", type=pathlib.Path, help="JSON of every measurement")
    parser.add_argument("--describe", action="store_true", help="print the configs of cases")
    parser.add_argument("--measure", action="store_true", help="ours, once, in this process")
    a = parser.parse_args()
    if a.describe:
        from ssl_jax.runs import config as configs

        for case in a.cases:
            print(json.dumps(json.loads(configs.to_json(config(case, a.batch, a.tiny)))))
        return
    if a.measure:
        from ssl_jax.runs import config as configs

        c = configs.from_json(sys.stdin.read())
        each = a.each or (1 if a.device == "cpu" else 10)
        print(json.dumps(measure(c, a.steps, each, a.device == "gpu" and not a.tiny)))
        return
    if a.largest and a.gib is None and (a.device == "cpu" or a.tiny):
        parser.error("--largest on a CPU needs --gib: how much memory it may take")

    cases = a.cases or ON[a.device]
    texts = describe(cases, a.batch, a.tiny)
    batches = {case: json.loads(text)["batch"] for case, text in texts.items()}
    found = {case: {peer: [] for peer in a.peers} for case in cases}
    failed, fits, versions, devices = {}, {}, {}, {}

    def write():
        if a.out:
            asked = {"device": a.device, "tiny": a.tiny, "steps": a.steps, "batch": batches}
            results = {"versions": versions, "failed": failed, "largest": fits, "cases": found}
            a.out.write_text(json.dumps({**asked, **results}, indent=1) + "\n")

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
