"""The trace of a profiler: what the time of a step goes to, divided without remainder."""

import collections
import re
from typing import NamedTuple

from kit.hlo.program import classify, parse, traffic, within

# What holds other operations: its time is theirs.
CONTAINERS = {"while", "conditional", "call", "async-start", "async-done", "tuple"}


class Event(NamedTuple):
    """A kernel, or a thunk on CPU. Nanoseconds."""

    device: str
    start: float
    end: float
    operation: str
    kernel: str


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
