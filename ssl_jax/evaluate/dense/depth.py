"""Linear regression of log depth on frozen maps.

Simpler than DINOv2's protocol, whose layer spreads its answer over 256 bins of depth (as AdaBins,
Bhat et al. 2021) and also reads the class token: here the layer regresses log depth by least
squares with a ridge. That has an exact optimum, found in one pass: layer and upsampling are linear,
so the normal equations are sums over images.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssl_jax.devices import collectives, layout, mapping
from ssl_jax.errors import UserError
from ssl_jax.evaluate.dense import maps, probe, scores
from ssl_jax.processes import host

RIDGES = tuple(10.0**power for power in range(-5, 2))


class Normal(NamedTuple):
    """Sums over pixels for least squares of log depth z on x, features with a 1 appended.

    Attributes:
      xx: float64 [d + 1, d + 1], Σ x xᵀ.
      xz: float64 [d + 1], Σ x z.
      zz, pixels: Σ z², number of pixels.
    """

    xx: Any
    xz: Any
    zz: Any
    pixels: Any


def normal_sums(rows: maps.Batch, mean: jax.Array, scale: jax.Array) -> Normal:
    """`Normal` of a batch. x at a pixel is the upsampled map, U F with U = U_y ⊗ U_x.

    So Σ x xᵀ = Fᵀ (U_yᵀU_y ⊗ U_xᵀU_x) F and Σ x z = Fᵀ Uᵀ z: nothing of the images' size times d
    is ever made.

    Args:
      rows: images; those with depth −1 do not count.
      mean, scale: float32 [d].

    Returns:
      Normal, float32.
    """
    exact = lax.Precision.HIGHEST
    size, (h, w) = rows.depth.shape[-1], rows.features.shape[1:3]
    real = rows.depth[:, 0, 0] > 0
    x = (rows.features - mean) * scale
    x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1))], -1) * real[:, None, None, None]
    z = jnp.log(jnp.where(real[:, None, None], rows.depth, 1.0))
    down, across = probe.bilinear(size, h), probe.bilinear(size, w)
    # [h, h] · [b, h, w, d] · [w, w] -> [b, h, w, d]
    spread = jnp.einsum("hi,bijd,wj->bhwd", down.T @ down, x, across.T @ across, precision=exact)
    small = jnp.einsum("yh,byx,xw->bhw", down, z, across, precision=exact)
    return Normal(
        jnp.einsum("bhwd,bhwe->de", x, spread, precision=exact),
        jnp.einsum("bhwd,bhw->d", x, small, precision=exact),
        jnp.sum(z**2),
        jnp.sum(real, dtype=jnp.float32) * size**2,
    )


def ridge(sums: Normal, strength: float) -> probe.Head:
    """The least squares fit: minimises Σ (w·x + b − z)² / n + strength · ‖w‖².

    Args:
      sums: of the pixels to learn from.
      strength: ≥ 0; the bias is spared.

    Returns:
      Head with weight float64 [d, 1] and bias [1].
    """
    penalty = np.full(len(sums.xz), strength)
    penalty[-1] = 0
    fitted, *_ = np.linalg.lstsq(sums.xx / sums.pixels + np.diag(penalty), sums.xz / sums.pixels)
    return probe.Head(fitted[:-1, None], fitted[-1:])


def squared_error(sums: Normal, head: probe.Head) -> float:
    """Mean of (w·x + b − z)² over the pixels that `sums` are of."""
    v = np.append(head.weight[:, 0], head.bias)
    return float((v @ sums.xx @ v - 2 * v @ sums.xz + sums.zz) / sums.pixels)


def regress(
    data: maps.Set,
    facts: probe.Statistics,
    ridges: tuple[float, ...],
    batch: int,
    seed: int,
    mesh,
    cluster: host.Cluster,
) -> tuple[probe.Head, dict[str, Any]]:
    """A head for log depth: the ridge chosen on a hold-out, then fitted to all.

    Args:
      data, facts: images to learn from, and `statistics` of them.
      ridges: strengths to try, ≥ 0; the least squared error of log depth on a held-out fifth wins.
      batch: images at a time.
      seed: of the hold-out.
      mesh, cluster: devices and processes.

    Returns:
      (Head with weight float32 [1, d, 1] and bias [1, 1], {'ridge': chosen; 'curve': a list of
      {'ridge', 'log_rmse'} on the hold-out}).

    Raises:
      UserError: nothing to try, or too few images.
    """
    if not ridges or min(ridges) < 0:
        raise UserError(f"dense: ridges must hold numbers of at least 0, got {ridges}")

    def add_up(state, micro, axis):
        sums = normal_sums(jax.tree.map(lambda x: x[0], micro), *state)
        return state, jax.tree.map(
            lambda x: collectives.pmean(x, axis) * collectives.size(axis), sums
        )

    compiled = mapping.compile_step(add_up, mesh)
    state = jax.device_put((facts.mean, facts.scale), layout.replicated(mesh))
    parts = []
    for places in probe.holdout(data.examples, seed):
        total = Normal(0.0, 0.0, 0.0, 0.0)
        for rows in data.read(places, batch):
            micro = jax.tree.map(lambda x: x[None], maps.local(rows, cluster))
            state, sums = compiled(state, layout.put_batch(micro, mesh))
            total = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), total, sums)
        parts.append(total)
    inner, held = parts
    curve = [
        {"ridge": r, "log_rmse": math.sqrt(max(squared_error(held, ridge(inner, r)), 0.0))}
        for r in ridges
    ]
    best = min(curve, key=lambda row: row["log_rmse"])["ridge"]
    fitted = ridge(jax.tree.map(lambda a, b: a + b, inner, held), best)
    head = jax.tree.map(lambda x: np.asarray(x, np.float32)[None], fitted)
    return head, {"ridge": best, "curve": curve}


def depth_of(out: jax.Array, nearest: float, farthest: float) -> jax.Array:
    """Log depth [..., 1] to metres [...], within the range of the training depths."""
    return jnp.clip(jnp.exp(out[..., 0]), nearest, farthest)


def depth_errors(
    data: maps.Set,
    facts: probe.Statistics,
    head: probe.Head,
    batch: int,
    mesh,
    cluster: host.Cluster,
) -> np.ndarray:
    """`depth_sums` of a head over all images of a set, float64 [6].

    Args:
      data: images to judge on.
      facts: of the images that the head learned from.
      head: weight [1, d, 1], bias [1, 1].
      batch: images at a time.
      mesh, cluster: devices and processes.
    """

    def judge(shared, rows):
        head, mean, scale = shared
        b, size = rows.depth.shape[:2]
        out = probe.outputs(head, rows.features, mean, scale, size)[0]
        guess = depth_of(out, facts.nearest, facts.farthest)
        return scores.depth_sums(rows.depth.reshape(b, -1), guess.reshape(b, -1))  # [b, 6]

    compiled = mapping.compile_rows(judge, mesh)
    total = np.zeros(6)
    for rows in data.read(np.arange(data.examples), batch):
        found = compiled((head, facts.mean, facts.scale), maps.local(rows, cluster))
        total += np.asarray(found, np.float64).sum(0)
    return total
