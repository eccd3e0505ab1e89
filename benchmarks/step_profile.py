"""What a training step spends its time on, and how far that is from what the device could do.

    python -m benchmarks.step_profile [--cases resnet18 vit_tiny] [--top 15] [--out FILE]
    python -m benchmarks.step_profile --device gpu [--cases …]            # one GPU, bfloat16
    python -m benchmarks.step_profile --device gpu --tiny                 # that, on any CPU

Our step of a case of benchmarks.step, in a process of its own: timed, then traced by jax.profiler
for a few steps, back to back. Every kernel is put down to the operation of XLA's program that
started it, and that to the part of the step it comes from, by its name in JAX. Where several run at
once, each is given an equal part of the time; so the parts, and the gaps in which the device had
nothing to do, add up to the step.

Two limits: FLOP (benchmarks.step.flops) at the device's peak, and bytes (what every operation reads
and writes, as often as it ran) at the speed of its memory. The larger time is the least that this
program could take; fusing more would make fewer bytes. On a GPU the peaks are its data sheet's
(benchmarks.step.PEAKS), and those reached by a plain product and a plain copy are measured beside
them. On a CPU they are measured, before and after the trace: numpy's product of float32 matrices of
1024², a copy by all cores. Beside other programs they come out too low.

CUDA graphs are off in a profile (`--xla_gpu_enable_command_buffer=`): kernels in them lose the name
of their operation (openxla/xprof#3070). benchmarks.step has them as they are.
On a CPU a device is a thread or more, and what XLA's convolutions leave to other threads is not
traced: there 'idle' is waiting for them, too, and a collective includes waiting for the other
devices.
"""

import argparse
import collections
import glob
import json
import math
import os
import pathlib
import re
import sys
import tempfile
import time
from typing import NamedTuple

from benchmarks import collectives
from benchmarks import step as whole

# A type as HLO writes it: bytes of an element.
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4}
BYTES |= {"f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "f8e4m3fn": 1, "f8e5m2": 1}
KINDS = (
    "augmentation",
    "convolution",
    "matrix product",
    "attention, softmax, norm",
    "reduction",
    "elementwise",
    "copy, transpose, convert",
    "optimizer, targets",
    "collective",
    "other",
)
# What holds other operations: its time is theirs.
CONTAINERS = {"while", "conditional", "call", "async-start", "async-done", "tuple"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
REDUCTIONS = {"reduce", "reduce-window", "select-and-scatter", "sort", "scatter", "topk"}
MOVES = {"copy", "transpose", "bitcast", "slice", "dynamic-slice", "dynamic-update-slice", "pad"}
MOVES |= {"concatenate", "reverse", "gather", "reshape", "broadcast", "convert", "parameter"}
MOVES |= {"constant", "iota", "tuple", "get-tuple-element", "copy-start", "copy-done"}


class Operation(NamedTuple):
    """An instruction of an optimised HLO module.

    Attributes:
      opcode: 'fusion', 'dot' …
      type: of its result, as HLO writes it.
      operands: names.
      source: its name in JAX, '' where it has none.
      calls: the computation of a fusion, or ''.
      target: of a custom call, or ''.
      number: of a parameter; −1 otherwise.
    """

    opcode: str
    type: str
    operands: list[str]
    source: str
    calls: str
    target: str
    number: int


class Event(NamedTuple):
    """A kernel, or a thunk on CPU. Nanoseconds."""

    device: str
    start: float
    end: float
    operation: str
    kernel: str


def closed(text: str, start: int) -> int:
    """The place behind the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i + 1
    return len(text)


def parse(text: str) -> tuple[dict[str, Operation], dict[str, list[str]]]:
    """(operation by name, names of the operations of each computation) of an HLO module."""
    operations, computations, computation = {}, collections.defaultdict(list), ""
    for line in text.splitlines():
        computation = collectives.opened(line) or computation
        match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
        if not match:
            continue
        rest = line[match.end() :]
        end = closed(rest, 0) if rest.startswith("(") else rest.find(" ")
        called = re.match(r"\s*([\w\-]+)\(", rest[end:])
        if not called:
            continue
        start = end + called.end() - 1
        stop = closed(rest, start)
        inside, after = rest[start + 1 : stop - 1], rest[stop:]
        source = re.search(r'op_name="((?:[^"\\]|\\.)*)"', after)
        calls = re.search(r"calls=%?([\w.\-]+)", after)
        target = re.search(r'custom_call_target="([^"]*)"', after)
        operations[match[1]] = Operation(
            called[1],
            rest[:end],
            re.findall(r"%([\w.\-]+)", inside),
            source[1] if source else "",
            calls[1] if calls else "",
            target[1] if target else "",
            int(inside) if called[1] == "parameter" else -1,
        )
        computations[computation].append(match[1])
    return operations, dict(computations)


def size(type_: str) -> int:
    """Bytes of a type, a tuple's parts together: 'f32[2,3]{1,0}' has 24."""
    shapes = re.findall(r"(\w+)\[([\d,]*)\]", type_)
    return sum(BYTES.get(t, 0) * math.prod(int(d) for d in s.split(",") if d) for t, s in shapes)


def traffic(name: str, operations: dict, computations: dict) -> int:
    """Bytes that an operation reads and writes: all of its operands and its result.

    Of an operand that a fusion only slices, the slices; of one that it only updates in part, and of
    the result then, the part.
    """
    op = operations[name]
    if op.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * size(op.type)
    if op.opcode == "dynamic-update-slice":
        return 2 * size(operations[op.operands[1]].type) if len(op.operands) > 1 else 0
    inner = {n: operations[n] for n in computations.get(op.calls, ())}
    # A library's work space is among the results of its call.
    type_ = re.sub(r"u8\[\d+\]", "", op.type) if op.opcode == "custom-call" else op.type
    written, in_place = size(type_), set()
    for part in inner.values():
        if part.opcode == "dynamic-update-slice" and size(part.type) <= written:
            written += size(inner[part.operands[1]].type) - size(part.type)
            in_place.add(part.operands[0])
    read = {i: size(operations[x].type) for i, x in enumerate(op.operands) if x in operations}
    for n, part in inner.items():
        users = [x for x in inner.values() if n in x.operands]
        if part.opcode != "parameter" or part.number not in read or not users:
            continue
        if n in in_place and len(users) == 1:
            read[part.number] = 0
        elif all(x.opcode in ("dynamic-slice", "slice", "gather") for x in users):
            read[part.number] = min(read[part.number], sum(size(x.type) for x in users))
    return max(written, 0) + sum(read.values())


def phase(source: str) -> str:
    """'views', 'forward', 'backward' or 'update', of an operation's name in JAX; '' for none."""
    parts = re.split(r"[/():]", source)
    if "views" in parts:
        return "views"
    if "update" in parts:
        return "update"
    return "backward" if "transpose" in parts else "forward" if "loss" in parts else ""


def within(name: str, operations: dict, computations: dict) -> list[Operation]:
    """The operations of a fusion, and of those that it holds."""
    found, queue = [], [operations[name].calls]
    while queue:
        parts = [operations[n] for n in computations.get(queue.pop(), ())]
        found += parts
        queue += [part.calls for part in parts if part.calls]
    return found


def classify(name: str, kernel: str, operations: dict, computations: dict) -> tuple[str, str]:
    """(one of KINDS, phase) of an event, by its operation, else by the name of its kernel."""
    if name not in operations:
        patterns = {
            "convolution": r"conv|fprop|dgrad|wgrad|cudnn",
            "matrix product": r"gemm|cutlass|nvjet|xmma|cublas|splitk",
            "collective": r"nccl|all.?reduce|all.?gather",
            "attention, softmax, norm": r"softmax|norm|fmha|flash",
            "reduction": r"reduc|sort",
            "copy, transpose, convert": r"memcpy|memset|copy|transpose|slice|concat",
            "elementwise": r"fusion|loop_",
        }
        kinds = (k for k, p in patterns.items() if re.search(p, kernel, re.IGNORECASE))
        return next(kinds, "other"), ""
    op, inner = operations[name], within(name, operations, computations)
    codes = {op.opcode} | {part.opcode for part in inner}
    targets = " ".join({op.target} | {part.target for part in inner}).lower()
    sources = [op.source] if op.source else [part.source for part in inner if part.source]
    where = collections.Counter(map(phase, sources)).most_common(1)[0][0] if sources else ""
    if op.opcode.startswith(COLLECTIVES):
        return "collective", where
    if where == "views":
        return "augmentation", where
    if where == "update":
        return "optimizer, targets", where
    if "convolution" in codes or "conv" in targets:
        return "convolution", where
    if "fmha" in targets or "softmax" in targets:
        return "attention, softmax, norm", where
    if codes & {"dot", "ragged-dot"} or re.search(r"gemm|matmul|blas", targets):
        return "matrix product", where
    if codes <= MOVES | {"fusion"}:
        return "copy, transpose, convert", where
    if re.search(r"softmax|logsumexp|norm|attention|/bn\d?\b|_bn\b", " ".join(sources)):
        return "attention, softmax, norm", where
    if codes & REDUCTIONS:
        return "reduction", where
    return ("other" if op.opcode == "custom-call" else "elementwise"), where


def read_trace(file: str) -> tuple[list[Event], list[str]]:
    """(kernels, or on CPU thunks, of every device; an outline of the file) of an .xplane.pb."""
    from jax.profiler import ProfileData

    events, outline = [], []
    for plane in ProfileData.from_file(file).planes:
        gpu = plane.name.startswith("/device:GPU")
        for line in plane.lines:
            found, first = 0, ""
            for event in line.events:
                if not gpu and (plane.name != "/host:CPU" or event.name.startswith("end: ")):
                    continue
                stats = dict(event.stats)
                if gpu and not line.name.startswith("Stream"):
                    continue  # derived lines repeat what the streams have
                if not gpu and "hlo_op" not in stats:
                    continue
                device = plane.name if gpu else f"CPU {stats.get('device_ordinal', 0)}"
                end = event.start_ns + event.duration_ns
                op = str(stats.get("hlo_op", ""))
                events.append(Event(device, event.start_ns, end, op, event.name))
                found, first = found + 1, first or f"{event.name}: {stats}"
            outline.append(f"{plane.name} | {line.name} | {found} events | {first[:400]}")
    return events, outline


def divide(events: list[Event]) -> tuple[list[float], float, float]:
    """The time of one device among its events, those that run at once sharing it equally.

    Returns:
      (nanoseconds of each event, nanoseconds with none, nanoseconds from the first to the last).
    """
    edges = [(e.start, 1, i) for i, e in enumerate(events)]
    edges += [(e.end, 0, i) for i, e in enumerate(events)]
    shares, idle, active = [0.0] * len(events), 0.0, set()
    edges.sort()
    last = edges[0][0]
    for at, opens, i in edges:
        for j in active:
            shares[j] += (at - last) / len(active)
        idle += 0.0 if active else at - last
        last = at
        active.add(i) if opens else active.discard(i)
    return shares, idle, last - edges[0][0]


def gaps(events: list[Event]) -> dict[tuple[str, str], float]:
    """Nanoseconds in which one device had nothing to do, by the operations before and after."""
    found, last = collections.defaultdict(float), None
    for e in sorted(events, key=lambda e: e.start):
        if last and e.start > last.end:
            found[last.operation or last.kernel, e.operation or e.kernel] += e.start - last.end
        last = e if last is None or e.end > last.end else last
    return found


def summarise(events: list[Event], text: str, steps: int, top: int) -> dict:
    """What the time of a step goes to.

    Args:
      events: of `read_trace`.
      text: of the optimised HLO module.
      steps: that were traced.
      top: how many operations to name.

    Returns:
      seconds of one step, the mean of the devices: {'seconds': from the first to the last event,
      'kinds': {kind: {phase: seconds}}, 'idle', 'named': share of the busy time whose operation is
      known, 'bytes': of all devices, 'top': [{operation, kind, source, type, seconds, times,
      bytes}], 'gaps': the five longest, [{after, before, seconds}]}.
    """
    operations, computations = parse(text)
    # A kernel without an operation may bear its name: dots and dashes are underscores there.
    plain = {re.sub(r"[.\-]", "_", name): name for name in operations}

    def named(e):
        return e.operation if e.operation in operations else plain.get(e.kernel, e.operation)

    events = [e._replace(operation=named(e)) for e in events]
    held = {n for n, op in operations.items() if op.opcode in CONTAINERS}
    events = [e for e in events if e.operation not in held or e.device.startswith("/device")]
    devices = sorted({e.device for e in events})
    kinds = collections.defaultdict(lambda: collections.defaultdict(float))
    seconds, times, idle, window = collections.defaultdict(float), collections.Counter(), 0.0, 0.0
    known, between = {}, collections.defaultdict(float)
    for device in devices:
        mine = [e for e in events if e.device == device]
        shares, nothing, span = divide(mine)
        idle, window = idle + nothing, window + span
        for pair, time_ in gaps(mine).items():
            between[pair] += time_
        for e, share in zip(mine, shares, strict=True):
            key = (e.operation or e.kernel, e.kernel if e.operation not in operations else "")
            if key not in known:
                known[key] = classify(e.operation, e.kernel, operations, computations)
            kind, where = known[key]
            kinds[kind][where] += share
            seconds[key] += share
            times[key] += 1
    each = 1e-9 / steps / max(len(devices), 1)  # nanoseconds in all -> seconds of one
    busy = sum(seconds.values())
    moved = {key: traffic(key[0], operations, computations) for key in seconds if not key[1]}

    def line(key):
        op = operations.get(key[0])
        inner = within(key[0], operations, computations) if op else []
        sources = [x.source for x in [op, *inner[::-1]] if x and x.source]
        return {
            "operation": key[0],
            "kind": known[key][0],
            "phase": known[key][1],
            "source": sources[0] if sources else key[1],
            "type": op.type if op else "",
            "seconds": seconds[key] * each,
            "times": times[key] / steps / len(devices),
            "bytes": moved.get(key, 0),
        }

    return {
        "seconds": window * each,
        "kinds": {k: {w: t * each for w, t in by.items()} for k, by in kinds.items()},
        "idle": idle * each,
        "named": sum(t for key, t in seconds.items() if not key[1]) / busy if busy else 0.0,
        "bytes": sum(moved[key] * times[key] for key in moved) / steps,
        "top": [line(k) for k in sorted(seconds, key=seconds.get, reverse=True)[:top]],
        "gaps": [
            {"after": a, "before": b, "seconds": between[a, b] * each}
            for a, b in sorted(between, key=between.get, reverse=True)[:5]
        ],
    }


def cpu_peaks() -> tuple[float, float]:
    """(FLOP/s of numpy's float32 product of 1024², bytes/s read and written by a copy)."""
    from concurrent import futures

    import numpy as np

    x = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    best = min(_seconds(lambda: x @ x) for _ in range(20))
    cores = len(os.sched_getaffinity(0))
    source = np.ones((cores, 2**24), np.float32)  # 64 MiB a core
    target = np.zeros_like(source)
    with futures.ThreadPoolExecutor(cores) as pool:

        def copy():
            list(pool.map(np.copyto, target, source))

        moving = min(_seconds(copy) for _ in range(10))
    return 2 * 1024**3 / best, 2 * source.nbytes / moving


def gpu_peaks() -> tuple[float, float]:
    """(FLOP/s of a bfloat16 product of 8192², bytes/s read and written by adding one to 1 GiB)."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.bfloat16)
    product, add = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)

    def rate(f, x):
        """Seconds of a call, of ten in a row; the fastest of three."""

        def ten():
            for _ in range(10):
                y = f(x)
            y.block_until_ready()

        ten()
        return min(_seconds(ten) for _ in range(3)) / 10

    flops = 2 * 8192**3 / rate(product, x)
    big = jnp.zeros(2**29, jnp.bfloat16)
    return flops, 2 * big.nbytes / rate(add, big)


def _seconds(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def measure(c, steps: int, top: int, gpu: bool, keep: str | None) -> dict:
    """Our step, timed and traced, in this process.

    Args:
      c: config.
      steps: traced, and timed before.
      top: operations to name.
      gpu: there must be one.
      keep: folder for the trace and the program; None: they are not kept.

    Returns:
      that of `summarise` with 'untraced': seconds of a step before, 'flops', 'views_flops',
      'peaks': (FLOP/s, bytes/s) of all devices by the data sheet, or None, 'measured': as measured
      here, 'outline': of the trace, 'device', 'versions', 'batch', 'dtype'.

    Raises:
      SystemExit: there is no GPU, or the trace has no events of a device.
    """
    from ssl_jax.processes import host

    host.keep_memory_pages()
    import jax
    import numpy as np

    from ssl_jax.devices import layout
    from ssl_jax.train import experiment

    if gpu and jax.default_backend() != "gpu":
        sys.exit("JAX finds no GPU here; --device gpu --tiny tries the harness without one")
    e = experiment.assemble(c, host.Cluster(1, 0, 1), None)
    # Before the trace: CUPTI may leave a context in which nothing runs any more (jax-ml/jax#40260).
    on_cpu, count = jax.default_backend() == "cpu", jax.device_count()
    device = f"{count} × {jax.devices()[0].device_kind}"
    peaks = None if on_cpu else whole.peak_of(device)
    measured = cpu_peaks() if on_cpu else tuple(count * x for x in gpu_peaks())
    state = e.create(jax.random.key(c.seed))
    rows = e.train.read(np.arange(c.batch))
    batch = layout.put_batch({k: x[None] for k, x in rows.items()}, e.mesh, c.parallel)
    traced = e.step.trace(state, batch)
    platform = "cpu" if on_cpu else "cuda"
    flops = [whole.flops(traced.jaxpr, platform, scope) for scope in ("", "views")]
    step = traced.lower().compile()

    def run():
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    run()
    untraced = min(_seconds(run) for _ in range(3)) / steps
    text = step.as_text()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = keep or folder
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        files = glob.glob(f"{folder}/plugins/profile/*/*.xplane.pb")
        events, outline = read_trace(max(files, key=os.path.getmtime)) if files else ([], [])
    if keep:
        (pathlib.Path(folder) / "step.hlo").write_text(text)
    if not events:
        sys.exit("\n".join(["no event of a device is in the trace:", *outline, "nothing to say"]))
    found = summarise(events, text, steps, top)
    if on_cpu:  # and again, lest another program ran beside the first try
        measured = tuple(map(max, measured, cpu_peaks()))
    return found | {
        "untraced": untraced,
        "flops": flops[0],
        "views_flops": flops[1],
        "peaks": peaks and tuple(count * x for x in peaks),
        "measured": measured,
        "outline": outline,
        "device": device,
        "versions": {"jax": jax.__version__},
        "batch": c.batch,
        "dtype": c.model.dtype,
    }


def report(case: str, r: dict) -> str:
    """Markdown: where a step's time goes, its longest operations, its limits."""
    ms, busy = 1e3, r["seconds"] - r["idle"]
    lines = [
        f"### {case}: {r['batch']} images, {r['dtype']}, on {r['device']}, JAX "
        f"{r['versions']['jax']}",
        "",
        f"{ms * r['untraced']:,.1f} ms a step; {ms * r['seconds']:,.1f} ms in the trace, which the "
        f"table divides. The operation is known of {100 * r['named']:.1f} % of the busy time.",
        "",
        "| | ms | of the step | forward | backward |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        if by := r["kinds"].get(kind):
            total = sum(by.values())
            parts = [f"{ms * by[w]:,.2f}" if by.get(w) else "" for w in ("forward", "backward")]
            lines.append(
                f"| {kind} | {ms * total:,.2f} | {100 * total / r['seconds']:.1f} % | "
                f"{' | '.join(parts)} |"
            )
    lines += [
        f"| idle: no operation on the device | {ms * r['idle']:,.2f} | "
        f"{100 * r['idle'] / r['seconds']:.1f} % | | |",
        "",
        "The longest idle times, in ms a step: "
        + "; ".join(
            f"{ms * g['seconds']:.2f} between {g['after']} and {g['before']}" for g in r["gaps"]
        )
        + ".",
        "",
        "| the longest operations | kind | times | ms | of the step | GB/s | result | in JAX |",
        "|---" * 8 + "|",
    ]
    for o in r["top"]:
        rate = o["bytes"] * o["times"] / o["seconds"] / 1e9 if o["seconds"] else 0
        type_ = re.sub(r"\{[^}]*\}|/\*.*?\*/", "", o["type"])
        source = re.sub(r"^jit\(step\)/(shard_map/)?", "", o["source"]).replace("|", "\\|")
        lines.append(
            f"| {o['operation'][:40]} | {o['kind']} | {o['times']:.0f} | {ms * o['seconds']:,.2f} "
            f"| {100 * o['seconds'] / r['seconds']:.1f} % | {rate:,.0f} | {type_[:40]} "
            f"| {source[-70:]} |"
        )
    lines += ["", *limits(r)]
    arithmetic = (r["peaks"] or r["measured"])[0]
    kinds = [r["kinds"].get(k, {}) for k in ("convolution", "matrix product")]
    if multiplying := sum(sum(by.values()) for by in kinds):
        rate = (r["flops"] - r["views_flops"]) / multiplying
        lines.append(
            f"Convolutions and matrix products, without the augmentation's, run at "
            f"{rate / 1e12:,.2f} TFLOP/s, {100 * rate / arithmetic:.0f} % of the peak; they are "
            f"{100 * multiplying / busy:.0f} % of the busy time."
        )
    return "\n".join(lines)


def limits(r: dict) -> list[str]:
    """Lines of Markdown: the least time by arithmetic and by memory, and the step's beside it."""
    peaks, measured = r["peaks"], r["measured"]
    sheet = "data sheet" if peaks else "measured here"
    flops, moving = peaks or measured
    least = {"arithmetic": r["flops"] / flops, "memory": r["bytes"] / moving}
    which = max(least, key=least.get)
    lines = [
        f"| limit | of a step | peak ({sheet}) | least time |",
        "|---|---|---|---|",
        f"| arithmetic | {r['flops'] / 1e9:,.1f} GFLOP | {flops / 1e12:,.2f} TFLOP/s "
        f"| {1e3 * least['arithmetic']:,.2f} ms |",
        f"| memory | {r['bytes'] / 1e9:,.3f} GB | {moving / 1e9:,.0f} GB/s "
        f"| {1e3 * least['memory']:,.2f} ms |",
        "",
        f"The step takes {r['untraced'] / least[which]:.2f} times the larger, that of {which}.",
    ]
    if peaks:
        lines.append(
            f"Measured here: a plain product {measured[0] / 1e12:,.0f} TFLOP/s "
            f"({100 * measured[0] / flops:.0f} %), a plain copy {measured[1] / 1e12:,.2f} TB/s "
            f"({100 * measured[1] / moving:.0f} %)."
        )
    return lines


def run_case(text: str, a: argparse.Namespace) -> dict:
    """A profile in a process of its own; flags device, steps, top, tiny, keep and limit."""
    arguments = ["--top", str(a.top), *(["--tiny"] if a.tiny else [])]
    arguments += ["--steps", str(a.steps)] if a.steps else []
    arguments += ["--keep", str(a.keep)] if a.keep else []
    return whole.launch("benchmarks.step_profile", text, arguments, a.device, a.limit)


def main() -> None:
    """One case after the other, prints the tables, writes JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=whole.ON, default="cpu")
    parser.add_argument("--cases", nargs="+", choices=whole.ON["cpu"] + whole.ON["gpu"])
    parser.add_argument("--batch", type=int, help="images of a step, instead of the case's")
    parser.add_argument("--steps", type=int, help="traced; default 2, on a GPU 5")
    parser.add_argument("--top", type=int, default=15, help="operations to name")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for a case")
    parser.add_argument("--tiny", action="store_true", help="sizes that only try the harness")
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the traces and programs")
    parser.add_argument("--out", type=pathlib.Path, help="JSON")
    parser.add_argument("--measure", action="store_true", help="one config, in this process")
    a = parser.parse_args()
    if a.measure:
        if a.device == "gpu":
            asked = os.environ.get("XLA_FLAGS", "")
            os.environ["XLA_FLAGS"] = f"{asked} --xla_gpu_enable_command_buffer=".strip()
        from ssl_jax.runs import config as configs

        c = configs.from_json(sys.stdin.read())
        keep = a.keep and str(a.keep / time.strftime("%H%M%S"))
        steps = a.steps or (2 if a.device == "cpu" else 5)
        print(json.dumps(measure(c, steps, a.top, a.device == "gpu" and not a.tiny, keep)))
        return
    cases = a.cases or whole.ON[a.device]
    texts = whole.describe(cases, a.batch, a.tiny)
    results = {}
    for case in cases:
        results[case] = run_case(texts[case], a)
        r = results[case]
        print(f"### {case}\n\n{r['failed']}" if "failed" in r else report(case, r), end="\n\n")
        sys.stdout.flush()
        if a.out:
            a.out.write_text(json.dumps(results, indent=1) + "\n")
    if any("failed" in r for r in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
