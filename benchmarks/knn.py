"""kNN over a large bank on CPU: memory and queries a second, against scikit-learn and faiss.

    pip install faiss-cpu && python -m benchmarks.knn [--bank 1000000] [--queries 512] [--out FILE]

The task is the same for all: from unit-length features in memory, predict the class of every query
by the majority of its k nearest. A peer's own copy or index of the bank is made before the clock
starts (faiss copies it); ours has none and streams the bank. Every measurement is a process of its
own, and the peers take turns, so that a drift of the machine falls on all of them alike. Memory is
the peak of the whole process, interpreter and libraries included, less the bytes of the bank.
"""

import json
import statistics
import time

from benchmarks import harness, tables

PEERS = ("ssl_jax", "faiss", "sklearn euclidean", "sklearn cosine")
CLASSES = 1000


def features(bank: int, queries: int, width: int):
    """Unit-length features around a centre for each class, in random order.

    Returns:
      bank float32 [n, d], its labels int32 [n], queries float32 [m, d].
    """
    import numpy as np

    r = np.random.default_rng(0)
    centres = r.standard_normal((CLASSES, width), dtype=np.float32)
    labels = r.integers(0, CLASSES, bank + queries).astype(np.int32)
    x = np.empty((bank, width), np.float32)
    y = np.empty((queries, width), np.float32)
    start = 0
    for part in (x, y):  # block by block: nothing but the bank itself is large
        for low in range(0, len(part), 8192):
            block = part[low : low + 8192]
            r.standard_normal(out=block, dtype=np.float32)
            block *= 3
            block += centres[labels[start + low : start + low + len(block)]]
            block /= np.linalg.norm(block, axis=1, keepdims=True)
        start += len(part)
    return x, labels[:bank], y


def prepare(peer: str, x, labels, k: int):
    """A function from queries [m, d] to predictions int [m], with its index made and compiled."""
    import numpy as np

    if peer == "ssl_jax":
        from ssl_jax.evaluate.probes import knn, neighbours

        def predict(y, bank=x):
            near = neighbours.by_cosine(bank, y, k)
            return knn.plain(near, labels, CLASSES, k).argmax(1)

        # Compiles on two blocks of the bank; the shapes are those of the measurement.
        return predict, lambda y: predict(y, x[: 2 * neighbours.BANK_BLOCK])
    if peer == "faiss":
        import faiss

        index = faiss.IndexFlatIP(x.shape[1])
        index.add(x)

        def predict(y):
            _, near = index.search(y, k)
            return np.array([np.bincount(labels[row], minlength=CLASSES).argmax() for row in near])

        return predict, lambda y: predict(y[:8])
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(k, algorithm="brute", metric=peer.split()[1]).fit(x, labels)
    return classifier.predict, lambda y: classifier.predict(y[:8])


def measure(peer: str, bank: int, queries: int, width: int, k: int) -> dict:
    """Seconds, memory in bytes and predictions of one peer, in this process."""
    from ssl_jax.processes import host

    if peer == "ssl_jax":  # as ssl_jax.main does
        host.keep_memory_pages()
        host.set_cpu_devices(host.cpu_devices(queries, 1, host.Cluster(1, 0, 1)))
    x, labels, y = features(bank, queries, width)
    begin = time.perf_counter()
    predict, warm = prepare(peer, x, labels, k)
    warm(y)
    ready = time.perf_counter()
    predicted = predict(y)
    end = time.perf_counter()
    return {
        "prepare_seconds": ready - begin,
        "seconds": end - ready,
        "memory_beyond_bank": harness.proc("VmHWM") - x.nbytes,
        "predicted": predicted.tolist(),
    }


def lines(found: dict[str, list[dict]], queries: int) -> list[list[str]]:
    """A line for each peer; its ratio is that of the seconds to those of the first."""
    base = next(iter(found.values()))
    rows = []
    for peer, runs in found.items():
        seconds = [r["seconds"] for r in runs]
        memory = max(r["memory_beyond_bank"] for r in runs) / 2**30
        same = [p == q for p, q in zip(runs[0]["predicted"], base[0]["predicted"], strict=True)]
        rows.append([peer, tables.middle(seconds, 2)])
        rows[-1] += [f"{queries / statistics.median(seconds):,.0f}", f"{memory:.2f}"]
        rows[-1] += [tables.ratio(seconds, [b["seconds"] for b in base])]
        rows[-1] += [f"{100 * sum(same) / len(same):.1f} %"]
    return rows


COLUMNS = ("", "seconds", "queries/s", "memory beyond the bank (GiB)", "time / ours")
COLUMNS += ("same predictions",)
SIZES = ("bank", "queries", "width", "k")


def main() -> None:
    """Runs the peers in turn, prints the table, writes JSON."""
    parser = harness.parser(__doc__, rounds=5)
    parser.add_argument("--bank", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--measure", choices=PEERS, help="this peer, once, in this process")
    a = harness.parse(parser, bank=20_000, queries=64)
    if a.measure:
        print(json.dumps(measure(a.measure, a.bank, a.queries, a.width, a.k)))
        return

    def launch(peer):
        return harness.measured("benchmarks.knn", "--measure", peer, *harness.again(a, *SIZES))

    found = harness.in_turn(a.peers, a.rounds, launch)
    print(f"{a.bank:,} × {a.width} float32, {a.queries} queries, k = {a.k}, ", end="")
    print(f"{harness.cores()} cores,\nmedian (least … most) of {a.rounds} rounds\n")
    print(tables.table(COLUMNS, lines(found, a.queries)))
    asked = {name: getattr(a, name) for name in SIZES} | {"cores": harness.cores()}
    for runs in found.values():
        for run in runs:
            del run["predicted"]
    harness.write(a.out, {**asked, "runs": found})


if __name__ == "__main__":
    main()
