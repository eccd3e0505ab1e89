import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.methods.parts import ema
from ssl_jax.optim import schedules


def test_hand_computed():
    target = {"a": jnp.array([1.0, 2.0]), "b": [jnp.array(4.0)]}
    online = {"a": jnp.array([3.0, 2.0]), "b": [jnp.array(0.0)]}
    new = ema.update(target, online, 0.75)
    np.testing.assert_allclose(new["a"], [1.5, 2.0])
    np.testing.assert_allclose(new["b"][0], 3.0)


def test_a_traced_momentum_and_its_ends():
    target, online = jnp.array([1.0, 0.1]), jnp.array([3.0, 0.3])
    momentum = schedules.cosine(0.0, 1.0, 10)
    update = jax.jit(lambda step: ema.update(target, online, momentum(step)))
    np.testing.assert_array_equal(update(0), online)
    np.testing.assert_array_equal(update(10), target)
    np.testing.assert_allclose(update(5), (target + online) / 2, rtol=1e-6)


def test_the_target_stays_float32_and_small_updates_are_not_lost():
    target, online = jnp.ones(1), jnp.full(1, 2.0, jnp.bfloat16)
    for _ in range(100):
        target = ema.update(target, online, 0.9999)
    assert target.dtype == jnp.float32
    np.testing.assert_allclose(target, 2 - 0.9999**100, rtol=1e-5)


def test_no_gradient_flows():
    def f(x):
        return jnp.sum(ema.update(x["target"], x["online"], 0.5) ** 2)

    grads = jax.grad(f)({"target": jnp.ones(2), "online": jnp.ones(2)})
    assert all((g == 0).all() for g in jax.tree.leaves(grads))
