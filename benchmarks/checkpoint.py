"""What a checkpoint costs: the wait of the training, the save behind it, manifest and verifying.

    python -m benchmarks.checkpoint [--mib 512] [--rounds 5] [--out FILE]

A state of --mib MiB of random numbers (which do not compress) in 20 arrays is saved, verified and
restored by the library's own functions, each round under a new step. Prints the median and range
over the rounds, in seconds, and the share that the manifest has in the save.
"""

import pathlib
import statistics
import tempfile
import time

from benchmarks import harness, tables

PARTS = {
    "wait": "the training waits (`save` returns)",
    "save": "until the checkpoint has its name",
    "manifest": "of that: the manifest",
    "verify": "verifying it again",
    "restore": "restoring it",
}


def measure(folder: pathlib.Path, mib: int, rounds: int) -> list[dict[str, float]]:
    """Seconds of every part (PARTS), of every round."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ssl_jax.checkpoints import manifest, reading, store, verify
    from ssl_jax.devices import layout
    from ssl_jax.train.state import TrainState

    whole = layout.replicated(layout.mesh())
    draw = np.random.default_rng(0)
    params = [draw.random((mib, 2**18 // 20), np.float32) for _ in range(20)]
    zero = np.int32(0)
    first = TrainState(zero, params, {}, {}, jax.random.key(0), zero, zero)
    state = jax.device_put(first, whole)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)
    found = []
    with store.open_manager(folder, keep=1) as manager:
        for i in range(rounds):
            state = state._replace(step=jax.device_put(jnp.int32(i + 1), whole))
            begun = time.perf_counter()
            store.save(manager, state)
            waited = time.perf_counter()
            manager.wait_until_finished()
            saved = time.perf_counter()
            step = folder / str(i + 1)
            (step / manifest.NAME).unlink()
            bare = time.perf_counter()
            manifest.write(step)
            written = time.perf_counter()
            if verify.damage(step):
                raise SystemExit(f"{step}: {verify.damage(step)}")
            verified = time.perf_counter()
            jax.block_until_ready(reading.restore(manager, i + 1, like))
            ended = time.perf_counter()
            seconds = (waited - begun, saved - begun, written - bare, verified - written)
            found.append(dict(zip(PARTS, (*seconds, ended - verified), strict=True)))
    return found


def main() -> None:
    """Measures and prints the table."""
    parser = harness.parser(__doc__, rounds=5)
    parser.add_argument("--mib", type=int, default=512)
    a = harness.parse(parser, mib=8)
    with tempfile.TemporaryDirectory() as root:
        found = measure(pathlib.Path(root) / "checkpoints", a.mib, a.rounds)
    print(f"a state of {a.mib} MiB, median (range) of {a.rounds} rounds\n")
    rows = []
    for part, name in PARTS.items():
        seconds = [f[part] for f in found]
        per_gib = statistics.median(seconds) * 1024 / a.mib
        rows.append((name, tables.middle(seconds, 2), f"{per_gib:.2f}"))
    print(tables.table(("", "seconds", "per GiB"), rows))
    share = statistics.median(f["manifest"] / f["save"] for f in found)
    print(f"\nthe manifest's share in a save: {share:.0%}")
    harness.write(a.out, {"mib": a.mib, "rounds": found})


if __name__ == "__main__":
    main()
