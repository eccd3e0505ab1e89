"""Scores of prototypes: leaves that a probe can restore, and known numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit import tiny

from ssl_jax import models
from ssl_jax.contract.method import Context, Run
from ssl_jax.methods import METHODS
from ssl_jax.methods.parts import image_encoder, prototypes
from ssl_jax.models import heads

ONLINE = image_encoder.online("projector")


def test_scores_behind_a_projector():
    # A projector that changes nothing, and two prototypes: the first two axes.
    projector = heads.MLP(widths=(3,), norms=("none",), biases=(False,))
    params = {"projector": {"linear0": {"kernel": jnp.eye(3)}}, "prototypes": jnp.eye(3, 2)}
    features = np.array([[2, 1, 0], [0, 3, 1], [0, 1, 0], [-1, 2, 9]], np.float32)
    p = prototypes.behind(projector, ONLINE, lambda params, state: [params["prototypes"]])
    found = p.scores(p.variables(params, {}), features)
    assert list(found) == ["prototypes"]
    np.testing.assert_array_equal(found["prototypes"], features[:, :2])
    kernels = [jnp.eye(3, 2), 2 * jnp.eye(3)]
    p = prototypes.behind(projector, ONLINE, lambda params, state: kernels)
    found = p.scores(p.variables(params, {}), features)
    assert list(found) == ["head 1", "head 2"]
    np.testing.assert_array_equal(found["head 2"], 2 * features)


def test_a_centre_is_taken_off_the_outputs():
    projector = heads.MLP(widths=(2,), norms=("none",), biases=(False,))
    params = {"projector": {"linear0": {"kernel": jnp.eye(2)}}}
    state = {"centre": jnp.array([0.0, 10.0])}
    features = np.array([[1, 2], [3, 20]], np.float64)
    for centre, best in ((None, [1, 1]), (lambda params, state: state["centre"], [0, 1])):
        p = prototypes.outputs(projector, ONLINE, centre)
        found = p.scores(p.variables(params, state), features)["prototypes"]
        np.testing.assert_array_equal(np.argmax(found, 1), best)


SIZES = {
    "swav": {"prototypes": 12},
    "dino": {"prototypes": 32},
    "sela_v2": {"head 1": 6, "head 2": 5, "head 3": 4},
    "deepcluster_v2": {"head 1": 6, "head 2": 5, "head 3": 4},
}


@pytest.mark.parametrize("name", [*METHODS])
def test_prototypes_of_every_method_that_has_them(name):
    """Of a fresh state, without running it: the leaves are the state's own, and the shapes fit."""
    config = tiny.config(name)
    method = METHODS[name](config, Run(64, 16, 4, 12))
    if name not in SIZES:
        assert method.prototypes is None
        return
    zero = jnp.zeros((), jnp.int32)
    index = jnp.arange(16)
    batch = {"image": jnp.zeros((16, 28, 28, 1), jnp.uint8), "index": index, "label": index}

    def first(key):
        ctx = Context(zero, zero, jnp.zeros(()), key, None)
        return method.init(key, method.views(key, batch, ctx))

    params, state = jax.eval_shape(first, jax.random.key(0))
    picked = method.prototypes.variables(params, state)
    leaves = {id(x) for x in jax.tree.leaves((params, state))}
    assert all(id(x) in leaves for x in jax.tree.leaves(picked))
    features = jax.ShapeDtypeStruct((20, models.make(config.model).features), jnp.float32)
    found = jax.eval_shape(method.prototypes.scores, picked, features)
    assert {k: x.shape for k, x in found.items()} == {k: (20, n) for k, n in SIZES[name].items()}
    assert all(x.dtype == jnp.float32 for x in found.values())
    if name == "dino":
        target = state["target"]["projector"]
        assert picked["projector"]["params"] is target and picked["centre"] is state["centre"]
        config.method.encoder = "online"
        online = METHODS[name](config, Run(64, 16, 4, 12)).prototypes.variables(params, state)
        assert online["projector"]["params"] is params["projector"] and "centre" not in online
