"""Pictures in a folder, at any depth."""

import logging
import os
import stat

import numpy as np

from ssl_jax.contract import batch
from ssl_jax.contract.source import NoSplit, Source
from ssl_jax.data.decode import reader
from ssl_jax.data.decode.picture import MAX_PIXELS, Unreadable
from ssl_jax.errors import UserError

log = logging.getLogger(__name__)

# What is a picture is decided by its name here, and by its bytes when it is read.
EXTENSIONS = (
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
MAX_BYTES = 6 * MAX_PIXELS + 2**20  # 16-bit colour, not compressed, and what goes with it
TEST_NAMES = ("test", "val", "validation")


def open_folder(root: str, split: str, data) -> Source:
    """The pictures of a folder, in the order of their paths.

    The index of a picture is its place in the sorted list of paths relative to the folder, so it
    is stable as long as no file is added, removed or renamed.

    Splits: a folder that holds `train/` beside one of `test/`, `val/`, `validation/` (or `train/`
    and no other folder and no pictures of its own) is read as these splits; `data.train_split` and
    `data.test_split` may give other names. Any other folder is a training set as a whole.

    Labels, only if `data.labels`: the first level of sub-folders, sorted by name, over all splits,
    so that a class missing from one of them does not shift the others.

    Args:
      root: path of the folder; ~ is expanded.
      split: 'train' or 'test'.
      data: config.data.

    Raises:
      NoSplit: the test split of a folder that has none.
      UserError: no such folder, no picture in it, labels asked for and none to be had.
    """
    root = os.path.abspath(os.path.expanduser(root))
    if not os.path.isdir(root):
        raise UserError(f"There is no folder {root}{_sibling(root)}; data.source names it.")
    folders = split_folders(root, data.train_split, data.test_split)
    if split not in folders:
        raise NoSplit(
            f"{root} has no {split} split: that takes sub-folders {data.train_split}/ and "
            f"{data.test_split}/ (or {', '.join(f'{name}/' for name in TEST_NAMES)})."
        )
    folder = folders[split]
    paths = listing(folder)
    if not paths:
        raise UserError(
            f"No pictures ({' '.join(EXTENSIONS)}) in {folder} or the folders below it"
            f"{_else(folder)}."
        )
    if folder != root:
        log.info("%s: the %s split is %s", root, split, folder)
    names, labels = (), np.full(len(paths), -1, np.int32)
    if data.labels:
        names = class_names(folders.values())
        labels = _labels(folder, paths, names)

    def load(row):
        return content(os.path.join(folder, paths[row])), labels[row]

    def path(row):
        # File names are bytes; one that is not UTF-8 must not break the log.
        return os.path.join(folder, paths[row]).encode("utf-8", "replace").decode()

    read, bad = reader.reader(load, path, len(paths), data, folder)
    fields = batch.image(data.size, data.channels)
    return Source(f"folder:{folder}", len(paths), len(names), fields, read, bad, names)


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
    links), except a link back to a folder that it lies in.
    """
    try:
        return sorted(_walk(folder, "", ()))
    except OSError as error:
        raise UserError(f"Cannot list {error.filename or folder}: {error.strerror}.") from error


def _walk(path: str, relative: str, above: tuple):
    status = os.stat(path)
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder that we came through
        return
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{relative}{entry.name}/", (*above, here))
            elif entry.name.lower().endswith(EXTENSIONS):
                yield f"{relative}{entry.name}"


def split_folders(root: str, train: str = "train", test: str = "test") -> dict[str, str]:
    """Splits of a folder: {'train': path, 'test': path}, or {'train': root} if it has none."""
    inside = subfolders(root)
    tests = [name for name in (test, *TEST_NAMES) if name in inside]
    if train in inside and tests:
        return {"train": os.path.join(root, train), "test": os.path.join(root, tests[0])}
    if inside == [train] and not _pictures_beside(root):
        return {"train": os.path.join(root, train)}
    return {"train": root}


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
                if next(_walk(os.path.join(folder, name), "", ()), None)  # one is enough
            }
        )
    )


def _labels(folder: str, paths: list[str], names: tuple[str, ...]) -> np.ndarray:
    loose = next((path for path in paths if "/" not in path), None)
    if loose is not None:
        raise UserError(
            f"data.labels takes the sub-folders of {folder} as classes, but {loose} lies in none. "
            f"Move it, or leave data.labels=False."
        )
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[path.split("/", 1)[0]] for path in paths], np.int32)


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
