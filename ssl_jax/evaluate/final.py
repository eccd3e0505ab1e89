"""What a pretraining is judged by at its end: pixels, the untrained encoder, its own."""

import jax

from ssl_jax.evaluate.features import encoder, representation
from ssl_jax.train.experiment import Experiment
from ssl_jax.train.state import TrainState


def pixels(e: Experiment) -> representation.Judged:
    """The baseline of probes on raw pixels."""
    parts = evaluated(e)
    seen = [representation.pixels(part) if part else None for part in parts]
    return representation.without_features(representation.judge(*seen, e.train.classes))


def judge(e: Experiment, encode, state: TrainState) -> dict[str, representation.Judged]:
    """The untrained encoder and the learned one, by the same probes on the same images."""
    fresh = e.create(jax.random.key(e.config.seed))
    select = encoder.of_method(e.method, None).variables
    encoders = {
        "untrained": select(fresh.params, fresh.state),
        "learned": select(state.params, state.state),
    }
    judged = {}
    for name, variables in encoders.items():
        seen = [
            encoder.extract(encode, variables, *part, e.config.evaluate.batch, e.cluster)
            if part
            else None
            for part in evaluated(e)
        ]
        judged[name] = representation.judge(*seen, e.train.classes)
    judged["untrained"] = representation.without_features(judged["untrained"])
    return judged


def evaluated(e: Experiment) -> tuple[representation.Part, representation.Part | None]:
    """The rows that the final probes learn from and are judged on."""
    c = e.config.evaluate
    return representation.split(e.train, e.test, c.train_examples, c.test_examples)
