"""TensorFlow Datasets, read without TensorFlow.

Sets prepared as array_record are read by `as_data_source`, encoded as they are, and decoded by
data/decode/. Sets prepared as TFRecord are first converted, once (see tfrecord.py).
"""

import logging
import os

from ssl_jax.contract import batch
from ssl_jax.contract.source import NoSplit, Source
from ssl_jax.data.decode import reader
from ssl_jax.data.sources import splits
from ssl_jax.errors import UserError

log = logging.getLogger(__name__)


def open_tfds(name: str, split: str, data) -> Source:
    """A prepared TFDS data set.

    Args:
      name: 'set', 'set/config', 'set:1.2.3' or 'set/config:1.2.3', as TFDS writes them.
      split: 'train' or 'test'; `data.train_split` and `data.test_split` say what the set calls
        them (see `splits.find`). TFDS slices work as well: 'train[:10%]', 'train+validation'.
      data: config.data; `dir` is the TFDS folder, None for TFDS's own choice ($TFDS_DATA_DIR, else
        ~/tensorflow_datasets).

    Raises:
      UserError: TFDS knows no such set, it is not prepared on disk, it has no picture feature, or
        it is stored as TFRecord and TensorFlow is not installed.
      NoSplit: the set has no such split.
    """
    folder = builder_folder(name, data.dir)
    wanted = data.train_split if split == "train" else data.test_split
    return from_folder(folder, wanted, f"tfds:{name}", split, data)


def from_folder(folder: str, wanted: str, name: str, split: str, data) -> Source:
    """The split `wanted` of the prepared set in `folder` (…/set[/config]/version).

    The picture is the feature 'image', else the only picture feature; the label is 'label' or
    'labels' if that is one class per picture (ClassLabel), else there are no labels.
    """
    import tensorflow_datasets as tfds

    formats = tfds.core.FileFormat
    builder = tfds.builder_from_directory(folder)
    if not builder.info.available_file_formats() & formats.with_random_access():
        from ssl_jax.data.sources import tfrecord

        tfrecord.convert(folder)
        builder = tfds.builder_from_directory(folder)
    info = builder.info
    image, label = _features(info.features, name)
    asked = wanted
    try:
        info.splits[wanted]
    except (KeyError, ValueError):
        wanted = splits.find(asked, split, info.splits)
        if wanted is None and split == "test" and asked in splits.LOOSE["test"]:
            raise NoSplit(
                f"{name} has no split {asked!r}, only {', '.join(sorted(info.splits))}: set "
                f"--config.data.{split}_split."
            ) from None
        if wanted is None:
            raise splits.missing(asked, split, info.splits, name) from None
        log.warning("%s: the %s split is %r", name, split, wanted)
    records = builder.as_data_source(
        split=wanted, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    # Parse these two features alone, and leave the picture encoded.
    keep = {"image": image} | ({"label": label} if label else {})
    features = tfds.features.FeaturesDict({key: info.features[key] for key in keep.values()})
    skip = {image: tfds.decode.SkipDecoding()}

    def load(row):
        example = features.deserialize_example_np(records[row], decoders=skip)
        return bytes(example[image]), int(example[label]) if label else -1

    read, bad = reader.reader(
        load, lambda row: f"{name} {wanted} example {row}", len(records), data, f"{name} {wanted}"
    )
    if split == "train" and getattr(data, "range", None) is None:
        said = reader.dark(load, len(records), f"{name} {wanted}")
        if said:
            log.warning("%s", said)
    classes = info.features[label].num_classes if label else 0
    names = tuple(info.features[label].names) if label else ()
    fields = batch.image(data.size, data.channels)
    source = Source(f"{name} {wanted}", len(records), classes, fields, read, bad, names)
    return source._replace(describe=lambda row: f"{wanted} {row}")


def _features(features, name: str) -> tuple[str, str | None]:
    """Keys of the picture and of the label (None: no labels)."""
    import tensorflow_datasets as tfds

    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    if "image" in images:
        images = ["image"]
    if len(images) != 1:
        raise UserError(
            f"{name} has no feature 'image' (it has {', '.join(sorted(features))}): a set of "
            f"single pictures is needed."
        )
    if features[images[0]].np_dtype.kind != "u":
        raise UserError(f"The pictures of {name} hold {features[images[0]].np_dtype}, not uint8.")
    labels = [
        k
        for k in ("label", "labels")
        if k in features and isinstance(features[k], tfds.features.ClassLabel)
    ]
    return images[0], labels[0] if labels else None


def builder_folder(name: str, folder: str | None) -> str:
    """Where the prepared set lies: …/set[/config]/version.

    Args:
      name: as for `open_tfds`.
      folder: the TFDS folder, or None for TFDS's own.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.utils import file_utils

    given = os.path.abspath(os.path.expanduser(folder)) if folder else None
    try:
        found = read_only_builder.builder_from_files(name, data_dir=given)
        return os.fspath(found.data_dir)
    except tfds.core.DatasetNotFoundError:
        pass
    except (ValueError, AssertionError) as error:  # a name that TFDS cannot parse, two copies …
        reason = " ".join(str(error).split())
        raise UserError(f"tfds:{name}: {reason}") from error

    looked = [os.fspath(d) for d in file_utils.list_data_dirs(given_data_dir=given)]
    base = name.split(":")[0].split("/")[0]
    there = _prepared(looked, base)
    where = " and ".join(looked)
    if there:
        raise UserError(f"tfds:{name} is not prepared under {where}, but {', '.join(there)} is.")
    known = tfds.list_builders(with_community_datasets=False)
    if base in known:
        raise UserError(
            f"tfds:{name} is not prepared under {where} (--config.data.dir). Prepare it once: "
            f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
            f"data_dir={looked[0]!r}, file_format='array_record').download_and_prepare()\""
        )
    import difflib

    on_disk = [d for root in looked if os.path.isdir(root) for d in os.listdir(root)]
    close = difflib.get_close_matches(base, sorted({*known, *on_disk}), n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(f'tfds:{c}' for c in close)}?" if close else ""
    raise UserError(f"TFDS knows no data set {base!r}, and none lies under {where}.{hint}")


def _prepared(roots: list[str], base: str) -> list[str]:
    """Names set[/config]:version of what is prepared of a set below several folders."""
    import pathlib

    found = []
    for root in roots:
        for info in sorted(pathlib.Path(root, base).glob("**/dataset_info.json")):
            *config, version = info.parent.relative_to(root).parts
            found.append(f"tfds:{'/'.join(config)}:{version}")
    return found
