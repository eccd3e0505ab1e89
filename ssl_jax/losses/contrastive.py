"""NT-Xent, the contrastive loss of SimCLR, with the candidates of every device."""

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.contract.precision import wide
from ssl_jax.devices import collectives
from ssl_jax.errors import UserError

# Similarities are products of 128 or so numbers, nothing beside the network. At the default
# precision TPUs and GPUs round the factors to 8 or 10 bits, which 1/temperature would magnify.
PRECISION = lax.Precision.HIGHEST


def normalize(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Rows of unit length: x / sqrt(max(Σ x², eps)), as tf.math.l2_normalize.

    Rows shorter than sqrt(eps) get a zero gradient: their direction is rounding noise, and
    TensorFlow's gradient there, 1/sqrt(eps) = 1e6 times what arrives, would wreck the step.

    Args:
      x: floating [..., d].
      eps: least squared length.

    Returns:
      float32 [..., d].
    """
    x = wide(x)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    x = jnp.where(squared > eps, x, lax.stop_gradient(x))
    return x * lax.rsqrt(jnp.maximum(squared, eps))


def ntxent(
    z1: jax.Array,
    z2: jax.Array,
    temperature: float,
    axis: str | None = None,
    chunk: int | None = None,
) -> jax.Array:
    """NT-Xent of the local rows against the candidates of all devices.

    With cosine similarities s and N = 2B embeddings (two views of the B rows of all devices),

        l(i, j) = −log( exp(s_ij / T) / Σ_{k ≠ i} exp(s_ik / T) ),   j: the other view of row i,

    averaged over the 2b anchors on this device; averaged over the devices
    (`collectives.pmean`) it is the mean over all N anchors, the loss of the paper. Google's
    code returns the sum of the two directions, each a mean over B: exactly twice this. Under LARS
    the factor matters only to the weight decay inside the trust ratio, and to what is excluded
    from adaptation.

    Memory is O(N·d + b·N), or O(N·d + b·chunk) with `chunk`, in the backward pass as well.

    Args:
      z1, z2: floating [b, d], raw projections of the two views, row i of both from one image.
        They are normalised here, and everything is computed in float32.
      temperature: T > 0.
      axis: device axis or None. Gradients flow through the gathered candidates.
      chunk: rows whose candidates (both views) are compared at a time; None: all B.

    Returns:
      float32 [], at least 0; 0 if there is no other row.

    Raises:
      UserError: temperature or chunk is not positive.
      ValueError: the shapes of the views are not one [b, d].

    Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
    Representations" (SimCLR), equation 1 and algorithm 1; google-research/simclr
    tf2/objective.py, add_contrastive_loss.
    """
    return ntxent_metrics(z1, z2, temperature, axis, chunk)[0]


def ntxent_metrics(
    z1: jax.Array,
    z2: jax.Array,
    temperature: float,
    axis: str | None = None,
    chunk: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`ntxent`, with what the same comparisons tell about the embeddings.

    Args:
      z1, z2, temperature, axis, chunk: as for `ntxent`.

    Returns:
      (loss float32 [], metrics), means over the 2b local anchors, float32 [] each:
        contrastive_accuracy: share of anchors whose positive is nearer than every negative, by
          more than rounding (1e-6 of cosine): embeddings that are all the same count as wrong.
        positive_similarity: cosine of the two views of a row.
    """
    if isinstance(temperature, int | float) and temperature <= 0:
        raise UserError(f"the temperature of the loss is {temperature}; it must be above 0")
    if chunk is not None and chunk < 1:
        raise UserError(f"the chunk of the loss is {chunk}; it must be at least 1, or None")
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"views of shapes {z1.shape} and {z2.shape}; both must be one [b, d]")

    b, d = z1.shape
    # The views of an image are neighbours: joined one behind the other, the batch would move
    # between devices where `jit` splits it. Two axes, not four: of the logits' gradient both
    # products below then want the same layout, and nothing N×N is transposed.
    anchors = jnp.stack([normalize(z1), normalize(z2)], axis=1)  # [b, 2, d]
    candidates = collectives.gather(anchors, axis).reshape(-1, d)  # [B, 2, d] -> [2B, d]
    positive = jnp.sum(anchors[:, 0] * anchors[:, 1], axis=-1)  # [b], the same for both views
    positives = jnp.repeat(positive, 2) / temperature  # [2b]
    anchors = anchors.reshape(-1, d)  # [2b, d]

    B = len(candidates) // 2
    chunk = min(chunk or B, B)
    blocks = -(-B // chunk)
    # [2B, d] -> [blocks, 2·chunk, d]; the rows that fill the last block are masked below.
    candidates = jnp.pad(candidates, ((0, 2 * (blocks * chunk - B)), (0, 0)))
    candidates = candidates.reshape(blocks, 2 * chunk, d)
    firsts = chunk * jnp.arange(blocks)
    # The images that the anchors are views of, by their rows in the global batch.
    images = collectives.rank(axis) * b + jnp.arange(2 * b) // 2

    def compare(carry, block):
        """Adds a block's negatives to the sum of exponentials (an online softmax).

        carry: (best float32 [2b], the highest logit of a negative so far;
                total float32 [2b], Σ exp(logit − max(positive, best)) over the negatives so far).
        """
        best, total = carry
        candidates, first = block  # [2·chunk, d], int32 []
        # [2b, d] @ [d, 2·chunk] -> [2b, 2·chunk]
        logits = jnp.matmul(anchors, candidates.T, precision=PRECISION) / temperature
        columns = first + jnp.arange(2 * chunk) // 2
        # Of an anchor's own image one view is the anchor itself and the other its positive.
        negative = (columns != images[:, None]) & (columns < B)  # [2b, 2·chunk]
        logits = jnp.where(negative, logits, -jnp.inf)
        new_best = jnp.maximum(best, lax.stop_gradient(logits).max(1))
        # The shift is a constant to the gradient, as the loss does not depend on it. It is finite
        # although `best` is not before the first negative.
        level = lax.stop_gradient(positives)
        old, new = jnp.maximum(level, best), jnp.maximum(level, new_best)
        block_total = jnp.exp(logits - new[:, None]).sum(1)
        return (new_best, total * jnp.exp(old - new) + block_total), None

    carry = jnp.full(2 * b, -jnp.inf), jnp.zeros(2 * b)
    # The backward pass compares again rather than keep the logits of all blocks. (Of one block XLA
    # makes no loop, and does not compare again.)
    again = jax.checkpoint(compare, prevent_cse=False)
    (best, total), _ = lax.scan(again, carry, (candidates, firsts))

    # −log softmax = shift − positive + log(exp(positive − shift) + total), exact also near 0.
    shift = jnp.maximum(lax.stop_gradient(positives), best)
    losses = shift - positives + jnp.log1p(jnp.expm1(positives - shift) + total)  # [2b]
    metrics = {
        "contrastive_accuracy": jnp.mean((positives - best) * temperature > 1e-6),
        "positive_similarity": jnp.mean(positive),
    }
    return jnp.mean(losses), lax.stop_gradient(metrics)
