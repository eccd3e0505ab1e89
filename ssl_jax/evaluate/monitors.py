"""What a pretraining looks at as it goes: collapse, kNN, a linear probe."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.evaluate.features import encoder, representation
from ssl_jax.evaluate.health import collapse
from ssl_jax.evaluate.probes import knn, linear
from ssl_jax.train import session
from ssl_jax.train.experiment import Experiment
from ssl_jax.train.state import TrainState


class Look(NamedTuple):
    """Features of some images, for the monitors.

    Attributes:
      bank: features float32 [n, d] and labels int32 [n] to learn from.
      query: the same to judge on; None where there is nothing to judge.
    """

    bank: tuple[np.ndarray, np.ndarray]
    query: tuple[np.ndarray, np.ndarray] | None


def look(e: Experiment, encode, state: TrainState) -> Look:
    """What the monitors read: features of a part of the images, by the encoder as it is now."""
    variables = encoder.of_method(e.method, None).variables(state.params, state.state)
    bank, query = representation.split(
        e.train, e.test, e.config.monitor.train_examples, e.config.monitor.test_examples
    )

    def extract(part):
        return encoder.extract(encode, variables, *part, e.config.evaluate.batch, e.cluster)

    found = extract(bank)
    if query is None or not np.isfinite(found[0]).all():
        return Look(found, None)
    test = extract(query)
    return Look(found, test if representation.labelled(found, test) else None)


def make(e: Experiment) -> tuple[session.Monitor, ...]:
    """Collapse, always; kNN and a linear probe where labels exist."""

    def collapsed(seen: Look, logged: Mapping[str, float]) -> dict[str, Any]:
        found = collapse.measure(seen.bank[0])
        measured = {k: float(found[k]) for k in representation.MONITORS}
        ratio, rank = measured["feature_std_ratio"], measured["effective_rank"]
        alarm = collapse.alarm(ratio, rank, seen.bank[0].shape[1])
        if not alarm and "embedding_std" in logged:
            alarm = collapse.embedding_alarm(logged["embedding_std"], logged["embedding_rank"])
        return {**measured, "alarm": alarm} if alarm else measured

    def near(seen: Look, logged: Mapping[str, float]) -> dict[str, Any]:
        if seen.query is None:
            return {}
        scores = knn.classify(*seen.bank, seen.query[0], e.train.classes)
        return {"knn_top1": knn.accuracy(scores, seen.query[1])["top1"]}

    def separable(seen: Look, logged: Mapping[str, float]) -> dict[str, Any]:
        if seen.query is None or e.config.monitor.linear <= 0:
            return {}
        # Anew at every look, on features alone: no gradient reaches the encoder.
        c = e.config.monitor.linear
        fitted = linear.probe_at(*seen.bank, *seen.query, e.train.classes, c)
        return {"linear_top1": fitted["top1"]}

    return (
        session.Monitor("collapse", collapsed),
        session.Monitor("knn", near),
        session.Monitor("linear", separable),
    )
