"""Update rules, as the official codes have them: SGD, AdamW and the kinds of LARS."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssl_jax.optim import schedules

NAMES = ("sgd", "adamw", "lars", "lars_google", "larc", "larc_clip")


class RuleState(NamedTuple):
    """State of one group's rule.

    Attributes:
      count: int32 [], updates so far, the argument of the group's schedules.
      inner: state of the rule: momentum buffers and moments, float32.
    """

    count: jax.Array
    inner: Any


def rule(
    fields: Mapping[str, Any],
    learning_rate: schedules.Schedule,
    weight_decay: schedules.Schedule | float,
    freeze_steps: int = 0,
) -> optax.GradientTransformation:
    """The rule of one group, for any schedules.

    Args:
      fields: name, momentum, nesterov, betas, eps, trust_coefficient, decay_exclude and
        trust_exclude, as `optimizers.FIELDS` has them; others are not looked at.
      learning_rate: step -> float32 [].
      weight_decay: the same, or a number.
      freeze_steps: updates at the start that change nothing but the count.

    Returns:
      a transformation with a RuleState.
    """

    def at(count):
        decay = weight_decay(count) if callable(weight_decay) else weight_decay
        now = descent(fields, learning_rate(count), decay)
        if freeze_steps:
            now = optax.conditionally_mask(now, lambda step: step >= freeze_steps)
        return now

    def init(params):
        count = jnp.zeros((), jnp.int32)
        return RuleState(count, at(count).init(params))

    def update(updates, state, params=None):
        updates, inner = at(state.count).update(updates, state.inner, params)
        return updates, RuleState(optax.safe_increment(state.count), inner)

    return optax.GradientTransformation(init, update)


def descent(
    fields: Mapping[str, Any], lr: jax.Array, decay: jax.Array | float
) -> optax.GradientTransformation:
    """One step of the rule `fields['name']`.

    With gradient g, parameter p, momentum m, trust coefficient η, and a buffer v that starts at 0:

      'sgd': v ← m v + g + w p;  p ← p − lr v. As torch.optim.SGD.
      'adamw': p ← p − lr (Adam's direction + w p). As torch.optim.AdamW: lr scales the decay.
      'lars': u = g + w p;  v ← m v + η |p|/|u| u;  p ← p − lr v. The LARS of Barlow Twins and
        VICReg (main.py), MoCo v3 (moco/optimizer.py), MAE (util/lars.py), DINO (utils.py) and BYOL
        (utils/optimizers.py).
      'lars_google': u = g + w p;  v ← m v + lr η |p|/|u| u;  p ← p − v. SimCLR's
        (lars_optimizer.py, classic_momentum): lr is inside the buffer, past gradients keep theirs.
      'larc': 'sgd' with η |p|/(|g| + w |p| + eps) (g + w p) in place of g + w p. Apex LARC with
        clip=False, as in SwAV.
      'larc_clip': the same with the factor min(·/lr, 1), so that the adapted rate is at most lr:
        apex LARC's default, and the LARS of solo-learn (utils/lars.py).

    The trust ratio is 1 where |p| or the other norm is 0 (LARC: and no weight decay there).
    With `nesterov`, what is added to v is added to m v once more before it leaves.

    Args:
      fields: as for `rule`.
      lr, decay: learning rate and weight decay w of this step, float32 [] or numbers.
    """
    decayed = functools.partial(outside, fields["decay_exclude"])
    adapted = functools.partial(outside, fields["trust_exclude"])
    eta, eps = fields["trust_coefficient"], fields["eps"]
    add_decay = optax.add_decayed_weights(decay, decayed)
    # Just Google's and FB's ratio: 1 where either norm is 0, nothing added to the denominator.
    trust = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=eta), adapted)
    momentum = optax.trace(fields["momentum"], fields["nesterov"])
    step = optax.scale(-lr)
    match fields["name"]:
        case "sgd":
            return optax.chain(add_decay, momentum, step)
        case "adamw":
            b1, b2 = fields["betas"]
            return optax.chain(optax.scale_by_adam(b1, b2, eps), add_decay, step)
        case "lars":
            return optax.chain(add_decay, trust, momentum, step)
        case "lars_google":
            return optax.chain(add_decay, trust, step, momentum)
        case "larc":
            return optax.chain(larc(eta, decay, decayed, adapted, eps), momentum, step)
        case "larc_clip":
            return optax.chain(larc(eta, decay, decayed, adapted, eps, lr), momentum, step)
    raise ValueError(f"no rule for {fields['name']!r}")


def larc(
    eta: float,
    decay: jax.Array | float,
    decayed: Callable[[Any], Any],
    adapted: Callable[[Any], Any],
    eps: float = 1e-8,
    largest: jax.Array | None = None,
) -> optax.GradientTransformation:
    """Layer-wise adaptive rate control: η |p| / (|g| + w |p| + eps) · (g + w p).

    Unlike LARS's, the ratio has the sum of the norms below, not the norm of the sum. Where |p| or
    |g| is 0, g stays as it is, without weight decay.

    Args:
      eta, decay: η and w.
      decayed, adapted: params -> pytree of bool; elsewhere w is 0, or the ratio 1.
      eps: added to the denominator.
      largest: the ratio becomes min(ratio / largest, 1); None: it is not clipped.

    Source: NVIDIA/apex apex/parallel/LARC.py (eps 1e-8).
    """

    def update(updates, state, params=None):
        def adapt(g, p, is_decayed, is_adapted):
            w = decay if is_decayed else 0.0
            if not is_adapted:
                return g + w * p
            p_norm, g_norm = jnp.linalg.norm(p.ravel()), jnp.linalg.norm(g.ravel())
            ratio = eta * p_norm / (g_norm + w * p_norm + eps)
            if largest is not None:
                ratio = jnp.minimum(ratio / largest, 1.0)
            return jnp.where((p_norm > 0) & (g_norm > 0), ratio * (g + w * p), g)

        return jax.tree.map(adapt, updates, params, decayed(params), adapted(params)), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def clip_per_parameter(limit: float) -> optax.GradientTransformation:
    """Each parameter's gradient times min(1, limit / (its norm + 1e-6)).

    Source: facebookresearch/dino utils.py, clip_gradients.
    """

    def clip(g):
        return g * jnp.minimum(1.0, limit / (jnp.linalg.norm(g.ravel()) + 1e-6))

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))


def outside(patterns: tuple[str, ...], params: Any) -> Any:
    """Pytree of bool like `params`: True where no pattern is found in the parameter's path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(re.search(p, name_of(path)) for p in patterns), params
    )


def name_of(path: tuple) -> str:
    """'encoder/stem/bn/scale' from the path of a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
