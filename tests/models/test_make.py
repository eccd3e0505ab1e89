"""Encoders by configuration."""

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from kit import programs

from ssl_jax import models
from ssl_jax.errors import UserError


def test_fields_come_from_name_and_configuration():
    config = ml_collections.ConfigDict(
        {"name": "resnet50", "blocks": [1, 2], "width": 8, "stem": "cifar", "dtype": "bfloat16"}
    )
    net = models.make(config)
    assert (net.bottleneck, net.blocks, net.width, net.stem) == (True, (1, 2), 8, "cifar")
    assert net.dtype == jnp.bfloat16
    assert net.features == 8 * 2 * 4
    assert net.axis is None and net.clone(axis="batch").axis == "batch"
    assert config.name == "resnet50"  # the configuration is left as it was


def test_vit_by_name():
    net = models.make({"name": "vit_small", "heads": 12, "patch": 8})
    assert (net.width, net.depth, net.heads, net.patch, net.features) == (384, 12, 12, 8, 384)
    assert net.dtype == jnp.float32


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, "model.name: unknown None"),
        ({"name": "resnet8"}, "Did you mean resnet18"),
        ({"name": "vit_smal"}, "Did you mean vit_small"),
        ({"name": "resnet18", "widht": 32}, "model.widht: resnet18 has no such field. Did"),
        ({"name": "resnet18", "axis": "batch"}, "model.axis"),
        ({"name": "vit", "dtype": "float16"}, "Did you mean bfloat16"),
        ({"name": "vit", "dtype": "float64"}, "needs JAX_ENABLE_X64=1"),
    ],
)
def test_user_errors(config, message):
    with pytest.raises(UserError, match=message):
        models.make(config)


@pytest.mark.parametrize(
    "config", [{"name": "resnet", "blocks": (1,), "width": 8}, {"name": "vit", "depth": 1}]
)
def test_in_float64_every_number_is(config):
    with programs.float64():
        net = models.make({**config, "dtype": "float64"})
        x = jnp.zeros((2, 224, 224, 3), jnp.float32)
        y, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves((y, variables))} == {jnp.dtype("float64")}
