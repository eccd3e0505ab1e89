"""Damaged pictures, read as a run reads them: nothing may crash, hang or take the memory.

python -m benchmarks.fuzz_pictures --damages 1000 --seed 0

Makes small pictures of every format that the library reads, damages them, and reads each through
`folder:`, the library's own source, in a process of its own whose address space is bounded. Prints
for every kind of damage how many pictures were read all the same and how many were named and
replaced by their neighbour; how many reads crashed the process, did not end, or wanted more memory
than there was (all three must be 0); the greatest resident memory; the slowest read. Exits with 1
if a must is broken. Linux; the output of the command above is in docs/reliability.md.
"""

import sys

from kit.pictures import reading
from kit.pictures.bombs import BOMBS

from benchmarks import harness


def main() -> int:
    """Reads and prints; 1 where a must is broken."""
    parser = harness.parser(__doc__)
    parser.add_argument("--damages", type=int, default=1000, help="pictures")
    parser.add_argument("--seed", type=int, default=0)
    bound = reading.ADDRESS_SPACE
    parser.add_argument("--bound", type=int, default=bound, help="bytes a reader may map")
    parser.add_argument("--all", action="store_true", help="a line for every picture")
    a = harness.parse(parser, damages=60)
    bombs = () if a.tiny else BOMBS
    found = reading.run(a.damages, a.seed, bombs, a.bound)
    broken = [(p, o) for p, o in found if o.result in reading.RESULTS[2:]]
    costly = (
        sorted(found, key=lambda x: -x[1].peak)[:3] + sorted(found, key=lambda x: -x[1].seconds)[:3]
    )
    print(reading.table(found))
    print("\ngreatest memory and slowest reads:" if not a.all else "\nall:")
    for picture, o in broken + (found if a.all else costly):
        print(
            f"  {picture.kind}, {picture.name}: {o.result}, {o.peak / 1e6:.0f} MB, "
            f"{o.seconds:.2f} s {o.reason}"
        )
    harness.write(a.out, [[p.kind, p.name, *o] for p, o in found])
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
