"""What a training's steps take: batches read ahead, or row numbers of a set that is on the devices.

The batches are the same, row for row.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from ssl_jax.contract.source import Source
from ssl_jax.data import loader, resident
from ssl_jax.devices import layout
from ssl_jax.processes import host, talk


class Order(NamedTuple):
    """Which rows a training takes, and where they go.

    Attributes:
      source: the examples.
      seed: of their order.
      batch, accumulate: rows of a step, and its micro-batches.
      start, stop: steps done before and after.
      at_once: steps of a call.
      mesh, parallel: the devices, and how a step is mapped over them.
      cluster: the processes.
      threads, ahead, patience: see `loader.batches`.
      meeting: where the processes wait for each other before the first batch.
    """

    source: Source
    seed: int
    batch: int
    accumulate: int
    start: int
    stop: int
    at_once: int
    mesh: Any
    parallel: str
    cluster: host.Cluster
    threads: int | None
    ahead: int
    patience: float
    meeting: str


class Feed(NamedTuple):
    """What is read, to be closed when training ends, and what a call of the step takes of it."""

    batches: loader.Batches
    calls: Iterator[Any]


def streamed(o: Order) -> Feed:
    """Examples that are read batch by batch, ahead of the steps: batches on the devices."""
    batches = loader.batches(
        o.source,
        seed=o.seed,
        batch=o.batch,
        accumulate=o.accumulate,
        start=o.start,
        stop=o.stop,
        process=o.cluster.process,
        processes=o.cluster.processes,
        threads=o.threads,
        ahead=o.ahead,
        patience=o.patience,
        here=o.cluster.here,
    )

    def calls() -> Iterator[dict[str, jax.Array]]:
        for number, batch in enumerate(batches):
            if number == 0:  # all have compiled, opened their logs and read their rows
                talk.meet(o.meeting)
            split = {k: x.reshape(o.accumulate, -1, *x.shape[1:]) for k, x in batch.items()}
            yield layout.put_batch(split, o.mesh, o.parallel)

    return Feed(batches, calls())


def kept(o: Order) -> Feed:
    """Examples that are read once and stay: (the set, rows of a call's steps) on the devices."""
    pieces = resident.pieces(
        o.source,
        threads=o.threads,
        ahead=o.ahead,
        patience=o.patience,
        here=o.cluster.here,
    )

    def calls() -> Iterator[tuple[dict[str, jax.Array], jax.Array]]:
        whole = resident.collect(o.source, pieces)
        if whole is None:
            return
        whole = layout.put_whole(whole, o.mesh)
        talk.meet(o.meeting)
        for rows in resident.calls(
            o.source.examples,
            seed=o.seed,
            batch=o.batch,
            accumulate=o.accumulate,
            start=o.start,
            stop=o.stop,
            at_once=o.at_once,
            process=o.cluster.process,
            processes=o.cluster.processes,
        ):
            yield whole, layout.put_batch(rows, o.mesh, o.parallel)

    return Feed(pieces, calls())
