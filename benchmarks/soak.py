"""Does a long run keep its memory? A tiny run of many steps, with monitors and checkpoints on.

    python -m benchmarks.soak [--steps 20000] [--every 1000]

A tiny SimCLR on digits trains in a process of its own: kNN and collapse monitors every 200 steps, a
checkpoint every 100. Prints its memory at every --every steps: what it has allocated and touched
(RssAnon), and with the files that are mapped in (VmRSS), whose pages the kernel takes back when
they have not been read for long, the compiler's above all. Exit code 1 where the last RssAnon is
more than 5 % off that after the first --every steps.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import harness

FIELDS = (
    *("--config.batch=16", "--config.model.width=4", "--config.model.blocks=(1,)"),
    *("--config.log_every=10", "--config.monitor.every_steps=200"),
    *("--config.monitor.train_examples=200", "--config.monitor.test_examples=100"),
    *("--config.evaluate.train_examples=200", "--config.evaluate.test_examples=100"),
    *("--config.evaluate.batch=100", "--config.checkpoint.every_steps=100"),
    *("--config.report=False",),
)
ALLOWED = 0.05


def memory(pid: int) -> tuple[int, int] | None:
    """RssAnon and VmRSS of a process in bytes; None where it has ended."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines if "kB" in line}
    return (sizes["RssAnon:"], sizes["VmRSS:"]) if "VmRSS:" in sizes else None


def newest(file: pathlib.Path) -> int:
    """The newest step in a metrics.jsonl, from its last whole line; 0 where there is none."""
    if not file.exists() or file.stat().st_size < 2:
        return 0
    with open(file, "rb") as f:
        f.seek(max(0, file.stat().st_size - 4_096))
        lines = f.read().split(b"\n")[:-1]  # the last is empty or torn
    return json.loads(lines[-1])["step"] if lines and lines[-1].startswith(b"{") else 0


def soak(folder: pathlib.Path, steps: int, every: int, more=()) -> list[tuple[int, int]]:
    """Runs `steps` steps.

    Returns:
      (step, RssAnon in bytes) at the steps every, 2 every … as nearly as the log tells.

    Raises:
      SystemExit: the run failed.
    """
    command = [
        *(sys.executable, "-m", "ssl_jax.main", "--config=configs/simclr.py:digits"),
        *(*FIELDS, f"--config.steps={steps}", f"--workdir={folder}", *more),
    ]
    seen, begun = [], time.monotonic()
    with open(f"{folder}.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            step, sizes = newest(folder / "metrics.jsonl"), memory(process.pid)
            if sizes is not None and step >= every * (len(seen) + 1):
                seen.append((step, sizes[0]))
                cells = "".join(f"{size / 2**20:>10,.1f} MiB" for size in sizes)
                print(f"{step:>8,}{cells}{time.monotonic() - begun:>8,.0f} s", flush=True)
            time.sleep(0.05)
    if process.returncode:
        sys.exit(pathlib.Path(f"{folder}.log").read_text())
    return seen


def main() -> int:
    """Runs and prints; 1 where memory has moved."""
    parser = harness.parser(__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=1_000)
    a = harness.parse(parser, steps=60, every=20)
    print("    step       RssAnon         VmRSS   since the start")
    with tempfile.TemporaryDirectory() as root:
        seen = soak(pathlib.Path(root) / "run", a.steps, a.every)
    growth = seen[-1][1] / seen[0][1] - 1
    print(f"from step {seen[0][0]:,} to {seen[-1][0]:,}: {growth:+.1%}")
    harness.write(a.out, seen)
    return int(abs(growth) > ALLOWED and not a.tiny)


if __name__ == "__main__":
    sys.exit(main())
