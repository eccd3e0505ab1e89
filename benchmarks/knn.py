"""kNN over a large bank on CPU: memory and queries a second, against scikit-learn and faiss.

    pip install faiss-cpu && python -m benchmarks.knn [--bank 1000000] [--queries 512] [--out FILE]

The task is the same for all: from unit-length features in memory, predict the class of every query
by the majority of its k nearest. A peer's own copy or index of the bank is made before the clock
starts (faiss copies it); ours has none and streams the bank. Every measurement is a process of its
own, and the peers take turns, so that a drift of the machine falls on all of them alike. Memory is
the peak of the whole process, interpreter and libraries included, less the bytes of the bank.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

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
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return {
        "prepare_seconds": ready - begin,
        "seconds": end - ready,
        "memory_beyond_bank": peak - x.nbytes,
        "predicted": predicted.tolist(),
    }


def main() -> None:
    """Runs the peers in turn, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--measure", choices=PEERS, help="this peer, once, in this process")
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(a.measure, a.bank, a.queries, a.width, a.k)))
        return
    found = {peer: [] for peer in a.peers}
    for _ in range(a.rounds):
        for peer in a.peers:
            command = [sys.executable, "-m", "benchmarks.knn", "--measure", peer]
            for name in ("bank", "queries", "width", "k"):
                command += [f"--{name}", str(getattr(a, name))]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[peer].append(json.loads(done.stdout.splitlines()[-1]))
    report = table(found, a.queries)
    cores = len(os.sched_getaffinity(0))
    print(f"{a.bank:,} × {a.width} float32, {a.queries} queries, k = {a.k}, {cores} cores,")
    print(f"median (least … most) of {a.rounds} rounds\n\n{report}")
    if a.out:
        for runs in found.values():
            for run in runs:
                del run["predicted"]
        asked = {name: getattr(a, name) for name in ("bank", "queries", "width", "k")}
        a.out.write_text(json.dumps({**asked, "cores": cores, "runs": found}, indent=2) + "\n")


def table(found: dict[str, list[dict]], queries: int) -> str:
    """Markdown: a line for each peer.

    The ratio is that of the median seconds to those of the first peer; in brackets the range of the
    ratios within a round.
    """
    median = statistics.median

    base = next(iter(found.values()))
    lines = [
        "| | seconds | queries/s | memory beyond the bank (GiB) | time / ours | same predictions |",
        "|---|---|---|---|---|---|",
    ]
    for peer, runs in found.items():
        seconds = [r["seconds"] for r in runs]
        ratios = [r["seconds"] / b["seconds"] for r, b in zip(runs, base, strict=True)]
        ratio = median(seconds) / median(b["seconds"] for b in base)
        memory = max(r["memory_beyond_bank"] for r in runs) / 2**30
        same = [p == q for p, q in zip(runs[0]["predicted"], base[0]["predicted"], strict=True)]
        lines.append(
            f"| {peer} | {median(seconds):.2f} ({min(seconds):.2f} … {max(seconds):.2f}) "
            f"| {queries / median(seconds):,.0f} | {memory:.2f} "
            f"| × {ratio:.2f} ({min(ratios):.2f} … {max(ratios):.2f}) "
            f"| {100 * sum(same) / len(same):.1f} % |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
