"""What a GPU is asked for, in order, and the search for the largest batch that fits."""

import json
from collections.abc import Callable

REMAT = ("simclr_resnet50", "mae_vit_b16")  # cases that run with rematerialisation as well


def plan(cases: list[str], peers: list[str], parts: list[str]) -> list[tuple[str, str, str]]:
    """(part, case, peer) of every measurement, in order."""
    todo = []
    for case in cases:
        todo += [("steps", case, peer) for peer in peers]
        todo += [("profile", case, "ssl_jax")]
    todo += [("resident", case, "ssl_jax") for case in cases if case == "resnet18_32px"]
    todo += [("remat", case, "ssl_jax") for case in cases if case in REMAT]
    todo += [("again", case, peer) for _ in range(2) for case in cases for peer in peers]
    todo += [("largest", case, peer) for case in cases for peer in peers]
    return [one for one in todo if one[0] in parts]


def largest(run: Callable[[str], dict], text: str, gib: float | None) -> dict:
    """The largest batch that fits, of the config's times powers of two; four processes at most.

    Memory grows by the same bytes with every image, so two batches tell what any other takes.

    Args:
      run: JSON of a config -> what a measurement of it found: 'memory' or 'program' (bytes), and
        'limit' (bytes there are), or 'failed'.
      text: JSON of the config.
      gib: GiB that there are, or None: as the device says.

    Returns:
      {'batch': the largest that ran, 0 if none did; 'memory': {batch: bytes, or why it failed};
      'next': bytes that the double would take, by the line; 'limit': bytes there are}.
    """
    c = json.loads(text)
    first, memory, limit = c["batch"], {}, gib and gib * 2**30

    def fits(k):
        """Runs k times the first batch."""
        nonlocal limit
        c["batch"] = k * first
        c["data"]["examples"] = 100 * c["batch"]
        found = run(json.dumps(c))
        limit = limit or found.get("limit")
        memory[c["batch"]] = found.get("failed") or found.get("program") or found["memory"]
        return "failed" not in found and (not gib or memory[c["batch"]] <= limit)

    def line(k):
        """Bytes for k times the first batch."""
        one, two = memory[first], memory[2 * first]
        return one + (k - 1) * (two - one)

    best, after = 0, None
    if fits(1):
        best = 1
        if fits(2):
            best = guess = 2
            grows = limit and line(2) > line(1)
            while grows and line(2 * guess) <= limit:
                guess *= 2
            if guess > 2 and fits(guess):
                best = guess
            elif guess > 4 and fits(guess // 2):
                best = guess // 2
            # The line errs: XLA saves memory where it is short of it.
            if best == guess and grows and line(2 * best) <= 1.1 * limit and fits(2 * best):
                best *= 2
            after = line(2 * best)
    return {"batch": best * first, "memory": memory, "next": after, "limit": limit}
