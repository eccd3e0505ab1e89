"""Dense probes: segmentation and depth read off frozen feature maps by one linear layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.checkpoints import kept
from ssl_jax.data.sources import scenes
from ssl_jax.errors import UserError, near_misses
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.dense import depth, maps, segmentation
from ssl_jax.evaluate.dense import probe as dense
from ssl_jax.evaluate.dense import scores as dense_scores
from ssl_jax.evaluate.features import encoder
from ssl_jax.processes import host
from ssl_jax.report import dense_pictures, pictures
from ssl_jax.runs import workdir
from ssl_jax.train import past

TASKS = ("segment", "depth", "both")
SHOWN = 6  # scenes in the picture
MAIN = ("miou", "rmse")  # of the baselines, what is printed and averaged over runs


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """Linear segmentation and depth of drawn scenes (evaluate/dense/, data/sources/scenes.py).

    Beside the run's encoder it measures the same encoder untrained, the pixels under each cell of
    the map, and a constant: the commonest class and the geometric mean depth. dense.png shows six
    test scenes and what was found in them.

    Args:
      config: as configs/dense.py has it.
      cluster: the processes of the job.
      name: of the config; not used.

    Returns:
      exit code 0.

    Raises:
      UserError: see `probing.begin` and `probing.open_run`; an unknown task or stage, a source
        without masks and depth, or images that the encoder cannot take.
    """
    check(config)
    runs = probing.begin(config, cluster)
    results = []
    for folder in runs:
        sized = config.copy_and_resolve_references()
        if sized.data.size is None:
            sized.data.size = past.read(kept.locate(folder)[0]).config.evaluate.size
        o = probing.open_run(sized, folder, cluster, alone=len(runs) == 1, labels=False)
        results.append(probing.conclude(o, config, measure(o, sized)))
    if len(runs) > 1:
        probing.summarise(config, results)
    return 0


def check(config: ConfigDict) -> None:
    """Checks the fields that only this job has.

    Raises:
      UserError: the first that cannot be right, and what it may be.
    """
    if config.task not in TASKS:
        raise UserError(f"--config.task is {config.task!r}.{near_misses(config.task, TASKS)}")
    if config.data.source != "scenes":
        raise UserError(
            f"--config.data.source is {config.data.source!r}, but dense needs the class and the "
            "depth of every pixel; only scenes has them"
        )
    if config.data.size is not None and config.data.size < 1:
        raise UserError(f"--config.data.size is {config.data.size}; it must be at least 1")
    for field in ("epochs", "batch", "step_batch"):
        if config[field] <= 0:
            raise UserError(f"--config.{field} is {config[field]}; it must be above 0")
    for field in ("learning_rates", "weight_decays", "ridges"):
        values, above = config[field], field == "learning_rates"
        if not values or not all(v > 0 or (v == 0 and not above) for v in values):
            least = "above 0" if above else "0 or more"
            raise UserError(f"--config.{field} is {tuple(values)}; it takes numbers, {least}")


def measure(o: probing.Opened, config: ConfigDict) -> dict[str, Any]:
    """All feature sets by the same probes on the same scenes; writes the picture.

    Args:
      o: a run with scenes.
      config: of the job, with a size.
    """
    size, channels = config.data.size, o.learn.source.fields["image"].shape[-1]
    judged = "test" if config.split == "test" else "train"
    learn = o.learn.source._replace(
        read=maps.labelled("train", size, channels), padding=maps.PADDING
    )
    judge = o.judge.source._replace(
        read=maps.labelled(judged, size, channels), padding=maps.PADDING
    )

    def open_sets(encode, variables):
        common = (config.batch, o.cluster, config.cache_bytes)
        return (
            maps.open_set(encode, variables, learn, o.learn.rows, *common),
            maps.open_set(encode, variables, judge, o.judge.rows, *common),
        )

    encode = maps.compile_encoder(o.restored.encoder, o.mesh, config.stage, size)
    train, test = open_sets(encode, o.restored.variables)
    kept, shown = train.kept, np.arange(min(SHOWN, config.batch, test.examples))
    sample = next(test.read(shown, config.batch))
    sample = jax.tree.map(lambda x: x[: len(shown)], sample)  # without padding
    table, drawn = {}, {}
    table["learned"], heads, facts = probe(train, test, o, config)
    if "segment" in heads:
        out = dense.outputs(heads["segment"], sample.features, facts.mean, facts.scale, size)
        drawn["masks"] = sample.mask, np.asarray(jnp.argmax(out[0], -1))
    if "depth" in heads:
        out = dense.outputs(heads["depth"], sample.features, facts.mean, facts.scale, size)
        metres = depth.depth_of(out[0], facts.nearest, facts.farthest)
        drawn["depths"] = sample.depth, np.asarray(metres)
    constant = dense.constants(test, facts, config.batch)

    for name, compiled, variables in (
        ("untrained", encode, encoder.untrained(o.restored.saved, o.mesh, o.encoder)),
        ("pixels", maps.compile_pixels(sample.features.shape[1], o.mesh, size), {}),
    ):
        del train, test  # before the next maps are kept
        train, test = open_sets(compiled, variables)
        table[name], *_ = probe(train, test, o, config)
    counts = None if config.task == "depth" else constant[0]
    sums = None if config.task == "segment" else constant[1]
    table["constant"] = dense_scores.named(counts, sums, scenes.CLASSES)

    picture = None
    if jax.process_index() == 0:
        picture = pictures.png(
            lambda file: dense_pictures.sheet(
                file,
                judge.read(o.judge.rows[shown])["image"],
                drawn.get("masks"),
                drawn.get("depths"),
                scenes.CLASSES,
                title(o, table["learned"]),
            )
        )
    workdir.write_file(o.folder / "dense.png", picture, pictures.AGAIN)
    baselines = {
        f"{key}_{name}": found[key]
        for key in MAIN
        for name, found in table.items()
        if name != "learned" and key in found
    }
    best = {k: v for k, v in table["learned"].items() if isinstance(v, float)}
    cells = list(sample.features.shape[1:])
    return {
        **best,
        **baselines,
        "maps": {"shape": cells, "kept": kept, "size": size},
        "table": table,
    }


def probe(
    train: maps.Set, test: maps.Set, o: probing.Opened, config: ConfigDict
) -> tuple[dict[str, Any], dict[str, dense.Head], dense.Statistics]:
    """What one feature set is worth.

    Returns:
      ({measure: value, 'iou': of every class, 'chosen': hyperparameters}, {task: its head}, facts
      of the training images).
    """
    places = (o.mesh, o.cluster)
    facts = dense.statistics(train, config.batch, len(scenes.CLASSES))
    heads, chosen, matrix, sums = {}, {}, None, None
    if config.task != "depth":
        heads["segment"], chosen["segment"] = segmentation.segment(
            train,
            facts,
            tuple(config.learning_rates),
            tuple(config.weight_decays),
            config.epochs,
            config.step_batch,
            config.batch,
            config.seed,
            *places,
        )
        everything = np.arange(test.examples)
        matrix = segmentation.confusions(
            test, everything, facts, heads["segment"], config.batch, *places
        )
        matrix = matrix[0]
    if config.task != "segment":
        heads["depth"], chosen["depth"] = depth.regress(
            train, facts, tuple(config.ridges), config.batch, config.seed, *places
        )
        sums = depth.depth_errors(test, facts, heads["depth"], config.batch, *places)
    return dense_scores.named(matrix, sums, scenes.CLASSES) | {"chosen": chosen}, heads, facts


def title(o: probing.Opened, learned: dict[str, Any]) -> str:
    """'simclr on scenes: mIoU 41.2 %, depth RMSE 0.71 m'."""
    said = []
    if "miou" in learned:
        said.append(f"mIoU {100 * learned['miou']:.1f} %")
    if "rmse" in learned:
        said.append(f"depth RMSE {learned['rmse']:.2f} m")
    return f"{o.restored.saved.config.method.name} on scenes: {', '.join(said)}"
