"""Jigsaw puzzles (Noroozi & Favaro 2016, "Unsupervised Learning of Visual Representations by
Solving Jigsaw Puzzles"; bbrattoli/JigsawPuzzlePytorch Dataset/JigsawImageLoader.py,
JigsawNetwork.py and select_permutations.py).

    nine tiles of a view in one of K orders → encoder and projector, tile by tile → all nine
    joined → head → which order?

Probing hands whole images to the encoder that saw tiles, as transfer does in the paper and VISSL:
convolutions do not mind the size. Give `evaluate` the mean and deviation of the data, since tiles
were normalised one by one.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.augment import tiles
from ssl_jax.contract.method import Field, Method, Run, Show
from ssl_jax.devices import collectives
from ssl_jax.errors import UserError
from ssl_jax.methods.parts import image_encoder, pictures, values
from ssl_jax.models import heads, network

FIELDS = (
    Field("permutations", 2000, "orders of the nine tiles K, the classes"),
    Field("permutation_seed", 0, "of their choice"),
    Field("tile", 64, "side of a tile, pixels"),
    Field("jitter", 20, "a tile begins from 0 to this many pixels into its cell"),
    Field("projector", (1000,), "widths of the layers of each tile on its own"),
    Field("hidden", (), "widths of the layers of all nine joined, before the last"),
)
SHOWN = (
    "The first of each row is the original, the others puzzles as the network gets them: every "
    "tile of mean 0 and deviation 1."
)


def make(config: ConfigDict, run: Run) -> Method:
    """`jigsaw` of a config: `config.method` has FIELDS, `config.views.image` the augmentation."""
    m = config.method
    return jigsaw(
        models.make(config.model),
        augment.make("none", **config.views.image),
        augment.fixed(config.evaluate),
        permutations=m.permutations,
        permutation_seed=m.permutation_seed,
        tile=m.tile,
        jitter=m.jitter,
        projector=m.projector,
        hidden=m.hidden,
    )


def jigsaw(
    encoder: nn.Module,
    policy: augment.Policy,
    view: augment.Fixed,
    *,
    permutations: int = 2000,
    permutation_seed: int = 0,
    tile: int = 64,
    jitter: int = 20,
    projector: Sequence[int] = (1000,),
    hidden: Sequence[int] = (),
) -> Method:
    """Jigsaw.

    Args:
      encoder: of images, see `models.make`.
      policy: the augmentation of the image before it is cut.
      view: the fixed view of probing.
      permutations: number of orders K, the classes.
      permutation_seed: of their choice (`tiles.permutations`), from 0 to 2³² − 1.
      tile: side of a tile, pixels.
      jitter: a tile begins from 0 to this many pixels into its cell.
      projector: widths of the layers of each tile on its own (fc6), () for none.
      hidden: widths of the layers of all nine joined (fc7), () for none: BatchNorm and ReLU follow
        each of both, then comes a linear layer to the K orders.

    Raises:
      UserError: a value that cannot be.
    """
    cell = policy.size // tiles.SIDE
    if tile < 2 or jitter < 0 or tile + jitter > cell + 1:
        raise UserError(
            f"--config.method.tile is {tile} and --config.method.jitter {jitter}: at least 2 and "
            f"0, and together at most one pixel more than a cell, which has {cell} of the view's "
            f"{policy.size}"
        )
    if not 0 <= permutation_seed < 2**32:
        raise UserError(
            f"--config.method.permutation_seed is {permutation_seed}; it must be from 0 to 2³² − 1"
        )
    each, joined, count = tuple(projector), tuple(hidden), permutations
    for name, widths in (("projector", each), ("hidden", joined)):
        if widths:
            values.counts(1, **{name: widths})
    orders = tiles.permutations(count, permutation_seed)  # [K, 9], on the host

    def mlp(widths, norms):
        return heads.MLP(widths, norms, (True,) * len(widths), dtype=encoder.dtype)

    first = mlp(each, ("affine",) * len(each))
    last = mlp((*joined, count), ("affine",) * len(joined) + ("none",))

    def views(key, batch, ctx):
        return puzzles(key, batch["image"], ctx.axis)

    def puzzles(key, image, axis):
        image_key, offset_key, order_key = jax.random.split(key, 3)
        image = augment.crops((policy,), image_key, image, axis)[:, 0]

        def draw(key, shape, below):
            keys = collectives.example_keys(key, len(image), axis)
            return jax.vmap(lambda k: jax.random.randint(k, shape, 0, below))(keys)

        offsets = draw(offset_key, (tiles.TILES, 2), jitter + 1)
        x = tiles.normalise(tiles.cut(image, offsets, tile, jitter))  # [b, 9, t, t, C], in place
        label = draw(order_key, (), count)
        return {"tiles": tiles.shuffle(x, jnp.asarray(orders)[label]), "label": label}

    def init(key, views):
        encoder_key, projector_key, head_key = jax.random.split(key, 3)
        f, h = network.create(encoder, encoder_key, views["tiles"][:, 0])
        g, e = network.create(first, projector_key, h)
        c, _ = network.create(last, head_key, jnp.tile(e, tiles.TILES))
        made = {"encoder": f, "projector": g, "head": c}
        params = {name: variables["params"] for name, variables in made.items()}
        return params, {name: variables["batch_stats"] for name, variables in made.items()}

    def loss(params, state, views, ctx):
        def forward(name, net, x):
            return network.forward(net, params[name], state[name], x, ctx.axis)

        x = views["tiles"].reshape(-1, *views["tiles"].shape[2:])  # [b, 9, t, t, C] -> [9b, …]
        h, f = forward("encoder", encoder, x)
        e, g = forward("projector", first, h)
        e = nn.relu(e) if each else e
        logits, c = forward("head", last, e.reshape(-1, tiles.TILES * e.shape[-1]))  # [b, K]
        label = views["label"]
        value = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))
        metrics = {"accuracy": jnp.mean(jnp.argmax(logits, 1) == label)}
        return value, ({"encoder": f, "projector": g, "head": c}, metrics)

    def show(variables, batch, key):
        images = jnp.repeat(batch["image"], pictures.VIEWS, axis=0)
        drawn = pictures.of_puzzles(puzzles(key, images, None)["tiles"])
        return {"shuffled tiles": drawn.reshape(-1, pictures.VIEWS, *drawn.shape[1:])}

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders=image_encoder.of_one(encoder, first, view),
        show={"views": Show(lambda params, state: {}, show, SHOWN)},
    )
