"""How long a run takes from SIGTERM until all its processes are out, saved.

    python -m benchmarks.stop [--processes 1 2] [--rounds 5] [--seed 0]

The tiny run of tests/kit/kills.py is asked to stop, one process of it, at a random moment of its
steps; it must save and end with code 143, and the last step logged must be the one that was saved.
Prints the median and range of the seconds; exit code 1 where a stop was not as it must be.
"""

import pathlib
import random
import signal
import sys
import tempfile
import time

from kit import kills

from benchmarks import harness, tables

EXIT_STOPPED = 143
PATIENCE = 60.0  # seconds after which a stop has failed


def stop(folder: pathlib.Path, processes: int, draw: random.Random) -> tuple[float | None, str]:
    """One run, asked to stop.

    Returns:
      (seconds, '') or (None or seconds, what is wrong).
    """
    running = kills.start(folder, 100_000, processes)
    first = draw.randint(2, 12)
    if not kills.wait(running, lambda: max(kills.logged(folder), default=0) >= first, kills.LIMIT):
        return None, kills.said(folder, processes)
    time.sleep(draw.uniform(0, 0.5))
    running[draw.randrange(processes)].send_signal(signal.SIGTERM)
    seconds = kills.end(running, PATIENCE)
    codes = [p.returncode for p in running]
    if set(codes) != {EXIT_STOPPED}:
        return seconds, f"exit codes {codes}\n{kills.said(folder, processes)}"
    if max(kills.saved(folder), default=0) != max(kills.logged(folder)):
        return seconds, f"saved {kills.saved(folder)}, logged {kills.logged(folder)[-3:]}"
    return seconds, ""


def main() -> int:
    """Stops and prints; 1 where one was not as it must be."""
    parser = harness.parser(__doc__, rounds=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    a = harness.parse(parser, processes=[1])
    draw, wrong, found = random.Random(a.seed), 0, {}
    print(tables.head(("processes of two devices", "seconds from SIGTERM, median (range)")))
    with tempfile.TemporaryDirectory() as root:
        for n in a.processes:
            stops = [stop(pathlib.Path(root) / f"run{n}_{i}", n, draw) for i in range(a.rounds)]
            for _, problem in stops:
                wrong += bool(problem)
                print(problem, end="\n" if problem else "", file=sys.stderr)
            found[n] = [seconds for seconds, _ in stops if seconds is not None]
            if found[n]:
                print(tables.row((n, tables.middle(found[n]))), flush=True)
    harness.write(a.out, found)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
