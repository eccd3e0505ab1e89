"""kill -9 at random moments, and the same command again, until the run is done.

    python -m benchmarks.chaos [--kills 50] [--processes 2] [--seed 0] [--patience 5]

A tiny SimCLR on digits with a checkpoint every 2 steps runs twice: undisturbed, and killed. A kill
hits one process, drawn from all of them (process 0 is the coordinator), at a moment drawn from
three kinds: some time after the start, some steps after the last checkpoint, some milliseconds
after a save began. Where it really fell is told from what lies in the folder. When the others have
not ended --patience seconds later they are killed as well, as a launcher does. After every kill
each checkpoint is read back whole, by the library's own code.

Prints a line a kill and a summary; exit code 1 where something is not as it must be: a checkpoint
unreadable, a step logged twice or never, a start that failed, another final fingerprint.
"""

import collections
import logging
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

from kit.kills import KINDS, campaign

from benchmarks import harness


def main() -> int:
    """Runs the campaign and prints the summary; 1 where there is a fault."""
    parser = harness.parser(__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=5.0)
    parser.add_argument("--folder", type=pathlib.Path, help="kept; default: a temporary one")
    a = harness.parse(parser, kills=1, processes=1)
    root = a.folder or pathlib.Path(tempfile.mkdtemp(prefix="chaos_"))
    root.mkdir(parents=True, exist_ok=True)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax talks a lot
    from ssl_jax.processes import host

    host.set_cpu_devices(1)
    begun = time.monotonic()
    kills, faults = campaign(root, a.kills, a.processes, a.seed, a.patience)
    places = collections.Counter(k.where for k in kills)
    whom = collections.Counter("coordinator" if k.process == 0 else "worker" for k in kills)
    alone = [k.alone for k in kills if k.alone is not None]
    print(f"\n{len(kills)} kills in {(time.monotonic() - begun) / 60:.0f} minutes")
    print("fell in: " + ", ".join(f"{k} {places[k]}" for k in KINDS))
    if a.processes > 1:
        print("hit: " + ", ".join(f"{k} {whom[k]}" for k in ("coordinator", "worker")))
        print(f"the others ended by themselves within {a.patience:g} s: {len(alone)}", end="")
        print(f", median {statistics.median(alone):.1f} s" if alone else "")
    print(f"checkpoints that could not be read: {sum(len(k.unreadable) for k in kills)}")
    print("FAULTS:" if faults else "the final fingerprint is that of the undisturbed run")
    print(*faults, sep="\n")
    harness.write(a.out, {"kills": [k._asdict() for k in kills], "faults": faults})
    if a.folder is None and not faults:
        shutil.rmtree(root)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
