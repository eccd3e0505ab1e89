import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.contract.method import Context
from ssl_jax.methods.parts import ema
from ssl_jax.optim import schedules


def at(step, pace=None):
    """The context of a step."""
    return Context(jnp.asarray(step), None, None, None, None, pace)


def test_hand_computed():
    target = {"a": jnp.array([1.0, 2.0]), "b": [jnp.array(4.0)]}
    online = {"a": jnp.array([3.0, 2.0]), "b": [jnp.array(0.0)]}
    new = ema.update(target, online, 0.25)
    np.testing.assert_allclose(new["a"], [1.5, 2.0])
    np.testing.assert_allclose(new["b"][0], 3.0)


def test_a_traced_rate_and_its_ends():
    target, online = jnp.array([1.0, 0.1]), jnp.array([3.0, 0.3])
    rate = ema.rate(0.0, 1.0, 10)
    update = jax.jit(lambda step: ema.update(target, online, rate(at(step))))
    np.testing.assert_array_equal(update(0), online)
    np.testing.assert_array_equal(update(10), target)
    np.testing.assert_allclose(update(5), (target + online) / 2, rtol=1e-6)


def test_the_target_stays_float32_and_small_updates_are_not_lost():
    target, online = jnp.ones(1), jnp.full(1, 2.0, jnp.bfloat16)
    for _ in range(100):
        target = ema.update(target, online, 1 - 0.9999)
    assert target.dtype == jnp.float32
    np.testing.assert_allclose(target, 2 - 0.9999**100, rtol=1e-5)


def test_a_momentum_near_one_moves_at_its_own_speed():
    """100 steps in float32 from 0 to 1 give 1 − m^100. (1 − float32(m) is 1.4e-3 off.)"""
    target, rate = jnp.zeros(1), ema.rate(0.99999, 1.0, 10**9)
    for step in range(100):
        target = ema.update(target, jnp.ones(1), rate(at(step)))
    np.testing.assert_allclose(target, 1 - 0.99999**100, rtol=1e-5)


def test_in_an_extension_the_target_moves_on():
    """At a momentum of 1 it would stand still, and the encoder that is probed with it."""
    rate, steady = ema.rate(0.9, 1.0, 10), ema.rate(0.9, 0.9, 10)
    for schedule, last in (("constant", 0.01), ("cosine", 0.005)):
        pace = schedules.pace(schedules.Extension(4, schedule, 0.1), 10)
        found = [float(rate(at(step, pace(step)))) for step in (0, 5, 10, 12)]
        np.testing.assert_allclose(found, [0.1, 0.05, 0.01, last], rtol=1e-5)
        assert float(steady(at(12, pace(12)))) == np.float32(0.1), "a constant momentum stays"
    assert float(rate(at(10))) == 0


def test_what_is_equal_stays_equal():
    x = jnp.linspace(-2.0, 2.0, 101) ** 3
    for rate in (1e-5, 0.004, 0.3, 0.7, 1.0):
        np.testing.assert_array_equal(ema.update(x, x, rate), x)


def test_micro_batches_share_one_update():
    rate, moved = jnp.float32(1e-5), jnp.zeros(1)
    assert ema.of_micro_batch(rate, 1) is rate
    for _ in range(4):
        moved = ema.update(moved, jnp.ones(1), ema.of_micro_batch(rate, 4))
    np.testing.assert_allclose(moved, rate, rtol=1e-6)
    assert ema.of_micro_batch(jnp.float32(0), 4) == 0 and ema.of_micro_batch(jnp.float32(1), 4) == 1


def test_no_gradient_flows():
    def f(x):
        return jnp.sum(ema.update(x["target"], x["online"], 0.5) ** 2)

    grads = jax.grad(f)({"target": jnp.ones(2), "online": jnp.ones(2)})
    assert all((g == 0).all() for g in jax.tree.leaves(grads))
