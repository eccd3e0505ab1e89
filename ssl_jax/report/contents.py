"""What a page shows of a run, as plain data: `collect` makes it, `page` turns it into HTML."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Points(NamedTuple):
    """Examples on a plane.

    Attributes:
      places: name of the projection -> float [n, 2] in [-1, 1]; the first is shown.
      images: uint8 [n, h, w, C]; None of examples that are no images.
      labels: int [n], -1: none.
      files: n names, of `collect.called`; empty: unknown.
    """

    places: Mapping[str, np.ndarray]
    images: np.ndarray | None
    labels: np.ndarray
    files: tuple[str, ...] = ()


class Neighbours(NamedTuple):
    """Examples and those most like them.

    Attributes:
      queries: uint8 [q, h, w, C]; None of examples that are no images.
      query_labels: int [q], -1: none.
      images: uint8 [q, k, h, w, C], the nearest first; None as `queries`.
      labels: int [q, k], -1: none.
      cosines: float [q, k].
      query_files: q names, of `collect.called`; empty: unknown.
      files: k names for each query, likewise.
    """

    queries: np.ndarray | None
    query_labels: np.ndarray
    images: np.ndarray | None
    labels: np.ndarray
    cosines: np.ndarray
    query_files: tuple[str, ...] = ()
    files: tuple[tuple[str, ...], ...] = ()


class Attention(NamedTuple):
    """Where the class token looks.

    Attributes:
      images: uint8 [n, h, w, C].
      maps: float [n, heads, g, g], weights of the patches, row by row.
    """

    images: np.ndarray
    maps: np.ndarray


class Shown(NamedTuple):
    """What a method shows of some examples, see `contract.method.Show`.

    Attributes:
      said: what the pictures are.
      pictures: title -> uint8 [n, h, w, C], or [n, v, h, w, C] for v pictures of each example.
    """

    said: str
    pictures: Mapping[str, np.ndarray]


class Pictures(NamedTuple):
    """All that needs the encoder or the images; what a run does not have is None or empty.

    Attributes:
      names: of the classes.
      views: name of the view -> uint8 [n, v, h, w, C], by the policies of the config.
      originals: uint8 [n, H, W, C], of which the views are.
      points: features on a plane.
      neighbours: nearest of the images that probes learn from.
      confusion: int [c, c], images of class i that kNN takes for class j.
      spectra: name of the features -> float [s], singular values, descending.
      shown: name -> what the method shows of the originals.
      attention: of a ViT's last block.
      prototypes: name of the head -> int [K], images that are given to each prototype.
      files: names of the originals, of `collect.called`; empty: unknown.
    """

    names: tuple[str, ...] = ()
    views: Mapping[str, np.ndarray] = {}
    originals: np.ndarray | None = None
    points: Points | None = None
    neighbours: Neighbours | None = None
    confusion: np.ndarray | None = None
    spectra: Mapping[str, np.ndarray] = {}
    shown: Mapping[str, Shown] = {}
    attention: Attention | None = None
    prototypes: Mapping[str, np.ndarray] = {}
    files: tuple[str, ...] = ()


class Run(NamedTuple):
    """One run.

    Attributes:
      name: short, to tell it from the others on the page.
      folder: its workdir, as it was given.
      config: nested dictionaries, as config.json holds it.
      total_steps: of the whole run.
      steps_per_epoch: optimizer steps of one pass over the data.
      records: lines of metrics.jsonl, as `metrics.read` gives them.
      result: result.json; None while the run is unfinished.
      width: of the features d; None if unknown.
      command: what continues the run, or runs it again; None if it cannot be told.
      pictures: None where they could not be made.
      notes: what is missing, and why.
      later: dotted names of fields that came after the run -> what they are without it.
    """

    name: str
    folder: str
    config: Mapping[str, Any]
    total_steps: int
    steps_per_epoch: int
    records: list[dict[str, Any]]
    result: Mapping[str, Any] | None
    width: int | None
    command: str | None
    pictures: Pictures | None
    notes: tuple[str, ...] = ()
    later: Mapping[str, Any] = {}
