"""Retrieval: nearest neighbours of images, in numbers and as a picture."""

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.errors import UserError, near_misses
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import encoder, representation
from ssl_jax.evaluate.probes import neighbours, retrieval
from ssl_jax.processes import host
from ssl_jax.report import pictures
from ssl_jax.runs import workdir

GALLERIES = ("train", "test")


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """Searches the images nearest to each query by cosine (evaluate/probes/retrieval.py).

    Queries are the images to judge on; the gallery is the images to learn from, or, with
    `config.gallery` = 'test', the queries themselves, each left out of its own list. Without labels
    there are no numbers: training images search among each other for the picture alone.

    Args:
      config: `probing.defaults('retrieve')` with gallery, ks, shown, columns and seed.
      cluster: the processes of the job.
      name: of the config; not used.

    Returns:
      exit code 0.

    Raises:
      UserError: an unknown gallery, a k or a size of the picture that cannot be, and see
        `probing.begin`, `probing.open_run` and `retrieval.measure`.
    """
    if config.gallery not in GALLERIES:
        raise UserError(
            f"--config.gallery is {config.gallery!r}.{near_misses(config.gallery, GALLERIES)}"
        )
    if config.shown < 0 or config.columns < 1:
        raise UserError(
            f"--config.shown={config.shown} must be at least 0 and "
            f"--config.columns={config.columns} at least 1"
        )
    probing.each(config, cluster, lambda o: measure(o, config), labels=False)
    return 0


def measure(o: probing.Opened, config: ConfigDict) -> dict[str, float]:
    """Recall and MAP@R of one run, where there are labels, and neighbours.png of images."""
    query_part = o.judge or o.learn
    alone = o.judge is None or config.gallery == "test"
    gallery_part = query_part if alone else o.learn
    if o.judge is not None:
        retrieval.check_ks(tuple(config.ks), len(gallery_part.rows) - int(alone))
    encode = encoder.compile_encode(o.restored.encoder.features, o.mesh)

    def extract(part):
        return encoder.extract(encode, o.restored.variables, *part, config.batch, o.cluster)

    features, labels = extract(query_part)
    gallery, gallery_labels = (features, labels) if alone else extract(gallery_part)
    own = np.arange(len(features)) if alone else np.full(len(features), -1)
    query = retrieval.Query(features, labels, own)
    found = {}
    judged = o.judge is not None and representation.labelled(
        (gallery, gallery_labels), (features, labels)
    )
    if judged:
        found = retrieval.measure(gallery, gallery_labels, query, tuple(config.ks), o.mesh)
    elif jax.process_index() == 0:
        pictured = "image" in query_part.source.fields
        print(f"{o.dataset} has no labels: no recall" + ", the picture alone" * pictured)
    if config.shown and "image" in query_part.source.fields:
        draw(o, config, judged, query_part, query, gallery_part, gallery, gallery_labels)
    return found


def draw(
    o: probing.Opened,
    config: ConfigDict,
    judged: bool,
    query_part: representation.Part,
    query: retrieval.Query,
    gallery_part: representation.Part,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
) -> None:
    """Writes neighbours.png: queries, and beside each the nearest images of the gallery."""
    # Where there are labels, what has none is neither shown nor found.
    known = gallery_labels >= 0 if judged else np.ones(len(gallery), bool)
    rows = np.flatnonzero(query.labels >= 0) if judged else np.arange(len(query.labels))
    rows = rows[retrieval.pick(query.labels[rows], config.shown, config.seed)]
    shown = retrieval.Query(*(x[rows] for x in query))
    columns = min(config.columns, int(known.sum()) - int(shown.own[0] >= 0))
    if columns < 1:  # a single image has no neighbour
        return
    near = retrieval.search(gallery, shown, columns, known, o.mesh)
    path, picture = o.folder / "neighbours.png", None
    if jax.process_index() == 0:
        picture = sheet(o, judged, shown, query_part, rows, gallery_part, gallery_labels, near)
    workdir.write_file(path, picture, pictures.AGAIN)
    if picture is not None:
        print(f"pictures of the neighbours: {path}")


def sheet(
    o: probing.Opened,
    judged: bool,
    shown: retrieval.Query,
    query_part: representation.Part,
    rows: np.ndarray,
    gallery_part: representation.Part,
    gallery_labels: np.ndarray,
    near: neighbours.Neighbours,
) -> bytes:
    """The picture of what was found, as PNG; under each image stands the name of its file."""
    right = gallery_labels[near.index] == shown.labels[:, None] if judged else None
    asked, found = query_part.rows[rows], gallery_part.rows[near.index]
    images = query_part.source.read(asked)["image"]
    flat = gallery_part.source.read(found.ravel())["image"]
    names = o.class_names or tuple(map(str, range(o.classes)))
    method = o.restored.saved.config.method.name
    files = None
    if query_part.source.describe and gallery_part.source.describe:
        files = [
            [query_part.source.describe(q), *map(gallery_part.source.describe, several)]
            for q, several in zip(asked.tolist(), found.tolist(), strict=True)
        ]
    return pictures.png(
        lambda file: pictures.neighbours_sheet(
            file,
            images,
            flat.reshape(*near.index.shape, *flat.shape[1:]),
            near.similarity,
            right,
            [names[i] if 0 <= i < len(names) else "" for i in shown.labels],
            files,
            title=f"Nearest images: {method} on {o.dataset}",
        )
    )
