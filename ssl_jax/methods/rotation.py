"""RotNet (Gidaris et al. 2018, "Unsupervised Representation Learning by Predicting Image
Rotations"; gidariss/FeatureLearningRotNet dataloader.py and algorithms/ClassificationModel.py).

    a view in all four rotations → encoder → linear classifier → which of the four?

Views carry their own labels: along the axis of rotations they are 0, 1, 2, 3.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Field, Method, Run, Show
from ssl_jax.methods.parts import image_encoder, pictures, values
from ssl_jax.models import heads, network

ROTATIONS = 4
FIELDS = (Field("padding", 0, "pixels of 0 around the image before the crop; CIFAR-10: 4"),)
SHOWN = "The first of each row is the original, the others one view of it in its four rotations."


def make(config: ConfigDict, run: Run) -> Method:
    """`rotation` of a config: `config.method` has FIELDS, `config.views.image` the augmentation."""
    return rotation(
        models.make(config.model),
        augment.make("none", **config.views.image),
        augment.fixed(config.evaluate),
        padding=config.method.padding,
    )


def rotation(
    encoder: nn.Module, policy: augment.Policy, view: augment.Fixed, *, padding: int = 0
) -> Method:
    """RotNet.

    Args:
      encoder: of images, see `models.make`.
      policy: the augmentation, before the rotation.
      view: the fixed view of probing.
      padding: pixels of 0 around the image before the crop (CIFAR's crop of 32 from 40).

    Raises:
      UserError: a value that cannot be.
    """
    values.count(0, padding=padding)
    head = heads.MLP(widths=(ROTATIONS,), norms=("none",), biases=(True,), dtype=encoder.dtype)

    def views(key, batch, ctx):
        return rotations(key, batch["image"], ctx.axis)

    def rotations(key, image, axis):
        image = jnp.pad(image, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        x = augment.crops((policy,), key, image, axis)[:, 0]
        # Label k: k quarter turns counter-clockwise.
        return jnp.stack([jnp.rot90(x, k, (1, 2)) for k in range(ROTATIONS)], 1)  # [b, 4, s, s, C]

    def init(key, views):
        encoder_key, head_key = jax.random.split(key)
        f, h = network.create(encoder, encoder_key, views[:, 0])
        g, _ = network.create(head, head_key, h)
        return {"encoder": f["params"], "head": g["params"]}, {"encoder": f["batch_stats"]}

    def loss(params, state, views, ctx):
        x = views.reshape(-1, *views.shape[2:])  # [b, 4, s, s, C] -> [4b, s, s, C], one batch
        h, f = network.forward(encoder, params["encoder"], state["encoder"], x, ctx.axis)
        logits, _ = network.forward(head, params["head"], {}, h, ctx.axis)  # [4b, 4]
        labels = jnp.tile(jnp.arange(ROTATIONS), len(views))  # 0 1 2 3 0 1 2 3 …
        value = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        accuracy = jnp.mean(jnp.argmax(logits, 1) == labels)
        return value, ({"encoder": f}, {"accuracy": accuracy})

    def show(variables, batch, key):
        drawn = rotations(key, batch["image"], None)
        return {"four rotations": pictures.of_views(drawn, policy)}

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders={
            "encoder": image_encoder.image_encoder(encoder, image_encoder.online("encoder"), view)
        },
        show={"views": Show(lambda params, state: {}, show, SHOWN)},
        least_rows=1,
    )
