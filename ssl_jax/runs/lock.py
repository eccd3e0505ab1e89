"""One process at a time trains in a workdir: a lock on `<workdir>/.lock`.

The lock is the kernel's (`flock`), not the file: it ends with the process that holds it, however
that ends, kill -9 included. The file says who holds it and is deleted with it; one that was left
behind locks nothing. What only reads a run does not look at it.

On NFS, Linux makes `flock` a lock at the server (since 2.6.12, for files open for writing, as
here), so that hosts exclude each other. What a crashed host held is freed when the server notices:
for NFSv4 after its lease, 90 s by default. So a holder on another host is waited for a while. (A
pod that comes up again elsewhere has the name of the one before: hosts are told apart by their boot
as well.)
Where a file system has no locks (Lustre without `-o flock`, NFS without its lock service, some FUSE
mounts), that is said, and the run goes on without.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shlex
import socket
import sys
import time
from collections.abc import Iterator

from ssl_jax.errors import UserError, warn
from ssl_jax.processes import host, talk

NAME = ".lock"
PATIENCE = 120.0  # seconds that a holder on another host is waited for: it may have crashed
UNKNOWN = 2.0  # seconds for a holder to say who it is
GRACE = 2.0  # seconds for the other processes to end: without process 0 XLA would abort them


@contextlib.contextmanager
def hold(folder: pathlib.Path, cluster: host.Cluster, patience: float = PATIENCE) -> Iterator[None]:
    """Holds the lock of a workdir, which is made where it is missing.

    Process 0 holds it for all processes of a run; every process calls this. A folder that was made
    here and in which nothing was written is removed again.

    Args:
      folder: the workdir.
      cluster: the processes of the run.
      patience: seconds to wait for a holder on another host.

    Raises:
      UserError: another process holds it: which one, where, since when.
    """
    if cluster.process > 0:
        problem = talk.text_from_first(f"lock/{folder}", None, cluster)
        if problem:
            raise UserError(problem)
        yield
        return
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    try:
        problem, file = None, _take(folder, patience)
    except UserError as error:
        problem, file = str(error), None
    talk.text_from_first(f"lock/{folder}", problem or "", cluster)
    if problem:
        if cluster.processes > 1:
            time.sleep(GRACE)
        raise UserError(problem)
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                if _is_at(file, folder / NAME):  # else it was deleted by hand: that is another's
                    (folder / NAME).unlink()
            os.close(file)
        with contextlib.suppress(OSError):  # not empty: something was written
            for made in missing:
                made.rmdir()


def _take(folder: pathlib.Path, patience: float) -> int | None:
    """Locks; returns the open file, which is the lock, or None where that cannot be.

    Raises:
      UserError: another process holds it.
    """
    path = folder / NAME
    began, said = time.monotonic(), False
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # whoever held it removed the empty folder, or there can be none
            if time.monotonic() - began > UNKNOWN:
                return None  # what must write says so
            time.sleep(0.05)
            continue
        except OSError as error:  # nothing can be written here; what must write says so
            if path.exists():
                warn(
                    f"{path} cannot be opened ({error.strerror}); see to it that no other process "
                    f"trains in {folder}"
                )
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            there, text = _holder(file)
            os.close(file)
        except OSError as error:
            os.close(file)
            warn(
                f"{folder} cannot be locked ({error.strerror}): its file system has no locks; see "
                "to it that no other process trains in it"
            )
            return None
        else:
            if _is_at(file, path):
                _write(file)
                return file
            os.close(file)  # its holder deleted it just before
            continue
        known = there is not None  # a moment after it was taken, nothing is written in it yet
        elsewhere = known and there != (socket.gethostname(), _boot())
        left = began + (patience if elsewhere else 0 if known else UNKNOWN) - time.monotonic()
        if left <= 0:
            gone = f"; if that host is gone for good, delete {path}" if elsewhere else ""
            raise UserError(
                f"{folder} is in use by {text}; wait for its end, or choose another --workdir{gone}"
            )
        if elsewhere and not said:
            warn(f"{folder} is in use by {text}; waiting {left:.0f} s, should that host be gone")
            said = True
        time.sleep(min(left, 1.0 if elsewhere else 0.05))


def _is_at(file: int, path: pathlib.Path) -> bool:
    """Whether an open file is still the one at `path`."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False


def _write(file: int) -> None:
    """Says in the file who holds it. On a full disk it says nothing, and the lock holds."""
    own = {
        "host": socket.gethostname(),
        "boot": _boot(),
        "process": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(sys.argv),
    }
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, (json.dumps(own, indent=1) + "\n").encode(), 0)


def _boot() -> str:
    """What the running kernel calls itself; '' where it has no such name (macOS)."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _holder(file: int) -> tuple[tuple[str, str] | None, str]:
    """((its host, its boot), which process it is); (None, 'another process') if it is not said."""
    try:
        about = json.loads(os.pread(file, 2**16, 0))
        place, number = str(about["host"]), int(about["process"])
        text = f"process {number} on {place} since {about['since']}: {about['command']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None, "another process"
    return (place, str(about.get("boot", _boot()))), " ".join(text.split())[:500]
