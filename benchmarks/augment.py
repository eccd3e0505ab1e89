"""One random view of every image: ours against kornia, Pillow in processes, dm-pix and augmax.

    pip install -e '.[bench]'
    python -m benchmarks.augment [--cases 32 96 224] [--peers ssl_jax kornia Pillow dm-pix augmax]
                                 [--rounds 5] [--seconds 1.5] [--workers 2] [--out FILE]

The views are those of configs/simclr.py: `cifar10` at 32 pixels (no blur), `imagenet` at 96 and at
256 → 224. uint8 images in memory go in, float32 views in [0, 1] come out; all peers get the same
probabilities, strengths, interpolation and blur kernel from the policy. What a peer lacks stands
below the table. Ours runs as in the training step: mapped over the devices, on CPU one a core.
dm-pix and augmax are mapped the same way; Pillow has `workers` processes, each its share of the
batch, which write into shared memory, as torch's DataLoader does.

Every peer is a process of its own, so that thread pools do not meet; all have the malloc settings
of host.keep_memory_pages. In every round each of them works for `seconds` in turn while the others
sleep, so that a drift of the machine falls on all alike.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time

from benchmarks import augment_peers, harness, tables

PEERS = {  # and what they leave out of the policy
    "ssl_jax": "",
    "kornia": "one order of the four colour operations for a whole batch",
    "Pillow": "",
    "dm-pix": "crop (here jax.image), probabilities (here jnp.where), brightness factors "
    "(it adds), orders of the colour operations (here one)",
    "augmax": "aspects of the crop, bicubic, orders of the colour operations, contrast of an "
    "image's mean, saturation (computed, not used), sigmas (one, 3 taps)",
}
CASES = {  # size of the view: preset's policy, stored size, batch
    32: ("simclr_cifar", 32, 256),
    96: ("simclr", 96, 256),
    224: ("simclr", 256, 128),
}


def noise(stored: int, batch: int):
    """Images to work on: uint8 [batch, stored, stored, 3]. What they show takes no time."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (batch, stored, stored, 3), dtype=np.uint8)


def serve(peer: str, policy: dict, stored: int, batch: int, seconds: float, workers: int) -> None:
    """Makes views whenever a line comes in; answers each with the seconds of every call.

    The first answer, before any line, says on what the peer runs, and which versions.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print does not mix with the answers
    images = noise(stored, batch)
    if peer == "kornia":
        run, facts = augment_peers.kornia(policy, images)
    elif peer == "Pillow":
        run, facts = augment_peers.pillow(policy, images, workers)
    else:
        run, facts = augment_peers.mapped(peer, policy, images)
    run(0)
    start = time.perf_counter()
    run(1)
    calls = max(3, math.ceil(seconds / (time.perf_counter() - start)))
    print(json.dumps(facts), file=answers)
    done = 2
    for _ in sys.stdin:
        taken = []
        for i in range(done, done + calls):
            start = time.perf_counter()
            run(i)
            taken.append(time.perf_counter() - start)
        done += calls
        print(json.dumps(taken), file=answers)


def policy_of(case: int) -> dict:
    """The preset's policy as plain numbers, the blur radius worked out."""
    from ssl_jax.augment import policies

    p = policies.make(CASES[case][0], case)
    return p._replace(blur_radius=policies.blur_radius(p))._asdict()


def start(peer: str, case: int, seconds: float, workers: int) -> subprocess.Popen:
    """A process that serves this peer."""
    asked = {"policy": policy_of(case), "seconds": seconds, "workers": workers}
    asked |= dict(zip(("stored", "batch"), CASES[case][1:], strict=True))
    # On a GPU all of them share the card.
    environment = {**os.environ, **harness.MALLOC, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.augment", "--serve", peer, json.dumps(asked)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def answer(peer: str, process: subprocess.Popen):
    """The next line of a process.

    Raises:
      SystemExit: it has ended.
    """
    line = process.stdout.readline()
    if not line:
        sys.exit(f"{peer} failed")
    return json.loads(line)


def measure(case: int, a: argparse.Namespace) -> dict[str, dict]:
    """{peer: {'device', 'versions', 'rounds': seconds of every call, round by round}}."""
    found, processes = {}, {}
    try:
        for peer in a.peers:  # one after the other: they compile
            processes[peer] = start(peer, case, a.seconds, a.workers)
            found[peer] = {**answer(peer, processes[peer]), "rounds": []}
        for _ in range(a.rounds):
            for peer, process in processes.items():
                process.stdin.write("\n")
                process.stdin.flush()
                found[peer]["rounds"].append(answer(peer, process))
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait()
    return found


def lines(found: dict[int, dict[str, dict]]) -> list[list[str]]:
    """A line for each peer of each case; a round's figure is the median of its calls.

    The ratio is that of our median over the rounds to the peer's.
    """
    rows = []
    for case, peers in found.items():
        _, stored, batch = CASES[case]
        rates = {p: [batch / statistics.median(r) for r in f["rounds"]] for p, f in peers.items()}
        base = next(iter(rates.values()))
        pixels = f"{case}" if stored == case else f"{stored} → {case}"
        for peer, rate in rates.items():
            figures = (tables.middle(rate, 0), tables.ratio(base, rate))
            rows.append([pixels, batch, peer, peers[peer]["device"], *figures])
    return rows


def main() -> None:
    """Runs the cases, prints the table, writes JSON."""
    parser = harness.parser(__doc__, rounds=5)
    parser.add_argument("--cases", nargs="+", type=int, choices=CASES, default=list(CASES))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--seconds", type=float, default=1.5, help="of a peer in a round")
    parser.add_argument("--workers", type=int, default=2, help="processes of Pillow")
    parser.add_argument("--serve", nargs=2, metavar=("PEER", "JSON"), help="in this process")
    a = harness.parse(parser, cases=[32], seconds=0.1)
    if a.serve:
        serve(a.serve[0], **json.loads(a.serve[1]))
        return
    before = os.getloadavg()[0]
    found = {case: measure(case, a) for case in a.cases}
    known = {}
    for f in [f for peers in found.values() for f in peers.values()]:
        known |= f["versions"]
    asked = harness.setting("benchmarks.augment", before, known)
    print(f"median (least … most) of {a.rounds} rounds\n")
    columns = ("pixels", "batch", "", "on", "images/s", "ours / theirs")
    print(tables.table(columns, lines(found)) + "\n")
    print(*(f"{peer} is without: {PEERS[peer]}." for peer in a.peers if PEERS[peer]), sep="\n")
    harness.write(a.out, {**asked, "cases": found})


if __name__ == "__main__":
    main()
