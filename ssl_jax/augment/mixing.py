"""Mixup and CutMix: two images in one, and their labels in the same proportion.

Zhang et al. 2018 (mixup) and Yun et al. 2019 (CutMix) in the version of timm (data/mixup.py), with
which DeiT and MAE fine-tune:

    mixup   λ x + (1 − λ) x',  λ ~ Beta(α, α)
    CutMix  a rectangle of x' pasted into x, its sides √(1 − λ) of the image's, λ ~ Beta(α, α), at a
            uniform centre and cut at the border; λ is then the share of x that is left

and both times the target is λ t + (1 − λ) t'. timm's x' is the batch reversed. Here rows 2i and
2i + 1 are each other's x': the rows of a batch are in random order, so the distribution is the
same, and the pairs do not depend on the number of devices. timm draws λ once a process and step:
MAE's command has 32 rows there, `group`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssl_jax.devices import collectives

MODES = ("batch", "elem")


class Mixing(NamedTuple):
    """What is mixed, and how often.

    Attributes:
      mixup: α of mixup; 0: no mixup.
      cutmix: α of CutMix; 0: no CutMix.
      probability: that a batch (or an image) is mixed at all.
      switch: probability of CutMix where both are on.
      mode: 'batch': one λ and rectangle for `group` rows; 'elem': one an image.
      group: neighbouring rows of the global batch, an even number; 0: the whole batch.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5
    mode: str = "batch"
    group: int = 32


class Drawn(NamedTuple):
    """The random numbers of a batch [] or of every image [b].

    Attributes:
      lam: float32, the share of the own image in the target: λ.
      cutmix: bool, CutMix instead of mixup.
      box: int32 […, 4], the rectangle: top, bottom, left, right; bottom and right are outside.
    """

    lam: jax.Array
    cutmix: jax.Array
    box: jax.Array


def soft_targets(labels: jax.Array, classes: int, smoothing: float = 0.0) -> jax.Array:
    """Label smoothing: 1 − s + s / classes for the label, s / classes for every other class.

    Args:
      labels: int [b]; -1 (none) gets a row of zeros, and so no cross-entropy.
      classes: number of classes.
      smoothing: s in [0, 1).

    Returns:
      float32 [b, classes].

    Source: Szegedy et al. 2016, section 7; timm data/mixup.py, mixup_target.
    """
    targets = (1 - smoothing) * jax.nn.one_hot(labels, classes) + smoothing / classes
    return jnp.where(labels[:, None] >= 0, targets, 0.0)


def mix(
    mixing: Mixing, key: jax.Array, images: jax.Array, targets: jax.Array, axis: str | None
) -> tuple[jax.Array, jax.Array]:
    """Mixes neighbouring rows. To be called inside jit, with `mixing` static.

    Args:
      mixing: see `Mixing`.
      key: typed key [], the same on every device.
      images: float32 [b, H, W, C], rows of this device, b even.
      targets: float32 [b, classes].
      axis: device axis or None.

    Returns:
      images and targets, mixed.

    Raises:
      ValueError: b or the group is odd, or the mode is unknown.
    """
    b, height, width, _ = images.shape
    if mixing.mode not in MODES:
        raise ValueError(f"mixing.mode is {mixing.mode!r}; known: {', '.join(MODES)}")
    if mixing.group % 2:
        raise ValueError(f"mixing.group is {mixing.group}: pairs of rows share their λ")
    if mixing.mode == "batch" and not mixing.group:
        return blend(draw(mixing, key, height, width), images, targets)
    size = mixing.group if mixing.mode == "batch" else 1
    groups = (collectives.rank(axis) * b + jnp.arange(b)) // size  # of every row
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(groups)
    drawn = jax.vmap(lambda k: draw(mixing, k, height, width))(keys)
    return blend(drawn, images, targets)


def draw(mixing: Mixing, key: jax.Array, height: int, width: int) -> Drawn:
    """λ, which of the two, and the rectangle.

    Args:
      mixing: see `Mixing`.
      key: typed key [].
      height, width: of the images, pixels.

    Returns:
      Drawn, leaves [] and [4].
    """
    mixup_key, cutmix_key, which_key, box_key = jax.random.split(key, 4)
    u = jax.random.uniform(which_key, (2,))
    both = mixing.mixup > 0 and mixing.cutmix > 0
    cutmix = u[0] < mixing.switch if both else jnp.asarray(mixing.cutmix > 0)
    lam = jnp.ones(())
    if mixing.mixup > 0:
        lam = jax.random.beta(mixup_key, mixing.mixup, mixing.mixup)
    if mixing.cutmix > 0:
        lam = jnp.where(cutmix, jax.random.beta(cutmix_key, mixing.cutmix, mixing.cutmix), lam)
    lam = jnp.where(u[1] < mixing.probability, lam, 1.0)
    box = rectangle(lam, jax.random.uniform(box_key, (2,)), height, width)
    top, bottom, left, right = box
    left_over = 1 - (bottom - top) * (right - left) / (height * width)
    return Drawn(jnp.where(cutmix, left_over, lam), cutmix, box)


def rectangle(lam: jax.Array, u: jax.Array, height: int, width: int) -> jax.Array:
    """CutMix's rectangle: sides ⌊√(1 − λ) · side⌋ around a uniform centre, cut at the border.

    Args:
      lam: float [], λ.
      u: float [2] in [0, 1), the centre.
      height, width: of the image, pixels.

    Returns:
      int32 [4]: top, bottom, left, right.
    """
    side = jnp.sqrt(1 - lam)

    def span(length, u):
        half = jnp.floor(length * side) // 2
        centre = jnp.minimum(jnp.floor(u * length), length - 1)
        return jnp.clip(centre - half, 0, length), jnp.clip(centre + half, 0, length)

    return jnp.stack([*span(height, u[0]), *span(width, u[1])]).astype(jnp.int32)


def blend(drawn: Drawn, images: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `mix` does once the random numbers are there.

    Args:
      drawn: leaves [] or [b].
      images: float32 [b, H, W, C].
      targets: float32 [b, classes].

    Raises:
      ValueError: b is odd.
    """
    _, height, width, _ = images.shape
    top, bottom, left, right = (drawn.box[..., i, None] for i in range(4))
    y, x = jnp.arange(height), jnp.arange(width)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    inside = rows[..., :, None] & columns[..., None, :]  # [(b,) H, W]
    # The share of the own image in every pixel.
    own = jnp.where(drawn.cutmix[..., None, None], ~inside, drawn.lam[..., None, None])
    own, lam = own[..., None], drawn.lam[..., None]
    return (
        own * images + (1 - own) * neighbours(images),
        lam * targets + (1 - lam) * neighbours(targets),
    )


def neighbours(x: jax.Array) -> jax.Array:
    """Rows 0, 1, 2, 3 … -> 1, 0, 3, 2 …

    Raises:
      ValueError: an odd number of rows.
    """
    if len(x) % 2:
        raise ValueError(f"mixing: {len(x)} rows of a device are not whole pairs")
    # [b, …] -> [b/2, 2, …] -> [b, …]
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
