"""Words that every reader of HLO needs: sizes of types, and where a computation begins."""

import math
import re

# A type as HLO writes it: bytes of an element.
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4}
BYTES |= {"f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "f8e4m3fn": 1, "f8e5m2": 1}


def opened(line: str) -> str | None:
    """Name of the computation that a line of HLO opens."""
    match = re.match(r"(?:ENTRY )?%(\S+) \(.*\{\s*$", line)
    return match and match[1]


def branches(line: str) -> list[str]:
    """Names of the branches in a line with a conditional, in either way that HLO names them."""
    found = re.findall(r"(?:true|false)_computation=%([\w.\-]+)", line)
    for several in re.findall(r"branch_computations=\{([^}]*)\}", line):
        found += re.findall(r"%([\w.\-]+)", several)
    return found


def size(type_: str) -> int:
    """Bytes of a type, a tuple's parts together: 'f32[2,3]{1,0}' has 24."""
    shapes = re.findall(r"(\w+)\[([\d,]*)\]", type_)
    return sum(BYTES.get(t, 0) * math.prod(int(d) for d in s.split(",") if d) for t, s in shapes)
