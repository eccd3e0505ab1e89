"""Damaged pictures, read as a run reads them, in a process whose address space is bounded.

A process that dies is started again behind the picture that it died of. Linux.
"""

import collections
import json
import os
import pathlib
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kit.pictures.bombs import BOMBS, Bomb
from kit.pictures.damages import DAMAGES, valid, whole

ADDRESS_SPACE = 3 << 30  # bytes that a reading process may map beyond what it holds at its start
PATIENCE = 600.0  # seconds by the clock after which a read counts as hung
RESULTS = ("read", "replaced", "no memory", "hung", "crashed")


class Damaged(NamedTuple):
    """One damaged picture: the kind of damage, a more exact name, the extension, the bytes."""

    kind: str
    name: str
    extension: str
    data: bytes


class Outcome(NamedTuple):
    """What became of it: 'read', 'replaced', 'no memory', 'hung' or 'crashed'.

    Attributes:
      result: one of these.
      reason: what the log said, or the signal.
      seconds: of processor time that the read took (by the clock, if it did not end).
      peak: greatest resident bytes of the process during the read.
      before: its resident bytes when the read began.
    """

    result: str
    reason: str
    seconds: float
    peak: int
    before: int = 0


def damaged(count: int, seed: int, bombs: Sequence[Bomb] = BOMBS) -> Iterator[Damaged]:
    """`count` damaged pictures: every bomb once, the rest of the other kinds in turn.

    The same arguments give the same pictures.
    """
    rng, bombs = random.Random(seed), bombs[:count]
    for name, extension, make in bombs:
        yield Damaged("bomb", name, extension, make())
    for i in range(count - len(bombs)):
        damage = DAMAGES[i % len(DAMAGES)]
        name, extension, data = rng.choice(whole())
        yield Damaged(damage.__name__, name, extension, damage(rng, data, extension))


def read_one(folder: str) -> tuple[str, str]:
    """Reads the first of the two pictures of a folder as a run would: ('read' …, reason)."""
    from ssl_jax.data.sources.folder import open_folder

    fields = {"size": 224, "channels": 3, "fit": "crop", "labels": False, "max_bad": 1.0}
    splits = {"cache_bytes": 0, "train_split": "train", "test_split": "test"}
    source = open_folder(folder, "train", types.SimpleNamespace(**fields, **splits))
    batch = source.read([0])
    assert batch["image"].shape == (1, 224, 224, 3) and batch["image"].dtype == np.uint8
    if batch["index"][0] == 0:
        return "read", ""
    ((_, reason),) = source.bad()
    assert reason and "\n" not in reason
    memory = any(sign in reason for sign in ("not enough memory", "out of memory", "allocate"))
    return ("no memory" if memory else "replaced"), reason


def reader(folder: str, first: int, count: int, bound: int) -> None:
    """The child: reads the folders first … count − 1; a JSON line before and after each."""
    logging_off()
    own = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (own + bound, own + bound))
    for i in range(first, count):
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        print(json.dumps({"begin": i}), flush=True)
        before, start = _status("VmRSS"), time.process_time()
        result, reason = read_one(os.path.join(folder, f"{i:05d}"))
        seconds = time.process_time() - start
        print(json.dumps([result, reason, seconds, _status("VmHWM"), before]), flush=True)


def logging_off() -> None:
    """The library names each picture, and Pillow warns; here the table says it."""
    import logging
    import warnings

    import cv2  # noqa: F401  imported before memory is measured
    import simplejpeg  # noqa: F401
    from PIL import Image  # noqa: F401

    import ssl_jax.data.sources.folder  # noqa: F401

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _status(field: str) -> int:
    line = next(x for x in open("/proc/self/status") if x.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def run(
    damages: int,
    seed: int,
    bombs: Sequence[Bomb] = BOMBS,
    bound: int = ADDRESS_SPACE,
    patience: float = PATIENCE,
) -> list[tuple[Damaged, Outcome]]:
    """Makes the damaged pictures and reads each; a process that dies is started again after it."""
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for i, picture in enumerate(damaged(damages, seed, bombs)):
            place = pathlib.Path(folder, f"{i:05d}")
            place.mkdir()
            (place / f"a{picture.extension}").write_bytes(picture.data)
            (place / "b.png").write_bytes(valid("png RGB"))
            made.append(picture._replace(data=b""))
        outcomes: list[Outcome] = []
        while len(outcomes) < len(made):
            outcomes += _child(folder, len(outcomes), len(made), bound, patience)
    return list(zip(made, outcomes, strict=True))


def _child(folder: str, first: int, count: int, bound: int, patience: float) -> list[Outcome]:
    command = [
        sys.executable,
        "-m",
        "kit.pictures.reading",
        folder,
        *map(str, (first, count, bound)),
    ]
    tests = pathlib.Path(__file__).parents[2]
    path = [str(tests), str(tests.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    found, seconds, start = [], 0.0, time.perf_counter()
    # Unbuffered: select knows nothing of lines read ahead. A file: libtiff fills any pipe.
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, env=environment, bufsize=0, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        while ready := select.select([process.stdout], [], [], patience)[0]:
            line = process.stdout.readline()
            if not line:
                break
            message = json.loads(line)
            if isinstance(message, list):
                found.append(Outcome(*message))
            start = time.perf_counter()
        seconds = time.perf_counter() - start
        if not ready:
            process.kill()
        process.wait()
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
    if len(found) < count - first:
        reason = f"exit code {process.returncode} {' '.join(last)}"
        found.append(Outcome("crashed" if ready else "hung", reason, seconds, 0))
    return found


def table(found: list[tuple[Damaged, Outcome]]) -> str:
    """Markdown: a row a kind of damage, and one for all."""
    groups = collections.defaultdict(list)
    for picture, outcome in found:
        groups[picture.kind].append((picture, outcome))
    lines = [
        f"| damage | pictures | {' | '.join(RESULTS)} | peak memory (MB) | slowest (s) |",
        f"|---|{'---|' * (len(RESULTS) + 3)}",
    ]
    for kind, part in [*groups.items(), ("all", found)]:
        counts = collections.Counter(outcome.result for _, outcome in part)
        peak = max(outcome.peak for _, outcome in part) / 1e6
        slowest = max(outcome.seconds for _, outcome in part)
        cells = [kind, len(part), *(counts[r] for r in RESULTS), f"{peak:.0f}", f"{slowest:.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    reader(sys.argv[1], *map(int, sys.argv[2:]))
