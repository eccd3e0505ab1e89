"""Retrieval: nearest neighbours of images, in numbers and as a picture."""

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.errors import UserError, near_misses
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import encoder, representation
from ssl_jax.evaluate.probes import retrieval
from ssl_jax.processes import host

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
    """Recall and MAP@R of one run, where there are labels, and neighbours.png."""
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
        print(f"{o.dataset} has no labels: no recall, the picture alone")
    if config.shown:
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
    from ssl_jax.report import pictures

    # Where there are labels, what has none is neither shown nor found.
    known = gallery_labels >= 0 if judged else np.ones(len(gallery), bool)
    rows = np.flatnonzero(query.labels >= 0) if judged else np.arange(len(query.labels))
    rows = rows[retrieval.pick(query.labels[rows], config.shown, config.seed)]
    shown = retrieval.Query(*(x[rows] for x in query))
    columns = min(config.columns, int(known.sum()) - int(shown.own[0] >= 0))
    if columns < 1:  # a single image has no neighbour
        return
    near = retrieval.search(gallery, shown, columns, known, o.mesh)
    if jax.process_index() > 0:
        return
    right = gallery_labels[near.index] == shown.labels[:, None] if judged else None
    images = query_part.source.read(query_part.rows[rows])["image"]
    flat = gallery_part.source.read(gallery_part.rows[near.index.ravel()])["image"]
    names = o.class_names or tuple(map(str, range(o.classes)))
    method = o.restored.saved.config.method.name
    path = o.folder / "neighbours.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.neighbours_sheet(
        path,
        images,
        flat.reshape(*near.index.shape, *flat.shape[1:]),
        near.similarity,
        right,
        [names[i] if 0 <= i < len(names) else "" for i in shown.labels],
        title=f"Nearest images: {method} on {o.dataset}",
    )
    print(f"pictures of the neighbours: {path}")
