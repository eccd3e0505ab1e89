"""From a checkpoint, or a training state, to features: the encoder alone, as probes see it."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.checkpoints import store, verify
from ssl_jax.contract.method import Method
from ssl_jax.contract.source import Source
from ssl_jax.data import loader
from ssl_jax.devices import layout, mapping
from ssl_jax.errors import UserError
from ssl_jax.evaluate.features import collect as features
from ssl_jax.methods import METHODS
from ssl_jax.models import heads
from ssl_jax.processes import host
from ssl_jax.runs import workdir
from ssl_jax.train.state import TrainState, make_create


class Restored(NamedTuple):
    """An encoder read back from a run.

    Attributes:
      saved: the config and facts of the run.
      step: optimizer steps it was trained for.
      variables: {'params': …, 'batch_stats': …} of the encoder, or what `select` picked, on every
        device of the mesh.
    """

    saved: workdir.Saved
    step: int
    variables: Any


def compile_encode(
    config: ConfigDict,
    mesh,
    features: Callable[[Any, Any, jax.Array], jax.Array] | None = None,
    interpolation: str = "bilinear",
) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """Compiles the encoder in evaluation mode over all devices.

    Args:
      config: of the run; `config.model` and `config.evaluate` are used.
      mesh: from `layout.mesh()`.
      features: (model, variables, x float [b, h, w, C]) -> [b, d]; None: what the model returns.
      interpolation: of the fixed view, see `augment.evaluate`.

    Returns:
      encode(variables, {'image': uint8 [b,H,W,C], 'index': int32 [b], 'label': int32 [b]}) ->
      {'image': features float32 [B,d], 'label': int32 [B], 'valid': bool [B]}, in global order.
    """
    model = models.make(config.model)
    view = config.evaluate
    features = features or pooled

    def encode(variables, rows):
        x = augment.evaluate(
            rows["image"], view.size, view.mean, view.std, view.crop_fraction, interpolation
        )
        return _outputs(features(model, variables, x), rows)

    return mapping.compile_rows(encode, mesh)


def compile_augmented(
    config: ConfigDict,
    mesh,
    policy: augment.Policy,
    seed: int,
    features: Callable[[Any, Any, jax.Array], jax.Array] | None = None,
) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """As `compile_encode`, but the encoder sees a random view of every image.

    The noise of an image is a function of (seed, epoch, index of the image), so features do not
    depend on batches or devices.

    Args:
      config, mesh, features: as for `compile_encode`.
      policy: of the view.
      seed: of the noise.

    Returns:
      encode((variables, epoch int32 []), rows), otherwise as `compile_encode`'s.
    """
    model = models.make(config.model)
    features = features or pooled

    def encode(whole, rows):
        variables, epoch = whole
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(rows["index"])
        return _outputs(
            features(model, variables, augment.apply(policy, keys, rows["image"])), rows
        )

    return mapping.compile_rows(encode, mesh)


def pooled(model: Any, variables: Any, x: jax.Array) -> jax.Array:
    """The features that the model itself returns, float32 [b, d]."""
    return model.apply(variables, x, train=False)


def last_blocks(blocks: int, average: bool) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """Features of DINO's linear evaluation, to be given to `compile_encode`.

    The class tokens of the last `blocks` blocks, each through the final norm, side by side; with
    `average` the mean of the last block's patch tokens besides. DINO (eval_linear.py) takes
    4 blocks for ViT-S, and 1 block and the average for ViT-B.

    Args:
      blocks: number of blocks, at least 1.
      average: add the mean of the patch tokens.

    Returns:
      (ViT, variables, x [b, h, w, C]) -> float32 [b, (blocks + average) · D].
    """

    def features(model, variables, x):
        token, patches = model.apply(variables, x, blocks, method="last_blocks")
        parts = token.reshape(len(x), -1)  # [b, n, D] -> [b, n · D]
        if not average:
            return parts
        return jnp.concatenate([parts, jnp.mean(patches[:, -1], 1)], 1)  # [b, N, D] -> [b, D]

    return features


def projected(config: ConfigDict) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """Embeddings behind the projector, to be given to `compile_encode` with its variables.

    Args:
      config: of the run.

    Returns:
      (encoder, variables of `with_projector`, x [b, h, w, C]) -> float32 [b, d].

    Raises:
      UserError: the method has no projector that is an MLP on the encoder's features.
    """
    fields = config.method.get("projector")
    if not isinstance(fields, ConfigDict) or "widths" not in fields:
        raise UserError(f"{config.method.name} has no projector; use --config.features=learned")

    def features(model, variables, x):
        h = pooled(model, variables["encoder"], x)
        projector = heads.MLP(**fields, dtype=model.dtype)
        return projector.apply(variables["projector"], h, train=False)

    return features


def with_projector(method: Method, state: TrainState) -> dict[str, Any]:
    """Variables of encoder and projector, for `restore`."""
    params, stats = state.params["projector"], state.state["projector"]
    return {
        "encoder": method.encoder(state.params, state.state),
        "projector": {"params": params, "batch_stats": stats},
    }


def _outputs(features: jax.Array, rows: Any) -> dict[str, jax.Array]:
    return {
        "image": features.astype(jnp.float32),
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
        picked, batch=batch, process=cluster.process, processes=cluster.processes
    ) as batches:
        outputs = (encode(variables, batch) for batch in batches)
        return features.extract(lambda out: out, outputs)


def subset(examples: int, most: int) -> np.ndarray:
    """`most` rows of 0 … examples − 1, fixed and spread evenly at random; all where they are few.

    Returns:
      int64 [min(examples, most)], ascending.
    """
    return np.sort(loader.order(0, 0, examples)[:most])


def restore(
    folder: pathlib.Path,
    mesh,
    select: Callable[[Method, TrainState], Any] = lambda method, s: method.encoder(
        s.params, s.state
    ),
) -> Restored:
    """Reads the encoder, and only it, from the newest checkpoint of a run that is whole.

    Nothing in the run's folder is changed, and the run may be training meanwhile.

    Args:
      folder: the run's workdir.
      mesh: from `layout.mesh()`.
      select: (method, whole state) -> the leaves to read instead of the encoder's.

    Raises:
      UserError: no such run, no checkpoint, none that is whole, or one of another model.
    """
    saved = workdir.read_config(folder)
    if saved is None:
        raise UserError(f"--config.checkpoint: there is no run in {folder} (no config.json)")
    try:
        method, create = creation(saved)
        shapes = jax.eval_shape(create, jax.random.key(0))
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder / 'config.json'} describes no model of this version "
            f"({type(error).__name__}: {reason})"
        ) from error
    whole = layout.replicated(mesh)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)
    with store.open_manager(folder / "checkpoints", 1, read_only=True) as manager:
        found = verify.read_newest(
            manager,
            lambda step: store.restore_part(manager, step, like, lambda s: select(method, s)),
        )
    if found is None:
        raise UserError(f"--config.checkpoint: {folder} has no finished checkpoint yet")
    picked, step = found
    return Restored(saved, step, picked)


def untrained(saved: workdir.Saved, mesh) -> Any:
    """Variables of the encoder as the run began with them, on every device of the mesh."""
    method, create = creation(saved)

    def first(key):
        state = create(key)
        return method.encoder(state.params, state.state)

    # XLA drops what the encoder does not need.
    made = jax.jit(first, out_shardings=layout.replicated(mesh))
    return made(jax.random.key(saved.config.seed))


def creation(saved: workdir.Saved) -> tuple[Method, Callable[[jax.Array], TrainState]]:
    """The method of a run, and key -> its first state, without that of the optimizer."""
    config = saved.config
    shape = (config.batch, config.data.size, config.data.size, config.data.channels)
    local = {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "index": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
        "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    }
    method = METHODS[config.method.name](config, saved.run)

    def optimizer_of(params):  # its state is neither read nor needed
        import optax

        return optax.identity()

    return method, make_create(method, optimizer_of, local)
