"""Pictures in a folder, at any depth."""

import hashlib
import json
import logging
import os
import stat
from typing import NamedTuple

import numpy as np

from ssl_jax.contract import batch
from ssl_jax.contract.source import NoSplit, Source
from ssl_jax.data.decode import reader
from ssl_jax.data.decode.picture import MAX_PIXELS, Unreadable
from ssl_jax.data.sources import splits
from ssl_jax.errors import UserError

log = logging.getLogger(__name__)

# What is a picture is decided by its name here, and by its bytes when it is read.
EXTENSIONS = (
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
MAX_BYTES = 6 * MAX_PIXELS + 2**20  # 16-bit colour, not compressed, and what goes with it
# Folders of pictures that are of no class.
UNLABELLED = ("unlabeled", "unlabelled", "unsupervised", "unsup", "nolabel", "no_label")
SIZED = 200  # files whose sizes tell two sets of the same names apart


class Listing(NamedTuple):
    """What lies below a folder.

    Attributes:
      paths: of the pictures, relative to the folder, sorted.
      runs: folders that a run or a job wrote, which are passed over, relative to the folder.
    """

    paths: list[str]
    runs: list[str]


class Splits(NamedTuple):
    """Which part of a folder is what.

    Attributes:
      folders: {'train': path, 'test': path}, or {'train': path} without a test split.
      notes: what a user should know of how it was decided: lines for the log.
    """

    folders: dict[str, str]
    notes: tuple[str, ...] = ()


def open_folder(root: str, split: str, data) -> Source:
    """The pictures of a folder, in the order of their paths.

    The index of a picture is its place in the sorted list of paths relative to the folder, so it
    is stable as long as no file is added, removed or renamed.

    Splits: see `find_splits`.

    Labels, only if `data.labels`: the first level of sub-folders, sorted by name, over all splits,
    so that a class missing from one of them does not shift the others. A sub-folder of UNLABELLED
    is no class, and its pictures have none. Where train and test have no class in common nothing
    can be judged: the set then has no labels, and the log says why.

    Args:
      root: path of the folder; ~ is expanded.
      split: 'train' or 'test'.
      data: config.data.

    Raises:
      NoSplit: the test split of a folder that has none.
      UserError: no such folder, no picture in it, labels asked for and none to be had, a split that
        is named and not there.
    """
    root = os.path.abspath(os.path.expanduser(root))
    if not os.path.isdir(root):
        raise UserError(f"There is no folder {root}{_sibling(root)}; data.source names it.")
    folders, notes = find_splits(root, data.train_split, data.test_split)
    if split not in folders:
        raise NoSplit(
            f"{root} has no {split} split: that takes sub-folders train/ and test/ (or val/, …), "
            "or their names in --config.data.train_split and --config.data.test_split."
        )
    folder = folders[split]
    paths, runs = scan(folder)
    if not paths:
        raise UserError(
            f"No pictures ({' '.join(EXTENSIONS)}) in {folder} or the folders below it"
            f"{_else(folder)}."
        )
    if folder != root:
        log.info("%s: the %s split is %s", root, split, folder)
    if runs:
        some = ", ".join(runs[:3]) + (", …" if len(runs) > 3 else "")
        notes += (f"{folder}: {len(runs)} folder(s) of runs are passed over: {some}",)
    names, labels = (), np.full(len(paths), -1, np.int32)
    if data.labels:
        names, said = known_classes(root, folders)
        labels = _labels(folder, paths, names)
        notes += said

    def load(row):
        return content(os.path.join(folder, paths[row])), labels[row]

    def path(row):
        return _shown(os.path.join(folder, paths[row]))

    read, bad = reader.reader(load, path, len(paths), data, folder)
    if split == "train":  # what is said is of the set, so it is said once
        if getattr(data, "range", None) is None and (said := reader.dark(load, len(paths), folder)):
            notes += (said,)
        for note in notes:
            log.warning("%s", note)
    return Source(
        name=f"folder:{folder}",
        examples=len(paths),
        classes=len(names),
        fields=batch.image(data.size, data.channels),
        read=read,
        bad=bad,
        class_names=names,
        identity=identity(folder, paths),
        describe=lambda row: _shown(paths[row]),
    )


def identity(folder: str, paths: list[str]) -> str:
    """A hash of the names of all pictures and the sizes of SIZED of them, spread over the list.

    The same for the same pictures, wherever their folder lies.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path) + b"\0")
    for row in sorted({i * len(paths) // SIZED for i in range(SIZED)}):
        try:
            size = os.stat(os.path.join(folder, paths[row])).st_size
        except OSError:
            size = -1
        digest.update(b"%d\0" % size)
    return digest.hexdigest()


def _shown(path: str) -> str:
    """File names are bytes; one that is not UTF-8 must not break a log or a page."""
    return path.encode("utf-8", "replace").decode()


def content(path: str) -> bytes:
    """The bytes of a file.

    Raises:
      OSError: the system's error.
      Unreadable: what has the name is no file (to open a pipe would wait for ever), or it is longer
        than any picture of decode.MAX_PIXELS: MAX_BYTES.
    """
    # Without O_NONBLOCK a pipe is not even opened before someone writes to it.
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("not a file")
        if status.st_size > MAX_BYTES:
            raise Unreadable(f"{status.st_size} bytes, more than the {MAX_BYTES} allowed")
        return file.read(status.st_size)


def listing(folder: str) -> list[str]:
    """Paths of the pictures below `folder`, relative to it, sorted.

    Extensions count in any case. Names that begin with a dot are skipped, files and folders.
    Links are followed, to files and to folders (a subset of a large set is often a folder of
    links), except a link back to a folder that it lies in. Folders below it that a run or a job of
    ssl_jax wrote are passed over: they hold pictures of pictures.
    """
    return scan(folder).paths


def scan(folder: str) -> Listing:
    """`listing`, and the folders of runs that it passes over."""
    runs: list[str] = []
    try:
        return Listing(sorted(_walk(folder, "", (), runs)), sorted(runs))
    except OSError as error:
        raise UserError(f"Cannot list {error.filename or folder}: {error.strerror}.") from error


def _walk(path: str, relative: str, above: tuple, runs: list[str]):
    status = os.stat(path)
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder that we came through
        return
    with os.scandir(path) as found:
        entries = [entry for entry in found if not entry.name.startswith(".")]
    if relative and _of_a_run(path, {entry.name for entry in entries}):
        runs.append(relative)
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, f"{relative}{entry.name}/", (*above, here), runs)
        elif entry.name.lower().endswith(EXTENSIONS):
            yield f"{relative}{entry.name}"


def _of_a_run(path: str, names: set[str]) -> bool:
    """Whether a folder with these names in it was written by a run or a job."""
    if "config.json" in names and names & {"checkpoints", "report"}:
        return True
    if "job.json" in names and "checkpoints" in names:
        return True
    if "result.json" not in names:
        return False
    try:
        found = json.loads(content(os.path.join(path, "result.json")))
        return isinstance(found, dict) and "job" in found and "checkpoint" in str(found)
    except (OSError, ValueError, Unreadable):
        return False


def split_folders(root: str, train: str = "train", test: str = "test") -> dict[str, str]:
    """`find_splits` without its notes."""
    return find_splits(root, train, test).folders


def find_splits(root: str, train: str = "train", test: str = "test") -> Splits:
    """Which sub-folders of a folder are its splits.

    - A train folder (`train/` or `training/`, in any capitals) beside a test folder (test, testing,
      val, valid, validation, dev, eval or evaluation) are the splits.
    - A train folder alone, without other pictures beside it, is a training set without a test set.
    - `train` and `test` may give other names, see `splits.find`: they must be there.
    - `train` '.' takes everything below the folder as one training set.
    - Any other folder is a training set as a whole, and what looks like a split in it is named. If
      such a folder and another one hold sub-folders of the same names, the user is asked.

    Args:
      root: path of the folder.
      train: `data.train_split`.
      test: `data.test_split`.

    Raises:
      UserError: a split that is named and not there, or a folder that could be read in two ways.
    """
    if train == ".":
        if test not in splits.LOOSE["test"]:
            raise UserError(
                f"--config.data.train_split=. takes all of {root}, {test}/ as well; "
                "--config.data.train_split=NAME names the folder to learn from"
            )
        return Splits({"train": root})
    inside = subfolders(root)
    learn, judge = (splits.find(n, s, inside) for n, s in ((train, "train"), (test, "test")))
    for wanted, split, found in ((train, "train", learn), (test, "test", judge)):
        if found is None and wanted not in splits.LOOSE[split]:
            raise splits.missing(wanted, split, inside, root)
    if learn == judge and learn is not None:
        raise UserError(f"{root}: {learn}/ is both --config.data.train_split and test_split")
    places = {"train": os.path.join(root, learn or ""), "test": os.path.join(root, judge or "")}
    if learn is not None and judge is not None:
        said = [f"the {s} split is {n}/" for s, n in (("train", learn), ("test", judge)) if n != s]
        if said:
            others = [name for name in inside if name not in (learn, judge)]
            left = [f"{name}/" for name in others if _pictures_in(root, name)]
            said += [f"{', '.join(left)} left aside"] if left else []
        return Splits(places, (f"{root}: {', '.join(said)}",) if said else ())
    if learn is not None:
        return _train_alone(root, train, learn, inside)
    if judge is not None and _pictures_in(root, judge):
        return _test_alone(root, test, judge, inside)
    return Splits({"train": root})


def _train_alone(root: str, wanted: str, learn: str, inside: list[str]) -> Splits:
    """A folder of a train split, with no test split that is known."""
    own = Splits({"train": os.path.join(root, learn)})
    if wanted not in splits.LOOSE["train"]:
        return own
    others = [name for name in inside if name != learn and _pictures_in(root, name)]
    if not others and not _pictures_beside(root):
        return own
    alike = _alike(root, learn, others)
    if alike:
        raise UserError(
            f"{root}: {learn}/ and {alike}/ hold the same sub-folders; are they splits? "
            f"--config.data.train_split={learn} --config.data.test_split={alike} says so, "
            "--config.data.train_split=. takes everything as one training set"
        )
    note = (
        f"{root}: {learn}/ is taken as a part of one training set of all that lies there, since no "
        "folder beside it is called test, val or the like; --config.data.test_split=NAME names one"
    )
    return Splits({"train": root}, (note,))


def _test_alone(root: str, wanted: str, judge: str, inside: list[str]) -> Splits:
    """A folder of a test split, with no train split that is known."""
    others = [name for name in inside if name != judge and _pictures_in(root, name)]
    alike = _alike(root, judge, others)
    if alike or (wanted not in splits.LOOSE["test"]):
        beside = alike or next(iter(others), "NAME")
        raise UserError(
            f"{root}: {judge}/ is a test split, but which folder is to learn from? "
            f"--config.data.train_split={beside} names one"
            + (", . takes everything" if wanted in splits.LOOSE["test"] else "")
        )
    note = (
        f"{root}: {judge}/ is learned from as well, since no folder beside it is called train; "
        f"--config.data.train_split=NAME --config.data.test_split={judge} keeps it apart"
    )
    return Splits({"train": root}, (note,) if others or _pictures_beside(root) else ())


def _alike(root: str, name: str, others: list[str]) -> str | None:
    """The first of some folders that has a sub-folder of the same name as one of `name`."""
    own = set(subfolders(os.path.join(root, name)))
    return next((o for o in others if own & set(subfolders(os.path.join(root, o)))), None)


def _pictures_in(root: str, name: str) -> bool:
    """Whether there is a picture below a sub-folder: not in lost+found, which may not be read."""
    try:
        return next(_walk(os.path.join(root, name), f"{name}/", (), []), None) is not None
    except PermissionError:
        return False


def subfolders(folder: str) -> list[str]:
    """Names of the visible folders right inside `folder`, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def class_names(folders) -> tuple[str, ...]:
    """Names of the sub-folders with pictures, over several folders, sorted."""
    return tuple(
        sorted(
            {
                name
                for folder in folders
                for name in subfolders(folder)
                if _pictures_in(folder, name)
            }
        )
    )


def known_classes(root: str, folders: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the classes over all splits, and what is to be said of them.

    Args:
      root: how the set is called.
      folders: from `find_splits`.

    Returns:
      (names, notes). No names where nothing can be judged: no class at all, or none that train and
      test share.
    """
    found = {split: set(class_names([folder])) for split, folder in folders.items()}
    every = set().union(*found.values())
    none = {name for name in every if name.lower() in UNLABELLED}
    names = tuple(sorted(every - none))
    learn, judge = found["train"] - none, found.get("test", found["train"]) - none
    notes = ()
    if none and learn:
        notes = (f"{root}: pictures in {_few(none)} have no label",)
    if every and not learn:
        only = f"its folders are {_few(found['train'])}" if found["train"] else "no sub-folder"
        return (), (f"{root}: train has no labels ({only}), so no accuracy can be measured",)
    if learn and not learn & judge:
        return (), (
            f"{root}: train ({_few(learn)}) and test ({_few(judge or found['test'])}) have no "
            "class in common, so no accuracy can be measured",
        )
    if judge - learn:
        notes += (
            f"{root}: {len(judge - learn)} of the {len(judge)} classes of test are not in train, "
            f"and always judged as wrong: {_few(judge - learn)}",
        )
    return names, notes


def _few(names: set[str]) -> str:
    """'a, b, c, …'"""
    return ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")


def _labels(folder: str, paths: list[str], names: tuple[str, ...]) -> np.ndarray:
    loose = next((path for path in paths if "/" not in path), None)
    if loose is not None:
        raise UserError(
            f"data.labels takes the sub-folders of {folder} as classes, but {loose} lies in none. "
            f"Move it, or leave data.labels=False."
        )
    number = {name: i for i, name in enumerate(names)}
    return np.array([number.get(path.split("/", 1)[0], -1) for path in paths], np.int32)


def _pictures_beside(root: str) -> bool:
    with os.scandir(root) as entries:
        return any(
            e.name.lower().endswith(EXTENSIONS) and not e.name.startswith(".") for e in entries
        )


def _sibling(path: str) -> str:
    """', but there is /a/like-named' for a missing folder /a/b, if one lies beside it."""
    import difflib

    parent, name = os.path.split(path)
    while parent and not os.path.isdir(parent) and parent != os.path.dirname(parent):
        parent, name = os.path.split(parent)
    try:
        close = difflib.get_close_matches(name, subfolders(parent), n=3, cutoff=0.5)
    except OSError:
        return ""
    return f", but there is {' and '.join(os.path.join(parent, c) for c in close)}" if close else ""


def _else(folder: str) -> str:
    """What an empty folder holds instead, to tell an archive that was never unpacked."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))[:3]
    return f"; it holds {', '.join(names)}" if names else "; it is empty"
