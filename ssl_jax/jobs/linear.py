"""Probing by a linear classifier on frozen features."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import augment
from ssl_jax.contract.encoder import Encoder
from ssl_jax.devices import layout
from ssl_jax.errors import UserError, near_misses
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import apart, encoder, run_features
from ssl_jax.evaluate.probes import linear, linear_sgd
from ssl_jax.models.vit import ViT
from ssl_jax.processes import host
from ssl_jax.runs import workdir

SOLVERS = ("lbfgs", "sgd")
INTERPOLATIONS = ("bilinear", "bicubic")


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """A linear classifier on the features of an encoder that does not move.

    `solver` 'lbfgs': multinomial logistic regression on standardised features, to its optimum
    (evaluate/probes/linear.py). 'sgd': the official protocols (evaluate/probes/linear_sgd.py). What
    is chosen, regularisation or learning rate, is chosen on a hold-out of the training images,
    never on test.

    The features are the encoder's own, or, for a ViT, those of `encoder.last_blocks`. They are
    computed once, from images that are resized and cropped as in evaluation. The official SGD
    protocols crop and flip at random in every epoch, which costs one pass of the encoder an epoch:
    `augment` does that. Every process keeps those of its own part of the training images.

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
    linear.check_choice(config.grid, config.holdout)
    for said in linear_sgd.remarks(linear_sgd.complete(config.sgd)):
        if config.solver == "sgd" and cluster.process == 0:
            print(said)

    def measure(o: probing.Opened) -> dict[str, Any]:
        of = o.restored.encoder
        embed, read = summary(of, config.blocks, config.average), None
        if embed is None and config.augment:
            raise UserError("--config.augment draws views of images, and this encoder reads none")
        if embed is not None:
            view = of.view._replace(interpolation=config.interpolation)

            def read(variables, rows):
                return embed(variables, augment.evaluate(rows["image"], *view))

        f = run_features.features_apart(o, config.batch, read=read)
        common = {"holdout": config.holdout, "seed": config.seed}
        if config.solver == "lbfgs":
            found = linear.probe_apart(
                f.train, f.test, f.test_labels, o.classes, tuple(config.grid), **common
            )
            chosen = {"C": found["C"]}
        else:
            found = linear_sgd.probe(
                augmented(o, config, embed) if config.augment else lambda epoch: f.train,
                f.train,
                f.test,
                f.test_labels,
                o.classes,
                config.sgd,
                **common,
            )
            chosen = {k: found[k] for k in ("learning_rate", "weight_decay")}
        fitted = found["classifier"] | {"class_names": np.asarray(o.class_names, np.str_)}
        workdir.write_arrays(o.folder / "classifier.npz", fitted)
        return {
            "linear_top1": found["top1"],
            "linear_top5": found["top5"],
            **chosen,
            "images_per_second": f.images_per_second,
            "solver": config.solver,
            "features": described(config.blocks, config.average),
            "augmented": bool(config.augment),
            "curve": found["curve"],
            "classifier": "classifier.npz",  # weight [d, classes], bias [classes], class_names
        }

    probing.each(config, cluster, measure)
    return 0


def summary(of: Encoder, blocks: int, average: bool) -> Callable[[Any, Any], Any] | None:
    """(variables, views) -> features: the encoder's own, or those of its last blocks.

    None of an encoder that reads no images: its features are those of `Encoder.features`.

    Args:
      of: the encoder of the run.
      blocks, average: as in configs/linear.py.

    Raises:
      UserError: an encoder that has no such features.
    """
    if blocks == 1 and not average:
        return of.embed
    net = of.network
    asked = f"--config.blocks={blocks}" + (" and --config.average=True" if average else "")
    if not isinstance(net, ViT):
        raise UserError(
            f"{asked}: only a ViT has blocks to read, the encoder is a {type(net).__name__}; "
            "set --config.blocks=1 --config.average=False"
        )
    if not net.token:
        raise UserError(f"{asked}: these features have class tokens, and this ViT has none")
    if not 1 <= blocks <= net.depth:
        raise UserError(f"--config.blocks={blocks}: the encoder has {net.depth} blocks")
    return encoder.last_blocks(net, blocks, average)


def described(blocks: int, average: bool) -> str:
    """What the features are, for result.json."""
    if blocks == 1 and not average:
        return "encoder"
    return f"class tokens of {blocks} block(s)" + (
        " and the mean of the patches" if average else ""
    )


def augmented(o: probing.Opened, config: ConfigDict, embed):
    """epoch -> features (apart.Apart) of the training images, cropped and flipped anew."""
    view = o.restored.encoder.view
    policy = augment.make(
        "supervised",
        view.size,
        mean=view.mean,
        std=view.std,
        area=config.crop_area,
        interpolation=config.crop_interpolation,
        flip=config.flip,
    )
    here = layout.mesh(jax.local_devices())
    encode = encoder.compile_augmented(embed, here, policy, config.seed)
    variables = layout.put_here(o.restored.variables)

    def train(epoch: int) -> apart.Apart:
        compute = run_features.computing(encode, (variables, np.int32(epoch)), config.batch)
        return run_features.part_apart(compute, o.learn, o.mesh)

    return train
