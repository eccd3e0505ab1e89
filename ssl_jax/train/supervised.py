"""Supervised training of a whole network, as the tuple of functions that the step takes.

    crop, flip … → random erasing → mixup or CutMix → encoder → linear head → cross-entropy

The same step, loop, optimizers and checkpoints as pretraining's then train it (train/step.py).
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ssl_jax import augment
from ssl_jax.augment.erasing import Erasing, erase
from ssl_jax.augment.mixing import Mixing, mix, soft_targets
from ssl_jax.contract.encoder import Encoder
from ssl_jax.contract.method import Method
from ssl_jax.devices import collectives
from ssl_jax.errors import UserError
from ssl_jax.methods.parts import image_encoder
from ssl_jax.models import linear, network


class Recipe(NamedTuple):
    """How images, labels and the head are treated.

    Attributes:
      policy: the random view.
      view: the fixed view, in evaluation.
      erasing: after it.
      mixing: after that.
      label_smoothing: s in [0, 1).
      head: key of HEADS.
    """

    policy: augment.Policy
    view: augment.Fixed
    erasing: Erasing
    mixing: Mixing
    label_smoothing: float
    head: str


def _zeros(key, d, classes):
    return {"kernel": jnp.zeros((d, classes)), "bias": jnp.zeros(classes)}


def _mae(key, d, classes):
    return {"kernel": 2e-5 * jax.random.normal(key, (d, classes)), "bias": jnp.zeros(classes)}


def _torch(key, d, classes):
    kernel_init, bias_init = linear.initializers("torch", d, classes)
    kernel_key, bias_key = jax.random.split(key)
    return {
        "kernel": kernel_init(kernel_key, (d, classes)),
        "bias": bias_init(bias_key, (classes,)),
    }


# Initial values of the head: (key, d, classes) -> {'kernel': [d, classes], 'bias': [classes]}.
# 'mae': N(0, 2e-5²) (main_finetune.py; its trunc_normal_ cuts at ±2, which cuts nothing).
# 'torch': nn.Linear's own (SwAV's eval_semisup.py).
HEADS = {"zeros": _zeros, "mae": _mae, "torch": _torch}


def is_mixed(mixing: Mixing) -> bool:
    """Whether there is anything to mix."""
    return mixing.probability > 0 and (mixing.mixup > 0 or mixing.cutmix > 0)


def of_config(config: ConfigDict, encoder: Encoder, classes: int) -> Method:
    """The fine-tuning that the config of that job describes.

    Args:
      config: of the job, see configs/finetune.py.
      encoder: where it begins; its fixed view is kept but for the interpolation.
      classes: number of classes.

    Raises:
      UserError: see `network_of`.
    """
    network = network_of(config, encoder)  # first: of what is no network on images it says so
    see = encoder.view._replace(interpolation=config.interpolation)
    view = {**config.view, "mean": see.mean, "std": see.std}
    recipe = Recipe(
        policy=augment.make("none", see.size, **view),
        view=see,
        erasing=Erasing(config.erasing.probability),
        mixing=Mixing(**config.mixing),
        label_smoothing=config.label_smoothing,
        head=config.head,
    )
    return make(network, classes, recipe)


def network_of(config: ConfigDict, of: Encoder) -> nn.Module:
    """The encoder's network, with the changes of this job.

    What pretraining did to a part of the network ends here: BN takes its statistics over the whole
    batch (MoCo's groups of rows were to keep the match from the keys), and the patch embedding
    learns (MoCo v3 froze it).

    Raises:
      UserError: the encoder is no network on images, or has no such field.
    """
    if of.network is None:
        raise UserError(
            f"--config.encoder={config.encoder}: finetune trains a network on images; name another"
        )
    known = {field.name for field in dataclasses.fields(of.network)}
    changes = {name: value for name, value in config.model.items() if value is not None}
    for name in changes:
        if name not in known:
            kind = type(of.network).__name__
            raise UserError(f"--config.model.{name}: a {kind} has no such field")
    as_new = {"group": None, "freeze_patch": False}
    return of.network.clone(**changes, **{k: v for k, v in as_new.items() if k in known})


def make(model: nn.Module, classes: int, recipe: Recipe) -> Method:
    """Training of encoder and head with soft-target cross-entropy.

        loss = mean_i −Σ_c t_ic log softmax(head(encoder(x_i)))_c

    Parameters are {'encoder': …, 'head': {'kernel', 'bias'}}, the state is {'batch_stats': …}. BN
    uses and updates batch statistics, over all devices. A row without label (-1) has no loss but
    counts in the mean. Its encoders are 'encoder', the network, and 'classifier', whose features
    are the scores of the classes.

    Args:
      model: an encoder of `models.make`, axis None.
      classes: number of classes.
      recipe: see `Recipe`.
    """
    mixed = is_mixed(recipe.mixing)

    def encoder(params, state):
        return {"params": params["encoder"], **state}

    def whole(params, state):
        return {"encoder": encoder(params, state), "head": params["head"]}

    def scores(variables, x):
        return logits(variables["head"], model.apply(variables["encoder"], x, train=False))

    def views(key, batch, ctx):
        crop_key, erase_key, mix_key = (jax.random.fold_in(key, i) for i in range(3))
        image = augment.crops((recipe.policy,), crop_key, batch["image"], ctx.axis)[:, 0]
        if recipe.erasing.probability:
            keys = collectives.example_keys(erase_key, len(image), ctx.axis)
            image = erase(recipe.erasing, keys, image)
        target = soft_targets(batch["label"], classes, recipe.label_smoothing)
        if mixed:
            image, target = mix(recipe.mixing, mix_key, image, target, ctx.axis)
        return {"image": image, "target": target, "label": batch["label"]}

    def init(key, views):
        encoder_key, head_key = jax.random.split(key)
        made, features = network.create(model, encoder_key, views["image"])
        head = HEADS[recipe.head](head_key, features.shape[-1], classes)
        return {"encoder": made["params"], "head": head}, {"batch_stats": made["batch_stats"]}

    def loss(params, state, views, ctx):
        keys = ctx.keys("drop path", len(views["image"]))
        features, stats = network.forward(
            model, params["encoder"], state["batch_stats"], views["image"], ctx.axis, keys=keys
        )
        found = logits(params["head"], features)
        value = jnp.mean(optax.losses.softmax_cross_entropy(found, views["target"]))
        right = jnp.argmax(found, 1) == views["label"]
        return value, ({"batch_stats": stats}, {"train_top1": jnp.mean(right)})

    return Method(
        views=views,
        init=init,
        loss=loss,
        labels=lambda params: {
            name: jax.tree.map(lambda _, name=name: name, part) for name, part in params.items()
        },
        encoders={
            "encoder": image_encoder.image_encoder(model, encoder, recipe.view),
            "classifier": image_encoder.on_view(whole, scores, recipe.view),
        },
        block=2 if mixed else 1,
        least_rows=1,
        uses_labels=True,
    )


def logits(head: Any, features: jax.Array) -> jax.Array:
    """features [b, d] @ kernel [d, classes] + bias, float32 [b, classes]."""
    return features @ head["kernel"] + head["bias"]
