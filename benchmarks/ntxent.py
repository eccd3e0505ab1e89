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

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import time

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


def field(file: str, name: str) -> int:
    """Bytes of a line of /proc ('VmHWM:  12 kB')."""
    with open(file) as lines:
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(name))


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
    free = stats["bytes_limit"] if stats else field("/proc/meminfo", "MemAvailable")
    if found["temporary"] > 0.9 * free:
        return found
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as marks:
        marks.write("5")  # forgets the peak of compiling
    before = stats["bytes_in_use"] if stats else field("/proc/self/status", "VmRSS")
    seconds = []
    for i in range(calls + 1):
        if i == 1:
            cpu = time.process_time()
        start = time.perf_counter()
        loss, gradient = jax.block_until_ready(f(*z))
        seconds.append(time.perf_counter() - start)
    cpu = (time.process_time() - cpu) / calls
    after = device.memory_stats()
    peak = after["peak_bytes_in_use"] if after else field("/proc/self/status", "VmHWM")
    length = sum(float((g**2).sum()) for g in gradient) ** 0.5
    found |= {"seconds": statistics.median(seconds[1:]), "cpu": cpu, "peak": peak - before}
    return found | {"loss": float(loss), "gradient": length}


def table(found: dict[str, list[dict]]) -> str:
    """Markdown: a line for each; ratios are to 'plain'.

    That of time is of medians; in brackets the range of the ratios within a round.
    """
    median, base = statistics.median, found.get("plain")
    lines = [
        "| | ms | time / plain | CPU (ms) | temporary (MB) | / plain | peak of the process (MB) "
        "| / plain |",
        "|---" * 8 + "|",
    ]
    for peer, runs in found.items():
        seconds = [r["seconds"] for r in runs]
        temporary = runs[0]["temporary"]
        cells = [peer, "not run", "", "", f"{temporary / 1e6:,.1f}", "", "", ""]
        if base:
            cells[5] = f"× {temporary / base[0]['temporary']:.3f}"
        if None not in seconds:
            ms = [1e3 * s for s in seconds]
            cells[1] = f"{median(ms):,.1f} ({min(ms):,.1f} … {max(ms):,.1f})"
            cells[3] = f"{1e3 * median(r['cpu'] for r in runs):,.1f}"
            peak = median(r["peak"] for r in runs)
            cells[6] = f"{peak / 1e6:,.1f}"
            if base:
                ratios = [s / b["seconds"] for s, b in zip(seconds, base, strict=True)]
                ratio = median(seconds) / median(b["seconds"] for b in base)
                cells[2] = f"× {ratio:.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
                cells[7] = f"× {peak / median(b['peak'] for b in base):.3f}"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the peers in turn, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192, help="N, of both views")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=5, help="timed in a measurement")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--out", type=pathlib.Path, help="JSON of every measurement")
    parser.add_argument("--measure", choices=PEERS, help="this one, once, in this process")
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(a.measure, a.rows, a.width, a.chunk, a.calls)))
        return
    found = {peer: [] for peer in a.peers}
    for _ in range(a.rounds):
        for peer, runs in found.items():
            if runs and runs[0]["seconds"] is None:
                runs.append(runs[0])
                continue
            command = [sys.executable, "-m", "benchmarks.ntxent", "--measure", peer]
            for name in ("rows", "width", "chunk", "calls"):
                command += [f"--{name}", str(getattr(a, name))]
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            runs.append(json.loads(out.splitlines()[-1]))
    ran = {peer: runs[0] for peer, runs in found.items() if runs[0]["seconds"]}
    for name in ("loss", "gradient"):
        values = {peer: r[name] for peer, r in ran.items()}
        if max(values.values()) > 1.0001 * min(values.values()):
            sys.exit(f"not the same {name}: {values}")
    one = next(iter(found.values()))[0]
    print(one["device"], *(f"{name} {version}" for name, version in one["versions"].items()))
    print(f"N = {a.rows:,}, d = {a.width}, chunks of {a.chunk} images; {a.rounds} rounds\n")
    print(table(found))
    if a.out:
        asked = {k: getattr(a, k) for k in ("rows", "width", "chunk", "calls")}
        a.out.write_text(json.dumps({**asked, "peers": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
