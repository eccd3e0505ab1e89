"""NT-Xent forward and backward: time and memory with and without chunks, against the plain form.

    python -m benchmarks.ntxent [--rows 8192] [--width 128] [--chunk 64] [--out FILE]

Of N embeddings, two views of N/2 images, on one device: the loss and its gradient by

    chunk        losses.contrastive.ntxent with `chunk`
    at once      the same without
    plain        the N×N matrix of similarities and a logsumexp, as one writes it in jax.numpy
    optax        optax.losses.ntxent

Every measurement is a process of its own, and they take turns. Memory is told twice: the temporary
bytes that the compiled program asks for (`memory_analysis`), and the peak of the process in excess
of what it was before the first call (on a GPU: of the device's allocator). What asks for more than
the machine has free is compiled and not run.
"""

import contextlib
import functools
import json
import statistics
import sys

from benchmarks import harness, tables

PEERS = ("chunk", "at once", "plain", "optax")
TEMPERATURE = 0.1


def function(peer: str, chunk: int):
    """loss(z1 [b, d], z2 [b, d]) -> float32 []."""
    import jax
    import jax.numpy as jnp
    import optax

    from ssl_jax.losses import contrastive

    def plain(z1, z2):
        z = jnp.concatenate([z1, z2])
        z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        n = len(z)
        logits = jnp.matmul(z, z.T, precision=contrastive.PRECISION) / TEMPERATURE  # [N, N]
        logits = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, logits)
        positive = logits[jnp.arange(n), jnp.roll(jnp.arange(n), n // 2)]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - positive)

    def by_optax(z1, z2):
        labels = jnp.tile(jnp.arange(len(z1)), 2)
        return optax.losses.ntxent(jnp.concatenate([z1, z2]), labels, TEMPERATURE)

    return {
        "chunk": lambda z1, z2: contrastive.ntxent(z1, z2, TEMPERATURE, chunk=chunk),
        "at once": lambda z1, z2: contrastive.ntxent(z1, z2, TEMPERATURE),
        "plain": plain,
        "optax": by_optax,
    }[peer]


def measure(peer: str, rows: int, width: int, chunk: int, calls: int) -> dict:
    """One peer, in this process.

    Returns:
      {'temporary': bytes, 'seconds' of a call, 'cpu' seconds of a call on all cores, 'peak' bytes
      (None: not run), 'loss', 'gradient': its length, 'device', 'versions'}.
    """
    import jax
    import numpy as np
    import optax

    r = np.random.default_rng(0)
    z1 = r.standard_normal((rows // 2, width), dtype=np.float32)
    z2 = z1 + r.standard_normal((rows // 2, width), dtype=np.float32)
    z = tuple(jax.device_put((z1, z2)))
    f = jax.jit(jax.value_and_grad(function(peer, chunk), (0, 1))).lower(*z).compile()
    device = jax.devices()[0]
    found = {
        "temporary": f.memory_analysis().temp_size_in_bytes,
        "seconds": None,
        "peak": None,
        "device": device.device_kind,
        "versions": {m.__name__: m.__version__ for m in (jax, optax)},
    }
    stats = device.memory_stats()
    free = stats["bytes_limit"] if stats else harness.proc("MemAvailable", "/proc/meminfo")
    if found["temporary"] > 0.9 * free:
        return found
    with contextlib.suppress(OSError):
        harness.forget_peak()  # of compiling
    before = stats["bytes_in_use"] if stats else harness.proc("VmRSS")
    f = functools.partial(f, *z)
    seconds, cpu, (loss, gradient) = harness.clock(f, calls, wait=jax.block_until_ready, warm=1)
    after = device.memory_stats()
    peak = after["peak_bytes_in_use"] if after else harness.proc("VmHWM")
    length = sum(float((g**2).sum()) for g in gradient) ** 0.5
    found |= {"seconds": seconds, "cpu": cpu, "peak": peak - before}
    return found | {"loss": float(loss), "gradient": length}


COLUMNS = ("", "ms", "time / plain", "CPU (ms)", "temporary (MB)", "/ plain")
COLUMNS += ("peak of the process (MB)", "/ plain")
SIZES = ("rows", "width", "chunk", "calls")


def lines(found: dict[str, list[dict]]) -> list[list[str]]:
    """A line for each; ratios are to 'plain'."""
    median, base, rows = statistics.median, found.get("plain"), []
    for peer, runs in found.items():
        seconds, temporary = [r["seconds"] for r in runs], runs[0]["temporary"]
        cells = [peer, "not run", "", "", f"{temporary / 1e6:,.1f}", "", "", ""]
        if base:
            cells[5] = f"× {temporary / base[0]['temporary']:.3f}"
        if None not in seconds:
            cells[1] = tables.middle(seconds, 1, 1e3)
            cells[3] = f"{1e3 * median(r['cpu'] for r in runs):,.1f}"
            peak = median(r["peak"] for r in runs)
            cells[6] = f"{peak / 1e6:,.1f}"
            if base:
                cells[2] = tables.ratio(seconds, [b["seconds"] for b in base])
                cells[7] = f"× {peak / median(b['peak'] for b in base):.3f}"
        rows.append(cells)
    return rows


def main() -> None:
    """Runs the peers in turn, prints the table, writes JSON."""
    parser = harness.parser(__doc__, rounds=5)
    parser.add_argument("--rows", type=int, default=8192, help="N, of both views")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--calls", type=int, default=5, help="timed in a measurement")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--measure", choices=PEERS, help="this one, once, in this process")
    a = harness.parse(parser, rows=512, calls=2)
    if a.measure:
        print(json.dumps(measure(a.measure, a.rows, a.width, a.chunk, a.calls)))
        return
    known = {}

    def launch(peer):
        """Once more; what is too large is not compiled again."""
        if known.get(peer, {"seconds": 1})["seconds"] is not None:
            words = ("--measure", peer, *harness.again(a, *SIZES))
            known[peer] = harness.measured("benchmarks.ntxent", *words)
        return known[peer]

    found = harness.in_turn(a.peers, a.rounds, launch)
    ran = {peer: runs[0] for peer, runs in found.items() if runs[0]["seconds"]}
    for name in ("loss", "gradient"):
        values = {peer: r[name] for peer, r in ran.items()}
        if max(values.values()) > 1.0001 * min(values.values()):
            sys.exit(f"not the same {name}: {values}")
    one = next(iter(found.values()))[0]
    print(one["device"], *(f"{name} {version}" for name, version in one["versions"].items()))
    print(f"N = {a.rows:,}, d = {a.width}, chunks of {a.chunk} images; {a.rounds} rounds\n")
    print(tables.table(COLUMNS, lines(found)))
    harness.write(a.out, {**{k: getattr(a, k) for k in SIZES}, "peers": found})


if __name__ == "__main__":
    main()
