"""DCL and DCLW: the contrastive loss without its positive in the denominator."""

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.devices import collectives
from ssl_jax.errors import UserError
from ssl_jax.losses.contrastive import PRECISION, normalize


def von_mises_fisher_weights(
    positive: jax.Array, sigma: float, axis: str | None = None
) -> jax.Array:
    """w_i = 2 − exp(s_i / σ) / mean_j exp(s_j / σ): pairs that already agree count for less.

    The mean runs over the rows of all devices, so the weights average to 1; they lie in
    (2 − B, 2). They carry gradient, as in the code (lightly cuts it).

    Args:
      positive: float32 [b], cosine s of the two views of each local row.
      sigma: σ > 0.
      axis: device axis or None.

    Returns:
      float32 [b].

    Raises:
      UserError: sigma is not positive.

    Source: Yeh et al. 2022, equation 7; raminnakhli/Decoupled-Contrastive-Learning loss/dcl.py,
    DCLW. For a while (commit 50991ef) that file had the sum instead of the mean, which makes
    almost constant weights of 2 − 1/B.
    """
    if isinstance(sigma, int | float) and sigma <= 0:
        raise UserError(f"the sigma of DCLW is {sigma}; it must be above 0")
    positive = positive / sigma
    everyone = collectives.gather(positive, axis)  # [B]
    highest = lax.stop_gradient(everyone.max())  # cancels; keeps the exponentials finite
    return 2 - jnp.exp(positive - highest) / jnp.mean(jnp.exp(everyone - highest))


def dcl(
    z1: jax.Array,
    z2: jax.Array,
    temperature: float,
    sigma: float | None = None,
    axis: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Decoupled contrastive loss of the local rows against the candidates of all devices.

    With cosine similarities s, for row i in one view and its other view i′,

        l(i) = −w_i · s_ii′ / T + log Σ_{k ∉ {i, i′}} exp(s_ik / T),

    k over both views of all other images (2B − 2 of them), w_i = 1 (DCL) or
    `von_mises_fisher_weights` (DCLW). It is averaged over the 2b anchors on this device; averaged
    over the devices (`collectives.pmean`) it is the mean over all 2B. The code returns the sum of
    the two directions, each a mean over B: exactly twice this; the paper sums over all anchors.

    It is NT-Xent with the positive left out of the denominator, so it has no lower bound at 0, and
    an anchor whose positive is near still learns from its negatives. The code masks by adding
    log(1e-45) ≈ −103 to the logits; here the two are left out altogether, which is the same
    unless T is below some 0.03. (lightly's DCLLoss is another loss: it adds the log-sums over the
    negatives in the same view and in the other view, which weighs the negatives twice.)

    Memory is O(B·d + b·B).

    Args:
      z1, z2: floating [b, d], raw projections of the two views, row i of both from one image.
        They are normalised here, and everything is computed in float32.
      temperature: T > 0.
      sigma: σ of the weights (DCLW), or None for none (DCL).
      axis: device axis or None. Gradients flow through the gathered candidates.

    Returns:
      (loss float32 [], metrics), metrics means over the 2b local anchors, float32 [] each:
        contrastive_accuracy: share of anchors whose positive is nearer than every negative, by
          more than rounding (1e-6 of cosine).
        positive_similarity: cosine of the two views of a row.

    Raises:
      UserError: temperature or sigma is not positive.
      ValueError: the shapes of the views are not one [b, d], or there is no other row.

    Source: Yeh et al. 2022, "Decoupled Contrastive Learning", equations 5 to 7;
    raminnakhli/Decoupled-Contrastive-Learning loss/dcl.py and experiment/simclr/main.py.
    """
    if isinstance(temperature, int | float) and temperature <= 0:
        raise UserError(f"the temperature of the loss is {temperature}; it must be above 0")
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"views of shapes {z1.shape} and {z2.shape}; both must be one [b, d]")
    b = len(z1)
    if b * collectives.size(axis) < 2:
        raise ValueError("a single image has no negatives, and DCL nothing else to compare with")

    z1, z2 = normalize(z1), normalize(z2)
    anchors = jnp.stack([z1, z2])  # [2, b, d]
    candidates = jnp.stack(collectives.gather([z1, z2], axis))  # [2, B, d]
    logits = jnp.einsum("vbd,wnd->vbwn", anchors, candidates, precision=PRECISION) / temperature
    # One row is the anchor itself in its own view and the positive in the other.
    rows = collectives.rank(axis) * b + jnp.arange(b)
    own = rows[:, None] == jnp.arange(candidates.shape[1])  # [b, B]
    logits = jnp.where(own[:, None], -jnp.inf, logits)  # [2, b, 2, B]

    positive = jnp.sum(z1 * z2, axis=-1)  # [b], the same for both views
    weights = 1.0 if sigma is None else von_mises_fisher_weights(positive, sigma, axis)
    negatives = jax.nn.logsumexp(logits, axis=(2, 3))  # [2, b]
    best = logits.max((2, 3)) * temperature
    metrics = {
        "contrastive_accuracy": jnp.mean(positive - best > 1e-6),
        "positive_similarity": jnp.mean(positive),
    }
    return jnp.mean(negatives - weights * positive / temperature), lax.stop_gradient(metrics)
