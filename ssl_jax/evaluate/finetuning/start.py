"""Where a fine-tuning begins: its folder, its newest checkpoint or the encoder of the run."""

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax.augment.mixing import Mixing
from ssl_jax.checkpoints import reading, verify
from ssl_jax.contract.method import Run
from ssl_jax.devices import layout
from ssl_jax.errors import UserError, line
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.finetuning.plan import Plan
from ssl_jax.models import positions
from ssl_jax.optim import rules
from ssl_jax.runs import config as configs
from ssl_jax.runs import workdir
from ssl_jax.train import past, supervised
from ssl_jax.train.state import TrainState

# Besides those of pretraining (runs/config.py): fields that may differ when it is continued.
FREE_ON_RESUME = ("monitor_every", "checkpoint_every")


def inherited(config: ConfigDict, saved: workdir.Saved) -> ConfigDict:
    """The config of a fine-tuning; of a fine-tuned run what it leaves open is as it was there.

    (`model.pool` None is "as in the run", and the encoder is one of the pretraining's method.)

    Raises:
      UserError: it would begin with the scores of a classifier.
    """
    if saved.finetuned is None:
        return config
    if config.encoder not in (None, "encoder"):
        raise UserError(
            f"--config.encoder={config.encoder}: a fine-tuning of a fine-tuning begins with its "
            "encoder"
        )
    before, whole = saved.finetuned["config"], config.copy_and_resolve_references()
    with whole.unlocked(), whole.ignore_type():
        whole.encoder = before.get("encoder")
        for field, value in before.model.items():
            if whole.model.get(field) is None:
                whole.model[field] = value
    return whole


def claim(config: ConfigDict, o: probing.Opened, facts: Run, manager) -> None:
    """Writes job.json, or finds the one of the same training.

    A training that has not saved anything yet gives way to another.

    Raises:
      UserError: the folder holds a checkpoint of another fine-tuning.
    """
    file = o.folder / "job.json"
    own = {
        "config": json.loads(configs.to_json(config)),
        "run": str(o.run.resolve()),
        "step": o.restored.step,
        "data": o.learn.source.name,
        "identity": o.learn.source.identity,
        "images": facts.examples,
    }
    if manager.latest_step() is not None:
        try:
            there = json.loads(file.read_text())
            before = completed(there["config"], o.restored.trained_in, config.recipe)
            changed = configs.differences(ConfigDict(before), ConfigDict(own["config"]))
            names = [name for name in own if name not in ("config", "identity")]
            changed += [name for name in names if there[name] != own[name]]
            if "pretrained" in there:  # the folder of the run may hold another one by now
                then = configs.from_json(json.dumps(there["pretrained"]["config"]))
                fields = configs.differences(past.complete(then), o.restored.saved.config)
                moved = (*configs.MOVED, "model.dtype")
                changed += [f"{name} of the run" for name in fields if name not in moved]
            # The same pictures at another place.
            if own["identity"] and there.get("identity") == own["identity"]:
                changed = [name for name in changed if name not in ("data", *configs.MOVED)]
        except (
            *(OSError, ValueError, KeyError),
            *(TypeError, AttributeError, RecursionError),  # JSON, but not what `own` is
        ) as error:
            reason = line(error)
            raise UserError(
                f"{file} is damaged ({type(error).__name__}: {reason}); choose another --workdir"
            ) from None
        changed = [name for name in changed if name not in FREE_ON_RESUME]
        if changed:
            raise UserError(
                f"{o.folder} holds a fine-tuning that differs in {', '.join(changed)}; choose "
                "another --workdir, or the same values to continue it"
            )
    elif jax.process_index() == 0:
        # What its checkpoints are read with, wherever the pretraining run may be by then.
        pretrained = workdir.described(o.folder, o.restored.saved)
        workdir.write_json(file, {**own, "classes": o.classes, "pretrained": pretrained})


def completed(before: dict[str, Any], dtype: str, recipe: str) -> dict[str, Any]:
    """The config of a fine-tuning, with the fields that are younger than it as they were meant.

    Args:
      before: of job.json.
      dtype: that the run was trained in, as its fine-tuning then was.
      recipe: that is asked for now. Then there was none, and a long one was kept.
    """
    kept = "keep" if recipe == "tenth" else recipe
    young = {"step": "last", "encoder": None, "dtype": dtype, "recipe": kept}
    group = 0 if supervised.is_mixed(Mixing(**before["mixing"])) else Mixing().group
    data, mixing = {"range": None, **before["data"]}, {"group": group, **before["mixing"]}
    return {**young, **before, "data": data, "mixing": mixing}


def begin(config: ConfigDict, o: probing.Opened, plan: Plan, manager) -> tuple[TrainState, int]:
    """The newest checkpoint of this training, or the encoder of the run and a fresh head.

    Returns:
      (state on all devices, steps done).

    Raises:
      UserError: `fresh` names no parameter.
    """
    whole = layout.replicated(o.mesh)
    latest = verify.newest(manager)
    if latest is not None:
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
            jax.eval_shape(plan.create, jax.random.key(config.seed)),
        )
        return reading.restore(manager, latest, like), latest
    state = plan.create(jax.random.key(config.seed))
    if config.scratch:
        return state, 0
    learned = {**o.restored.variables, "params": with_positions(config, o)}
    names = [rules.name_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(learned["params"])]
    for pattern in config.fresh:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(f"--config.fresh: the encoder has no parameter that fits {pattern!r}")
    keep = rules.outside(tuple(config.fresh), learned["params"])

    def adopt(state, learned):  # copies: the first step donates the state
        params = jax.tree.map(
            lambda kept, old, new: jnp.copy(old if kept else new).astype(new.dtype),
            keep,
            learned["params"],
            state.params["encoder"],
        )
        stats = jax.tree.map(
            lambda old, new: jnp.copy(old).astype(new.dtype),
            learned["batch_stats"],
            state.state["batch_stats"],
        )
        return state._replace(
            params={**state.params, "encoder": params}, state={"batch_stats": stats}
        )

    return jax.jit(adopt, out_shardings=whole)(state, learned), 0


def with_positions(config: ConfigDict, o: probing.Opened) -> Any:
    """Parameters of the run's encoder; fixed positions among them where they are to be learned."""
    params, net = o.restored.variables["params"], o.restored.encoder.network
    if config.model.positions != "learned" or "positions" in params:
        return params
    table = positions.sincos(net.width, net.size // net.patch, net.positions)
    whole = jnp.pad(jnp.asarray(table), ((int(net.token), 0), (0, 0)))  # the class token has none
    return {**params, "positions": jax.device_put(whole, layout.replicated(o.mesh))}
