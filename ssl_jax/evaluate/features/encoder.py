"""From a checkpoint, or a training state, to features: the encoder alone, as probes see it."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import augment
from ssl_jax.checkpoints import kept, reading, store, verify
from ssl_jax.contract.batch import specs
from ssl_jax.contract.encoder import Encoder
from ssl_jax.contract.method import Method
from ssl_jax.contract.source import Source
from ssl_jax.data import loader
from ssl_jax.devices import layout, mapping
from ssl_jax.errors import UserError, line, near_misses
from ssl_jax.evaluate.features import collect
from ssl_jax.methods import METHODS
from ssl_jax.models.vit import ViT
from ssl_jax.processes import host
from ssl_jax.runs import workdir
from ssl_jax.train import past, supervised
from ssl_jax.train.state import TrainState, make_create


class Restored(NamedTuple):
    """An encoder read back from a run.

    Attributes:
      saved: the config and facts of the run.
      step: optimizer steps it was trained for.
      encoder: its functions, as the method names them.
      variables: of the encoder, or what `select` picked, on every device of the mesh.
      trained_in: the dtype that the network computed in when it was trained.
    """

    saved: workdir.Saved
    step: int
    encoder: Encoder
    variables: Any
    trained_in: str


def compile_encode(
    features: Callable[[Any, Any], jax.Array], mesh
) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """Compiles an encoder in evaluation mode over all devices.

    Args:
      features: (variables, batch) -> [b, d]: `Encoder.features`, or other features of each row.
      mesh: from `layout.mesh()`.

    Returns:
      encode(variables, batch) -> {'features': float32 [B, d], 'label': int32 [B], 'valid':
      bool [B]}, in global order.
    """

    def encode(variables, rows):
        return _outputs(features(variables, rows), rows)

    return mapping.compile_rows(encode, mesh)


def compile_augmented(
    embed: Callable[[Any, jax.Array], jax.Array], mesh, policy: augment.Policy, seed: int
) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """As `compile_encode`, but the encoder sees a random view of every image.

    The noise of an image is a function of (seed, epoch, index of the image), so features do not
    depend on batches or devices.

    Args:
      embed: (variables, views) -> [b, d], `Encoder.embed` or the like.
      mesh: from `layout.mesh()`.
      policy: of the view.
      seed: of the noise.

    Returns:
      encode((variables, epoch int32 []), rows), otherwise as `compile_encode`'s.
    """

    def encode(whole, rows):
        variables, epoch = whole
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(rows["index"])
        return _outputs(embed(variables, augment.apply(policy, keys, rows["image"])), rows)

    return mapping.compile_rows(encode, mesh)


def last_blocks(model: ViT, blocks: int, average: bool) -> Callable[[Any, jax.Array], jax.Array]:
    """Features of DINO's linear evaluation.

    The class tokens of the last `blocks` blocks, each through the final norm, side by side; with
    `average` the mean of the last block's patch tokens besides. DINO (eval_linear.py) takes
    4 blocks for ViT-S, and 1 block and the average for ViT-B.

    Args:
      model: the ViT.
      blocks: number of blocks, at least 1.
      average: add the mean of the patch tokens.

    Returns:
      (variables, x [b, h, w, C]) -> float32 [b, (blocks + average) · D].
    """

    def features(variables, x):
        token, patches = model.apply(variables, x, blocks, method="last_blocks")
        parts = token.reshape(len(x), -1)  # [b, n, D] -> [b, n · D]
        if not average:
            return parts
        return jnp.concatenate([parts, jnp.mean(patches[:, -1], 1)], 1)  # [b, N, D] -> [b, D]

    return features


def _outputs(features: jax.Array, rows: Any) -> dict[str, jax.Array]:
    return {
        "features": features.astype(jnp.float32),
        "label": rows["label"],
        "valid": rows["index"] >= 0,
    }


def extract(
    encode: Callable[[Any, Any], dict[str, jax.Array]],
    variables: Any,
    source: Source,
    rows: np.ndarray,
    batch: int,
    cluster: host.Cluster,
) -> tuple[np.ndarray, np.ndarray]:
    """Features of some rows of a source, read and computed by all processes together.

    Args:
      encode: from `compile_encode`.
      variables: of the encoder.
      source: where the images are.
      rows: int [n], in the order in which the features are wanted.
      batch: images at a time over all devices; rounded up to a multiple of them.
      cluster: the processes of the run.

    Returns:
      features float32 [n, d] and labels int32 [n], on every process.
    """
    devices = jax.device_count()
    batch = -(-batch // devices) * devices
    picked = source._replace(examples=len(rows), read=lambda i: source.read(rows[i]))
    with loader.in_order(
        picked,
        batch=batch,
        process=cluster.process,
        processes=cluster.processes,
        here=cluster.here,
    ) as batches:
        outputs = (encode(variables, batch) for batch in batches)
        return collect.extract(outputs)


def subset(examples: int, most: int) -> np.ndarray:
    """`most` rows of 0 … examples − 1, fixed and spread evenly at random; all where they are few.

    Returns:
      int64 [min(examples, most)], ascending.
    """
    return np.sort(loader.order(0, 0, examples)[:most])


def of_method(method: Method, name: str | None) -> Encoder:
    """The encoder of a method by name; None: the one that it names first.

    Raises:
      UserError: it has none of that name.
    """
    known = method.encoders
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        raise UserError(f"--config.encoder is {name!r}.{near_misses(name, known)}")
    return known[name]


def restore(
    folder: pathlib.Path,
    mesh,
    name: str | None = None,
    select: Callable[[Method, TrainState], Any] | None = None,
    step: str = "last",
    dtype: str | None = None,
) -> Restored:
    """Reads an encoder, and only it, from a checkpoint of a run.

    Nothing in the run's folder is changed, and the run may be training meanwhile.

    Args:
      folder: the run's workdir, or the path of one of its checkpoints.
      mesh: from `layout.mesh()`.
      name: of the encoder; None: the method's first.
      select: (method, whole state) -> the leaves to read instead of the encoder's.
      step: 'last' (the newest that is whole), 'best' by `config.checkpoint.best` of the run, or a
        number; see `kept.resolve`.
      dtype: of the network's computation, in place of the run's own; it becomes that of
        `Restored.saved`. The parameters are float32 in any case.

    Raises:
      UserError: no such run, no such encoder, no such checkpoint, none that is whole, or one of
        another model.
    """
    folder, number = kept.locate(folder)
    which = step if number is None else str(number)
    saved = past.read(folder)
    if saved is None:
        raise UserError(f"--config.checkpoint: there is no run in {folder} (no config.json)")
    trained_in = saved.config.model.get("dtype", "float32")
    if dtype is not None:
        config = saved.config.copy_and_resolve_references()
        with config.unlocked():
            config.model.dtype = dtype
        saved = saved._replace(config=config)
    try:
        method, create = creation(saved)
        shapes = jax.eval_shape(create, jax.random.key(0))
    except UserError:
        raise
    except Exception as error:
        reason = line(error)
        raise UserError(
            f"{folder / 'config.json'} describes no model of this version "
            f"({type(error).__name__}: {reason})"
        ) from error
    encoder = of_method(method, name)

    def pick(state):
        if select is not None:
            return select(method, state)
        return encoder.variables(state.params, state.state)

    whole = layout.replicated(mesh)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)
    with store.open_manager(folder / "checkpoints", 1, read_only=True) as manager:
        if verify.steps(folder / "checkpoints") == [] and which == "last":
            raise UserError(f"--config.checkpoint: {folder} has no finished checkpoint yet")
        best = kept.FINETUNED if saved.finetuned else kept.parse(saved.config.checkpoint.best)
        picked, at = kept.read(
            manager, which, lambda step: reading.restore_part(manager, step, like, pick), best
        )
    return Restored(saved, at, encoder, picked, trained_in)


def untrained(saved: workdir.Saved, mesh, name: str | None = None) -> Any:
    """Variables of an encoder as the run began with them, on every device of the mesh.

    Args:
      saved: of the run.
      mesh: from `layout.mesh()`.
      name: of the encoder; None: the method's first.
    """
    method, create = creation(saved)
    encoder = of_method(method, name)

    def first(key):
        state = create(key)
        return encoder.variables(state.params, state.state)

    # XLA drops what the encoder does not need.
    made = jax.jit(first, out_shardings=layout.replicated(mesh))
    return made(jax.random.key(saved.config.seed))


def creation(saved: workdir.Saved) -> tuple[Method, Callable[[jax.Array], TrainState]]:
    """The method of a run, or of its fine-tuning, and key -> its first state.

    (Without the state of the optimizer.)
    """
    config = saved.config
    method = METHODS[config.method.name](config, saved.run)
    if saved.finetuned is not None:
        own, classes = saved.finetuned["config"], saved.finetuned["classes"]
        method = supervised.of_config(own, of_method(method, own.get("encoder")), classes)

    def optimizer_of(params):  # its state is neither read nor needed
        import optax

        return optax.identity()

    return method, make_create(method, optimizer_of, specs(saved.run.fields, config.batch))
