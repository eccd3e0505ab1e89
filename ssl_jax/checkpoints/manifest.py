"""The manifest of a checkpoint: what each of its files held when it was written.

`manifest.json` lies in the step's folder and names every other file in it, by path relative to the
folder, with its size in bytes and its SHA-256:

    {"files": {"state/manifest.ocdbt": {"bytes": 113, "sha256": "…"}, …}, "sha256": "…"}

The last digest is that of the text of `files`: it tells a damaged manifest from a damaged file.
Names in a manifest are compared with what lies in the folder and never opened, so that a forged
one reaches nothing outside.
"""

import concurrent.futures
import errno
import hashlib
import json
import os
import pathlib
import stat

NAME = "manifest.json"
THREADS = 4  # that read while a checkpoint is verified: hashlib and the disk both let others work


def write(folder: pathlib.Path) -> None:
    """Reads every file of `folder` and writes its manifest.

    Raises:
      OSError: a file cannot be read, or the manifest not be written.
    """
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)}
        for name in sorted(_there(folder))
    }
    (folder / NAME).write_text(_text(files))


def exists(folder: pathlib.Path) -> bool:
    """Whether the step has a manifest. (Versions before manifests wrote none.)"""
    return (folder / NAME).is_file()


def damage(folder: pathlib.Path, under: str = "", contents: bool = True) -> str | None:
    """Compares a folder with its manifest.

    Args:
      folder: of one step.
      under: only the files whose names begin so.
      contents: False compares names and sizes alone, without reading.

    Returns:
      None where all is as it was written, else one line: the first file that is not, and how.

    Raises:
      OSError: a file cannot be read for a reason that is not its own: a lost mount, no permission.
    """
    try:
        text = (folder / NAME).read_text()
    except FileNotFoundError:
        return f"{NAME} is missing"
    except UnicodeDecodeError:
        return f"{NAME} is damaged"
    files = _parse(text)
    if files is None:
        return f"{NAME} is damaged"
    there = _there(folder)
    for name in sorted(n for n in {*files, *there} if n.startswith(under)):
        if name not in there:
            return f"{name} is missing"
        if name not in files:
            return f"{name} was not there when it was saved"
        if there[name] is None:
            return f"{name} is not a plain file"
        if there[name] != files[name]["bytes"]:
            return f"{name} has {there[name]:,} bytes instead of {files[name]['bytes']:,}"
    if not contents:
        return None

    def altered(name):
        try:
            same = _digest(folder / name) == files[name]["sha256"]
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENOENT):
                raise
            return f"{name} cannot be read ({error.strerror})"
        return None if same else f"{name} does not hold what was saved (another SHA-256)"

    names = sorted(name for name in files if name.startswith(under))
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return next(filter(None, pool.map(altered, names)), None)


def _there(folder: pathlib.Path) -> dict[str, int | None]:
    """Sizes of all files below `folder` but the manifest; None for what is no plain file."""
    found = {}
    for parent, folders, names in os.walk(folder):
        for name in (*names, *(f for f in folders if os.path.islink(os.path.join(parent, f)))):
            path = pathlib.Path(parent, name)
            about = path.lstat()
            plain = stat.S_ISREG(about.st_mode)
            found[path.relative_to(folder).as_posix()] = about.st_size if plain else None
    found.pop(NAME, None)
    return found


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(files: dict) -> str:
    body = json.dumps(files, indent=1)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f'{{"files": {body},\n"sha256": "{digest}"}}\n'


def _parse(text: str) -> dict | None:
    """The files that a manifest names; None unless it is, to the letter, what `write` wrote."""
    try:
        files = json.loads(text)["files"]
        whole = _text(files) == text
        typed = all(type(f["bytes"]) is int and type(f["sha256"]) is str for f in files.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return files if whole and typed else None
