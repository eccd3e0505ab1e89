"""Probing by a linear classifier on frozen features."""

import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import augment, host, models
from ssl_jax.errors import UserError, near_misses
from ssl_jax.evaluate import encoder, linear, linear_sgd, probing
from ssl_jax.models.vit import ViT

SOLVERS = ("lbfgs", "sgd")
INTERPOLATIONS = ("bilinear", "bicubic")


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """A linear classifier on the features of an encoder that does not move.

    `solver` 'lbfgs': multinomial logistic regression on standardised features, to its optimum
    (evaluate/linear.py). 'sgd': the official protocols (evaluate/linear_sgd.py). What is chosen,
    regularisation or learning rate, is chosen on a hold-out of the training images, never on test.

    The features are the encoder's own, or, for a ViT, those of `encoder.last_blocks`. They are
    computed once, from images that are resized and cropped as in evaluation. The official SGD
    protocols crop and flip at random in every epoch, which costs one pass of the encoder an epoch:
    `augment` does that.

    Args:
      config: `probing.defaults('linear')` with the fields of configs/linear.py.
      cluster: the processes of the job.
      name: of the config; not used.

    Returns:
      exit code 0.

    Raises:
      UserError: a field that cannot be, or see `probing.each`, `linear.probe`, `linear_sgd.probe`.
    """
    if config.solver not in SOLVERS:
        raise UserError(
            f"--config.solver is {config.solver!r}.{near_misses(config.solver, SOLVERS)}"
        )
    for field in ("interpolation", "crop_interpolation"):
        if config[field] not in INTERPOLATIONS:
            hint = near_misses(config[field], INTERPOLATIONS)
            raise UserError(f"--config.{field} is {config[field]!r}.{hint}")
    if config.augment and config.solver != "sgd":
        raise UserError("--config.augment needs epochs: add --config.solver=sgd")
    linear_sgd.complete(config.sgd)

    def measure(o: probing.Opened) -> dict[str, Any]:
        features = summary(o.restored.saved.config.model, config.blocks, config.average)
        encode = encoder.compile_encode(
            o.restored.saved.config, o.mesh, features, config.interpolation
        )
        began = time.perf_counter()
        (train, train_labels), (test, test_labels) = (
            encoder.extract(encode, o.restored.variables, *part, config.batch, o.cluster)
            for part in (o.learn, o.judge)
        )
        speed = (len(train) + len(test)) / (time.perf_counter() - began)
        if config.solver == "lbfgs":
            found = linear.probe(
                train,
                train_labels,
                test,
                test_labels,
                o.classes,
                grid=tuple(config.grid),
                holdout=config.holdout,
                seed=config.seed,
            )
            chosen = {"C": found["C"]}
        else:
            found = linear_sgd.probe(
                augmented(o, config, features) if config.augment else lambda epoch: train,
                train_labels,
                train,
                test,
                test_labels,
                o.classes,
                config.sgd,
                holdout=config.holdout,
                seed=config.seed,
            )
            chosen = {k: found[k] for k in ("learning_rate", "weight_decay")}
        return {
            "linear_top1": found["top1"],
            "linear_top5": found["top5"],
            **chosen,
            "images_per_second": speed,
            "solver": config.solver,
            "features": described(config.blocks, config.average),
            "augmented": bool(config.augment),
            "curve": found["curve"],
        }

    probing.each(config, cluster, measure)
    return 0


def summary(model: ConfigDict, blocks: int, average: bool):
    """The function that makes features, for `encoder.compile_encode`; None: the model's own.

    Args:
      model: `config.model` of the run.
      blocks, average: as in configs/linear.py.

    Raises:
      UserError: an encoder that has no such features.
    """
    if blocks == 1 and not average:
        return None
    net = models.make(model)
    asked = f"--config.blocks={blocks}" + (" and --config.average=True" if average else "")
    if not isinstance(net, ViT):
        raise UserError(
            f"{asked}: only a ViT has blocks to read, the encoder is a {model.name}; "
            "set --config.blocks=1 --config.average=False"
        )
    if not net.token:
        raise UserError(f"{asked}: these features have class tokens, and this ViT has none")
    if not 1 <= blocks <= net.depth:
        raise UserError(f"--config.blocks={blocks}: the encoder has {net.depth} blocks")
    return encoder.last_blocks(blocks, average)


def described(blocks: int, average: bool) -> str:
    """What the features are, for result.json."""
    if blocks == 1 and not average:
        return "encoder"
    return f"class tokens of {blocks} block(s)" + (
        " and the mean of the patches" if average else ""
    )


def augmented(o: probing.Opened, config: ConfigDict, features):
    """epoch -> features float32 [n, d] of the training images, cropped and flipped anew."""
    view = o.restored.saved.config.evaluate
    policy = augment.make(
        "supervised",
        view.size,
        mean=view.mean,
        std=view.std,
        area=config.crop_area,
        interpolation=config.crop_interpolation,
        flip=config.flip,
    )
    encode = encoder.compile_augmented(
        o.restored.saved.config, o.mesh, policy, config.seed, features
    )

    def train(epoch: int) -> np.ndarray:
        whole = (o.restored.variables, np.int32(epoch))
        return encoder.extract(encode, whole, *o.learn, config.batch, o.cluster)[0]

    return train
