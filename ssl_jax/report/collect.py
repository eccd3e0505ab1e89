"""From a run's folder, and its encoder where there is one, to what its page shows."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import augment
from ssl_jax.contract import batch as batches
from ssl_jax.contract.method import Method
from ssl_jax.contract.source import Source
from ssl_jax.errors import UserError
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import encoder
from ssl_jax.evaluate.features.representation import Part
from ssl_jax.evaluate.health import collapse
from ssl_jax.evaluate.probes import knn
from ssl_jax.logs import metrics as logs
from ssl_jax.report import attention, pictures, prototypes
from ssl_jax.report.contents import Neighbours, Pictures, Points, Run, Shown
from ssl_jax.runs import commands, completion, workdir
from ssl_jax.train import past
from ssl_jax.train.state import TrainState

POINTS = 1_000  # of the plane; t-SNE takes seconds
SAMPLE = 8  # images whose views, reconstructions and attention are shown
VIEWS = 6  # of each image, by each policy
QUERIES, NEAREST = 10, 8
ALIKE = 0.01  # variance of unit-length features below which it is named; isotropic ones have 1
OWN = "views"  # name of a Show that takes the place of `views_of`


class Weights(NamedTuple):
    """What the pictures need of a training state, besides the features.

    Attributes:
      encoder: variables of the method's first.
      show: of every `Method.show`, by its name.
      prototypes: of `Method.prototypes`; None of a method without.
    """

    encoder: Any
    show: Mapping[str, Any]
    prototypes: Any


class Seen(NamedTuple):
    """Features of a run and the images that they are of.

    Attributes:
      learn: images that probes learn from.
      shown: images that they are judged on, or `learn` again.
      bank: float32 [n, d], learned features of `learn`.
      features: float32 [m, d], of `shown`.
      untrained: float32 [m, d], what the encoder made of `shown` before training.
      labels: int32 [m], of `shown`, -1: none.
      predicted: int32 [m], by kNN; None without labels.
      names: of the classes; empty without labels.
      spectra: name -> float [s], singular values of the features of `learn`.
    """

    learn: Part
    shown: Part
    bank: np.ndarray
    features: np.ndarray
    untrained: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray | None
    names: tuple[str, ...]
    spectra: Mapping[str, np.ndarray]


def run_of(
    folder: pathlib.Path,
    drawn: Pictures | None,
    notes: tuple[str, ...] = (),
    width: int | None = None,
) -> Run:
    """All about a run that its folder holds; the encoder is not needed.

    Args:
      folder: its workdir.
      drawn: what needs the encoder.
      notes: what is missing, and why.
      width: of the features, if it is known already.

    Raises:
      UserError: there is no run in the folder.
    """
    saved = workdir.read_config(folder)
    if saved is None:
        raise UserError(f"there is no run in {folder} (no config.json)")
    whole = past.complete(saved.config)
    metrics = folder / "metrics.jsonl"
    records = logs.read(metrics) if metrics.exists() else []
    result, missing = None, "The run is not finished: there is no result.json."
    try:
        result = workdir.read_result(folder)
    except UserError as error:
        missing = f"No result: {error}."
    if not records:
        notes = (*notes, "There are no metrics yet.")
    total = saved.run.total_steps
    total += round(whole.extend * saved.run.steps_per_epoch)
    if result is None:
        notes = (missing, *notes)
    elif type(result.get("steps")) is int and result["steps"] < total:
        behind = f"The result is of step {result['steps']:,}; the run goes on to {total:,}."
        notes = (behind, *notes)
    said = (result or {}).get("width")  # younger than some results
    if width is None and type(said) is int and 0 < said < 2**31:
        width = said
    return Run(
        name=folder.resolve().name,
        folder=str(folder),
        config=saved.config.to_dict(),
        total_steps=total,
        steps_per_epoch=saved.run.steps_per_epoch,
        records=records,
        result=result,
        width=width or width_of(saved),
        command=commands.run_command(whole, str(folder)),
        pictures=drawn,
        notes=notes,
        later=completion.added(saved.config, whole),
    )


def width_of(saved: workdir.Saved) -> int | None:
    """Width of the features of a run's first encoder; None if this version cannot make it."""
    try:
        method, create = encoder.creation(saved)
        first = encoder.of_method(method, None)

        def features(key, batch):
            state = create(key)
            return first.features(first.variables(state.params, state.state), batch)

        shapes = batches.specs(saved.run.fields, saved.config.batch)
        return jax.eval_shape(features, jax.random.key(0), shapes).shape[1]
    except Exception:
        return None  # `encoder.restore` says what is wrong, to those who ask for pictures


def weights(method: Method, state: TrainState) -> Weights:
    """Picks leaves of a training state, arrays or shapes."""
    whole = state.params, state.state
    return Weights(
        encoder=encoder.of_method(method, None).variables(*whole),
        show={name: show.variables(*whole) for name, show in method.show.items()},
        prototypes=method.prototypes and method.prototypes.variables(*whole),
    )


def see(o: probing.Opened, batch: int) -> Seen:
    """Runs the encoder of a run, learned and untrained, over its images. All processes join in.

    Args:
      o: the run.
      batch: images at a time over all devices.
    """
    saved = o.restored.saved
    encode = encoder.compile_encode(o.restored.encoder.features, o.mesh)

    def extract(variables, part):
        return encoder.extract(encode, variables, *part, batch, o.cluster)

    first = encoder.untrained(saved, o.mesh, o.encoder)
    shown = o.judge or o.learn
    bank, bank_labels = extract(o.restored.variables, o.learn)
    first_bank, _ = extract(first, o.learn)
    features, labels, untrained, predicted = bank, bank_labels, first_bank, None
    if o.judge is not None:
        features, labels = extract(o.restored.variables, o.judge)
        untrained, _ = extract(first, o.judge)
        if np.isfinite(bank).all() and np.isfinite(features).all():
            scores = knn.classify(bank, bank_labels, features, o.classes)
            predicted = scores.argmax(1).astype(np.int32)
    spectra = {
        name: np.asarray(collapse.measure(x)["singular_values"])
        for name, x in (("untrained", first_bank), ("learned", bank))
    }
    return Seen(
        learn=o.learn,
        shown=shown,
        bank=bank,
        features=features,
        untrained=untrained,
        labels=labels,
        predicted=predicted,
        names=names_of(o.class_names, o.classes),
        spectra=spectra,
    )


class Drawn(NamedTuple):
    """Pictures that the PNGs of a run and its page share.

    Attributes:
      places: of `planes`; None where features are not finite.
      originals: images of the `sample`, uint8 [n, H, W, C]; None of what is no images.
      views: of `views_of`; empty where the method has views of its own, or without images.
      shown: of `shown_by`.
    """

    places: dict[str, np.ndarray] | None
    originals: np.ndarray | None
    views: dict[str, np.ndarray]
    shown: dict[str, Shown]


def draw_sample(config: ConfigDict, method: Method, weights: Weights, source: Source) -> Drawn:
    """Pictures of the `sample` of a source; the places are left out."""
    batch = source.read(sample(source))
    images = batch.get("image")
    own = shown_by(method, weights.show, batch, config.seed)
    views = views_of(config, images) if images is not None and OWN not in own else {}
    return Drawn(None, images, views, own)


def draw(
    config: ConfigDict,
    method: Method,
    weights: Weights,
    seen: Seen,
    drawn: Drawn | None = None,
) -> Pictures:
    """Everything that needs the encoder or the examples. One process alone may call it.

    Args:
      config: of the run.
      method: of the run.
      weights: from `weights`, whole on every device.
      seen: features and examples.
      drawn: what is drawn already, of `seen.learn.source` and at `rows_shown`.
    """
    weights = jax.tree.map(np.asarray, weights)
    drawn = drawn or draw_sample(config, method, weights, seen.learn.source)
    finite = np.isfinite(seen.features).all() and np.isfinite(seen.bank).all()
    rows = rows_shown(len(seen.features))
    points = near = None
    if finite:
        places = drawn.places or planes(seen.features[rows], seen.untrained[rows])
        places = {
            "t-SNE": places["learned"],
            **principal(seen.features[rows]),
            "before training (t-SNE)": places["untrained"],
        }
        source, picked = seen.shown.source, seen.shown.rows[rows]
        points = Points(
            places, images_of(source, picked), seen.labels[rows], called(source, picked)
        )
        near = neighbours(seen)
    confusion = None
    if seen.predicted is not None:
        known = seen.labels >= 0
        confusion = np.zeros((len(seen.names),) * 2, np.int64)
        np.add.at(confusion, (seen.labels[known], seen.predicted[known]), 1)
    used, looks = {}, None
    if method.prototypes and finite:
        used = prototypes.usage(method.prototypes, weights.prototypes, seen.features)
    if drawn.originals is not None and finite:
        first = encoder.of_method(method, None)
        looks = attention.draw(first, weights.encoder, drawn.originals)
    return Pictures(
        names=seen.names,
        points=points,
        neighbours=near,
        confusion=confusion,
        spectra={k: v for k, v in seen.spectra.items() if np.isfinite(v).all()},
        prototypes=used,
        views=drawn.views,
        originals=drawn.originals,
        shown=drawn.shown,
        attention=looks,
        files=called(seen.learn.source, sample(seen.learn.source)),
    )


def names_of(class_names: tuple[str, ...], classes: int) -> tuple[str, ...]:
    """Names of the classes, their numbers where there are none."""
    return tuple(class_names) or tuple(str(i) for i in range(classes))


def sample(source: Source) -> np.ndarray:
    """SAMPLE rows spread evenly over a source, int [n]."""
    return np.linspace(0, source.examples - 1, SAMPLE).astype(np.int64)


def images_of(source: Source, rows: np.ndarray) -> np.ndarray | None:
    """The pictures of some rows, uint8 [n, H, W, C]; None of a source of something else."""
    return source.read(rows)["image"] if "image" in source.fields else None


def called(source: Source, rows: np.ndarray) -> tuple[str, ...]:
    """What some rows are called: the paths of their files, or 'row 12' where they have none."""
    describe = source.describe or (lambda row: f"row {row}")
    return tuple(describe(int(row)) for row in rows)


def views_of(config: ConfigDict, images: np.ndarray) -> dict[str, np.ndarray]:
    """Random views of every image by each policy of `config.views`.

    Args:
      config: of the run.
      images: uint8 [n, H, W, C].

    Returns:
      name of the view -> uint8 [n, VIEWS, size, size, C], normalisation undone.
    """
    found = {}
    n = len(images)
    keys = jax.random.split(jax.random.key(config.seed), n * VIEWS)
    repeated = np.repeat(images, VIEWS, axis=0)  # [n·VIEWS, H, W, C]
    for name, fields in config.views.items():
        policy = augment.make("none", **fields)
        drawn = np.asarray(jax.jit(augment.apply, static_argnums=0)(policy, keys, repeated))
        found[name] = _undone(drawn, policy).reshape(n, VIEWS, *drawn.shape[1:])
    return found


def shown_by(
    method: Method, variables: Mapping[str, Any], batch: Mapping[str, np.ndarray], seed: int
) -> dict[str, Shown]:
    """What a method shows of some examples, see `Method.show`.

    Args:
      method: of the run.
      variables: of every Show, by its name.
      batch: the examples.
      seed: of the run.
    """
    key, found = jax.random.key(seed), {}
    for name, show in method.show.items():
        titles: list[str] = []  # in their order, which a dictionary loses in jit

        def draw(variables, batch, show=show, titles=titles):
            drawn = show.draw(variables, batch, key)
            titles[:] = drawn
            return tuple(drawn.values())

        drawn = jax.jit(draw)(variables[name], batch)
        pairs = zip(titles, map(np.asarray, drawn), strict=True)
        found[name] = Shown(show.said, dict(pairs))
    return found


def _undone(views, policy):
    """uint8 of normalised views [..., C]."""
    mean, std = (_per_channel(x, views.shape[-1]) for x in (policy.mean, policy.std))
    return np.round(255 * np.clip(views * std + mean, 0, 1)).astype(np.uint8)


def _per_channel(values, channels):
    """Normalisation per channel, as augment/pipeline.py reads it: float32 [C]."""
    values = np.asarray(values, np.float32)
    return values if len(values) == channels else np.full(channels, values.mean())


def rows_shown(count: int) -> np.ndarray:
    """At most POINTS of `count` rows, spread evenly: int [n]."""
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(int))


def planes(learned: np.ndarray, untrained: np.ndarray) -> dict[str, np.ndarray]:
    """t-SNE of the learned and the untrained features: float32 [n, 2] each."""
    return {"learned": pictures.project(learned), "untrained": pictures.project(untrained)}


def principal(features: np.ndarray) -> dict[str, np.ndarray]:
    """The first two principal components of unit-length features, both on one scale.

    Features that use one direction are a line, as they are.

    Args:
      features: float [n, d].

    Returns:
      'PCA (52 % + 21 %)': the shares of the variance, with the variance itself where the features
      are nearly all alike -> float32 [n, 2]; the larger axis fills [-1, 1], and a component that
      there is not is 0.
    """
    from sklearn.decomposition import PCA

    x = unit(features)
    total = float(np.var(x, axis=0, dtype=np.float64).sum())  # E|x|² − |E x|², from 0 to 1
    x = PCA(min(2, *x.shape), random_state=0).fit_transform(x) if total > 0 else 0 * x[:, :2]
    x = np.pad(x, ((0, 0), (0, 2 - x.shape[1])))
    shares = np.var(x, axis=0, dtype=np.float64) / max(total, 1e-30)
    name = " + ".join(f"{100 * share:.0f} %" for share in shares)
    if total < ALIKE:
        name += f" of a variance of {total:.0e}"
    x = x - (x.max(0) + x.min(0)) / 2
    return {f"PCA ({name})": (x / max(np.abs(x).max(), 1e-12)).astype(np.float32)}


def neighbours(seen: Seen) -> Neighbours | None:
    """The NEAREST of the bank for QUERIES images: the first of each class, or evenly spread.

    Returns:
      None where the bank has no other image than the query.
    """
    m = len(seen.features)
    rows = np.linspace(0, m - 1, min(m, QUERIES)).astype(int)
    classes = np.unique(seen.labels[seen.labels >= 0])
    if len(classes):
        picked = classes[np.linspace(0, len(classes) - 1, min(len(classes), QUERIES)).astype(int)]
        rows = np.array([np.flatnonzero(seen.labels == c)[0] for c in picked])
    found, cosines = nearest(seen.features[rows], seen.bank, NEAREST + 1)
    images, labels, scores, files = [], [], [], []
    for row, near, cosine in zip(rows, found, cosines, strict=True):
        # Where the images shown are those of the bank, the nearest is the query itself.
        itself = seen.shown.source is seen.learn.source
        other = ~(itself & (seen.learn.rows[near] == seen.shown.rows[row]))
        near, cosine = near[other][:NEAREST], cosine[other][:NEAREST]
        if not len(near):
            return None
        read = seen.learn.source.read(seen.learn.rows[near])
        images.append(read.get("image"))
        labels.append(read["label"] if seen.names else np.full(len(near), -1))
        scores.append(cosine)
        files.append(called(seen.learn.source, seen.learn.rows[near]))
    asked = seen.shown.rows[rows]
    return Neighbours(
        queries=images_of(seen.shown.source, asked),
        query_labels=seen.labels[rows],
        images=None if images[0] is None else np.stack(images),
        labels=np.stack(labels),
        cosines=np.stack(scores),
        query_files=called(seen.shown.source, asked),
        files=tuple(files),
    )


def nearest(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of a bank with the largest cosines, the largest first.

    Args:
      queries: float [q, d].
      bank: float [n, d].
      k: fewer where n is smaller.

    Returns:
      int [q, k] and float32 [q, k].
    """
    cosines = unit(queries) @ unit(bank).T  # [q, d] × [d, n] -> [q, n]
    found = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return found, np.take_along_axis(cosines, found, 1)


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32 [n, d]."""
    x = np.asarray(features, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
